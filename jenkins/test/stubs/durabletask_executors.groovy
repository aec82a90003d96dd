package org.jenkinsci.plugins.durabletask.executors

import hudson.model.Queue

interface ContinuableExecutable extends Queue.Executable {
    boolean willContinue()
}

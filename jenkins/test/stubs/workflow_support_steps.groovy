package org.jenkinsci.plugins.workflow.support.steps

import hudson.model.Job
import hudson.model.Label
import hudson.model.Queue
import hudson.model.Run
import jenkins.model.CauseOfInterruption
import org.jenkinsci.plugins.durabletask.executors.ContinuableExecutable

class ExecutorStepExecution {
    static final class RemovedNodeCause extends CauseOfInterruption {
        String getShortDescription() { 'Agent was removed' }
    }

    /** A `node` block in the queue. */
    static final class PlaceholderTask implements Queue.Task {
        Job ownerTask
        Run ownerExecutable
        Label assignedLabel
        String getFullDisplayName() { "part of ${ownerTask.fullName} #${ownerExecutable.number}" }
    }
    static final class PlaceholderExecutable implements ContinuableExecutable {
        boolean continues
        boolean willContinue() { continues }
    }
}

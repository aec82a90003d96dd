package org.jenkinsci.plugins.workflow.support.steps

import hudson.model.Job
import hudson.model.Label
import hudson.model.Queue
import hudson.model.Run
import jenkins.model.CauseOfInterruption
import org.jenkinsci.plugins.durabletask.executors.ContinuableExecutable

/** What `retry(conditions: [agent()])` takes for the loss of an agent. */
class AgentErrorCondition {
    interface Retryable { }
}

class ExecutorStepExecution {
    static final class RemovedNodeCause extends CauseOfInterruption implements AgentErrorCondition.Retryable {
        String getShortDescription() { 'Agent was removed' }
    }
    static final class QueueTaskCancelled extends CauseOfInterruption implements AgentErrorCondition.Retryable {
        String getShortDescription() { 'Queue task was cancelled' }
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

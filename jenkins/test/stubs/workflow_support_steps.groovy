package org.jenkinsci.plugins.workflow.support.steps

import hudson.model.Job
import hudson.model.Label
import hudson.model.Queue
import hudson.model.Run
import jenkins.model.CauseOfInterruption
import org.jenkinsci.plugins.workflow.steps.BodyExecution
import org.jenkinsci.plugins.workflow.steps.StepExecution
import org.jenkinsci.plugins.durabletask.executors.ContinuableExecutable

/** What `retry(conditions: [agent()])` takes for the loss of an agent. */
class AgentErrorCondition {
    interface Retryable { }
}

class ExecutorStepDynamicContext {
    final String node
    ExecutorStepDynamicContext(String node) { this.node = node }
}

class ExecutorStep {
    final String label
    ExecutorStep(String label) { this.label = label }
}

class ExecutorStepExecution extends StepExecution {
    private final ExecutorStep step
    /** Null while the block waits in the queue, as is its body. */
    private ExecutorStepDynamicContext state
    private BodyExecution body
    Throwable stopped
    ExecutorStepExecution(String label) { step = new ExecutorStep(label) }
    ExecutorStepExecution(String node, BodyExecution body) {
        step = new ExecutorStep(node)
        this.state = new ExecutorStepDynamicContext(node)
        this.body = body
    }

    void stop(Throwable cause) { stopped = cause }

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

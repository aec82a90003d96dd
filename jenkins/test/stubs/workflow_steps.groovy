package org.jenkinsci.plugins.workflow.steps

import hudson.model.Result
import jenkins.model.CauseOfInterruption

import java.util.concurrent.Future
import java.util.concurrent.FutureTask
import java.util.function.Consumer

final class FlowInterruptedException extends InterruptedException {
    private final Result result
    private final List<CauseOfInterruption> causes
    private Boolean actualInterruption

    FlowInterruptedException(Result result, boolean actualInterruption, CauseOfInterruption... causes) {
        this.result = result
        this.causes = causes as ArrayList
        this.actualInterruption = actualInterruption
    }
    Result getResult() { result }
    List<CauseOfInterruption> getCauses() { causes }
    boolean isActualInterruption() { actualInterruption }
    String getMessage() { causes*.shortDescription.join(', ') }
}

abstract class StepExecution {
    /** Of all builds that run (FlowExecutionList.StepExecutionIteratorImpl). */
    static final List<StepExecution> RUNNING = []
    abstract void stop(Throwable cause)
    static <T extends StepExecution> Future<?> acceptAll(Class<T> type, Consumer<T> consumer) {
        RUNNING.findAll { type.isInstance(it) }.each { consumer.accept(it) }
        new FutureTask({ } as Runnable, null)
    }
}

abstract class BodyExecution {
    /** Deprecated: an actual interruption, which a plain `retry` does not retry. */
    boolean cancel(CauseOfInterruption... causes) { cancel(new FlowInterruptedException(Result.ABORTED, true, causes)) }
    abstract boolean cancel(Throwable error)
}

class TimeoutStepExecution {
    static final class ExceededTimeout extends CauseOfInterruption {
        private final String nodeId
        ExceededTimeout(String nodeId) { this.nodeId = nodeId }
        String getNodeId() { nodeId }
        String getShortDescription() { 'Timeout has been exceeded' }
    }
}

package org.jenkinsci.plugins.workflow.flow

import org.jenkinsci.plugins.workflow.steps.StepExecution

import java.util.concurrent.Future

abstract class FlowExecution {
    abstract FlowExecutionOwner getOwner()
    /** A ListenableFuture: it is done once the program has stopped, and was saved. */
    abstract Future<List<StepExecution>> getCurrentExecutions(boolean innerMostOnly)
    boolean isComplete() { !owner.executable.building }
}

class FlowExecutionOwner {
    final def executable
    FlowExecutionOwner(def executable) { this.executable = executable }
}

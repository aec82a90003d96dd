package org.jenkinsci.plugins.workflow.steps

import hudson.model.Result
import jenkins.model.CauseOfInterruption

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

class TimeoutStepExecution {
    static final class ExceededTimeout extends CauseOfInterruption {
        private final String nodeId
        ExceededTimeout(String nodeId) { this.nodeId = nodeId }
        String getNodeId() { nodeId }
        String getShortDescription() { 'Timeout has been exceeded' }
    }
}

package hudson.slaves

import hudson.EnvVars
import hudson.model.Computer
import hudson.model.Node
import hudson.model.Slave

class SlaveComputer extends Computer {
    private transient volatile boolean accepting = true
    SlaveComputer(Node node) { super(node) }
    boolean isAcceptingTasks() { accepting }
    void setAcceptingTasks(boolean accepting) { this.accepting = accepting }
}

class DumbSlave extends Slave { }

class EnvironmentVariablesNodeProperty {
    final EnvVars envVars
    EnvironmentVariablesNodeProperty(EnvVars envVars) { this.envVars = envVars }
}

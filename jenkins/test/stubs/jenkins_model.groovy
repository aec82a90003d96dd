package jenkins.model

import hudson.ExtensionPoint
import hudson.PluginManager
import hudson.model.Computer
import hudson.model.Node
import hudson.model.Queue
import hudson.util.DescribableList

abstract class CauseOfInterruption implements Serializable {
    abstract String getShortDescription()

    static final class UserInterruption extends CauseOfInterruption {
        private final String user
        UserInterruption(String user) { this.user = user }
        String getShortDescription() { "Aborted by ${user}" }
    }
}

abstract class NodeListener implements ExtensionPoint {
    protected void onCreated(Node node) { }
    protected void onUpdated(Node before, Node after) { }
    protected void onDeleted(Node node) { }
}

class Jenkins {
    static Jenkins instance
    static Jenkins get() { instance }

    File rootDir
    String rootUrl = 'https://jenkins.example.com/'
    String legacyInstanceId = '0123456789abcdef' * 4
    PluginManager pluginManager = new PluginManager()
    Queue queue = new Queue()
    DescribableList globalNodeProperties = new DescribableList()
    boolean quietingDown
    List<Computer> computerList = []
    List<Node> nodeList = []
    List<Node> updated = []

    Computer[] getComputers() { computerList as Computer[] }
    List<Node> getNodes() { nodeList }
    Node getNode(String name) { getNodes().find { it.nodeName == name } }
    boolean updateNode(Node node) throws IOException { updated << node }
}

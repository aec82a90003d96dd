package hudson.model

import hudson.model.labels.LabelAtom
import hudson.model.queue.CauseOfBlockage
import hudson.model.queue.SubTask
import hudson.model.queue.WorkUnit
import hudson.model.queue.WorkUnitContext
import hudson.slaves.SlaveComputer
import hudson.util.VariableResolver
import jenkins.model.CauseOfInterruption
import jenkins.model.Jenkins

import java.util.concurrent.ExecutorService

class Result implements Serializable {
    static final Result SUCCESS = new Result('SUCCESS')
    static final Result FAILURE = new Result('FAILURE')
    static final Result ABORTED = new Result('ABORTED')
    private final String name
    private Result(String name) { this.name = name }
    String toString() { name }
}

/** An expression of `&&` alone: the real ones are tested where they are matched. */
abstract class Label {
    abstract String getExpression()
    abstract boolean matches(VariableResolver<Boolean> resolver)
    final boolean matches(Collection<LabelAtom> labels) {
        matches({ String name -> labels.any { it.name == name } } as VariableResolver<Boolean>)
    }
    final boolean matches(Node node) { matches(node.assignedLabels) }
    boolean contains(Node node) { matches(node) }

    static Set<LabelAtom> parse(String labels) {
        (labels ?: '').tokenize().collect { new LabelAtom(it) } as Set
    }
    static Label get(String expression) { new LabelAtom(expression) }
}

abstract class Node {
    abstract String getNodeName()
    abstract String getNodeDescription()
    abstract int getNumExecutors()
    abstract String getLabelString()
    abstract void setLabelString(String labels) throws IOException
    Set<LabelAtom> getAssignedLabels() { Label.parse(labelString) + Label.parse(nodeName) }
    final Computer toComputer() { Jenkins.get().computers.find { it.node == this } }

    CauseOfBlockage canTake(Queue.BuildableItem item) {
        Label label = item.assignedLabel
        label == null || !label.contains(this) || !toComputer().acceptingTasks ? new CauseOfBlockage() : null
    }
}

abstract class Slave extends Node {
    String nodeName
    String nodeDescription
    int numExecutors = 1
    private String labels
    String getLabelString() { labels }
    void setLabelString(String labels) throws IOException { this.labels = labels }
}

abstract class Computer {
    static ExecutorService threadPoolForRemoting
    private final Node first
    /** Null once the node was deleted, as long as a build keeps the computer (Computer.getNode). */
    Node getNode() { first in Jenkins.get().nodeList ? first : null }
    String getName() { first.nodeName }
    List<Executor> executors = []
    boolean online = true
    String log = ''

    Computer(Node node) {
        this.first = node
        if (!(node in Jenkins.get().nodeList)) {
            Jenkins.get().nodeList << node
        }
        node.numExecutors.times { executors << new Executor(this) }
    }
    final boolean isOnline() { online }
    boolean isAcceptingTasks() { true }
    final boolean isIdle() { executors.every { it.idle } }
    int countIdle() { executors.count { it.idle } }
}

class Executor {
    final Computer owner
    Queue.Executable currentExecutable
    Result interruptedWith

    Executor(Computer owner) { this.owner = owner }
    boolean isIdle() { currentExecutable == null }
    /**
     * PlaceholderExecutable cancels its body from a timer, with the causes that are there by then, which may be none
     * (ExecutorStepExecution, JENKINS-46738): as an actual interruption.
     */
    void interrupt(Result result, CauseOfInterruption... causes) { interruptedWith = result }
}

class OneOffExecutor extends Executor {
    OneOffExecutor(Computer owner) { super(owner) }
}

abstract class Job implements Queue.Task {
    String fullName
    final String getFullDisplayName() { fullName.replace('/', ' » ') }
    final String getAbsoluteUrl() {
        if (Jenkins.get().rootUrl == null) {
            throw new IllegalStateException('Root URL isn\'t configured yet. Cannot compute absolute URL.')
        }
        Jenkins.get().rootUrl + 'job/' + fullName.replace('/', '/job/') + '/'
    }
    Queue.Task getOwnerTask() { this }
    Queue.Executable getOwnerExecutable() { null }
}

class FreeStyleProject extends Job {
    Label assignedLabel
}

abstract class Run implements Queue.Executable {
    Job parent
    int number
    Result result
    boolean building = true
    String getExternalizableId() { "${parent.fullName}#${number}" }
    final String getAbsoluteUrl() { parent.absoluteUrl + number + '/' }
}

class FreeStyleBuild extends Run { }

class Queue {
    List<Item> items = []

    interface Executable { }
    interface Task extends SubTask {
        String getFullDisplayName()
    }
    interface FlyweightTask extends Task { }

    abstract static class Item {
        final Task task
        final long id
        final long inQueueSince
        Item(Task task, long id, long inQueueSince) {
            this.task = task
            this.id = id
            this.inQueueSince = inQueueSince
        }
        Label getAssignedLabel() { task.assignedLabel }
    }
    static class BuildableItem extends Item {
        boolean pending
        BuildableItem(Task task, long id, long inQueueSince) { super(task, id, inQueueSince) }
    }
    static class BlockedItem extends Item {
        BlockedItem(Task task, long id, long inQueueSince) { super(task, id, inQueueSince) }
    }
    static class LeftItem extends Item {
        final WorkUnitContext outcome
        LeftItem(Item item, WorkUnitContext outcome) {
            super(item.task, item.id, item.inQueueSince)
            this.outcome = outcome
        }
        boolean isCancelled() { outcome == null }
    }

    Item getItem(long id) { items.find { it.id == id } }
    boolean cancel(Item item) { items.remove(item) }
    List<BuildableItem> getBuildableItems() { items.findAll { it instanceof BuildableItem } }
    static void withLock(Runnable runnable) { runnable.run() }
    static boolean isBlockedByShutdown(Task task) { Jenkins.get().quietingDown }
}

/** Every Jenkinsfile imports it. */
class JDK { }

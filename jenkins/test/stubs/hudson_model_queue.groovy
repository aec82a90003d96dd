package hudson.model.queue

import hudson.ExtensionList
import hudson.ExtensionPoint
import hudson.model.Executor
import hudson.model.Label
import hudson.model.Node
import hudson.model.Queue

class CauseOfBlockage { }

interface SubTask {
    Label getAssignedLabel()
    Queue.Task getOwnerTask()
    Queue.Executable getOwnerExecutable()
}

abstract class QueueTaskDispatcher implements ExtensionPoint {
    CauseOfBlockage canTake(Node node, Queue.BuildableItem item) { null }
    static List<QueueTaskDispatcher> all() { ExtensionList.lookup(QueueTaskDispatcher) }
}

class WorkUnit {
    Executor executor
}

class WorkUnitContext {
    WorkUnit primaryWorkUnit
}

abstract class QueueListener implements ExtensionPoint {
    void onEnterWaiting(def item) { }
    void onEnterBuildable(Queue.BuildableItem item) { }
    void onLeaveBuildable(Queue.BuildableItem item) { }
    void onLeft(Queue.LeftItem item) { }
}

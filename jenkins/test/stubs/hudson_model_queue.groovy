package hudson.model.queue

import hudson.ExtensionPoint
import hudson.model.Executor
import hudson.model.Label
import hudson.model.Queue

class CauseOfBlockage { }

interface SubTask {
    Label getAssignedLabel()
    Queue.Task getOwnerTask()
    Queue.Executable getOwnerExecutable()
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

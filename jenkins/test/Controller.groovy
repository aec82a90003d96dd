import hudson.ExtensionList
import hudson.model.Computer
import hudson.model.Executor
import hudson.model.ExecutorListener
import hudson.model.FreeStyleBuild
import hudson.model.FreeStyleProject
import hudson.model.Label
import hudson.model.Node
import hudson.model.Queue
import hudson.model.queue.QueueListener
import hudson.model.queue.WorkUnit
import hudson.model.queue.WorkUnitContext
import hudson.slaves.DumbSlave
import hudson.slaves.SlaveComputer
import jenkins.model.Jenkins
import jenkins.model.NodeListener
import org.jenkinsci.plugins.workflow.steps.BodyExecution
import org.jenkinsci.plugins.workflow.steps.StepExecution
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution

import java.util.concurrent.ExecutorService
import java.util.concurrent.ScheduledFuture
import java.util.concurrent.ScheduledExecutorService
import java.util.concurrent.TimeUnit
import java.util.logging.Handler
import java.util.logging.LogRecord
import java.util.logging.Logger

/** A controller whose queue, timers and time are ours. */
class Controller {
    static final String SETTINGS = '''
        requests = https://sqs.eu-west-1.amazonaws.com/1/requests
        completions = https://sqs.eu-west-1.amazonaws.com/1/completions
        templates = linux maven; linux node
    '''
    final File script
    final File settings
    final Jenkins jenkins
    final List<String> log = []
    /** What was logged with a stack trace. */
    final List<Throwable> thrown = []
    /** What the script console shows. */
    String installed
    long clock = System.currentTimeMillis()
    private List timers = []

    Controller(File folder, String text = SETTINGS) {
        script = new File(folder, 'init.groovy.d/ecs-agents.groovy')
        File root = File.createTempDir()
        root.deleteOnExit()
        settings = new File(root, 'ecs-agents.properties')
        if (text != null) {
            settings.text = text
        }
        settings.deleteOnExit()
        jenkins = new Jenkins(rootDir: root)
        boot()
    }

    /** Starts, or starts again: the queue, the nodes and the files are still there, nothing else is. */
    void boot() {
        Jenkins.instance = jenkins
        ExtensionList.LISTS.clear()
        timers.clear()
        jenkins.computerList = jenkins.computerList.findAll { it.node }.collect { new SlaveComputer(it.node) }
        StepExecution.RUNNING.clear()
        jenkins.util.Timer.instance = [schedule: { Runnable work, long delay, TimeUnit unit ->
            def timer = [at: clock + unit.toMillis(delay), work: work]
            timers << timer
            [cancel: { boolean ignored -> timers.remove(timer) }] as ScheduledFuture
        }] as ScheduledExecutorService
        Computer.threadPoolForRemoting = [submit: { Runnable work -> work.run(); null }] as ExecutorService
        Logger logger = Logger.getLogger('jenkins-ecs-agents')
        logger.useParentHandlers = false
        logger.handlers.each { logger.removeHandler(it) }
        logger.addHandler([publish: { LogRecord record ->
            log << record.message
            if (record.thrown) {
                thrown << record.thrown
            }
        }, flush: { }, close: { }] as LogHandler)
        install()
    }

    void install() {
        installed = new GroovyShell(Controller.classLoader).evaluate(script)
        ExtensionList.LISTS.values().flatten().each {
            it.agents.metaClass.now = { -> clock }
            it.agents.since = clock
        }
    }

    List listeners(Class type) { ExtensionList.lookup(type) as List }
    /** Timers, but for the one that reads the settings again. */
    int getPending() { timers.size() - 1 }

    void pass(long seconds) {
        long end = clock + seconds * 1000
        while (timers.any { it.at <= end }) {
            def timer = timers.min { it.at }
            timers.remove(timer)
            clock = timer.at
            timer.work.run()
        }
        clock = end
    }

    FreeStyleProject job(String label, String name = 'team/app') { new FreeStyleProject(fullName: name, assignedLabel: label == null ? null : Label.get(label)) }

    Queue.BuildableItem enqueue(Queue.Task task, long id = 7, long blockedMinutes = 0) {
        def item = new Queue.BuildableItem(task, id, clock - blockedMinutes * 60_000)
        jenkins.queue.items << item
        listeners(QueueListener)*.onEnterBuildable(item)
        item
    }

    void leave(Queue.Item item, Executor taker) {
        jenkins.queue.items.remove(item)
        def outcome = taker == null ? null : new WorkUnitContext(primaryWorkUnit: new WorkUnit(executor: taker))
        listeners(QueueListener)*.onLeft(new Queue.LeftItem(item, outcome))
    }

    Computer agent(String name, String request, String labels = 'linux maven', int executors = 1) {
        def arn = "arn:aws:ecs:eu-west-1:1:task/c/${name}"
        node(name, labels, "ECS agent of request ${request} for team/app (https://jenkins.example.com/job/team/job/app/), task ${arn}, logs: https://x", executors)
    }

    Computer node(String name, String labels, String description = '', int executors = 1) {
        def computer = new SlaveComputer(new DumbSlave(nodeName: name, nodeDescription: description, labelString: labels, numExecutors: executors))
        jenkins.computerList << computer
        listeners(NodeListener)*.onCreated(computer.node)
        computer
    }

    /** The queue gives an item to an agent: its executor takes it, and the item leaves. */
    /** A `node` block that waits for this label, or runs on a node. */
    ExecutorStepExecution block(String label, SlaveComputer on = null, List<Throwable> cancelled = null) {
        def block = on == null ? new ExecutorStepExecution(label)
            : new ExecutorStepExecution(on.name, [cancel: { Throwable cause -> cancelled << cause; true }] as BodyExecution)
        StepExecution.RUNNING << block
        block
    }

    Executor take(Queue.Item item, Computer computer, Queue.Executable executable) {
        Executor executor = computer.executors.find { it.idle }
        executor.currentExecutable = executable
        leave(item, executor)
        listeners(ExecutorListener)*.taskAccepted(executor, item.task)
        listeners(ExecutorListener)*.taskStarted(executor, item.task)
        executor
    }

    void finish(Executor executor, Queue.Task task, Throwable problems = null) {
        if (problems) {
            listeners(ExecutorListener)*.taskCompletedWithProblems(executor, task, 1L, problems)
        } else {
            listeners(ExecutorListener)*.taskCompleted(executor, task, 1L)
        }
        executor.currentExecutable = null
    }

    void delete(Computer computer) {
        Node node = computer.node
        // Nodes.removeNode: the computer stays as long as something runs on it.
        jenkins.nodeList.remove(node)
        computer.online = false
        if (computer.idle) {
            jenkins.computerList.remove(computer)
        }
        listeners(NodeListener)*.onDeleted(node)
    }
}

abstract class LogHandler extends Handler { }

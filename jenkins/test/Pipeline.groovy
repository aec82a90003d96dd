import groovy.json.JsonOutput
import hudson.AbortException
import hudson.EnvVars
import hudson.model.Computer
import hudson.model.FreeStyleBuild
import hudson.model.FreeStyleProject
import hudson.model.Label
import hudson.model.Queue
import hudson.model.Result
import hudson.slaves.DumbSlave
import hudson.slaves.EnvironmentVariablesNodeProperty
import hudson.slaves.SlaveComputer
import jenkins.model.CauseOfInterruption
import jenkins.model.Jenkins
import org.codehaus.groovy.control.CompilerConfiguration
import org.jenkinsci.plugins.workflow.cps.CpsThread
import org.jenkinsci.plugins.workflow.flow.FlowExecution
import org.jenkinsci.plugins.workflow.flow.FlowExecutionOwner
import org.jenkinsci.plugins.workflow.steps.BodyExecution
import org.jenkinsci.plugins.workflow.steps.FlowInterruptedException
import org.jenkinsci.plugins.workflow.steps.StepExecution
import org.jenkinsci.plugins.workflow.steps.TimeoutStepExecution.ExceededTimeout
import org.jenkinsci.plugins.workflow.support.steps.AgentErrorCondition
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.PlaceholderTask
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.QueueTaskCancelled
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.RemovedNodeCause

import java.security.MessageDigest
import java.util.concurrent.Callable
import java.util.concurrent.ExecutorService
import java.util.concurrent.Future
import java.util.concurrent.FutureTask
import java.util.concurrent.ScheduledExecutorService
import java.util.concurrent.TimeUnit

/** A pipeline whose steps are stand-ins and whose time is ours. */
class Pipeline {
    /** The parameters of each step: constructor and setters of the class that is named. */
    static final Map PARAMETERS = [
        registerWebhook: ['token', 'authToken'],                            // webhook-step: RegisterWebhookStep
        waitForWebhook : ['webhookToken', 'withHeaders'],                   // webhook-step: WaitForWebhookStep
        timeout        : ['time', 'unit', 'activity'],                      // workflow-basic-steps: TimeoutStep
        retry          : ['count', 'conditions'],                           // workflow-basic-steps: RetryStep
        waitUntil      : ['initialRecurrencePeriod', 'quiet'],              // workflow-basic-steps: WaitForConditionStep
        string         : ['credentialsId', 'variable'],                     // credentials-binding: StringBinding
    ]

    long clock = 1_000_000_000_000L
    /** The build's environment. Any Jenkinsfile can put another into the library (`ecsAgent.env = …`), as any `currentBuild`. */
    Map env = [JENKINS_URL: 'https://jenkins.example.com/']
    EnvVars global = new EnvVars()
    FreeStyleBuild run = new FreeStyleBuild(parent: new FreeStyleProject(fullName: 'app/main'), number: 42)
    def currentBuild = [currentResult: 'SUCCESS']
    /** What is going to happen: [at, closure], in order. */
    List events = []
    /** What webhooks were sent, by token; whoever waits takes it (WebhookRootAction.alreadyPosted). */
    Map<String, List<String>> inbox = [:].withDefault { [] }
    Map<String, String> authTokens = [:]
    List<String> log = []
    List<String> nodes = []
    /** Whether Jenkins has written the program to disk: only once nothing of it can go on (CpsThreadGroup.run). */
    boolean saved
    /** A post that never comes to its end. */
    boolean hangs
    String node
    /** What happens as an agent takes a block, before that begins. */
    Closure taking
    private List timeouts = []
    private Throwable interruption
    Script step
    GroovyClassLoader loader

    Pipeline(File jenkins) {
        Jenkins.instance = new Jenkins()
        jenkins.util.Timer.instance = [schedule: { Runnable work, long delay, TimeUnit unit ->
            after(unit.toSeconds(delay)) { work.run() }
            null
        }] as ScheduledExecutorService
        global.putAll(ECS_AGENTS_REQUESTS: 'https://sqs.eu-west-1.amazonaws.com/1/requests',
            ECS_AGENTS_COMPLETIONS: 'https://sqs.eu-west-1.amazonaws.com/1/completions')
        Jenkins.instance.globalNodeProperties << new EnvironmentVariablesNodeProperty(global)
        Computer.threadPoolForRemoting = [submit: { Callable work ->
            def future = new FutureTask(work)
            // At once, and where no CpsThread is, and no sandbox (GroovyInterceptor is registered for a thread).
            if (!hangs) {
                Thread thread = new Thread(future)
                thread.start()
                thread.join()
            }
            future
        }] as ExecutorService
        CpsThread.enter(new Execution(run))
        StepExecution.RUNNING.clear()
        def configuration = new CompilerConfiguration(scriptBaseClass: Steps.name)
        loader = new GroovyClassLoader(Pipeline.classLoader, configuration)
        step = loader.parseClass(new File(jenkins, 'vars/ecsAgent.groovy')).newInstance()
        step.attach(this)
        step.metaClass.now = { -> clock }
        def pipeline = this
        loader.loadClass("EcsAgentPost").metaClass.static.now = { -> pipeline.clock }
    }

    static class Execution extends FlowExecution {
        final FlowExecutionOwner owner
        Execution(run) { owner = new FlowExecutionOwner(run) }
        Future<List<StepExecution>> getCurrentExecutions(boolean innerMostOnly) {
            def future = new FutureTask({ new ArrayList(StepExecution.RUNNING) } as Callable)
            future.run()
            future
        }
    }

    /** What the functions name the agent of the n-th of the requests (shared/src/name.rs). */
    static String agentName(String template, String requestId) {
        "ecs-${template}-" + MessageDigest.getInstance('SHA-256').digest("${requestId}\n0".getBytes('UTF-8')).encodeHex().toString().take(12)
    }

    def ecsAgent(Map args, Closure body) { step.call(args, body) }

    void after(long seconds, Closure event) {
        events << [clock + seconds * 1000, event]
        events.sort { it[0] }
    }

    /** The requests, each once. */
    static List<Map> requests() { Tests.sent('requests').unique { it.requestId } }

    /** Notifies the controller of an agent, at the URL of the n-th request from the end. */
    void notify(Map notice, int fromEnd = 0, String requestId = null) {
        Map request = requests()[-1 - fromEnd]
        inbox[request.webhookUrl.tokenize('/').last()] << JsonOutput.toJson([version: 1, requestId: requestId ?: request.requestId] + notice)
    }

    /** An agent has become ready: its node is there, and Jenkins connects to it at once. */
    String ready(String template = 'a', int fromEnd = 0) {
        String id = requests()[-1 - fromEnd].requestId
        String name = agentName(template, id)
        String arn = "arn:aws:ecs:eu-west-1:1:task/c/${name}"
        Jenkins.get().computerList << new SlaveComputer(new DumbSlave(nodeName: name, labelString: name,
            nodeDescription: "ECS agent of request ${id} for app/main #42 in cluster c of eu-west-1, task ${arn}, logs: https://x"))
        notify([type: 'agent.ready', agent: [name: name, labels: ['linux', 'maven']], task: [arn: arn]], fromEnd)
        name
    }

    SlaveComputer computer(String name) { Jenkins.get().computerList.find { it.name == name } }

    /** The connection breaks, and the functions delete the node so many seconds later. */
    void lose(String name, long seconds = 0) {
        computer(name).online = false
        after(seconds) {
            Jenkins.get().nodeList.removeAll { it.nodeName == name }
            Jenkins.get().computerList.remove(computer(name))
            // ExecutorStepExecution.RemovedNodeListener, TIMEOUT_WAITING_FOR_NODE_MILLIS
            after(300) { StepExecution.RUNNING.findAll { it.@state?.node == name }.each { it.@body?.cancel(new FlowInterruptedException(Result.ABORTED, false, new RemovedNodeCause())) } }
        }
    }

    void failed(String code, String message, int fromEnd = 0, Map more = [:]) {
        notify([type: 'agent.failed', failure: [code: code, message: message] + more], fromEnd)
    }

    /** Somebody aborts the build: the step that runs is interrupted. */
    void abort() { interruption = new FlowInterruptedException(Result.ABORTED, true, new CauseOfInterruption.UserInterruption('ann')) }

    /** Lets time pass until something is so; an interruption or a timeout comes first. */
    void await(Closure<Boolean> done) {
        long began = clock
        while (!done()) {
            saved = true
            if (clock - began > 30 * 86_400_000L) {
                throw new AssertionError('the build would wait for ever' as Object)
            }
            if (interruption) {
                def e = interruption
                interruption = null
                throw e
            }
            def next = events ? events[0] : null
            def expiring = timeouts.min { it.at }
            if (next && (!expiring || next[0] <= expiring.at)) {
                events.remove(0)
                clock = Math.max(clock, next[0])
                next[1]()
            } else if (expiring) {
                clock = Math.max(clock, expiring.at)
                throw new FlowInterruptedException(Result.ABORTED, true, new ExceededTimeout(expiring.id))
            } else {
                throw new AssertionError('the build would wait for ever' as Object)
            }
        }
    }

    /** WaitForConditionStep: looks, and looks again after a pause that grows. */
    void waitUntil(Map args, Closure<Boolean> body) {
        long pause = Math.max(250L, args.initialRecurrencePeriod ?: 250L)
        while (true) {
            def value = body()
            assert value instanceof Boolean
            if (value) {
                return
            }
            long until = clock + pause
            events << [until, { }]
            events.sort { it[0] }
            await { clock >= until }
            pause = Math.min((long) (pause * 1.2), 15000L)
            assert args.quiet // else each look prints a line
        }
    }

    def timeout(Map args, Closure body) {
        long factor = [SECONDS: 1000L, MINUTES: 60000L, MILLISECONDS: 1L][args.unit ?: 'MINUTES']
        def mine = [at: clock + args.time * factor, id: "${timeouts.size()}".toString()]
        timeouts << mine
        try {
            return body()
        } finally {
            timeouts.remove(mine)
        }
    }

    def retry(Map args, Closure body) {
        int left = args.count
        while (true) {
            try {
                return body()
            } catch (Exception e) {
                // RetryStepExecution.matchesConditions, with AgentErrorCondition
                boolean again = args.conditions ? e instanceof FlowInterruptedException && e.causes.any { it instanceof AgentErrorCondition.Retryable }
                    : !(e instanceof FlowInterruptedException && e.actualInterruption)
                if (--left == 0 || !again) {
                    throw e
                }
                // RetryStepExecution.Callback.onFailure
                log << (e instanceof AbortException || e instanceof FlowInterruptedException ? e.message : "Execution failed\n${e.stackTrace.join('\n')}".toString())
            }
        }
    }

    /** ExecutorStepExecution: an item of the queue, which whoever cancels it ends (CancelledItemListener). */
    def onNode(String name, Closure body) {
        def queue = Jenkins.get().queue
        def item = new Queue.BuildableItem(new PlaceholderTask(ownerTask: run.parent, ownerExecutable: run, assignedLabel: Label.get(name)), 1, clock)
        queue.items << item
        def waiting = new ExecutorStepExecution(name)
        StepExecution.RUNNING << waiting
        try {
            await { waiting.stopped || !(item in queue.items) || computer(name)?.online }
            if (waiting.stopped) {
                throw waiting.stopped
            }
            if (!queue.items.remove(item)) {
                throw new FlowInterruptedException(Result.ABORTED, true, new QueueTaskCancelled())
            }
        } finally {
            StepExecution.RUNNING.remove(waiting)
            queue.items.remove(item)
        }
        if (taking) {
            taking(name)
        }
        String before = node
        node = name
        nodes << name
        def execution = new ExecutorStepExecution(name, [cancel: { Throwable e -> interruption = e; true }] as BodyExecution)
        StepExecution.RUNNING << execution
        try {
            return body()
        } finally {
            StepExecution.RUNNING.remove(execution)
            node = before
        }
    }

    static void check(String step, Map args) {
        def unknown = args.keySet() - PARAMETERS[step]
        assert !unknown: "${step} has no parameter ${unknown}"
        // Jenkins writes the program to disk at every step.
        new ObjectOutputStream(new ByteArrayOutputStream()).writeObject(args.findAll { it.key != 'conditions' } as LinkedHashMap)
    }

    /** webhook-step: WebhookToken. */
    static class WebhookToken implements Serializable {
        String token
        String url
    }
}

/** The steps as the script calls them. */
abstract class Steps extends Script {
    protected Pipeline pipeline

    void attach(Pipeline pipeline) { this.@pipeline = pipeline }
    def getEnv() { pipeline.env }
    def getCurrentBuild() { pipeline.currentBuild }
    void echo(String message) { pipeline.log << message }
    void error(String message) { throw new AbortException(message) }

    def registerWebhook(Map args) {
        Pipeline.check('registerWebhook', args)
        pipeline.authTokens[args.token] = args.authToken
        new Pipeline.WebhookToken(token: args.token, url: "https://jenkins.example.com/webhook-step/${args.token}")
    }

    def waitForWebhook(Map args) {
        Pipeline.check('waitForWebhook', args)
        String token = args.webhookToken.token
        pipeline.await { pipeline.inbox[token] }
        pipeline.inbox[token].remove(0)
    }

    def timeout(Map args, Closure body) {
        Pipeline.check('timeout', args)
        pipeline.timeout(args, body)
    }

    def retry(int count, Closure body) { pipeline.retry([count: count], body) }
    def retry(Map args, Closure body) {
        Pipeline.check('retry', args)
        pipeline.retry(args, body)
    }
    def agent() { 'agent' }

    def node(String label, Closure body) { pipeline.onNode(label, body) }

    /** ParallelStep: the values by the branches' names. */
    def parallel(Map branches) {
        def faults = []
        def values = [:]
        branches.each { name, body ->
            assert name instanceof String
            try {
                values[name] = body()
            } catch (Exception e) {
                faults << e
            }
        }
        if (faults) {
            throw faults[0]
        }
        values
    }

    void waitUntil(Map args, Closure<Boolean> body) {
        Pipeline.check('waitUntil', args)
        pipeline.waitUntil(args, body)
    }

    def string(Map args) {
        Pipeline.check('string', args)
        args
    }

    def withCredentials(List bindings, Closure body) { with(bindings.collectEntries { [it.variable, "secret of ${it.credentialsId}".toString()] }, body) }
    def withEnv(List<String> variables, Closure body) { with(variables.collectEntries { it.split('=', 2) as List }, body) }

    private def with(Map more, Closure body) {
        Map before = pipeline.env
        pipeline.env = before + more
        try {
            return body()
        } finally {
            pipeline.env = before
        }
    }
}

import groovy.json.JsonOutput
import hudson.ExtensionList
import hudson.model.Computer
import hudson.model.Executor
import hudson.model.ExecutorListener
import hudson.model.Job
import hudson.model.Label
import hudson.model.Node
import hudson.model.OneOffExecutor
import hudson.model.Queue
import hudson.model.Result
import hudson.model.Run
import hudson.model.queue.QueueListener
import hudson.model.queue.QueueTaskDispatcher
import hudson.slaves.SlaveComputer
import jenkins.model.CauseOfInterruption
import jenkins.model.Jenkins
import jenkins.model.NodeListener
import jenkins.util.Timer

import java.time.Duration
import java.time.Instant
import java.util.concurrent.ConcurrentHashMap
import java.util.concurrent.ScheduledFuture
import java.util.concurrent.TimeUnit
import java.util.function.Consumer
import java.util.logging.Level
import java.util.logging.Logger

/*
 * Agents by label, for freestyle jobs and unchanged pipelines: an item of the build queue that one of our templates
 * serves, and that no online node can take, is asked for once; its agent takes one build and is given back.
 *
 * Needs no plugin but one that brings the AWS SDK (aws-java-sdk2-sqs or aws-java-sdk-sqs; -sns with topics), or the AWS
 * CLI on the controller. Settings: $JENKINS_HOME/ecs-agents.properties. Nothing is kept that a restart could lose: the
 * id of a request is made of the item's and of its age, so that asking again after a restart changes nothing, and what an
 * agent is for stands in its node. Running this script again (Script Console) replaces what the last run has installed.
 */

/** The settings. A fault names every line to fix. */
class EcsAgentsSettings {
    String requests
    String completions
    List<Set> templates
    long grace
    long askAgain

    static EcsAgentsSettings read(File file) {
        def lines = new Properties()
        file.withReader('UTF-8') { lines.load(it) }
        List faults = []
        def settings = new EcsAgentsSettings()
        ['requests', 'completions'].each {
            settings[it] = lines.getProperty(it)?.trim()
            if (!(settings[it] ==~ /arn:[a-z-]+:sns:.+|https?:.+/)) {
                faults << "${it}: has to be the URL of an SQS queue or the ARN of an SNS topic"
            }
        }
        String templates = lines.getProperty('templates', '')
        if (templates.contains("'")) {
            faults << "templates: a label cannot have a ', which Jenkins takes for a quotation mark"
        }
        settings.templates = templates.split(';')*.trim().findAll().collect { Label.parse(it) }
        if (!settings.templates) {
            faults << 'templates: has to be the labels of each template, like `linux maven; linux node`'
        }
        Closure number = { String name, int value ->
            String given = lines.getProperty(name, "${value}").trim()
            if (!given.isInteger() || given.toInteger() < 1) {
                faults << "${name}: has to be a whole number of at least 1"
                return value
            }
            given.toInteger()
        }
        settings.grace = number('graceSeconds', 2)
        settings.askAgain = number('askAgainMinutes', 35) * 60
        settings.templates = settings.templates ?: []
        if (faults) {
            throw new IllegalArgumentException("${file}: ${faults.join('; ')}")
        }
        return settings
    }

    boolean serves(Label label) {
        label != null && templates.any { label.matches(it) }
    }
}

/** An item of the queue that is ours to serve. Whoever reads or changes it holds its lock, and does no I/O meanwhile. */
class EcsAgentsItem {
    /** Of the last request for it, or of one that another item has left to it. */
    String requestId
    /** When that request expires, in milliseconds. */
    Long until
    ScheduledFuture timer
    boolean left
}

/** Asks and gives back. */
class EcsAgents {
    static final Logger LOG = Logger.getLogger('jenkins-ecs-agents')
    private static final long TRY_AGAIN_SECONDS = 60
    /** How soon an item looks again that a node seems to be about to take, or that Jenkins lets nobody take. */
    private static final long LOOK_AGAIN_SECONDS = 5
    private static final long REFRESH_SECONDS = 10
    /** Jenkins gives a one-shot agent no time to come back. A node may be made anew, which a block that waits can use. */
    private static final long MADE_ANEW_SECONDS = 15
    private static final String STEPS = 'org.jenkinsci.plugins.workflow.steps.'
    private static final String BLOCK = 'org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution'

    final File file
    /** The items of the build queue that are ours to serve, by id. */
    private final Map<Long, EcsAgentsItem> items = new ConcurrentHashMap<>()
    /** What the agents that build are given back as, by name: when a build ends, its node may be gone. */
    private final Map<String, Map> building = new ConcurrentHashMap<>()
    /** Requests that were withdrawn before their node was there: it is not to take a build any more. */
    private final Set<String> withdrawn = Collections.synchronizedSet(Collections.newSetFromMap(
        new LinkedHashMap<String, Boolean>() {
            protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) { size() > 1000 }
        }))
    /** What entered the queue before may have been asked for before a restart; of what came later, all is known. */
    private long since = now()
    private volatile boolean closed
    private volatile EcsAgentsSettings settings
    /** What is wrong with the settings. */
    private volatile String fault
    private long readAt = -1

    EcsAgents(File file) { this.file = file }

    /**
     * Reads the settings when the file has changed; the last good ones count while it is wrong. Not from a listener: the
     * queue calls those under its lock.
     */
    synchronized void refresh() {
        long changed = file.lastModified()
        if (changed == readAt) {
            return
        }
        readAt = changed
        try {
            settings = EcsAgentsSettings.read(file)
            fault = null
        } catch (IOException | IllegalArgumentException e) {
            fault = "ECS agents: ${e.message}${settings ? '; the settings of before count' : ''}"
            LOG.severe(fault)
            return
        }
        // What is in the queue may be served from now on.
        Jenkins.get().queue.buildableItems.each { entered(it) }
    }

    /** What the listener serves, or why it serves nothing. */
    String getStatus() {
        fault ?: "ECS agents: asks for agents for the templates ${settings.templates.collect { it*.name.join(' ') }.join('; ')}"
    }

    void keepRefreshing() {
        if (!closed) {
            background { refresh() }
            Timer.get().schedule({ keepRefreshing() } as Runnable, REFRESH_SECONDS, TimeUnit.SECONDS)
        }
    }

    void close() {
        closed = true
        items.values().each { it.timer?.cancel(false) }
    }

    // Items of the build queue.

    /** An item may be taken by any node that fits. It is given a moment: this comes before the queue has tried. */
    void entered(Queue.BuildableItem item) {
        if (closed || item.task instanceof Queue.FlyweightTask || !settings?.serves(item.assignedLabel)) {
            return
        }
        def entry = new EcsAgentsItem()
        entry = items.putIfAbsent(item.id, entry) ?: entry
        synchronized (entry) {
            later(item.id, entry, Math.max(settings.grace, secondsUntil(entry.until)))
        }
    }

    /** An item was taken or cancelled. What it asked for, and nobody uses, is given back. */
    void left(Queue.LeftItem item) {
        EcsAgentsItem entry = items.remove(item.id)
        if (entry == null) {
            return
        }
        String requestId = null
        synchronized (entry) {
            entry.left = true
            entry.timer?.cancel(false)
            requestId = entry.requestId
        }
        Node taker = item.outcome?.primaryWorkUnit?.executor?.owner?.node
        String taken = taker == null ? null : requestOf(taker)
        if (requestId != null && taken != requestId && !(taken != null && leaveTo(taken, requestId))) {
            background { withdraw(requestId) }
        }
    }

    /** The item whose agent was taken gets the agent of the one that took it. */
    private boolean leaveTo(String taken, String requestId) {
        items.values().any { other ->
            synchronized (other) {
                boolean isIt = other.requestId == taken && !other.left
                if (isIt) {
                    other.requestId = requestId
                }
                return isIt
            }
        }
    }

    private long secondsUntil(Long time) {
        time == null ? 0 : Math.max(0, time - now() + 999).intdiv(1000L)
    }

    private void later(long id, EcsAgentsItem entry, long seconds) {
        entry.timer?.cancel(false)
        entry.timer = Timer.get().schedule({ background { look(id) } } as Runnable, seconds, TimeUnit.SECONDS)
    }

    /** Does an item still wait, with no node for it? Then an agent is asked for. */
    void look(long id) {
        refresh()
        EcsAgentsItem entry = items.get(id)
        if (closed || entry == null) {
            return
        }
        def item = Jenkins.get().queue.getItem(id)
        if (!(item instanceof Queue.BuildableItem)) {
            // Blocked: it will enter again. Gone: there was nothing to give back, or it was given back.
            if (entry.requestId == null) {
                items.remove(id, entry)
            }
            return
        }
        // Without the entry's lock, since other plugins are asked here, which may want the queue's.
        // While Jenkins prepares to shut down, nothing starts: an agent would only wait.
        boolean isTaken = item.pending || Queue.isBlockedByShutdown(item.task) || isTakable(item)
        Map build = build(item.task, null)
        Map request = null
        synchronized (entry) {
            if (entry.left) {
                return
            }
            long now = now()
            if (isTaken) {
                later(id, entry, LOOK_AGAIN_SECONDS)
            } else if (entry.until != null && entry.until > now) {
                later(id, entry, secondsUntil(entry.until)) // the clock was set back, or the item was blocked meanwhile
            } else {
                request = newRequest(item, entry, now) + [build: build]
            }
        }
        if (request == null) {
            return
        }
        String fault = null
        try {
            send(settings.requests, request)
        } catch (Exception e) {
            fault = reason(e)
            LOG.warning("ECS agents: could not post request ${request.requestId}, trying again in ${TRY_AGAIN_SECONDS} s: ${fault}")
        }
        synchronized (entry) {
            if (entry.left) {
                return // `left` has withdrawn the request, and the functions keep that until they meet it
            }
            if (fault != null) {
                entry.until = null
            }
            later(id, entry, fault == null ? secondsUntil(entry.until) : TRY_AGAIN_SECONDS)
        }
        if (fault == null) {
            LOG.info("ECS agents: asked for an agent for ${item.task.fullDisplayName} with label ${request.label} " +
                "(request ${request.requestId})")
        }
    }

    private Map newRequest(Queue.BuildableItem item, EcsAgentsItem entry, long now) {
        // By the item's own age, so that after a restart the same attempt has the same number and ends when it would have.
        long period = settings.askAgain * 1000
        long age = Math.max(0, now - item.inQueueSince)
        // One that was blocked for long gets a whole period all the same.
        entry.until = now + period - (item.inQueueSince < since ? age % period : 0)
        entry.requestId = requestId(item, 1 + age.intdiv(period))
        [version: 1, requestId: entry.requestId, label: item.assignedLabel.expression, count: 1,
         expiresAt: Instant.ofEpochSecond(entry.until.intdiv(1000L)).toString()]
    }

    /** As the queue decides it (Queue.JobOffer.getCauseOfBlockage). */
    private static boolean isTakable(Queue.BuildableItem item) {
        Jenkins.get().computers.any { computer ->
            Node node = computer.node
            node != null && computer.online && computer.acceptingTasks && computer.countIdle() > 0 && node.canTake(item) == null &&
                QueueTaskDispatcher.all().every { it.canTake(node, item) == null }
        }
    }

    /** The same for the same item after a restart, and for no other item, even if the queue's counter begins anew. */
    static String requestId(Queue.Item item, long attempt) {
        "queue/${controller()}/${item.id}-${Long.toString(item.inQueueSince, 36)}/${attempt}"
    }

    private static String controller() { Jenkins.get().legacyInstanceId.take(8) }

    private void withdraw(String requestId) {
        withdrawn.add(requestId) // before the look, so that a node that comes now is not missed
        Node node = Jenkins.get().nodes.find { requestOf(it) == requestId }
        boolean isFree = true
        if (node != null) {
            // Under the queue's lock, so that no item takes it in between.
            Queue.withLock({
                Computer computer = node.toComputer()
                isFree = computer == null || (computer.idle && computer.acceptingTasks)
                if (isFree) {
                    retire(computer)
                }
            } as Runnable)
        }
        if (isFree) {
            give([requestId: requestId], [:], 'ABORTED')
        }
    }

    long now() { System.currentTimeMillis() }

    // Nodes.

    /**
     * The request that a node was made for, if it was one of this listener's: its description begins with it. The
     * pipeline step's ids have another form, whatever the job is called.
     */
    static String requestOf(Node node) {
        def found = node?.nodeDescription =~ "^ECS agent of request (queue/${controller()}/\\d+-[0-9a-z]+/\\d+)(?: |\$)"
        found ? found[0][1] : null
    }

    /** The task of a node: after the last marker, since the job's name stands before it. */
    static String taskOf(Node node) {
        String description = node.nodeDescription
        def arn = description.substring(description.lastIndexOf(', task ') + 1) =~ /^ task (arn:[^\s,]+)/
        arn ? arn[0][1] : null
    }

    void created(Node node) {
        if (requestOf(node) in withdrawn) {
            retire(node.toComputer())
        }
    }

    /**
     * A pipeline whose node was deleted waits five minutes for it to come back, unless it is a cloud's, and a `node` that
     * waits for one waits for ever (ExecutorStepExecution.RemovedNodeListener). Ours never come back. A freestyle build
     * ends by itself (Computer.kill).
     */
    void deleted(Node node) {
        if (!(node.nodeDescription ?: '').startsWith('ECS agent of request ')) {
            return
        }
        String name = node.nodeName
        endBlocks { it.@state?.node == name ? it.@body : null }
        Timer.get().schedule({
            background {
                if (Jenkins.get().getNode(name) == null) {
                    endBlocks { it.@state == null && it.@step?.label == name ? it : null }
                }
            }
        } as Runnable, MADE_ANEW_SECONDS, TimeUnit.SECONDS)
    }

    /**
     * Ends `node` blocks as Jenkins' own listener does, so that `retry` takes it for the loss of an agent: with the cause,
     * and not as an actual interruption. (Executor.interrupt loses its causes now and then.)
     */
    private static void endBlocks(Closure which) {
        ClassLoader loader = Jenkins.get().pluginManager.uberClassLoader
        Class block
        try {
            block = loader.loadClass(BLOCK)
        } catch (ClassNotFoundException ignored) {
            return // no pipelines here
        }
        loader.loadClass(STEPS + 'StepExecution').acceptAll(block, { execution ->
            def target = which(execution)
            if (target != null) {
                CauseOfInterruption[] causes = [loader.loadClass(BLOCK + '$RemovedNodeCause').newInstance()]
                def cause = loader.loadClass(STEPS + 'FlowInterruptedException').newInstance(Result.ABORTED, false, causes)
                target.is(execution) ? target.stop(cause) : target.cancel(cause)
            }
        } as Consumer)
    }

    /** Takes no further build; what runs there goes on. */
    private static void retire(Computer computer) {
        if (computer instanceof SlaveComputer) {
            computer.acceptingTasks = false
        }
    }

    // Builds.

    private static boolean isOurs(Executor executor) {
        Node node = executor.owner.node
        !(executor instanceof OneOffExecutor) && node?.numExecutors == 1 && requestOf(node) != null
    }

    /**
     * A build begins: the agent takes no other. `acceptingTasks` holds at once, but not over a restart; the labels do.
     * A pipeline that goes on after a restart asks for the node by its name (ExecutorStepExecution.PlaceholderTask).
     */
    void accepted(Executor executor) {
        if (!isOurs(executor)) {
            return
        }
        Node node = executor.owner.node
        retire(executor.owner)
        building.put(node.nodeName, [requestId: requestOf(node), agent: node.nodeName, taskArn: taskOf(node)].findAll { it.value })
        if (node.labelString != node.nodeName) {
            node.labelString = node.nodeName
            Jenkins.get().updateNode(node)
        }
    }

    /** A build is over, or a pipeline's `node` block: the agent is given back, and be its node gone. */
    void completed(Executor executor, Queue.Task task, Throwable problems) {
        def executable = executor.currentExecutable
        if (executor instanceof OneOffExecutor || willContinue(executable)) {
            return
        }
        Map subject = building.remove(executor.owner.name)
        if (subject == null) {
            return
        }
        retire(executor.owner)
        // A pipeline's result is not known yet when its `node` block ends.
        def result = executable instanceof Run ? executable.result : problems == null ? null : Result.FAILURE
        Map build = build(task, executable)
        background { give(subject, build, result?.toString()) }
    }

    /** A pipeline that goes on after a restart (durable-task's ContinuableExecutable). */
    private static boolean willContinue(def executable) {
        executable?.metaClass?.respondsTo(executable, 'willContinue') && executable.willContinue()
    }

    private void give(Map subject, Map build, String result) {
        Map rest = [build: build, result: result].findAll { it.value }
        try {
            send(settings.completions, [version: 1] + subject + rest)
        } catch (Exception e) {
            LOG.warning("ECS agents: could not give back ${subject}, which ends at its idleTimeout: ${reason(e)}")
        }
    }

    /** What is known of a build: of a freestyle build that has not begun, the job alone. */
    static Map build(Queue.Task task, def executable) {
        def job = task.ownerTask
        def run = executable instanceof Run ? executable : task.ownerExecutable
        Map build = [job: job instanceof Job ? job.fullName : null, number: run instanceof Run ? run.number : null]
        try {
            build.url = (run instanceof Run ? run : job instanceof Job ? job : null)?.absoluteUrl
        } catch (IllegalStateException ignored) {
            LOG.fine('Jenkins has no root URL') // AbstractItem.getAbsoluteUrl
        }
        build.findAll { it.value != null }
    }

    // Sending.

    private static void background(Closure work) {
        Computer.threadPoolForRemoting.submit({
            EcsAgentsGuard.run(work)
        } as Runnable)
    }

    /** Posts to a topic or a queue through the AWS SDK that a plugin brings, or through the AWS CLI. */
    void send(String target, Map message) {
        boolean isTopic = target.startsWith('arn:')
        String service = isTopic ? 'sns' : 'sqs'
        def host = isTopic ? null : new URI(target).host =~ /(?:^|\.)sqs(?:-fips)?\.([a-z0-9-]+)\./
        String region = isTopic ? target.tokenize(':')[3] : host ? host[0][1] : null
        String body = JsonOutput.toJson(message)
        ClassLoader loader = Jenkins.get().pluginManager.uberClassLoader
        Closure find = { String type ->
            try {
                loader.loadClass(type)
            } catch (ClassNotFoundException ignored) {
                null
            }
        }
        Thread thread = Thread.currentThread()
        ClassLoader before = thread.contextClassLoader
        thread.contextClassLoader = loader // the SDK finds its HTTP client there
        try {
            Class v2 = find("software.amazon.awssdk.services.${service}.S${service.substring(1)}Client")
            Class v1 = v2 ? null : find("com.amazonaws.services.${service}.Amazon${service.toUpperCase()}ClientBuilder")
            if (v2) {
                sendV2(find, v2, region, isTopic, target, body)
            } else if (v1) {
                def limits = find('com.amazonaws.ClientConfiguration').getConstructor().newInstance()
                def building = v1.standard().withClientConfiguration(limits.withClientExecutionTimeout(15_000))
                def client = (region ? building.withRegion(region) : building).build()
                try {
                    isTopic ? client.publish(target, body) : client.sendMessage(target, body)
                } finally {
                    client.shutdown()
                }
            } else {
                sendCli(isTopic ? ['sns', 'publish', '--topic-arn', target, '--message', body]
                    : ['sqs', 'send-message', '--queue-url', target, '--message-body', body], region)
            }
        } finally {
            thread.contextClassLoader = before
        }
    }

    /** Why a message could not be posted. In a line, since it comes once a minute for each item that waits. */
    private static String reason(Exception e) {
        String text = e.message ?: e.toString()
        text =~ /AccessDenied|AuthorizationError|not authorized|Status Code: 403/
            ? "${text}. The controller needs the stack's JenkinsPolicy in the credentials that it posts with" : text
    }

    private static void sendV2(Closure find, Class type, String region, boolean isTopic, String target, String body) {
        // By reflection: Groovy 2.4 cannot call a static method of an interface.
        Closure builder = { Class it -> it.getMethod('builder').invoke(null) }
        def building = builder(type).overrideConfiguration(
            builder(find('software.amazon.awssdk.core.client.config.ClientOverrideConfiguration'))
                .apiCallTimeout(Duration.ofSeconds(15)).build())
        if (region) {
            building.region(find('software.amazon.awssdk.regions.Region').of(region))
        }
        def client = building.build()
        try {
            if (isTopic) {
                client.publish(builder(find('software.amazon.awssdk.services.sns.model.PublishRequest'))
                    .topicArn(target).message(body).build())
            } else {
                client.sendMessage(builder(find('software.amazon.awssdk.services.sqs.model.SendMessageRequest'))
                    .queueUrl(target).messageBody(body).build())
            }
        } finally {
            client.close()
        }
    }

    private static void sendCli(List<String> arguments, String region) {
        Process process
        try {
            process = new ProcessBuilder(['aws'] + arguments + (region ? ['--region', region] : []))
                .redirectErrorStream(true).start()
        } catch (IOException e) {
            throw new IOException("nothing can post to ${arguments[0].toUpperCase()}: install the plugin " +
                "aws-java-sdk2-${arguments[0]}, or the AWS CLI on the controller (${e.message})")
        }
        process.outputStream.close()
        if (!process.waitFor(15, TimeUnit.SECONDS)) {
            process.destroyForcibly()
            throw new IOException("aws ${arguments[0]} did not end within 15 s")
        }
        if (process.exitValue() != 0) {
            throw new IOException("aws ${arguments[0]}: ${process.inputStream.text.trim()}")
        }
    }
}

/** No listener may throw: Jenkins' queue and executors call them, and an error of theirs would be taken for the build's. */
class EcsAgentsQueueListener extends QueueListener {
    EcsAgents agents

    @Override void onEnterBuildable(Queue.BuildableItem item) { EcsAgentsGuard.run { agents.entered(item) } }
    @Override void onLeft(Queue.LeftItem item) { EcsAgentsGuard.run { agents.left(item) } }
}

/** Hears of freestyle builds and of `node` blocks alike; a RunListener hears of a pipeline's end alone. */
class EcsAgentsExecutorListener implements ExecutorListener {
    EcsAgents agents

    @Override void taskAccepted(Executor executor, Queue.Task task) { EcsAgentsGuard.run { agents.accepted(executor) } }
    @Override void taskStarted(Executor executor, Queue.Task task) { }
    @Override void taskCompleted(Executor executor, Queue.Task task, long ms) {
        EcsAgentsGuard.run { agents.completed(executor, task, null) }
    }
    @Override void taskCompletedWithProblems(Executor executor, Queue.Task task, long ms, Throwable problems) {
        EcsAgentsGuard.run { agents.completed(executor, task, problems) }
    }
}

class EcsAgentsNodeListener extends NodeListener {
    EcsAgents agents

    @Override protected void onCreated(Node node) { EcsAgentsGuard.run { agents.created(node) } }
    @Override protected void onDeleted(Node node) { EcsAgentsGuard.run { agents.deleted(node) } }
}

class EcsAgentsGuard {
    static void run(Closure work) {
        try {
            work()
        } catch (Throwable e) {
            EcsAgents.LOG.log(Level.WARNING, 'ECS agents', e)
        }
    }
}

def install() {
    File file = new File(Jenkins.get().rootDir, 'ecs-agents.properties')
    if (!file.exists()) {
        String missing = "ECS agents: there is no ${file}; nothing is asked for. See ecs-agents.properties.example"
        EcsAgents.LOG.warning(missing)
        return missing
    }
    def agents = new EcsAgents(file)
    [(QueueListener): new EcsAgentsQueueListener(agents: agents),
     (ExecutorListener): new EcsAgentsExecutorListener(agents: agents),
     (NodeListener): new EcsAgentsNodeListener(agents: agents)].each { type, listener ->
        def list = ExtensionList.lookup(type)
        // The last run's classes have the same names, but another loader.
        list.findAll { it.class.name == listener.class.name }.each {
            it.agents.close()
            list.remove(it)
        }
        list.add(listener)
    }
    agents.refresh()
    agents.keepRefreshing()
    return agents.status
}

install() // the script console shows what it returns

import com.cloudbees.groovy.cps.NonCPS
import groovy.json.JsonOutput
import groovy.json.JsonSlurperClassic
import hudson.model.Computer
import hudson.model.Result
import hudson.model.Run
import hudson.slaves.EnvironmentVariablesNodeProperty
import jenkins.model.CauseOfInterruption
import jenkins.model.Jenkins
import jenkins.util.Timer
import org.jenkinsci.plugins.workflow.cps.CpsThread
import org.jenkinsci.plugins.workflow.flow.FlowExecution
import org.jenkinsci.plugins.workflow.steps.FlowInterruptedException
import org.jenkinsci.plugins.workflow.steps.StepExecution
import org.jenkinsci.plugins.workflow.steps.TimeoutStepExecution.ExceededTimeout
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.RemovedNodeCause

import java.security.MessageDigest
import java.time.Duration
import java.time.Instant
import java.util.concurrent.Callable
import java.util.concurrent.ConcurrentHashMap
import java.util.concurrent.ExecutionException
import java.util.concurrent.Future
import java.util.concurrent.TimeUnit

/*
 * Runs a block on an ECS agent of its own:
 *
 *     ecsAgent(label: 'linux && maven') { sh 'mvn verify' }
 *
 * One wait of the build is one `waitForWebhook`: nothing polls AWS. What lives across steps is made of strings, numbers,
 * lists and maps, since Jenkins writes the whole program to disk at every step. See ecsAgent.txt for the parameters.
 *
 * This is a trusted library: it is not sandboxed, and every Jenkinsfile can call each of its methods, private ones and
 * those of the classes below too, with any arguments (workflow-cps, GroovyClassLoaderWhitelist). Therefore:
 *
 * - Only EcsAgentPost and EcsAgentWatch act as the controller. They act for the run that made them, which they take from
 *   the engine; a Jenkinsfile can set this library's `env` and `currentBuild`.
 * - What they do is settled in their constructors, from values that are checked there, and kept in final fields.
 * - Only copies of plain values reach another thread. A Jenkinsfile's own classes and closures are sandboxed on the
 *   build's thread alone (groovy-sandbox, GroovyInterceptor.getApplicableInterceptors).
 * - The classes are final. Their code has no closures: a closure is a class, too, whose captured values a caller chooses.
 *
 * test/trustTest.groovy lists all of it, and fails for what has not been reviewed.
 */

/** Runs `body` on `count` agents, and returns its value, or with several agents a list of its values. */
def call(Map args = [:], Closure body) {
    Map settings = EcsAgentSettings.read(args)
    if (settings.faults) {
        error('ecsAgent: ' + settings.faults.join('; '))
    }
    if (settings.count == 1) {
        return onAgent(settings, 0, body)
    }
    Map branches = [:]
    for (int i = 0; i < settings.count; i++) {
        int index = i
        branches["agent ${index + 1}".toString()] = { onAgent(settings, index, body) }
    }
    Map values = parallel(branches)
    List inOrder = []
    for (int i = 0; i < settings.count; i++) {
        inOrder.add(values["agent ${i + 1}".toString()])
    }
    return inOrder
}

def call(Map args = [:]) {
    error("ecsAgent: the block is missing: ecsAgent(label: '…') { … }")
}

private def onAgent(Map settings, int index, Closure body) {
    if (settings.retry == 0) {
        return ask(settings, index, body)
    }
    // Only what an agent's loss has caused: an interrupted Spot task, a deleted node, a closed channel.
    return retry(count: settings.retry + 1, conditions: [agent()]) {
        ask(settings, index, body)
    }
}

/** Asks for one agent, runs the body there, and gives the agent back. */
private def ask(Map settings, int index, Closure body) {
    // Known to this build alone. The request's id is made of it, and not the other way round.
    String token = UUID.randomUUID().toString()
    Map request = [token: token, id: requestId(token), deadline: now() + settings.timeout * 60000L, askedAt: now(),
                   agent: null, posted: false]
    String result = 'FAILURE'
    def value = null
    try {
        request.hook = register(settings, token)
        // From here on an agent may exist, whatever the answer to the post is.
        request.posted = true
        String fault = deliver(settings, request, null)
        if (fault) {
            error "Could not post the request for an agent: ${fault}"
        }
        echo "Asked for an agent with label '${settings.label}' (request ${request.id})"
        Map notice = awaitOutcome(settings, request)
        request.agent = notice.agent
        new EcsAgentWatch(token, notice.agent).run()
        connect(settings, request)
        value = onNode(request, true) {
            Map agent = [name: notice.agent, index: index, labels: notice.labels, taskArn: notice.taskArn]
            body.maximumNumberOfParameters == 0 ? body() : body(agent)
        }
        result = currentBuild.currentResult
    } catch (FlowInterruptedException e) {
        result = e.result.toString()
        throw e
    } finally {
        if (request.posted) {
            complete(settings, request, result)
        }
    }
    return value
}

/** The agent's notice `agent.ready`; any other end is thrown. */
private Map awaitOutcome(Map settings, Map request) {
    while (true) {
        // The request expires at its deadline; why it was not served is reported by the sweep, which runs every minute.
        long left = request.deadline + 90000L - now()
        if (left <= 0) {
            error "No agent with label '${settings.label}' within ${settings.timeout} minutes, and no word why. Look for " +
                "request ${request.id} in the log of the request function and in the rejected queue; if its agent is " +
                "only slow to start, raise this step's `timeout`."
        }
        long patience = Math.min(left, settings.askAgain * 60000L)
        String content = receive(request.hook, patience)
        if (content == null) {
            // A webhook may be lost in a restart of the controller: the request's later copy is an inquiry. The URL
            // stays the same, so that the outcome arrives whichever of the copies it answers.
            if (patience < left) {
                request.hook = register(settings, request.token)
                askAgain(settings, request)
            }
            continue
        }
        Map notice = readNotice(request.token, settings.label, content)
        if (notice == null) {
            echo "Ignored what is not a notice to request ${request.id}"
        } else if (notice.type == 'agent.ready') {
            return notice
        } else if (notice.type == 'agent.failed') {
            request.posted = false // nothing to give back
            if (notice.spot) {
                // As when an agent is lost later: `retry(conditions: [agent()])` asks for another one.
                echo notice.message
                throw new FlowInterruptedException(Result.FAILURE, false, new RemovedNodeCause())
            }
            error notice.message
        }
    }
}

/** What a webhook was sent, or null after so many milliseconds. */
private String receive(def hook, long patience) {
    long since = now()
    try {
        String content = null
        timeout(time: patience, unit: 'MILLISECONDS') {
            content = waitForWebhook(webhookToken: hook)
        }
        return content
    } catch (FlowInterruptedException e) {
        // A timeout around this step looks the same, but comes before ours is due.
        if (now() - since < patience || !isTimeout(e)) {
            throw e
        }
        return null
    }
}

private void askAgain(Map settings, Map request) {
    if (now() > request.deadline - 30000L) {
        return // a copy that arrives too late is answered with its expiry, not with why there was no room
    }
    String fault = deliver(settings, request, null)
    echo(fault ? "Could not ask again for request ${request.id}: ${fault}"
        : "Asked again for request ${request.id}: there was no word for ${settings.askAgain} minutes")
}

/**
 * Posts the request, or its completion with this result, in the background, so that the build's other branches go on:
 * up to three times, with pauses. Null, or why it could not be posted.
 */
private String deliver(Map settings, Map request, String result) {
    String fault = null
    int tries = 0
    long pauseUntil = 0
    // What comes before a first request saves nothing to disk: a controller that is killed as the post is on its way
    // would lose the build, and leave its agent. The pause after the first look saves it (CpsThreadGroup.run).
    boolean isSaved = result != null
    waitUntil(initialRecurrencePeriod: 250, quiet: true) {
        if (!isSaved || now() < pauseUntil) {
            isSaved = true
            return false
        }
        String outcome = result == null ? EcsAgentPost.request(settings, request.token, request.deadline)
            : EcsAgentPost.completion(request.token, request.agent, result)
        if (outcome != null) {
            fault = outcome ?: null
            tries = tries + 1
            pauseUntil = now() + tries * 5000L
        }
        return outcome == '' || tries == 3
    }
    return fault
}

private void complete(Map settings, Map request, String result) {
    String fault
    try {
        fault = deliver(settings, request, result)
    } catch (FlowInterruptedException e) {
        throw e
    } catch (Throwable e) {
        fault = e.toString() // a step that is missing, say: no reason to hide how the build itself has ended
    }
    if (fault) {
        echo "Could not say that request ${request.id} is over: ${fault}. An agent of it ends at its idleTimeout."
    }
}

/** An empty block first: a node that Jenkins cannot reach would keep `node` waiting for ever. */
private void connect(Map settings, Map request) {
    long since = now()
    try {
        timeout(time: settings.connectTimeout, unit: 'MINUTES') {
            onNode(request, false) { }
        }
    } catch (FlowInterruptedException e) {
        if (now() - since < settings.connectTimeout * 60000L || !isTimeout(e)) {
            throw e
        }
        if (stateOf(request.token, request.agent) == 'gone') {
            lost(request.agent)
        }
        String log = tailOfLog(request.token, request.agent)
        error "The agent ${request.agent} runs, but Jenkins has not connected to it within ${settings.connectTimeout} " +
            "minutes: security groups, the SSH credential and the Java path are the usual reasons. " +
            (log ? "The end of its log:\n${log}" : 'Its log is empty.')
    }
}

/**
 * `node`, which by itself waits for ever if the agent is lost before the block begins: its name is nobody else's label.
 * EcsAgentWatch ends that.
 */
private def onNode(Map request, boolean wasThere, Closure block) {
    String name = request.agent
    if (wasThere && stateOf(request.token, name) == 'gone') {
        lost(name)
    }
    boolean began = false
    try {
        return node(name) {
            began = true
            block()
        }
    } catch (FlowInterruptedException e) {
        if (!began && isLoss(e) && stateOf(request.token, name) == 'gone') {
            lost(name)
        }
        throw e
    } catch (Exception e) {
        // The agent took the block and was lost before that began: `node` then says that it is offline.
        if (began || stateOf(request.token, name) == 'online') {
            throw e
        }
        echo "Could not begin: ${e.message}"
        lost(name)
    }
}

/** Ends as a build does whose agent is lost later: `retry(conditions: [agent()])` asks for another one. */
private void lost(String name) {
    echo "The agent ${name} was lost before its build began, to a Spot interruption say."
    throw new FlowInterruptedException(Result.FAILURE, false, new RemovedNodeCause())
}

private def register(Map settings, String token) {
    if (!settings.webhookCredentialsId) {
        return registerWebhook(token: token)
    }
    return withCredentials([string(credentialsId: settings.webhookCredentialsId, variable: 'ECS_AGENTS_WEBHOOK')]) {
        registerWebhook(token: token, authToken: env.ECS_AGENTS_WEBHOOK)
    }
}

@NonCPS
String requestId(String token) {
    new EcsAgentOwn(token).requestId
}

/** A notice to the request of this token, as far as the step needs it; null if it is none. */
@NonCPS
Map readNotice(String token, String label, String content) {
    EcsAgentOwn own = new EcsAgentOwn(token)
    def notice = null
    try {
        notice = new JsonSlurperClassic().parseText(content)
    } catch (ignored) {
        return null
    }
    if (!(notice instanceof Map) || notice.requestId != own.requestId) {
        return null
    }
    if (notice.type == 'agent.failed') {
        Map failure = notice.failure instanceof Map ? notice.failure : [:]
        return [type: notice.type, message: failureMessage(label, failure, notice.task),
                spot: failure.code == 'SPOT_INTERRUPTION']
    }
    if (notice.type != 'agent.ready') {
        return [type: "${notice.type}".toString()]
    }
    String agent = notice.agent instanceof Map ? notice.agent.name : null
    // A stranger's notice, or one that the build sent to itself: it would give this build another's agent.
    if (!own.gave(agent)) {
        return null
    }
    return [type: notice.type, agent: agent, labels: notice.agent.labels as List,
            taskArn: notice.task instanceof Map ? notice.task.arn : null]
}

@NonCPS
private String failureMessage(String label, Map failure, def task) {
    String text = "No agent with label '${label}': ${failure.message ?: 'no reason was given'}"
    List codes = []
    for (code in [failure.code, failure.stopCode, failure.exitCode == null ? null : "exit code ${failure.exitCode}"]) {
        if (code) {
            codes << code
        }
    }
    if (codes) {
        text += " (${codes.join(', ')})"
    }
    return task instanceof Map && task.arn ? "${text}; task ${task.arn}" : text
}

/** Of an agent that this run was given: gone, offline or online. */
@NonCPS
String stateOf(String token, String agent) {
    def node = new EcsAgentOwn(token).node(agent)
    node == null ? 'gone' : node.toComputer()?.online ? 'online' : 'offline'
}

/** The last lines of the log of an agent that this run was given. */
@NonCPS
String tailOfLog(String token, String agent) {
    List lines = (new EcsAgentOwn(token).node(agent)?.toComputer()?.log ?: '').readLines()
    lines.drop(lines.size() - 20).join('\n')
}

@NonCPS
private boolean isTimeout(FlowInterruptedException e) {
    for (CauseOfInterruption cause in e.causes) {
        if (cause instanceof ExceededTimeout) {
            return true
        }
    }
    return false
}

@NonCPS
private boolean isLoss(FlowInterruptedException e) {
    for (CauseOfInterruption cause in e.causes) {
        if (cause instanceof RemovedNodeCause) {
            return true
        }
    }
    return false
}

@NonCPS
long now() {
    System.currentTimeMillis()
}

/** The parameters, checked. Reading what was read gives the same, so that whoever needs them sure reads them again. */
final class EcsAgentSettings {
    private static final Map NUMBERS = [count: 1, timeout: 20, askAgain: 5, connectTimeout: 5, retry: 0].asImmutable()
    /** The words of the Amazon ECS plugin's pipeline step that mean an override (ECSTaskTemplateStep). */
    private static final Map WORDS = [cpu: 'cpu', memory: 'memory', memoryReservation: 'memory',
                                      ephemeralStorageSizeInGiB: 'ephemeralStorage', environments: 'environment',
                                      taskrole: 'taskRole', taskDefinitionOverride: 'taskDefinition'].asImmutable()
    private static final List OTHERS = ['label', 'inheritFrom', 'overrides', 'webhookCredentialsId', 'faults'].asImmutable()

    /** All that is wrong is said at once, under `faults`. */
    @NonCPS
    static Map read(Map args) {
        Map given = plain(args, 0) as Map
        List faults = []
        for (name in given.keySet()) {
            if (!NUMBERS.containsKey(name) && !WORDS.containsKey(name) && !OTHERS.contains(name)) {
                faults << "unknown parameter ${name}".toString()
            }
        }
        Map settings = [:]
        for (number in NUMBERS.entrySet()) {
            String name = number.key
            String text = given[name] == null ? number.value : given[name]
            boolean isWhole = text.isInteger()
            settings[name] = isWhole ? text.toInteger() : number.value
            int least = name == 'retry' ? 0 : 1
            if (!isWhole || settings[name] < least || (name == 'count' && settings[name] > 10)) {
                String most = name == 'count' ? ' and at most 10' : ''
                faults << "${name}: has to be a whole number of at least ${least}${most}".toString()
            }
        }
        // What the plugin inherits from, it finds by its labels (ECSCloud.findParentTemplate).
        settings.label = (given.label ?: given.inheritFrom)?.toString()?.trim()
        if (!settings.label) {
            faults << 'label: is missing'
        }
        if (given.label && given.inheritFrom && given.label != given.inheritFrom) {
            faults << 'inheritFrom: is the same as label here, the labels of a template; give one of them'
        }
        settings.overrides = overrides(given, faults)
        Map global = global()
        settings.webhookCredentialsId = (given.webhookCredentialsId ?: global.ECS_AGENTS_WEBHOOK_CREDENTIALS)?.toString()
        for (name in ['ECS_AGENTS_REQUESTS', 'ECS_AGENTS_COMPLETIONS']) {
            if (!(global[name] ==~ /arn:[a-z-]+:sns:.+|https?:.+/)) {
                faults << ("${name}: has to be the URL of an SQS queue or the ARN of an SNS topic; set it in Manage Jenkins " +
                    '› System › Global properties › Environment variables').toString()
            }
        }
        settings.faults = faults
        return settings
    }

    /** Null where nothing is overridden. */
    @NonCPS
    static Map overrides(Map given, List faults) {
        if (given.overrides != null && !(given.overrides instanceof Map)) {
            faults << 'overrides: has to be a map, like [cpu: 1024]'
            return null
        }
        Map overrides = given.overrides == null ? [:] : new LinkedHashMap(given.overrides)
        for (word in WORDS.entrySet()) {
            def value = given[word.key]
            if (value == null) {
                continue
            }
            if (overrides.containsKey(word.value)) {
                faults << "${word.key}: means the override ${word.value}, which is given, too".toString()
            }
            overrides[word.value] = word.key == 'environments' ? environment(value, faults) : value
        }
        return overrides ?: null
    }

    /** The plugin's [[name: 'A', value: 'b']] as a map. */
    @NonCPS
    static Map environment(Object entries, List faults) {
        Map environment = [:]
        for (entry in (entries instanceof List ? entries : [entries])) {
            if (entry instanceof Map && entry.name != null) {
                environment[entry.name.toString()] = entry.value
            } else {
                faults << "environments: has to be a list like [[name: 'A', value: 'b']]".toString()
            }
        }
        return environment
    }

    /**
     * What the administrator has set for the whole controller. Not read from `env`, which `withEnv` changes; and copied,
     * since whoever gets the properties themselves could change them.
     */
    @NonCPS
    static Map global() {
        Map variables = Jenkins.get().globalNodeProperties.get(EnvironmentVariablesNodeProperty)?.envVars ?: [:]
        Map settings = [:]
        for (name in ['ECS_AGENTS_REQUESTS', 'ECS_AGENTS_COMPLETIONS', 'ECS_AGENTS_WEBHOOK_CREDENTIALS']) {
            settings[name] = variables[name]?.toString()?.trim()
        }
        return settings
    }

    /** A copy of classes that nobody can extend, so that no code of the caller's is in it. */
    @NonCPS
    static Object plain(Object value, int depth) {
        if (depth > 5) {
            throw new IllegalArgumentException('ecsAgent: the parameters are nested too deeply')
        }
        if (value == null || value instanceof String || value instanceof Boolean || value instanceof Integer || value instanceof Long) {
            return value
        }
        if (value instanceof Map) {
            Map copy = [:]
            for (entry in value.entrySet()) {
                copy.put(String.valueOf(entry.key.toString()), plain(entry.value, depth + 1))
            }
            return copy
        }
        if (value instanceof Collection) {
            List copy = []
            for (element in value) {
                copy.add(plain(element, depth + 1))
            }
            return copy
        }
        String text = value.toString()
        return value instanceof Number ? new BigDecimal(text) : text
    }
}

/** What belongs to the run that is running: its request of this token, and the agent that this request was given. */
final class EcsAgentOwn {
    final String runId
    final String requestId
    final String job
    final int number
    final String url

    EcsAgentOwn(String token) {
        if (!(token ==~ /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/)) {
            throw new IllegalArgumentException('ecsAgent: this is no token of a request')
        }
        Run run = (Run) CpsThread.current().execution.owner.executable
        runId = run.externalizableId
        job = run.parent.fullName
        number = run.number
        url = Jenkins.get().rootUrl == null ? null : run.absoluteUrl
        // Build numbers come back, the token does not. By the hash, no other run's request can have this id.
        String tail = "/${number}/${sha256("${runId}\n${token}").take(20)}"
        String readable = job.replaceAll(/[^A-Za-z0-9._:\/-]/, '_')
        requestId = readable.substring(Math.max(0, readable.length() + tail.length() - 128)) + tail
    }

    /** The functions name an agent `PREFIX TEMPLATE - HASH`, by the request and the agent's index (shared/src/name.rs). */
    @NonCPS
    boolean gave(String agent) {
        agent ==~ /[A-Za-z0-9_-]{1,128}/ && agent.endsWith('-' + sha256("${requestId}\n0").take(12))
    }

    @NonCPS
    void mustHaveGiven(String agent) {
        if (!gave(agent)) {
            throw new IllegalArgumentException("ecsAgent: ${agent} is no agent of request ${requestId}")
        }
    }

    /** The node of an agent that this run was given. */
    @NonCPS
    def node(String agent) {
        mustHaveGiven(agent)
        Jenkins.get().getNode(agent)
    }

    /** The task of an agent, as the functions have written it into its node, where no build can. */
    @NonCPS
    String taskOf(String agent) {
        String description = node(agent)?.nodeDescription ?: ''
        // From the last marker: what comes before holds the job's name.
        def arn = description.substring(description.lastIndexOf(', task ') + 1) =~ /^ task (arn:[^\s,]+)/
        description.startsWith("ECS agent of request ${requestId} ") && arn ? arn[0][1] : null
    }

    @NonCPS
    private static String sha256(String text) {
        MessageDigest.getInstance('SHA-256').digest(text.getBytes('UTF-8')).encodeHex().toString()
    }
}

/**
 * A message of this run's to where the administrator says: a request for an agent, or its completion. It goes with the
 * controller's own AWS credentials, through the AWS SDK that a plugin brings, or through the AWS CLI.
 */
final class EcsAgentPost implements Callable<Object> {
    private static final long LIMIT_MILLIS = 30000
    /** What this build posts: [future, since], by what it is. */
    private static final Map<String, List> ON_THEIR_WAY = new ConcurrentHashMap<>()

    private final String target
    private final String message

    /** A request for an agent. */
    EcsAgentPost(Map args, String token, long deadline) {
        EcsAgentOwn own = new EcsAgentOwn(token)
        Map settings = EcsAgentSettings.read(args)
        if (settings.faults) {
            throw new IllegalArgumentException('ecsAgent: ' + settings.faults.join('; '))
        }
        long expiresAt = Math.min(deadline, now() + settings.timeout * 60000L)
        Map request = [version: 1, requestId: own.requestId, label: settings.label,
                       webhookUrl: "${Jenkins.get().rootUrl}webhook-step/${token}".toString(),
                       build: buildOf(own), count: 1, expiresAt: Instant.ofEpochSecond(expiresAt.intdiv(1000L)).toString()]
        if (settings.overrides) {
            request.overrides = settings.overrides
        }
        target = EcsAgentSettings.global().ECS_AGENTS_REQUESTS
        message = JsonOutput.toJson(request)
    }

    /** The end of a request, and of the agent that it was given, if there was one. */
    EcsAgentPost(String token, String agent, String result) {
        EcsAgentOwn own = new EcsAgentOwn(token)
        Map completion = [version: 1, requestId: own.requestId]
        if (agent != null) {
            own.mustHaveGiven(agent)
            completion.agent = agent
            String task = own.taskOf(agent)
            if (task != null) {
                completion.taskArn = task
            }
        }
        completion.build = buildOf(own)
        completion.result = result in ['SUCCESS', 'UNSTABLE', 'NOT_BUILT', 'ABORTED'] ? result : 'FAILURE'
        target = EcsAgentSettings.global().ECS_AGENTS_COMPLETIONS
        message = JsonOutput.toJson(completion)
    }

    /** Null while the request is on its way; then, once, '' or why it could not be posted. */
    @NonCPS
    static String request(Map args, String token, long deadline) {
        String key = "request ${token}"
        ON_THEIR_WAY.containsKey(key) ? outcome(key) : start(key, new EcsAgentPost(args, token, deadline))
    }

    /** The same of a completion. */
    @NonCPS
    static String completion(String token, String agent, String result) {
        String key = "completion ${token}"
        ON_THEIR_WAY.containsKey(key) ? outcome(key) : start(key, new EcsAgentPost(token, agent, result))
    }

    @NonCPS
    static String start(String key, EcsAgentPost post) {
        ON_THEIR_WAY.put(key, [Computer.threadPoolForRemoting.submit((Callable) post), now()])
        return null
    }

    @NonCPS
    static String outcome(String key) {
        def (future, since) = ON_THEIR_WAY.get(key)
        boolean isLate = now() - since > LIMIT_MILLIS
        if (!((Future) future).done && !isLate) {
            return null
        }
        ON_THEIR_WAY.remove(key)
        if (!((Future) future).done) {
            future.cancel(true)
            return "no answer within ${LIMIT_MILLIS.intdiv(1000)} s: is there a way from the controller to the queue?"
        }
        try {
            future.get()
            return ''
        } catch (ExecutionException e) {
            String text = (e.cause.message ?: e.cause.toString()).replaceAll(/[\s.]+$/, '')
            boolean isDenied = text =~ /AccessDenied|AuthorizationError|not authorized|Status Code: 403/
            return isDenied ? "${text}. The controller needs the stack's JenkinsPolicy in the credentials that it posts with" : text
        }
    }

    @NonCPS
    static Map buildOf(EcsAgentOwn own) {
        Map build = [job: own.job, number: own.number]
        if (own.url != null) {
            build.url = own.url
        }
        return build
    }

    @NonCPS
    static long now() {
        System.currentTimeMillis()
    }

    /** On a thread that is not the build's. */
    @NonCPS
    Object call() {
        Thread thread = Thread.currentThread()
        ClassLoader before = thread.contextClassLoader
        thread.contextClassLoader = Jenkins.get().pluginManager.uberClassLoader // the SDK finds its HTTP client there
        try {
            if (sdk(2) != null) {
                sendByV2()
            } else if (sdk(1) != null) {
                sendByV1()
            } else {
                sendByCli()
            }
        } finally {
            thread.contextClassLoader = before
        }
        return null
    }

    @NonCPS
    Class sdk(int version) {
        String service = isTopic() ? 'sns' : 'sqs'
        try {
            return Jenkins.get().pluginManager.uberClassLoader.loadClass(version == 2
                ? "software.amazon.awssdk.services.${service}.S${service.substring(1)}Client"
                : "com.amazonaws.services.${service}.Amazon${service.toUpperCase()}ClientBuilder")
        } catch (ClassNotFoundException ignored) {
            return null
        }
    }

    @NonCPS
    boolean isTopic() {
        target.startsWith('arn:')
    }

    /** Null where the address does not say it: the SDK's own default. */
    @NonCPS
    String region() {
        if (isTopic()) {
            return target.tokenize(':')[3]
        }
        def host = new URI(target).host =~ /(?:^|\.)sqs(?:-fips)?\.([a-z0-9-]+)\./
        host ? host[0][1] : null
    }

    @NonCPS
    void sendByV2() {
        ClassLoader loader = sdk(2).classLoader
        // By reflection: Groovy 2.4 cannot call a static method of an interface.
        def limits = loader.loadClass('software.amazon.awssdk.core.client.config.ClientOverrideConfiguration')
            .getMethod('builder').invoke(null)
        def building = sdk(2).getMethod('builder').invoke(null)
            .overrideConfiguration(limits.apiCallTimeout(Duration.ofSeconds(15)).build())
        if (region() != null) {
            building.region(loader.loadClass('software.amazon.awssdk.regions.Region').of(region()))
        }
        def client = building.build()
        try {
            String model = sdk(2).package.name + '.model.'
            if (isTopic()) {
                client.publish(loader.loadClass(model + 'PublishRequest').getMethod('builder').invoke(null)
                    .topicArn(target).message(message).build())
            } else {
                client.sendMessage(loader.loadClass(model + 'SendMessageRequest').getMethod('builder').invoke(null)
                    .queueUrl(target).messageBody(message).build())
            }
        } finally {
            client.close()
        }
    }

    @NonCPS
    void sendByV1() {
        def limits = sdk(1).classLoader.loadClass('com.amazonaws.ClientConfiguration').getConstructor().newInstance()
        def building = sdk(1).standard().withClientConfiguration(limits.withClientExecutionTimeout(15_000))
        def client = (region() == null ? building : building.withRegion(region())).build()
        try {
            isTopic() ? client.publish(target, message) : client.sendMessage(target, message)
        } finally {
            client.shutdown()
        }
    }

    @NonCPS
    void sendByCli() {
        List<String> command = isTopic() ? ['aws', 'sns', 'publish', '--topic-arn', target, '--message', message]
            : ['aws', 'sqs', 'send-message', '--queue-url', target, '--message-body', message]
        if (region() != null) {
            command += ['--region', region()]
        }
        Process process
        try {
            process = new ProcessBuilder(command).redirectErrorStream(true).start()
        } catch (IOException e) {
            String plugin = isTopic() ? 'aws-java-sdk2-sns' : 'aws-java-sdk2-sqs'
            throw new IOException("nothing can post to ${target}: install the plugin ${plugin}, or the AWS CLI on the " +
                "controller (${e.message})")
        }
        process.outputStream.close()
        if (!process.waitFor(15, TimeUnit.SECONDS)) {
            process.destroyForcibly()
            throw new IOException("${command[0..2].join(' ')} did not end within 15 s")
        }
        if (process.exitValue() != 0) {
            throw new IOException("${command[0..2].join(' ')}: ${process.inputStream.text.trim()}")
        }
    }
}

/**
 * Ends what this run, and no other, does on an agent that is gone or queues for it. Jenkins itself lets a block on a deleted
 * node go on for five minutes, and one that waits for such a node for ever (ExecutorStepExecution.RemovedNodeListener).
 * Lives in memory alone: after a restart of the controller, Jenkins' five minutes and connectTimeout are what is left.
 */
final class EcsAgentWatch implements Runnable, Callable<Object> {
    private static final int SECONDS = 5

    private final FlowExecution execution
    private final String agent
    private boolean isKnown
    private int absent

    EcsAgentWatch(String token, String agent) {
        EcsAgentOwn own = new EcsAgentOwn(token)
        own.mustHaveGiven(agent)
        execution = CpsThread.current().execution
        this.agent = agent
    }

    /** Looks, again and again. A node counts as gone at the third sight, since the functions may make it anew. */
    @NonCPS
    void run() {
        if (Jenkins.get().getNode(agent) != null) {
            isKnown = true
            absent = 0
        } else if (isKnown && ++absent > 2) {
            Computer.threadPoolForRemoting.submit((Callable) this)
        }
        // Some looks more: the agent may have taken a block that had not begun at the last one.
        if (absent < 6 && !execution.isComplete()) {
            Timer.get().schedule((Runnable) this, SECONDS, TimeUnit.SECONDS)
        }
    }

    /** Ends this run's blocks on the agent, and those that wait for it. */
    @NonCPS
    Object call() {
        for (StepExecution block in execution.getCurrentExecutions(false).get(30, TimeUnit.SECONDS)) {
            if (block instanceof ExecutorStepExecution) {
                // As Jenkins does it, so that `retry` retries: no actual interruption, and with its cause.
                def cause = new FlowInterruptedException(Result.ABORTED, false, new RemovedNodeCause())
                if (block.@state?.node == agent) {
                    block.@body?.cancel(cause)
                } else if (block.@state == null && block.@step.label == agent) {
                    block.stop(cause) // takes its item out of the queue
                }
            }
        }
        return null
    }
}

import com.cloudbees.groovy.cps.NonCPS
import groovy.json.JsonOutput
import groovy.json.JsonSlurperClassic
import hudson.model.Result
import jenkins.model.Jenkins
import jenkins.util.Timer
import org.jenkinsci.plugins.workflow.steps.FlowInterruptedException
import org.jenkinsci.plugins.workflow.steps.TimeoutStepExecution.ExceededTimeout
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.QueueTaskCancelled
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.RemovedNodeCause

import java.time.Duration
import java.time.Instant
import java.util.concurrent.TimeUnit

/*
 * Runs a block on an ECS agent of its own:
 *
 *     ecsAgent(label: 'linux && maven') { sh 'mvn verify' }
 *
 * One wait of the build is one `waitForWebhook`: nothing polls AWS. What lives across steps is made of strings, numbers,
 * lists and maps, since Jenkins writes the whole program to disk at every step. See ecsAgent.txt for the parameters.
 */

/** Runs `body` on `count` agents; each call of it gets its agent: `name`, `index`, `labels`, `taskArn`. */
def call(Map args = [:], Closure body) {
    Map settings = readSettings(args, environment())
    if (settings.faults) {
        error('ecsAgent: ' + settings.faults.join('; '))
    }
    if (settings.retry == 0) {
        ask(settings, body)
    } else {
        // Only what an agent's loss has caused: an interrupted Spot task, a deleted node, a closed channel.
        retry(count: settings.retry + 1, conditions: [agent()]) {
            ask(settings, body)
        }
    }
}

private void ask(Map settings, Closure body) {
    Map request = newRequest(settings, currentBuild.number, UUID.randomUUID().toString(), now())
    try {
        for (int i = 0; i < settings.count; i++) {
            request.hooks.add(register(settings, request.tokens[i]))
        }
        request.message.webhookUrl = urls(request.hooks)
        // From here on an agent may exist, whatever the answer to the post is.
        request.posted = true
        request.askedAt = now()
        postFirst(settings, request)
        String what = settings.count == 1 ? 'an agent' : settings.count + ' agents'
        echo "Asked for ${what} with label '${settings.label}' (request ${request.id})"
        if (settings.count == 1) {
            onAgent(settings, request, 0, body)
        } else {
            Map branches = [:]
            for (int i = 0; i < settings.count; i++) {
                int index = i
                branches["agent ${index + 1}".toString()] = { onAgent(settings, request, index, body) }
            }
            parallel(branches)
        }
    } catch (FlowInterruptedException e) {
        request.result = e.result.toString()
        throw e
    } finally {
        if (request.posted && request.settled < settings.count) {
            complete(settings, request, [requestId: request.id])
        }
    }
}

/** Waits for one agent, runs the body there, and gives the agent back. */
private void onAgent(Map settings, Map request, int index, Closure body) {
    Map notice = awaitOutcome(settings, request, index)
    String name = notice.agent.name
    String result = 'FAILURE'
    try {
        connect(settings, name)
        onNode(name, true) {
            Map agent = [name: name, index: index, labels: notice.agent.labels, taskArn: notice.task?.arn]
            if (body.maximumNumberOfParameters == 0) {
                body()
            } else {
                body(agent)
            }
        }
        result = currentBuild.currentResult
    } catch (FlowInterruptedException e) {
        result = e.result.toString()
        throw e
    } finally {
        request.result = result
        // The agent's own completion: with several agents, requestId would end the others too.
        Map subject = settings.count == 1 ? [requestId: request.id, agent: name] : [agent: name]
        if (notice.task?.arn) {
            subject.taskArn = notice.task.arn
        }
        complete(settings, request, subject)
        request.settled = request.settled + 1
    }
}

/** The agent's notice `agent.ready`; any other end is thrown. */
private Map awaitOutcome(Map settings, Map request, int index) {
    while (true) {
        // The request expires at its deadline; why it was not served is told by a sweep that comes every minute.
        long left = request.deadline + 90000L - now()
        if (left <= 0) {
            error "No agent with label '${settings.label}' within ${settings.timeout} minutes, and no word why. Look for " +
                "request ${request.id} in the log of the request function and in the rejected queue; if its agent is " +
                "only slow to start, raise this step's `timeout`."
        }
        long patience = Math.min(left, settings.askAgain * 60000L)
        String content = receive(request.hooks[index], patience)
        if (content == null) {
            // A webhook may be lost in a restart of the controller: the request's later copy is an inquiry. The URL
            // stays the same, so that the outcome arrives whichever of the copies it answers.
            if (patience < left) {
                request.hooks[index] = register(settings, request.tokens[index])
                askAgain(settings, request)
            }
            continue
        }
        Map notice = parse(content)
        if (notice?.requestId != request.id) {
            echo "Ignored what is not a notice to request ${request.id}"
        } else if (notice.type == 'agent.ready') {
            return notice
        } else if (notice.type == 'agent.failed') {
            request.settled = request.settled + 1
            String message = failure(settings.label, notice)
            if (notice.failure?.code == 'SPOT_INTERRUPTION') {
                // As when an agent is lost later: `retry(conditions: [agent()])` asks for another one.
                echo message
                throw new FlowInterruptedException(Result.FAILURE, false, new RemovedNodeCause())
            }
            error message
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

private void postFirst(Map settings, Map request) {
    try {
        post(settings.requests, json(request.message))
    } catch (FlowInterruptedException e) {
        throw e
    } catch (Exception e) {
        error "Could not post the request for an agent to ${settings.requests}: ${e.message}. The controller needs " +
            "the stack's JenkinsPolicy in the credentials that it posts with."
    }
}

private void askAgain(Map settings, Map request) {
    if (now() - request.askedAt < settings.askAgain * 30000L) {
        return // another branch has
    }
    if (now() > request.deadline - 30000L) {
        return // a copy that arrives too late is told just that, instead of why there was no room
    }
    request.askedAt = now()
    try {
        post(settings.requests, json(request.message))
    } catch (FlowInterruptedException e) {
        throw e
    } catch (Exception e) {
        echo "Could not ask again for request ${request.id}: ${e.message}"
    }
}

/** An empty block first: a node that Jenkins cannot reach would keep `node` waiting for ever. */
private void connect(Map settings, String name) {
    long since = now()
    try {
        timeout(time: settings.connectTimeout, unit: 'MINUTES') {
            onNode(name, false) { }
        }
    } catch (FlowInterruptedException e) {
        if (now() - since < settings.connectTimeout * 60000L || !isTimeout(e)) {
            throw e
        }
        if (isGone(name)) {
            lost(name)
        }
        error "The agent ${name} runs, but Jenkins has not connected to it within ${settings.connectTimeout} minutes: " +
            "see ${env.JENKINS_URL ?: '/'}computer/${name}/log for the reason; security groups, " +
            "the SSH credential and the Java path are the usual ones."
    }
}

/**
 * `node`, which by itself waits for ever if the agent is lost before the block begins: its name is nobody else's label.
 * Jenkins ends blocks on a deleted node, but not those that wait for it.
 */
private void onNode(String name, boolean wasThere, Closure block) {
    Map queued = [over: false]
    cancelIfLost(name, wasThere, queued)
    try {
        node(name) {
            queued.over = true
            block()
        }
    } catch (FlowInterruptedException e) {
        if (!queued.over && isCancelled(e) && isGone(name)) {
            lost(name)
        }
        throw e
    } catch (Exception e) {
        // The agent took the block and was lost before that began: `node` then says that it is offline.
        if (queued.over || isOnline(name)) {
            throw e
        }
        echo "Could not begin: ${e.message}"
        lost(name)
    } finally {
        queued.over = true
    }
}

/** Ends as a build does whose agent is lost later: `retry(conditions: [agent()])` asks for another one. */
private void lost(String name) {
    echo "The agent ${name} was lost before its build began, to a Spot interruption say."
    throw new FlowInterruptedException(Result.FAILURE, false, new RemovedNodeCause())
}

/**
 * Cancels what waits in Jenkins' queue for a node that was there and is gone. Looks twice, since the functions may make a
 * node anew. Lives in memory alone: after a restart of the controller, connectTimeout ends the wait for the first block.
 */
@NonCPS
void cancelIfLost(String name, boolean wasThere, Map queued) {
    def run = currentBuild.rawBuild
    boolean isKnown = wasThere
    int absent = 0
    Closure look = null
    look = {
        if (queued.over || !run.building) {
            return
        }
        Jenkins jenkins = Jenkins.get()
        if (jenkins.getNode(name) != null) {
            isKnown = true
            absent = 0
        } else if (isKnown && ++absent > 1) {
            jenkins.queue.items.findAll { it.assignedLabel?.name == name }.each { jenkins.queue.cancel(it) }
        }
        Timer.get().schedule(look as Runnable, 10, TimeUnit.SECONDS)
    }
    look()
}

@NonCPS
private boolean isGone(String name) {
    Jenkins.get().getNode(name) == null
}

@NonCPS
private boolean isOnline(String name) {
    Jenkins.get().getNode(name)?.toComputer()?.online
}

@NonCPS
private boolean isCancelled(FlowInterruptedException e) {
    e.causes.any { it instanceof QueueTaskCancelled }
}

private def register(Map settings, String token) {
    if (!settings.webhookCredentialsId) {
        return registerWebhook(token: token)
    }
    return withCredentials([string(credentialsId: settings.webhookCredentialsId, variable: 'ECS_AGENTS_WEBHOOK')]) {
        registerWebhook(token: token, authToken: env.ECS_AGENTS_WEBHOOK)
    }
}

private void complete(Map settings, Map request, Map subject) {
    Map completion = [version: 1] + subject + [build: settings.build, result: request.result]
    try {
        retry(3) {
            post(settings.completions, json(completion))
        }
    } catch (FlowInterruptedException e) {
        throw e
    } catch (Exception e) {
        echo "Could not say that request ${request.id} is over: ${e.message}. Its agent ends at its idleTimeout."
    }
}

private void post(String target, String message) {
    if (target.startsWith('arn:')) {
        String region = target.tokenize(':')[3]
        withEnv(['AWS_REGION=' + region, 'AWS_DEFAULT_REGION=' + region]) {
            snsPublish(topicArn: target, message: message)
        }
    } else {
        sendMessage(target, message)
    }
}

private Map environment() {
    [requests: env.ECS_AGENTS_REQUESTS, completions: env.ECS_AGENTS_COMPLETIONS,
     webhookCredentialsId: env.ECS_AGENTS_WEBHOOK_CREDENTIALS,
     job: env.JOB_NAME, url: env.BUILD_URL]
}

/** All that is wrong is said at once, under `faults`. */
@NonCPS
Map readSettings(Map args, Map environment) {
    Map defaults = [count: 1, timeout: 20, askAgain: 5, connectTimeout: 5, retry: 0]
    List known = ['label', 'overrides', 'requests', 'completions', 'webhookCredentialsId'] + defaults.keySet()
    List faults = args.keySet().findAll { !(it in known) }.collect { "unknown parameter ${it}".toString() }
    Map settings = [:]
    defaults.each { name, value ->
        def given = args[name] == null ? value : args[name]
        boolean whole = given.toString().isInteger()
        settings[name] = whole ? given.toString().toInteger() : value
        int least = name == 'retry' ? 0 : 1
        if (!whole || settings[name] < least || (name == 'count' && settings[name] > 10)) {
            String most = name == 'count' ? ' and at most 10' : ''
            faults << "${name}: has to be a whole number of at least ${least}${most}".toString()
        }
    }
    settings.label = args.label?.toString()?.trim()
    if (!settings.label) {
        faults << 'label: is missing'
    }
    ['requests', 'completions', 'webhookCredentialsId'].each { settings[it] = (args[it] ?: environment[it])?.toString() }
    ['requests', 'completions'].each {
        if (!(settings[it] ==~ /arn:[a-z-]+:sns:.+|https?:.+/)) {
            faults << ("${it}: has to be the ARN of an SNS topic or the URL of an SQS queue; set " +
                "ECS_AGENTS_${it.toUpperCase()} globally").toString()
        }
    }
    settings.overrides = args.overrides as Map
    settings.build = [job: environment.job, url: environment.url].findAll { it.value }
    settings.faults = faults
    return settings
}

/** A request under an id of its own: build numbers come back, the nonce does not. */
@NonCPS
Map newRequest(Map settings, Integer number, String nonce, long now) {
    String tail = "/${number}/${nonce.replace('-', '').take(12)}".toString()
    String job = (settings.build.job ?: 'pipeline').toString().replaceAll(/[^A-Za-z0-9._:\/-]/, '_')
    String id = job.substring(Math.max(0, job.length() + tail.length() - 128)) + tail
    long deadline = now + settings.timeout * 60000L
    settings.build.number = number
    Map message = [version: 1, requestId: id, label: settings.label, build: settings.build, count: settings.count,
                   expiresAt: Instant.ofEpochSecond(deadline.intdiv(1000L)).toString()]
    if (settings.overrides) {
        message.overrides = settings.overrides
    }
    List tokens = (0..<settings.count).collect { UUID.randomUUID().toString() }
    return [id: id, message: message, deadline: deadline, tokens: tokens, hooks: [], askedAt: 0L, posted: false,
            settled: 0, result: 'FAILURE']
}

@NonCPS
private def urls(List hooks) {
    List urls = hooks.collect { it.url }
    urls.size() == 1 ? urls[0] : urls
}

@NonCPS
private Map parse(String content) {
    try {
        def notice = new JsonSlurperClassic().parseText(content)
        return notice instanceof Map ? notice : null
    } catch (ignored) {
        return null
    }
}

@NonCPS
private String json(Map message) {
    JsonOutput.toJson(message)
}

@NonCPS
private boolean isTimeout(FlowInterruptedException e) {
    e.causes.any { it instanceof ExceededTimeout }
}

@NonCPS
String failure(String label, Map notice) {
    Map failure = notice.failure ?: [:]
    String text = "No agent with label '${label}': ${failure.message ?: 'no reason was given'}"
    String exit = failure.exitCode == null ? null : "exit code ${failure.exitCode}"
    String codes = [failure.code, failure.stopCode, exit].findAll().join(', ')
    if (codes) {
        text += " (${codes})"
    }
    return notice.task?.arn ? "${text}; task ${notice.task.arn}" : text
}

@NonCPS
long now() {
    System.currentTimeMillis()
}

/**
 * Puts a message into an SQS queue from the controller, with the controller's own AWS credentials: through the AWS SDK
 * that a plugin brings (aws-java-sdk2-sqs or aws-java-sdk-sqs), or through the AWS CLI.
 */
@NonCPS
void sendMessage(String url, String message) {
    def host = new URI(url).host =~ /(?:^|\.)sqs(?:-fips)?\.([a-z0-9-]+)\./
    String region = host ? host[0][1] : null // elsewhere, the SDK's own default
    ClassLoader loader = Jenkins.get().pluginManager.uberClassLoader
    Closure find = { String type ->
        try {
            return loader.loadClass(type)
        } catch (ClassNotFoundException ignored) {
            return null
        }
    }
    Thread thread = Thread.currentThread()
    ClassLoader before = thread.contextClassLoader
    thread.contextClassLoader = loader // the SDK finds its HTTP client there
    try {
        Class v2 = find('software.amazon.awssdk.services.sqs.SqsClient')
        Class v1 = v2 ? null : find('com.amazonaws.services.sqs.AmazonSQSClientBuilder')
        if (v2) {
            // By reflection: Groovy 2.4 cannot call a static method of an interface.
            Closure builder = { Class type -> type.getMethod('builder').invoke(null) }
            def building = builder(v2).overrideConfiguration(
                builder(find('software.amazon.awssdk.core.client.config.ClientOverrideConfiguration'))
                    .apiCallTimeout(Duration.ofSeconds(15)).build())
            if (region) {
                building.region(find('software.amazon.awssdk.regions.Region').of(region))
            }
            def client = building.build()
            try {
                client.sendMessage(builder(find('software.amazon.awssdk.services.sqs.model.SendMessageRequest'))
                    .queueUrl(url).messageBody(message).build())
            } finally {
                client.close()
            }
        } else if (v1) {
            def client = (region ? v1.standard().withRegion(region) : v1.standard()).build()
            try {
                client.sendMessage(url, message)
            } finally {
                client.shutdown()
            }
        } else {
            runCli(['aws', 'sqs', 'send-message', '--queue-url', url, '--message-body', message] +
                (region ? ['--region', region] : []))
        }
    } finally {
        thread.contextClassLoader = before
    }
}

@NonCPS
void runCli(List<String> command) {
    Process process
    try {
        process = new ProcessBuilder(command).redirectErrorStream(true).start()
    } catch (IOException e) {
        throw new IOException('nothing can post to SQS: install the plugin aws-java-sdk2-sqs, or the AWS CLI on the ' +
            "controller, or post to a topic with pipeline-aws (${e.message})")
    }
    process.outputStream.close()
    if (!process.waitFor(15, TimeUnit.SECONDS)) {
        process.destroyForcibly()
        throw new IOException('aws sqs send-message did not end within 15 s')
    }
    if (process.exitValue() != 0) {
        throw new IOException("aws sqs send-message: ${process.inputStream.text.trim()}")
    }
}

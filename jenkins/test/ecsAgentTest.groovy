import hudson.AbortException
import hudson.model.Result
import jenkins.model.Jenkins
import org.jenkinsci.plugins.workflow.steps.FlowInterruptedException
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.RemovedNodeCause
import test.Sent

Pipeline newPipeline() { new Pipeline(tests.jenkins) }
List requests() { Tests.sent('requests') }
List completions() { Tests.sent('completions') }
/** The name of the n-th request's agent. */
String agent(int n, String template = 'a') { Pipeline.agentName(template, Pipeline.requests()[n].requestId) }
def test(String name, Closure body) { tests.test(name, body) }

test('an agent is asked for, used and given back') {
    def pipeline = newPipeline()
    pipeline.after(41) { pipeline.ready('maven') }
    def ran = []
    pipeline.ecsAgent(label: 'linux && maven') { ran << [pipeline.node, it.name, it.index, it.labels, it.taskArn] }

    String name = agent(0, 'maven')
    assert ran == [[name, name, 0, ['linux', 'maven'], "arn:aws:ecs:eu-west-1:1:task/c/${name}"]]
    assert Sent.ALL*.take(3) == [['sqs v2', 'eu-west-1', pipeline.global.ECS_AGENTS_REQUESTS],
                                 ['sqs v2', 'eu-west-1', pipeline.global.ECS_AGENTS_COMPLETIONS]]
    Map request = requests()[0]
    String id = request.remove('requestId')
    assert id ==~ 'app/main/42/[0-9a-f]{20}'
    assert request.remove('webhookUrl') ==~ 'https://jenkins.example.com/webhook-step/[0-9a-f-]{36}'
    assert request == [version: 1, label: 'linux && maven', count: 1, expiresAt: '2001-09-09T02:06:40Z',
                       build: [job: 'app/main', number: 42, url: 'https://jenkins.example.com/job/app/job/main/42/']]
    assert completions() == [[version: 1, requestId: id, agent: name, taskArn: "arn:aws:ecs:eu-west-1:1:task/c/${name}",
                              build: [job: 'app/main', number: 42, url: 'https://jenkins.example.com/job/app/job/main/42/'], result: 'SUCCESS']]
}

test('the step returns what the block does, with several agents as a list') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    assert pipeline.ecsAgent(label: 'a') { 5 } == 5
    pipeline.after(1) { pipeline.ready() }
    pipeline.after(2) { pipeline.ready() }
    assert pipeline.ecsAgent(label: 'a', count: 2) { it.index + 10 } == [10, 11]
}

test('a step without a block says so in one line') {
    def pipeline = newPipeline()
    assert Tests.thrown(AbortException) { pipeline.step.call(label: 'a') }.message.contains('the block is missing')
    assert Tests.thrown(AbortException) { pipeline.step.call() }.message.contains('the block is missing')
}

test('a block that takes no parameter is called without') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    boolean ran = false
    pipeline.ecsAgent(label: 'a') { -> ran = true }
    assert ran
}

test('the ids of two requests of one build differ, and overrides go along') {
    def pipeline = newPipeline()
    2.times {
        pipeline.after(1) { pipeline.ready() }
        pipeline.ecsAgent(label: 'a', overrides: [cpu: 1024]) { }
    }
    assert requests()*.requestId.unique().size() == 2
    assert requests()*.overrides == [[cpu: 1024]] * 2
}

test('a long job name of strange characters makes a valid request id') {
    def pipeline = newPipeline()
    pipeline.run.parent.fullName = 'grüße & more ' * 20
    pipeline.after(1) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert requests()[0].requestId ==~ '[A-Za-z0-9._:/-]{128}'
    assert requests()[0].build.job == pipeline.run.parent.fullName
}

test('without a root URL, a build has no URL') {
    def pipeline = newPipeline()
    Jenkins.get().rootUrl = null
    def own = pipeline.loader.loadClass('EcsAgentOwn').newInstance(UUID.randomUUID().toString())
    assert own.url == null && own.number == 42
}

test('a topic is posted to in its own region') {
    def pipeline = newPipeline()
    pipeline.global.ECS_AGENTS_REQUESTS = 'arn:aws:sns:eu-central-1:1:requests'
    pipeline.global.ECS_AGENTS_COMPLETIONS = 'arn:aws:sns:eu-central-1:1:completions'
    pipeline.after(1) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert Sent.ALL*.take(3) == [['sns v2', 'eu-central-1', 'arn:aws:sns:eu-central-1:1:requests'],
                                 ['sns v2', 'eu-central-1', 'arn:aws:sns:eu-central-1:1:completions']]
}

test('a queue is posted to with version 1 of the SDK where there is no other') {
    def pipeline = newPipeline()
    def all = Jenkins.get().pluginManager.uberClassLoader
    Jenkins.get().pluginManager.uberClassLoader = new ClassLoader(all) {
        Class<?> loadClass(String name) {
            if (name.startsWith('software.')) {
                throw new ClassNotFoundException(name)
            }
            all.loadClass(name)
        }
    }
    pipeline.after(1) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert Sent.ALL*.getAt(0) == ['sqs v1'] * 2
}

test('the region of a queue is read from its URL') {
    ['https://sqs.eu-west-1.amazonaws.com/1/requests': 'eu-west-1', 'https://sqs-fips.us-gov-west-1.amazonaws.com/1/requests': 'us-gov-west-1',
     'https://vpce-1.sqs.eu-north-1.vpce.amazonaws.com/1/requests': 'eu-north-1', 'http://127.0.0.1:4566/1/requests': 'null'].each { url, region ->
        def pipeline = newPipeline()
        pipeline.global.ECS_AGENTS_REQUESTS = url
        pipeline.after(1) { pipeline.ready() }
        pipeline.ecsAgent(label: 'a') { }
        assert Sent.ALL[0][1, 2] == [region, url]
        Sent.ALL.clear()
    }
}

test('without an SDK, the AWS CLI posts') {
    def pipeline = newPipeline()
    Jenkins.get().pluginManager.uberClassLoader = new ClassLoader() {
        Class<?> loadClass(String name) { throw new ClassNotFoundException(name) }
    }
    File called = new File(System.getenv('PATH').tokenize(':')[0], 'aws.called')
    pipeline.global.ECS_AGENTS_COMPLETIONS = 'arn:aws:sns:eu-west-2:1:completions'
    pipeline.after(1) {
        List arguments = called.readLines()
        assert arguments[0..4] == ['sqs', 'send-message', '--queue-url', pipeline.global.ECS_AGENTS_REQUESTS, '--message-body']
        assert arguments[5].contains('"label":"a"') && arguments[6, 7] == ['--region', 'eu-west-1']
    }
    Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a', timeout: 1) { } }
    assert called.readLines()[0..3] == ['sns', 'publish', '--topic-arn', pipeline.global.ECS_AGENTS_COMPLETIONS]
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'refused') { } }
    assert e.message.contains('aws sqs send-message: An error occurred (AccessDenied)') && e.message.contains('JenkinsPolicy')
}

test('a failed request fails the build with the notice\'s message') {
    def pipeline = newPipeline()
    pipeline.after(3) { pipeline.failed('START_FAILED', 'image not found: no/such:1', 0, [exitCode: 1, stopCode: 'TaskFailedToStart']) }
    boolean ran = false
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'linux') { ran = true } }
    assert e.message == "No agent with label 'linux': image not found: no/such:1 (START_FAILED, TaskFailedToStart, exit code 1)"
    assert !ran && completions() == []
}

test('a Spot interruption before the agent was ready is retried under another id') {
    def pipeline = newPipeline()
    pipeline.after(3) { pipeline.failed('SPOT_INTERRUPTION', 'the capacity was reclaimed') }
    pipeline.after(60) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a', retry: 1) { }
    assert requests()*.requestId.unique().size() == 2
    assert completions()*.agent == [agent(1)]
    assert pipeline.log.any { it.contains('the capacity was reclaimed') }
}

test('a Spot interruption without retry fails the build as a lost agent does') {
    def pipeline = newPipeline()
    pipeline.after(3) { pipeline.failed('SPOT_INTERRUPTION', 'the capacity was reclaimed') }
    def e = Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a') { } }
    assert e.result == Result.FAILURE && e.causes[0] instanceof RemovedNodeCause && !e.actualInterruption
}

test('an agent lost in its build is retried, and each was given back') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    int runs = 0
    pipeline.ecsAgent(label: 'a', retry: 2) {
        if (++runs == 1) {
            pipeline.after(1) { pipeline.ready() }
            throw new FlowInterruptedException(Result.ABORTED, false, new RemovedNodeCause())
        }
    }
    assert completions()*.agent == [agent(0), agent(1)] && completions()*.result == ['ABORTED', 'SUCCESS']
}

test('a build failure is not retried') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    int runs = 0
    Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a', retry: 2) { runs++; throw new AbortException('tests failed') } }
    assert runs == 1 && completions()*.result == ['FAILURE']
}

test('no answer within the timeout fails the build and withdraws the request') {
    def pipeline = newPipeline()
    long began = pipeline.clock
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'linux', timeout: 12) { } }
    assert e.message.startsWith("No agent with label 'linux' within 12 minutes, and no word why.") && e.message.contains(requests()[0].requestId)
    // The sweep that says why comes within the minute after the request has expired.
    assert pipeline.clock - began - (12 * 60000 + 90000) in 0L..1000L
    assert completions().size() == 1 && completions()[0].requestId == requests()[0].requestId && completions()[0].agent == null
}

test('a build that is aborted while it waits withdraws its request') {
    def pipeline = newPipeline()
    pipeline.after(30) { pipeline.abort() }
    def e = Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a') { } }
    assert e.message == 'Aborted by ann'
    assert completions()*.subMap('requestId', 'result') == [[requestId: requests()[0].requestId, result: 'ABORTED']]
}

test('a build that is aborted while it builds gives its agent back') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    pipeline.after(9) { pipeline.abort() }
    Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a') { pipeline.await { false } } }
    assert completions()*.subMap('agent', 'result') == [[agent: agent(0), result: 'ABORTED']]
}

test('a timeout around the step ends it') {
    def pipeline = newPipeline()
    pipeline.timeout([time: 7, unit: 'MINUTES']) {
        Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a') { } }
    }
    assert requests().size() == 2 && completions().size() == 1
}

test('the request is repeated under the same id and URL until its outcome arrives') {
    def pipeline = newPipeline()
    // The first notice was lost in a restart of the controller; the inquiry is answered.
    pipeline.after(11 * 60) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert requests().size() == 3 && requests().unique().size() == 1
    assert completions()*.agent == [agent(0)]
}

test('a fault while asking again is only logged') {
    def pipeline = newPipeline()
    pipeline.after(299) { Sent.fault = new IllegalStateException('throttled') }
    pipeline.after(330) { Sent.fault = null }
    pipeline.after(400) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert pipeline.log.any { it.contains('throttled') } && completions()*.agent == [agent(0)]
}

test('a request that cannot be posted fails the build with what to fix') {
    def pipeline = newPipeline()
    Sent.fault = new IllegalStateException('AccessDenied')
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a') { } }
    assert e.message.contains('AccessDenied') && e.message.contains('JenkinsPolicy')
    assert pipeline.log.any { it.contains('Could not say that request') }
}

test('a fault that ends with a full stop is quoted with one') {
    def pipeline = newPipeline()
    Sent.fault = new IllegalStateException('Unable to locate credentials.\n') // as the AWS CLI says it
    Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a') { } }
    assert pipeline.log.last() =~ /is over: Unable to locate credentials\. An agent of it/
}

test('a request is posted again after a fault that passes') {
    def pipeline = newPipeline()
    Sent.fault = new IllegalStateException('throttled')
    pipeline.after(1) { Sent.fault = null }
    pipeline.after(10) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert requests().size() == 1 && completions().size() == 1
}

test('a post that comes to no end ends, and is not blamed on the policy') {
    def pipeline = newPipeline()
    pipeline.hangs = true
    long began = pipeline.clock
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a') { } }
    assert e.message.contains('no answer within 30 s') && !e.message.contains('JenkinsPolicy')
    assert pipeline.clock - began < 300_000
}

test('nothing is posted from the thread that runs the build\'s other branches') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert Sent.THREADS.size() == 2 && !(Thread.currentThread() in Sent.THREADS)
}

test('the build is on disk before its request goes out') {
    // CpsThreadGroup.run saves once nothing can go on; registerWebhook and echo end at once.
    def pipeline = newPipeline()
    List saved = []
    Sent.before = { saved << pipeline.saved }
    pipeline.after(1) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert saved[0]
}

test('a completion that cannot be posted is tried three times with pauses, and logged in one line') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    long ended = 0
    pipeline.ecsAgent(label: 'a') {
        Sent.fault = new IllegalStateException('down')
        Sent.THREADS.clear()
        ended = pipeline.clock
    }
    assert pipeline.log.last().contains('idleTimeout') && pipeline.log.count { it.contains('down') } == 1
    assert !pipeline.log.any { it.contains('\n') } && Sent.THREADS.size() == 3 && pipeline.clock - ended in 15_000L..30_000L
}

test('a step that is missing as the build ends hides nothing of it') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    def e = Tests.thrown(AbortException) {
        pipeline.ecsAgent(label: 'a') {
            pipeline.step.metaClass.waitUntil = { Map args, Closure body -> throw new NoSuchMethodError('No such DSL method') }
            throw new AbortException('tests failed')
        }
    }
    assert e.message == 'tests failed' && pipeline.log.last().contains('No such DSL method')
}

test('other notices and what is no notice are ignored') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.inbox[requests()[0].webhookUrl.tokenize('/').last()] << '<html>' }
    pipeline.after(2) { pipeline.notify([type: 'agent.ready', agent: [name: 'evil']], 0, 'another') }
    pipeline.after(3) { pipeline.notify([type: 'agent.waiting']) }
    pipeline.after(4) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert pipeline.nodes.unique() == [agent(0)]
}

test('an agent that Jenkins cannot reach fails the build with the end of its log') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready()
        pipeline.computer(agent(0)).online = false
        pipeline.computer(agent(0)).log = (1..50).collect { "line ${it}" }.join('\n') + '\nConnection refused'
    }
    long began = pipeline.clock
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a', retry: 1) { } }
    assert e.message.contains('Connection refused') && e.message.contains('line 32') && !e.message.contains('line 31')
    assert pipeline.clock - began in 300_000L..302_000L && completions()*.agent == [agent(0)]
}

test('why there was no room is heard though the request has expired') {
    def pipeline = newPipeline()
    pipeline.after(20 * 60 + 50) {
        // Copies of a request that come too late are answered without the reason.
        assert requests().size() == 4
        pipeline.failed('CAPACITY_TIMEOUT', 'no room: group jenkins-ecs is at its maximum of 10')
    }
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'linux') { } }
    assert e.message.contains('maximum of 10')
}

test('an agent lost before Jenkins has connected to it is retried at once') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready()
        pipeline.lose(agent(0), 30)
        pipeline.after(90) { pipeline.ready() }
    }
    long began = pipeline.clock
    pipeline.ecsAgent(label: 'a', retry: 1) { }
    assert pipeline.nodes.unique() == [agent(1)] && pipeline.clock - began in 91_000L..92_000L
    assert requests()*.requestId.unique().size() == 2 && completions()*.agent == [agent(0), agent(1)]
    assert pipeline.log.any { it.contains('was lost before its build began') }
}

test('an agent lost between the first, empty block and the build is retried') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    pipeline.taking = {
        pipeline.taking = null
        pipeline.lose(agent(0), 20)
        pipeline.after(90) { pipeline.ready() }
    }
    int runs = 0
    pipeline.ecsAgent(label: 'a', retry: 1) { runs++ }
    assert runs == 1 && pipeline.nodes == [agent(0), agent(1), agent(1)]
    assert completions()*.subMap('agent', 'result') == [[agent: agent(0), result: 'FAILURE'], [agent: agent(1), result: 'SUCCESS']]
}

test('an agent lost as it takes the build is retried') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    int taken = 0
    pipeline.taking = {
        if (++taken == 2) {
            pipeline.lose(agent(0), 5)
            pipeline.after(60) { pipeline.ready() }
            throw new IllegalStateException("${agent(0)} is offline") // PlaceholderExecutable.run
        }
    }
    int runs = 0
    pipeline.ecsAgent(label: 'a', retry: 1) { runs++ }
    assert runs == 1 && completions()*.agent == [agent(0), agent(1)]
}

test('a fault of Jenkins as an agent takes the build is not taken for its loss') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    pipeline.taking = { throw new IllegalStateException('must be a top-level job') }
    Tests.thrown(IllegalStateException) { pipeline.ecsAgent(label: 'a', retry: 1) { } }
}

test('an agent that was lost unseen is distinguished from one that cannot be reached') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready()
        Jenkins.get().nodeList.clear()
    }
    def e = Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a') { } }
    assert e.result == Result.FAILURE && e.causes[0] instanceof RemovedNodeCause && !e.actualInterruption
    assert completions()*.agent == [agent(0)]
}

test('a node that others make after the notice, or that is made anew, is waited for') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready()
        def computer = Jenkins.get().computerList[0]
        def node = Jenkins.get().nodeList.pop()
        computer.online = false
        pipeline.after(60) { Jenkins.get().nodeList << node }
        pipeline.after(75) { Jenkins.get().nodeList.clear() }
        pipeline.after(84) { Jenkins.get().nodeList << node }
        pipeline.after(120) { computer.online = true }
    }
    pipeline.ecsAgent(label: 'a') { }
    assert completions()*.result == ['SUCCESS']
}

test('whoever aborts a build whose agent is lost aborts it') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready()
        pipeline.lose(agent(0))
        pipeline.after(12) { pipeline.abort() }
    }
    assert Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a', retry: 1) { } }.message == 'Aborted by ann'
    assert requests().size() == 1
}

test('a block on a deleted agent ends within seconds, in a way that is retried') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    long lost = 0
    int runs = 0
    pipeline.ecsAgent(label: 'a', retry: 1) {
        if (++runs == 1) {
            lost = pipeline.clock
            pipeline.lose(agent(0))
            pipeline.after(60) { pipeline.ready() }
            try {
                pipeline.await { false }
            } catch (FlowInterruptedException e) {
                assert e.causes*.class == [RemovedNodeCause] && !e.actualInterruption && pipeline.clock - lost <= 15_000
                throw e
            }
        }
    }
    assert runs == 2 && completions()*.agent == [agent(0), agent(1)]
}

test('nothing is looked after once the agent is gone, or the build is over') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    assert pipeline.events
    Jenkins.get().nodeList.clear()
    long began = pipeline.clock
    pipeline.await { !pipeline.events }
    assert pipeline.clock - began <= 30_000
    pipeline.after(1) { pipeline.ready() }
    pipeline.ecsAgent(label: 'a') { }
    pipeline.run.building = false
    pipeline.await { !pipeline.events }
}

test('two agents: the block runs on each, and each is given back by itself') {
    def pipeline = newPipeline()
    pipeline.after(5) { pipeline.ready() }
    pipeline.after(7) { pipeline.ready() }
    def ran = []
    pipeline.ecsAgent(label: 'a', count: 2) { ran << [pipeline.node, it.index] }
    assert ran == [[agent(0), 0], [agent(1), 1]]
    assert requests()*.count == [1, 1] && requests()*.webhookUrl.unique().size() == 2
    assert completions()*.agent == [agent(0), agent(1)] && completions()*.requestId == requests()*.requestId
}

test('two agents, one of which fails: the other builds, the step fails') {
    def pipeline = newPipeline()
    pipeline.after(5) { pipeline.failed('START_FAILED', 'no memory') }
    pipeline.after(7) { pipeline.ready() }
    def ran = []
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a', count: 2) { ran << it.index } }
    assert e.message.contains('no memory') && ran == [1] && completions()*.agent == [agent(1)]
}

test('two agents, aborted while one is missing: its request is withdrawn') {
    def pipeline = newPipeline()
    pipeline.after(5) { pipeline.ready() }
    pipeline.after(9) { pipeline.abort() }
    Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a', count: 2) { } }
    assert completions()*.subMap('agent', 'requestId') == [[agent: agent(0), requestId: requests()[0].requestId],
                                                           [requestId: requests()[1].requestId]]
}

test('the webhook is registered with its secret each time') {
    def pipeline = newPipeline()
    pipeline.global.ECS_AGENTS_WEBHOOK_CREDENTIALS = 'webhook'
    pipeline.after(360) { pipeline.ready() }
    pipeline.after(301) { pipeline.authTokens.clear() }
    pipeline.ecsAgent(label: 'a') { }
    assert requests().size() == 2
    pipeline = newPipeline()
    pipeline.after(1) { assert pipeline.authTokens.values() as List == ['secret of own']; pipeline.ready() }
    pipeline.ecsAgent(label: 'a', webhookCredentialsId: 'own') { }
}

test('all that is wrong with the parameters is said at once') {
    def pipeline = newPipeline()
    pipeline.global.remove('ECS_AGENTS_REQUESTS')
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(labels: 'a', count: 11, timeout: 'soon') { } }
    ['unknown parameter labels', 'label: is missing', 'count:', 'at most 10', 'timeout:', 'ECS_AGENTS_REQUESTS: has to be'].each {
        assert e.message.contains(it)
    }
    assert Sent.ALL.empty
}

test('the words of the Amazon ECS plugin\'s step are taken where they mean the same') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready() }
    pipeline.ecsAgent(inheritFrom: 'maven', cpu: 2048, memoryReservation: 4096, taskrole: 'arn:aws:iam::1:role/r',
        ephemeralStorageSizeInGiB: 30, taskDefinitionOverride: 'jenkins-maven', environments: [[name: 'A', value: 'b']]) { }
    assert requests()[0].subMap('label', 'overrides') == [label: 'maven', overrides: [cpu: 2048, memory: 4096, ephemeralStorage: 30,
        environment: [A: 'b'], taskRole: 'arn:aws:iam::1:role/r', taskDefinition: 'jenkins-maven']]
    def e = Tests.thrown(AbortException) {
        pipeline.ecsAgent(label: 'a', inheritFrom: 'b', overrides: [cpu: 1], cpu: 2, memory: 3, memoryReservation: 4,
            environments: 'A=b', image: 'x') { }
    }
    ['inheritFrom: is the same', 'cpu: means the override cpu, which', 'memoryReservation: means the override memory, which',
     'environments: has to be a list', 'unknown parameter image'].each {
        assert e.message.contains(it)
    }
}

test('what lives across steps can be written to disk') {
    def pipeline = newPipeline()
    Map settings = pipeline.loader.loadClass('EcsAgentSettings').read([label: "a${1}", count: '2'])
    assert settings.faults == [] && settings.label == 'a1' && settings.count == 2
    def notice = pipeline.step.readNotice(UUID.randomUUID().toString(), 'a', '{"requestId": "a"}')
    [settings, notice].each { new ObjectOutputStream(new ByteArrayOutputStream()).writeObject(it) }
}

test('what runs across steps has no iterator and no closure of the library\'s own on its stack') {
    // Jenkins can neither write an ArrayList's iterator to disk nor go on in the middle of a method like `each`.
    String source = new File(tests.jenkins, 'vars/ecsAgent.groovy').text.replaceAll('(?s)/\\*.*?\\*/', '')
    String acrossSteps = source.replaceAll('(?s)@NonCPS\n.*?\n}\n', '')
    assert acrossSteps.contains('awaitOutcome') && !acrossSteps.contains('isTimeout(FlowInterruptedException')
    assert !(acrossSteps =~ /\bfor \([^;]*( in |:)[^;]*\)|\.(each|collect|find|any|every|eachWithIndex|findAll|sort|times)\w*\s*[{(]/)
}

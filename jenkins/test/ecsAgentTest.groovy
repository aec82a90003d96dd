import hudson.AbortException
import hudson.model.Result
import jenkins.model.Jenkins
import org.jenkinsci.plugins.workflow.steps.FlowInterruptedException
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.RemovedNodeCause
import test.Sent

Pipeline newPipeline() { new Pipeline(tests.jenkins) }
List requests() { Tests.sent('requests') }
List completions() { Tests.sent('completions') }
def test(String name, Closure body) { tests.test(name, body) }

test('an agent is asked for, used and given back') {
    def pipeline = newPipeline()
    pipeline.after(41) { pipeline.ready('ecs-maven-1') }
    def ran = []
    pipeline.ecsAgent(label: 'linux && maven') { ran << [pipeline.node, it.name, it.index, it.labels] }

    assert ran == [['ecs-maven-1', 'ecs-maven-1', 0, ['linux', 'maven']]]
    assert Sent.ALL*.take(3) == [['sqs v2', 'eu-west-1', pipeline.env.ECS_AGENTS_REQUESTS],
                                 ['sqs v2', 'eu-west-1', pipeline.env.ECS_AGENTS_COMPLETIONS]]
    Map request = requests()[0]
    String id = request.remove('requestId')
    assert id ==~ '[A-Za-z0-9._:/-]{1,128}' && id.startsWith('app/main/42/')
    assert request.remove('webhookUrl') ==~ 'https://jenkins.example.com/webhook-step/[0-9a-f-]{36}'
    assert request == [version: 1, label: 'linux && maven', count: 1, expiresAt: '2001-09-09T02:06:40Z',
                       build: [job: 'app/main', number: 42, url: 'https://jenkins.example.com/job/app/job/main/42/']]
    assert completions() == [[version: 1, requestId: id, agent: 'ecs-maven-1', taskArn: 'arn:aws:ecs:eu-west-1:1:task/c/ecs-maven-1',
                              build: [job: 'app/main', number: 42, url: 'https://jenkins.example.com/job/app/job/main/42/'], result: 'SUCCESS']]
}

test('a block that takes no parameter is called without') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    boolean ran = false
    pipeline.ecsAgent(label: 'a') { -> ran = true }
    assert ran
}

test('the ids of two requests of one build differ, and overrides go along') {
    def pipeline = newPipeline()
    2.times {
        pipeline.after(1) { pipeline.ready('ecs-a-1') }
        pipeline.ecsAgent(label: 'a', overrides: [cpu: 1024]) { }
    }
    assert requests()*.requestId.unique().size() == 2
    assert requests()*.overrides == [[cpu: 1024]] * 2
}

test('a long job name of strange characters makes a valid request id') {
    def pipeline = newPipeline()
    pipeline.env.JOB_NAME = 'grüße & more ' * 20
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    pipeline.ecsAgent(label: 'a') { }
    assert requests()[0].requestId ==~ '[A-Za-z0-9._:/-]{128}'
    assert requests()[0].build.job == pipeline.env.JOB_NAME
}

test('a topic is posted to with snsPublish in its own region') {
    def pipeline = newPipeline()
    pipeline.env.ECS_AGENTS_REQUESTS = 'arn:aws:sns:eu-central-1:1:requests'
    pipeline.env.ECS_AGENTS_COMPLETIONS = 'arn:aws:sns:eu-central-1:1:completions'
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    pipeline.ecsAgent(label: 'a') { }
    assert pipeline.published == [['arn:aws:sns:eu-central-1:1:requests', 'eu-central-1'], ['arn:aws:sns:eu-central-1:1:completions', 'eu-central-1']]
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
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    pipeline.ecsAgent(label: 'a') { }
    assert Sent.ALL*.getAt(0) == ['sqs v1'] * 2
}

test('the region of a queue is read from its URL') {
    def pipeline = newPipeline()
    ['https://sqs.eu-west-1.amazonaws.com/1/q': 'eu-west-1', 'https://sqs-fips.us-gov-west-1.amazonaws.com/1/q': 'us-gov-west-1',
     'https://vpce-1.sqs.eu-north-1.vpce.amazonaws.com/1/q': 'eu-north-1', 'http://127.0.0.1:4566/1/q': 'null'].each { url, region ->
        pipeline.step.sendMessage(url, '{}')
        assert Sent.ALL.last()[1] == region
    }
}

test('without an SDK and a CLI, the fault says what to install') {
    def pipeline = newPipeline()
    def e = Tests.thrown(IOException) { pipeline.step.runCli(['no-such-command-here']) }
    assert e.message.contains('aws-java-sdk2-sqs')
    assert Tests.thrown(IOException) { pipeline.step.runCli(['sh', '-c', 'echo denied; exit 3']) }.message.contains('denied')
    pipeline.step.runCli(['true'])
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
    pipeline.after(60) { pipeline.ready('ecs-a-2') }
    pipeline.ecsAgent(label: 'a', retry: 1) { }
    assert requests()*.requestId.unique().size() == 2
    assert completions()*.agent == ['ecs-a-2']
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
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    int runs = 0
    pipeline.ecsAgent(label: 'a', retry: 2) {
        if (++runs == 1) {
            pipeline.after(1) { pipeline.ready('ecs-a-2') }
            throw new FlowInterruptedException(Result.ABORTED, false, new RemovedNodeCause())
        }
    }
    assert completions()*.agent == ['ecs-a-1', 'ecs-a-2'] && completions()*.result == ['ABORTED', 'SUCCESS']
}

test('a build failure is not retried') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
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
    assert pipeline.clock - began == 12 * 60000 + 90000
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
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    pipeline.after(9) { pipeline.abort() }
    Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a') { pipeline.await { false } } }
    assert completions()*.subMap('agent', 'result') == [[agent: 'ecs-a-1', result: 'ABORTED']]
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
    pipeline.after(11 * 60) { pipeline.ready('ecs-a-1') }
    pipeline.ecsAgent(label: 'a') { }
    assert requests().size() == 3 && requests().unique().size() == 1
    assert completions()*.agent == ['ecs-a-1']
}

test('a fault while asking again is only told') {
    def pipeline = newPipeline()
    pipeline.after(299) { Sent.fault = new IllegalStateException('throttled') }
    pipeline.after(301) { Sent.fault = null }
    pipeline.after(400) { pipeline.ready('ecs-a-1') }
    pipeline.ecsAgent(label: 'a') { }
    assert pipeline.log.any { it.contains('throttled') } && completions()*.agent == ['ecs-a-1']
}

test('a request that cannot be posted fails the build with what to mend') {
    def pipeline = newPipeline()
    Sent.fault = new IllegalStateException('AccessDenied')
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a') { } }
    assert e.message.contains('AccessDenied') && e.message.contains('JenkinsPolicy')
    assert pipeline.log.any { it.contains('Could not say that request') }
}

test('a completion that cannot be posted does not change the build\'s result') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    pipeline.ecsAgent(label: 'a') { Sent.fault = new IllegalStateException('down') }
    assert pipeline.log.last().contains('idleTimeout')
}

test('other notices and what is no notice are ignored') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.inbox[requests()[0].webhookUrl.tokenize('/').last()] << '<html>' }
    pipeline.after(2) { pipeline.notify([type: 'agent.ready', agent: [name: 'evil']], 0, 'another') }
    pipeline.after(3) { pipeline.notify([type: 'agent.waiting']) }
    pipeline.after(4) { pipeline.ready('ecs-a-1') }
    pipeline.ecsAgent(label: 'a') { }
    assert pipeline.nodes.unique() == ['ecs-a-1']
}

test('an agent that Jenkins cannot reach fails the build with where to look') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready('ecs-a-1')
        pipeline.computer('ecs-a-1').online = false
    }
    long began = pipeline.clock
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a', retry: 1) { } }
    assert e.message.contains('https://jenkins.example.com/computer/ecs-a-1/log')
    assert pipeline.clock - began == 301_000 && completions()*.agent == ['ecs-a-1']
}

test('why there was no room is heard though the request has expired') {
    def pipeline = newPipeline()
    pipeline.after(20 * 60 + 50) {
        // What the copies of a request are told that come too late is not why.
        assert requests().size() == 4
        pipeline.failed('CAPACITY_TIMEOUT', 'no room: group jenkins-ecs is at its maximum of 10')
    }
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'linux') { } }
    assert e.message.contains('maximum of 10')
}

test('an agent lost before Jenkins has connected to it is retried at once') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready('ecs-a-1')
        pipeline.lose('ecs-a-1', 30)
        pipeline.after(90) { pipeline.ready('ecs-a-2') }
    }
    long began = pipeline.clock
    pipeline.ecsAgent(label: 'a', retry: 1) { }
    assert pipeline.nodes.unique() == ['ecs-a-2'] && pipeline.clock - began == 91_000
    assert requests()*.requestId.unique().size() == 2 && completions()*.agent == ['ecs-a-1', 'ecs-a-2']
    assert pipeline.log.any { it.contains('ecs-a-1 was lost before its build began') }
}

test('an agent lost between the first, empty block and the build is retried') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    pipeline.taking = {
        pipeline.taking = null
        pipeline.lose('ecs-a-1', 20)
        pipeline.after(90) { pipeline.ready('ecs-a-2') }
    }
    int runs = 0
    pipeline.ecsAgent(label: 'a', retry: 1) { runs++ }
    assert runs == 1 && pipeline.nodes == ['ecs-a-1', 'ecs-a-2', 'ecs-a-2']
    assert completions()*.subMap('agent', 'result') == [[agent: 'ecs-a-1', result: 'FAILURE'], [agent: 'ecs-a-2', result: 'SUCCESS']]
}

test('an agent lost as it takes the build is retried') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    int taken = 0
    pipeline.taking = {
        if (++taken == 2) {
            pipeline.lose('ecs-a-1', 5)
            pipeline.after(60) { pipeline.ready('ecs-a-2') }
            throw new IllegalStateException('ecs-a-1 is offline') // PlaceholderExecutable.run
        }
    }
    int runs = 0
    pipeline.ecsAgent(label: 'a', retry: 1) { runs++ }
    assert runs == 1 && completions()*.agent == ['ecs-a-1', 'ecs-a-2']
}

test('a fault of Jenkins as an agent takes the build is not taken for its loss') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    pipeline.taking = { throw new IllegalStateException('must be a top-level job') }
    Tests.thrown(IllegalStateException) { pipeline.ecsAgent(label: 'a', retry: 1) { } }
}

test('an agent that was lost unseen is told apart from one that cannot be reached') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready('ecs-a-1')
        Jenkins.get().computerList.clear()
    }
    def e = Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a') { } }
    assert e.result == Result.FAILURE && e.causes[0] instanceof RemovedNodeCause && !e.actualInterruption
    assert completions()*.agent == ['ecs-a-1']
}

test('a node that others make after the notice, or that is made anew, is waited for') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready('ecs-a-1')
        def computer = Jenkins.get().computerList.pop()
        pipeline.after(60) { Jenkins.get().computerList << computer; computer.online = false }
        pipeline.after(75) { Jenkins.get().computerList.clear() }
        pipeline.after(84) { Jenkins.get().computerList << computer }
        pipeline.after(120) { computer.online = true }
    }
    pipeline.ecsAgent(label: 'a') { }
    assert completions()*.result == ['SUCCESS']
}

test('whoever aborts a build whose agent is lost aborts it') {
    def pipeline = newPipeline()
    pipeline.after(1) {
        pipeline.ready('ecs-a-1')
        pipeline.lose('ecs-a-1')
        pipeline.after(12) { pipeline.abort() }
    }
    assert Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a', retry: 1) { } }.message == 'Aborted by ann'
    assert requests().size() == 1
}

test('nothing is looked after once the build has begun, or is over') {
    def pipeline = newPipeline()
    pipeline.after(1) { pipeline.ready('ecs-a-1') }
    pipeline.ecsAgent(label: 'a') {
        long began = pipeline.clock
        pipeline.await { pipeline.clock - began > 30_000 || !pipeline.events }
        assert pipeline.events.empty
    }
    pipeline.run.building = false
    pipeline.step.cancelIfLost('ecs-a-1', true, [over: false])
    assert pipeline.events.empty
}

test('two agents: the block runs on each, and each is given back by itself') {
    def pipeline = newPipeline()
    pipeline.after(5) { pipeline.ready('ecs-a-1', 0) }
    pipeline.after(7) { pipeline.ready('ecs-a-2', 1) }
    def ran = []
    pipeline.ecsAgent(label: 'a', count: 2) { ran << [pipeline.node, it.index] }
    assert ran == [['ecs-a-1', 0], ['ecs-a-2', 1]]
    assert requests().size() == 1 && requests()[0].count == 2 && requests()[0].webhookUrl.unique().size() == 2
    assert completions()*.agent == ['ecs-a-1', 'ecs-a-2'] && completions()*.requestId == [null, null]
}

test('two agents, one of which fails: the other builds, the step fails') {
    def pipeline = newPipeline()
    pipeline.after(5) { pipeline.failed('START_FAILED', 'no memory', 0) }
    pipeline.after(7) { pipeline.ready('ecs-a-2', 1) }
    def ran = []
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(label: 'a', count: 2) { ran << it.index } }
    assert e.message.contains('no memory') && ran == [1] && completions()*.agent == ['ecs-a-2']
}

test('two agents, aborted while one is missing: the request is withdrawn') {
    def pipeline = newPipeline()
    pipeline.after(5) { pipeline.ready('ecs-a-1', 0) }
    pipeline.after(9) { pipeline.abort() }
    Tests.thrown(FlowInterruptedException) { pipeline.ecsAgent(label: 'a', count: 2) { } }
    assert completions()*.subMap('agent', 'requestId') == [[agent: 'ecs-a-1'], [requestId: requests()[0].requestId]]*.with {
        [agent: it.agent, requestId: it.requestId].findAll { e -> e.value }
    }
}

test('the webhook is registered with its secret each time') {
    def pipeline = newPipeline()
    pipeline.env.ECS_AGENTS_WEBHOOK_CREDENTIALS = 'webhook'
    pipeline.after(360) { pipeline.ready('ecs-a-1') }
    pipeline.after(301) { pipeline.authTokens.clear() }
    pipeline.ecsAgent(label: 'a') { }
    assert requests().size() == 2
    pipeline = newPipeline()
    pipeline.after(1) { assert pipeline.authTokens.values() as List == ['secret of own']; pipeline.ready('ecs-a-1') }
    pipeline.ecsAgent(label: 'a', webhookCredentialsId: 'own') { }
}

test('all that is wrong with the parameters is said at once') {
    def pipeline = newPipeline()
    pipeline.env.remove('ECS_AGENTS_REQUESTS')
    def e = Tests.thrown(AbortException) { pipeline.ecsAgent(labels: 'a', count: 11, timeout: 'soon') { } }
    ['unknown parameter labels', 'label: is missing', 'count:', 'at most 10', 'timeout:', 'requests:', 'ECS_AGENTS_REQUESTS'].each {
        assert e.message.contains(it)
    }
    assert Sent.ALL.empty
}

test('what lives across steps can be written to disk') {
    def pipeline = newPipeline()
    Map settings = pipeline.step.readSettings([label: "a${1}", count: '2'], pipeline.env.collectEntries { [it.key.toLowerCase(), it.value] } +
        [requests: 'https://sqs.eu-west-1.amazonaws.com/1/r', completions: 'https://sqs.eu-west-1.amazonaws.com/1/c'])
    assert settings.faults == [] && settings.label == 'a1' && settings.count == 2
    Map request = pipeline.step.newRequest(settings, 7, UUID.randomUUID().toString(), 0)
    def notice = pipeline.step.parse('{"agent": {"name": "a", "labels": ["b"]}}')
    [settings, request, notice].each { new ObjectOutputStream(new ByteArrayOutputStream()).writeObject(it) }
}

test('what runs across steps has no iterator and no closure of the library\'s own on its stack') {
    // Jenkins can neither write an ArrayList's iterator to disk nor go on in the middle of a method like `each`.
    String source = new File(tests.jenkins, 'vars/ecsAgent.groovy').text.replaceAll('(?s)/\\*.*?\\*/', '')
    String acrossSteps = source.replaceAll('(?s)@NonCPS\n.*?\n}\n', '')
    assert acrossSteps.contains('awaitOutcome') && !acrossSteps.contains('isTimeout(FlowInterruptedException')
    assert !(acrossSteps =~ /\bfor \([^;]*( in |:)[^;]*\)|\.(each|collect|find|any|every|eachWithIndex|findAll|sort|times)\w*\s*[{(]/)
}

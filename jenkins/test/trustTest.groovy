import com.cloudbees.groovy.cps.NonCPS
import groovy.json.JsonOutput
import hudson.model.FreeStyleBuild
import hudson.model.FreeStyleProject
import hudson.model.Label
import hudson.model.Queue
import hudson.model.Result
import hudson.slaves.DumbSlave
import hudson.slaves.SlaveComputer
import jenkins.model.CauseOfInterruption
import jenkins.model.Jenkins
import org.jenkinsci.plugins.workflow.steps.FlowInterruptedException
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.PlaceholderTask
import test.Sent

import java.lang.reflect.Modifier

/*
 * The step is a trusted library. A sandboxed Jenkinsfile may call every method, constructor and field that its classes
 * declare, `private` or not, as long as they are not synthetic (workflow-cps, GroovyClassLoaderWhitelist), and may set any
 * variable of its binding, `env` and `currentBuild` for two (script-security, SandboxInterceptor.onSetProperty).
 */

def test(String name, Closure body) { tests.test("trust: ${name}", body) }

/**
 * All that a Jenkinsfile can reach, and why it may. Whoever adds to the library adds here what the addition could be used
 * for by somebody who calls it directly, with arguments of his choice.
 */
Map<String, String> reviewed() {
    String steps = 'calls steps, as the Jenkinsfile can itself, and the classes below'
    String pure = 'computes'
    String own = 'returns an agent that this run was given, else throws'
    [
        'ecsAgent()'                                                 : 'the script; has no state',
        'ecsAgent.main([Ljava.lang.String;)'                         : 'every Groovy script has it; runs the empty script',
        'ecsAgent.run()'                                             : 'the empty script',
        'ecsAgent.call()'                                            : 'fails',
        'ecsAgent.call(java.util.Map)'                               : 'fails',
        'ecsAgent.call(groovy.lang.Closure)'                         : 'the step itself',
        'ecsAgent.call(java.util.Map, groovy.lang.Closure)'          : 'the step itself',
        'ecsAgent.onAgent(java.util.Map, int, groovy.lang.Closure)'  : steps,
        'ecsAgent.ask(java.util.Map, int, groovy.lang.Closure)'      : steps,
        'ecsAgent.awaitOutcome(java.util.Map, java.util.Map)'        : steps,
        'ecsAgent.receive(java.lang.Object, long)'                   : steps,
        'ecsAgent.askAgain(java.util.Map, java.util.Map)'            : steps,
        'ecsAgent.deliver(java.util.Map, java.util.Map, java.lang.String)': steps,
        'ecsAgent.complete(java.util.Map, java.util.Map, java.lang.String)': steps,
        'ecsAgent.connect(java.util.Map, java.util.Map)'             : steps,
        'ecsAgent.onNode(java.util.Map, boolean, groovy.lang.Closure)': steps,
        'ecsAgent.lost(java.lang.String)'                            : 'prints and throws',
        'ecsAgent.register(java.util.Map, java.lang.String)'         : steps,
        'ecsAgent.requestId(java.lang.String)'                       : pure,
        'ecsAgent.readNotice(java.lang.String, java.lang.String, java.lang.String)': pure,
        'ecsAgent.failureMessage(java.lang.String, java.util.Map, java.lang.Object)': pure,
        'ecsAgent.stateOf(java.lang.String, java.lang.String)'       : own,
        'ecsAgent.tailOfLog(java.lang.String, java.lang.String)'     : own,
        'ecsAgent.isTimeout(org.jenkinsci.plugins.workflow.steps.FlowInterruptedException)': pure,
        'ecsAgent.isLoss(org.jenkinsci.plugins.workflow.steps.FlowInterruptedException)': pure,
        'ecsAgent.now()'                                             : pure,
        'EcsAgentSettings()'                                         : 'has no state',
        'EcsAgentSettings.NUMBERS'                                   : 'cannot be changed',
        'EcsAgentSettings.WORDS'                                     : 'cannot be changed',
        'EcsAgentSettings.OTHERS'                                    : 'cannot be changed',
        'EcsAgentSettings.overrides(java.util.Map, java.util.List)'  : pure,
        'EcsAgentSettings.environment(java.lang.Object, java.util.List)': pure,
        'EcsAgentSettings.read(java.util.Map)'                       : pure,
        'EcsAgentSettings.global()'                                  : 'a copy of three variables that every build has in its environment',
        'EcsAgentSettings.plain(java.lang.Object, int)'              : pure,
        'EcsAgentOwn(java.lang.String)'                              : 'takes the run from the engine',
        'EcsAgentOwn.runId'                                          : 'final', 'EcsAgentOwn.getRunId()': pure,
        'EcsAgentOwn.requestId'                                      : 'final', 'EcsAgentOwn.getRequestId()': pure,
        'EcsAgentOwn.job'                                            : 'final', 'EcsAgentOwn.getJob()': pure,
        'EcsAgentOwn.number'                                         : 'final', 'EcsAgentOwn.getNumber()': pure,
        'EcsAgentOwn.url'                                            : 'final', 'EcsAgentOwn.getUrl()': pure,
        'EcsAgentOwn.gave(java.lang.String)'                         : pure,
        'EcsAgentOwn.mustHaveGiven(java.lang.String)'                : pure,
        'EcsAgentOwn.node(java.lang.String)'                         : own,
        'EcsAgentOwn.taskOf(java.lang.String)'                       : own,
        'EcsAgentOwn.sha256(java.lang.String)'                       : pure,
        'EcsAgentPost(java.util.Map, java.lang.String, long)'        : 'a request of this very run',
        'EcsAgentPost(java.lang.String, java.lang.String, java.lang.String)': 'a completion of this very run',
        'EcsAgentPost.LIMIT_MILLIS'                                  : 'final',
        'EcsAgentPost.ON_THEIR_WAY'                                  : 'of this build alone, since each build loads the library anew',
        'EcsAgentPost.target'                                        : 'final', 'EcsAgentPost.message': 'final',
        'EcsAgentPost.request(java.util.Map, java.lang.String, long)': 'posts a request of this very run',
        'EcsAgentPost.completion(java.lang.String, java.lang.String, java.lang.String)': 'posts a completion of this very run',
        'EcsAgentPost.start(java.lang.String, EcsAgentPost)'         : 'posts what could only be made for this very run',
        'EcsAgentPost.outcome(java.lang.String)'                     : 'of a post of this build',
        'EcsAgentPost.buildOf(EcsAgentOwn)'                          : pure,
        'EcsAgentPost.now()'                                         : pure,
        'EcsAgentPost.call()'                                        : 'posts what could only be made for this very run',
        'EcsAgentPost.sdk(int)'                                      : 'one of four classes', 'EcsAgentPost.isTopic()': pure,
        'EcsAgentPost.region()'                                      : pure, 'EcsAgentPost.sendByV2()': 'as call()',
        'EcsAgentPost.sendByV1()'                                    : 'as call()', 'EcsAgentPost.sendByCli()': 'as call()',
        'EcsAgentWatch(java.lang.String, java.lang.String)'          : 'takes the run from the engine, and an agent that it was given',
        'EcsAgentWatch.SECONDS'                                      : 'final', 'EcsAgentWatch.execution': 'final',
        'EcsAgentWatch.agent'                                        : 'final',
        'EcsAgentWatch.isKnown'                                      : 'harms this run alone', 'EcsAgentWatch.absent': 'harms this run alone',
        'EcsAgentWatch.run()'                                        : 'looks whether the agent is there',
        'EcsAgentWatch.call()'                                       : 'ends what this run does on its own agent',
    ]
}

String signature(member, String name) { "${name}(${member.parameterTypes*.name.join(', ')})" }

List<Class> libraryClasses(Pipeline pipeline) {
    pipeline.loader.loadedClasses.findAll { !Closure.isAssignableFrom(it) }
}

/** Everything that the classes declare and that is not the compiler's. */
Map<String, Object> members(Pipeline pipeline) {
    Map members = [:]
    libraryClasses(pipeline).each { Class type ->
        type.declaredConstructors.findAll { !it.synthetic }.each { members[signature(it, type.name)] = it }
        type.declaredMethods.findAll { !it.synthetic && !(it.name =~ /^(__|this\$|super\$)/) }.each { members[signature(it, "${type.name}.${it.name}")] = it }
        type.declaredFields.findAll { !it.synthetic && !(it.name =~ /^__/) }.each { members["${type.name}.${it.name}".toString()] = it }
    }
    members
}

test('every method, constructor and field of the library is reviewed') {
    def pipeline = new Pipeline(tests.jenkins)
    Set found = members(pipeline).keySet()
    assert found - reviewed().keySet() == [] as Set
    assert reviewed().keySet() - found == [] as Set
}

test('the classes are final, and no field can be set but those that harm the build alone') {
    def pipeline = new Pipeline(tests.jenkins)
    libraryClasses(pipeline).findAll { !Script.isAssignableFrom(it) }.each { assert Modifier.isFinal(it.modifiers) }
    def settable = members(pipeline).findAll { name, member -> member instanceof java.lang.reflect.Field && !Modifier.isFinal(member.modifiers) }
    assert settable.keySet() == ['EcsAgentWatch.isKnown', 'EcsAgentWatch.absent'] as Set
    def settings = pipeline.loader.loadClass('EcsAgentSettings')
    ['NUMBERS', 'WORDS', 'OTHERS'].each { name ->
        def field = settings.getDeclaredField(name)
        field.accessible = true
        Tests.thrown(UnsupportedOperationException) { field.get(null).clear() }
    }
}

test('closures are those of methods that call steps, which become no classes in Jenkins') {
    def pipeline = new Pipeline(tests.jenkins)
    def closures = pipeline.loader.loadedClasses.findAll { Closure.isAssignableFrom(it) }
    assert closures
    closures.each { Class closure ->
        def of = closure.name =~ '^ecsAgent\\$_(\\w+?)_closure'
        assert of: closure.name
        assert pipeline.step.class.declaredMethods.findAll { it.name == of[0][1] }.every { it.getAnnotation(NonCPS) == null }
    }
}

test('what a message says cannot be changed') {
    def hostile = new Hostile(tests.jenkins)
    def post = hostile.pipeline.loader.loadClass('EcsAgentPost').newInstance(hostile.token, null, 'SUCCESS')
    String before = post.@message
    [{ post.@message = 'x' }, { post.message = 'x' }, { post.@target = 'x' }].each { Tests.thrown(GroovyRuntimeException, it) }
    assert post.@message == before
}

/** A map of a Jenkinsfile's own class: outside the build's thread its code would not be sandboxed. */
class ForeignMap extends LinkedHashMap {
    static final Set<Thread> THREADS = Collections.synchronizedSet([] as Set)
    Object get(Object key) { THREADS << Thread.currentThread(); super.get(key) }
    Set entrySet() { THREADS << Thread.currentThread(); super.entrySet() }
    String toString() { THREADS << Thread.currentThread(); super.toString() }
    int hashCode() { THREADS << Thread.currentThread(); super.hashCode() }
    boolean equals(Object other) { THREADS << Thread.currentThread(); super.equals(other) }
}

class Hostile {
    final Pipeline pipeline
    final File marker = new File(File.createTempDir(), 'ran')
    final String token = UUID.randomUUID().toString()
    final FreeStyleBuild victim = new FreeStyleBuild(parent: new FreeStyleProject(fullName: 'app/other'), number: 42)
    final String victimRequest = 'app/other/42/0123456789abcdef0123'
    final String victimAgent = Pipeline.agentName('a', victimRequest)
    final List results = []
    final String victimTask = 'arn:aws:ecs:eu-west-1:1:task/c/victim'

    Hostile(File jenkins) {
        pipeline = new Pipeline(jenkins)
        // What a Jenkinsfile can set, and what `withEnv` can.
        pipeline.env = [JOB_NAME: 'app/other', BUILD_NUMBER: '42', BUILD_URL: 'https://evil.example.com/', JENKINS_URL: 'https://evil.example.com/',
                        ECS_AGENTS_REQUESTS: 'https://sqs.eu-west-1.amazonaws.com/6/evil', ECS_AGENTS_COMPLETIONS: 'https://sqs.eu-west-1.amazonaws.com/6/evil']
        pipeline.currentBuild = [number: 42, rawBuild: victim, currentResult: '; evil']
        node(victimAgent, victimRequest, victimTask)
        pipeline.computer(victimAgent).log = 'log of the victim'
        Jenkins.get().queue.items << new Queue.BuildableItem(new PlaceholderTask(ownerTask: victim.parent, ownerExecutable: victim,
            assignedLabel: Label.get(victimAgent)), 99, 0)
        // This run's own agent, in a node whose description the job's name tries to forge.
        node(ownAgent, ownRequest, "arn:aws:ecs:eu-west-1:1:task/c/own", "app/x, task ${victimTask}, logs: y")
    }

    String getOwnRequest() { pipeline.step.requestId(token) }
    String getOwnAgent() { Pipeline.agentName('a', ownRequest) }

    void node(String name, String request, String task, String build = 'app/other #42') {
        Jenkins.get().computerList << new SlaveComputer(new DumbSlave(nodeName: name, labelString: name,
            nodeDescription: "ECS agent of request ${request} for ${build} in cluster c of eu-west-1, task ${task}, logs: https://x"))
    }

    ForeignMap foreign(Map content) {
        def map = new ForeignMap()
        map.putAll(content)
        map
    }

    List values(Class type) {
        List commands = ['sh', '-c', "touch ${marker}".toString()]
        switch (type) {
            case List: return [[], foreign([:]).keySet() as List]
            case Map: return [
                foreign(label: 'a', overrides: foreign(cpu: foreign([:]))),
                [label: 'a', count: 1, timeout: 1, retry: 0, askAgain: 5, connectTimeout: 1, faults: [], command: commands,
                 requests: 'https://sqs.eu-west-1.amazonaws.com/6/evil', completions: 'https://sqs.eu-west-1.amazonaws.com/6/evil'],
                [label: "a\n${victimAgent}", count: 1, timeout: 1, retry: 0, askAgain: 5, connectTimeout: 1],
                foreign(token: token, agent: victimAgent, id: victimRequest, requestId: victimRequest, hook: [token: token],
                    deadline: 0, askedAt: 0, posted: true, label: 'a'),
                [token: token, agent: ownAgent, id: victimRequest, taskArn: victimTask, hook: new Pipeline.WebhookToken(token: token), deadline: 0, posted: true]]
            case String: return [null, token, victimRequest, victimAgent, ownAgent, 'https://sqs.eu-west-1.amazonaws.com/6/evil',
                JsonOutput.toJson([version: 1, type: 'agent.ready', requestId: ownRequest, agent: [name: victimAgent], task: [arn: victimTask]]),
                commands.join(' '), "request ${token}".toString()]
            case long: return [0L, Long.MAX_VALUE]
            case int: return [0, 2]
            case boolean: return [false, true]
            case Closure: return [{ -> pipeline.log << 'ran' }]
            case Binding: return [new Binding()]
            case Object: return [null, foreign([:]), commands, victim]
            case String[]: return [commands as String[]]
            case FlowInterruptedException: return [new FlowInterruptedException(Result.ABORTED, true, [getShortDescription: { 'x' }] as CauseOfInterruption)]
            default:
                assert type.name in ['EcsAgentOwn', 'EcsAgentPost']
                return [type.name == 'EcsAgentOwn' ? type.newInstance(token) : type.newInstance(token, ownAgent, 'SUCCESS')]
        }
    }

    List<List> arguments(member) {
        member.parameterTypes ? member.parameterTypes.collect { values(it) }.combinations() : [[]]
    }

    List receivers(member) {
        Class type = member.declaringClass
        if (Script.isAssignableFrom(type)) {
            return [pipeline.step]
        }
        type.declaredConstructors.collectMany { constructor ->
            constructor.accessible = true
            arguments(constructor).collect { arguments ->
                try {
                    constructor.newInstance(arguments as Object[])
                } catch (java.lang.reflect.InvocationTargetException ignored) {
                    null
                }
            }
        }.findAll()
    }

    void attempt(Closure call) {
        try {
            results << call()
        } catch (Throwable ignored) {
            // What it has done is what counts.
        }
        try {
            long until = pipeline.clock + 60_000
            pipeline.after(60) { }
            pipeline.await { pipeline.clock >= until }
        } catch (Throwable ignored) {
            pipeline.events.clear()
        }
    }

    void check(String what) {
        assert !marker.exists(): what
        assert ForeignMap.THREADS - Thread.currentThread() == [] as Set: what
        assert Sent.ALL*.getAt(2).every { it in pipeline.global.values() }: what
        Tests.sent().each {
            assert it.requestId ==~ 'app/main/42/[0-9a-f]{20}' && it.build.subMap('job', 'number') == [job: 'app/main', number: 42]: what
            assert it.build.url.startsWith('https://jenkins.example.com/job/app/job/main/42')
            assert it.webhookUrl == null || it.webhookUrl ==~ 'https://jenkins.example.com/webhook-step/[0-9a-f-]{36}'
            assert it.agent == null || it.agent.endsWith(Pipeline.agentName('a', it.requestId).drop(5))
            assert it.taskArn == null || it.taskArn.tokenize('/').last() in ['own', it.agent]: what
        }
        assert Jenkins.get().queue.items*.id.contains(99L): what
        assert results.every { !"${it}".contains('log of the victim') }: what
    }
}

test('no method does anything for a caller that this run may not do') {
    int calls = 0
    members(new Pipeline(tests.jenkins)).findAll { name, member -> !(member instanceof java.lang.reflect.Field) }.keySet().each { String name ->
        def hostile = new Hostile(tests.jenkins)
        def member = members(hostile.pipeline)[name]
        member.accessible = true
        Sent.ALL.clear()
        ForeignMap.THREADS.clear()
        if (member instanceof java.lang.reflect.Constructor) {
            hostile.receivers(member)
        } else {
            (Modifier.isStatic(member.modifiers) ? [null] : hostile.receivers(member)).each { receiver ->
                hostile.arguments(member).each { arguments ->
                    calls++
                    hostile.attempt { member.invoke(receiver, arguments as Object[]) }
                }
            }
        }
        hostile.check(name)
    }
    assert calls > 1000
}

test('a step of a Jenkinsfile that has set env and currentBuild asks as its own run') {
    def hostile = new Hostile(tests.jenkins)
    hostile.pipeline.after(1) { hostile.pipeline.ready() }
    hostile.pipeline.ecsAgent(hostile.foreign(label: "a${1}", overrides: hostile.foreign(environment: hostile.foreign(A: 'b')))) { }
    hostile.check('the step')
    assert Tests.sent('requests')*.overrides == [[environment: [A: 'b']]] && Tests.sent('completions')*.result == ['FAILURE']
}

test('a notice that names another\'s agent is none') {
    def hostile = new Hostile(tests.jenkins)
    hostile.pipeline.after(1) { hostile.pipeline.notify([type: 'agent.ready', agent: [name: hostile.victimAgent], task: [arn: hostile.victimTask]]) }
    hostile.pipeline.after(2) { hostile.pipeline.ready() }
    hostile.pipeline.ecsAgent(label: 'a') { }
    assert !(hostile.victimAgent in hostile.pipeline.nodes)
    hostile.check('the step')
}

test('a task is taken from the last marker of the description of this run\'s own node') {
    def hostile = new Hostile(tests.jenkins)
    def own = hostile.pipeline.loader.loadClass('EcsAgentOwn').newInstance(hostile.token)
    assert own.taskOf(hostile.ownAgent) == 'arn:aws:ecs:eu-west-1:1:task/c/own'
    Jenkins.get().getNode(hostile.ownAgent).nodeDescription = "ECS agent of request ${hostile.victimRequest} for x in cluster c of r, task ${hostile.victimTask}"
    assert own.taskOf(hostile.ownAgent) == null
    Jenkins.get().getNode(hostile.ownAgent).nodeDescription = "ECS agent of request ${hostile.ownRequest} for x in cluster c of r, made by hand"
    assert own.taskOf(hostile.ownAgent) == null
    Tests.thrown(IllegalArgumentException) { own.taskOf(hostile.victimAgent) }
}

test('the name of an agent is that of the functions') {
    // The same pair stands in shared/src/name.rs.
    assert Pipeline.agentName('maven', 'app/main/42/0a1b2c3d4e5f') == 'ecs-maven-55d903eae0d8'
}

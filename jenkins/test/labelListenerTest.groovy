import hudson.ExtensionList
import hudson.model.ExecutorListener
import hudson.model.FreeStyleBuild
import hudson.model.Label
import hudson.model.Node
import hudson.model.OneOffExecutor
import hudson.model.Queue
import hudson.model.Result
import hudson.model.queue.CauseOfBlockage
import hudson.model.queue.QueueListener
import hudson.model.queue.QueueTaskDispatcher
import jenkins.model.NodeListener
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.PlaceholderExecutable
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.PlaceholderTask
import org.jenkinsci.plugins.workflow.support.steps.ExecutorStepExecution.RemovedNodeCause
import test.Sent

import java.time.Instant

Controller newController(String settings = Controller.SETTINGS) { new Controller(tests.jenkins, settings) }
List requests() { Tests.sent('requests') }
List completions() { Tests.sent('completions') }
def test(String name, Closure body) { tests.test("label listener: ${name}", body) }

test('an item that nobody can take is asked for once') {
    def controller = newController()
    controller.with {
        def item = enqueue(job('linux&&maven'))
        assert Sent.ALL.empty // the queue has not tried yet
        pass(2)
        listeners(QueueListener)*.onEnterBuildable(item) // blocked for a moment, and back
        pass(600)
    }
    assert requests().size() == 1
    Map request = requests()[0]
    assert request.remove('requestId') ==~ 'queue/01234567/7-[0-9a-z]+/1'
    assert request.remove('expiresAt') ==~ /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ/
    assert request == [version: 1, label: 'linux&&maven', count: 1,
                       build: [job: 'team/app', url: 'https://jenkins.example.com/job/team/job/app/']]
}

test('a node block of a pipeline is asked for with its build') {
    def controller = newController()
    def run = new FreeStyleBuild(parent: controller.job('x', 'pipe'), number: 3)
    controller.enqueue(new PlaceholderTask(ownerTask: run.parent, ownerExecutable: run, assignedLabel: Label.get('linux')))
    controller.pass(2)
    assert requests()*.build == [[job: 'pipe', number: 3, url: 'https://jenkins.example.com/job/pipe/3/']]
}

test('a controller without a root URL can ask') {
    def controller = newController()
    controller.jenkins.rootUrl = null
    controller.enqueue(controller.job('linux'))
    controller.pass(2)
    assert requests()*.build == [[job: 'team/app']]
}

test('what no template serves is left alone') {
    def controller = newController()
    ['windows', 'maven&&node', 'ecs-maven-0a1b2c3d4e5f', null].eachWithIndex { label, i -> controller.enqueue(controller.job(label), i) }
    controller.enqueue([getAssignedLabel: { Label.get('linux') }] as Queue.FlyweightTask, 9)
    controller.pass(600)
    assert Sent.ALL.empty
}

test('what an idle node can take is left to it') {
    def controller = newController()
    def own = controller.node('static', 'linux')
    controller.enqueue(controller.job('linux'))
    controller.pass(30)
    assert Sent.ALL.empty
    own.online = false
    controller.pass(60)
    assert requests().size() == 1
}

test('a busy node is not waited for') {
    def controller = newController()
    controller.node('static', 'linux').executors[0].currentExecutable = new FreeStyleBuild()
    controller.enqueue(controller.job('linux'))
    controller.pass(2)
    assert requests().size() == 1
}

test('what was taken at once is not asked for') {
    def controller = newController()
    def own = controller.node('static', 'linux')
    def item = controller.enqueue(controller.job('linux'))
    controller.take(item, own, new FreeStyleBuild())
    controller.pass(600)
    assert Sent.ALL.empty && controller.pending == 0
}

test('a freestyle build gives its agent back, with its result') {
    def controller = newController()
    def item = controller.enqueue(controller.job('linux'))
    controller.pass(2)
    String id = requests()[0].requestId
    def agent = controller.agent('ecs-maven-1', id)
    def build = new FreeStyleBuild(parent: item.task, number: 12, result: Result.SUCCESS)
    def executor = controller.take(item, agent, build)
    assert completions() == []
    controller.finish(executor, item.task)
    assert completions() == [[version: 1, requestId: id, agent: 'ecs-maven-1', taskArn: 'arn:aws:ecs:eu-west-1:1:task/c/ecs-maven-1',
                              build: [job: 'team/app', number: 12, url: 'https://jenkins.example.com/job/team/job/app/12/'], result: 'SUCCESS']]
}

test('an agent takes no second build, not even after a restart') {
    def controller = newController()
    def item = controller.enqueue(controller.job('linux'))
    def agent = controller.agent('ecs-maven-1', 'queue/01234567/7-a/1')
    controller.take(item, agent, new FreeStyleBuild(parent: item.task, number: 1))
    def second = controller.enqueue(controller.job('linux'), 8)
    assert agent.node.canTake(second) != null
    assert controller.jenkins.updated == [agent.node] // its labels are on disk
    controller.boot()
    assert controller.jenkins.computers[0].acceptingTasks
    assert controller.jenkins.nodes[0].canTake(second) != null
}

test('a pipeline that goes on after a restart keeps its agent') {
    def controller = newController()
    def agent = controller.agent('ecs-maven-1', 'queue/01234567/7-a/1')
    def run = new FreeStyleBuild(parent: controller.job('x', 'pipe'), number: 3)
    def task = new PlaceholderTask(ownerTask: run.parent, ownerExecutable: run, assignedLabel: Label.get('linux'))
    def block = new PlaceholderExecutable(continues: true)
    def executor = controller.take(controller.enqueue(task), agent, block)
    controller.finish(executor, task)
    assert completions() == []
    controller.boot()
    executor = controller.take(controller.enqueue(task, 8), controller.jenkins.computers[0], new PlaceholderExecutable())
    controller.finish(executor, task)
    assert completions()*.build*.number == [3] && completions()*.result == [null] && completions()*.agent == ['ecs-maven-1']
}

test('a block that fails gives its agent back as failed') {
    def controller = newController()
    def agent = controller.agent('ecs-maven-1', 'queue/01234567/7-a/1')
    def run = new FreeStyleBuild(parent: controller.job('x', 'pipe'), number: 3)
    def task = new PlaceholderTask(ownerTask: run.parent, ownerExecutable: run, assignedLabel: Label.get('linux'))
    controller.finish(controller.take(controller.enqueue(task), agent, new PlaceholderExecutable()), task, new IOException('gone'))
    assert completions()*.result == ['FAILURE']
}

test('a build whose node is deleted meanwhile gives its agent back all the same') {
    def controller = newController()
    def item = controller.enqueue(controller.job('linux'))
    controller.pass(2)
    String id = requests()[0].requestId
    def agent = controller.agent('ecs-maven-1', id)
    def executor = controller.take(item, agent, new FreeStyleBuild(parent: item.task, number: 12, result: Result.ABORTED))
    controller.delete(agent)
    assert executor.owner.node == null
    controller.finish(executor, item.task)
    assert completions()*.subMap('requestId', 'agent', 'taskArn', 'result') ==
        [[requestId: id, agent: 'ecs-maven-1', taskArn: 'arn:aws:ecs:eu-west-1:1:task/c/ecs-maven-1', result: 'ABORTED']]
}

test('a description is believed where no job\'s name can reach') {
    def controller = newController()
    // A pipeline step's agent, of a job whose name looks like an id of ours.
    def step = controller.agent('ecs-a-1', 'queue/01234567/7-a/42/0123456789abcdef0123')
    def other = controller.agent('ecs-a-2', 'queue/76543210/7-a/1')
    [step, other].each { assert it.node.nodeDescription && controller.listeners(NodeListener)[0].agents.requestOf(it.node) == null }
    def agent = controller.agent('ecs-a-3', 'queue/01234567/7-a/1')
    agent.node.nodeDescription = agent.node.nodeDescription.replace('team/app ', 'team/x, task arn:aws:ecs:eu-west-1:1:task/c/other, y ')
    assert controller.listeners(NodeListener)[0].agents.taskOf(agent.node) == 'arn:aws:ecs:eu-west-1:1:task/c/ecs-a-3'
}

test('agents of other requests, of several executors and of other clouds are left alone') {
    def controller = newController()
    [controller.agent('ecs-a-1', 'app/main/42/0a1b2c3d4e5f', 'ecs-a-1'), controller.agent('ecs-a-2', 'queue/01234567/7-a/1', 'linux', 2),
     controller.node('static', 'linux')].eachWithIndex { agent, i ->
        def item = controller.enqueue(controller.job('linux'), i)
        def executor = controller.take(item, agent, new FreeStyleBuild(parent: item.task, number: 1))
        assert agent.acceptingTasks
        controller.finish(executor, item.task)
    }
    def agent = controller.agent('ecs-a-3', 'queue/01234567/8-a/1')
    controller.listeners(ExecutorListener)*.taskAccepted(new OneOffExecutor(agent), controller.job('linux'))
    assert agent.acceptingTasks && completions() == [] && controller.jenkins.updated == []
}

test('a cancelled item withdraws its request, and the agent on its way takes nothing') {
    def controller = newController()
    def item = controller.enqueue(controller.job('linux'))
    controller.pass(2)
    controller.leave(item, null)
    String id = requests()[0].requestId
    assert completions() == [[version: 1, requestId: id, result: 'ABORTED']] && controller.pending == 0
    assert !controller.agent('ecs-maven-1', id).acceptingTasks
    assert controller.agent('ecs-maven-2', 'queue/01234567/8-a/1').acceptingTasks
}

test('an item whose agent another has taken gets the other\'s, and gives that back') {
    def controller = newController()
    def first = controller.enqueue(controller.job('linux'), 1)
    def second = controller.enqueue(controller.job('linux'), 2)
    controller.pass(2)
    def ids = requests()*.requestId
    def a = controller.agent('ecs-maven-0', ids[0])
    controller.take(second, a, new FreeStyleBuild(parent: second.task, number: 1)) // the first's agent
    assert completions() == []
    controller.leave(first, null)
    // Nobody is left for the second's agent, which is still on its way.
    assert completions()*.requestId == [ids[1]] && a.executors[0].currentExecutable
    assert !controller.agent('ecs-maven-1', ids[1]).acceptingTasks
}

test('an item that takes an agent whose own item is gone gives its own request back') {
    def controller = newController()
    def item = controller.enqueue(controller.job('linux'), 1)
    controller.pass(2)
    def agent = controller.agent('ecs-maven-0', 'queue/01234567/9-a/1')
    controller.take(item, agent, new FreeStyleBuild(parent: item.task, number: 1))
    assert completions()*.requestId == requests()*.requestId
}

test('a cancelled item gives its idle agent back') {
    def controller = newController()
    def item = controller.enqueue(controller.job('node'))
    controller.pass(2)
    def agent = controller.agent('ecs-node-1', requests()[0].requestId, 'linux node')
    controller.leave(item, null)
    assert completions()*.requestId == requests()*.requestId && !agent.acceptingTasks
}

test('an item that is cancelled while its request is posted withdraws it') {
    def controller = newController()
    def item = controller.enqueue(controller.job('linux'))
    Sent.before = {
        Sent.before = null
        controller.leave(item, null)
    }
    controller.pass(600)
    assert completions()*.requestId == requests()*.requestId && requests().size() == 1 && controller.pending == 0
}

test('an item that another node has taken withdraws its request') {
    def controller = newController()
    def item = controller.enqueue(controller.job('linux'))
    controller.pass(2)
    controller.take(item, controller.node('static', 'linux'), new FreeStyleBuild(parent: item.task, number: 1))
    assert completions()*.requestId == requests()*.requestId
}

test('after a restart the same item asks under the same id') {
    def controller = newController()
    controller.enqueue(controller.job('linux'))
    controller.pass(2)
    controller.boot()
    controller.pass(2)
    assert requests().size() == 2 && requests()*.requestId.unique().size() == 1
}

test('after a restart an item that was asked for twice does not begin anew') {
    def controller = newController()
    controller.enqueue(controller.job('linux'))
    controller.pass(40 * 60)
    controller.boot()
    controller.pass(2)
    assert requests()*.requestId*.tokenize('/')*.last() == ['1', '2', '2']
    // The repeated one ends when it would have, and the next is another.
    assert Instant.parse(requests()[2].expiresAt).epochSecond - Instant.parse(requests()[1].expiresAt).epochSecond in -2L..0L
    controller.pass(30 * 60)
    assert requests()*.requestId*.tokenize('/')*.last() == ['1', '2', '2', '3']
}

test('an item that was blocked for long has a whole period for its agent') {
    def controller = newController()
    controller.pass(3600)
    controller.enqueue(controller.job('linux'), 7, 34)
    controller.pass(34 * 60)
    assert requests().size() == 1
    assert Instant.parse(requests()[0].expiresAt).epochSecond - controller.clock.intdiv(1000) in 50L..70L
    controller.pass(2 * 60)
    assert requests()*.requestId*.tokenize('/')*.last() == ['1', '2']
}

test('an item that waits is not asked for again before its time, though the clock was set back') {
    def controller = newController()
    def item = controller.enqueue(controller.job('linux'))
    controller.pass(2)
    controller.clock -= 5000
    controller.listeners(QueueListener)[0].agents.look(item.id)
    controller.pass(35 * 60)
    assert requests().size() == 1
    controller.pass(10)
    assert requests()*.requestId.unique().size() == 2
}

test('an item that still waits when its request has expired is asked for anew') {
    def controller = newController()
    controller.enqueue(controller.job('linux'))
    controller.pass(3)
    controller.pass(35 * 60)
    assert requests()*.requestId*.tokenize('/')*.last() == ['1', '2']
    controller.pass(24 * 3600)
    assert requests()*.requestId.unique().size() == requests().size()
}

test('a request that cannot be posted is tried again under the same id') {
    def controller = newController()
    Sent.fault = new IllegalStateException('throttled')
    controller.enqueue(controller.job('linux'))
    controller.pass(2)
    Sent.fault = null
    controller.pass(60)
    assert requests()*.requestId*.tokenize('/')*.last() == ['1']
    assert controller.log.any { it.contains('could not post') && it.contains('throttled') }
}

test('a fault of a post is one line, with what to fix') {
    // It comes once a minute for each item that waits.
    def controller = newController()
    Sent.fault = new IllegalStateException('AccessDenied')
    controller.enqueue(controller.job('linux'))
    controller.pass(2)
    assert controller.log.any { it.contains('AccessDenied') && it.contains('JenkinsPolicy') }
    assert controller.thrown.empty
}

test('running the script says what it serves, or what is missing') {
    // Whoever runs it in the script console sees its result, and nothing of the log.
    assert newController().installed.contains('linux maven; linux node')
    assert newController('templates =').installed.contains('templates: has to be')
    assert newController(null).installed.contains('there is no')
}

test('a blocked item is not asked for until it is back') {
    def controller = newController()
    def item = controller.enqueue(controller.job('linux'))
    controller.jenkins.queue.items[0] = new Queue.BlockedItem(item.task, item.id, item.inQueueSince)
    controller.pass(600)
    assert Sent.ALL.empty && controller.pending == 0
    controller.jenkins.queue.items.clear()
    controller.enqueue(item.task)
    controller.pass(2)
    assert requests().size() == 1
}

test('an item that is just starting is not asked for') {
    def controller = newController()
    controller.enqueue(controller.job('linux')).pending = true
    controller.pass(30)
    assert Sent.ALL.empty
}

test('a pipeline on a deleted agent ends at once, in a way that every retry takes for a lost agent') {
    def controller = newController()
    ['app/main/42/0123456789abcdef0123', 'queue/01234567/7-a/1'].each { request ->
        def agent = controller.agent('ecs-a-1', request)
        agent.executors[0].currentExecutable = new PlaceholderExecutable()
        List cancelled = []
        controller.block('ecs-a-1', agent, cancelled)
        controller.delete(agent)
        // As ExecutorStepExecution.RemovedNodeListener does it. What Executor.interrupt does is lost to `agent()` now and
        // then, and an actual interruption is retried by no plain `retry` (RetryStepExecution.matchesConditions).
        assert cancelled*.result == [Result.ABORTED] && cancelled*.actualInterruption == [false] && cancelled[0].causes*.class == [RemovedNodeCause]
        assert agent.executors[0].interruptedWith == null
    }
}

test('a block that waits for a deleted agent ends, one whose agent was made anew does not') {
    def controller = newController()
    def waiting = controller.block('ecs-a-1')
    def agent = controller.agent('ecs-a-1', 'app/main/42/0123456789abcdef0123')
    controller.delete(agent)
    def anew = controller.agent('ecs-a-1', 'app/main/42/0123456789abcdef0123')
    controller.pass(60)
    assert waiting.stopped == null
    controller.delete(anew)
    assert waiting.stopped == null
    controller.pass(15)
    assert waiting.stopped.causes*.class == [RemovedNodeCause] && !waiting.stopped.actualInterruption
}

test('blocks on other nodes, and on nodes that are not ours, are left alone') {
    def controller = newController()
    List cancelled = []
    def own = controller.node('static', 'linux')
    controller.block('static', own, cancelled)
    def waiting = controller.block('static')
    controller.delete(own)
    controller.delete(controller.agent('ecs-a-2', 'queue/01234567/7-a/1'))
    controller.pass(60)
    assert cancelled == [] && waiting.stopped == null
}

test('a controller without pipelines deletes nodes') {
    def controller = newController()
    controller.jenkins.pluginManager.uberClassLoader = new ClassLoader(null) { }
    controller.delete(controller.agent('ecs-a-2', 'queue/01234567/7-a/1'))
    assert controller.log == []
}

test('while Jenkins prepares to shut down, nothing is asked for') {
    // onEnterBuildable is fired all the same, and items stay buildable.
    def controller = newController()
    controller.jenkins.quietingDown = true
    controller.enqueue(controller.job('linux'))
    controller.pass(600)
    assert Sent.ALL.empty
    controller.jenkins.quietingDown = false
    controller.pass(5)
    assert requests().size() == 1
}

test('a node that a dispatcher vetoes takes nothing') {
    def controller = newController()
    controller.node('static', 'linux')
    ExtensionList.lookup(QueueTaskDispatcher).add([canTake: { Node node, Queue.BuildableItem item -> new CauseOfBlockage() }] as QueueTaskDispatcher)
    controller.enqueue(controller.job('linux'))
    controller.pass(2)
    assert requests().size() == 1
}

test('an item that an idle node seems to be about to take looks again soon') {
    def controller = newController()
    def own = controller.node('static', 'linux')
    controller.enqueue(controller.job('linux'))
    controller.pass(2)
    own.executors[0].currentExecutable = new FreeStyleBuild()
    controller.pass(5)
    assert requests().size() == 1
}

test('a topic is posted to where one is set') {
    def controller = newController(Controller.SETTINGS.replaceAll('https://sqs.eu-west-1.amazonaws.com/1/', 'arn:aws:sns:eu-west-2:1:'))
    controller.enqueue(controller.job('linux'))
    controller.pass(2)
    assert Sent.ALL*.take(3) == [['sns v2', 'eu-west-2', 'arn:aws:sns:eu-west-2:1:requests']]
}

test('version 1 of the SDK serves as well') {
    def controller = newController()
    def all = controller.jenkins.pluginManager.uberClassLoader
    controller.jenkins.pluginManager.uberClassLoader = new ClassLoader(all) {
        Class<?> loadClass(String name) {
            if (name.startsWith('software.')) {
                throw new ClassNotFoundException(name)
            }
            all.loadClass(name)
        }
    }
    def agents = controller.listeners(QueueListener)[0].agents
    agents.send('https://sqs.eu-west-1.amazonaws.com/1/requests', [a: 1])
    agents.send('arn:aws:sns:eu-west-1:1:requests', [a: 1])
    assert Sent.ALL*.take(2) == [['sqs v1', 'eu-west-1'], ['sns v1', 'eu-west-1']]
}

test('changed settings count without a restart, invalid ones are logged and do not') {
    def controller = newController()
    controller.settings.text = Controller.SETTINGS.replace('linux node', 'windows')
    controller.settings.lastModified = 1_000_000_000_000L
    controller.enqueue(controller.job('windows'))
    assert controller.listeners(QueueListener)[0].agents.@items.isEmpty() // the queue waits for no file
    controller.pass(12)
    assert requests().size() == 1
    controller.settings.text = 'requests = nowhere\ngraceSeconds = 0'
    controller.settings.lastModified = 1_100_000_000_000L
    controller.enqueue(controller.job('windows'), 8)
    controller.pass(2)
    assert requests().size() == 2
    String logged = controller.log.find { it.contains('requests: has') }
    ['completions: has', 'templates: has', 'graceSeconds: has', 'the settings of before count'].each { assert logged.contains(it) }
}

test('without settings, or with wrong ones from the start, nothing is done') {
    def controller = newController(null)
    assert ExtensionList.lookup(QueueListener).empty && controller.log.any { it.contains('ecs-agents.properties') }
    controller = newController('requests =')
    controller.enqueue(controller.job('linux'))
    controller.pass(600)
    assert Sent.ALL.empty
}

test('running the script again replaces what it has installed') {
    def controller = newController()
    controller.enqueue(controller.job('linux'))
    controller.install()
    [QueueListener, ExecutorListener, NodeListener].each { assert ExtensionList.lookup(it).size() == 1 }
    controller.pass(2)
    assert requests().size() == 1
}

test('a label with a quotation mark is refused') {
    def controller = newController(Controller.SETTINGS.replace('linux maven', "linux 'maven"))
    assert controller.log.any { it.contains("a label cannot have a '") }
}

test('no error that is no exception reaches the queue or an executor') {
    def controller = newController()
    controller.listeners(QueueListener)*.agents*.metaClass*.left = { Queue.LeftItem item -> throw new NoSuchMethodError('removed') }
    controller.leave(controller.enqueue(controller.job('linux')), null)
    assert controller.log.size() == 1
}

test('no fault reaches the queue or an executor') {
    def controller = newController()
    controller.listeners(QueueListener)*.onEnterBuildable(null)
    controller.listeners(QueueListener)*.onLeft(null)
    controller.listeners(ExecutorListener)*.taskAccepted(null, null)
    controller.listeners(ExecutorListener)*.taskCompleted(null, null, 1L)
    assert controller.log.size() == 4
}

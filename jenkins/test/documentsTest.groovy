import org.codehaus.groovy.control.CompilerConfiguration

/** Runs an example without carrying out its steps: each block runs once, and whatever has no value stands for itself. */
abstract class Example extends Script {
    /** The parameters of every call of ecsAgent. */
    final List<Map> requests = []

    def invokeMethod(String name, Object arguments) {
        def list = arguments as List
        if (name == 'ecsAgent') {
            assert list.first() instanceof Map && list.last() instanceof Closure
            requests << list.first()
        }
        list.findAll { it instanceof Closure }.each { Closure block ->
            block.delegate = this
            block([name: 'ecs-maven-0a1b2c3d4e5f', index: 0])
        }
    }

    def getProperty(String name) {
        switch (name) {
            case 'requests': return requests
            case 'env': return [NODE_NAME: 'ecs-maven-0a1b2c3d4e5f']
            case 'ecsAgent': return new Expando(stateOf: { String token, String agent -> })
            default: return name
        }
    }
}

def pipeline = new Pipeline(tests.jenkins)
def settings = pipeline.loader.loadClass('EcsAgentSettings')
def shell = new GroovyShell(getClass().classLoader, new CompilerConfiguration(scriptBaseClass: Example.name))
def root = tests.jenkins.parentFile
def documents = [new File(root, 'README.md'), new File(tests.jenkins, 'README.md')] +
    new File(root, 'docs').listFiles().findAll { it.name.endsWith('.md') }.sort()
int examples = 0

documents.each { File file ->
    (file.text =~ /(?ms)^( *)```groovy\n(.*?)^\1```$/).eachWithIndex { found, int index ->
        examples++
        tests.test("example ${index + 1} of ${file.name} runs, and ecsAgent accepts its parameters") {
            def script = shell.parse(found[2].replaceAll('(?m)^ *@Library.*$', ''))
            script.run()
            script.requests.each { assert settings.read(it).faults == [] }
        }
    }
}

tests.test('the documents have examples') {
    assert examples > 5
}

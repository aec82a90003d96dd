new File(tests.jenkins, 'examples').listFiles().sort().each { File file ->
    tests.test("${file.name} is Groovy") {
        def script = new GroovyShell(getClass().classLoader).parse(file.text.replaceAll('(?m)^@Library.*$', ''))
        assert script
    }
}

tests.test('the scripted example runs') {
    def pipeline = new Pipeline(tests.jenkins)
    pipeline.after(1) { pipeline.ready('ecs-maven-0') }
    def commands = []
    def shell = new GroovyShell(getClass().classLoader, new Binding(
        scm: 'scm',
        stage: { String name, Closure body -> body() },
        ecsAgent: { Map args, Closure body -> pipeline.ecsAgent(args, body) },
        checkout: { }, stash: { }, unstash: { }, echo: { },
        sh: { String command ->
            commands << [pipeline.node, command.tokenize(' ').last()]
            if (commands.size() == 1) {
                3.times { int i -> pipeline.after(10 + i) { pipeline.ready("ecs-maven-1${i}", i) } }
            }
        }))
    shell.evaluate(new File(tests.jenkins, 'examples/scripted.Jenkinsfile').text.replaceAll('(?m)^@Library.*$', ''))
    assert commands == [['ecs-maven-0', 'package'], ['ecs-maven-10', '1/3'], ['ecs-maven-11', '2/3'], ['ecs-maven-12', '3/3']]
}

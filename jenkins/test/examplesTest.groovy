new File(tests.jenkins, 'examples').listFiles().sort().each { File file ->
    tests.test("${file.name} is Groovy") {
        def script = new GroovyShell(getClass().classLoader).parse(file.text.replaceAll('(?m)^@Library.*$', ''))
        assert script
    }
}

tests.test('the scripted example runs') {
    def pipeline = new Pipeline(tests.jenkins)
    4.times { int i -> pipeline.after(1 + 2 * i) { pipeline.ready('maven') } }
    def commands = []
    def shell = new GroovyShell(getClass().classLoader, new Binding(
        scm: 'scm',
        stage: { String name, Closure body -> body() },
        ecsAgent: { Map args, Closure body -> pipeline.ecsAgent(args, body) },
        checkout: { }, stash: { }, unstash: { }, echo: { },
        sh: { String command -> commands << [pipeline.node, command.tokenize(' ').last()] }))
    shell.evaluate(new File(tests.jenkins, 'examples/scripted.Jenkinsfile').text.replaceAll('(?m)^@Library.*$', ''))
    assert commands*.getAt(1) == ['package', '1/3', '2/3', '3/3']
    assert commands*.getAt(0) == Pipeline.requests()*.requestId.collect { Pipeline.agentName('maven', it) }
}

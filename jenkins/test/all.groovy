File here = new File(getClass().protectionDomain.codeSource.location.toURI()).parentFile
def tests = new Tests(here.parentFile)
['ecsAgentTest', 'trustTest', 'labelListenerTest', 'examplesTest', 'documentsTest'].each {
    new GroovyShell(getClass().classLoader, new Binding(tests: tests)).evaluate(new File(here, "${it}.groovy"))
}
println "${tests.passed} passed, ${tests.failed} failed"
System.exit(tests.failed ? 1 : 0)

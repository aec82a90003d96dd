import org.codehaus.groovy.ast.ClassCodeVisitorSupport
import org.codehaus.groovy.ast.ClassNode
import org.codehaus.groovy.ast.expr.ClassExpression
import org.codehaus.groovy.ast.expr.GStringExpression
import org.codehaus.groovy.classgen.GeneratorContext
import org.codehaus.groovy.control.CompilePhase
import org.codehaus.groovy.control.CompilerConfiguration
import org.codehaus.groovy.control.SourceUnit
import org.codehaus.groovy.control.customizers.CompilationCustomizer
import org.codehaus.groovy.control.customizers.ImportCustomizer

/** What a text takes for a variable and Jenkins for a class. */
class ClassesInTexts extends CompilationCustomizer {
    final List<String> found = []

    ClassesInTexts() { super(CompilePhase.CANONICALIZATION) }

    void call(SourceUnit source, GeneratorContext context, ClassNode node) {
        def visitor = new ClassCodeVisitorSupport() {
            protected SourceUnit getSourceUnit() { source }
            void visitGStringExpression(GStringExpression text) {
                found.addAll(text.values.findAll { it instanceof ClassExpression }*.text)
                super.visitGStringExpression(text)
            }
        }
        visitor.visitClass(node)
    }
}

new File(tests.jenkins, 'examples').listFiles().sort().each { File file ->
    tests.test("${file.name} is Groovy, and means no class of Jenkins by a variable") {
        // As Jenkins compiles a Jenkinsfile (workflow-cps, CpsGroovyShellFactory.makeImportCustomizer).
        def classes = new ClassesInTexts()
        def configuration = new CompilerConfiguration()
        configuration.addCompilationCustomizers(new ImportCustomizer().addStarImports('hudson.model', 'jenkins.model'), classes)
        new GroovyShell(getClass().classLoader, new Binding(), configuration).parse(file.text.replaceAll('(?m)^@Library.*$', ''))
        assert classes.found == []
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

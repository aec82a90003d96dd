import groovy.json.JsonSlurperClassic
import test.Sent

/** Runs tests, each in a world of its own, and counts them. */
class Tests {
    final File jenkins
    int passed
    int failed

    Tests(File jenkins) { this.jenkins = jenkins }

    void test(String name, Closure body) {
        Sent.ALL.clear()
        Sent.THREADS.clear()
        Sent.fault = null
        Sent.before = null
        try {
            body()
            passed++
        } catch (Throwable e) {
            failed++
            println "FAILED: ${name}"
            println org.codehaus.groovy.runtime.StackTraceUtils.sanitize(e).with { "${it}\n    ${it.stackTrace.findAll { !(it.className =~ /^(java|jdk|sun)\b|\$\w+\$\d+$/) }.take(5).join('\n    ')}" }
        }
    }

    /** The messages that went out, parsed. */
    static List<Map> sent(String target = '') {
        Sent.ALL.findAll { it[2].contains(target) }.collect { new JsonSlurperClassic().parseText(it[3]) }
    }

    static Throwable thrown(Class type = Throwable, Closure body) {
        try {
            body()
        } catch (Throwable e) {
            assert type.isInstance(e)
            return e
        }
        throw new AssertionError("no ${type.simpleName} was thrown")
    }
}

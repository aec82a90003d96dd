package org.jenkinsci.plugins.workflow.cps

import org.jenkinsci.plugins.workflow.flow.FlowExecution

/** What runs the program: `current()` is null on every other thread (CpsThread.CURRENT is a ThreadLocal). */
final class CpsThread {
    private static final ThreadLocal<CpsThread> CURRENT = new ThreadLocal<>()
    final FlowExecution execution
    private CpsThread(FlowExecution execution) { this.execution = execution }
    static CpsThread current() { CURRENT.get() }
    static void enter(FlowExecution execution) { CURRENT.set(new CpsThread(execution)) }
}

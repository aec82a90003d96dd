package jenkins.util

import java.util.concurrent.ScheduledExecutorService

class Timer {
    static ScheduledExecutorService instance
    static synchronized ScheduledExecutorService get() { instance }
}

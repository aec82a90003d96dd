package test;

import java.util.ArrayList;
import java.util.List;

/** What the stand-ins of the SDKs were given: service, region, target, message. */
public final class Sent {
    public static final List<List<String>> ALL = new ArrayList<>();
    public static final List<Thread> THREADS = new ArrayList<>();
    public static RuntimeException fault;
    public static Runnable before;

    private Sent() {
    }

    public static void add(String service, String region, String target, String message) {
        THREADS.add(Thread.currentThread());
        if (before != null) {
            before.run();
        }
        if (fault != null) {
            throw fault;
        }
        ALL.add(List.of(service, String.valueOf(region), target, message));
    }
}

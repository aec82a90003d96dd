package hudson

interface ExtensionPoint { }

class EnvVars extends TreeMap<String, String> { }

class AbortException extends IOException {
    AbortException(String message) { super(message) }
}

class PluginManager {
    ClassLoader uberClassLoader = PluginManager.class.classLoader
}

/** hudson.ExtensionList: a list that can be added to and removed from, one for each type. */
class ExtensionList<T> extends AbstractList<T> {
    static final Map<Class, ExtensionList> LISTS = [:]
    private final List<T> extensions = []

    static <T> ExtensionList<T> lookup(Class<T> type) { LISTS.computeIfAbsent(type) { new ExtensionList() } }

    T get(int index) { extensions.get(index) }
    int size() { extensions.size() }
    boolean add(T extension) { extensions.add(extension) }
    boolean remove(Object extension) { extensions.remove(extension) }
}

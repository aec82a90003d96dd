package hudson.util

class DescribableList extends ArrayList {
    def get(Class type) { find { type.isInstance(it) } }
}

interface VariableResolver<V> {
    V resolve(String name)
}

package hudson.util

interface VariableResolver<V> {
    V resolve(String name)
}

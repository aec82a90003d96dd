package hudson.model.labels

import hudson.model.Label
import hudson.util.VariableResolver

class LabelAtom extends Label {
    final String name
    LabelAtom(String name) { this.name = name }
    String getExpression() { name }
    boolean matches(VariableResolver<Boolean> resolver) {
        name.split('&&')*.trim().every { resolver.resolve(it) }
    }
    boolean equals(Object other) { other instanceof LabelAtom && other.name == name }
    int hashCode() { name.hashCode() }
}

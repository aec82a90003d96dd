//! Which environment variables a template or a request may set.

/// The environment override with a task's record of its request.
pub const REQUEST_RECORD: &str = "JENKINS_ECS_AGENTS_REQUEST";

/// The variables of every inbound agent's container, as the official inbound-agent image reads them: the controller's
/// URL, the node's name and secret, the working directory, and whether to use WebSocket.
pub const INBOUND_VARIABLES: [&str; 5] =
    ["JENKINS_URL", "JENKINS_AGENT_NAME", "JENKINS_SECRET", "JENKINS_AGENT_WORKDIR", "JENKINS_WEB_SOCKET"];

/// Other variables of the image: each would change which controller the agent calls or as whom, or end it if
/// it uses WebSocket.
const OTHER_INBOUND_VARIABLES: [&str; 5] =
    ["JENKINS_NAME", "JENKINS_TUNNEL", "JENKINS_DIRECT_CONNECTION", "JENKINS_INSTANCE_IDENTITY", "JENKINS_PROTOCOLS"];

/// They decide what the agent's JVM trusts and runs, so only a template may set them.
const TEMPLATE_VARIABLES: [&str; 2] = ["REMOTING_OPTS", "JENKINS_JAVA_OPTS"];

/// Whether the launch itself sets this variable, so that neither a template nor a request may. Case does not count:
/// neither the environment of Windows nor Jenkins' own distinguishes it.
pub fn is_reserved(name: &str) -> bool {
    is_any_of(reserved_names(), name)
}

pub(crate) fn reserved_names() -> impl Iterator<Item = &'static str> {
    [REQUEST_RECORD].into_iter().chain(INBOUND_VARIABLES).chain(OTHER_INBOUND_VARIABLES)
}

/// Whether only a template may set it, not a request.
pub fn is_for_templates_alone(name: &str) -> bool {
    is_any_of(TEMPLATE_VARIABLES, name)
}

fn is_any_of(names: impl IntoIterator<Item = &'static str>, name: &str) -> bool {
    names.into_iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Validates a variable for both the container in ECS and the builds of the node in Jenkins.
///
/// # Errors
/// Why one of the two cannot carry it.
pub fn check(name: &str, value: &str) -> Result<(), &'static str> {
    if name.trim().is_empty() || name.contains('=') || name.contains(char::is_control) {
        Err("cannot be a variable's name")
    } else if value.contains('\0') {
        Err("must not contain a NUL character")
    } else if value.contains("$$") {
        // `hudson.Util.replaceMacro`, which `hudson.EnvVars` is expanded with.
        Err("must not contain $$: Jenkins makes one $ of it, in freestyle builds twice")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_variables_that_ecs_or_jenkins_cannot_carry() {
        for (name, value) in [("", "x"), (" ", "x"), ("A=B", "x"), ("A\n", "x"), ("A", "a$$b"), ("A", "a\0")] {
            assert!(check(name, value).is_err(), "{name}={value:?}");
        }
        for (name, value) in [("A", ""), ("A", "$"), ("PATH", "/x:$PATH"), ("a.b", "x\ny")] {
            assert_eq!(check(name, value), Ok(()), "{name}={value:?}");
        }
    }

    #[test]
    fn reserves_variables_of_the_launch() {
        for name in ["JENKINS_SECRET", "jenkins_url", "JENKINS_ECS_AGENTS_REQUEST", "JENKINS_TUNNEL"] {
            assert!(is_reserved(name) && !is_for_templates_alone(name), "{name}");
        }
        for name in ["REMOTING_OPTS", "JENKINS_JAVA_OPTS"] {
            assert!(!is_reserved(name) && is_for_templates_alone(name), "{name}");
        }
    }
}

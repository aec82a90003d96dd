//! Which environment variables a template or a request may set.

use crate::message::Record;

/// What every inbound agent's container is given, as the official inbound-agent image reads it: the controller's URL,
/// the node's name and secret, the working directory, and whether to use WebSocket.
pub const INBOUND_VARIABLES: [&str; 5] =
    ["JENKINS_URL", "JENKINS_AGENT_NAME", "JENKINS_SECRET", "JENKINS_AGENT_WORKDIR", "JENKINS_WEB_SOCKET"];

/// What the image reads besides: each of them would change whom the agent calls and as whom, or end it beside WebSocket.
const OTHER_INBOUND_VARIABLES: [&str; 5] =
    ["JENKINS_NAME", "JENKINS_TUNNEL", "JENKINS_DIRECT_CONNECTION", "JENKINS_INSTANCE_IDENTITY", "JENKINS_PROTOCOLS"];

/// They decide what the agent's JVM trusts and runs, so that only a template may set them.
const TEMPLATE_VARIABLES: [&str; 2] = ["REMOTING_OPTS", "JENKINS_JAVA_OPTS"];

/// Whether the launch itself decides this variable, so that neither a template nor a request may set it.
pub fn is_reserved(name: &str) -> bool {
    name == Record::VARIABLE || INBOUND_VARIABLES.contains(&name) || OTHER_INBOUND_VARIABLES.contains(&name)
}

/// Whether a request may not set it, though a template may.
pub fn is_for_templates_alone(name: &str) -> bool {
    TEMPLATE_VARIABLES.contains(&name)
}

//! An agent on its way.

use shared::cloud::Cloud;
use shared::name::AgentName;
use shared::span::Ids;
use tracing::Span;

use crate::plan::Order;

/// An agent that is being placed.
#[derive(Clone, Copy)]
pub(crate) struct Agent<'a> {
    pub order: &'a Order<'a>,
    /// Its index among the agents of the request.
    pub index: u32,
    pub name: &'a AgentName,
    pub cloud: &'a Cloud,
}

/// The span of an agent within its request's span; the only agent of a request uses the request's span.
pub(crate) fn span(order: &Order<'_>, name: &AgentName) -> Span {
    let ids = Ids::of_agent(name);
    if order.agents.len() > 1 {
        return ids.span();
    }
    ids.record();
    Span::none()
}

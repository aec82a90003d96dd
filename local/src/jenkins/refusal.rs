//! Why a request fails.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::users::{Caller, Permission};

/// Why a request fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `AccessDeniedException3`: 403.
    Denied(Permission),
    /// `hudson.model.Failure`: 400, with the message for people.
    Failure(String),
    /// Any other exception: 500, the page `oops`, which writes the reason only to the log.
    Oops(String),
    /// Not found: 404.
    NotFound,
    /// A method annotated `@RequirePOST`: 405.
    PostOnly,
    /// `HttpResponses.status`: only the status; it does not name Jenkins.
    Plain(StatusCode),
    /// `HttpServletResponse.sendError`: a page of Jetty's, which does not name Jenkins.
    Jetty(StatusCode, &'static str),
}

pub(super) type Answered = Result<Response<Bytes>, Refusal>;

impl Caller {
    /// `AccessControlled.checkPermission`.
    pub(super) fn check(&self, permission: Permission) -> Result<(), Refusal> {
        if self.has(permission) { Ok(()) } else { Err(Refusal::Denied(permission)) }
    }
}

pub(super) fn oops(what: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal::Oops(format!("{what}: {error}"))
}

//! A request, as the pages of Jenkins see it.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, header};
use jiff::Timestamp;

use super::refusal::Refusal;

/// A request as Stapler sees it.
pub(super) struct Ask<'a> {
    pub(super) method: &'a Method,
    /// Relative to the context path, as it was sent: `/computer/…`.
    pub(super) path: &'a str,
    /// Of the query and, if the body is a form, of the body (`ServletRequest.getParameter`).
    pub(super) parameters: Vec<(String, String)>,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a Bytes,
    pub(super) at: Timestamp,
}

impl Ask<'_> {
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn header(&self, name: HeaderName) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    pub(super) fn is_post(&self) -> bool {
        self.method == Method::POST
    }

    /// `@RequirePOST`. (`@POST` differs: with another method there is no such page, and the answer is 404.)
    pub(super) fn post_only(&self) -> Result<(), Refusal> {
        if self.is_post() { Ok(()) } else { Err(Refusal::PostOnly) }
    }

    pub(super) fn session(&self) -> Option<String> {
        let cookies = self.header(header::COOKIE)?;
        cookies.split(';').find_map(|cookie| cookie.trim().strip_prefix("JSESSIONID=").map(str::to_owned))
    }
}

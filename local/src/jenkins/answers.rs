//! Answers: pages, refusals and those of the servlet container.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Jenkins;
use super::refusal::Refusal;
use super::users::{Caller, Permission};

impl Jenkins {
    /// A page of Jenkins' own (`lib/layout/layout.jelly`).
    pub(super) fn page(&self, status: StatusCode, title: &str, body: &str) -> Response<Bytes> {
        let title = escape(title);
        let html =
            format!("<!DOCTYPE html><html><head><title>{title} - Jenkins</title></head><body>{body}</body></html>");
        let mut response = answer(status, "text/html;charset=utf-8", html);
        self.name_jenkins(&mut response);
        set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        response
    }

    /// `Functions.advertiseHeaders`: pages and the API have these headers; redirects, plain answers and Jetty's own
    /// pages do not.
    pub(super) fn name_jenkins(&self, response: &mut Response<Bytes>) {
        set(response, HeaderName::from_static("x-hudson"), "1.395");
        set(response, HeaderName::from_static("x-jenkins"), &self.version);
        set(response, HeaderName::from_static("x-jenkins-session"), &self.digest("instance", "")[..8]);
    }

    /// `ResponseImpl.sendRedirect`, 302: `Location` has no host, since Jetty 12 leaves a path as it is.
    pub(super) fn redirect(&self, path: &str) -> Response<Bytes> {
        let mut response = plain(StatusCode::FOUND);
        set(&mut response, header::LOCATION, &format!("{}/{path}", self.context));
        response
    }

    pub(super) fn refuse(&self, refusal: Refusal, caller: &Caller) -> Response<Bytes> {
        match refusal {
            Refusal::Denied(permission) => self.denied(permission, caller),
            // `hudson.model.Failure` and `AbstractModelObject/error.jelly`, written as HTML: a paragraph has no end
            // tag. The exception's trace is in a comment. A header that Latin-1 cannot represent is omitted.
            Refusal::Failure(message) => {
                let text = message.replace('&', "&amp;").replace('<', "&lt;");
                let body = format!(
                    "<div id=\"main-panel\"><h1>Error</h1><p>{text}<!--hudson.model.Failure: {text}\n\tat \
                     java.base/java.lang.Thread.run--></div>"
                );
                let mut response = self.page(StatusCode::BAD_REQUEST, "Jenkins", &body);
                if message.chars().all(|letter| u8::try_from(letter).is_ok()) {
                    set(&mut response, HeaderName::from_static("x-error"), &message);
                }
                response
            }
            Refusal::Oops(_) => self.oops(),
            // `Jenkins.generateNotFoundResponse` and `Jenkins/_404.jelly`, whose title is a missing message.
            Refusal::NotFound => self.page(StatusCode::NOT_FOUND, "", "<h1>Oops!</h1><h2></h2>"),
            // `CrumbFilter/retry.jelly`, which replaces Stapler's own page and its header `Allow`.
            Refusal::PostOnly => {
                let body = "<h1>This URL requires POST</h1>";
                self.page(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed", body)
            }
            Refusal::Plain(status) => plain(status),
            Refusal::Jetty(status, message) => jetty(status, message),
        }
    }

    /// `Jenkins/oops.jelly`, which has the reason only if stack traces are shown.
    pub(super) fn oops(&self) -> Response<Bytes> {
        let body = "<h1>Oops!</h1><h2>A problem occurred while processing the request</h2>";
        self.page(StatusCode::INTERNAL_SERVER_ERROR, "Jenkins", body)
    }

    /// For an anonymous caller `HudsonAuthenticationEntryPoint`, which sends a browser to the login with a 403 and
    /// names no permission; for a known user `AccessDeniedHandlerImpl`, `accessDenied.jelly` and
    /// `AccessDeniedException3.reportAsHeaders`.
    fn denied(&self, permission: Permission, caller: &Caller) -> Response<Bytes> {
        if caller.is_anonymous() {
            let login = format!("{}/login?from=", self.context);
            let body = format!(
                "<html><head><meta http-equiv='refresh' content='1;url={login}'/></head><body style='background-color:\
                 white; color:white;'>\nAuthentication required\n<!--\n-->\n\n</body></html>"
            );
            let mut response = answer(StatusCode::FORBIDDEN, "text/html;charset=utf-8", body);
            self.name_jenkins(&mut response);
            return response;
        }
        let message = format!("{} is missing the {} permission", caller.name, permission.title());
        let body = format!("<h1>Access Denied</h1><p class=\"error\">{}", escape(&message));
        let mut response = self.page(StatusCode::FORBIDDEN, "Jenkins", &body);
        set(&mut response, HeaderName::from_static("x-you-are-authenticated-as"), &caller.name);
        set(&mut response, HeaderName::from_static("x-required-permission"), permission.id());
        for id in &permission.chain()[1..] {
            response.headers_mut().append("x-permission-implied-by", HeaderValue::from_static(id));
        }
        response
    }
}

/// `BasicAuthenticationEntryPoint`, as `SecurityRealm.createFilter` sets it up. Jetty's page: it does not name Jenkins.
pub(super) fn unauthenticated() -> Response<Bytes> {
    let mut response = jetty(StatusCode::UNAUTHORIZED, "Unauthorized");
    set(&mut response, header::WWW_AUTHENTICATE, "Basic realm=\"Jenkins\"");
    response
}

/// `HudsonIsLoading/index.jelly`.
pub(super) fn starting() -> Response<Bytes> {
    let body = "<!DOCTYPE html><html><head><title>Starting Jenkins</title></head><body><h1>Please wait while Jenkins is \
                getting ready to work</h1><p>Your browser will reload automatically when Jenkins is ready</p></body></html>";
    answer(StatusCode::SERVICE_UNAVAILABLE, "text/html;charset=utf-8", body.into())
}

/// A page of the servlet container's own; web.xml has pages of Jenkins' only for 404 and for exceptions.
pub(super) fn jetty(status: StatusCode, message: &str) -> Response<Bytes> {
    let code = status.as_u16();
    let body = format!(
        "<html><head><title>Error {code} {message}</title></head><body><h2>HTTP ERROR {code} {message}</h2></body></html>"
    );
    answer(status, "text/html;charset=iso-8859-1", body)
}

pub(super) fn plain(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

pub(super) fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Bytes> {
    let mut response = plain(status);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    *response.body_mut() = body.into();
    response
}

/// A header of Jetty's is Latin-1; other characters become blanks (`HttpGenerator.putSanitisedValue`).
pub(super) fn set(response: &mut Response<Bytes>, name: HeaderName, value: &str) {
    let latin: Vec<u8> = value.chars().map(|letter| u8::try_from(letter).unwrap_or(b' ')).collect();
    let value = HeaderValue::from_bytes(&latin).unwrap_or_else(|_| HeaderValue::from_static(""));
    response.headers_mut().insert(name, value);
}

pub(super) fn encode(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    utf8_percent_encode(text, RESERVED).to_string()
}

/// `Util.escape`: for HTML, preserving blanks.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\n' => escaped.push_str("<br>"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#039;"),
            ' ' if letters.peek() == Some(&' ') => escaped.push_str("&nbsp;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

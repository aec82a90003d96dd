//! The one place that notices and API calls may go to.

use url::Url;

/// Jenkins' root URL as a boundary: scheme, host and port are equal, and the path is at or under it.
#[derive(Debug, Clone)]
pub struct Origin(Url);

impl Origin {
    /// The boundary around a root URL.
    pub fn new(root: Url) -> Self {
        Self(root)
    }

    /// The URL, if it may be called.
    ///
    /// # Errors
    /// Why it may not. The text never repeats the URL's path, which may be a capability.
    pub fn allows(&self, raw: &str) -> Result<Url, String> {
        let root = &self.0;
        let refuse = |why: &str| Err(format!("{why}; only URLs under {root} are called"));
        // On the text as it came: a parser takes dots and backslashes away before anybody can see them.
        let lower = raw.to_ascii_lowercase().replace("%2e", ".").replace("%252e", ".");
        if lower.contains("..") {
            return refuse("the URL holds `..`");
        }
        if raw.contains('\\') || lower.contains("%5c") || raw.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return refuse("the URL holds a backslash, a space or a control character");
        }
        let url = match Url::parse(raw) {
            Ok(url) => url,
            Err(error) => return refuse(&format!("not a URL ({error})")),
        };
        if !url.username().is_empty() || url.password().is_some() || raw.split('/').nth(2).is_some_and(|host| host.contains('@')) {
            return refuse("the URL holds user info");
        }
        if url.scheme() != root.scheme() {
            return refuse(&format!("the scheme is {}", url.scheme()));
        }
        if url.host() != root.host() {
            return refuse(&format!("the host is {}", url.host_str().unwrap_or("missing")));
        }
        if url.port_or_known_default() != root.port_or_known_default() {
            return refuse("the port is another");
        }
        let path = root.path().trim_end_matches('/');
        match url.path().strip_prefix(path) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Ok(url),
            _ => refuse("the path is not under it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(root: &str) -> Origin {
        Origin::new(Url::parse(root).expect("a URL"))
    }

    #[test]
    fn only_jenkins_is_called() {
        let at_root = origin("https://jenkins.example.com/");
        let below = origin("https://example.com:8443/jenkins/");
        for (origin, url, allowed) in [
            (&at_root, "https://jenkins.example.com/webhook-step/6f0c", true),
            (&at_root, "https://jenkins.example.com:443/webhook-step/6f0c", true),
            (&at_root, "https://JENKINS.example.com/x", true),
            (&at_root, "https://jenkins.example.com", true),
            (&at_root, "http://jenkins.example.com/x", false),
            (&at_root, "https://jenkins.example.com:8443/x", false),
            (&at_root, "https://jenkins.example.com.evil.org/x", false),
            (&at_root, "https://evil.org/jenkins.example.com/", false),
            (&at_root, "https://user@jenkins.example.com/x", false),
            (&at_root, "https://jenkins.example.com@evil.org/x", false),
            (&at_root, "https://:@jenkins.example.com/x", false),
            (&at_root, "https://@jenkins.example.com/x", false),
            (&at_root, "http://169.254.169.254/latest/meta-data/", false),
            (&at_root, "https://169.254.169.254/", false),
            (&at_root, "//jenkins.example.com/x", false),
            (&at_root, "https:\\\\jenkins.example.com\\x", false),
            (&at_root, "https://jenkins.example.com\\@evil.org/", false),
            (&at_root, "https://jenkins.example.com/a/../b", false),
            (&at_root, "https://jenkins.example.com/a/%2e%2e/b", false),
            (&at_root, "https://jenkins.example.com/a/.%2E/b", false),
            (&at_root, "file:///etc/passwd", false),
            (&at_root, "javascript:alert(1)", false),
            (&at_root, "", false),
            (&below, "https://example.com:8443/jenkins/webhook-step/6f0c", true),
            (&below, "https://example.com:8443/jenkins", true),
            (&below, "https://example.com:8443/jenkinsfake/x", false),
            (&below, "https://example.com:8443/other/x", false),
            (&below, "https://example.com:8443/jenkins/../other", false),
            (&below, "https://example.com/jenkins/x", false),
        ] {
            assert_eq!(origin.allows(url).is_ok(), allowed, "{url}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_allowed_is_on_the_origin(url in "(https?:)?[/\\\\]{0,3}[a-z.@:%0-9/\\\\]{0,30}") {
            let origin = origin("https://a.b/c/");
            if let Ok(url) = origin.allows(&url) {
                prop_assert_eq!(url.origin(), origin.0.origin());
                prop_assert!(url.path() == "/c" || url.path().starts_with("/c/"));
                prop_assert!(url.username().is_empty() && url.password().is_none());
            }
        }
    }
}

//! The only origin that notices and API calls may go to.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use url::Url;

/// Jenkins' root URL as a boundary: scheme, host and port must be equal, and the path must be at or under it.
#[derive(Debug, Clone)]
pub struct Origin(Url);

/// Longer URLs are refused, since percent-encoding is removed layer by layer.
const LENGTH: usize = 2048;

impl Origin {
    /// The boundary around a root URL.
    pub fn new(mut root: Url) -> Self {
        // It is shown in refusals.
        let _ = root.set_username("");
        let _ = root.set_password(None);
        root.set_query(None);
        root.set_fragment(None);
        Self(root)
    }

    /// The URL, if it may be called.
    ///
    /// # Errors
    /// Why it may not be called. The text never repeats the URL's path, which may be a capability.
    pub fn allows(&self, raw: &str) -> Result<Url, String> {
        self.check(raw).map_err(|why| format!("{why}; only URLs under {} are called", self.0))
    }

    fn check(&self, raw: &str) -> Result<Url, String> {
        let refuse = |why: &str| Err(why.to_owned());
        if raw.len() > LENGTH {
            return Err(format!("the URL is longer than {LENGTH} characters"));
        }
        // On the original text: a parser removes some of this silently.
        let Some((_, rest)) = raw.split_once("://") else { return refuse("not an absolute URL") };
        if rest.split(['/', '?', '#', '\\']).next().is_some_and(|authority| authority.contains('@')) {
            return refuse("the URL holds user info");
        }
        let Some(bare) = decoded(raw) else { return refuse("the URL holds bytes that are not UTF-8") };
        if bare.contains("..") {
            return refuse("the URL holds `..`");
        }
        if bare.contains('\\') || bare.contains(char::is_control) || raw.contains(char::is_whitespace) {
            return refuse("the URL holds a backslash, a space or a control character");
        }
        let url = Url::parse(raw).map_err(|error| format!("not a URL ({error})"))?;
        let root = &self.0;
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("the URL holds user info");
        }
        if url.scheme() != root.scheme() {
            return Err(format!("the scheme is {}", url.scheme()));
        }
        if url.host() != root.host() {
            return Err(format!("the host is {}", url.host_str().unwrap_or("missing")));
        }
        // A parser reads `0x7f.1` and `127.0.0.1.` as 127.0.0.1; Jenkins does not write its URL like that.
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = match authority.find(']') {
            Some(end) => &authority[..=end],
            None => authority.split(':').next().unwrap_or_default(),
        };
        let is_own = root.host_str().is_some_and(|own| host.eq_ignore_ascii_case(own));
        if !is_own && (host.is_ascii() || root.domain().is_none()) {
            return refuse("the host is written in another way");
        }
        if url.port_or_known_default() != root.port_or_known_default() {
            return refuse("the port is another");
        }
        match url.path().strip_prefix(root.path().trim_end_matches('/')) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Ok(url),
            _ => refuse("the path is not under it"),
        }
    }
}

/// Without any layer of percent-encoding, if all of it is UTF-8.
fn decoded(raw: &str) -> Option<String> {
    let mut text = raw.to_owned();
    while let Cow::Owned(next) = percent_decode_str(&text).decode_utf8().ok()? {
        text = next;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(root: &str) -> Origin {
        Origin::new(Url::parse(root).expect("a URL"))
    }

    #[test]
    fn allows_only_urls_of_jenkins() {
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
            (&at_root, "https://jenkins.example.com/a/%252e%25252E/b", false),
            (&at_root, "https://jenkins.example.com/a/..;/b", false),
            (&at_root, "https://jenkins.example.com/a/%c0%ae%c0%ae/b", false),
            (&at_root, "https://jenkins.example.com/a%5c..%5cb", false),
            (&at_root, "https://jenkins.example.com/a%5cb", false),
            (&at_root, "https://jenkins.example.com/a%0d%0ab", false),
            (&at_root, "https://jenkins.example.com/a b", false),
            (&at_root, "https://jenkins.example.com/job/My%20Job/x?a=b@c", true),
            (&at_root, "https://jenkins.example.com?x", true),
            (&at_root, "https://jenkins.example.com.:443/x", false),
            (&at_root, "https://jenkins%2eexample.com/x", false),
            (&at_root, "https:jenkins.example.com/x", false),
            (&at_root, "ht\ntps://jenkins.example.com/x", false),
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
        let long = format!("https://jenkins.example.com/{}", "%25".repeat(LENGTH));
        assert!(at_root.allows(&long).is_err());
    }

    #[test]
    fn a_host_is_written_in_one_way() {
        let (by_ip, by_ip6) = (origin("http://127.0.0.1:8080"), origin("http://[::1]:8080/"));
        let by_idn = origin("https://bücher.example/");
        for (origin, url, allowed) in [
            (&by_ip, "http://127.0.0.1:8080/x", true),
            (&by_ip, "http://127.0.0.1.:8080/x", false),
            (&by_ip, "http://127.1:8080/x", false),
            (&by_ip, "http://2130706433:8080/x", false),
            (&by_ip, "http://0x7f.0.0.1:8080/x", false),
            (&by_ip, "http://\u{ff11}27.0.0.1:8080/x", false),
            (&by_ip6, "http://[::1]:8080/x", true),
            (&by_ip6, "http://[0::1]:8080/x", false),
            (&by_idn, "https://bücher.example/x", true),
            (&by_idn, "https://xn--bcher-kva.example/x", true),
        ] {
            assert_eq!(origin.allows(url).is_ok(), allowed, "{url}");
        }
    }

    #[test]
    fn a_refusal_repeats_neither_path_nor_user_info() {
        let root = origin("https://user:hunter2@jenkins.example.com/?hunter2#hunter2");
        for url in
            ["https://evil.org/hunter2", "https://jenkins.example.com:1/hunter2", "https://[hunter2", "x://y/hunter2"]
        {
            let refusal = root.allows(url).expect_err(url);
            assert!(!refusal.contains("hunter2") && refusal.contains("https://jenkins.example.com/"), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn every_allowed_url_is_on_the_origin(
            url in prop_oneof![
                "(https?:)?[/\\\\]{0,3}[a-z.@:%0-9/\\\\]{0,30}",
                "https://(a\\.b|A\\.B|a%2eb)(:443|:80)?/(c|C|%63)?[a-z.@:%2eE5cC/\\\\;?#]{0,20}",
            ]
        ) {
            let origin = origin("https://a.b/c/");
            if let Ok(url) = origin.allows(&url) {
                prop_assert_eq!(url.origin(), origin.0.origin());
                prop_assert!(url.path() == "/c" || url.path().starts_with("/c/"));
                prop_assert!(url.username().is_empty() && url.password().is_none());
                prop_assert!(!url.as_str().contains("..") && !url.as_str().contains('\\'));
            }
        }

        #[test]
        fn every_url_under_the_root_is_allowed(path in "(/[a-zA-Z0-9_~-]{1,8}){0,4}/?", query in "(\\?[a-z=&]{0,9})?") {
            for root in ["https://a.b", "https://a.b/", "http://a.b:8080/c", "http://a.b:8080/c/"] {
                let url = format!("{}{path}{query}", root.trim_end_matches('/'));
                prop_assert!(origin(root).allows(&url).is_ok(), "{} under {}", url, root);
            }
        }
    }
}

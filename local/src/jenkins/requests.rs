//! Processes a request.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;

use super::answers::{answer, encode, jetty, plain, set, starting, unauthenticated};
use super::ask::Ask;
use super::beans::{shows_details, who_am_i};
use super::refusal::{Answered, Refusal};
use super::users::Caller;
use super::{Delay, Jenkins, Permission, Startup};

/// A request that was answered.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// When.
    pub at: Timestamp,
    /// `GET`, `POST` …
    pub method: Method,
    /// As it was sent, with its query.
    pub target: String,
    /// The user; `None` if authentication failed.
    pub user: Option<String>,
    /// The status of its answer.
    pub status: StatusCode,
}

/// Whether a path, as it was sent, equals a scripted one, or begins like it before a `*`.
fn fits(pattern: &str, path: &str) -> bool {
    let path = path.trim_start_matches('/');
    pattern.strip_suffix('*').map_or_else(|| path == pattern, |start| path.starts_with(start))
}

impl Jenkins {
    /// Answers a request.
    pub fn handle(&mut self, request: Request<Bytes>, now: Timestamp) -> Response<Bytes> {
        let (parts, body) = request.into_parts();
        self.end_blocks(now);
        let (user, mut response) = self.answer(&parts, &body, now);
        let path = parts.uri.path().strip_prefix(&self.context).unwrap_or_default();
        if let Some(index) = self.delays.iter().position(|(pattern, _)| fits(pattern, path)) {
            response.extensions_mut().insert(Delay(self.delays.remove(index).1));
        }
        self.exchanges.push(Exchange {
            at: now,
            method: parts.method,
            target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            user,
            status: response.status(),
        });
        response
    }

    fn answer(
        &mut self,
        parts: &http::request::Parts,
        body: &Bytes,
        now: Timestamp,
    ) -> (Option<String>, Response<Bytes>) {
        let path = parts.uri.path();
        // Jetty serves only the context path.
        let Some(path) =
            path.strip_prefix(self.context.as_str()).filter(|path| path.is_empty() || path.starts_with('/'))
        else {
            return (None, jetty(StatusCode::NOT_FOUND, "Not Found"));
        };
        if let Some(answer) = self.scripted(path) {
            return (None, answer);
        }
        match self.startup {
            Startup::Loading => return (None, starting()),
            Startup::Unready => {
                self.startup = Startup::Done;
                return (None, self.oops());
            }
            Startup::Done => {}
        }
        if path.contains(';') {
            return (None, jetty(StatusCode::BAD_REQUEST, "Semicolons are not allowed in the request URI"));
        }
        let decode = |text: &[u8]| url::form_urlencoded::parse(text).into_owned().collect::<Vec<_>>();
        let mut parameters = decode(parts.uri.query().unwrap_or_default().as_bytes());
        let content_type = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if content_type.starts_with(b"application/x-www-form-urlencoded") {
            parameters.extend(decode(body));
        }
        let ask = Ask { method: &parts.method, path, parameters, headers: &parts.headers, body, at: now };
        let Some(caller) = self.authenticate(&ask) else {
            return (None, unauthenticated());
        };
        let answered = self.check_crumb(&ask, &caller).and_then(|()| self.dispatch(&ask, &caller));
        let response = answered.unwrap_or_else(|refusal| self.refuse(refusal, &caller));
        (Some(caller.name), response)
    }

    fn scripted(&mut self, path: &str) -> Option<Response<Bytes>> {
        let mut scripts = self.scripts.iter_mut().filter(|(pattern, _)| fits(pattern, path));
        scripts.find_map(|(_, answers)| answers.pop_front())
    }

    /// Stapler finds the method for a path.
    fn dispatch(&mut self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        let decoded: Vec<_> =
            ask.path.split('/').skip(1).map(|part| percent_decode_str(part).decode_utf8_lossy()).collect();
        let path: Vec<&str> = decoded.iter().map(AsRef::as_ref).collect();
        // `Jenkins.getTarget`: without Overall/Read there are only the public pages (`ALWAYS_READABLE_PATHS` and the
        // `UnprotectedRootAction`s).
        let is_public = matches!(path.first(), Some(&("login" | "whoAmI" | "webhook-step" | "404" | "oops")))
            || self.endpoints.contains_key(ask.path.trim_matches('/'));
        if !is_public {
            caller.check(Permission::Read)?;
        }
        match path.as_slice() {
            [] | [""] => Ok(self.page(StatusCode::OK, "Dashboard", "")),
            ["login"] => Ok(self.page(StatusCode::OK, "Sign in", "<form action=\"j_spring_security_check\"></form>")),
            ["api", "json"] => self.export(ask, self.root_bean()),
            ["whoAmI", "api", "json"] => self.export(ask, who_am_i(caller)),
            ["me", "api", "json"] => self.export(ask, self.user_bean(caller)?),
            ["crumbIssuer", "api", "json"] => self.issue_crumb(ask, caller),
            ["webhook-step", ..] if ask.is_post() && self.has_plugin("webhook-step") => self.post_webhook(ask),
            ["descriptorByName", class, "help"] => self.help(class),
            _ if ask.is_post() && self.endpoints.contains_key(ask.path.trim_matches('/')) => self.post_endpoint(ask),
            ["computer"] => Ok(self.redirect("computer/")),
            ["computer", ""] => Ok(self.page(StatusCode::OK, "Nodes", "")),
            ["computer", "api", "json"] => {
                let details = shows_details(ask)?;
                self.export(ask, self.computers_bean(caller, details))
            }
            ["computer", "checkName"] => self.check_name_page(ask, caller),
            ["computer", "createItem"] => self.create_item(ask, caller),
            ["computer", "doCreateItem"] if ask.is_post() => self.do_create_item(ask, caller),
            ["computer", name] if self.has_computer(name) => Ok(self.redirect(&format!("computer/{}/", encode(name)))),
            // `Jenkins.getComputer`: the controller's own node has the empty name.
            ["computer", "(built-in)" | "(master)", rest @ ..] => self.built_in(rest, ask, caller),
            ["computer", name, rest @ ..] if self.has_computer(name) => self.computer(name, rest, ask, caller),
            ["computer", name, rest @ ..] if self.removed.contains_key(*name) => {
                self.removed_computer(name, rest, ask, caller)
            }
            _ => Err(Refusal::NotFound),
        }
    }

    fn has_computer(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.executors > 0)
    }

    /// The controller's own node (`Jenkins.MasterComputer`); its toggles are omitted.
    fn built_in(&self, rest: &[&str], ask: &Ask<'_>, caller: &Caller) -> Answered {
        match rest {
            [""] => Ok(self.page(StatusCode::OK, "Built-In Node", "")),
            ["api", "json"] => self.export(ask, self.built_in_bean(caller)),
            ["setOfflineCause"] => Ok(self.set_offline_cause_page(caller)),
            ["doDelete"] => Ok(plain(StatusCode::BAD_REQUEST)),
            _ => Err(Refusal::NotFound),
        }
    }

    fn computer(&mut self, name: &str, rest: &[&str], ask: &Ask<'_>, caller: &Caller) -> Answered {
        match rest {
            [""] => Ok(self.computer_page(name, caller)),
            ["api", "json"] => {
                let details = shows_details(ask)?;
                let node = self.nodes.get(name).ok_or(Refusal::NotFound)?;
                self.export(ask, self.computer_bean(node, caller, details))
            }
            ["setOfflineCause"] => Ok(self.set_offline_cause_page(caller)),
            ["toggleOffline"] => self.toggle_offline(name, ask, caller),
            ["changeOfflineCause"] => self.change_offline_cause(name, ask, caller),
            ["doDelete"] => self.do_delete(name, ask, caller),
            ["jenkins-agent.jnlp" | "slave-agent.jnlp"] => self.agent_jnlp(name, ask, caller),
            _ => Err(Refusal::NotFound),
        }
    }
    /// A computer without a node (`Computer.getNode` is null). `doToggleOffline` has no such node,
    /// `setTemporaryOfflineCause` throws an `IllegalStateException`, and `doDoDelete` removes the computer
    /// (`AbstractCIBase.removeComputer`): a pipeline's block on it never ends then.
    fn removed_computer(&mut self, name: &str, rest: &[&str], ask: &Ask<'_>, caller: &Caller) -> Answered {
        let actions = ["toggleOffline", "changeOfflineCause", "doDelete"];
        if rest.first().is_some_and(|action| actions.contains(action)) {
            ask.post_only()?;
        }
        match rest {
            [""] => Ok(self.computer_page(name, caller)),
            ["api", "json"] => {
                let details = shows_details(ask)?;
                let computer = self.removed.get(name).ok_or(Refusal::NotFound)?;
                self.export(ask, self.computer_bean(computer, caller, details))
            }
            ["toggleOffline"] => Err(Refusal::Plain(StatusCode::NOT_FOUND)),
            ["changeOfflineCause"] => {
                caller.check(Permission::Disconnect)?;
                Err(Refusal::Oops("Can't set a temporary offline cause if the node has been removed".into()))
            }
            ["doDelete"] => {
                caller.check(Permission::Delete)?;
                let computer = self.removed.remove(name).ok_or(Refusal::NotFound)?;
                self.hung.extend(computer.builds.into_iter().map(|build| build.name));
                Ok(self.redirect("computer/"))
            }
            _ => Err(Refusal::NotFound),
        }
    }

    /// `Descriptor.doHelp`: both classes have a help page, and Stapler finds no descriptor of a missing class.
    fn help(&self, class: &str) -> Answered {
        let plugin = match class {
            "hudson.plugins.sshslaves.SSHLauncher" => "ssh-slaves",
            "org.jenkinsci.plugins.webhookstep.RegisterWebhookStep" => "webhook-step",
            _ => return Err(Refusal::NotFound),
        };
        if !self.has_plugin(plugin) {
            return Err(Refusal::NotFound);
        }
        let mut response = answer(StatusCode::OK, "text/html;charset=utf-8", "<div><p>Help</p></div>".into());
        set(&mut response, HeaderName::from_static("x-plugin-short-name"), plugin);
        Ok(response)
    }
}

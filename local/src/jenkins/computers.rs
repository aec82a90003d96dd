//! The actions at `computer/`: `hudson.model.ComputerSet` and `hudson.model.Computer`.

use http::{StatusCode, header};
use serde_json::Value;

use super::answers::{answer, encode, escape, plain};
use super::ask::Ask;
use super::file::{Element, bind_xml};
use super::form::{Reading, bind_form, blank, fix_empty_and_trim};
use super::refusal::{Answered, Refusal, oops};
use super::users::Caller;
use super::{Jenkins, Launcher, OfflineCause, Permission, XML_SINCE};

impl Jenkins {
    /// `ComputerSet.doDoCreateItem`, the target of the page for a new permanent agent: 302 to the list of nodes.
    pub(super) fn do_create_item(&mut self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        caller.check(Permission::Create)?;
        let name = fix_empty_and_trim(ask.parameter("name"));
        let name = match name.filter(|name| self.racing_creations > 0 && self.nodes.contains_key(name)) {
            Some(name) => {
                self.racing_creations -= 1;
                name
            }
            None => self.check_name(fix_empty_and_trim(ask.parameter("name")))?,
        };
        // `RequestImpl.getSubmittedForm`.
        let form = ask.parameter("json").filter(|form| !form.is_empty());
        let form = form.ok_or(Refusal::Jetty(StatusCode::BAD_REQUEST, "This page expects a form submission"))?;
        let form: Value = serde_json::from_str(form).map_err(|error| oops("Failed to parse JSON", error))?;
        // `NodeDescriptor.all().find(type)` finds nothing: a NullPointerException.
        if ask.parameter("type") != Some("hudson.slaves.DumbSlave") {
            return Err(Refusal::Oops(format!("no node type {:?}", ask.parameter("type"))));
        }
        let blank = blank(&name, ask.at, &caller.name);
        let reading = Reading { is_file: false, has_ssh: self.has_plugin("ssh-slaves") };
        let node = bind_form(blank, &form, reading).map_err(Refusal::Oops)?;
        self.nodes.insert(name, node);
        Ok(self.redirect("computer/"))
    }

    /// `ComputerSet.doCreateItem`: from 2.539 on with a node's XML (200), before it only a page for people. `mode=copy`
    /// is omitted.
    pub(super) fn create_item(&mut self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        ask.post_only()?;
        caller.check(Permission::Create)?;
        let content_type = ask.header(header::CONTENT_TYPE).unwrap_or_default();
        let is_xml = ["application/xml", "text/xml"].iter().any(|xml| content_type.starts_with(xml));
        if !is_xml || !self.takes_xml() {
            let message = match ask.parameter("mode") {
                None => "No mode given".into(),
                Some(mode) => format!("No node type ‘{mode}’ is known"),
            };
            return Err(Refusal::Failure(message));
        }
        let xml = std::str::from_utf8(ask.body).map_err(|error| oops("not UTF-8", error))?;
        let element = Element::parse(xml).map_err(Refusal::Oops)?;
        let reading = Reading { is_file: true, has_ssh: self.has_plugin("ssh-slaves") };
        let mut node = bind_xml(blank("", ask.at, &caller.name), &element, reading).map_err(Refusal::Oops)?;
        if let Some(name) = fix_empty_and_trim(ask.parameter("name")) {
            node.name = name;
        }
        if self.nodes.contains_key(&node.name) {
            return Err(Refusal::Failure(format!("Node '{}' already exists", node.name)));
        }
        // `Nodes.addNode`: the name is only validated here, and is not trimmed.
        check_good_name(&node.name)?;
        self.nodes.insert(node.name.clone(), node);
        Ok(plain(StatusCode::OK))
    }

    fn takes_xml(&self) -> bool {
        let mut numbers = self.version.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= XML_SINCE
    }

    /// `ComputerSet.checkName`.
    fn check_name(&self, name: Option<String>) -> Result<String, Refusal> {
        let name = name.ok_or_else(|| Refusal::Failure("Query parameter 'name' is required".into()))?;
        check_good_name(&name)?;
        if self.nodes.contains_key(&name) {
            return Err(Refusal::Failure(format!("Agent called ‘{name}’ already exists")));
        }
        Ok(name)
    }

    /// `ComputerSet.doCheckName`, for the page that validates while typing; always 200 (`FormValidation`).
    pub(super) fn check_name_page(&self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        caller.check(Permission::Create)?;
        let checked = match ask.parameter("value").filter(|value| !value.is_empty()) {
            Some(value) => self.check_name(Some(value.trim().to_owned())),
            None => Ok(String::new()),
        };
        let body = match checked {
            Ok(_) => "<div/>".into(),
            Err(Refusal::Failure(message)) => format!("<div class=error>{}</div>", escape(&message)),
            Err(refusal) => return Err(refusal),
        };
        Ok(answer(StatusCode::OK, "text/html;charset=utf-8", body))
    }

    /// `Computer.doToggleOffline`: back online needs Agent/Connect, offline Agent/Disconnect.
    pub(super) fn toggle_offline(&mut self, name: &str, ask: &Ask<'_>, caller: &Caller) -> Answered {
        ask.post_only()?;
        let node = self.nodes.get_mut(name).ok_or(Refusal::NotFound)?;
        if node.temporarily_offline.is_none() {
            return self.change_offline_cause(name, ask, caller);
        }
        caller.check(Permission::Connect)?;
        node.temporarily_offline = None;
        Ok(self.redirect(&format!("computer/{}/", encode(name))))
    }

    /// `Computer.doChangeOfflineCause`: offline with this message, whatever its state was.
    pub(super) fn change_offline_cause(&mut self, name: &str, ask: &Ask<'_>, caller: &Caller) -> Answered {
        ask.post_only()?;
        caller.check(Permission::Disconnect)?;
        let node = self.nodes.get_mut(name).ok_or(Refusal::NotFound)?;
        let message = fix_empty_and_trim(ask.parameter("offlineMessage"));
        node.temporarily_offline = Some(OfflineCause { user: caller.name.clone(), message, at: ask.at });
        Ok(self.redirect(&format!("computer/{}/", encode(name))))
    }

    /// `Computer.doDoDelete`.
    pub(super) fn do_delete(&mut self, name: &str, ask: &Ask<'_>, caller: &Caller) -> Answered {
        ask.post_only()?;
        caller.check(Permission::Delete)?;
        self.remove_node(name, ask.at);
        Ok(self.redirect("computer/"))
    }

    /// `SlaveComputer.doJenkinsAgentJnlp`, `EncryptedSlaveAgentJnlpFile` and `jenkins-agent.jnlp.jelly`. With
    /// `encrypt=true` Jenkins requires no permission and encrypts the file with the secret itself: omitted here.
    pub(super) fn agent_jnlp(&self, name: &str, ask: &Ask<'_>, caller: &Caller) -> Answered {
        if ask.parameter("encrypt") == Some("true") {
            return Err(Refusal::NotFound);
        }
        caller.check(Permission::Connect)?;
        let node = self.nodes.get(name).ok_or(Refusal::NotFound)?;
        let mut arguments = vec![self.secret(name), node.name.clone()];
        match &node.launcher {
            // `launcher.workDirSettings` is null then, and not disabled.
            Launcher::Ssh(_) => arguments.extend(["-workDir", "", "-internalDir", ""].map(str::to_owned)),
            Launcher::Inbound(launcher) => {
                if launcher.web_socket {
                    arguments.push("-webSocket".into());
                }
                if let Some(tunnel) = &launcher.tunnel {
                    arguments.extend(["-tunnel".into(), tunnel.clone()]);
                }
                if let Some(work_dir) = &launcher.work_dir {
                    let path = work_dir.path.as_ref().unwrap_or(&node.remote_fs);
                    arguments.extend(["-workDir", path, "-internalDir", &work_dir.internal_dir].map(str::to_owned));
                    if work_dir.must_exist {
                        arguments.push("-failIfWorkDirIsMissing".into());
                    }
                }
            }
        }
        arguments.extend(["-url".into(), self.root.clone()]);
        let arguments: String =
            arguments.iter().map(|argument| format!("<argument>{}</argument>", escape(argument))).collect();
        let body = format!("<jnlp><application-desc>{arguments}</application-desc></jnlp>");
        Ok(answer(StatusCode::OK, "application/x-java-jnlp-file", body))
    }
}

/// `Jenkins.checkGoodName`, with the words of `hudson.model.Messages`.
fn check_good_name(name: &str) -> Result<(), Refusal> {
    let failure = |message: String| Err(Refusal::Failure(message));
    if name.is_empty() {
        return failure("No name is specified".into());
    }
    if let "." | ".." = name.trim() {
        return failure(format!("“{}” is not an allowed name", name.trim()));
    }
    for letter in name.chars() {
        if letter.is_control() {
            let shown: String = name
                .chars()
                .map(|letter| match letter.is_control() {
                    true => format!("\\u{};", u32::from(letter)),
                    false => letter.to_string(),
                })
                .collect();
            return failure(format!("No control code is allowed: {shown}"));
        }
        if "?*/\\%!@#$^&|<>[]:;".contains(letter) {
            return failure(format!("‘{letter}’ is an unsafe character"));
        }
    }
    if name.trim().ends_with('.') {
        return failure("A name cannot end with ‘.’".into());
    }
    Ok(())
}

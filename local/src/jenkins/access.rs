//! Users and their permissions.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderName, StatusCode, header};
use serde_json::json;

use super::answers::{Answered, Refusal, set};
use super::requests::Ask;
use super::{ANONYMOUS, Jenkins};

/// A permission of Jenkins that matters to agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// Overall/Administer, which implies all.
    Administer,
    /// Overall/Read.
    Read,
    /// Agent/Build.
    Build,
    /// Agent/Configure.
    Configure,
    /// Agent/Connect.
    Connect,
    /// Agent/Create.
    Create,
    /// Agent/Delete.
    Delete,
    /// Agent/Disconnect, which implies Connect.
    Disconnect,
    /// Agent/Provision, which is for clouds.
    Provision,
}

impl Permission {
    /// The permissions of the project's user.
    pub const FOR_AGENTS: [Self; 5] = [Self::Read, Self::Create, Self::Connect, Self::Disconnect, Self::Delete];

    /// The permission's id and those that imply it, nearest first (`impliedBy` in `hudson.security.Permission`,
    /// `hudson.model.Computer`, `jenkins.model.Jenkins`, `hudson.slaves.Cloud`).
    pub(super) fn chain(self) -> &'static [&'static str] {
        const ADMINISTER: &str = "hudson.model.Hudson.Administer";
        const WRITE: &str = "hudson.security.Permission.GenericWrite";
        const UPDATE: &str = "hudson.security.Permission.GenericUpdate";
        match self {
            Self::Administer => &[ADMINISTER],
            Self::Read => &["hudson.model.Hudson.Read", "hudson.security.Permission.GenericRead", ADMINISTER],
            Self::Build => &["hudson.model.Computer.Build", WRITE, ADMINISTER],
            Self::Configure => &[
                "hudson.model.Computer.Configure",
                "hudson.security.Permission.GenericConfigure",
                UPDATE,
                WRITE,
                ADMINISTER,
            ],
            Self::Connect => &["hudson.model.Computer.Connect", "hudson.model.Computer.Disconnect", ADMINISTER],
            Self::Create => {
                &["hudson.model.Computer.Create", "hudson.security.Permission.GenericCreate", WRITE, ADMINISTER]
            }
            Self::Delete => {
                &["hudson.model.Computer.Delete", "hudson.security.Permission.GenericDelete", WRITE, ADMINISTER]
            }
            Self::Disconnect => &["hudson.model.Computer.Disconnect", ADMINISTER],
            Self::Provision => &["hudson.model.Computer.Provision", ADMINISTER],
        }
    }

    pub(super) fn id(self) -> &'static str {
        self.chain()[0]
    }

    /// As on Jenkins' security page: `Agent/Create`.
    pub fn title(self) -> String {
        let group = if matches!(self, Self::Administer | Self::Read) { "Overall" } else { "Agent" };
        format!("{group}/{self:?}")
    }
}

/// A user of Jenkins.
#[derive(Debug, Clone, Default)]
pub struct User {
    /// An API token; with it, no crumb is needed.
    pub api_token: Option<String>,
    /// A password; with it, a POST needs a crumb.
    pub password: Option<String>,
    /// The granted permissions.
    pub permissions: BTreeSet<Permission>,
}

/// The caller.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) name: String,
    pub(super) permissions: BTreeSet<Permission>,
    pub(super) is_by_token: bool,
}

impl Caller {
    pub(super) fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    /// `SidACL.hasPermission`: a permission is granted itself, or by one that implies it.
    pub(super) fn has(&self, permission: Permission) -> bool {
        self.permissions.iter().any(|granted| permission.chain().contains(&granted.id()))
    }

    /// `AccessControlled.checkPermission`.
    pub(super) fn check(&self, permission: Permission) -> Result<(), Refusal> {
        if self.has(permission) { Ok(()) } else { Err(Refusal::Denied(permission)) }
    }
}

impl Jenkins {
    /// `jenkins.security.BasicHeaderProcessor`: only a header that begins with `Basic ` is read, on any path, including
    /// those of webhooks; wrong credentials are refused everywhere.
    pub(super) fn authenticate(&self, ask: &Ask<'_>) -> Option<Caller> {
        let anonymous = Caller { name: ANONYMOUS.into(), permissions: BTreeSet::new(), is_by_token: false };
        let Some(header) = ask.header(header::AUTHORIZATION) else { return Some(anonymous) };
        let Some(credentials) = header.get(..6).filter(|scheme| scheme.eq_ignore_ascii_case("basic ")) else {
            return Some(anonymous);
        };
        let decoded = BASE64.decode(&header[credentials.len()..]).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (name, password) = decoded.split_once(':')?;
        let user = self.users.get(name)?;
        let is_by_token = user.api_token.as_deref() == Some(password);
        let is_known = is_by_token || user.password.as_deref() == Some(password);
        is_known.then(|| Caller { name: name.to_owned(), permissions: user.permissions.clone(), is_by_token })
    }

    /// `hudson.security.csrf.CrumbFilter`: a POST needs a crumb, unless it came with an API token
    /// (`jenkins.security.ApiCrumbExclusion`) or goes to a webhook (`WebhookRootAction.process`).
    pub(super) fn check_crumb(&self, ask: &Ask<'_>, caller: &Caller) -> Result<(), Refusal> {
        let is_webhook = (ask.path.starts_with("/webhook-step/") && self.has_plugin("webhook-step"))
            || self.endpoints.contains_key(ask.path.trim_matches('/'));
        if !ask.is_post() || caller.is_by_token || is_webhook {
            return Ok(());
        }
        let crumb = ask.header(HeaderName::from_static("jenkins-crumb"));
        let crumb = crumb.as_deref().or_else(|| ask.parameter("Jenkins-Crumb"));
        let valid = ask.session().map(|session| self.crumb(&caller.name, &session));
        if crumb.is_some() && crumb == valid.as_deref() {
            return Ok(());
        }
        Err(Refusal::Jetty(StatusCode::FORBIDDEN, "No valid crumb was included in the request"))
    }

    /// `DefaultCrumbIssuer.issueCrumb`: for the user and the session.
    fn crumb(&self, user: &str, session: &str) -> String {
        self.digest("crumb", &format!("{user};{session}"))
    }

    /// `hudson.security.csrf.CrumbIssuer`, which starts a session.
    pub(super) fn issue_crumb(&self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        let known = ask.session();
        let session = known.clone().unwrap_or_else(|| self.digest("session", &self.exchanges.len().to_string()));
        let bean = json!({
            "_class": "hudson.security.csrf.DefaultCrumbIssuer",
            "crumb": self.crumb(&caller.name, &session),
            "crumbRequestField": "Jenkins-Crumb",
        });
        let mut response = self.export(ask, bean)?;
        if known.is_none() {
            set(&mut response, header::SET_COOKIE, &format!("JSESSIONID={session}; Path={}/; HttpOnly", self.context));
        }
        Ok(response)
    }
}

//! Users and their permissions.

use std::collections::BTreeSet;

use super::ANONYMOUS;

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
}

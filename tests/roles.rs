//! The roles of `template.yaml` and `forwarding.yaml`, deployed for a configuration: decides what each function may do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use local::aws::{Access, Guard};
use local::cloudformation;
use local::http::lock;
use local::iam::{Role, Statement};
use serde_json::Value;

use crate::{ACCOUNT, Binary, REGION};

/// The main template.
pub const TEMPLATE: &str = include_str!("../template.yaml");
/// The one for clusters in other regions and accounts.
pub const FORWARDING: &str = include_str!("../forwarding.yaml");

/// The prefix of the tests' parameters.
const PARAMETERS: &str = "/jenkins";

/// The prefix of the roles of the tests' agents.
pub const TASK_ROLES: &str = "role/agent";

/// The queues by their logical ids and their names in the tests.
pub const QUEUES: [(&str, &str); 5] = [
    ("RequestsQueue", "requests"),
    ("WaitingQueue", "waiting"),
    ("UndeliveredQueue", "undelivered"),
    ("RejectedQueue", "rejected"),
    ("CompletionsQueue", "completions"),
];

impl Binary {
    /// All functions.
    pub const ALL: [Self; 3] = [Self::Request, Self::TaskState, Self::Teardown];

    /// The logical id of its role.
    pub fn role(self) -> &'static str {
        match self {
            Self::Request => "RequestRole",
            Self::TaskState => "TaskStateRole",
            Self::Teardown => "TeardownRole",
        }
    }
}

/// The deployed stacks: the main one, and one for each other account.
pub struct Roles {
    main: BTreeMap<Binary, (String, Role)>,
    other: BTreeMap<String, (Trust, Role)>,
}

/// The trust of a role: its ARN, and the ARNs that may assume it.
struct Trust {
    role: String,
    principals: Vec<String>,
}

/// Permissions by role, statement and use ([`Statement::permissions`]).
pub type Used = BTreeSet<(String, String, String)>;

impl Roles {
    /// Deploys both templates with the parameters that a configuration requires.
    ///
    /// # Errors
    /// When a template refuses it, or is not understood.
    pub fn deployed(config: &Value, kms_key: Option<&str>) -> Result<Self> {
        let main = deploy_main(config, kms_key)?;
        let functions: Vec<String> =
            Binary::ALL.iter().map(|binary| main.attribute(binary.role(), "Arn")).collect::<Result<_>>()?;
        let mut other = BTreeMap::new();
        for role in values(config, "assumeRoleArn") {
            let account = role.split(':').nth(4).context("an ARN has an account")?.to_owned();
            let stack = deploy_forwarding(config, &account, &role, &functions.join(","))?;
            let principals = &stack.properties("AgentsRole")?["AssumeRolePolicyDocument"]["Statement"][0]["Principal"];
            let principals = principals["AWS"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let trust = Trust { role, principals: principals.map(str::to_owned).collect() };
            other.insert(account, (trust, Role::of(&stack, "AgentsRole")?));
        }
        let role =
            |binary: Binary| Ok((binary, (main.attribute(binary.role(), "Arn")?, Role::of(&main, binary.role())?)));
        Ok(Self { main: Binary::ALL.into_iter().map(role).collect::<Result<_>>()?, other })
    }

    /// All permissions.
    pub fn permissions(&self) -> Used {
        let main = self.main.iter().map(|(binary, (_, role))| (binary.role(), role));
        let roles = main.chain(self.other.values().map(|(_, role)| ("AgentsRole", role)));
        let of = |(name, role): (&str, &Role)| -> Vec<_> {
            let of = |statement: &Statement| -> Vec<_> {
                let entry = |permission| (name.to_owned(), statement.sid.clone(), permission);
                statement.permissions().into_iter().map(entry).collect()
            };
            role.statements.iter().flat_map(of).collect()
        };
        roles.flat_map(of).collect()
    }

    /// The statements of the roles in other accounts, each next to those of the same name in the functions' own roles.
    pub fn twins(&self) -> impl Iterator<Item = (&Statement, Vec<&Statement>)> {
        let own = || self.main.values().flat_map(|(_, role)| &role.statements);
        let others = self.other.values().flat_map(|(_, role)| &role.statements);
        others.map(move |statement| (statement, own().filter(|own| own.sid == statement.sid).collect()))
    }

    /// Decides one call of an access key.
    ///
    /// # Errors
    /// When its role does not allow it.
    pub fn decide(&self, access_key: &str, accesses: &[Access], used: &mut Used) -> Result<(), String> {
        let Some(binary) = Binary::ALL.into_iter().find(|binary| access_key.ends_with(binary.access_key())) else {
            return Ok(());
        };
        let (arn, own) = &self.main[&binary];
        let assumed = access_key.strip_prefix("ASIA").and_then(|rest| rest.get(..12));
        let (name, role) = match assumed {
            None => (binary.role(), own),
            Some(account) => ("AgentsRole", &self.other.get(account).ok_or("no such role")?.1),
        };
        for access in accesses {
            let statements = role.decide(access).map_err(|denied| format!("User: {name} is {denied}"))?;
            if access.action == "sts:AssumeRole" {
                let mut trusts = self.other.values().filter(|(trust, _)| trust.role == access.resource);
                if !trusts.any(|(trust, _)| trust.principals.contains(arn)) {
                    return Err(format!("{} does not trust {arn}", access.resource));
                }
            }
            for statement in statements {
                let entry = |permission| (name.to_owned(), statement.sid.clone(), permission);
                used.extend(statement.used_by(access).into_iter().map(entry));
            }
        }
        Ok(())
    }

    /// The guard of a simulated AWS, which records the permissions used and the calls denied.
    pub fn guard(config: Value, kms_key: Option<String>) -> (Guard, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        // Only calls need a role: a configuration that no stack accepts may still fail the start.
        let mut roles = None;
        let guard = move |access_key: &str, accesses: &[Access]| {
            let mut seen = lock(&shared);
            let roles = roles.get_or_insert_with(|| {
                let roles = Self::deployed(&config, kms_key.as_deref());
                seen.permissions = roles.as_ref().map(Self::permissions).unwrap_or_default();
                roles.map_err(|error| format!("the stack is refused: {error:#}"))
            });
            let decided = match roles {
                Ok(roles) => roles.decide(access_key, accesses, &mut seen.used),
                Err(refused) => Err(refused.clone()),
            };
            if let Err(denied) = &decided
                && !accesses.iter().any(lost_its_tags)
            {
                seen.denied.push(denied.clone());
            }
            decided
        };
        (Box::new(guard), seen)
    }
}

/// Whether this is about a task without any tag. StopTask deletes a task's tags, so that a role whose condition is a tag
/// denies whatever comes after it: the functions have to live with that.
fn lost_its_tags(access: &Access) -> bool {
    let of_task = ["ecs:StopTask", "ecs:TagResource", "ecs:UntagResource"].contains(&access.action.as_str());
    let tags = |key: &String| key.starts_with("aws:ResourceTag/") || key == "ecs:CreateAction";
    of_task && access.resource.contains(":task/") && !access.keys.keys().any(tags)
}

/// What a guard has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// All permissions that there are.
    pub permissions: Used,
    /// Those used.
    pub used: Used,
    /// What was denied.
    pub denied: Vec<String>,
}

impl Seen {
    /// Notes what there is and what was used, for the test that comes after all others ([`Noted`]).
    ///
    /// # Errors
    /// When the note could not be written.
    pub fn note(&self) -> Result<()> {
        std::fs::create_dir_all(notes()?)?;
        let note = tempfile::NamedTempFile::new_in(notes()?)?;
        serde_json::to_writer(&note, &(&self.permissions, &self.used))?;
        note.keep()?;
        Ok(())
    }
}

/// What the tests of a run have noted about the roles' permissions.
#[derive(Debug, Default)]
pub struct Noted {
    /// All permissions that there were.
    pub permissions: Used,
    /// Those used.
    pub used: Used,
}

impl Noted {
    /// Reads the notes, and takes them away: the next run begins with none.
    ///
    /// # Errors
    /// When there are none, or they cannot be read.
    pub fn take() -> Result<Self> {
        let mut noted = Self::default();
        for entry in std::fs::read_dir(notes()?).context("no test has noted anything")? {
            let (permissions, used): (Used, Used) = serde_json::from_slice(&std::fs::read(entry?.path())?)?;
            noted.permissions.extend(permissions);
            noted.used.extend(used);
        }
        std::fs::remove_dir_all(notes()?)?;
        Ok(noted)
    }
}

/// Beside the functions that the tests drive.
fn notes() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.ancestors().nth(2).context("the test has no folder")?.join("permissions"))
}

/// The main stack, with what a deployer reads out of the configuration.
fn deploy_main(config: &Value, kms_key: Option<&str>) -> Result<cloudformation::Stack> {
    let buses: Vec<String> = config["eventBus"]
        .as_str()
        .map(|bus| format!("arn:aws:events:{REGION}:{ACCOUNT}:event-bus/{bus}"))
        .into_iter()
        .collect();
    let own = arns(config, ACCOUNT);
    let clusters: Vec<String> = accounts(config).iter().flat_map(|account| arns(config, account).clusters).collect();
    let roles = values(config, "assumeRoleArn").join(",");
    let task_roles = format!("arn:aws:iam::{ACCOUNT}:{TASK_ROLES}*");
    let (clusters, definitions, groups) = (clusters.join(","), own.definitions.join(","), own.groups.join(","));
    let parameters = [
        ("JenkinsUrl", config["jenkins"]["url"].as_str().context("jenkins.url")?),
        ("ClusterArns", &clusters),
        ("TaskDefinitionArns", &definitions),
        ("TaskRoleArns", &task_roles),
        ("AutoScalingGroupArns", &groups),
        ("AssumeRoleArns", &roles),
        ("EventBusArn", &buses.join(",")),
        ("KmsKeyArn", kms_key.unwrap_or_default()),
        ("ParameterPrefix", PARAMETERS),
        ("ConfigParameter", "config/"),
    ];
    cloudformation::Stack::new(TEMPLATE, (REGION, ACCOUNT), &parameters, &QUEUES)
}

/// The stack in another account.
fn deploy_forwarding(config: &Value, account: &str, role: &str, functions: &str) -> Result<cloudformation::Stack> {
    let there = arns(config, account);
    ensure!(!there.clusters.is_empty(), "{account} has no cluster");
    let parameters = [
        ("JenkinsUrl", config["jenkins"]["url"].as_str().context("jenkins.url")?),
        ("FunctionRoleArns", functions),
        ("ClusterArns", &there.clusters.join(",")),
        ("TaskDefinitionArns", &there.definitions.join(",")),
        ("TaskRoleArns", &format!("arn:aws:iam::{account}:{TASK_ROLES}*")),
        ("AutoScalingGroupArns", &there.groups.join(",")),
        ("TargetEventBusArn", &format!("arn:aws:events:{REGION}:{ACCOUNT}:event-bus/default")),
    ];
    let names = [("AgentsRole", role.rsplit('/').next().unwrap_or_default())];
    cloudformation::Stack::new(FORWARDING, (REGION, account), &parameters, &names)
}

struct Arns {
    clusters: Vec<String>,
    definitions: Vec<String>,
    groups: Vec<String>,
}

/// What the clouds of an account name.
fn arns(config: &Value, account: &str) -> Arns {
    let mut arns = Arns { clusters: Vec::new(), definitions: Vec::new(), groups: Vec::new() };
    for cloud in clouds(config).filter(|cloud| account_of(cloud) == account) {
        let region = cloud["region"].as_str().unwrap_or_default();
        let cluster = cloud["cluster"].as_str().unwrap_or("default").rsplit('/').next().unwrap_or_default();
        arns.clusters.push(format!("arn:aws:ecs:{region}:{account}:cluster/{cluster}"));
        arns.groups.extend(cloud["autoScalingGroup"].as_str().map(|name| {
            format!("arn:aws:autoscaling:{region}:{account}:autoScalingGroup:*:autoScalingGroupName/{name}")
        }));
        for template in cloud["templates"].as_array().into_iter().flatten() {
            let allowed = template["allowedTaskDefinitions"].as_array().into_iter().flatten();
            for definition in std::iter::once(&template["taskDefinition"]).chain(allowed).filter_map(Value::as_str) {
                let family = definition.rsplit('/').next().unwrap_or_default().split(':').next().unwrap_or_default();
                arns.definitions.push(format!("arn:aws:ecs:{region}:{account}:task-definition/{family}:*"));
            }
        }
    }
    for list in [&mut arns.clusters, &mut arns.definitions, &mut arns.groups] {
        list.sort();
        list.dedup();
    }
    arns
}

fn clouds(config: &Value) -> impl Iterator<Item = &Value> {
    config["clouds"].as_array().into_iter().flatten()
}

fn account_of(cloud: &Value) -> &str {
    cloud["assumeRoleArn"].as_str().and_then(|role| role.split(':').nth(4)).unwrap_or(ACCOUNT)
}

fn accounts(config: &Value) -> BTreeSet<&str> {
    clouds(config).map(account_of).collect()
}

fn values(config: &Value, key: &str) -> Vec<String> {
    let values: BTreeSet<_> = clouds(config).filter_map(|cloud| cloud[key].as_str()).collect();
    values.into_iter().map(str::to_owned).collect()
}

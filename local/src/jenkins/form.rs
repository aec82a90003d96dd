//! Reads a node from the form of its page.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{HostKeyVerification, InboundLauncher, Launcher, Mode, Node, SshLauncher, WorkDir};

pub(super) const SSH_LAUNCHER: &str = "hudson.plugins.sshslaves.SSHLauncher";
pub(super) const INBOUND_LAUNCHER: &str = "hudson.slaves.JNLPLauncher";
pub(super) const ENVIRONMENT: &str = "hudson.slaves.EnvironmentVariablesNodeProperty";
const RETENTION_STRATEGIES: [&str; 3] = [
    "hudson.slaves.RetentionStrategy$Always",
    "hudson.slaves.RetentionStrategy$Demand",
    "hudson.slaves.SimpleScheduledRetentionStrategy",
];

/// The source of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// A file: what cannot be read is dropped (`RobustReflectionConverter`). In a form it is an exception.
    pub is_file: bool,
    /// Whether ssh-slaves is installed.
    pub has_ssh: bool,
}

/// A node with only a name: the defaults of `hudson.model.Slave`.
pub(super) fn blank(name: &str, created: Timestamp, created_by: &str) -> Node {
    Node {
        name: name.to_owned(),
        description: String::new(),
        remote_fs: String::new(),
        executors: 1,
        mode: Mode::Normal,
        label_string: String::new(),
        launcher: default_launcher(),
        retention_strategy: None,
        environment: BTreeMap::new(),
        created,
        created_by: created_by.to_owned(),
        temporarily_offline: None,
        is_connected: false,
        disconnected: None,
        builds: Vec::new(),
        removed: None,
    }
}

/// `Slave.getLauncher`.
pub(super) fn default_launcher() -> Launcher {
    let work_dir = WorkDir { path: None, internal_dir: "remoting".into(), must_exist: false };
    Launcher::Inbound(InboundLauncher { web_socket: false, tunnel: None, work_dir: Some(work_dir) })
}

/// The form of a permanent agent, bound as `RequestImpl.bindJSON` does: the constructor of `DumbSlave` and the setters
/// of `Slave`, all by name; fields without a setter are ignored. Any fault is an exception, and so a 500.
pub(super) fn bind_form(blank: Node, form: &Value, reading: Reading) -> Result<Node, String> {
    let fields = form.as_object().ok_or("the form is not an object")?;
    let mut node = blank;
    node.description = text(fields, "nodeDescription")?.unwrap_or_default();
    node.remote_fs = text(fields, "remoteFS")?.unwrap_or_default();
    node.label_string = text(fields, "labelString")?.unwrap_or_default().trim().to_owned();
    if let Some(executors) = number(fields, "numExecutors")? {
        node.executors = i32::try_from(executors).map_err(|error| format!("numExecutors: {error}"))?;
    }
    if let Some(mode) = text(fields, "mode")? {
        node.mode = parse_mode(&mode)?;
    }
    if let Some(launcher) = part(fields, "launcher")? {
        node.launcher = bind_launcher(launcher, reading)?;
    }
    if let Some(strategy) = part(fields, "retentionStrategy")? {
        node.retention_strategy = Some(retention_strategy(class(strategy)?)?);
    }
    for (class, property) in node_properties(fields)? {
        // `TypePair.convertJSON`, "ignore unrecognized element".
        if class == ENVIRONMENT {
            for entry in one_or_many(property.get("env")) {
                let entry = entry.as_object().ok_or("env: not an object")?;
                let key = text(entry, "key")?.ok_or("env: a variable without a key")?;
                put(&mut node.environment, key, text(entry, "value")?.unwrap_or_default());
            }
        }
    }
    Ok(node)
}

/// `nodeProperties`: an object by class name (`stapler-class-bag`, with `-` for `.`), or a list of objects that name
/// their classes.
fn node_properties(fields: &Map<String, Value>) -> Result<Vec<Property<'_>>, String> {
    let value = fields.get("nodeProperties");
    if let Some(bag) = value.and_then(Value::as_object).filter(|bag| bag.contains_key("stapler-class-bag")) {
        let named = bag.iter().flat_map(|(name, value)| {
            one_or_many(Some(value)).filter_map(Value::as_object).map(|property| (name.replace('-', "."), property))
        });
        return Ok(named.collect());
    }
    one_or_many(value)
        .map(|property| {
            let property = property.as_object().ok_or("nodeProperties: not an object")?;
            Ok((class(property)?.to_owned(), property))
        })
        .collect()
}

/// A class and its fields.
type Property<'a> = (String, &'a Map<String, Value>);

fn one_or_many(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    let values = match value {
        None | Some(Value::Null) => &[],
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    values.iter()
}

/// `EnvVars` ignores case: a later value is put under the first name.
fn put(environment: &mut BTreeMap<String, String>, key: String, value: String) {
    let known = environment.keys().find(|known| known.eq_ignore_ascii_case(&key)).cloned();
    environment.insert(known.unwrap_or(key), value);
}

pub(super) fn parse_mode(mode: &str) -> Result<Mode, String> {
    match mode {
        "NORMAL" => Ok(Mode::Normal),
        "EXCLUSIVE" => Ok(Mode::Exclusive),
        _ => Err(format!("no enum constant hudson.model.Node.Mode.{mode}")),
    }
}

pub(super) fn retention_strategy(class: &str) -> Result<String, String> {
    if RETENTION_STRATEGIES.contains(&class) { Ok(class.to_owned()) } else { Err(format!("no such class {class}")) }
}

/// A launcher: the form has the same names as the file. Only the two that this project uses are known here.
pub(super) fn bind_launcher(fields: &Map<String, Value>, reading: Reading) -> Result<Launcher, String> {
    match class(fields)? {
        SSH_LAUNCHER if reading.has_ssh => bind_ssh(fields, reading).map(Launcher::Ssh),
        INBOUND_LAUNCHER => {
            let work_dir = match part(fields, "workDirSettings")? {
                None if reading.is_file => None, // `JNLPLauncher.readResolve`
                None => match default_launcher() {
                    Launcher::Inbound(launcher) => launcher.work_dir,
                    Launcher::Ssh(_) => None,
                },
                Some(settings) if flag(settings, "disabled")?.unwrap_or(false) => None,
                Some(settings) => Some(WorkDir {
                    path: fix_empty_and_trim(text(settings, "workDirPath")?.as_deref()),
                    internal_dir: text(settings, "internalDir")?.unwrap_or_else(|| "remoting".into()),
                    must_exist: flag(settings, "failIfWorkDirIsMissing")?.unwrap_or(false),
                }),
            };
            let web_socket = flag(fields, "webSocket")?.unwrap_or(false);
            let tunnel = fix_empty_and_trim(text(fields, "tunnel")?.as_deref());
            Ok(Launcher::Inbound(InboundLauncher { web_socket, tunnel, work_dir }))
        }
        other => Err(format!("class {other} is specified, but no such class found")),
    }
}

/// `SSHLauncher`: its constructor and setters, or `readResolve` for a file.
fn bind_ssh(fields: &Map<String, Value>, reading: Reading) -> Result<SshLauncher, String> {
    let optional = |name| text(fields, name).map(|text| text.filter(|text| !text.is_empty()));
    let at_least = |name, least, default| {
        Ok::<_, String>(number(fields, name)?.filter(|number| *number >= least).unwrap_or(default))
    };
    let timeout = at_least("launchTimeoutSeconds", 1, 60)?;
    Ok(SshLauncher {
        host: fix_empty_and_trim(text(fields, "host")?.as_deref()),
        port: number(fields, "port")?.filter(|port| *port != 0).unwrap_or(22),
        credentials_id: text(fields, "credentialsId")?,
        // JENKINS-58589: 210 was once the default, and is treated as such.
        launch_timeout_seconds: if reading.is_file && timeout == 210 { 60 } else { timeout },
        max_num_retries: at_least("maxNumRetries", 0, 10)?,
        retry_wait_time: at_least("retryWaitTime", 0, 15)?,
        java_path: optional("javaPath")?,
        jvm_options: optional("jvmOptions")?,
        prefix_start_command: optional("prefixStartSlaveCmd")?,
        suffix_start_command: optional("suffixStartSlaveCmd")?,
        tcp_no_delay: flag(fields, "tcpNoDelay")?.unwrap_or(true),
        host_key_verification: match part(fields, "sshHostKeyVerificationStrategy")?.map(bind_verification) {
            Some(Err(_)) if reading.is_file => None,
            verification => verification.transpose()?,
        },
    })
}

fn bind_verification(fields: &Map<String, Value>) -> Result<HostKeyVerification, String> {
    let name = class(fields)?;
    match name.strip_prefix("hudson.plugins.sshslaves.verifiers.") {
        Some("NonVerifyingKeyVerificationStrategy") => Ok(HostKeyVerification::NonVerifying),
        Some("KnownHostsFileKeyVerificationStrategy") => Ok(HostKeyVerification::KnownHosts),
        Some("ManuallyProvidedKeyVerificationStrategy") => {
            // A form has `algorithm base64`, a file the two fields of `HostKey`.
            let key = match fields.get("key") {
                Some(Value::Object(key)) => {
                    [text(key, "algorithm")?.unwrap_or_default(), text(key, "key")?.unwrap_or_default()].join(" ")
                }
                _ => text(fields, "key")?.ok_or("no key")?,
            };
            let (_, bytes) = key.split_once(' ').ok_or("the key has two parts")?;
            BASE64.decode(bytes.split(' ').next().unwrap_or_default()).map_err(|error| format!("key: {error}"))?;
            Ok(HostKeyVerification::Key(key))
        }
        _ => Err(format!("class {name} is specified, but no such class found")),
    }
}

/// The class that a part names: `$class`, or the older `stapler-class` (`TypePair.convertJSON`).
pub(super) fn class(fields: &Map<String, Value>) -> Result<&str, String> {
    let named = fields.get("$class").or_else(|| fields.get("stapler-class"));
    named.ok_or("no class is named, and the type is abstract")?.as_str().ok_or_else(|| "a list of classes".into())
}

pub(super) fn part<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<Option<&'a Map<String, Value>>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(part)) => Ok(Some(part)),
        Some(other) => Err(format!("{name}: {other} is no object")),
    }
}

pub(super) fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
        Some(other) => Err(format!("{name}: {other} is no text")),
    }
}

pub(super) fn number(fields: &Map<String, Value>, name: &str) -> Result<Option<i64>, String> {
    text(fields, name)?.map(|text| text.parse().map_err(|error| format!("{name}: {text}: {error}"))).transpose()
}

fn flag(fields: &Map<String, Value>, name: &str) -> Result<Option<bool>, String> {
    Ok(text(fields, name)?.map(|text| text.eq_ignore_ascii_case("true")))
}

/// `Util.fixEmptyAndTrim`.
pub(super) fn fix_empty_and_trim(text: Option<&str>) -> Option<String> {
    text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

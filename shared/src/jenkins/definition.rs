//! A node in the two formats that Jenkins accepts: the form of its own page, and its configuration file.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::node::{Launcher, Node};
use crate::config::{HostKeyVerification, Limit, Ssh};

const ALWAYS: &str = "hudson.slaves.RetentionStrategy$Always";
const INBOUND_LAUNCHER: &str = "hudson.slaves.JNLPLauncher";
const SSH_LAUNCHER: &str = "hudson.plugins.sshslaves.SSHLauncher";
const NO_VERIFICATION: &str = "hudson.plugins.sshslaves.verifiers.NonVerifyingKeyVerificationStrategy";
const KNOWN_HOSTS: &str = "hudson.plugins.sshslaves.verifiers.KnownHostsFileKeyVerificationStrategy";
const GIVEN_KEY: &str = "hudson.plugins.sshslaves.verifiers.ManuallyProvidedKeyVerificationStrategy";

/// What Jenkins' page for a new permanent agent submits as the form field `json`.
///
/// The names are those of the data-bound constructor and setters of `hudson.slaves.DumbSlave`, `hudson.model.Slave`,
/// `hudson.slaves.JNLPLauncher`, `hudson.slaves.EnvironmentVariablesNodeProperty` and the ssh-slaves plugin's
/// `SSHLauncher`; `stapler-class` (older) and `$class` (newer) name the class of a part (`org.kohsuke.stapler.RequestImpl`).
pub(super) fn form(node: &Node) -> Value {
    let environment: Vec<_> = node.environment.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let mut properties = json!({"stapler-class-bag": "true"});
    if !environment.is_empty() {
        properties["hudson-slaves-EnvironmentVariablesNodeProperty"] = json!({"env": environment});
    }
    json!({
        "name": node.name,
        "type": "hudson.slaves.DumbSlave",
        "nodeDescription": node.description,
        "numExecutors": node.executors.to_string(),
        "remoteFS": node.workspace,
        "labelString": node.labels.join(" "),
        "mode": "EXCLUSIVE",
        "launcher": launcher_form(&node.launcher),
        "retentionStrategy": part(ALWAYS, []),
        "nodeProperties": properties,
    })
}

fn part<const N: usize>(class: &str, fields: [(&str, Option<Value>); N]) -> Value {
    let class = [("stapler-class", Some(json!(class))), ("$class", Some(json!(class)))];
    class.into_iter().chain(fields).filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn launcher_form(launcher: &Launcher) -> Value {
    match launcher {
        Launcher::Inbound => part(INBOUND_LAUNCHER, [("webSocket", Some(json!(true)))]),
        Launcher::Ssh { host, port, settings } => part(
            SSH_LAUNCHER,
            [
                ("host", Some(json!(host))),
                ("port", Some(json!(port))),
                ("credentialsId", settings.credentials_id.as_ref().map(|id| json!(id))),
                ("launchTimeoutSeconds", Some(json!(seconds(settings.launch_timeout)))),
                ("maxNumRetries", Some(json!(settings.max_retries))),
                ("retryWaitTime", Some(json!(seconds(settings.retry_wait)))),
                ("javaPath", settings.java_path.as_ref().map(|text| json!(text))),
                ("jvmOptions", settings.jvm_options.as_ref().map(|text| json!(text))),
                ("prefixStartSlaveCmd", settings.prefix_start_command.as_ref().map(|text| json!(text))),
                ("suffixStartSlaveCmd", settings.suffix_start_command.as_ref().map(|text| json!(text))),
                ("tcpNoDelay", Some(json!(true))),
                ("sshHostKeyVerificationStrategy", Some(verification_form(&settings.host_key_verification))),
            ],
        ),
    }
}

fn verification_form(verification: &HostKeyVerification) -> Value {
    match verification {
        HostKeyVerification::None => part(NO_VERIFICATION, []),
        HostKeyVerification::KnownHosts => part(KNOWN_HOSTS, []),
        HostKeyVerification::Key(key) => part(GIVEN_KEY, [("key", Some(json!(key)))]),
    }
}

/// The node as Jenkins writes it to its `config.xml`, which `Jenkins.XSTREAM2` reads back: the names are those of the
/// fields of the same classes. XML 1.1, as there: a text may hold control characters.
pub(super) fn xml(node: &Node) -> String {
    let launcher = match &node.launcher {
        // Without `workDirSettings`, `JNLPLauncher.readResolve` takes the node for one from before 2.73 and disables
        // them.
        Launcher::Inbound => object(
            "launcher",
            INBOUND_LAUNCHER,
            &[
                "<workDirSettings>".into(),
                text("disabled", "false"),
                text("internalDir", "remoting"),
                text("failIfWorkDirIsMissing", "false"),
                "</workDirSettings>".into(),
                text("webSocket", "true"),
            ],
        ),
        Launcher::Ssh { host, port, settings } => ssh_launcher_xml(host, *port, settings),
    };
    [
        "<?xml version='1.1' encoding='UTF-8'?><slave>".into(),
        text("name", &node.name),
        text("description", &node.description),
        text("remoteFS", &node.workspace),
        text("numExecutors", &node.executors.to_string()),
        text("mode", "EXCLUSIVE"),
        object("retentionStrategy", ALWAYS, &[]),
        launcher,
        text("label", &node.labels.join(" ")),
        "<nodeProperties>".into(),
        environment_xml(node),
        "</nodeProperties></slave>".into(),
    ]
    .concat()
}

fn ssh_launcher_xml(host: &str, port: u16, settings: &Ssh) -> String {
    let optional = |name, value: &Option<String>| value.as_deref().map(|value| text(name, value)).unwrap_or_default();
    let verification = |class: &str, fields: &[String]| object("sshHostKeyVerificationStrategy", class, fields);
    object(
        "launcher",
        SSH_LAUNCHER,
        &[
            text("host", host),
            text("port", &port.to_string()),
            optional("credentialsId", &settings.credentials_id),
            optional("jvmOptions", &settings.jvm_options),
            optional("javaPath", &settings.java_path),
            optional("prefixStartSlaveCmd", &settings.prefix_start_command),
            optional("suffixStartSlaveCmd", &settings.suffix_start_command),
            text("launchTimeoutSeconds", &seconds(settings.launch_timeout).to_string()),
            text("maxNumRetries", &settings.max_retries.to_string()),
            text("retryWaitTime", &seconds(settings.retry_wait).to_string()),
            match &settings.host_key_verification {
                HostKeyVerification::None => verification(NO_VERIFICATION, &[]),
                HostKeyVerification::KnownHosts => verification(KNOWN_HOSTS, &[]),
                HostKeyVerification::Key(key) => {
                    // `hudson.plugins.sshslaves.verifiers.HostKey`: the key's bytes, which XStream writes as base64.
                    let mut words = key.split_whitespace();
                    let mut word = |name| text(name, words.next().unwrap_or_default());
                    verification(GIVEN_KEY, &["<key>".into(), word("algorithm"), word("key"), "</key>".into()])
                }
            },
            text("tcpNoDelay", "true"),
        ],
    )
}

/// `hudson.EnvVars` is a `TreeMap` whose comparator ignores case, and XStream writes it as Java serialisation would.
/// `TreeMap.readObject` keeps the order that it reads: it has to be the comparator's, and no name may be repeated.
fn environment_xml(node: &Node) -> String {
    if node.environment.is_empty() {
        return String::new();
    }
    let fold = |name: &str| name.to_uppercase().to_lowercase();
    let sorted: BTreeMap<_, _> = node.environment.iter().map(|(name, value)| (fold(name), (name, value))).collect();
    let variables: String =
        sorted.values().flat_map(|(name, value)| [text("string", name), text("string", value)]).collect();
    format!(
        "<hudson.slaves.EnvironmentVariablesNodeProperty><envVars serialization='custom'><unserializable-parents/>\
         <tree-map><default><comparator class='java.lang.String$CaseInsensitiveComparator'/></default>\
         <int>{}</int>{variables}</tree-map></envVars></hudson.slaves.EnvironmentVariablesNodeProperty>",
        sorted.len(),
    )
}

fn object(name: &str, class: &str, fields: &[String]) -> String {
    format!("<{name} class='{class}'>{}</{name}>", fields.concat())
}

fn text(name: &str, text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            // Not even XML 1.1 can represent these.
            '\0' | '\u{FFFE}' | '\u{FFFF}' => escaped.push('\u{FFFD}'),
            // Unescaped, a parser makes line breaks of these, or refuses them.
            '\u{1}'..='\u{1F}' | '\u{7F}'..='\u{9F}' | '\u{2028}' => escaped += &format!("&#{};", u32::from(c)),
            _ => escaped.push(c),
        }
    }
    format!("<{name}>{escaped}</{name}>")
}

/// The SSH launcher has no "never", and takes 0 for its own default (`SSHLauncher.setLaunchTimeoutSeconds`).
fn seconds(limit: Limit) -> i32 {
    i32::try_from(limit.0.unwrap_or_default().as_secs()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(launcher: Launcher) -> Node {
        Node {
            name: "ecs-maven-0a1b2c3d4e5f".into(),
            description: "for <app/main> & others".into(),
            labels: vec!["linux".into(), "maven".into()],
            workspace: "/home/jenkins".into(),
            executors: 2,
            environment: BTreeMap::from([("MAVEN_OPTS".into(), "-Xmx1g\n\"a\"".into())]),
            launcher,
        }
    }

    fn ssh(verification: HostKeyVerification) -> Launcher {
        let settings = Ssh {
            credentials_id: Some("jenkins-agent-key".into()),
            host_key_verification: verification,
            launch_timeout: Limit::seconds(90),
            max_retries: 7,
            retry_wait: Limit::seconds(4),
            java_path: Some("/opt/java/bin/java".into()),
            jvm_options: Some("-Xmx512m".into()),
            prefix_start_command: Some("bash -l -c '".into()),
            suffix_start_command: Some("'".into()),
            ..Ssh::default()
        };
        Launcher::Ssh { host: "10.0.1.5".into(), port: 32768, settings }
    }

    #[test]
    fn an_ssh_node_as_a_form() {
        let class = |class: &str| json!({"stapler-class": class, "$class": class});
        let mut launcher = class(SSH_LAUNCHER);
        for (name, value) in [
            ("host", json!("10.0.1.5")),
            ("port", json!(32768)),
            ("credentialsId", json!("jenkins-agent-key")),
            ("launchTimeoutSeconds", json!(90)),
            ("maxNumRetries", json!(7)),
            ("retryWaitTime", json!(4)),
            ("javaPath", json!("/opt/java/bin/java")),
            ("jvmOptions", json!("-Xmx512m")),
            ("prefixStartSlaveCmd", json!("bash -l -c '")),
            ("suffixStartSlaveCmd", json!("'")),
            ("tcpNoDelay", json!(true)),
            ("sshHostKeyVerificationStrategy", class(KNOWN_HOSTS)),
        ] {
            launcher[name] = value;
        }
        let expected = json!({
            "name": "ecs-maven-0a1b2c3d4e5f",
            "type": "hudson.slaves.DumbSlave",
            "nodeDescription": "for <app/main> & others",
            "numExecutors": "2",
            "remoteFS": "/home/jenkins",
            "labelString": "linux maven",
            "mode": "EXCLUSIVE",
            "launcher": launcher,
            "retentionStrategy": class(ALWAYS),
            "nodeProperties": {
                "stapler-class-bag": "true",
                "hudson-slaves-EnvironmentVariablesNodeProperty": {
                    "env": [{"key": "MAVEN_OPTS", "value": "-Xmx1g\n\"a\""}],
                },
            },
        });
        assert_eq!(form(&node(ssh(HostKeyVerification::KnownHosts))), expected);
    }

    #[test]
    fn leaves_unset_values_to_the_plugin() {
        let launcher = Launcher::Ssh { host: "h".into(), port: 22, settings: Ssh::default() };
        let form = form(&Node { environment: BTreeMap::new(), ..node(launcher) });
        for field in ["credentialsId", "javaPath", "jvmOptions", "prefixStartSlaveCmd", "suffixStartSlaveCmd"] {
            assert_eq!(form["launcher"].get(field), None, "{field}");
        }
        assert_eq!(form["launcher"]["sshHostKeyVerificationStrategy"]["$class"], NO_VERIFICATION);
        assert_eq!(form["nodeProperties"], json!({"stapler-class-bag": "true"}));
    }

    #[test]
    fn a_given_host_key_and_an_inbound_node_as_forms() {
        let key = "ssh-ed25519 AAAAC3Nz host";
        let given = form(&node(ssh(HostKeyVerification::Key(key.into()))));
        assert_eq!(given["launcher"]["sshHostKeyVerificationStrategy"]["key"], key);
        let inbound = form(&node(Launcher::Inbound));
        let launcher = json!({"stapler-class": INBOUND_LAUNCHER, "$class": INBOUND_LAUNCHER, "webSocket": true});
        assert_eq!(inbound["launcher"], launcher);
    }

    /// The texts of an XML document's leaves, with their paths below the root.
    fn leaves(document: &roxmltree::Document<'_>) -> Vec<(String, String)> {
        document
            .descendants()
            .filter(|element| element.is_element() && !element.children().any(|child| child.is_element()))
            .map(|leaf| {
                let mut path: Vec<_> = leaf.ancestors().filter(roxmltree::Node::is_element).collect();
                path.reverse();
                let path: Vec<_> = path[1..].iter().map(|element| element.tag_name().name()).collect();
                (path.join("/"), leaf.text().unwrap_or_default().to_owned())
            })
            .collect()
    }

    #[test]
    fn nodes_as_xml() {
        let xml = xml(&node(ssh(HostKeyVerification::Key("ssh-ed25519 AAAAC3Nz host".into()))));
        let document = roxmltree::Document::parse(&xml).expect("XML");
        assert_eq!(document.root_element().tag_name().name(), "slave");
        let variables = "nodeProperties/hudson.slaves.EnvironmentVariablesNodeProperty/envVars";
        let expected: Vec<(String, String)> = [
            ("name", "ecs-maven-0a1b2c3d4e5f"),
            ("description", "for <app/main> & others"),
            ("remoteFS", "/home/jenkins"),
            ("numExecutors", "2"),
            ("mode", "EXCLUSIVE"),
            ("retentionStrategy", ""),
            ("launcher/host", "10.0.1.5"),
            ("launcher/port", "32768"),
            ("launcher/credentialsId", "jenkins-agent-key"),
            ("launcher/jvmOptions", "-Xmx512m"),
            ("launcher/javaPath", "/opt/java/bin/java"),
            ("launcher/prefixStartSlaveCmd", "bash -l -c '"),
            ("launcher/suffixStartSlaveCmd", "'"),
            ("launcher/launchTimeoutSeconds", "90"),
            ("launcher/maxNumRetries", "7"),
            ("launcher/retryWaitTime", "4"),
            ("launcher/sshHostKeyVerificationStrategy/key/algorithm", "ssh-ed25519"),
            ("launcher/sshHostKeyVerificationStrategy/key/key", "AAAAC3Nz"),
            ("launcher/tcpNoDelay", "true"),
            ("label", "linux maven"),
            (&format!("{variables}/unserializable-parents"), ""),
            (&format!("{variables}/tree-map/default/comparator"), ""),
            (&format!("{variables}/tree-map/int"), "1"),
            (&format!("{variables}/tree-map/string"), "MAVEN_OPTS"),
            (&format!("{variables}/tree-map/string"), "-Xmx1g\n\"a\""),
        ]
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .into();
        assert_eq!(leaves(&document), expected);
        let class = |name| {
            document.descendants().find(|element| element.has_tag_name(name)).and_then(|found| found.attribute("class"))
        };
        assert_eq!(class("launcher"), Some(SSH_LAUNCHER));
        assert_eq!(class("retentionStrategy"), Some(ALWAYS));
        assert_eq!(class("sshHostKeyVerificationStrategy"), Some(GIVEN_KEY));

        let xml = super::xml(&Node { environment: BTreeMap::new(), ..node(Launcher::Inbound) });
        let document = roxmltree::Document::parse(&xml).expect("XML");
        let leaves = leaves(&document);
        assert!(leaves.contains(&("launcher/webSocket".into(), "true".into())));
        assert!(leaves.contains(&("launcher/workDirSettings/disabled".into(), "false".into())));
        assert!(leaves.contains(&("nodeProperties".into(), String::new())));
    }

    #[test]
    fn orders_variables_as_jenkins_reads_them() {
        let variables = ["B", "PATH", "_X", "a", "path"].map(|name| (name.to_owned(), format!("{name}=")));
        let xml = xml(&Node { environment: BTreeMap::from(variables), ..node(Launcher::Inbound) });
        let (_, variables) = xml.split_once("<int>").expect("a count");
        let expected = "4</int><string>_X</string><string>_X=</string><string>a</string><string>a=</string>\
            <string>B</string><string>B=</string><string>path</string><string>path=</string></tree-map>";
        assert!(variables.starts_with(expected), "{variables}");
    }

    #[test]
    fn no_text_breaks_the_xml() {
        assert_eq!(text("a", "x<y>&\r\n\t\u{1}\0é"), "<a>x&lt;y&gt;&amp;&#13;&#10;&#9;&#1;\u{FFFD}é</a>");
    }
}

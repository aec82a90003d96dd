//! Reads the configuration and finds everything that is wrong with it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value, json};
use serde_path_to_error::Segment;

use super::Config;
use super::check::check;
use super::yaml::{self, join};

/// A fault of the configuration: where, and what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// `clouds[0].templates[1].executors`; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl ConfigError {
    /// A fault.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// One YAML text and where it is from, which only a configuration of several texts has to know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Document {
    /// The SSM parameter's name.
    pub source: String,
    /// YAML.
    pub text: String,
}

impl Document {
    /// The only text of a configuration.
    pub fn only(text: impl Into<String>) -> Self {
        Self { source: String::new(), text: text.into() }
    }
}

/// Reads and checks a configuration of one text.
///
/// # Errors
/// Everything that is wrong with it.
pub fn from_yaml(text: &str) -> Result<Config, Vec<ConfigError>> {
    from_documents(&[Document::only(text)])
}

/// Reads and checks a configuration of one or several texts, whose `clouds` are joined in order.
///
/// # Errors
/// Everything that is wrong with it, ordered by path.
pub fn from_documents(documents: &[Document]) -> Result<Config, Vec<ConfigError>> {
    match read(documents) {
        (Some(config), errors) if errors.is_empty() => Ok(config),
        (_, errors) => Err(errors),
    }
}

/// The configuration as far as it can be read, and everything that is wrong with it: what it says of the secrets can be
/// looked into all the same.
pub(super) fn read(documents: &[Document]) -> (Option<Config>, Vec<ConfigError>) {
    let Joined { mut value, cloud_sources, mut guessed, mut errors } = Joined::new(documents);
    let config = typed(&mut value, &mut guessed, &mut errors);
    if let Some(config) = &config {
        check(config, &guessed, &mut errors);
    }
    for error in &mut errors {
        let index = error.path.strip_prefix("clouds[").and_then(|rest| rest.split(']').next()?.parse::<usize>().ok());
        match index.and_then(|index| cloud_sources.get(index)) {
            Some(source) if !source.is_empty() => error.message += &format!(" (in {source})"),
            _ => {}
        }
    }
    errors.sort();
    errors.dedup();
    (config, errors)
}

/// Several texts as one value.
#[derive(Default)]
struct Joined {
    value: Value,
    /// Where each cloud is from.
    cloud_sources: Vec<String>,
    guessed: Guessed,
    errors: Vec<ConfigError>,
}

impl Joined {
    fn new(documents: &[Document]) -> Self {
        let (mut fields, mut first_source) = (Map::new(), BTreeMap::new());
        let mut joined = Self::default();
        let mut complete = true;
        for Document { source, text } in documents {
            let located = |error: ConfigError| match source.as_str() {
                "" => error,
                source => ConfigError::new("", format!("{source}: {error}")),
            };
            let more = match yaml::parse(text) {
                Ok((Value::Object(more), twice)) => {
                    joined.errors.extend(twice.into_iter().map(located));
                    more
                }
                unreadable => {
                    complete = false;
                    let message = match unreadable {
                        Ok(_) => "has to be a YAML mapping with jenkins and clouds".into(),
                        Err(error) => format!("not YAML: {error}"),
                    };
                    joined.errors.push(located(ConfigError::new("", message)));
                    continue;
                }
            };
            for (key, value) in more {
                match (fields.get_mut(&key), value) {
                    (Some(Value::Array(clouds)), Value::Array(more)) if key == "clouds" => clouds.extend(more),
                    (Some(_), _) => {
                        let message = format!("is in {} too, and only one may have it", first_source[&key]);
                        joined.errors.push(located(ConfigError::new(key, message)));
                    }
                    (None, value) => {
                        first_source.insert(key.clone(), source.as_str());
                        fields.insert(key, value);
                    }
                }
            }
            let clouds = fields.get("clouds").and_then(Value::as_array).map_or(0, Vec::len);
            joined.cloud_sources.resize(clouds, source.clone());
        }
        if !complete {
            // What the unreadable text has is not missing.
            for key in ["jenkins", "clouds"].into_iter().filter(|&key| !fields.contains_key(key)) {
                joined.guessed.0.insert(key.into());
            }
        }
        joined.value = Value::Object(fields);
        joined
    }
}

/// The places where something is missing, wrong or not known. What stands there instead is a guess, not held against anybody.
#[derive(Debug, Default)]
pub(super) struct Guessed(BTreeSet<String>);

impl Guessed {
    /// Whether what is at the path was written so: neither it, nor what it is part of or made of, is a guess.
    pub(super) fn is_written(&self, path: &str) -> bool {
        !self.0.iter().any(|guess| is_within(path, guess) || is_within(guess, path))
    }

    /// Whether it is or belongs to a guess.
    pub(super) fn covers(&self, path: &str) -> bool {
        self.0.iter().any(|guess| is_within(path, guess))
    }
}

fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// More faults than this are not looked for.
const MOST: usize = 200;

/// Deserialises; notes what is wrong, puts a guess in its place and tries again, so that one run finds everything.
fn typed(value: &mut Value, guessed: &mut Guessed, errors: &mut Vec<ConfigError>) -> Option<Config> {
    for _ in 0..MOST {
        let error = match serde_path_to_error::deserialize::<_, Config>(&*value) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let segments: Vec<&Segment> = error.path().iter().collect();
        let message = error.inner().to_string();
        if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
            let path = join(&text(&segments), field);
            if guessed.0.insert(path.clone()) {
                errors.push(ConfigError::new(path, "is missing"));
            }
            if let Some(Value::Object(fields)) = find(value, &segments) {
                fields.insert(field.into(), guess_field(list_of(&segments), field));
            }
        } else if let Some(rest) = message.strip_prefix("unknown field `") {
            let expected = rest.split_once(", ").map_or("nothing expected", |(_, expected)| expected);
            let path = text(&segments);
            guessed.0.insert(path.clone());
            errors.push(ConfigError::new(path, format!("is not known here; {expected}")));
            repair(value, &segments);
        } else {
            // Where a guess is wrong too, what it is part of has to give way: a list in place of a mapping, say.
            let places = (0..=segments.len()).rev().map(|length| &segments[..length]);
            let is_place =
                |place: &&[&Segment]| matches!(place.last(), Some(Segment::Seq { .. } | Segment::Map { .. }));
            let mut places = places.filter(is_place);
            let innermost = places.next()?;
            let place = if guessed.0.insert(text(innermost)) {
                errors.push(ConfigError::new(text(&segments), worded(&message)));
                innermost
            } else {
                places.find(|place| guessed.0.insert(text(place)))?
            };
            repair(value, place);
        }
    }
    None
}

/// Takes a key out of its mapping; an element of a list is replaced, since its neighbours keep their places.
fn repair(value: &mut Value, place: &[&Segment]) {
    let Some((last, parents)) = place.split_last() else { return };
    match (last, find(value, parents)) {
        (Segment::Map { key }, Some(Value::Object(fields))) => {
            fields.remove(key);
        }
        (Segment::Seq { index }, Some(Value::Array(list))) => {
            if let Some(element) = list.get_mut(*index) {
                *element = guess_element(list_of(place));
            }
        }
        _ => {}
    }
}

/// The key of the list that the path leads into, if its last step does.
fn list_of<'a>(segments: &[&'a Segment]) -> &'a str {
    match segments {
        [.., Segment::Map { key }, Segment::Seq { .. }] => key,
        _ => "",
    }
}

fn find<'a>(value: &'a mut Value, segments: &[&Segment]) -> Option<&'a mut Value> {
    segments.iter().try_fold(value, |place, segment| match segment {
        Segment::Seq { index } => place.get_mut(*index),
        Segment::Map { key } | Segment::Enum { variant: key } => place.get_mut(key.as_str()),
        Segment::Unknown => None,
    })
}

fn text(segments: &[&Segment]) -> String {
    segments.iter().fold(String::new(), |path, segment| match segment {
        Segment::Seq { index } => format!("{path}[{index}]"),
        Segment::Map { key } | Segment::Enum { variant: key } => join(&path, key),
        Segment::Unknown => path,
    })
}

/// serde's message in the words of a configuration. A text that stands in the wrong place is not repeated: it could be
/// a secret.
fn worded(message: &str) -> String {
    let wrong =
        ["invalid type: ", "invalid value: ", "unknown variant "].iter().find_map(|head| message.strip_prefix(head));
    let Some((found, expected)) = wrong.and_then(|wrong| wrong.split_once(", expected ")) else {
        return message.to_owned();
    };
    let expected = match expected {
        "a sequence" => "a list",
        "a map" => "a mapping",
        "a boolean" => "true or false",
        "u16" | "u32" => "a whole number, 0 or more",
        "i32" => "a whole number",
        _ if expected.starts_with("struct ") => "a mapping",
        _ => expected,
    };
    let found = match found {
        "map" => "a mapping",
        "sequence" => "a list",
        "null" => "nothing",
        _ if found.starts_with("string ") => "a text",
        _ => found,
    };
    format!("has to be {expected}, not {found}")
}

/// Something of the right form for a field that has to be there.
fn guess_field(list: &str, field: &str) -> Value {
    match (list, field) {
        (_, "jenkins") => json!({"url": guess_field("", "url")}),
        (_, "url") => json!("https://guess.invalid/"),
        (_, "clouds" | "templates") => json!([guess_element(field)]),
        (_, "labels" | "subnets") => json!(["guess"]),
        (_, "cpu" | "memory") => json!(1),
        (_, "connect") => json!("ssh"),
        ("placementStrategy", "type") => json!("random"),
        ("placementConstraints", "type") => json!("distinctInstance"),
        _ => json!("guess"),
    }
}

/// The same for an element of a list.
fn guess_element(list: &str) -> Value {
    let fields: &[&str] = match list {
        "clouds" => &["name", "region", "templates"],
        "templates" => &["name", "labels", "taskDefinition", "connect"],
        "capacityProviders" => &["name"],
        "placementStrategy" | "placementConstraints" => &["type"],
        "allowedOverrides" => return json!("cpu"),
        _ => return json!("guess"),
    };
    fields.iter().map(|&field| (field, guess_field(list, field))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::subsequence;

    use super::*;

    /// Everything that can be written.
    const FULL: &str = r#"
jenkins:
  url: https://jenkins.example.com/
  user: ecs-agents
  apiToken: {ssm: /jenkins/api-token}
  registerNodes: true
  caCertificate: {file: /etc/ca.pem}
  webhook:
    url: https://jenkins.example.com/hook
    authorization: {env: AUTHORIZATION}
    signingSecret: {ssm: /jenkins/signing}
eventBus: ci-agents
clouds:
  - name: linux
    region: eu-west-1
    cluster: default
    assumeRoleArn: arn:aws:iam::123456789012:role/agents
    autoScalingGroup: jenkins-ecs
    instanceLaunchTimeout: 15m
    idleInstanceTimeout: never
    instanceRegistrationTimeout: 10m
    agentUrl: https://jenkins.internal/
    instanceCapacity: {cpu: 4096, memory: 7680}
    maxAgents: 100
    templates:
      - name: maven
        labels: [linux, maven]
        taskDefinition: arn:aws:ecs:eu-west-1:123456789012:task-definition/jenkins-maven:7
        container: agent
        connect: ssh
        workspace: /home/jenkins
        executors: 1
        containerStartTimeout: 15m
        agentsPerRequest: 1
        maxAgents: 20
        maxLifetime: 24h
        idleTimeout: 10m
        ssh:
          port: 22
          credentialsId: jenkins-agent-key
          address: private
          hostKeyVerification: {key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"}
          launchTimeout: 60s
          maxRetries: 10
          retryWait: 3s
          javaPath: /opt/java/bin/java
          jvmOptions: -Xmx64m
          prefixStartCommand: "sh -lc '"
          suffixStartCommand: "'"
        launch: {type: ec2}
        network: {subnets: [subnet-1], securityGroups: [sg-1], assignPublicIp: false}
        platformVersion: LATEST
        placementStrategy: [{type: binpack, field: memory}]
        placementConstraints: [{type: memberOf, expression: "attribute:ecs.os-type == linux"}]
        enableExecuteCommand: false
        environment: {MAVEN_OPTS: -Xmx1g}
        tags: {team: build}
        allowedOverrides: [cpu, memory, environment, command, taskRole, taskDefinition]
        limits: {cpu: 4096, memory: 16384, ephemeralStorage: 100}
        allowedTaskDefinitions: ["jenkins-*"]
      - name: node
        labels: [node]
        taskDefinition: node
        connect: inbound
        launch: {capacityProviders: [{name: FARGATE_SPOT, weight: 4, base: 0}, {name: FARGATE, weight: 1, base: 1}]}
        network: {subnets: [subnet-1, subnet-2], assignPublicIp: true}
"#;

    fn full() -> Value {
        yaml::parse(FULL).expect("YAML").0
    }

    fn faults(value: &Value) -> Vec<ConfigError> {
        from_yaml(&value.to_string()).err().unwrap_or_default()
    }

    fn validator() -> jsonschema::Validator {
        jsonschema::validator_for(&schemars::schema_for!(Config).into()).expect("a schema")
    }

    /// Every place below this one, as a path and as a JSON pointer.
    fn places(value: &Value, path: &str, pointer: &str) -> Vec<(String, String)> {
        let below: Vec<(String, String, &Value)> = match value {
            Value::Object(fields) => {
                fields.iter().map(|(key, value)| (join(path, key), format!("{pointer}/{key}"), value)).collect()
            }
            Value::Array(list) => (list.iter().enumerate())
                .map(|(index, value)| (format!("{path}[{index}]"), format!("{pointer}/{index}"), value))
                .collect(),
            _ => Vec::new(),
        };
        let mut all = Vec::new();
        for (path, pointer, value) in below {
            all.extend(places(value, &path, &pointer));
            all.push((path, pointer));
        }
        all
    }

    fn all_places() -> Vec<(String, String)> {
        places(&full(), "", "")
    }

    #[test]
    fn everything_that_can_be_written_is_read() {
        let config = from_yaml(FULL).expect("good");
        assert_eq!(config.clouds[0].templates.len(), 2);
        assert!(validator().is_valid(&full()));
        // So that the tests below leave no field out.
        let schema = Value::from(schemars::schema_for!(Config));
        let used: BTreeSet<_> = all_places().into_iter().map(|(path, _)| path).collect();
        for definition in schema["$defs"].as_object().into_iter().flat_map(Map::values).chain([&schema]) {
            for field in definition["properties"].as_object().into_iter().flat_map(Map::keys) {
                assert!(used.iter().any(|path| path == field || path.ends_with(&format!(".{field}"))), "{field}");
            }
        }
    }

    #[test]
    fn what_has_to_be_there_is_missed_where_it_is_missing() {
        let all = all_places();
        let mut required = 0;
        for (path, pointer) in &all {
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            let mut value = full();
            let Some(Value::Object(fields)) = value.pointer_mut(parent) else { continue };
            fields.remove(key);
            if !validator().is_valid(&value) && !path.ends_with("Key.key") {
                required += 1;
                let found: Vec<_> = faults(&value).iter().map(ToString::to_string).collect();
                assert!(
                    matches!(found.as_slice(), [one] if one.starts_with(path) || path.starts_with(&one[..one.find(':').unwrap_or(0)])),
                    "{path}: {found:#?}"
                );
            }
        }
        assert!(required > 20, "{required}");
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (path, pointer) in all_places().into_iter().chain([(String::new(), String::new())]) {
            let mut value = full();
            match value.pointer_mut(&pointer) {
                Some(Value::Object(fields)) => fields.insert("colour".into(), json!(["red"])),
                _ => continue,
            };
            let found = faults(&value);
            assert!(!validator().is_valid(&value), "{path}");
            assert_eq!(found.len(), 1, "{path}: {found:#?}");
            assert!(is_within(&join(&path, "colour"), &found[0].path), "{path}: {found:#?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_fault_is_found_at_once_and_nothing_else(
            chosen in subsequence(all_places(), 1..8), nonsense in prop_oneof![Just(json!([{"x": 1}])), Just(json!(-1.5))]
        ) {
            let mut value = full();
            let mut wrong: Vec<&str> = Vec::new();
            for (path, pointer) in &chosen {
                // What is inside another fault cannot be seen.
                if let Some(place) = value.pointer_mut(pointer) {
                    *place = nonsense.clone();
                    wrong.retain(|inner| !is_within(inner, path));
                    wrong.push(path);
                }
            }
            let found = faults(&value);
            prop_assert!(!validator().is_valid(&value));
            let near = |a: &str, b: &str| is_within(a, b) || is_within(b, a);
            for path in &wrong {
                prop_assert!(found.iter().any(|error| near(&error.path, path)), "{path} in {found:#?}");
            }
            for error in &found {
                prop_assert!(wrong.iter().any(|path| near(&error.path, path)), "{error} beside {wrong:?}");
            }
        }
    }

    fn document(source: &str, text: &str) -> Document {
        Document { source: source.into(), text: text.into() }
    }

    fn cloud(name: &str, more: &str) -> String {
        let template = format!("{{name: {name}, labels: [l], taskDefinition: d, connect: ssh}}");
        format!("clouds: [{{name: {name}, region: eu-west-1, templates: [{template}], {more}}}]")
    }

    #[test]
    fn the_clouds_of_several_texts_are_joined() {
        let documents = [
            document("/a/1", &cloud("one", "")),
            document("/a/2", &(cloud("two", "") + "\njenkins: {url: https://a/}")),
            document("/a/3", "eventBus: bus"),
        ];
        let config = from_documents(&documents).expect("good");
        let names: Vec<_> = config.clouds.iter().map(|cloud| cloud.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(config.event_bus.as_deref(), Some("bus"));
    }

    #[test]
    fn the_faults_of_several_texts_say_where_they_are_from() {
        let documents = [
            document("/a/1", &(cloud("one", "maxAgents: 0") + "\njenkins: {url: https://a/}")),
            document("/a/2", &(cloud("two", "maxAgents: 0, maxAgents: 1") + "\njenkins: {url: https://b/}")),
            document("/a/3", "clouds: 3"),
            document("/a/4", "a: ["),
        ];
        let found: Vec<_> = from_documents(&documents).expect_err("wrong").iter().map(ToString::to_string).collect();
        assert_eq!(
            found[..4],
            [
                "/a/2: clouds[0].maxAgents: is there twice",
                "/a/2: jenkins: is in /a/1 too, and only one may have it",
                "/a/3: clouds: is in /a/1 too, and only one may have it",
                found[3].as_str(),
            ]
        );
        assert!(found[3].starts_with("/a/4: not YAML: "), "{found:#?}");
        assert_eq!(
            found[4..],
            ["clouds[0].maxAgents: has to be above 0 (in /a/1)", "clouds[1].maxAgents: has to be above 0 (in /a/2)",]
        );
    }

    #[test]
    fn what_an_unreadable_text_has_is_not_missing() {
        let documents = [document("/a/1", "jenkins: {"), document("/a/2", &cloud("two", ""))];
        let found = from_documents(&documents).expect_err("wrong");
        assert!(matches!(found.as_slice(), [one] if one.message.starts_with("/a/1: not YAML")), "{found:#?}");
    }

    #[test]
    fn what_is_no_configuration_at_all_is_told_in_a_sentence() {
        for (text, expected) in [
            ("", "has to be a YAML mapping with jenkins and clouds"),
            ("- a", "has to be a YAML mapping with jenkins and clouds"),
            ("{}", "clouds: is missing; jenkins: is missing"),
            (
                "jenkins: 3\nclouds: x",
                "clouds: has to be a list, not a text; jenkins: has to be a mapping, not integer `3`",
            ),
            ("jenkins: {url: https://a/}\nclouds: []", "clouds: has to have at least one cloud"),
        ] {
            let found: Vec<_> = from_yaml(text).expect_err(text).iter().map(ToString::to_string).collect();
            assert_eq!(found.join("; "), expected);
        }
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        for text in ["hunter2", "{ssm: [hunter2]}", "{text: hunter2}", "[hunter2]", "{ssm: a, env: hunter2}"] {
            let found = from_yaml(&FULL.replace("{ssm: /jenkins/api-token}", text)).expect_err(text);
            assert!(matches!(found.as_slice(), [one] if one.path == "jenkins.apiToken"), "{found:#?}");
            assert!(!found[0].message.contains("hunter2"), "{found:#?}");
        }
    }
}

//! A user's own configuration, moved into the simulated world: its clusters, groups and task definitions are simulated,
//! whatever region and account they are in.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use super::emulator::REGION;
use crate::cloudformation;

/// The capacity provider of a cluster's default strategy, if that is not Fargate.
pub(super) const DEFAULT: &str = "simulated-default";

/// The resources that `agents.yaml` and `task-definitions-*.yaml` of a folder need, as `./local/convert` writes them.
#[derive(Debug)]
pub(super) struct Imported {
    /// The clouds of the configuration, in the simulator's region.
    pub(super) clouds: Value,
    /// Clusters by name.
    pub(super) clusters: BTreeSet<String>,
    /// Auto Scaling groups and their clusters. A cloud without a group whose templates need instances gets one that the
    /// configuration does not name, so that nothing raises it.
    pub(super) groups: BTreeSet<(String, String)>,
    /// Capacity providers of instances, and their clusters. `DEFAULT` is the whole default strategy of its cluster.
    pub(super) providers: BTreeSet<(String, String)>,
    /// Inputs of RegisterTaskDefinition.
    pub(super) definitions: Vec<Value>,
    /// A label expression for each template.
    pub(super) labels: Vec<String>,
}

impl Imported {
    /// Reads a folder.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let file = folder.join("agents.yaml");
        ensure_valid(&file)?;
        let mut agents = read(&file)?;
        let mut imported = Self {
            clouds: agents["clouds"].take(),
            clusters: BTreeSet::new(),
            groups: BTreeSet::new(),
            providers: BTreeSet::new(),
            definitions: definitions(folder)?,
            labels: Vec::new(),
        };
        let mut clouds = imported.clouds.take();
        for cloud in clouds.as_array_mut().context("agents.yaml has no clouds")? {
            imported.cloud(cloud)?;
        }
        imported.clouds = clouds;
        Ok(imported)
    }

    fn cloud(&mut self, cloud: &mut Value) -> Result<()> {
        let cluster = last(cloud["cluster"].as_str().unwrap_or("default")).to_owned();
        let templates = cloud["templates"].as_array_mut().context("a cloud has no templates")?;
        let mut on_instances = false;
        for template in templates.iter_mut() {
            self.template(template)?;
            let launch = &template["launch"];
            let chosen = launch["capacityProviders"].as_array().into_iter().flatten();
            let mut providers: Vec<&str> = chosen.filter_map(|provider| provider["name"].as_str()).collect();
            if launch["type"] == "default" && !self.is_for_fargate(&template["taskDefinition"]) {
                providers.push(DEFAULT);
            }
            providers.retain(|name| !name.starts_with("FARGATE"));
            let is_ec2 =
                launch["capacityProviders"].is_null() && launch["type"].as_str().is_none_or(|kind| kind == "ec2");
            on_instances |= is_ec2 || !providers.is_empty();
            self.providers.extend(providers.iter().map(|&name| (name.to_owned(), cluster.clone())));
        }
        let group = cloud["autoScalingGroup"].as_str().map(str::to_owned);
        if let Some(group) = group.or_else(|| on_instances.then(|| format!("instances-of-{cluster}"))) {
            self.groups.insert((group, cluster.clone()));
        }
        let cloud = cloud.as_object_mut().context("a cloud is not a mapping")?;
        cloud.remove("assumeRoleArn");
        cloud.insert("region".into(), REGION.into());
        cloud.insert("cluster".into(), cluster.as_str().into());
        self.clusters.insert(cluster);
        Ok(())
    }

    fn is_for_fargate(&self, family: &Value) -> bool {
        let definition = self.definitions.iter().find(|definition| definition["family"] == *family);
        definition.is_some_and(|definition| definition["requiresCompatibilities"] == json!(["FARGATE"]))
    }

    fn template(&mut self, template: &mut Value) -> Result<()> {
        let labels = template["labels"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let quoted = labels.map(|label| {
            match label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
                true => label.to_owned(),
                false => format!("\"{label}\""),
            }
        });
        self.labels.push(quoted.collect::<Vec<_>>().join(" && "));
        // Every family begins with revision 1 here.
        let definition = template["taskDefinition"].as_str().context("a template has no taskDefinition")?;
        let family = last(definition).split(':').next().unwrap_or_default().to_owned();
        if !self.definitions.iter().any(|definition| definition["family"] == family.as_str()) {
            self.definitions.push(stand_in(&family, template));
        }
        template["taskDefinition"] = family.into();
        Ok(())
    }
}

/// A task definition that is missing in the folder.
fn stand_in(family: &str, template: &Value) -> Value {
    let in_vpc = template["network"].is_object();
    let port = template["ssh"]["port"].as_u64().unwrap_or(22);
    let mapping = json!({"containerPort": port, "hostPort": if in_vpc { port } else { 0 }});
    let mappings = if template["connect"] == "ssh" { vec![mapping] } else { vec![] };
    json!({
        "family": family, "networkMode": if in_vpc { "awsvpc" } else { "bridge" },
        "requiresCompatibilities": [if in_vpc { "FARGATE" } else { "EC2" }], "cpu": "1024", "memory": "2048",
        "containerDefinitions": [{
            "name": template["container"].as_str().unwrap_or("agent"), "image": "agent", "essential": true,
            "portMappings": mappings,
        }],
    })
}

fn definitions(folder: &Path) -> Result<Vec<Value>> {
    let mut definitions = Vec::new();
    let entries = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("task-definitions-") || !name.ends_with(".yaml") {
            continue;
        }
        let template = read(&path)?;
        let resources = template["Resources"].as_object().with_context(|| format!("{name} has no Resources"))?;
        for resource in resources.values() {
            ensure!(resource["Type"] == "AWS::ECS::TaskDefinition", "{name}: {} is not imported", resource["Type"]);
            definitions.push(as_input(&resource["Properties"]));
        }
    }
    Ok(definitions)
}

/// Properties of a CloudFormation resource as the API's input: names begin in lower case.
fn as_input(value: &Value) -> Value {
    match value {
        Value::Array(values) => values.iter().map(as_input).collect(),
        Value::Object(values) => match values.get("Fn::Sub").and_then(Value::as_str) {
            Some(text) => text.replace("${AWS::Partition}", "aws").replace("${AWS::AccountId}", super::ACCOUNT).into(),
            None => {
                let members = values.iter().map(|(name, value)| match name.as_str() {
                    // Its keys belong to the log driver.
                    "Options" => ("options".to_owned(), value.clone()),
                    "EFSVolumeConfiguration" => ("efsVolumeConfiguration".to_owned(), as_input(value)),
                    "FilesystemId" => ("fileSystemId".to_owned(), as_input(value)),
                    "IAM" => ("iam".to_owned(), as_input(value)),
                    _ => (name[..1].to_ascii_lowercase() + &name[1..], as_input(value)),
                });
                Value::Object(members.collect::<Map<_, _>>())
            }
        },
        plain => plain.clone(),
    }
}

/// With a faulty configuration, no function would start.
fn ensure_valid(file: &Path) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let (_, faults) = config::from_documents(&[config::Document { source: String::new(), text }]);
    let list = faults.iter().map(|fault| format!("\n- {fault}")).collect::<String>();
    ensure!(faults.is_empty(), "{} has faults:{list}", file.display());
    Ok(())
}

fn read(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    cloudformation::parse(&text).with_context(|| file.display().to_string())
}

/// The part after the last slash of an ARN; a name as it is.
fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::Aws;

    fn converted(case: &str) -> Result<Imported> {
        Imported::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/convert").join(case).join("expected"))
    }

    #[test]
    fn the_simulator_registers_converted_task_definitions() -> Result<()> {
        for case in ["fargate-by-variables", "inherited-and-misspelt", "instances-with-docker", "two-accounts-on-spot"]
        {
            let imported = converted(case)?;
            let mut aws = Aws::new(REGION, super::super::ACCOUNT, "http://127.0.0.1:1");
            for definition in &imported.definitions {
                aws.ecs
                    .register_definition(definition)
                    .map_err(|error| anyhow::anyhow!("{case}: {}", error.message))?;
            }
            assert!(imported.definitions.len() >= imported.labels.len(), "{case}");
        }
        Ok(())
    }

    #[test]
    fn clouds_move_into_the_simulated_region_and_account() -> Result<()> {
        let imported = converted("two-accounts-on-spot")?;
        assert_eq!(imported.clusters, BTreeSet::from(["ci".to_owned()]));
        assert_eq!(imported.labels, ["gradle && jdk21", "arm64"]);
        assert_eq!(imported.providers, BTreeSet::from([(DEFAULT.to_owned(), "ci".to_owned())]));
        for cloud in imported.clouds.as_array().context("clouds")? {
            assert_eq!((&cloud["region"], &cloud["cluster"]), (&json!(REGION), &json!("ci")));
            assert!(cloud.get("assumeRoleArn").is_none(), "{cloud}");
        }
        Ok(())
    }

    #[test]
    fn a_faulty_configuration_is_refused_with_its_faults() -> Result<()> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("agents.yaml"), "clouds: [{name: c, region: eu-west-1, templates: []}]")?;
        let error = format!("{:#}", Imported::read(folder.path()).expect_err("no jenkins, no template"));
        assert!(error.contains("\n- clouds[0].templates: ") && error.contains("\n- jenkins: "), "{error}");
        Ok(())
    }

    #[test]
    fn instances_are_simulated_where_no_group_is_named() -> Result<()> {
        let imported = converted("instances-with-docker")?;
        assert_eq!(imported.groups.len(), 1);
        let given = imported.definitions.iter().find(|definition| definition["family"] == "android-agent");
        assert_eq!(given.context("a stand-in")?["containerDefinitions"][0]["essential"], true);
        assert!(imported.clouds[0].get("autoScalingGroup").is_none(), "{}", imported.clouds);
        Ok(())
    }
}

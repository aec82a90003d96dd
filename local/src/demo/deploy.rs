//! Deploys `template.yaml` into the emulator: packages the functions, stores the configuration, creates the stack.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tokio::process::Command;

use super::emulator::{Aws, REGION};

/// The stack's name.
pub(super) const STACK: &str = "agents";
/// The bucket of the packaged functions.
const BUCKET: &str = "functions";
/// The namespace of the CloudFormation API.
const VERSION: &str = "2010-05-15";

/// The functions, by their logical ids in the template, and their binaries.
const FUNCTIONS: [(&str, &str); 3] =
    [("RequestFunction", "request"), ("TaskStateFunction", "task-state"), ("TeardownFunction", "teardown")];

/// Zips the binaries as a custom runtime expects them, each under the name `bootstrap`, and uploads them.
///
/// # Errors
/// When a binary is missing or cannot be packaged.
pub(super) async fn upload(aws: &Aws, stack: &Path, temporary: &Path, binaries: &Path) -> Result<()> {
    let location = format!(
        "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
    );
    aws.put("s3", &format!("/{BUCKET}"), location.into()).await?;
    for (_, name) in FUNCTIONS {
        let binary = binaries.join(name);
        ensure!(
            binary.exists(),
            "{} is missing: build it with `cargo build --profile local -p {name}`",
            binary.display()
        );
        let packages = stack.join("package");
        let folder = temporary.join("package").join(name);
        let zip = packages.join(format!("{name}.zip"));
        if !is_newer(&zip, &binary) {
            std::fs::create_dir_all(&packages)?;
            std::fs::create_dir_all(&folder)?;
            let bootstrap = folder.join("bootstrap");
            std::fs::copy(&binary, &bootstrap).with_context(|| format!("copy {}", binary.display()))?;
            let mut python = Command::new(stack.join("venv/bin/python"));
            let unfinished = folder.join("unfinished.zip");
            python.args(["-m", "zipfile", "-c"]).arg(&unfinished).arg(&bootstrap);
            let status = python.status().await.context("zip a function")?;
            ensure!(status.success(), "zipping {} failed: {status}", bootstrap.display());
            std::fs::rename(unfinished, &zip)?;
        }
        aws.put("s3", &format!("/{BUCKET}/{name}.zip"), std::fs::read(&zip)?.into()).await?;
    }
    Ok(())
}

/// Whether a file was written after another.
fn is_newer(file: &Path, other: &Path) -> bool {
    let written = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    matches!((written(file), written(other)), (Some(file), Some(other)) if file > other)
}

/// Resources that the emulator cannot create: alarms over several metrics, and saved queries.
const LEFT_OUT: [&str; 6] = [
    "AgentsFailAlarm",
    "UndeliveredAlarm",
    "RequestsUnreadAlarm",
    "WaitingUnreadAlarm",
    "CompletionsUnreadAlarm",
    "StoryQuery",
];

/// The template as `sam package` would leave it: `CodeUri` names the uploaded zip.
///
/// The emulator takes every number from a parameter for a string and then cannot compare it, so the one that it
/// compares is written out; resources that it does not know are removed.
pub(super) fn packaged(template: &str) -> String {
    let mut resource = "";
    let mut lines = Vec::new();
    for line in template.lines() {
        if let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with([' ', '#'])) {
            resource = name.trim_end_matches(':');
        }
        if LEFT_OUT.contains(&resource) {
            continue;
        }
        // Nor are they on the dashboard.
        let line = LEFT_OUT.iter().fold(line.to_owned(), |line, id| line.replace(&format!("\"${{{id}.Arn}}\","), ""));
        let binary = FUNCTIONS.iter().find(|(id, _)| *id == resource).map(|(_, name)| name);
        match (line.trim_start().starts_with("CodeUri:"), binary) {
            (true, Some(name)) => lines.push(format!("      CodeUri: s3://{BUCKET}/{name}.zip")),
            _ => lines.push(line.replace("!Ref MaximumConcurrency", "2")),
        }
    }
    lines.join("\n")
}

/// Stores a parameter.
///
/// # Errors
/// When the emulator does not accept it.
pub(super) async fn parameter(aws: &Aws, name: &str, value: &str, secret: bool) -> Result<()> {
    let kind = if secret { "SecureString" } else { "String" };
    let input = json!({"Name": name, "Value": value, "Type": kind, "Overwrite": true});
    aws.json("ssm", "AmazonSSM.PutParameter", &input).await.map(drop)
}

/// Creates the stack and waits for it: returns its outputs.
///
/// # Errors
/// When it fails; the error names the resources at fault.
pub(super) async fn create(
    aws: &Aws,
    template: &str,
    parameters: &[(&str, String)],
) -> Result<BTreeMap<String, String>> {
    // CreateStack accepts 51,200 bytes in its body; sam deploy uploads the template, too.
    aws.put("s3", &format!("/{BUCKET}/template.yaml"), packaged(template).into()).await?;
    let mut fields = vec![
        ("StackName".to_owned(), STACK.to_owned()),
        ("TemplateURL".to_owned(), format!("https://s3.amazonaws.com/{BUCKET}/template.yaml")),
        ("Capabilities.member.1".to_owned(), "CAPABILITY_IAM".to_owned()),
        ("Capabilities.member.2".to_owned(), "CAPABILITY_AUTO_EXPAND".to_owned()),
    ];
    for (index, (name, value)) in parameters.iter().enumerate() {
        fields.push((format!("Parameters.member.{}.ParameterKey", index + 1), (*name).to_owned()));
        fields.push((format!("Parameters.member.{}.ParameterValue", index + 1), value.clone()));
    }
    aws.form("cloudformation", VERSION, "CreateStack", &fields).await?;
    let name = [("StackName".to_owned(), STACK.to_owned())];
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let stack = aws.form("cloudformation", VERSION, "DescribeStacks", &name).await?;
        match text(&stack, "StackStatus").next() {
            Some("CREATE_COMPLETE") => {
                return Ok(text(&stack, "OutputKey")
                    .map(str::to_owned)
                    .zip(text(&stack, "OutputValue").map(str::to_owned))
                    .collect());
            }
            Some(status) if !status.ends_with("IN_PROGRESS") => {
                let events = aws.form("cloudformation", VERSION, "DescribeStackEvents", &name).await?;
                let reasons: Vec<_> =
                    text(&events, "ResourceStatusReason").filter(|reason| !reason.is_empty()).collect();
                bail!("the stack is {status}: {}", reasons.join("; "));
            }
            _ if Instant::now() >= deadline => bail!("the stack is not created within 60 s"),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The text of every element of that name. The documents that are read here have no entities.
fn text<'a>(xml: &'a str, element: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&open)?;
        let (found, after) = after.split_once(&close)?;
        rest = after;
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_of_the_template_is_packaged() {
        let template = include_str!("../../../template.yaml");
        let packaged = packaged(template);
        for (_, name) in FUNCTIONS {
            assert!(packaged.contains(&format!("      CodeUri: s3://functions/{name}.zip\n")), "{name}");
        }
        assert_eq!(packaged.matches("CodeUri:").count(), FUNCTIONS.len());
        assert!(!packaged.contains("!Ref MaximumConcurrency"));
        assert!(!packaged.contains("Expression:"), "the emulator knows no alarms over several metrics");
    }

    #[test]
    fn elements_are_found_in_order() {
        let xml = "<a><k>1</k><v>x</v></a><a><k>2</k><v/></a>";
        assert_eq!(text(xml, "k").collect::<Vec<_>>(), ["1", "2"]);
    }
}

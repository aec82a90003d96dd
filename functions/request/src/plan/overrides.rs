//! Decides which overrides a request may have.

use std::collections::BTreeSet;

use shared::arn;
use shared::config::{Cloud, Override, Template, variables};
use shared::message::{Failure, FailureCode, Overrides};

/// The GiB of a Fargate task's ephemeral storage (API_EphemeralStorage).
const EPHEMERAL_STORAGE: std::ops::RangeInclusive<u32> = 21..=200;

/// Validates a request's overrides against its template. `has_webhooks` says whether each of its agents has a webhook
/// of its own.
///
/// # Errors
/// The first override that is not allowed.
pub fn check(template: &Template, overrides: &Overrides, has_webhooks: bool) -> Result<(), Failure> {
    check_allowed(template, overrides, has_webhooks).map_err(refused)?;
    check_amounts(template, overrides)?;
    check_environment(overrides)
}

fn refused(message: String) -> Failure {
    Failure::new(FailureCode::OverrideRefused, message)
}

fn check_allowed(template: &Template, overrides: &Overrides, has_webhooks: bool) -> Result<(), String> {
    // The fourth value: whether an agent of the request could pass it on to another build. Without a webhook of its
    // own, an agent carries the template's labels, and any build may run on it.
    let asked = [
        (Override::Cpu, "cpu", overrides.cpu.is_some(), false),
        (Override::Memory, "memory", overrides.memory.is_some(), false),
        (Override::EphemeralStorage, "ephemeralStorage", overrides.ephemeral_storage.is_some(), false),
        (Override::Environment, "environment", !overrides.environment.is_empty(), true),
        (Override::Command, "command", overrides.command.is_some(), true),
        (Override::TaskRole, "taskRole", overrides.task_role.is_some(), true),
        (Override::TaskDefinition, "taskDefinition", overrides.task_definition.is_some(), true),
    ];
    for (kind, name, _, decides_what_runs) in asked.into_iter().filter(|(_, _, is_asked, _)| *is_asked) {
        if !template.allowed_overrides.contains(&kind) {
            return Err(format!(
                "overrides.{name}: template {} does not allow it; add {name} to its allowedOverrides",
                template.name
            ));
        }
        if decides_what_runs && !has_webhooks {
            return Err(format!(
                "overrides.{name}: needs a webhookUrl for each agent; an agent without one carries the template's labels, and another build would run on what this one chose"
            ));
        }
    }
    Ok(())
}

fn check_amounts(template: &Template, overrides: &Overrides) -> Result<(), Failure> {
    let limits = &template.limits;
    let amounts = [
        ("cpu", overrides.cpu, limits.cpu),
        ("memory", overrides.memory, limits.memory),
        ("ephemeralStorage", overrides.ephemeral_storage, limits.ephemeral_storage),
    ];
    for (name, asked, limit) in amounts {
        match (asked, limit) {
            (Some(0), _) if name != "ephemeralStorage" => {
                return Err(Failure::new(FailureCode::InvalidRequest, format!("overrides.{name}: must be above 0")));
            }
            (Some(asked), Some(limit)) if asked > limit => {
                let template = &template.name;
                return Err(refused(format!(
                    "overrides.{name}: {asked} is over the limit of {limit} of template {template}"
                )));
            }
            _ => {}
        }
    }
    match overrides.ephemeral_storage {
        Some(asked) if !EPHEMERAL_STORAGE.contains(&asked) => {
            Err(refused(format!("overrides.ephemeralStorage: {asked} is not 21 to 200 (GiB), as Fargate has it")))
        }
        _ => Ok(()),
    }
}

fn check_environment(overrides: &Overrides) -> Result<(), Failure> {
    let is_taken = |name: &&String| variables::is_reserved(name) || variables::is_for_templates_alone(name);
    if let Some(name) = overrides.environment.keys().find(is_taken) {
        return Err(refused(format!(
            "overrides.environment.{name}: is set by the launch itself, or by the template alone"
        )));
    }
    match overrides.environment.keys().find(|name| name.is_empty() || name.contains('=')) {
        Some(name) => {
            let message = format!("overrides.environment: {name:?} cannot be a variable's name");
            Err(Failure::new(FailureCode::InvalidRequest, message))
        }
        None => Ok(()),
    }
}

/// Validates the task definition that a request overrides. `own` are the accounts of the stack.
///
/// # Errors
/// When the template does not allow it.
pub fn check_task_definition(
    cloud: &Cloud,
    template: &Template,
    overrides: &Overrides,
    own: &BTreeSet<String>,
) -> Result<(), Failure> {
    let Some(asked) = &overrides.task_definition else { return Ok(()) };
    if !template.allowed_task_definitions.iter().any(|pattern| pattern.allows(asked)) {
        let allowed: Vec<_> = template.allowed_task_definitions.iter().map(ToString::to_string).collect();
        return Err(refused(format!(
            "overrides.taskDefinition: family {} is not allowed by template {}; it allows: {}",
            asked.family(),
            template.name,
            allowed.join(", ")
        )));
    }
    let Some((region, account)) = asked.region_and_account() else { return Ok(()) };
    if region != cloud.region {
        let message = format!("overrides.taskDefinition: region {region} is not that of cloud {}", cloud.name);
        return Err(refused(message));
    }
    // The template's task definition is in the account where its tasks run.
    let accounts = match arn::account(&template.task_definition) {
        Some(account) => [account.to_owned()].into(),
        None => arn::accounts_of(cloud, own),
    };
    match accounts.is_empty() || accounts.contains(account) {
        true => Ok(()),
        false => {
            let message =
                format!("overrides.taskDefinition: account {account} is not that of the template's task definition");
            Err(refused(message))
        }
    }
}

//! What a task runs on, as RunTask expects it.

use super::filled;
use crate::reader::{Field, Fields, Place};
use crate::rules::{is_filled, is_word};
use crate::types::{
    CapacityProvider, Launch, LaunchType, Network, PlacementConstraint, PlacementConstraintType, PlacementStrategy,
    PlacementStrategyType,
};

pub(super) fn launch(fields: &mut Fields<'_>) -> Option<Launch> {
    let kind = fields.optional("type", |place| {
        place.choice(&[
            ("ec2", LaunchType::Ec2),
            ("fargate", LaunchType::Fargate),
            ("external", LaunchType::External),
            ("default", LaunchType::Default),
        ])
    });
    let providers = fields.optional("capacityProviders", capacity_providers);
    match (kind, providers) {
        (Field::Absent, Field::Absent) => {
            fields.fault("", "needs type or capacityProviders");
            None
        }
        (Field::Absent, providers) => providers.ok().map(Launch::CapacityProviders),
        (kind, Field::Absent) => kind.ok().map(Launch::Type),
        _ => {
            fields.fault("type", "cannot be combined with capacityProviders");
            None
        }
    }
}

/// As API_RunTask and API_CapacityProviderStrategyItem have them.
fn capacity_providers(place: Place<'_>) -> Option<Vec<CapacityProvider>> {
    let length = place.length();
    let providers = place.list(|place| place.mapping(capacity_provider))?;
    let with_weight = providers.iter().filter(|provider| provider.weight > 0).count();
    let with_base = providers.iter().filter(|provider| provider.base > 0).count();
    let of_fargate = providers.iter().filter(|provider| provider.is_fargate()).count();
    let is_all_read = providers.len() == length;
    for (is_wrong, message) in [
        (length == 0, "must have at least one capacity provider"),
        (length > 20, "must have at most 20 entries"),
        (is_all_read && length > 0 && with_weight == 0, "must have one weight above 0"),
        (with_base > 1, "must have at most one base above 0"),
        (of_fargate > 0 && of_fargate < providers.len(), "cannot mix Fargate's with others"),
    ] {
        if is_wrong {
            place.fault(message);
            return None;
        }
    }
    is_all_read.then_some(providers)
}

fn capacity_provider(fields: &mut Fields<'_>) -> Option<CapacityProvider> {
    let is_provider = |text: &str| is_word(text, 255, "_-");
    let name = fields.required("name", |place| place.text_that(is_provider, "must be the name of a capacity provider"));
    let weight = fields.optional("weight", |place| place.number(0..=1000));
    let base = fields.optional("base", |place| place.number(0..=100_000));
    let (weight, base) = match (weight, base) {
        (Field::Wrong, _) | (_, Field::Wrong) => return None,
        (weight, base) => (weight.or(1), base.or(0)),
    };
    Some(CapacityProvider { name: name.ok()?, weight, base })
}

/// As API_AwsVpcConfiguration has it.
pub(super) fn network(fields: &mut Fields<'_>) -> Option<Network> {
    let is_id = |text: &str| is_word(text, 64, "-");
    let subnets = fields.required("subnets", |place| {
        if !(1..=16).contains(&place.length()) && place.is_list() {
            place.fault("must have 1 to 16 subnets");
            return None;
        }
        place.list(|place| place.text_that(is_id, "must be the id of a subnet, as subnet-1"))
    });
    let security_groups = fields.optional("securityGroups", |place| {
        super::at_most(&place, 5);
        place.list(|place| place.text_that(is_id, "must be the id of a security group, as sg-1"))
    });
    Some(Network {
        security_groups: security_groups.or(Vec::new()),
        assign_public_ip: fields.optional("assignPublicIp", |place| place.flag()).or(false),
        subnets: subnets.ok()?,
    })
}

/// As API_PlacementStrategy has it.
pub(super) fn placement_strategy(fields: &mut Fields<'_>) -> Option<PlacementStrategy> {
    let kind = fields.required("type", |place| {
        place.choice(&[
            ("binpack", PlacementStrategyType::Binpack),
            ("spread", PlacementStrategyType::Spread),
            ("random", PlacementStrategyType::Random),
        ])
    });
    let field = fields.optional("field", |place| place.text().map(str::to_owned));
    let kind = kind.ok()?;
    let (holds, message) = match (kind, &field) {
        (_, Field::Wrong) => return None,
        (PlacementStrategyType::Random, field) => (field.is_absent(), "cannot be combined with random"),
        (PlacementStrategyType::Binpack, field) => {
            let field = field.as_ref().map(|field| field.to_ascii_lowercase());
            (matches!(field.as_deref(), Some("cpu" | "memory")), "must be cpu or memory for binpack")
        }
        (PlacementStrategyType::Spread, field) => {
            let is_there = field.as_ref().is_some_and(|field| is_filled(field));
            (is_there, "is missing: spread goes by instanceId or by an attribute:NAME")
        }
    };
    fields.unless(holds, "field", message);
    Some(PlacementStrategy { kind, field: field.ok() })
}

/// As API_PlacementConstraint has it.
pub(super) fn placement_constraint(fields: &mut Fields<'_>) -> Option<PlacementConstraint> {
    let kind = fields.required("type", |place| {
        place.choice(&[
            ("distinctInstance", PlacementConstraintType::DistinctInstance),
            ("memberOf", PlacementConstraintType::MemberOf),
        ])
    });
    let expression = fields.optional("expression", filled);
    let kind = kind.ok()?;
    match (kind, &expression) {
        (PlacementConstraintType::DistinctInstance, Field::Read(_))
        | (PlacementConstraintType::MemberOf, Field::Absent) => {
            fields.fault("expression", "is required with memberOf, and cannot be combined with anything else");
        }
        _ => {}
    }
    Some(PlacementConstraint { kind, expression: expression.ok() })
}

use super::template::template;
use super::{Around, COUNT, duration, filled, not_empty, plain_url};
use crate::duration::Limit;
use crate::reader::{Field, Fields, Place};
use crate::rules::{NAME, cluster_name, is_name, is_region, is_role_arn, is_word};
use crate::types::{Cloud, Size, default_cluster, default_launch_timeout};

pub(super) fn cloud(fields: &mut Fields<'_>, around: &mut Around) -> Option<Cloud> {
    let name = fields.required("name", |place| place.text_that(is_name, NAME));
    if let Some(name) = name.as_ref()
        && let Some(first) = around.cloud_names.insert(name.clone(), fields.path().to_owned())
    {
        fields.fault("name", format!("{name:?} is the name of {first} too"));
    }
    let region = fields
        .required("region", |place| place.text_that(is_region, "must be a region of an AWS partition, as eu-west-1"));
    let cluster = fields.optional("cluster", |place| {
        place.text_that(|text| is_word(cluster_name(text), 255, "_-"), "must be the name or the ARN of a cluster")
    });
    let role = fields.optional("assumeRoleArn", |place| place.text_that(is_role_arn, "must be the ARN of a role"));
    let group = fields.optional("autoScalingGroup", filled);
    let registration = fields.optional("instanceRegistrationTimeout", duration);
    let idle = fields.optional("idleInstanceTimeout", duration);
    needs_group(fields, &group, &registration, &idle);
    let cluster_key = match (region.as_ref(), cluster.effective(&default_cluster()), &role) {
        (Some(region), Some(cluster), Field::Absent | Field::Read(_)) => {
            (region.clone(), cluster_name(cluster).to_owned(), role.as_ref().cloned())
        }
        // Where its cluster is not known, its templates are compared among themselves.
        _ => (fields.path().to_owned(), String::new(), None),
    };
    let templates = fields.required("templates", |place: Place<'_>| {
        not_empty(&place, "must have at least one template");
        place.list(|place| place.mapping(|fields| template(fields, &cluster_key, around)))
    });
    Some(Cloud {
        cluster: cluster.or(default_cluster()),
        assume_role_arn: role.ok(),
        auto_scaling_group: group.ok(),
        instance_launch_timeout: fields.optional("instanceLaunchTimeout", duration).or(default_launch_timeout()),
        instance_registration_timeout: registration.ok(),
        idle_instance_timeout: idle.or(Limit::NEVER),
        instance_capacity: fields.optional("instanceCapacity", |place| place.mapping(size)).ok(),
        max_agents: fields.optional("maxAgents", |place| place.number(COUNT)).ok(),
        agent_url: fields.optional("agentUrl", |place| plain_url(&place)).ok(),
        name: name.ok()?,
        region: region.ok()?,
        templates: templates.ok()?,
    })
}

fn needs_group(fields: &Fields<'_>, group: &Field<String>, registration: &Field<Limit>, idle: &Field<Limit>) {
    for (key, limit, why) in [
        ("idleInstanceTimeout", idle, "only its instances are ever terminated"),
        ("instanceRegistrationTimeout", registration, "only its instances are waited for"),
    ] {
        let is_limited = limit.as_ref().is_some_and(|limit| *limit != Limit::NEVER);
        fields.unless(!(group.is_absent() && is_limited), key, format!("needs autoScalingGroup: {why}"));
    }
}

fn size(fields: &mut Fields<'_>) -> Option<Size> {
    let cpu = fields.required("cpu", |place| place.number(COUNT));
    let memory = fields.required("memory", |place| place.number(COUNT));
    Some(Size { cpu: cpu.ok()?, memory: memory.ok()? })
}

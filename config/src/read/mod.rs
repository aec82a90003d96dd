//! Reads and validates each section. A rule over several keys is silent if one of them is already at fault.

mod cloud;
mod launch;
mod template;

use std::collections::BTreeMap;

use crate::duration::Limit;
use crate::origin::Origin;
use crate::reader::{Field, Fields, Place};
use crate::rules::{is_event_bus, is_filled, is_tag_text};
use crate::types::{Config, Jenkins, RootUrl, SecretRef, Webhook};

/// Context for rules of nested sections.
#[derive(Default)]
struct Around {
    /// Whether nodes are registered in Jenkins, if that could be read.
    registers_nodes: Option<bool>,
    /// Where each cloud's name occurred first.
    cloud_names: BTreeMap<String, String>,
    /// Where each template's name occurred first, within its cluster.
    template_names: BTreeMap<(ClusterKey, String), String>,
}

/// Region, cluster and role: where agents' names could collide.
type ClusterKey = (String, String, Option<String>);

/// The configuration, as far as it can be read; invalid parts are omitted, or have their defaults. In an incomplete
/// document nothing counts as missing.
pub(crate) fn config(place: Place<'_>, is_complete: bool) -> Option<Config> {
    place.mapping(|fields| {
        let event_bus = fields
            .optional("eventBus", |place| place.text_that(is_event_bus, "must be the name or the ARN of an event bus"));
        let mut around = Around::default();
        let read_jenkins = |place: Place<'_>| place.mapping(|fields| jenkins(fields, &mut around));
        let jenkins = match is_complete {
            true => fields.required("jenkins", read_jenkins),
            false => fields.optional("jenkins", read_jenkins),
        };
        let read_clouds = |place: Place<'_>| {
            let clouds = place.list(|place| place.mapping(|fields| cloud::cloud(fields, &mut around)));
            not_empty(&place, "must have at least one cloud");
            clouds
        };
        let clouds = match is_complete {
            true => fields.required("clouds", read_clouds),
            false => fields.optional("clouds", read_clouds),
        };
        Some(Config { event_bus: event_bus.ok(), jenkins: jenkins.ok()?, clouds: clouds.ok()? })
    })
}

fn jenkins(fields: &mut Fields<'_>, around: &mut Around) -> Option<Jenkins> {
    let url = fields.required("url", |place| {
        let url = plain_url(&place)?;
        let message = "is a tag of every task: it may only contain letters, digits and + - = . _ : / @, at most 256";
        if !is_tag_text(url.as_written(), 256) {
            place.fault(message);
        }
        Some(url)
    });
    // RFC 7617: the first colon of Basic credentials ends the user.
    let is_user = |user: &str| is_filled(user) && !user.contains(':');
    let user =
        fields.optional("user", |place| place.text_that(is_user, "must be the id of a Jenkins user, without a colon"));
    let api_token = fields.optional("apiToken", secret);
    let register_nodes = fields.optional("registerNodes", |place| place.flag());
    credentials(fields, &user, &api_token, register_nodes.as_ref() == Some(&true));
    let ca_certificate = fields.optional("caCertificate", secret);
    let webhook = fields.optional("webhook", |place| place.mapping(|fields| webhook(fields, url.as_ref())));
    around.registers_nodes = match (&user, &api_token, &register_nodes) {
        (_, _, Field::Read(registers)) => Some(*registers),
        (Field::Wrong, ..) | (_, Field::Wrong, _) | (_, _, Field::Wrong) => None,
        (user, api_token, Field::Absent) => Some(user.is_read() && api_token.is_read()),
    };
    Some(Jenkins {
        user: user.ok(),
        api_token: api_token.ok(),
        register_nodes: register_nodes.ok(),
        ca_certificate: ca_certificate.ok(),
        webhook: webhook.or(Webhook::default()),
        url: url.ok()?,
    })
}

fn credentials(fields: &Fields<'_>, user: &Field<String>, api_token: &Field<SecretRef>, registers_nodes: bool) {
    let both = [("user", user.is_absent(), "apiToken"), ("apiToken", api_token.is_absent(), "user")];
    for (key, is_absent, other) in both {
        let other_is_absent = if key == "user" { api_token.is_absent() } else { user.is_absent() };
        if is_absent && registers_nodes {
            fields.fault(key, "is missing, and registerNodes needs it");
        } else if is_absent && !other_is_absent {
            fields.fault(key, format!("is missing, and {other} is of no use without it"));
        }
    }
}

fn webhook(fields: &mut Fields<'_>, root: Option<&RootUrl>) -> Option<Webhook> {
    let url = fields.optional("url", |place| {
        let url = place.parsed(RootUrl::parse)?;
        match root.map(|root| Origin::new((**root).clone()).allows(url.as_written())) {
            Some(Err(reason)) => place.fault(reason),
            _ => return Some(url),
        }
        None
    });
    Some(Webhook {
        url: url.ok(),
        authorization: fields.optional("authorization", secret).ok(),
        signing_secret: fields.optional("signingSecret", secret).ok(),
    })
}

/// No fault repeats a text that may be the secret itself.
fn secret(place: Place<'_>) -> Option<SecretRef> {
    let secret = match place.only_entry().and_then(|(kind, name)| Some((kind, name.as_str()?))) {
        Some(("ssm", name)) => SecretRef::Ssm(name.into()),
        Some(("env", name)) => SecretRef::Env(name.into()),
        Some(("file", path)) => SecretRef::File(path.into()),
        _ => {
            place.fault("must be {ssm: NAME}, {env: NAME} or {file: PATH}, and never the secret itself");
            return None;
        }
    };
    if !is_filled(secret.name()) {
        place.fault("names nothing");
        return None;
    }
    Some(secret)
}

/// An http or https URL without user info, query and fragment.
fn plain_url(place: &Place<'_>) -> Option<RootUrl> {
    let url = place.parsed(RootUrl::parse)?;
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    let has_user_info = !url.username().is_empty() || url.password().is_some();
    let has_more = url.query().is_some() || url.fragment().is_some();
    for (is_wrong, message) in [
        (!is_web, "must be an http or https URL with a host"),
        (has_user_info, "must not contain user info; that is what user and apiToken are for"),
        (has_more, "must not have a query or a fragment"),
    ] {
        if is_wrong {
            place.fault(message);
            return None;
        }
    }
    Some(url)
}

fn filled(place: Place<'_>) -> Option<String> {
    place.text_that(is_filled, "names nothing")
}

fn duration(place: Place<'_>) -> Option<Limit> {
    place.parsed(str::parse)
}

fn not_empty(place: &Place<'_>, message: &str) {
    if place.is_list() && place.length() == 0 {
        place.fault(message);
    }
}

fn at_most(place: &Place<'_>, most: usize) {
    if place.length() > most {
        place.fault(format!("has {} entries; the maximum is {most}", place.length()));
    }
}

/// A whole number above 0.
const COUNT: std::ops::RangeInclusive<u64> = 1..=u32::MAX as u64;

//! The check: what the function finds with its own role, changing nothing, and how to fix each fault.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;

use futures::future::join_all;
use jiff::Timestamp;
use serde::Serialize;
use shared::app::App;
use shared::aws::autoscaling::{CapacityUnit, Group, Membership};
use shared::aws::ecs::{Instance, TaskDefinition};
use shared::aws::queues::QueueAttributeName;
use shared::cloud::Cloud;
use shared::config::{Connect, Launch, LaunchType, Limit, Template};
use shared::fault::{Fault, Kind};
use shared::observe;

/// The report.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// Whether every item is ok.
    pub ok: bool,
    /// One for each thing that was checked.
    pub items: Vec<Item>,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Item {
    /// Its name: `clouds[0].cluster`.
    pub item: String,
    /// Whether it is as it has to be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// How to fix it; `None` if nothing is wrong.
    #[serde(rename = "mend")]
    pub fix: Option<String>,
}

impl Item {
    fn good(item: impl Into<String>, found: impl Into<String>) -> Self {
        Self { item: item.into(), ok: true, found: found.into(), fix: None }
    }

    fn bad(item: impl Into<String>, found: impl Display, fix: impl Into<String>) -> Self {
        Self { item: item.into(), ok: false, found: found.to_string(), fix: Some(fix.into()) }
    }

    fn checked(ok: bool, item: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        let (item, found) = (item.into(), found.into());
        if ok { Self::good(item, found) } else { Self::bad(item, found, fix) }
    }

    fn fault(item: impl Into<String>, fault: &Fault) -> Self {
        let fix = match fault.kind {
            Kind::Denied => format!("allow {} in the function's role, on this resource", fault.action),
            _ if fault.code.is_none() => "check the function's network route to AWS: VPC, NAT or endpoints".into(),
            _ => "see the message".into(),
        };
        Self::bad(item, fault, fix)
    }
}

/// Checks everything.
pub(crate) async fn report(app: &App) -> Report {
    let clouds = async {
        let all = join_all(app.clouds.iter().map(|cloud| check_cloud(app, cloud))).await;
        all.into_iter().flatten().collect::<Vec<_>>()
    };
    let (credentials, clouds, queues, jenkins) =
        tokio::join!(check_credentials(app), clouds, check_queues(app), check_jenkins(app));
    let items: Vec<Item> = [vec![credentials], clouds, queues, jenkins].into_iter().flatten().collect();
    Report { ok: items.iter().all(|item| item.ok), items }
}

async fn check_credentials(app: &App) -> Item {
    match app.sts.get_caller_identity().send().await {
        Ok(identity) => Item::good(
            "credentials",
            format!("account {}, {}", identity.account().unwrap_or("?"), identity.arn().unwrap_or("?")),
        ),
        Err(error) => Item::fault("credentials", &Fault::from_sdk("sts:GetCallerIdentity", error)),
    }
}

async fn check_cloud(app: &App, cloud: &Cloud) -> Vec<Item> {
    let at = format!("clouds[{}]", cloud.index);
    let (cluster, capacity, templates) =
        tokio::join!(
            check_cluster(cloud, &at),
            check_capacity(app, cloud, &at),
            join_all(
                cloud.config.templates.iter().enumerate().map(|(index, template)| {
                    check_template(app, cloud, template, format!("{at}.templates[{index}]"))
                })
            )
        );
    std::iter::once(cluster).chain(capacity).chain(templates.into_iter().flatten()).collect()
}

async fn check_cluster(cloud: &Cloud, at: &str) -> Item {
    let name = &cloud.config.cluster;
    let item = format!("{at}.cluster");
    match cloud.cluster.status().await {
        Ok(Some(status)) => Item::checked(
            status == "ACTIVE",
            &item,
            format!("cluster {name} is {status}"),
            "create the cluster again, or name another",
        ),
        Ok(None) => Item::bad(
            &item,
            format!("there is no cluster {name} in {}", cloud.config.region),
            "create it, or correct cluster or region",
        ),
        Err(fault) => Item::fault(&item, &fault),
    }
}

/// The cluster's own container instances, and the group that launches them.
async fn check_capacity(app: &App, cloud: &Cloud, at: &str) -> Vec<Item> {
    let instances = cloud.cluster.instances().await;
    let group = match &cloud.config.auto_scaling_group {
        Some(name) => Some((name, cloud.groups.describe(name).await)),
        None => None,
    };
    let mut items = Vec::new();
    if !cloud.config.templates.iter().all(Template::on_fargate) {
        let group = group.as_ref().and_then(|(_, group)| group.as_ref().ok()?.as_ref());
        items.push(match &instances {
            Ok(instances) => check_instances(cloud, instances, group, format!("{at}.instances")),
            Err(fault) => Item::fault(format!("{at}.instances"), fault),
        });
    }
    let item = format!("{at}.autoScalingGroup");
    match group {
        None => {}
        Some((_, Ok(Some(group)))) => {
            items.extend(check_group(cloud, &group, &item));
            if let Ok(instances) = &instances {
                let never_registered = observe::never_registered(cloud, &group, instances, app.now()).await;
                items.push(check_registration(cloud, &group, never_registered, format!("{item}.registration")));
            }
        }
        Some((name, Ok(None))) => items.push(Item::bad(
            item,
            format!("there is no Auto Scaling group {name} in {}", cloud.config.region),
            "create it, or correct autoScalingGroup",
        )),
        Some((_, Err(fault))) => items.push(Item::fault(item, &fault)),
    }
    items
}

fn check_instances(cloud: &Cloud, instances: &[Instance], group: Option<&Group>, item: String) -> Item {
    let usable = instances.iter().filter(|instance| instance.takes_tasks()).count();
    let mut found = format!("{} container instances are registered, {usable} of them take tasks", instances.len());
    if let Some(group) = group {
        let membership = group.memberships();
        let own = instances.iter().filter(|it| membership(it.ec2_id.as_deref()) != Membership::Foreign).count();
        found = format!("{found}, {own} are of group {}", group.name);
    }
    let may_come = cloud.config.auto_scaling_group.is_some()
        || cloud.config.templates.iter().any(|template| {
            matches!(template.launch, Launch::CapacityProviders(_) | Launch::Type(LaunchType::Default))
        });
    Item::checked(
        usable > 0 || may_come,
        item,
        found,
        "register container instances, or set autoScalingGroup so that the group can be raised",
    )
}

/// Settings of the group that work against us.
fn check_group(cloud: &Cloud, group: &Group, item: &str) -> Vec<Item> {
    let unit = match &group.unit {
        CapacityUnit::Vcpu => "vCPUs",
        CapacityUnit::MemoryMib => "MiB",
        _ if !group.weights.is_empty() => "units of what its instances weigh",
        _ => "instances",
    };
    let found = format!(
        "group {}: minimum {}, desired {}, maximum {}, counted in {unit}; {} instances",
        group.name,
        group.minimum,
        group.desired,
        group.maximum,
        group.instances.len()
    );
    let gives_back = cloud.config.idle_instance_timeout != Limit::NEVER;
    vec![
        Item::checked(group.maximum > 0, item, found, "raise the group's maximum above 0"),
        check_processes(group, gives_back, format!("{item}.suspendedProcesses")),
        check_rebalancing(group, gives_back, format!("{item}.rebalancing")),
    ]
}

fn check_processes(group: &Group, gives_back: bool, item: String) -> Item {
    let found = match group.suspended.as_slice() {
        [] => "no process is suspended".to_owned(),
        suspended => format!("suspended: {}", suspended.join(", ")),
    };
    if group.is_suspended("Launch") {
        return Item::bad(item, found, "resume Launch: however far the group is raised, no instance comes");
    }
    // Rebalancing launches without terminating, and the group grows ("How suspended processes affect other processes").
    if gives_back && group.is_suspended("Terminate") {
        return Item::bad(item, found, "resume Terminate, or set idleInstanceTimeout to never");
    }
    Item::good(item, found)
}

/// Giving back an instance lowers the desired capacity by one instance of one zone, after which the group may terminate
/// another instance to rebalance its zones, whatever runs there (API_TerminateInstanceInAutoScalingGroup).
fn check_rebalancing(group: &Group, gives_back: bool, item: String) -> Item {
    if group.rebalances_capacity {
        return Item::bad(
            item,
            "the group ends Spot instances that are at risk of an interruption, with the builds on them",
            "switch Capacity Rebalancing off: most of them are never interrupted, and an interruption is reported in any case",
        );
    }
    let evens_out = group.zones > 1 && !group.is_suspended("AZRebalance");
    let unprotected = group.instances.iter().filter(|member| member.lifecycle.counts() && !member.protected).count();
    let found = format!(
        "{} over {} zones; new instances are {}protected from scale-in, {unprotected} existing ones are not",
        if evens_out { "the group evens out its instances" } else { "the group does not even out its instances" },
        group.zones,
        if group.protects_new { "" } else { "not " },
    );
    Item::checked(
        !(gives_back && evens_out) || (group.protects_new && unprotected == 0),
        item,
        found,
        "suspend AZRebalance, or protect the group's instances, new and existing ones, from scale-in: where idle \
         instances are given back, the group may end a busy one to even out its zones",
    )
}

fn check_registration(
    cloud: &Cloud,
    group: &Group,
    never_registered: Result<BTreeMap<String, Timestamp>, Fault>,
    item: String,
) -> Item {
    let cluster = &cloud.config.cluster;
    match never_registered {
        Ok(lost) if lost.is_empty() => Item::good(item, format!("no instance is overdue in cluster {cluster}")),
        Ok(lost) => {
            let ids: Vec<_> = lost.keys().take(5).map(String::as_str).collect();
            let limit = cloud.config.registration_timeout();
            let found = format!(
                "{} instances of group {} have not registered in cluster {cluster} within {limit}: {}",
                lost.len(),
                group.name,
                ids.join(", ")
            );
            let fix = "check ECS_CLUSTER in their user data, their instance role, and their network route to ECS";
            Item::bad(item, found, fix)
        }
        Err(fault) => Item::fault(item, &fault),
    }
}

async fn check_template(app: &App, cloud: &Cloud, template: &Template, at: String) -> Vec<Item> {
    let item = format!("{at}.taskDefinition");
    let definition = match cloud.cluster.describe_task_definition(&template.task_definition).await {
        Ok(definition) => definition,
        Err(fault) if matches!(fault.kind, Kind::Permanent | Kind::Missing) => {
            let found = format!("template {}, task definition {}: {fault}", template.name, template.task_definition);
            return vec![Item::bad(item, found, "register the task definition, or correct taskDefinition")];
        }
        Err(fault) => return vec![Item::fault(item, &fault)],
    };
    let found = format!("template {}: {} is {}, {}", template.name, definition.arn, definition.status, definition.size);
    let mut items =
        vec![Item::checked(definition.status == "ACTIVE", item, found, "register a new revision and name that")];
    items.extend(check_container(template, &definition, &at));
    items.push(check_network(template, &definition, format!("{at}.launch")));
    if template.connect == Connect::Ssh && app.jenkins.registers_nodes() {
        let credentials = template.ssh.credentials_id.as_deref();
        items.push(Item::checked(
            credentials.is_some(),
            format!("{at}.ssh.credentialsId"),
            credentials.map_or("no credential is named".into(), |id| format!("Jenkins credential {id}")),
            "name the Jenkins credential that logs in to the agent",
        ));
    }
    items
}

fn check_container(template: &Template, definition: &TaskDefinition, at: &str) -> Vec<Item> {
    let item = format!("{at}.container");
    let name = match &template.container {
        Some(name) => name.as_str(),
        None => match definition.only_essential() {
            Ok(name) => name,
            Err(message) => return vec![Item::bad(item, message, "name the agent's container with `container`")],
        },
    };
    let Some(container) = definition.containers.iter().find(|container| container.name == name) else {
        let names: Vec<_> = definition.containers.iter().map(|container| container.name.as_str()).collect();
        let found = format!("there is no container {name}; there are: {}", names.join(", "));
        return vec![Item::bad(item, found, "correct container")];
    };
    let mut items = vec![Item::good(item, format!("container {name}"))];
    if template.connect == Connect::Ssh {
        let port = i32::from(template.ssh.port);
        // With awsvpc and host, every port of the container is reachable without a mapping.
        let mapped = container.ports.contains(&port) || matches!(definition.network_mode.as_str(), "awsvpc" | "host");
        items.push(Item::checked(
            mapped,
            format!("{at}.ssh.port"),
            format!(
                "container port {port} is {}reachable in network mode {}",
                if mapped { "" } else { "not " },
                definition.network_mode
            ),
            format!("add a port mapping for container port {port} with host port 0, or correct ssh.port"),
        ));
    }
    items
}

fn check_network(template: &Template, definition: &TaskDefinition, item: String) -> Item {
    let awsvpc = definition.network_mode == "awsvpc";
    let fargate = template.on_fargate();
    let kind = match &template.launch {
        _ if fargate => "FARGATE",
        Launch::Type(LaunchType::External) => "EXTERNAL",
        Launch::Type(LaunchType::Ec2) => "EC2",
        _ => "capacity providers",
    };
    let found = format!("network mode {} with {kind}", definition.network_mode);
    let compatible = definition.compatibilities.is_empty()
        || kind == "capacity providers"
        || definition.compatibilities.iter().any(|compatibility| compatibility == kind);
    if fargate && !awsvpc {
        return Item::bad(item, found, "Fargate needs a task definition with network mode awsvpc");
    }
    if !compatible {
        let fits = definition.compatibilities.join(", ");
        return Item::bad(
            item,
            format!("{found}; the task definition fits {fits}"),
            "correct launch, or the task definition's compatibilities",
        );
    }
    if awsvpc && template.network.is_none() {
        return Item::bad(
            item,
            format!("{found}, and no network is configured"),
            "set network.subnets and network.securityGroups",
        );
    }
    if !awsvpc && template.network.is_some() {
        return Item::bad(
            item,
            format!("{found}, and a network is configured"),
            "network is for awsvpc only: take it out",
        );
    }
    Item::good(item, found)
}

async fn check_queues(app: &App) -> Vec<Item> {
    let queues = &app.queues.urls;
    let all = [
        ("REQUESTS_QUEUE_URL", &queues.requests),
        ("WAITING_QUEUE_URL", &queues.waiting),
        ("UNDELIVERED_QUEUE_URL", &queues.undelivered),
        ("REJECTED_QUEUE_URL", &queues.rejected),
        ("COMPLETIONS_QUEUE_URL", &queues.completions),
    ];
    join_all(all.into_iter().map(|(name, url)| async move {
        let wanted = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::RedrivePolicy,
        ];
        match app.queues.attributes(url, &wanted).await {
            Ok(attributes) => {
                let number = |name| attributes.get(&name).map_or("?", String::as_str);
                let redrives = attributes.contains_key(&QueueAttributeName::RedrivePolicy);
                let found = format!(
                    "{url}: {} messages, {} in flight{}",
                    number(QueueAttributeName::ApproximateNumberOfMessages),
                    number(QueueAttributeName::ApproximateNumberOfMessagesNotVisible),
                    if redrives { ", with dead letters" } else { "" }
                );
                let waiting = name == "WAITING_QUEUE_URL";
                Item::checked(
                    !(waiting && redrives),
                    name,
                    found,
                    "the waiting queue may not redrive: take its redrive policy off",
                )
            }
            Err(fault) => Item::fault(name, &fault),
        }
    }))
    .await
}

async fn check_jenkins(app: &App) -> Vec<Item> {
    let url = app.config().jenkins.url.as_written();
    let mut items: Vec<Item> = check_webhook(app).into_iter().collect();
    let who = match app.jenkins.who_am_i().await {
        Ok(who) => who,
        Err(fault) => {
            let fix = match fault.kind {
                Kind::Setting => "change jenkins.user and jenkins.apiToken, or what stands before Jenkins",
                _ if fault.is_final() => "there is a server, but Jenkins is not at this path of it: change jenkins.url",
                _ => "check that the function reaches Jenkins: VPC, security groups, caCertificate",
            };
            items.push(Item::bad("jenkins.url", format!("{url}: {fault}"), fix));
            return items;
        }
    };
    let version = who.version.as_deref();
    items.push(Item::checked(
        version.is_some(),
        "jenkins.url",
        format!("{url} answers as Jenkins {}", version.unwrap_or("of no version")),
        "something else answers there: correct jenkins.url",
    ));
    if app.jenkins.registers_nodes() {
        items.push(Item::checked(
            who.is_authenticated,
            "jenkins.user",
            format!("Jenkins takes us for {}", who.user),
            "correct jenkins.user and jenkins.apiToken",
        ));
        items.extend(check_token(app).await);
        items.extend(check_permissions(app).await);
    }
    items.extend(check_own_url(app).await);
    items.extend(check_plugins(app).await);
    items
}

/// The webhook's own secret is sent raw, and Jenkins' filters see it first.
fn check_webhook(app: &App) -> Option<Item> {
    let is_basic = app.jenkins.webhook_authorization_is_basic()?;
    Some(Item::checked(
        !is_basic,
        "jenkins.webhook.authorization",
        if is_basic { "begins with Basic: Jenkins takes it for a user's password" } else { "is there" },
        "let it be a random text, here and in Jenkins' credentials",
    ))
}

/// A password is enough for reading, but refused for each POST.
async fn check_token(app: &App) -> Option<Item> {
    let item = "jenkins.apiToken";
    match app.jenkins.lets_us_post().await {
        Ok(true) => Some(Item::good(item, "Jenkins lets us post with it")),
        Ok(false) => Some(Item::bad(
            item,
            "Jenkins lets us read with it and not post: it is a password, or belongs to nobody",
            "make an API token for jenkins.user (its page in Jenkins, Security), and store that",
        )),
        Err(fault) => Some(Item::bad(item, fault, "could not be found out; see the message")),
    }
}

/// Webhook URLs begin with what Jenkins takes for its own URL, and are called only under `jenkins.url`.
async fn check_own_url(app: &App) -> Option<Item> {
    let item = "jenkins.url.own";
    match app.jenkins.own_url().await {
        Ok(None) => None,
        Ok(Some(own)) if own.is_empty() => {
            Some(Item::bad(item, "Jenkins has no URL of its own", "set Jenkins URL in Manage Jenkins, System"))
        }
        Ok(Some(own)) => Some(Item::checked(
            app.jenkins.is_root(&own),
            item,
            format!("Jenkins holds {own} for its own URL"),
            "webhooks begin with that URL and are refused as another origin's: make jenkins.url the same, or correct Jenkins \
             URL in Manage Jenkins, System",
        )),
        Err(fault) => Some(Item::bad(item, fault, "could not be found out; see the message")),
    }
}

/// Plugins that have to be installed, each recognised by one of its classes.
async fn check_plugins(app: &App) -> Vec<Item> {
    let mut templates = app.clouds.iter().flat_map(|cloud| &cloud.config.templates);
    let logs_in = app.jenkins.registers_nodes() && templates.any(|template| template.connect == Connect::Ssh);
    let plugins = [
        ("ssh-slaves", "hudson.plugins.sshslaves.SSHLauncher", logs_in),
        // Without it, notices can still go to jenkins.webhook.
        (
            "webhook-step",
            "org.jenkinsci.plugins.webhookstep.RegisterWebhookStep",
            app.config().jenkins.webhook.url.is_none(),
        ),
    ];
    let items = plugins.into_iter().map(|(plugin, class, is_needed)| async move {
        let item = format!("jenkins.plugins.{plugin}");
        match app.jenkins.has_class(class).await {
            Ok(Some(true)) => Some(Item::good(item, "installed")),
            Ok(Some(false)) => Some(Item::checked(
                !is_needed,
                item,
                "not installed",
                format!("install the plugin {plugin} in Jenkins"),
            )),
            Ok(None) => None,
            Err(fault) => Some(Item::bad(item, fault, "could not be found out; see the message")),
        }
    });
    join_all(items).await.into_iter().flatten().collect()
}

/// The permissions that the REST calls need: create, read the inbound secret and bring back online, take offline,
/// delete.
const PERMISSIONS: [&str; 5] = ["Overall/Read", "Agent/Create", "Agent/Connect", "Agent/Disconnect", "Agent/Delete"];

async fn check_permissions(app: &App) -> Vec<Item> {
    let mut found: HashMap<&str, _> = app.jenkins.permissions().await.into_iter().collect();
    PERMISSIONS
        .into_iter()
        .map(|permission| {
            let item = format!("jenkins.permissions.{permission}");
            match found.remove(permission) {
                Some(Ok(true)) => Item::good(item, "granted"),
                Some(Ok(false)) => {
                    Item::bad(item, "not granted", format!("grant {permission} to jenkins.user in Jenkins"))
                }
                Some(Err(fault)) => Item::bad(item, fault, "could not be found out; see the message"),
                None => Item::good(item, "shows nowhere without changing something"),
            }
        })
        .collect()
}

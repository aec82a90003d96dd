//! The sweep: the net beneath everything that arrives as an event. One part that cannot be done does not keep the
//! others from being done, and nothing is stopped on a guess.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use shared::agents;
use shared::app::{App, CloudRef};
use shared::aws::autoscaling::{self, Group};
use shared::aws::ecs::{self, ContainerInstanceStatus, DesiredStatus, IDLE_SINCE_TAG, Instance, KEEP_TAG, Of, Task};
use shared::batch::{Invocation, Retry, guarded};
use shared::capacity::Observed;
use shared::config::{Cloud, Size};
use shared::jenkins::{self, NodeState};
use shared::message::{AgentRequest, Failure, NoticeType};
use shared::name::AgentName;
use shared::notices::{Target, Undelivered, Work};
use shared::report::Reported;
use shared::stop::{Cause, Stop};
use shared::wait::{self, Waiting, WaitsFor};

use crate::plan::{self, InstanceStep, NodeStep, Seen, TaskStep};

/// Calls that go out at once; more would only meet AWS' limits.
const CONCURRENCY: usize = 10;

/// Does all that is due at `time`. The parts go side by side: a slow Jenkins does not keep requests waiting.
pub async fn sweep(app: &App, invocation: &Invocation, time: Timestamp) {
    let nodes = Nodes::ask(app, invocation).await;
    let mut found = Vec::new();
    let mut names = HashSet::new();
    let mut counts = Counts { all_known: true, ..Counts::default() };
    for cloud in distinct_clusters(app) {
        match guarded(invocation, tasks(app, cloud)).await {
            Err(Retry(reason)) => {
                counts.all_known = false;
                tracing::warn!(
                    cloud = cloud.cloud.name,
                    error = reason,
                    "the cluster could not be asked; nothing is stopped"
                );
            }
            Ok((running, stopped)) => {
                for (owner, name, _) in &running {
                    names.insert(name.clone());
                    counts.add(*owner, app.template_name(name));
                }
                found.push((running, stopped));
            }
        }
    }
    let all_known = counts.all_known;
    let agents = async {
        for (running, stopped) in &found {
            sweep_tasks(app, invocation, running, &nodes, time).await;
            sweep_ends(app, invocation, stopped, time).await;
        }
    };
    let orphans = async {
        if let Nodes::Known(nodes) = &nodes
            && all_known
        {
            sweep_nodes(app, invocation, nodes.values(), &names, time).await;
        }
    };
    let capacity = async {
        let waiting = sweep_waiting(app, invocation, time, counts).await;
        sweep_instances(app, invocation, &waiting, time).await;
    };
    tokio::join!(agents, orphans, capacity);
}

/// What Jenkins says of its nodes.
enum Nodes {
    Known(BTreeMap<String, NodeState>),
    /// It has none of ours, or does not let us see them.
    Unknown,
    /// It could not be asked.
    Away,
}

impl Nodes {
    async fn ask(app: &App, invocation: &Invocation) -> Self {
        if !app.jenkins.registers_nodes() {
            return Self::Unknown;
        }
        match guarded(invocation, async { Ok(app.jenkins.nodes().await) }).await {
            Ok(Ok(nodes)) => Self::Known(nodes.into_iter().map(|node| (node.name.clone(), node)).collect()),
            Ok(Err(fault @ jenkins::Fault::Refused(_))) => {
                tracing::error!(error = %fault, "no agent is called idle");
                Self::Unknown
            }
            Ok(Err(fault)) => {
                tracing::warn!(error = %fault, "Jenkins could not be asked; no agent is called idle");
                Self::Away
            }
            Err(Retry(reason)) => {
                tracing::warn!(error = reason, "Jenkins could not be asked; no agent is called idle");
                Self::Away
            }
        }
    }

    fn seen(&self, name: &AgentName) -> Seen<'_> {
        match self {
            Self::Known(nodes) => nodes.get(name.as_str()).map_or(Seen::Missing, Seen::Node),
            Self::Unknown => Seen::Unknown,
            Self::Away => Seen::Away,
        }
    }
}

/// One cloud for each cluster.
fn distinct_clusters(app: &App) -> Vec<CloudRef<'_>> {
    let mut seen = HashSet::new();
    app.all_clouds()
        .filter(|cloud| seen.insert((&cloud.cloud.region, &cloud.cloud.cluster, &cloud.cloud.assume_role_arn)))
        .collect()
}

type OurTask<'a> = (CloudRef<'a>, AgentName, Task);

/// Our tasks of a cluster: those that are to run, and those that ended within the last hour.
async fn tasks<'a>(app: &'a App, cloud: CloudRef<'a>) -> Result<(Vec<OurTask<'a>>, Vec<OurTask<'a>>), Retry> {
    let (client, cluster) = (&cloud.clients.ecs, &cloud.cloud.cluster);
    let mut found = [Vec::new(), Vec::new()];
    for (found, status) in found.iter_mut().zip([DesiredStatus::Running, DesiredStatus::Stopped]) {
        let arns = ecs::list_tasks(client, cluster, Of::Cluster, status).await?;
        for task in ecs::describe_tasks(client, cluster, &arns).await? {
            let anothers = shared::outcome::is_anothers(&task, app.config().jenkins.url.as_written());
            if let Some((owner, name)) = app.whose(&task).filter(|_| !anothers) {
                found.push((owner, name, task));
            }
        }
    }
    let [running, stopped] = found;
    Ok((running, stopped))
}

async fn sweep_tasks(app: &App, invocation: &Invocation, running: &[OurTask<'_>], nodes: &Nodes, now: Timestamp) {
    let twice: HashMap<&str, _> = plan::duplicates(running.iter().map(|(_, _, task)| task))
        .into_iter()
        .map(|(task, stop)| (task.arn.as_str(), stop))
        .collect();
    each(invocation, running, |(cloud, name, task)| {
        let twice = &twice;
        async move {
            let ours = app.ours(*cloud, name);
            let template = ours.template;
            if let Some(stop) = twice.get(task.arn.as_str()).filter(|_| !task.tags.contains_key(KEEP_TAG)) {
                return app.stop(ours, task, stop.clone()).await;
            }
            let seen = nodes.seen(name);
            match plan::task_step(task, template, seen, now) {
                TaskStep::Leave => Ok(()),
                TaskStep::Stop(stop) => {
                    // Much may have happened since the tasks were listed: what is true just now decides.
                    let (client, cluster) = (&cloud.clients.ecs, &cloud.cloud.cluster);
                    let again = ecs::describe_tasks(client, cluster, std::slice::from_ref(&task.arn)).await?;
                    let still = again.first().map(|task| plan::task_step(task, template, seen, now));
                    let is_idle = stop.cause != Cause::Idle || is_still_idle(app, name, &stop).await?;
                    match still {
                        Some(TaskStep::Stop(_)) if is_idle => app.stop(ours, task, stop).await,
                        _ => Ok(()),
                    }
                }
                TaskStep::Report => app.report(ours, &task.arn, None).await?.done(),
                TaskStep::AtWork => app.at_work(ours, task).await,
                TaskStep::ReportOrStop(mut stop) => {
                    let why = match app.report(ours, &task.arn, None).await? {
                        Reported::Done => return Ok(()),
                        Reported::NotYet => "the task runs but is not healthy".to_owned(),
                        Reported::Refused(reason) => reason,
                    };
                    stop.text = format!("{}: {why}", stop.text);
                    app.stop(ours, task, stop).await
                }
                TaskStep::MarkIdle(idle) => {
                    Ok(ecs::tag(&cloud.clients.ecs, &task.arn, IDLE_SINCE_TAG, &idle.tag(now)).await?)
                }
                TaskStep::MarkBusy => Ok(ecs::untag(&cloud.clients.ecs, &task.arn, IDLE_SINCE_TAG).await?),
            }
        }
    })
    .await;
}

/// Whether an agent that has had nothing to do for long has nothing to do now: a build may have begun there since Jenkins
/// was asked. It takes none any more where that is so.
async fn is_still_idle(app: &App, name: &AgentName, stop: &Stop) -> Result<bool, Retry> {
    app.jenkins.set_offline(name.as_str(), &stop.text).await?;
    let is_busy = app.jenkins.node(name.as_str()).await?.is_some_and(|node| node.idle == Some(false));
    if is_busy {
        app.jenkins.set_online(name.as_str()).await?;
    }
    Ok(!is_busy)
}

/// Makes up for last events that never came.
async fn sweep_ends(app: &App, invocation: &Invocation, stopped: &[OurTask<'_>], now: Timestamp) {
    let unreported: Vec<_> = stopped.iter().filter(|(_, _, task)| plan::is_unreported_end(task, now)).collect();
    each(invocation, &unreported, |(cloud, name, task)| async move {
        let ours = app.ours(*cloud, name);
        match app.stopped(ours, task).await {
            Err(_) if plan::is_last_sight(task, now) => {
                let (cluster, arn) = (task.cluster_arn.clone(), task.arn.clone());
                let work = Work::Task { cluster, arn, name: name.clone(), otherwise: app.fallback(ours, task) };
                Ok(app.keep(&Undelivered { since: now, work }).await?)
            }
            told => told,
        }
    })
    .await;
}

/// Does something for each, ten at a time, until the time is over; what fails is done by the next sweep.
async fn each<'a, T, F>(invocation: &Invocation, all: &'a [T], work: impl Fn(&'a T) -> F)
where
    F: Future<Output = Result<(), Retry>> + 'a,
{
    stream::iter(all)
        .map(|one| guarded(invocation, work(one)))
        .buffer_unordered(CONCURRENCY)
        .for_each(|result| async {
            if let Err(Retry(reason)) = result {
                tracing::warn!(error = reason, "left to the next sweep");
            }
        })
        .await;
}

/// How many agents there are, in each cloud and of each of its templates.
#[derive(Default)]
struct Counts {
    clouds: HashMap<usize, u32>,
    templates: HashMap<(usize, String), u32>,
    all_known: bool,
}

impl Counts {
    fn add(&mut self, cloud: CloudRef<'_>, template: &str) {
        *self.clouds.entry(cloud.index).or_default() += 1;
        *self.templates.entry((cloud.index, template.to_owned())).or_default() += 1;
    }

    /// Whether one more agent may exist; it is counted if so.
    fn take(&mut self, cloud: CloudRef<'_>, template: &str) -> bool {
        let below = |limit: Option<u32>, count: Option<&u32>| limit.is_none_or(|limit| *count.unwrap_or(&0) < limit);
        let of_template = cloud.template(template).and_then(|template| template.max_agents);
        let free = self.all_known
            && below(cloud.cloud.max_agents, self.clouds.get(&cloud.index))
            && below(of_template, self.templates.get(&(cloud.index, template.to_owned())));
        if free {
            self.add(cloud, template);
        }
        free
    }
}

/// Fails what has waited too long, sends back what has room, raises the groups for the rest. Answers how many requests of
/// each cloud need its instances.
async fn sweep_waiting(
    app: &App,
    invocation: &Invocation,
    now: Timestamp,
    mut counts: Counts,
) -> HashMap<String, usize> {
    let mut left: HashMap<String, usize> = HashMap::new();
    let waiting = match guarded(invocation, async { Ok(wait::look(app).await?) }).await {
        Ok(waiting) => waiting,
        Err(Retry(reason)) => {
            tracing::warn!(error = reason, "the waiting queue could not be read");
            // Nothing is given back while something may wait.
            left.extend(app.all_clouds().map(|cloud| (cloud.cloud.name.clone(), 1)));
            return left;
        }
    };
    let mut wake = Vec::new();
    let mut by_cloud: BTreeMap<usize, Vec<Waiting>> = BTreeMap::new();
    let mut rest = Vec::new();
    let mut late = Vec::new();
    // Copies of a request, oldest first, wait since the first of them did.
    let mut first: HashMap<String, Timestamp> = HashMap::new();
    for mut message in waiting {
        let Some(wait) = &mut message.wait else {
            wake.push(message);
            continue;
        };
        wait.since = *first.entry(wait.request_id.to_string()).or_insert(wait.since);
        let cloud = app.all_clouds().find(|cloud| cloud.cloud.name == wait.cloud);
        let expires_at = AgentRequest::parse(&message.body).ok().and_then(|request| request.expires_at);
        if let Some(failure) = wait::too_long(wait.since, &wait.reason, cloud.map(|cloud| cloud.cloud), expires_at, now)
        {
            late.push((message, failure));
            continue;
        }
        match (cloud, wait.waits_for) {
            (None, _) | (_, WaitsFor::Fargate) => wake.push(message),
            (Some(cloud), WaitsFor::MaxAgents) => {
                let template = wait.template.clone();
                let takes_instance = cloud.template(&template).is_some_and(|template| !template.on_fargate());
                if counts.take(cloud, &template) {
                    *left.entry(cloud.cloud.name.clone()).or_default() += usize::from(takes_instance);
                    wake.push(message);
                } else {
                    rest.push(message);
                }
            }
            (Some(cloud), WaitsFor::Instance) => by_cloud.entry(cloud.index).or_default().push(message),
        }
    }
    for (index, messages) in by_cloud {
        let cloud = app.cloud(index);
        match guarded(invocation, observe(cloud)).await {
            Err(Retry(reason)) => {
                tracing::warn!(cloud = cloud.cloud.name, error = reason, "the cloud could not be observed");
                *left.entry(cloud.cloud.name.clone()).or_default() += messages.len();
                rest.extend(messages);
            }
            Ok(observed) => {
                // Those that fit need the instances that they are about to go to.
                *left.entry(cloud.cloud.name.clone()).or_default() += messages.len();
                let (fitting, still) = plan::fitting(cloud.cloud, messages, &observed.instances);
                wake.extend(fitting);
                if let Err(Retry(reason)) = guarded(invocation, raise(cloud, &observed, &still)).await {
                    tracing::warn!(cloud = cloud.cloud.name, error = reason, "the group is raised by the next sweep");
                }
                rest.extend(still);
            }
        }
    }
    wait::release(app, &rest).await;
    each(invocation, &wake, |message| async move { Ok(wait::wake(app, message).await?) }).await;
    let told = Mutex::default();
    each(invocation, &late, |(message, failure)| fail(app, message, failure, &told)).await;
    left
}

async fn observe(cloud: CloudRef<'_>) -> Result<Observed, Retry> {
    let instances = ecs::instances(&cloud.clients.ecs, &cloud.cloud.cluster).await?;
    // Last, as in `request`: what another has raised meanwhile must not be lowered.
    let group = match &cloud.cloud.auto_scaling_group {
        Some(name) => autoscaling::group(&cloud.clients.autoscaling, name).await?,
        None => None,
    };
    Ok(Observed { group, instances, configured: cloud.cloud.instance_capacity, ..Observed::default() })
}

async fn raise(cloud: CloudRef<'_>, observed: &Observed, waiting: &[Waiting]) -> Result<(), Retry> {
    let demand: Vec<Size> = wait::demand(cloud.cloud, waiting.iter()).into_values().collect();
    let (Some(target), Some(group)) = (observed.plan(&demand).raise_to, &observed.group) else { return Ok(()) };
    autoscaling::set_desired(&cloud.clients.autoscaling, &group.name, target).await?;
    tracing::info!(
        cloud = cloud.cloud.name,
        group = group.name,
        desired_before = group.desired,
        desired = target,
        waiting = demand.len(),
        "group raised by the sweep"
    );
    Ok(())
}

/// Tells the build of a request that has waited too long.
async fn fail(
    app: &App,
    message: &Waiting,
    failure: &Failure,
    told: &Mutex<HashSet<(String, Target)>>,
) -> Result<(), Retry> {
    let Some(wait) = &message.wait else { return Ok(()) };
    let request = AgentRequest::parse(&message.body).ok();
    let cloud = app.all_clouds().find(|cloud| cloud.cloud.name == wait.cloud);
    let template = cloud.and_then(|cloud| cloud.template(&wait.template));
    for &index in &wait.agents {
        let name = AgentName::new(&app.settings.agent_name_prefix, &wait.template, wait.request_id.as_str(), index);
        // A copy of the request may have found room.
        if let Some(cloud) = cloud
            && app.has_task(cloud, &name).await?
        {
            continue;
        }
        let mut notice = agents::notice_without_task(
            NoticeType::Failed,
            &name,
            template,
            &wait.request_id,
            request.as_ref().and_then(|request| request.build.clone()),
            wait.requested_at,
            app.now(),
        );
        notice.failure = Some(failure.clone());
        let url = request.as_ref().and_then(|request| request.webhook_urls.get(index as usize)).cloned();
        let mut targets: Vec<_> = url.map(Target::Request).into_iter().chain(app.listeners()).collect();
        // Copies of a request are told once.
        {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            targets.retain(|target| told.insert((notice.id.clone(), target.clone())));
        }
        app.tell_all(&notice, targets).await?;
    }
    tracing::error!(
        request.id = wait.request_id.as_str(),
        code = failure.code.as_str(),
        error = failure.message,
        "no agent for the request"
    );
    Ok(wait::forget(app, message).await?)
}

/// Deletes our nodes whose task is gone; those that came back are let in again.
async fn sweep_nodes<'a>(
    app: &App,
    invocation: &Invocation,
    nodes: impl Iterator<Item = &'a NodeState>,
    running: &HashSet<AgentName>,
    now: Timestamp,
) {
    let ours: Vec<_> = nodes
        .filter_map(|node| {
            let name = app.agent_name(&node.name)?;
            let known = app.all_clouds().any(|cloud| cloud.template(app.template_name(&name)).is_some());
            (known && !is_elsewhere(app, node)).then_some((node, name))
        })
        .collect();
    each(invocation, &ours, |(node, name)| async move {
        let alive = running.contains(name);
        match plan::node_step(node, now) {
            NodeStep::Mark if alive => Ok(()),
            _ if alive => Ok(app.jenkins.set_online(name.as_str()).await.map(drop)?),
            NodeStep::Wait => Ok(()),
            // An inbound agent's node is there before its task, which may have come since the tasks were listed.
            NodeStep::Mark if runs(app, name).await? => Ok(()),
            NodeStep::Delete if runs(app, name).await? => Ok(app.jenkins.set_online(name.as_str()).await.map(drop)?),
            NodeStep::Mark => Ok(app.jenkins.set_offline(name.as_str(), &plan::orphan_message(now)).await.map(drop)?),
            NodeStep::Delete => {
                tracing::info!(agent.name = name.as_str(), "node deleted: its task is gone");
                Ok(app.jenkins.delete_node(name.as_str()).await.map(drop)?)
            }
        }
    })
    .await;
}

/// Whether a task of this name runs, asked just now.
async fn runs(app: &App, name: &AgentName) -> Result<bool, Retry> {
    for cloud in app.all_clouds().filter(|cloud| cloud.template(app.template_name(name)).is_some()) {
        let (client, cluster) = (&cloud.clients.ecs, &cloud.cloud.cluster);
        if !ecs::list_tasks(client, cluster, Of::Name(name.as_str()), DesiredStatus::Running).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a node says that it is of a cluster that is not ours: another stack's, with the same prefix.
fn is_elsewhere(app: &App, node: &NodeState) -> bool {
    node.description.as_deref().and_then(agents::described_cluster).is_some_and(|(name, region)| {
        let is_here = |cloud: &Cloud| cloud.region == region && agents::cluster_name(&cloud.cluster) == name;
        app.all_clouds().all(|cloud| !is_here(cloud.cloud))
    })
}

/// Gives back instances that have had nothing to do for long enough.
async fn sweep_instances(app: &App, invocation: &Invocation, waiting: &HashMap<String, usize>, now: Timestamp) {
    for cloud in app.all_clouds() {
        let Some(name) =
            cloud.cloud.auto_scaling_group.as_deref().filter(|_| cloud.cloud.idle_instance_timeout.0.is_some())
        else {
            continue;
        };
        let observed = guarded(invocation, async {
            let group = autoscaling::group(&cloud.clients.autoscaling, name).await?;
            Ok((group, ecs::instances(&cloud.clients.ecs, &cloud.cloud.cluster).await?))
        });
        let (group, instances) = match observed.await {
            Ok((Some(group), instances)) => (group, instances),
            Ok((None, _)) => {
                tracing::error!(
                    cloud = cloud.cloud.name,
                    group = name,
                    "there is no such Auto Scaling group; mend autoScalingGroup"
                );
                continue;
            }
            Err(Retry(reason)) => {
                tracing::warn!(cloud = cloud.cloud.name, error = reason, "no instance is given back");
                continue;
            }
        };
        let needed = waiting.get(&cloud.cloud.name).is_some_and(|&count| count > 0);
        let steps = plan::instance_steps(cloud.cloud, &group, &instances, needed, now);
        let due: Vec<_> =
            instances.iter().filter_map(|instance| Some((instance, *steps.get(&instance.arn)?))).collect();
        each(invocation, &due, |(instance, step)| instance_step(cloud, &group, instance, *step, now)).await;
    }
}

async fn instance_step(
    cloud: CloudRef<'_>,
    group: &Group,
    instance: &Instance,
    step: InstanceStep,
    now: Timestamp,
) -> Result<(), Retry> {
    let (client, cluster) = (&cloud.clients.ecs, &cloud.cloud.cluster);
    let Some(id) = instance.ec2_id.as_deref() else { return Ok(()) };
    match step {
        InstanceStep::MarkIdle => Ok(ecs::tag(client, &instance.arn, IDLE_SINCE_TAG, &now.to_string()).await?),
        InstanceStep::MarkBusy => Ok(ecs::untag(client, &instance.arn, IDLE_SINCE_TAG).await?),
        InstanceStep::Undrain => undrain(cloud, instance).await,
        InstanceStep::DrainAndTerminate { lowers } => {
            let (_, tags) = cloud.clients.ec2.instance(id).await?;
            if tags.iter().any(|(key, _)| key == KEEP_TAG) {
                return if instance.status == "DRAINING" { undrain(cloud, instance).await } else { Ok(()) };
            }
            ecs::set_instance_status(client, cluster, &instance.arn, ContainerInstanceStatus::Draining).await?;
            // Only now can no task come any more: what came until here keeps the instance.
            if ecs::is_occupied(client, cluster, &instance.arn).await? {
                return undrain(cloud, instance).await;
            }
            autoscaling::terminate(&cloud.clients.autoscaling, id, lowers).await?;
            tracing::info!(cloud = cloud.cloud.name, group = group.name, ec2.instance = id, "idle instance given back");
            Ok(())
        }
    }
}

async fn undrain(cloud: CloudRef<'_>, instance: &Instance) -> Result<(), Retry> {
    let (client, cluster) = (&cloud.clients.ecs, &cloud.cloud.cluster);
    ecs::set_instance_status(client, cluster, &instance.arn, ContainerInstanceStatus::Active).await?;
    Ok(ecs::untag(client, &instance.arn, IDLE_SINCE_TAG).await?)
}

//! The whole system on one machine: requests of a stand-in Jenkins become ready agents and builds, and nothing is left
//! behind.
//!
//! The functions run in an emulator of AWS into which `template.yaml` is deployed; ECS, EC2 and Auto Scaling are the
//! simulator's, since the emulator has only stubs of them.

mod containers;
mod controller;
mod deploy;
mod emulator;
mod folder;
mod forward;
mod imported;
mod logs;
mod options;
mod page;
mod pipeline;
mod serve;
mod ssh;
mod timeline;
mod world;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cloudformation;
use crate::http::lock;
use crate::story;
use containers::Containers;
use controller::Controller;
use emulator::{ACCOUNT, Aws, Emulator, REGION};
use folder::Folder;
use forward::Rules;
use imported::Imported;
use logs::Logs;
pub use options::{Options, USAGE};
use pipeline::{Shop, Template};
use ssh::Ssh;
use timeline::{Step, Timelines, percentile};
use world::World;

/// Runs the demo, until it is over or interrupted, and ends what it started.
///
/// # Errors
/// When any part of it fails, with a sentence that helps.
pub async fn run(options: &Options) -> Result<()> {
    let stack = options.root.join("local/.stack");
    let mut terminated = signal(SignalKind::terminate())?;
    let folder = Folder::new(&stack)?;
    let ssh = Ssh::prepare(&folder).await?;
    let jenkins = Arc::new(Controller::start().await?);
    let imported = options.configuration.as_deref().map(Imported::read).transpose()?;
    let world = Arc::new(World::start(imported.as_ref()).await?);
    println!("Stand-in Jenkins  {}", jenkins.root());
    println!("Simulated ECS     {}", world.endpoint());
    let environment: Vec<_> = ["ECS", "AUTO_SCALING", "EC2"]
        .map(|service| format!("AWS_ENDPOINT_URL_{service}"))
        .into_iter()
        .map(|name| (name, world.endpoint()))
        .collect();
    let environment: Vec<_> = environment.iter().map(|(name, url)| (name.as_str(), url.clone())).collect();
    let emulator = Emulator::start(&stack, &folder, free_port()?, &environment).await?;
    println!("Emulated AWS      {}", emulator.aws.endpoint);
    let mut logs = Logs::new(&emulator.aws, folder.logs()?);
    let result = tokio::select! {
        result = demo(options, imported.as_ref(), &emulator, &mut logs, (jenkins, world, ssh)) => result,
        _ = tokio::signal::ctrl_c() => interrupted(options),
        _ = terminated.recv() => interrupted(options),
    };
    let last = logs.new_lines().await;
    if result.is_err() {
        complain(&emulator, &logs);
    }
    emulator.end().await;
    result.and(last.map(drop))
}

/// How long the last lines may take to arrive in the logs.
const PATIENCE: Duration = Duration::from_secs(10);

/// An interrupt ends `--serve` normally, and is a failure otherwise.
fn interrupted(options: &Options) -> Result<()> {
    ensure!(options.serve, "interrupted");
    Ok(())
}

/// A loopback port that is free now.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

async fn demo(
    options: &Options,
    imported: Option<&Imported>,
    emulator: &Emulator,
    logs: &mut Logs,
    (jenkins, world, ssh): (Arc<Controller>, Arc<World>, Ssh),
) -> Result<()> {
    let aws = &emulator.aws;
    let outputs = deploy(options, imported, emulator, &jenkins).await?;
    if options.check {
        return check(aws, &outputs).await;
    }
    let output = |name: &str| outputs.get(name).cloned().with_context(|| format!("the stack has no output {name}"));
    let shop = Arc::new(Shop {
        aws: aws.clone(),
        requests: output("RequestsQueueUrl")?,
        completions: output("CompletionsQueueUrl")?,
        jenkins: jenkins.clone(),
        ssh: ssh.clone(),
        timelines: Arc::new(Timelines::new()),
    });
    let containers = Arc::new(Mutex::new(Containers::new(ssh.clone(), jenkins.clone(), shop.timelines.clone())));
    let rules = Rules::read(aws.clone()).await?;
    ensure!(rules.len() == 2, "the stack has {} rules for events, not 2", rules.len());
    let mut background = JoinSet::new();
    let (events, received) = mpsc::unbounded_channel();
    background.spawn(pump(world.clone(), containers.clone(), events));
    background.spawn(deliver(rules, received));
    let page = match options.serve {
        true => Some(page::serve(shop.clone(), world.clone(), &outputs).await?),
        false => None,
    };
    if let Some(page) = &page {
        println!("Live page         {}", page.url());
    }

    if options.requests > 0 {
        let over_ssh = builds(options.requests, &shop, &containers).await?;
        summary(options.requests, over_ssh, &shop, &world, &outputs).await?;
        check_stories(&shop.timelines, logs).await?;
    }
    if let Some(page) = &page {
        let labels = imported.map_or_else(Vec::new, |imported| imported.labels.clone());
        serve::serve(&shop, &outputs, page, (&emulator.log, &labels), logs).await?;
    }
    Ok(())
}

/// Packages the functions, stores the configuration and its secrets, and creates the stack: returns its outputs.
async fn deploy(
    options: &Options,
    imported: Option<&Imported>,
    emulator: &Emulator,
    jenkins: &Controller,
) -> Result<BTreeMap<String, String>> {
    let began = Instant::now();
    let aws = &emulator.aws;
    let stack = options.root.join("local/.stack");
    deploy::upload(aws, &stack, &emulator.temporary, &options.binaries).await?;
    let mut configuration =
        include_str!("agents.yaml").replace("JENKINS_URL", jenkins.root()).replace("NOTICES_URL", &jenkins.notices);
    if let Some(imported) = imported {
        let mut document = cloudformation::parse(&configuration)?;
        document["clouds"] = imported.clouds.clone();
        // JSON is YAML.
        configuration = document.to_string();
    }
    for (name, value, secret) in [
        ("config/demo", configuration.as_str(), false),
        ("secrets/api-token", controller::API_TOKEN, true),
        ("secrets/webhook", controller::AUTHORIZATION, true),
    ] {
        deploy::parameter(aws, &format!("/jenkins/ecs-agents/{name}"), value, secret).await?;
    }
    let template = std::fs::read_to_string(options.root.join("template.yaml")).context("template.yaml")?;
    let arn = |service: &str, resource: &str| format!("arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}");
    let cluster = |name: &str| arn("ecs", &format!("cluster/{name}"));
    let group = |name: &str| arn("autoscaling", &format!("autoScalingGroup:*:autoScalingGroupName/{name}"));
    let (clusters, groups): (Vec<_>, Vec<_>) = match imported {
        Some(imported) => (
            imported.clusters.iter().map(|name| cluster(name)).collect(),
            imported.groups.iter().map(|(name, _)| group(name)).collect(),
        ),
        None => (vec![cluster(world::CLUSTER)], vec![group(world::GROUP)]),
    };
    let parameters = [
        ("JenkinsUrl", jenkins.root().to_owned()),
        ("ClusterArns", clusters.join(",")),
        ("TaskDefinitionArns", arn("ecs", "task-definition/*")),
        ("AutoScalingGroupArns", groups.join(",")),
        ("Architecture", if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }.to_owned()),
    ];
    let outputs = deploy::create(aws, &template, &parameters).await?;
    println!("template.yaml deployed in {} ms", began.elapsed().as_millis());
    Ok(outputs)
}

/// Advances the simulated world, and the containers with it.
async fn pump(world: Arc<World>, containers: Arc<Mutex<Containers>>, events: mpsc::UnboundedSender<Value>) {
    loop {
        for event in world.advance() {
            lock(&containers).observe(&event, |instance| world.address_of(instance));
            if events.send(event).is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Passes events to the functions, each on its own: as on AWS, one may overtake another.
async fn deliver(rules: Rules, mut events: mpsc::UnboundedReceiver<Value>) {
    let rules = Arc::new(rules);
    let mut deliveries = JoinSet::new();
    while let Some(event) = events.recv().await {
        let rules = rules.clone();
        deliveries.spawn(async move {
            if let Err(error) = rules.deliver(&event).await {
                eprintln!("an event is lost: {error:#}");
            }
        });
        while deliveries.try_join_next().is_some() {}
    }
}

/// Runs builds, all at once, over two templates: returns how many commands ran over SSH.
async fn builds(count: usize, shop: &Arc<Shop>, containers: &Mutex<Containers>) -> Result<usize> {
    shop.timelines.heading();
    let mut builds = JoinSet::new();
    for number in 1..=count {
        let id = format!("demo-{number}");
        let template = if number % 2 == 1 { Template::SshOnEc2 } else { Template::InboundOnFargate };
        let stopped = lock(containers).stopped(&id);
        let shop = shop.clone();
        builds.spawn(async move { shop.build(&id, number, template, stopped).await });
    }
    let mut over_ssh = 0;
    let mut failures = Vec::new();
    while let Some(build) = builds.join_next().await {
        match build? {
            Ok(outcome) => over_ssh += usize::from(outcome.over_ssh),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    ensure!(failures.is_empty(), "{} of {count} builds failed:\n  {}", failures.len(), failures.join("\n  "));
    Ok(over_ssh)
}

/// Prints the result, and verifies that nothing is left behind.
async fn summary(
    count: usize,
    over_ssh: usize,
    shop: &Shop,
    world: &World,
    outputs: &BTreeMap<String, String>,
) -> Result<()> {
    println!();
    println!("{:<28} {:>8} {:>8} {:>8}", "from the request to (ms)", "median", "95 %", "longest");
    for (step, text) in [
        (Step::Task, "a task in ECS"),
        (Step::Running, "a running task"),
        (Step::Ready, "a ready agent in Jenkins"),
        (Step::Stopped, "nothing left of it"),
    ] {
        let times = shop.timelines.times(step);
        let [median, most, longest] = [50, 95, 100].map(|p| percentile(&times, p).as_millis());
        println!("{text:<28} {median:>8} {most:>8} {longest:>8}");
    }
    let calls = world.calls();
    let total: usize = calls.values().sum();
    println!();
    println!("calls of ECS, EC2 and Auto Scaling: {total}, {:.1} per agent", total as f64 / count as f64);
    for (action, calls) in &calls {
        println!("  {action:<34} {calls:>6}");
    }
    let (ready, stopped) = (shop.timelines.times(Step::Ready).len(), shop.timelines.times(Step::Stopped).len());
    println!();
    println!("{ready} agents ready, {over_ssh} commands run over SSH, {stopped} agents gone");
    let tasks = world.living_tasks();
    let nodes = shop.jenkins.with(|jenkins| jenkins.nodes().count());
    let mut messages = Vec::new();
    for name in ["Waiting", "Undelivered", "Rejected"] {
        let url = outputs.get(&format!("{name}QueueUrl")).map(String::as_str).unwrap_or_default();
        let input = json!({"QueueUrl": url, "AttributeNames": ["All"]});
        let attributes = shop.aws.json("sqs", "AmazonSQS.GetQueueAttributes", &input).await?;
        messages
            .push((name, attributes["Attributes"]["ApproximateNumberOfMessages"].as_str().unwrap_or("?").to_owned()));
    }
    let left: Vec<_> = messages.iter().map(|(name, count)| format!("{count} {}", name.to_lowercase())).collect();
    println!("left behind: {tasks} tasks, {nodes} nodes, {} messages", left.join(", "));
    ensure!(tasks == 0 && nodes == 0 && messages.iter().all(|(_, count)| count == "0"), "something is left behind");
    Ok(())
}

/// Checks that the logs have the whole story of each build.
async fn check_stories(timelines: &Timelines, logs: &mut Logs) -> Result<()> {
    let requests = timelines.agents();
    let began = Instant::now();
    loop {
        // The last invocations may not have ended yet.
        logs.new_lines().await?;
        let lines = logs.copied()?;
        let stories = story::stories(&lines);
        let is_complete = |request: &str, agent: &str| {
            stories.iter().any(|story| {
                story.request == request
                    && matches!(&story.agents[..], [found] if found.name == agent
                    && found.ready_ms.is_some() && found.end == Some("COMPLETED"))
            })
        };
        let left = requests.iter().filter(|(request, agent)| !is_complete(request, agent)).count();
        if left == 0 {
            println!("the logs have the whole story of all {} builds: see ./local/story", requests.len());
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "the logs lack a part of the story of {left} builds: see ./local/story");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Shows the report of the check, for people.
async fn check(aws: &Aws, outputs: &BTreeMap<String, String>) -> Result<()> {
    let function = outputs.get("RequestFunctionName").context("the stack has no output RequestFunctionName")?;
    let report = aws.invoke(function, &json!({"check": {}})).await?;
    let items = report["items"].as_array().with_context(|| format!("the check answers {report}"))?;
    println!();
    let mut wrong = 0;
    for item in items {
        let text = |name: &str| item[name].as_str().unwrap_or_default();
        let ok = item["ok"] == true;
        wrong += usize::from(!ok);
        println!("{} {:<44} {}", if ok { "ok   " } else { "WRONG" }, text("item"), text("found"));
        if !ok && !text("mend").is_empty() {
            println!("      {:<44} {}", "", text("mend"));
        }
    }
    ensure!(wrong == 0, "{wrong} of {} items are wrong", items.len());
    println!("\n{} items, all well", items.len());
    Ok(())
}

/// Prints the functions' warnings and errors, to help find out why the demo failed.
fn complain(emulator: &Emulator, logs: &Logs) {
    for line in logs.copied().unwrap_or_default().iter().filter(|line| line.is_complaint()).take(60) {
        eprintln!("{line}");
    }
    eprintln!("the emulator's log: {}", emulator.log.display());
}

//! Ten thousand requests under faults: at the end every request has one outcome, and nothing is left.

use std::time::Duration;

use local::aws::ecs::InstanceStatus;

use super::traits::Trait;
use super::world::{Plan, World};

pub(crate) const CONFIG: &str = "
jenkins:
  url: http://jenkins.test/
  user: bot
  apiToken: {env: TOKEN}
  webhook: {url: http://jenkins.test/all}
clouds:
  - name: instances
    region: eu-west-1
    cluster: ci
    autoScalingGroup: ci
    instanceLaunchTimeout: 45m
    idleInstanceTimeout: 10m
    instanceCapacity: {cpu: 4096, memory: 8192}
    templates:
      - name: ssh
        labels: [ssh]
        taskDefinition: ssh
        container: agent
        connect: ssh
        ssh: {credentialsId: key}
        placementStrategy: [{type: binpack, field: memory}]
  - name: fargate
    region: eu-west-1
    cluster: ci
    instanceLaunchTimeout: 45m
    maxAgents: 60
    templates:
      - name: inbound
        labels: [inbound]
        taskDefinition: inbound
        container: agent
        connect: inbound
        launch: {type: fargate}
        network: {subnets: [subnet-1]}
      - name: broken
        labels: [broken]
        taskDefinition: broken
        container: agent
        connect: ssh
        launch: {type: fargate}
        network: {subnets: [subnet-1]}
";

fn plan(seed: u64, builds: u32, faults: f64) -> Plan {
    let seed = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
    Plan {
        seed,
        builds,
        faults,
        curve: vec![1.0, 2.0, 3.0, 1.0],
        // About 1,500 builds an hour at most.
        span: Duration::from_secs(u64::from(builds) * 4),
        build: (Duration::from_secs(20), Duration::from_secs(240)),
        config: CONFIG.into(),
        bounds: (0, 60),
        boot: Duration::from_secs(100),
        traits: Vec::new(),
    }
}

/// Runs a plan in paused time and holds the end against what has to be true of it.
pub(crate) fn run(plan: Plan) -> World {
    let seed = plan.seed;
    let (bounds, builds, traits) = (plan.bounds, plan.builds, plan.traits.clone());
    let faultless = plan.faults == 0.0;
    fastrand::seed(seed);
    if std::env::var_os("SIMULATION_LOG").is_some() {
        let log = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(std::io::stderr);
        let _ = log.try_init();
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    let world = tokio::task::LocalSet::new().block_on(&runtime, async {
        let world = World::new(plan).await;
        world.run().await;
        world
    });
    let mut wrong: Vec<String> = Vec::new();
    let mut hold = |holds: bool, what: String| {
        if !holds {
            wrong.push(what);
        }
    };
    let outcomes = world.outcomes();
    let fates = world.fates();
    hold(fates.len() == builds as usize, format!("{} of {builds} builds came to an end", fates.len()));
    for fate in &fates {
        let told = outcomes.get(&fate.request).map(Vec::as_slice).unwrap_or_default();
        // Jenkins has a notice, its answer got lost, and before it could be told again the task was at an end: there is no
        // knowing, and the build goes by the first.
        if let [(ready, id), (_, _)] = told
            && ready == "agent.ready"
            && !world.acknowledged(id)
        {
            continue;
        }
        let at_most = if fate.aborted { told.len() <= 1 } else { told.len() == 1 };
        hold(at_most, format!("{} has the outcomes {told:?}: {fate:?}", fate.request));
        let is_lost = fate.agent.as_ref().is_some_and(|name| world.sim().lost.contains(name));
        if fate.failure.is_some() && fate.label != "broken" && !is_lost {
            hold(false, format!("{fate:?} got no agent: {told:?}"));
        }
        if faultless {
            hold(fate.astray.is_none(), format!("{} leads astray: {fate:?}", fate.request));
            hold(fate.built || fate.failure.is_some() || is_lost, format!("{fate:?}"));
        }
    }
    let sim = world.sim();
    let running: Vec<_> = sim
        .aws
        .ecs
        .tasks()
        .filter(|task| task.desired_status == "RUNNING" && !task.group.starts_with("service:"))
        .collect();
    hold(running.is_empty(), format!("{} tasks run without a build, {:?} first", running.len(), running.first()));
    hold(sim.aws.ecs.most_of_a_name <= 1, format!("{} tasks had one name at once", sim.aws.ecs.most_of_a_name));
    for queue in ["requests", "waiting", "undelivered", "completions", "rejected", "dead"] {
        let left = sim.aws.sqs.messages(queue);
        hold(left.is_empty(), format!("{} messages are left in {queue}: {:?}", left.len(), left.first()));
    }
    let nodes: Vec<_> = sim.jenkins.nodes().map(|node| node.name.clone()).collect();
    hold(nodes.is_empty(), format!("{} nodes are left, {:?} first", nodes.len(), nodes.first()));
    let group = sim.aws.ecs.group("ci").expect("the group");
    hold(group.most <= bounds.1 as usize, format!("the group had {} instances", group.most));
    hold(group.desired == bounds.0, format!("the group is left at {}", group.desired));
    let members: Vec<_> = group.members.iter().filter(|member| !member.lifecycle.starts_with("Warmed")).collect();
    hold(members.len() == bounds.0 as usize, format!("the group still has {members:?}"));
    let is_foreign = |name: &str| name == "others";
    for instance in sim.aws.ecs.instances() {
        let group = sim
            .aws
            .ecs
            .groups()
            .find(|group| group.members.iter().any(|member| Some(&member.id) == Some(&instance.ec2_id)));
        let is_untouched = instance.status == InstanceStatus::Active && instance.tags.is_empty();
        hold(
            group.is_some_and(|group| is_foreign(&group.name)) && is_untouched,
            format!("{instance:?} is left, or not as it was"),
        );
    }
    let others = sim.aws.ecs.group("others").map_or(2, |group| group.desired);
    hold(others == 2, format!("another's group has {others} instances"));
    if !traits.contains(&Trait::Spot) {
        hold(sim.lost.is_empty(), format!("agents went with their instance: {:?}", sim.lost));
    }
    let built = fates.iter().filter(|fate| fate.built).count();
    println!(
        "seed {seed} with {traits:?}: {built} of {builds} built, {} aborted, {} failed, {} AWS calls, {} instances at most",
        fates.iter().filter(|fate| fate.aborted).count(),
        fates.iter().filter(|fate| fate.failure.is_some()).count(),
        sim.calls.values().sum::<usize>(),
        group.most,
    );
    assert!(
        wrong.is_empty(),
        "{} things are wrong at the end of SIMULATION_SEED={seed} with {traits:?}:\n{}",
        wrong.len(),
        wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
    );
    drop(sim);
    world
}

#[test]
fn without_faults_an_agent_takes_few_calls() {
    let builds = 1000;
    let world = run(plan(1, builds, 0.0));
    let calls = world.sim().calls.clone();
    for (call, count) in &calls {
        println!("  {call} {count}");
    }
    let count = |call: &str| calls.get(call).copied().unwrap_or_default();
    let (agents, built) = (builds as usize, world.fates().iter().filter(|fate| fate.built).count());
    // Those that waited and came back ran a second time.
    let woken = count("task-state sqs:SendMessage") + count("teardown sqs:SendMessage");
    assert!(count("request ecs:RunTask") <= agents + woken, "run");
    assert!(count("task-state ecs:DescribeTasks") <= agents, "look");
    assert!(count("task-state ecs:TagResource") <= agents, "mark");
    assert_eq!(count("teardown ecs:StopTask"), built, "stop");
    let instances = count("teardown autoscaling:TerminateInstanceInAutoScalingGroup");
    // Here one process serves several events at once, and the first two may both look.
    assert!(count("task-state ec2:DescribeInstances") <= 2 * instances, "an instance's address is looked up once");
    assert!(count("task-state ecs:DescribeTaskDefinition") <= 2 * 2, "a task definition is looked up once");
}

/// Worlds as the seeds draw them; more of them with `SIMULATION_WORLDS=50`.
#[test]
fn worlds_as_their_seeds_draw_them() {
    let count = std::env::var("SIMULATION_WORLDS").ok().and_then(|count| count.parse().ok()).unwrap_or(1);
    for seed in 200..200 + count {
        run(Plan { traits: Trait::draw(seed), ..plan(seed, 200, 0.0) });
    }
}

#[test]
fn one_percent() {
    run(plan(11, 4000, 0.01));
}

#[test]
fn five_percent() {
    run(plan(12, 4000, 0.05));
}

#[test]
fn twenty_percent() {
    run(plan(13, 2000, 0.2));
}

//! Auto Scaling groups: weights, states, zones, failures.

use super::*;

/// A group `g` with these bounds, changed before its first instance.
fn group(bounds: (u32, u32), change: impl FnOnce(&mut Group)) -> Ecs {
    let mut ecs = world();
    ecs.create_group("g", "default", (0, bounds.1), (2048, 4096), at(0));
    let group = ecs.group_mut("g").unwrap();
    group.minimum = bounds.0;
    change(group);
    ecs
}

fn desire(ecs: &mut Ecs, desired: u32, now: Timestamp) {
    let desired = desired.to_string();
    scaling(ecs, "SetDesiredCapacity", &[("AutoScalingGroupName", "g"), ("DesiredCapacity", &desired)], now).unwrap();
}

fn terminate(ecs: &mut Ecs, id: &str, now: Timestamp) -> Result<String, ApiError> {
    let pairs = [("InstanceId", id), ("ShouldDecrementDesiredCapacity", "true")];
    scaling(ecs, "TerminateInstanceInAutoScalingGroup", &pairs, now)
}

fn described(ecs: &mut Ecs, now: Timestamp) -> String {
    scaling(ecs, "DescribeAutoScalingGroups", &[("AutoScalingGroupNames.member.1", "g")], now).unwrap()
}

fn activities(ecs: &mut Ecs, more: &[(&str, &str)], now: Timestamp) -> String {
    let pairs: Vec<_> = [("AutoScalingGroupName", "g")].iter().chain(more).copied().collect();
    scaling(ecs, "DescribeScalingActivities", &pairs, now).unwrap()
}

/// `InService a`
fn states(ecs: &Ecs) -> Vec<String> {
    let members = &ecs.group("g").unwrap().members;
    members.iter().map(|member| format!("{} {}", member.lifecycle, &member.zone[member.zone.len() - 1..])).collect()
}

fn ids(ecs: &Ecs) -> Vec<String> {
    ecs.group("g").unwrap().members.iter().map(|member| member.id.clone()).collect()
}

#[test]
fn a_weighted_group_counts_in_units() {
    let mut ecs = group((0, 10), |group| group.weight = Some(2));
    desire(&mut ecs, 3, at(0));
    ecs.advance(at(200));
    assert_eq!(states(&ecs).len(), 2, "an instance is not halved");
    let xml = described(&mut ecs, at(200));
    assert!(xml.contains("<DesiredCapacity>3</DesiredCapacity>"), "{xml}");
    assert_eq!(xml.matches("<WeightedCapacity>2</WeightedCapacity>").count(), 3, "each instance and the policy: {xml}");
    // One unit too many terminates none; two do.
    desire(&mut ecs, 2, at(200));
    assert_eq!(states(&ecs), ["Terminating a", "InService b"]);
    ecs.advance(at(300));
    desire(&mut ecs, 4, at(300));
    ecs.advance(at(500));
    let id = ids(&ecs)[0].clone();
    terminate(&mut ecs, &id, at(500)).unwrap();
    assert_eq!(ecs.group("g").unwrap().desired, 2);
    ecs.group_mut("g").unwrap().minimum = 1;
    let id = ids(&ecs)[1].clone();
    assert_eq!(terminate(&mut ecs, &id, at(500)).unwrap_err().code, "ValidationError", "2 - 2 is below the minimum");

    for (kind, units) in [("vcpu", 2), ("memory-mib", 4096), ("units", 1)] {
        let mut ecs = group((0, 10_000), |group| group.desired_type = Some(kind));
        desire(&mut ecs, 2 * units, at(0));
        assert_eq!(states(&ecs).len(), 2, "{kind}");
        let xml = described(&mut ecs, at(0));
        assert!(xml.contains(&format!("<DesiredCapacityType>{kind}</DesiredCapacityType>")), "{xml}");
    }
}

#[test]
fn a_mixed_group_has_instances_of_each_size() {
    let kind = |name: &str, weight: u32, size: (u32, u32)| Kind { name: name.into(), weight: Some(weight), size };
    let kinds = vec![kind("m6i.large", 1, (2048, 4096)), kind("m6i.xlarge", 2, (4096, 8192))];
    let mut ecs = group((0, 10), |group| group.kinds = kinds);
    desire(&mut ecs, 3, at(0));
    ecs.advance(at(200));
    let mut sizes: Vec<_> = ecs.instances().map(|instance| instance.total).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [(2048, 4096), (4096, 8192)]);
    let mut ecs = group((0, 10), |_| ());
    desire(&mut ecs, 1, at(0));
    ecs.advance(at(200));
    ecs.group_mut("g").unwrap().size = (4096, 8192);
    desire(&mut ecs, 2, at(200));
    ecs.advance(at(400));
    assert_eq!(ecs.instances().map(|instance| instance.total.0).sum::<u32>(), 2048 + 4096, "a grown launch template");
}

#[test]
fn hooks_hold_launching_and_terminating_instances() {
    let mut ecs = group((0, 5), |group| {
        group.launch_hook = Some(Duration::from_secs(100));
        group.terminate_hook = Some(Duration::from_secs(100));
    });
    desire(&mut ecs, 1, at(0));
    ecs.advance(at(90));
    assert_eq!(
        (states(&ecs), ecs.instances().count()),
        (vec!["Pending:Wait a".to_owned()], 1),
        "it may register before"
    );
    ecs.advance(at(170));
    assert_eq!(states(&ecs), ["InService a"]);
    let id = ids(&ecs)[0].clone();
    terminate(&mut ecs, &id, at(200)).unwrap();
    assert_eq!(states(&ecs), ["Terminating:Wait a"]);
    // ECS is not notified.
    arn(&run(&mut ecs, json!({"taskDefinition": "small"}), at(250)));
    ecs.advance(at(310));
    assert_eq!(states(&ecs), ["Terminating:Proceed a"]);
    assert!(ecs.instances().all(|instance| !instance.connected));
    ecs.advance(at(400));
    assert_eq!((states(&ecs).len(), ecs.instances().count()), (0, 0));
}

#[test]
fn standby_and_warm_instances_do_not_count() {
    let mut ecs = group((0, 5), |_| ());
    ecs.fill_group("g", 2, at(0));
    let id = ids(&ecs)[0].clone();
    ecs.enter_standby(&id, true, at(0));
    assert_eq!((ecs.group("g").unwrap().desired, states(&ecs)), (1, vec!["Standby a".into(), "InService b".into()]));
    assert_eq!(ecs.instances().filter(|instance| instance.connected).count(), 2, "it still accepts tasks");
    let id = ids(&ecs)[1].clone();
    ecs.enter_standby(&id, false, at(0));
    assert_eq!(states(&ecs).len(), 3, "the other is replaced");

    let mut ecs = group((0, 5), |_| ());
    ecs.fill_warm_pool("g", 2, "Warmed:Stopped", at(0));
    ecs.advance(at(300));
    assert_eq!((states(&ecs), ecs.instances().count()), (vec!["Warmed:Stopped a".into(); 2], 0));
    assert!(described(&mut ecs, at(300)).contains("<WarmPoolSize>2</WarmPoolSize>"));
    desire(&mut ecs, 1, at(300));
    ecs.advance(at(400));
    assert_eq!((states(&ecs), ecs.instances().count()), (vec!["InService a".into(), "Warmed:Stopped a".into()], 1));
}

#[test]
fn suspended_processes_have_no_effect_and_are_shown() {
    let mut ecs = group((0, 5), |_| ());
    ecs.fill_group("g", 2, at(0));
    ecs.group_mut("g").unwrap().suspended = ["Launch", "Terminate"].map(str::to_owned).into();
    desire(&mut ecs, 4, at(0));
    assert_eq!(states(&ecs).len(), 2);
    desire(&mut ecs, 1, at(0));
    assert_eq!(states(&ecs), ["InService a", "InService b"]);
    let xml = described(&mut ecs, at(0));
    assert!(xml.contains("<SuspendedProcesses><member><ProcessName>Launch</ProcessName>"), "{xml}");
}

#[test]
fn a_lowered_capacity_may_end_a_busy_instance_of_another_zone() {
    for (change, ended) in [
        ((|_| ()) as fn(&mut Group), true),
        (|group| group.suspended = ["AZRebalance".to_owned()].into(), false),
        (|group| group.members.iter_mut().for_each(|member| member.protected = true), false),
    ] {
        let mut ecs = group((0, 5), |_| ());
        ecs.fill_group("g", 4, at(0));
        change(ecs.group_mut("g").unwrap());
        let in_zone = |ecs: &Ecs, zone: &str| {
            let members = &ecs.group("g").unwrap().members;
            members
                .iter()
                .filter(|member| member.zone.ends_with(zone))
                .map(|member| member.id.clone())
                .collect::<Vec<_>>()
        };
        let busy = in_zone(&ecs, "a");
        for id in in_zone(&ecs, "b") {
            terminate(&mut ecs, &id, at(0)).unwrap();
        }
        ecs.advance(at(300));
        let left = ids(&ecs);
        assert_eq!(busy.iter().all(|id| left.contains(id)), !ended, "{:?}", states(&ecs));
        assert_eq!((left.len(), ecs.group("g").unwrap().desired), (2, 2));
    }
}

#[test]
fn failed_launches_are_scaling_activities() {
    let mut ecs = group((0, 5), Group::lacks_capacity);
    desire(&mut ecs, 2, at(0));
    ecs.advance(at(30));
    assert_eq!(states(&ecs).len(), 0);
    let xml = activities(&mut ecs, &[], at(30));
    assert!(
        xml.contains("<StatusCode>Failed</StatusCode><StatusMessage>We currently do not have sufficient m6i.large"),
        "{xml}"
    );
    ecs.advance(at(130));
    assert_eq!(activities(&mut ecs, &[], at(130)).matches("<ActivityId>").count(), 3, "it tries again");
    ecs.group_mut("g").unwrap().cannot_launch = None;
    ecs.advance(at(400));
    assert_eq!(states(&ecs), ["InService a", "InService b"]);
    let newest = activities(&mut ecs, &[("MaxRecords", "1")], at(400));
    assert!(
        newest.contains("<StatusCode>Successful</StatusCode>") && newest.contains("<NextToken>1</NextToken>"),
        "{newest}"
    );
    for (action, token) in [("DescribeScalingActivities", "garbage"), ("DescribeAutoScalingGroups", "garbage")] {
        let pairs = [("AutoScalingGroupName", "g"), ("NextToken", token)];
        assert_eq!(scaling(&mut ecs, action, &pairs, at(400)).unwrap_err().code, "InvalidNextToken");
    }
}

#[test]
fn some_instances_never_register() {
    let mut ecs = group((0, 5), |group| group.broken = 1);
    desire(&mut ecs, 2, at(0));
    ecs.advance(at(600));
    assert_eq!((states(&ecs), ecs.instances().count()), (vec!["InService a".into(), "InService b".into()], 1));
    let id = ids(&ecs)[0].clone();
    ecs.set_launched_at(&id, at(-86_400));
    let xml = ecs.ec2("DescribeInstances", &form(&[("InstanceId.1", &id)]), at(600)).unwrap();
    assert!(xml.contains(&format!("<launchTime>{}</launchTime>", at(-86_400))), "{xml}");
}

#[test]
fn the_spot_interruption_is_on_the_instance_and_not_on_its_task() {
    let mut ecs = group((0, 5), |group| group.spot = true);
    ecs.fill_group("g", 1, at(0));
    let id = ids(&ecs)[0].clone();
    let arn = arn(&run(&mut ecs, json!({"taskDefinition": "small"}), at(0)));
    ecs.interrupt_instance(&id, at(30));
    let warning = ecs.take_events().pop().unwrap();
    assert_eq!((&warning["source"], &warning["detail"]["instance-id"]), (&json!("aws.ec2"), &json!(id)));
    assert_eq!(task(&mut ecs, &arn, at(140))["lastStatus"], "RUNNING");
    let shown = task(&mut ecs, &arn, at(160));
    assert_eq!((&shown["lastStatus"], &shown["stopCode"]), (&json!("STOPPED"), &json!("TerminationNotice")));
    assert_eq!(shown["stoppedReason"], format!("Host EC2 (instance {id}) terminated."));
    let xml = ecs.ec2("DescribeInstances", &form(&[("InstanceId.1", &id)]), at(160)).unwrap();
    assert!(xml.contains("<stateReason><code>Server.SpotInstanceTermination</code>"), "{xml}");
    assert!(xml.contains("<instanceLifecycle>spot</instanceLifecycle>"), "{xml}");
}

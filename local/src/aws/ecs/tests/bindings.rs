//! Ports and addresses in every form in which ECS and EC2 show them.

use super::*;

fn agent_bindings(ecs: &mut Ecs, family: &str, now: Timestamp) -> Value {
    let arn = ecs.tasks().find(|task| task.family == family).unwrap().arn.clone();
    let shown = task(ecs, &arn, now);
    let containers = shown["containers"].as_array().unwrap();
    containers.iter().find(|container| container["name"] == "agent").unwrap()["networkBindings"].clone()
}

#[test]
fn dual_stack_binds_a_dynamic_port_twice_and_a_static_one_alike() {
    for (addressing, ips) in [
        (Addressing::V4, &["0.0.0.0"][..]),
        (Addressing::Dual, &["0.0.0.0", "::"]),
        (Addressing::DualV6First, &["::", "0.0.0.0"]),
        (Addressing::V6, &["::"]),
    ] {
        let mut ecs = world();
        ecs.settings().instance_addresses = addressing;
        let place = ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
        let arn = arn(&run(&mut ecs, json!({"taskDefinition": "bridge"}), at(0)));
        let shown = agent_bindings(&mut ecs, "bridge", at(60));
        let of_port = |port: u32| -> Vec<(&str, u64)> {
            let bindings = shown.as_array().unwrap().iter().filter(|binding| binding["containerPort"] == port);
            bindings
                .map(|binding| (binding["bindIP"].as_str().unwrap(), binding["hostPort"].as_u64().unwrap()))
                .collect()
        };
        let (dynamic, fixed) = (of_port(22), of_port(9));
        assert_eq!(dynamic.iter().map(|(ip, _)| *ip).collect::<Vec<_>>(), ips, "{addressing:?}");
        let distinct: std::collections::BTreeSet<u64> = dynamic.iter().map(|(_, port)| *port).collect();
        assert_eq!(distinct.len(), ips.len(), "{dynamic:?}");
        assert!(fixed.len() == ips.len() && fixed.iter().all(|(_, port)| *port == 9000), "{fixed:?}");
        ecs.call("StopTask", &json!({"task": arn}), at(60)).unwrap();
        ecs.advance(at(120));
        assert!(ecs.instance(&place).unwrap().ports.is_empty());
    }
}

#[test]
fn bindings_may_come_after_running() {
    for (null, until_then) in [(false, json!([])), (true, Value::Null)] {
        let mut ecs = world();
        ecs.settings().binding = Duration::from_secs(10);
        ecs.settings().bindings_are_null = null;
        ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
        let arn = arn(&run(&mut ecs, json!({"taskDefinition": "bridge"}), at(0)));
        assert_eq!(task(&mut ecs, &arn, at(6))["lastStatus"], "RUNNING");
        assert_eq!(agent_bindings(&mut ecs, "bridge", at(6)), until_then);
        ecs.take_events();
        assert_eq!(agent_bindings(&mut ecs, "bridge", at(20)).as_array().unwrap().len(), 2);
        assert!(ecs.take_events().is_empty(), "no event reports bindings");
    }
}

#[test]
fn a_range_is_bound_to_a_range() {
    let mut ecs = world();
    let container = |more: Value| {
        let base = json!({"name": "agent", "image": "agent:1", "cpu": 64, "memory": 64});
        json!({"family": "range", "containerDefinitions": [with(&base, more)]})
    };
    ecs.register_definition(&container(json!({"portMappings": [{"containerPortRange": "20-22"}]}))).unwrap();
    ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    for first in [32768, 32771] {
        let arn = arn(&run(&mut ecs, json!({"taskDefinition": "range"}), at(0)));
        assert_eq!(
            task(&mut ecs, &arn, at(60))["containers"][0]["networkBindings"],
            json!([{"bindIP": "0.0.0.0", "containerPortRange": "20-22", "hostPortRange": format!("{first}-{}", first + 2),
                "protocol": "tcp"}])
        );
    }
    for mapping in [
        json!({"containerPortRange": "22"}),
        json!({"containerPortRange": "22-20"}),
        json!({"containerPortRange": "20-120"}),
        json!({"containerPortRange": "20-22", "hostPort": 22}),
        json!({"containerPortRange": "20-22", "containerPort": 22}),
    ] {
        let definition = container(json!({"portMappings": [mapping]}));
        assert_eq!(ecs.register_definition(&definition).unwrap_err().code, "ClientException", "{mapping}");
    }
}

#[test]
fn an_ipv6_only_task_shows_no_ipv4_address() {
    let mut ecs = world();
    ecs.settings().instance_addresses = Addressing::V6;
    ecs.settings().interface_addresses = Addressing::V6;
    ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let xml = ecs.ec2("DescribeInstances", &form(&[("InstanceId.1", "i-1")]), at(0)).unwrap();
    assert!(
        xml.contains("<ipv6Address>2001:db8:") && !xml.contains("IpAddress>") && !xml.contains("<ipAddress>"),
        "{xml}"
    );
    let arn = arn(&run(&mut ecs, on_fargate(), at(0)));
    let shown = task(&mut ecs, &arn, at(30));
    let interface = &shown["containers"][0]["networkInterfaces"][0];
    assert!(interface["privateIpv4Address"].is_null() && interface["ipv6Address"].is_string(), "{interface}");
    let details = shown["attachments"][0]["details"].as_array().unwrap();
    assert!(!details.iter().any(|detail| detail["name"] == "privateIPv4Address"), "{details:?}");
    let id = ecs.task(&arn).unwrap().interface.clone().unwrap().id;
    let xml = ecs.ec2("DescribeNetworkInterfaces", &form(&[("NetworkInterfaceId.1", &id)]), at(30)).unwrap();
    assert!(xml.contains("<ipv6AddressesSet>") && !xml.contains("privateIpAddress"), "{xml}");

    ecs.settings().interface_addresses = Addressing::Dual;
    let arn = super::arn(&run(&mut ecs, on_fargate(), at(30)));
    let shown = task(&mut ecs, &arn, at(60));
    let interface = &shown["containers"][0]["networkInterfaces"][0];
    assert!(interface["privateIpv4Address"].is_string() && interface["ipv6Address"].is_string(), "{interface}");
}

#[test]
fn health_is_shown_in_answers_and_not_in_events() {
    let mut ecs = world();
    let arn = arn(&run(&mut ecs, on_fargate(), at(0)));
    ecs.advance(at(13));
    assert_eq!(task(&mut ecs, &arn, at(13))["healthStatus"], "UNKNOWN");
    ecs.advance(at(60));
    let shown = task(&mut ecs, &arn, at(60));
    assert_eq!(
        (&shown["healthStatus"], &shown["containers"][0]["healthStatus"]),
        (&json!("HEALTHY"), &json!("HEALTHY"))
    );
    for event in ecs.take_events() {
        let detail = &event["detail"];
        assert!(detail["healthStatus"].is_null() && detail["containers"][0]["healthStatus"].is_null(), "{detail}");
    }
}

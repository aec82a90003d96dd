//! The configuration, as YAML and as JSON.

use shared::config::{Config, Document, Limit, Template, from_documents, from_yaml, is_word, variables};

use crate::mutate::{Input, corpus, holds};

/// The configuration that the other properties use: a cloud of instances with the labels `linux` and `maven`.
pub(crate) fn config() -> Config {
    let text = "
jenkins: {url: https://ci.example.com/, user: bot, apiToken: {env: TOKEN}}
clouds:
  - name: linux
    region: eu-west-1
    cluster: jenkins
    autoScalingGroup: group
    templates:
      - {name: maven, labels: [linux, maven], taskDefinition: jenkins-maven, connect: ssh,
         allowedOverrides: [cpu, memory, environment, command, taskRole, taskDefinition], allowedTaskDefinitions: [jenkins-*]}
";
    from_yaml(text).expect("a configuration")
}

fn keeps_the_rules(template: &Template) {
    assert!(is_word(&template.name, 64, "_-"));
    assert!(!template.labels.0.is_empty() && template.labels.0.iter().all(|label| !label.trim().is_empty()));
    assert!((1..=10).contains(&template.agents_per_request) && template.executors > 0);
    for (name, value) in &template.environment {
        assert_eq!(variables::check(name, value), Ok(()));
        assert!(!variables::is_reserved(name));
    }
    for limit in [template.container_start_timeout, template.max_lifetime, template.ssh.launch_timeout] {
        assert_eq!(limit.to_string().parse(), Ok::<Limit, String>(limit));
        assert!(limit.0.is_none_or(|limit| !limit.is_zero()));
    }
}

#[test]
fn configurations() {
    let Input(other) = corpus("configuration")["shortest.yaml"].clone();
    let other = String::from_utf8(other).expect("text");
    holds("configuration", |input| {
        let text = &*String::from_utf8_lossy(input);
        let document = |source: &str, text: &str| Document { source: source.into(), text: text.into() };
        let (_, faults) = from_documents(&[document("/1", &other), document("/2", text)]);
        assert!(faults.is_sorted() && faults.iter().all(|fault| !fault.to_string().is_empty()));
        let config = match from_yaml(text) {
            Ok(config) => config,
            Err(faults) => {
                assert!(!faults.is_empty());
                return false;
            }
        };
        assert!(!config.clouds.is_empty());
        config.clouds.iter().flat_map(|cloud| &cloud.templates).for_each(keeps_the_rules);
        // JSON is YAML, however it is written.
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
            let again = from_yaml(&value.to_string()).expect("the same configuration");
            assert_eq!(format!("{again:?}"), format!("{config:?}"));
        }
        true
    });
}

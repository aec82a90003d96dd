//! Keeps the stack up for requests by hand: prints the commands, and what comes of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::emulator::{ACCOUNT, REGION};
use super::logs::Logs;
use super::pipeline::Shop;
use super::timeline::Step;
use crate::http::Server;

/// The interval in which the functions' logs are read.
const LOOK: Duration = Duration::from_millis(500);

/// Keeps the stack up, and prints notices and the functions' log lines, until it is interrupted. `labels` are those of an
/// imported configuration's templates.
///
/// # Errors
/// When the logs cannot be copied.
pub(super) async fn serve(
    shop: &Shop,
    outputs: &BTreeMap<String, String>,
    page: &Server,
    (log, labels): (&Path, &[String]),
    logs: &mut Logs,
) -> Result<()> {
    shop.timelines.settle();
    instructions(shop, outputs, page, (log, labels));
    tokio::select! {
        () = show_notices(shop) => Ok(()),
        result = show_logs(logs) => result,
    }
}

/// Written for version 1 of the AWS CLI, too: it knows neither `AWS_REGION` nor, before 1.29, the endpoint's variable,
/// and accepts a payload by `fileb://` as version 2 does.
fn instructions(shop: &Shop, outputs: &BTreeMap<String, String>, page: &Server, (log, labels): (&Path, &[String])) {
    let aws = format!("aws --endpoint-url {}", shop.aws.endpoint);
    let function = outputs.get("RequestFunctionName").map(String::as_str).unwrap_or_default();
    let send = |queue: &str, body: &str| {
        println!("  {aws} sqs send-message --queue-url {queue} \\\n    --message-body '{body}'\n")
    };
    println!(
        "\nThe stack stays up until Ctrl-C; {} shows it live. To request an agent with the AWS CLI:\n",
        page.url()
    );
    println!("  export AWS_ACCESS_KEY_ID={ACCOUNT} AWS_SECRET_ACCESS_KEY=any AWS_DEFAULT_REGION={REGION}");
    for (index, label) in labels.iter().enumerate() {
        let request = json!({"version": 1, "requestId": format!("by-hand-{}", index + 1), "label": label});
        send(&shop.requests, &request.to_string());
    }
    if labels.is_empty() {
        send(&shop.requests, r#"{"version": 1, "requestId": "by-hand-1", "label": "linux && maven"}"#);
        println!("One with more memory than the template's (use a new requestId for each further request):\n");
        let larger = r#"{"version": 1, "requestId": "by-hand-2", "label": "maven", "overrides": {"memory": 4096}}"#;
        send(&shop.requests, larger);
    }
    println!("To report that their builds have completed:\n");
    let requests = if labels.is_empty() { 2 } else { labels.len() };
    for number in 1..=requests {
        send(&shop.completions, &format!(r#"{{"version": 1, "requestId": "by-hand-{number}"}}"#));
    }
    println!("To check the configuration (`./local/run --check` prints a readable report):\n");
    println!("  echo '{{\"check\": {{}}}}' | {aws} lambda invoke --function-name {function} \\");
    println!("    --payload fileb:///dev/stdin /dev/stdout\n");
    println!("To follow one build through the logs of all functions (without an id, all builds are listed):\n");
    println!("  ./local/story {}\n", if shop.timelines.agents().is_empty() { "by-hand-1" } else { "demo-1" });
    println!("To read the functions' complete logs:\n");
    for function in ["request", "task-state", "teardown"] {
        println!("  {aws} logs filter-log-events --log-group-name /aws/lambda/{}-{function} \\", super::deploy::STACK);
        println!("    --query 'events[].message' --output text");
    }
    println!("\nThe emulator's own log is {}.", log.display());
    println!(
        "\nNotices that arrive at {}, and the functions' log lines about requests that wait or fail:",
        shop.jenkins.notices
    );
}

async fn show_notices(shop: &Shop) {
    let mut seen = shop.jenkins.with(|jenkins| jenkins.arrivals().len());
    loop {
        let arrived = shop
            .jenkins
            .find(|jenkins| jenkins.arrivals().get(seen).map(|arrival| (arrival.path.clone(), arrival.body.clone())))
            .await;
        seen += 1;
        if shop.jenkins.notices.ends_with(&arrived.0) {
            show_notice(shop, &serde_json::from_slice(&arrived.1).unwrap_or_default());
        }
    }
}

fn show_notice(shop: &Shop, notice: &Value) {
    let text = |pointer: &str| notice.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, request, agent) = (text("/type"), text("/requestId"), text("/agent/name"));
    let failure = match text("/failure/code") {
        "" => String::new(),
        code => format!("{code}: {}", text("/failure/message")),
    };
    println!("{} {kind} {request} {agent} {failure}", text("/at"));
    shop.timelines.by_hand(request);
    shop.timelines.agent(request, agent);
    shop.timelines.note(request, &failure);
    match kind {
        "agent.ready" => shop.timelines.reached(request, Step::Ready),
        "agent.stopped" => shop.timelines.reached(request, Step::Stopped),
        "agent.waiting" => shop.timelines.note(request, "waits for room"),
        _ => {}
    }
    let port = notice.pointer("/agent/port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    if let (true, Some(port)) = (kind == "agent.ready", port) {
        shop.jenkins.with(|jenkins| jenkins.connect_ssh(agent));
        let line = shop.ssh.command_line(text("/agent/host"), port);
        println!("    {}", line.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
    }
}

/// The earlier builds were shown already: only what comes from now on is printed.
async fn show_logs(logs: &mut Logs) -> Result<()> {
    logs.new_lines().await?;
    loop {
        tokio::time::sleep(LOOK).await;
        for line in logs.new_lines().await?.iter().filter(|line| line.is_notable()) {
            println!("    {line}");
        }
    }
}

/// A word, quoted for a shell.
fn quoted(word: &str) -> String {
    let is_plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,@+".contains(c));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_spaces_and_quotes_are_quoted() {
        assert_eq!(quoted("StrictHostKeyChecking=no"), "StrictHostKeyChecking=no");
        assert_eq!(quoted("/home/a b/it's"), r"'/home/a b/it'\''s'");
    }
}

//! Our share of the time from a request to its agent.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use local::lambda::Function;
use serde_json::json;
use tests::{Binary, Stack};

use crate::world::Subject;

/// Agents that warm the functions up, and those that are measured.
const AGENTS: (usize, usize) = (5, 100);

/// Measures and prints the table: from a request in its queue to the notice `agent.ready` at its webhook, for one agent
/// after the other. The time between `request`'s answer and the event of the running task is not ours.
pub(crate) async fn table() -> Result<()> {
    let mut stack = Stack::start().await;
    {
        let mut aws = stack.aws();
        let settings = aws.ecs.settings();
        (settings.quotas, settings.run_task_rate) = (None, None);
    }
    stack.set_env("AWS_LAMBDA_LOG_LEVEL", Some("INFO"));
    let mut request = start(&stack, Binary::Request).await?;
    let mut task_state = start(&stack, Binary::TaskState).await?;
    let mut shares = Vec::new();
    for number in 0..AGENTS.0 + AGENTS.1 {
        let url = stack.webhook();
        stack.ask(json!({"requestId": format!("ready-{number}"), "label": "node", "webhookUrl": url}));
        let began = Instant::now();
        ensure!(request.poll(&stack.shared_aws(), "requests").await? == 1, "no request");
        let placed_ms = began.elapsed().as_secs_f64() * 1e3;
        let events = std::mem::take(stack.advance());
        let began = Timestamp::now();
        for event in events {
            let answer = task_state.invoke(event).await?;
            ensure!(answer.is_ok(), "{answer:?}");
        }
        ensure!(stack.received(&url) == ["agent.ready"], "no notice:\n{}", task_state.output());
        let jenkins = stack.jenkins();
        let arrival = jenkins.arrivals().iter().rfind(|arrival| url.ends_with(&arrival.path)).context("no arrival")?;
        shares.push(placed_ms + arrival.at.duration_since(began).as_secs_f64() * 1e3);
    }
    let mut shares = shares.split_off(AGENTS.0);
    shares.sort_by(f64::total_cmp);
    let at = |part: f64| shares[((shares.len() - 1) as f64 * part).round() as usize];
    println!("| from a request to its notice, ms | p50 | p90 | max |\n|---|---|---|---|");
    println!("| our share, warm | {:.1} | {:.1} | {:.1} |\n", at(0.5), at(0.9), at(1.0));
    Ok(())
}

async fn start(stack: &Stack, function: Binary) -> Result<Function> {
    let command = Subject::Function(function).command()?;
    Ok(stack.start_program(&command[0]).await)
}

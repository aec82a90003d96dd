//! A page on loopback that shows queues, agents and their timelines live, by server-sent events.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::body::Body;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse as _};
use futures::stream;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::pipeline::Shop;
use super::timeline::STEPS;
use super::world::World;
use crate::http::{Server, serve as serve_http};

const PAGE: &str = include_str!("page.html");
/// The interval of updates.
const LOOK: Duration = Duration::from_millis(250);
/// The queues' names in the stack's outputs, without `QueueUrl`.
const QUEUES: [&str; 5] = ["Requests", "Waiting", "Undelivered", "Completions", "Rejected"];

/// Serves the page on a free loopback port. It polls as long as somebody watches.
///
/// # Errors
/// When no port can be had.
pub(super) async fn serve(shop: Arc<Shop>, world: Arc<World>, outputs: &BTreeMap<String, String>) -> Result<Server> {
    let urls =
        QUEUES.iter().filter_map(|name| Some((*name, outputs.get(&format!("{name}QueueUrl"))?.clone()))).collect();
    let states = Arc::new(watch::Sender::new(String::new()));
    let look = Look { shop, world, urls };
    let changed = states.clone();
    tokio::spawn(async move { look.go_on(&changed).await });
    server(states).await
}

async fn server(states: Arc<watch::Sender<String>>) -> Result<Server> {
    serve_http(move |request| {
        let states = states.clone();
        async move {
            match request.uri().path() {
                "/" => Html(PAGE).into_response(),
                "/events" => events(states.subscribe()).into_response(),
                _ => (StatusCode::NOT_FOUND, Body::empty()).into_response(),
            }
        }
    })
    .await
}

/// Each state as an event, beginning with the present one.
fn events(mut watched: watch::Receiver<String>) -> impl axum::response::IntoResponse {
    watched.mark_changed();
    let states = stream::unfold(watched, |mut watched| async move {
        watched.changed().await.ok()?;
        let event = Event::default().data(watched.borrow_and_update().as_str());
        Some((Ok::<_, Infallible>(event), watched))
    });
    Sse::new(states).keep_alive(KeepAlive::default())
}

struct Look {
    shop: Arc<Shop>,
    world: Arc<World>,
    urls: Vec<(&'static str, String)>,
}

impl Look {
    async fn go_on(&self, states: &watch::Sender<String>) {
        loop {
            if states.receiver_count() > 0 {
                let state = self.state().await.to_string();
                states.send_if_modified(|old| {
                    let changed = *old != state;
                    *old = state;
                    changed
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn state(&self) -> Value {
        let mut queues = Vec::new();
        for (name, url) in &self.urls {
            queues.push(self.queue(name, url).await);
        }
        let (tasks, instances) = self.world.snapshot();
        let nodes = self.shop.jenkins.peek(|jenkins| {
            let nodes = jenkins.nodes().map(|node| {
                let state = match (node.is_offline(), node.is_idle()) {
                    (true, _) => "offline",
                    (false, true) => "idle",
                    (false, false) => "builds",
                };
                (node.name.clone(), Value::from(state))
            });
            nodes.collect::<serde_json::Map<_, _>>()
        });
        json!({
            "queues": queues, "tasks": tasks, "instances": instances, "nodes": nodes,
            "steps": STEPS, "timelines": self.shop.timelines.snapshot(),
        })
    }

    async fn queue(&self, name: &str, url: &str) -> Value {
        let input = json!({"QueueUrl": url, "AttributeNames": ["All"]});
        let answer = self.shop.aws.json("sqs", "AmazonSQS.GetQueueAttributes", &input).await.unwrap_or_default();
        let count = |attribute: &str| answer["Attributes"][attribute].as_str().unwrap_or("?").to_owned();
        json!({
            "name": name, "messages": count("ApproximateNumberOfMessages"),
            "inFlight": count("ApproximateNumberOfMessagesNotVisible"),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpStream;

    use super::*;

    /// The streamed response, line by line.
    async fn get(server: &Server, path: &str) -> Result<tokio::io::Lines<BufReader<TcpStream>>> {
        let mut stream = TcpStream::connect(server.address).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: page\r\n\r\n").as_bytes()).await?;
        Ok(BufReader::new(stream).lines())
    }

    async fn line_with(lines: &mut tokio::io::Lines<BufReader<TcpStream>>, text: &str) -> Result<bool> {
        while let Some(line) = lines.next_line().await? {
            if line.contains(text) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    #[tokio::test]
    async fn the_page_shows_the_present_state_and_each_change() -> Result<()> {
        let states = Arc::new(watch::Sender::new(r#"{"state": 1}"#.to_owned()));
        let server = server(states.clone()).await?;
        let mut events = get(&server, "/events").await?;
        assert!(line_with(&mut events, r#"data: {"state": 1}"#).await?);
        states.send_replace(r#"{"state": 2}"#.to_owned());
        assert!(line_with(&mut events, r#"data: {"state": 2}"#).await?);
        assert!(line_with(&mut get(&server, "/").await?, "new EventSource(\"events\")").await?);
        assert!(line_with(&mut get(&server, "/other").await?, "404").await?);
        Ok(())
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        assert!(!PAGE.contains("//cdn") && !PAGE.contains("http:") && !PAGE.contains("https:"));
        assert!(!PAGE.contains("innerHTML"));
    }
}

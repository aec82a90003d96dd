//! Serves a simulator on a free port of the loopback interface.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::aws::{Answer, Aws};
use crate::jenkins::{Delay, Jenkins};

/// More than any request here has.
const MOST: usize = 16 * 1024 * 1024;

/// A server; it ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Its address.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves on a free port.
///
/// # Errors
/// When no port could be had.
pub async fn serve<F, Fut>(answer: F) -> Result<Server>
where
    F: Fn(http::Request<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response> + Send + 'static,
{
    serve_on(TcpListener::bind(("127.0.0.1", 0)).await?, answer)
}

/// Serves on a listener.
///
/// # Errors
/// When the listener has no address.
pub fn serve_on<F, Fut>(listener: TcpListener, answer: F) -> Result<Server>
where
    F: Fn(http::Request<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response> + Send + 'static,
{
    let address = listener.local_addr()?;
    let router = Router::new().fallback(move |request: Request| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = to_bytes(body, MOST).await.unwrap_or_default();
            answer(http::Request::from_parts(parts, body)).await
        }
    });
    let task = tokio::spawn(async move {
        let _ = axum::serve(listener, router).await;
    });
    Ok(Server { address, task })
}

/// A body that ends early: the connection is dropped, and the answer is lost.
pub fn broken() -> Response {
    let broken = futures::stream::once(async { Err::<Bytes, _>(std::io::Error::other("the answer is lost")) });
    Response::new(Body::from_stream(broken))
}

/// Serves AWS, in real time.
///
/// # Errors
/// When the listener has no address.
pub fn serve_aws(aws: Arc<Mutex<Aws>>, listener: TcpListener) -> Result<Server> {
    serve_on(listener, move |request| {
        let Answer { response, delay, lost } = lock(&aws).handle(request, Timestamp::now());
        async move {
            tokio::time::sleep(delay).await;
            if lost { broken() } else { response.map(Body::from) }
        }
    })
}

/// Serves a Jenkins controller, in real time.
///
/// # Errors
/// When the listener has no address.
pub fn serve_jenkins(jenkins: Arc<Mutex<Jenkins>>, listener: TcpListener) -> Result<Server> {
    serve_on(listener, move |request| {
        let response = lock(&jenkins).handle(request, Timestamp::now());
        async move {
            if let Some(Delay(duration)) = response.extensions().get() {
                tokio::time::sleep(*duration).await;
            }
            response.map(Body::from)
        }
    })
}

/// A panic of one holder does not affect the others.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

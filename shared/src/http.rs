//! The one HTTP stack: the SDK's own client, used for AWS and for Jenkins alike.

use std::time::Duration;

use aws_smithy_http_client::{Connector, tls};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::{Request, Response};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::BodyExt as _;

/// What of an answer is read at the most; enough for every page that we ask for.
const ANSWER_LIMIT: usize = 32 * 1024 * 1024;

/// A connection to somewhere that is not AWS, or that the SDK has no small client for.
#[derive(Debug, Clone)]
pub struct Http(SharedHttpConnector);

/// Why there is no answer. The text names the host but never a path or header, which can hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum HttpFault {
    /// No answer in time.
    #[error("no answer from {host} within {} ms", timeout.as_millis())]
    Timeout {
        /// Who was asked.
        host: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The connection could not be made or broke.
    #[error("cannot reach {host}: {reason}")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// In the words of the HTTP client.
        reason: String,
    },
}

impl Http {
    /// A connector of one's own, as tests have it.
    pub fn new(connector: SharedHttpConnector) -> Self {
        Self(connector)
    }

    /// Answers from a function instead of the network.
    pub fn in_memory(answer: impl Fn(http::Request<Bytes>) -> Answer + Send + Sync + 'static) -> Self {
        Self(SharedHttpConnector::new(InMemory(Box::new(answer))))
    }

    /// The same connection as the SDK's clients take it.
    pub fn client(&self) -> SharedHttpClient {
        let connector = self.0.clone();
        http_client_fn(move |_, _| connector.clone())
    }

    /// TLS with the system's roots and, if given, the PEM certificates of a private authority. Never follows a redirect.
    ///
    /// # Errors
    /// When the PEM holds no certificate.
    pub fn with_tls(private_authority: Option<&str>) -> anyhow::Result<Self> {
        let mut roots = tls::TrustStore::empty().with_native_roots(true);
        if let Some(pem) = private_authority {
            anyhow::ensure!(
                pem.contains("-----BEGIN CERTIFICATE-----"),
                "jenkins.caCertificate: holds no PEM certificate (`-----BEGIN CERTIFICATE-----`)"
            );
            roots = roots.with_pem_certificate(pem.as_bytes());
        }
        let context = tls::TlsContext::builder().with_trust_store(roots).build()?;
        let connector = Connector::builder()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .tls_context(context)
            .build();
        Ok(Self(SharedHttpConnector::new(connector)))
    }

    /// Sends a request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// When no complete answer came within the timeout.
    pub async fn send(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
    ) -> Result<http::Response<Bytes>, HttpFault> {
        let host = request.uri().host().unwrap_or("?").to_owned();
        let unreachable = |reason: String| HttpFault::Unreachable { host: host.clone(), reason };
        let request = Request::try_from(request.map(SdkBody::from)).map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let response = self.0.call(request).await.map_err(|error| unreachable(root_cause(&error)))?;
            let (parts, body) =
                response.try_into_http1x().map_err(|error| unreachable(error.to_string()))?.into_parts();
            let body = http_body_util::Limited::new(body, ANSWER_LIMIT)
                .collect()
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            Ok(http::Response::from_parts(parts, body.to_bytes()))
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpFault::Timeout { host: host.clone(), timeout }),
        }
    }
}

/// The innermost source says what really happened (`connection refused`); the layers above it do not.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

type Answer = futures::future::BoxFuture<'static, Result<http::Response<Bytes>, String>>;

/// An HTTP connector without a network.
struct InMemory(Box<dyn Fn(http::Request<Bytes>) -> Answer + Send + Sync>);

impl std::fmt::Debug for InMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InMemory")
    }
}

impl HttpConnector for InMemory {
    fn call(&self, request: Request) -> HttpConnectorFuture {
        let failed = |error: String| ConnectorError::io(error.into());
        let answer = request
            .try_into_http1x()
            .map(|request| (self.0)(request.map(|body| Bytes::copy_from_slice(body.bytes().unwrap_or_default()))));
        HttpConnectorFuture::new(async move {
            let answer = answer.map_err(|error| failed(error.to_string()))?.await.map_err(failed)?;
            Response::try_from(answer.map(SdkBody::from)).map_err(|error| failed(error.to_string()))
        })
    }
}

//! The one HTTP stack, hyper with rustls, used for AWS and for Jenkins alike.

use std::time::Duration;

use anyhow::Context as _;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::{Request, Response};
use aws_smithy_types::body::SdkBody;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector as Tcp};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore, crypto};
use tokio::time::{Instant, timeout_at};

use crate::metrics;

/// Timeout of the connection; the whole call has its own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A client for hosts other than AWS, or for which the SDK has no small client.
#[derive(Debug, Clone)]
pub struct Http(SharedHttpConnector);

/// Why there is no answer. The text names the host but never a path or header, which can hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum HttpFault {
    /// No answer in time.
    #[error("no answer from {host} within {} ms", timeout.as_millis())]
    Timeout { host: String, timeout: Duration },
    /// The connection could not be made or broke.
    #[error("cannot reach {host}: {reason}")]
    Unreachable {
        host: String,
        /// In the words of the HTTP client.
        reason: String,
    },
    /// The answer broke off, or its end did not come in time.
    #[error("{fault}")]
    Incomplete {
        /// What came of it.
        answer: Box<http::Response<Bytes>>,
        fault: Box<HttpFault>,
    },
}

impl Http {
    /// A custom connector, used in tests.
    pub fn new(connector: SharedHttpConnector) -> Self {
        Self(connector)
    }

    /// Answers from a function instead of the network.
    pub fn in_memory(answer: impl Fn(http::Request<Bytes>) -> Answer + Send + Sync + 'static) -> Self {
        Self(SharedHttpConnector::new(InMemory(Box::new(answer))))
    }

    /// The same connection for the SDK's clients; counts the calls.
    pub fn client(&self) -> SharedHttpClient {
        let connector = SharedHttpConnector::new(AwsCalls(self.0.clone()));
        http_client_fn(move |_, _| connector.clone())
    }

    /// TLS that trusts the public authorities, which are compiled in (docs/adr/0010), and optionally the PEM
    /// certificates of a private one. Never follows a redirect.
    ///
    /// # Errors
    /// When the PEM holds no certificate, or one that cannot be read.
    pub fn with_tls(private_authority: Option<&str>) -> anyhow::Result<Self> {
        let mut roots = private_authority.map_or_else(|| Ok(RootCertStore::empty()), authority)?;
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        let config = ClientConfig::builder_with_provider(crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self(SharedHttpConnector::new(Network(client))))
    }

    /// Sends a request and reads the answer, whatever its status. Stops reading with the chunk that exceeds `most`
    /// bytes.
    ///
    /// # Errors
    /// When no complete answer came within the timeout.
    pub async fn send(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
        limit: usize,
    ) -> Result<http::Response<Bytes>, HttpFault> {
        let host = request.uri().host().unwrap_or("?").to_owned();
        let unreachable = |reason: String| HttpFault::Unreachable { host: host.clone(), reason };
        let late = |_| HttpFault::Timeout { host: host.clone(), timeout };
        let deadline = Instant::now() + timeout;
        let request = Request::try_from(request.map(SdkBody::from)).map_err(|error| unreachable(error.to_string()))?;
        let response = timeout_at(deadline, self.0.call(request)).await.map_err(late)?;
        let response = response.map_err(|error| unreachable(root_cause(&error)))?.try_into_http1x();
        let (parts, mut rest) = response.map_err(|error| unreachable(error.to_string()))?.into_parts();
        let mut body = BytesMut::new();
        let read = timeout_at(deadline, async {
            while body.len() < limit
                && let Some(frame) = rest.frame().await
            {
                let frame = frame.map_err(|error| unreachable(error.to_string()))?;
                body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            }
            Ok(())
        });
        let read = read.await.map_err(late).flatten();
        let answer = http::Response::from_parts(parts, body.freeze());
        match read {
            Ok(()) => Ok(answer),
            Err(fault) => Err(HttpFault::Incomplete { answer: Box::new(answer), fault: Box::new(fault) }),
        }
    }
}

/// The PEM certificates of a private authority.
///
/// # Errors
/// When the PEM holds no certificate, or one that cannot be read.
pub fn authority(pem: &str) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.context("a PEM certificate cannot be read")?;
        roots.add(certificate).context("a PEM certificate cannot be used")?;
    }
    anyhow::ensure!(!roots.is_empty(), "holds no PEM certificate (-----BEGIN CERTIFICATE-----)");
    Ok(roots)
}

/// The innermost source says what happened (`connection refused`); the layers above it do not.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Counts the attempts of the SDK's calls.
#[derive(Debug)]
struct AwsCalls(SharedHttpConnector);

impl HttpConnector for AwsCalls {
    fn call(&self, request: Request) -> HttpConnectorFuture {
        metrics::AWS_CALLS.increment();
        self.0.call(request)
    }
}

/// hyper's client as the SDK expects it.
#[derive(Debug)]
struct Network(Client<HttpsConnector<Tcp>, SdkBody>);

impl HttpConnector for Network {
    fn call(&self, request: Request) -> HttpConnectorFuture {
        let answer = request.try_into_http1x().map(|request| self.0.request(request));
        HttpConnectorFuture::new(async move {
            let answer = answer.map_err(|error| ConnectorError::user(error.into()))?.await;
            // It may be retried, as the SDK does with its own client.
            let answer = answer.map_err(|error| ConnectorError::io(error.into()))?;
            Response::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// A controller with a certificate of a private authority, for one connection: its URL and the authority's
    /// certificate.
    fn private_controller() -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&key).expect("an authority");
        let issuer = rcgen::Issuer::new(authority, key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let own = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        let own = own.signed_by(&key, &issuer).expect("a certificate");
        let config = rustls::ServerConfig::builder_with_provider(crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key.into())
            .expect("a server");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("https://{}/", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            let connection = rustls::ServerConnection::new(config.into()).expect("a connection");
            let mut stream = rustls::StreamOwned::new(connection, stream);
            // A client that does not trust it closes the connection before the request.
            if stream.read(&mut [0; 4096]).is_ok() {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("an answer");
            }
        });
        (url, certificate.pem())
    }

    async fn ask(http: &Http, url: &str) -> Result<http::StatusCode, HttpFault> {
        let request = http::Request::get(url).body(Bytes::new()).expect("a request");
        http.send(request, TIMEOUT, 1024).await.map(|answer| answer.status())
    }

    #[tokio::test]
    async fn trusts_the_private_authority_that_is_given() {
        let (url, pem) = private_controller();
        let http = Http::with_tls(Some(&pem)).expect("a client");
        assert_eq!(ask(&http, &url).await.expect("an answer"), http::StatusCode::NO_CONTENT);
    }

    #[tokio::test]
    async fn refuses_a_server_of_an_unknown_authority() {
        let (url, _) = private_controller();
        let http = Http::with_tls(None).expect("a client");
        let fault = ask(&http, &url).await.expect_err("no trust").to_string();
        assert_eq!(fault, "cannot reach 127.0.0.1: invalid peer certificate: UnknownIssuer");
    }

    #[test]
    fn refuses_an_authority_that_is_no_certificate() {
        let unreadable = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for pem in ["", "hunter2", "-----BEGIN CERTIFICATE-----", unreadable] {
            let error = Http::with_tls(Some(pem)).expect_err("no authority");
            assert!(error.to_string().contains("PEM certificate"), "{pem}: {error:#}");
        }
    }
}

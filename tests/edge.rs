//! A proxy in front of AWS that counts connections, and speaks TLS if required.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// The proxy; it ends when it is dropped.
pub struct Edge {
    /// Its URL.
    pub url: String,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Edge {
    /// Opens one to `url`, plain.
    ///
    /// # Errors
    /// When no port could be had.
    pub async fn plain(url: &str) -> Result<Self> {
        Self::open(url, None).await
    }

    /// Opens one to `url` over TLS: with it, the PEM certificate of its authority.
    ///
    /// # Errors
    /// When no port could be had.
    pub async fn tls(url: &str) -> Result<(Self, String)> {
        let key = KeyPair::generate()?;
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&key)?.pem();
        let issuer = Issuer::new(authority, key);
        let key = KeyPair::generate()?;
        let own = CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
        let config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key.into())?;
        Ok((Self::open(url, Some(Arc::new(config).into())).await?, certificate))
    }

    async fn open(url: &str, tls: Option<TlsAcceptor>) -> Result<Self> {
        let to: SocketAddr = url.trim_start_matches("http://").parse().with_context(|| url.to_owned())?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr()?);
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((inside, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                // A broken connection is reported by the measured process.
                tokio::spawn(pass(inside, to, tls.clone()));
            }
        });
        Ok(Self { url, connections, task })
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn pass(mut inside: TcpStream, to: SocketAddr, tls: Option<TlsAcceptor>) -> std::io::Result<()> {
    let mut outside = TcpStream::connect(to).await?;
    inside.set_nodelay(true)?;
    outside.set_nodelay(true)?;
    match tls {
        Some(tls) => copy_bidirectional(&mut tls.accept(inside).await?, &mut outside).await?,
        None => copy_bidirectional(&mut inside, &mut outside).await?,
    };
    Ok(())
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

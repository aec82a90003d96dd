//! Clients that are built when they are first used.

use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use aws_types::SdkConfig;

/// An SDK client, built when it is first used. Building one reads the endpoints of all regions from JSON, half a
/// million instructions, and most invocations use only one.
#[derive(Debug, Clone)]
pub struct Lazy<C>(Arc<LazyLock<C, Build<C>>>);

type Build<C> = Box<dyn FnOnce() -> C + Send>;

impl<C: Send + 'static> Lazy<C> {
    /// One that is built from this configuration.
    pub fn new(sdk: &SdkConfig, build: impl FnOnce(&SdkConfig) -> C + Send + 'static) -> Self {
        let sdk = sdk.clone();
        Self(Arc::new(LazyLock::new(Box::new(move || build(&sdk)))))
    }
}

impl<C: Send + 'static> From<C> for Lazy<C> {
    fn from(client: C) -> Self {
        Self(Arc::new(LazyLock::new(Box::new(move || client))))
    }
}

impl<C> Deref for Lazy<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.0
    }
}

//! The AWS edge: one module for each service. These modules carry out and do not decide; [`crate::fault`] classifies
//! errors.

pub mod autoscaling;
pub mod bus;
pub mod credentials;
pub mod ec2;
pub mod ecs;
mod lazy;
mod open_enum;
pub mod queues;

pub use lazy::Lazy;

use std::time::Duration;

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::rt::sleep::default_async_sleep;
use aws_smithy_async::time::SystemTimeSource;
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_runtime_api::client::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use aws_types::region::Region;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

use crate::config::environment::Environment;
use crate::http::Http;

/// The SDK's configuration, from the variables that Lambda sets and the SDK's standard ones for endpoints.
///
/// The SDK's own loader, the crate `aws-config`, would also look for profiles, web identities and metadata services,
/// none of which exists in Lambda, and build a client for each at every start.
pub fn sdk_config(environment: &Environment, http: &Http) -> SdkConfig {
    let is_set = |name: &str| environment(name).map(|value| value.eq_ignore_ascii_case("true"));
    let region = environment("AWS_REGION").or_else(|| environment("AWS_DEFAULT_REGION"));
    let (retry, timeout) = bounds();
    let mut sdk = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(region.map(Region::new))
        .http_client(http.client())
        .retry_config(retry)
        .timeout_config(timeout)
        // It ends a call that transfers nothing, but later than the timeout does.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .time_source(SystemTimeSource::new())
        .service_config(Endpoints(environment.clone()));
    sdk.set_credentials_provider(credentials::of_environment(environment).map(SharedCredentialsProvider::new));
    sdk.set_sleep_impl(default_async_sleep());
    // Lambda keeps the clock.
    sdk.set_disable_clock_skew_correction(Some(true));
    sdk.set_endpoint_url(environment("AWS_ENDPOINT_URL"));
    sdk.set_use_fips(is_set("AWS_USE_FIPS_ENDPOINT"));
    sdk.set_use_dual_stack(is_set("AWS_USE_DUALSTACK_ENDPOINT"));
    sdk.build()
}

/// The endpoint of one service: `AWS_ENDPOINT_URL_AUTO_SCALING`.
struct Endpoints(Environment);

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Endpoints")
    }
}

impl LoadServiceConfig for Endpoints {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        (self.0)(&format!("{}_{}", key.env(), key.service_id().replace(' ', "_").to_uppercase()))
    }
}

/// The limits of every call: three tries, five seconds each, twelve in all.
fn bounds() -> (RetryConfig, TimeoutConfig) {
    let retry = RetryConfig::standard().with_max_attempts(3).with_max_backoff(Duration::from_secs(2));
    let timeout = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(2))
        .operation_attempt_timeout(Duration::from_secs(5))
        .operation_timeout(Duration::from_secs(12))
        .build();
    (retry, timeout)
}

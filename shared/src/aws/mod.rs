//! The AWS edge: one module for each service. They carry out and do not decide; what a fault means is decided here.

pub mod autoscaling;
pub mod bus;
pub mod ec2;
pub mod ecs;
pub mod queues;

use std::time::Duration;

use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::rt::sleep::default_async_sleep;
use aws_smithy_async::time::SystemTimeSource;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

use crate::config::Cloud;
use crate::http::Http;
use crate::secret::Environment;

/// The SDK's configuration, from the variables that Lambda sets and the SDK's standard ones for endpoints.
///
/// The SDK's own loader would also look for profiles, web identities, and metadata services, none of which is there
/// in Lambda, and build a client for each at every start.
pub fn sdk_config(environment: &Environment, http: &Http) -> SdkConfig {
    let is_set = |name: &str| environment(name).map(|value| value.eq_ignore_ascii_case("true"));
    let region = environment("AWS_REGION").or_else(|| environment("AWS_DEFAULT_REGION"));
    let (retry, timeout) = bounds();
    let mut sdk = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(region.map(Region::new))
        .credentials_provider(SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()))
        .http_client(http.client())
        .retry_config(retry)
        .timeout_config(timeout)
        .time_source(SystemTimeSource::new())
        .service_config(Endpoints(environment.clone()));
    sdk.set_sleep_impl(default_async_sleep());
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

/// The bounds on every call: three tries, five seconds each, twelve in all.
pub fn bounds() -> (RetryConfig, TimeoutConfig) {
    let retry = RetryConfig::standard().with_max_attempts(3).with_max_backoff(Duration::from_secs(2));
    let timeout = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(2))
        .operation_attempt_timeout(Duration::from_secs(5))
        .operation_timeout(Duration::from_secs(12))
        .build();
    (retry, timeout)
}

/// The clients for one cloud: its region, and its role where it has one.
#[derive(Debug, Clone)]
pub struct CloudClients {
    /// Tasks and container instances.
    pub ecs: aws_sdk_ecs::Client,
    /// The group.
    pub autoscaling: aws_sdk_autoscaling::Client,
    /// Addresses.
    pub ec2: ec2::Client,
}

impl CloudClients {
    /// Builds them; nothing is called yet.
    pub async fn new(sdk: &SdkConfig, http: Http, cloud: &Cloud) -> Self {
        let mut regional = sdk.to_builder().region(Region::new(cloud.region.clone()));
        if let Some(role) = &cloud.assume_role_arn {
            let provider = AssumeRoleProvider::builder(role)
                .session_name("jenkins-ecs-agents")
                .region(Region::new(cloud.region.clone()))
                .configure(sdk)
                .build()
                .await;
            regional = regional.credentials_provider(SharedCredentialsProvider::new(provider));
        }
        let regional = regional.build();
        Self {
            ecs: aws_sdk_ecs::Client::new(&regional),
            autoscaling: aws_sdk_autoscaling::Client::new(&regional),
            ec2: ec2::Client::new(&regional, http),
        }
    }
}

/// An AWS call that did not do what it was to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {}{message}", code.as_deref().map(|code| format!("{code}: ")).unwrap_or_default())]
pub struct ApiFault {
    /// What was called, `ecs:RunTask`.
    pub action: &'static str,
    /// AWS' error code; none when no answer came.
    pub code: Option<String>,
    /// In AWS' words, or those of the HTTP client.
    pub message: String,
}

impl ApiFault {
    /// From the SDK's error.
    pub fn new<E, R>(action: &'static str, error: SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        if let SdkError::ServiceError(service) = &error {
            let message = service.err().message().unwrap_or("no message").to_owned();
            return Self { action, code: service.err().code().map(str::to_owned), message };
        }
        // In their own words alone: what they hold may be a raw answer with a secret in it.
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let message = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        // A role that may not be assumed is refused where the credentials are fetched, before the call itself.
        let code = message.contains("AccessDenied").then(|| "AccessDenied".to_owned());
        Self { action, code, message }
    }

    /// What the fault means for whoever called. This is the one place that decides.
    ///
    /// Permanent are the codes that the API references list and that the same call meets again; everything unknown
    /// is tried again, since a lost request is worse than a late refusal.
    pub fn class(&self) -> Class {
        const PERMANENT: &[&str] = &[
            "AccessDenied",
            "AccessDeniedException",
            "BlockedException",
            "ClientException",
            "ClusterNotFoundException",
            "InvalidParameterException",
            "PlatformTaskDefinitionIncompatibilityException",
            "PlatformUnknownException",
            "ResourceNotFoundException",
            "UnauthorizedOperation",
            "UnsupportedFeatureException",
            "ValidationError",
        ];
        let Some(code) = self.code.as_deref() else { return Class::Retry };
        if !PERMANENT.contains(&code) {
            return Class::Retry;
        }
        let message = self.message.to_ascii_lowercase();
        // API_RunTask has no code of its own for these: ECS says them in the message of a client error.
        let no_room = ["no container instances", "capacity is unavailable", REACHED_LIMIT];
        // What EC2 answered ECS comes as a client error, too: `Error retrieving security group information for [sg-…]: Request
        // limit exceeded. (ErrorCode: RequestLimitExceeded)`.
        let passing =
            ["rate exceeded", "throttl", "limit exceeded", "limitexceeded", "internal error", "internalerror"];
        if matches!(code, "ClientException" | "InvalidParameterException")
            && no_room.iter().any(|words| message.contains(words))
        {
            Class::NoRoom
        } else if passing.iter().any(|words| message.contains(words)) {
            Class::Retry
        } else {
            Class::Permanent
        }
    }
}

/// Of a quota of tasks, in an error's message or a failure's reason: "You've reached the limit on the number of tasks you
/// can run concurrently".
const REACHED_LIMIT: &str = "reached the limit on the number of";

/// What a fault means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// There is no room now; there may be later.
    NoRoom,
    /// The same call will always fail.
    Permanent,
    /// It may work the next time.
    Retry,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_apart_in_one_place() {
        for (code, message, class) in [
            (None, "connection refused", Class::Retry),
            (Some("ThrottlingException"), "Rate exceeded", Class::Retry),
            (Some("ServerException"), "Service Unavailable", Class::Retry),
            (Some("SomethingNew"), "?", Class::Retry),
            (Some("AccessDeniedException"), "not authorized to perform: ecs:RunTask", Class::Permanent),
            (Some("ClusterNotFoundException"), "Cluster not found.", Class::Permanent),
            (Some("ClientException"), "TaskDefinition not found.", Class::Permanent),
            (Some("InvalidParameterException"), "No Container Instances were found in your cluster.", Class::NoRoom),
            (Some("ClientException"), "Capacity is unavailable at this time. Please try again later", Class::NoRoom),
            (Some("ClientException"), "Rate exceeded", Class::Retry),
            (
                Some("InvalidParameterException"),
                "Error retrieving security group information for [sg-1]: Request limit exceeded. (ErrorCode: RequestLimitExceeded)",
                Class::Retry,
            ),
            (Some("ClientException"), "An internal error has occurred (ErrorCode: InternalError)", Class::Retry),
            (Some("ClientException"), "You've reached the limit on the number of tasks", Class::NoRoom),
        ] {
            let fault = ApiFault { action: "ecs:RunTask", code: code.map(Into::into), message: message.into() };
            assert_eq!(fault.class(), class, "{fault}");
        }
    }
}

//! Classifies the errors of AWS.

use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::{Fault, Kind};
use crate::metrics;

impl Fault {
    /// From an error of the SDK.
    pub fn from_sdk<E, R>(action: &'static str, error: SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        if let SdkError::ServiceError(service) = &error {
            let message = service.err().message().unwrap_or("no message").to_owned();
            return Self::from_aws(action, service.err().code().map(str::to_owned), message);
        }
        // Only the causes' own words: what they hold may be a raw answer with a secret in it.
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let message = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        // A refused role is reported where the credentials are fetched, before the call itself.
        let code = message.contains("AccessDenied").then(|| "AccessDenied".to_owned());
        Self::from_aws(action, code, message)
    }

    /// From an error's code and message; the code is missing where no answer came.
    pub fn from_aws(action: &'static str, code: Option<String>, message: String) -> Self {
        let kind = code.as_deref().map_or(Kind::Passing, |code| classify(code, &message));
        if kind == Kind::Throttled {
            metrics::AWS_THROTTLES.increment();
        }
        Self { kind, action, code, message }
    }
}

/// Words that ECS puts into the message of a client error that has no code of its own (API_RunTask).
const NO_ROOM: &[&str] = &[super::placement::NO_INSTANCES, "capacity is unavailable", super::placement::LIMIT_REACHED];

/// Errors that ECS got from EC2 are client errors, too: `Error retrieving security group information for [sg-…]:
/// Request limit exceeded. (ErrorCode: RequestLimitExceeded)`.
const THROTTLED: &[&str] = &["rate exceeded", "throttl", "limit exceeded", "limitexceeded"];
/// The last is Auto Scaling's, when a group's maximum was lowered since it was described.
const PASSING: &[&str] = &["internal error", "internalerror", "above max value"];

/// Final are the codes that the API references list and that the same call would meet again. Everything unknown is
/// passing: a lost request is worse than a late refusal.
fn classify(code: &str, message: &str) -> Kind {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    let is_client_error = matches!(code, "ClientException" | "InvalidParameterException");
    let kind = match code {
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" => Kind::Denied,
        "ClusterNotFoundException" | "ResourceNotFoundException" => Kind::Missing,
        // StopTask: "The referenced task was not found"; DescribeTaskDefinition: "Unable to describe task definition."
        "InvalidParameterException" if message.contains("task") && message.contains("not found") => Kind::Missing,
        "BlockedException"
        | "ClientException"
        | "InvalidParameterException"
        | "PlatformTaskDefinitionIncompatibilityException"
        | "PlatformUnknownException"
        | "UnsupportedFeatureException"
        | "ValidationError" => Kind::Permanent,
        "ThrottlingException" | "Throttling" | "RequestLimitExceeded" | "RequestThrottled" => Kind::Throttled,
        _ => Kind::Passing,
    };
    match kind {
        Kind::Permanent | Kind::Missing if is_client_error && says(NO_ROOM) => Kind::NoRoom,
        Kind::Permanent | Kind::Missing | Kind::Denied if says(THROTTLED) => Kind::Throttled,
        Kind::Permanent | Kind::Missing | Kind::Denied if says(PASSING) => Kind::Passing,
        kind => kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifies_every_known_code() {
        use Kind::*;
        for (code, message, kind) in [
            (None, "connection refused", Passing),
            (Some("ThrottlingException"), "Rate exceeded", Throttled),
            (Some("ServerException"), "Service Unavailable", Passing),
            (Some("SomethingNew"), "?", Passing),
            (Some("AccessDeniedException"), "not authorized to perform: ecs:RunTask", Denied),
            (Some("ClusterNotFoundException"), "Cluster not found.", Missing),
            (Some("InvalidParameterException"), "The referenced task was not found.", Missing),
            (Some("ClientException"), "TaskDefinition not found.", Permanent),
            (Some("InvalidParameterException"), "No Container Instances were found in your cluster.", NoRoom),
            (Some("ClientException"), "Capacity is unavailable at this time. Please try again later", NoRoom),
            (Some("ClientException"), "Rate exceeded", Throttled),
            (
                Some("InvalidParameterException"),
                "Error retrieving security group information for [sg-1]: Request limit exceeded. (ErrorCode: RequestLimitExceeded)",
                Throttled,
            ),
            (Some("ClientException"), "An internal error has occurred (ErrorCode: InternalError)", Passing),
            (Some("ClientException"), "You've reached the limit on the number of tasks", NoRoom),
            (
                Some("ValidationError"),
                "New SetDesiredCapacity value 5 is above max value 4 for the AutoScalingGroup.",
                Passing,
            ),
            (Some("ValidationError"), "AutoScalingGroup name not found - no such group", Permanent),
        ] {
            let fault = Fault::from_aws("ecs:RunTask", code.map(Into::into), message.into());
            assert_eq!(fault.kind, kind, "{fault}");
        }
    }

    #[test]
    fn reads_as_one_line_that_names_the_call() {
        let fault = Fault::from_aws("ecs:RunTask", Some("ClientException".into()), "TaskDefinition not found.".into());
        assert_eq!(fault.to_string(), "ecs:RunTask: ClientException: TaskDefinition not found.");
        assert_eq!(Fault::passing("the time is over").to_string(), "the time is over");
    }
}

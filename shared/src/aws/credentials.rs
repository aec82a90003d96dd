//! The credentials that Lambda sets in the environment, and those of a role in another account.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use tokio::sync::Mutex;

use super::Lazy;
use crate::config::environment::Environment;
use crate::fault::Fault;

/// The session's name in the other account's CloudTrail.
const SESSION: &str = "jenkins-ecs-agents";

/// Credentials that expire sooner than this are renewed. It exceeds the SDK's own buffer of ten seconds, since its
/// clients keep their credentials until then.
const RENEWED_BEFORE: Duration = Duration::from_secs(60);

/// The function's own credentials, if they are set. They are valid for as long as the process lives.
pub fn of_environment(environment: &Environment) -> Option<Credentials> {
    let (id, key) = (environment("AWS_ACCESS_KEY_ID")?, environment("AWS_SECRET_ACCESS_KEY")?);
    Some(Credentials::new(id, key, environment("AWS_SESSION_TOKEN"), None, "the environment"))
}

/// A role, assumed when its credentials are first needed and again before they expire.
#[derive(Debug)]
pub struct AssumedRole {
    arn: String,
    sts: Lazy<aws_sdk_sts::Client>,
    credentials: Mutex<Option<Credentials>>,
}

impl AssumedRole {
    pub fn new(arn: &str, sts: Lazy<aws_sdk_sts::Client>) -> Self {
        Self { arn: arn.to_owned(), sts, credentials: Mutex::default() }
    }

    /// Callers that arrive while the role is being assumed wait for the same answer.
    async fn current(&self) -> provider::Result {
        let mut current = self.credentials.lock().await;
        let renewed_from = SystemTime::now() + RENEWED_BEFORE;
        if let Some(credentials) = &*current
            && credentials.expiry().is_some_and(|expiry| expiry > renewed_from)
        {
            return Ok(credentials.clone());
        }
        let credentials = self.assume().await?;
        Ok(current.insert(credentials).clone())
    }

    async fn assume(&self) -> provider::Result {
        let answer = self.sts.assume_role().role_arn(&self.arn).role_session_name(SESSION).send().await;
        let answer = answer.map_err(|error| {
            CredentialsError::provider_error(Fault::from_sdk("sts:AssumeRole", error).of(&self.arn))
        })?;
        let granted = answer.credentials.ok_or_else(|| CredentialsError::unhandled("STS granted no credentials"))?;
        let expiry = SystemTime::try_from(granted.expiration).map_err(CredentialsError::unhandled)?;
        let (id, key, token) = (granted.access_key_id, granted.secret_access_key, granted.session_token);
        Ok(Credentials::new(id, key, Some(token), Some(expiry), "sts:AssumeRole"))
    }
}

impl ProvideCredentials for AssumedRole {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.current())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use aws_types::region::Region;
    use bytes::Bytes;
    use futures::FutureExt as _;
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::http::Http;

    const ROLE: &str = "arn:aws:iam::222222222222:role/agents";

    /// The role, with an STS that grants it for this long or refuses it, and a count of the calls.
    fn role(granted: Option<SignedDuration>) -> (AssumedRole, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let http = Http::in_memory(move |request| {
            let number = count.fetch_add(1, Relaxed) + 1;
            let form = String::from_utf8_lossy(request.body()).into_owned();
            assert!(form.contains("RoleArn=arn%3Aaws%3Aiam%3A%3A222222222222%3Arole%2Fagents"), "{form}");
            assert!(form.contains("RoleSessionName=jenkins-ecs-agents"), "{form}");
            let (status, body) = match granted {
                Some(left) => (
                    200,
                    format!(
                        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>id-{number}</AccessKeyId>\
                         <SecretAccessKey>key</SecretAccessKey><SessionToken>token</SessionToken>\
                         <Expiration>{}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>",
                        Timestamp::now() + left
                    ),
                ),
                None => (
                    403,
                    "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not authorized to perform: sts:AssumeRole\
                     </Message></Error></ErrorResponse>"
                        .to_owned(),
                ),
            };
            let answer = http::Response::builder().status(status).body(Bytes::from(body));
            async { answer.map_err(|error| error.to_string()) }.boxed()
        });
        let own: Environment =
            Arc::new(|name| ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].contains(&name).then(|| "own".to_owned()));
        let sdk = super::super::sdk_config(&own, &http).to_builder().region(Region::from_static("eu-west-1")).build();
        (AssumedRole::new(ROLE, Lazy::new(&sdk, aws_sdk_sts::Client::new)), asked)
    }

    #[tokio::test]
    async fn assumes_the_role_once_while_its_credentials_last() {
        let (role, asked) = role(Some(SignedDuration::from_hours(1)));
        let (one, two) = tokio::join!(role.provide_credentials(), role.provide_credentials());
        let (one, two) = (one.expect("credentials"), two.expect("credentials"));
        assert_eq!((one.access_key_id(), one.session_token()), ("id-1", Some("token")));
        assert_eq!((two.access_key_id(), asked.load(Relaxed)), ("id-1", 1));
    }

    #[tokio::test]
    async fn assumes_the_role_again_before_its_credentials_expire() {
        let (role, _) = role(Some(SignedDuration::from_secs(30)));
        for id in ["id-1", "id-2"] {
            assert_eq!(role.provide_credentials().await.expect("credentials").access_key_id(), id);
        }
    }

    #[tokio::test]
    async fn names_the_role_that_may_not_be_assumed() {
        let (role, _) = role(None);
        let error = role.provide_credentials().await.expect_err("denied");
        let text = std::error::Error::source(&error).expect("a cause").to_string();
        assert_eq!(text, format!("sts:AssumeRole: AccessDenied: {ROLE}: not authorized to perform: sts:AssumeRole"));
    }

    #[test]
    fn has_no_credentials_where_the_environment_has_none() {
        let without_a_key: Environment = Arc::new(|name| (name == "AWS_ACCESS_KEY_ID").then(|| "id".to_owned()));
        assert!(of_environment(&without_a_key).is_none());
    }
}

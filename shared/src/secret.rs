//! Secrets: fetched at start-up and once more when Jenkins refuses them, in a type that cannot be printed.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aws_sdk_ssm::types::Parameter;
use base64::Engine as _;

use crate::aws::Lazy;
use crate::config::environment::Environment;
use crate::config::{Config, SecretRef};
use crate::fault::Fault;
use crate::http::authority;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// From its text, without the line break that files and consoles add.
    pub fn new(text: impl Into<String>) -> Self {
        let text: String = text.into();
        Self(text.trim_end_matches(['\n', '\r']).to_owned())
    }

    /// The text, for the code that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The key of a signature, which is never printed either.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Vec<u8>);

impl SigningKey {
    /// From `whsec_` and base64, as the Standard Webhooks specification writes it; the prefix is optional.
    ///
    /// # Errors
    /// When it is not base64.
    pub fn from_secret(secret: &Secret) -> Result<Self, String> {
        let text = secret.expose();
        base64::engine::general_purpose::STANDARD
            .decode(text.strip_prefix("whsec_").unwrap_or(text))
            .map(Self)
            .map_err(|_| "is not base64: write it as whsec_ and 24 to 64 bytes in base64".into())
    }

    /// The bytes, for the code that signs.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// All secrets of a configuration.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// `jenkins.apiToken`.
    pub api_token: Option<Secret>,
    /// `jenkins.webhook.authorization`.
    pub webhook_authorization: Option<Secret>,
    /// `jenkins.webhook.signingSecret`.
    pub webhook_signing_key: Option<SigningKey>,
    /// `jenkins.caCertificate`.
    pub ca_certificate: Option<Secret>,
}

impl Secrets {
    /// # Errors
    /// When it is unsuitable for the setting.
    fn put(&mut self, path: &str, secret: Secret) -> Result<(), String> {
        match path {
            API_TOKEN => self.api_token = Some(secret),
            CA_CERTIFICATE => {
                authority(secret.expose()).map_err(|error| format!("{error:#}"))?;
                self.ca_certificate = Some(secret);
            }
            AUTHORIZATION if http::HeaderValue::from_str(secret.expose()).is_err() => {
                return Err("cannot be a header: it holds a line break or a control character".into());
            }
            AUTHORIZATION => self.webhook_authorization = Some(secret),
            _ => self.webhook_signing_key = Some(SigningKey::from_secret(&secret)?),
        }
        Ok(())
    }
}

/// Where the secrets are stored, and their values as last read.
pub struct SecretStore {
    references: Vec<(&'static str, SecretRef)>,
    ssm: Option<Lazy<aws_sdk_ssm::Client>>,
    environment: Environment,
    current: RwLock<Arc<Secrets>>,
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretStore").field("references", &self.references).finish_non_exhaustive()
    }
}

const API_TOKEN: &str = "jenkins.apiToken";
const CA_CERTIFICATE: &str = "jenkins.caCertificate";
const AUTHORIZATION: &str = "jenkins.webhook.authorization";
const SIGNING_SECRET: &str = "jenkins.webhook.signingSecret";

impl SecretStore {
    /// Reads all secrets of the configuration.
    ///
    /// # Errors
    /// One line for each secret that could not be read.
    pub async fn read(
        config: &Config,
        ssm: impl Into<Lazy<aws_sdk_ssm::Client>>,
        environment: Environment,
    ) -> Result<Self, Vec<String>> {
        let jenkins = &config.jenkins;
        let references = [
            (API_TOKEN, &jenkins.api_token),
            (CA_CERTIFICATE, &jenkins.ca_certificate),
            (AUTHORIZATION, &jenkins.webhook.authorization),
            (SIGNING_SECRET, &jenkins.webhook.signing_secret),
        ];
        let references = references.into_iter().filter_map(|(path, reference)| Some((path, reference.clone()?)));
        // An empty reference is a fault of the configuration, which reports it.
        let references = references.filter(|(_, reference)| !reference.name().trim().is_empty()).collect();
        let store = Self { references, ssm: Some(ssm.into()), environment, current: RwLock::default() };
        store.refresh().await?;
        Ok(store)
    }

    /// Fixed secrets that are never read again.
    pub fn fixed(secrets: Secrets) -> Self {
        Self {
            references: Vec::new(),
            ssm: None,
            environment: Arc::new(|_| None),
            current: RwLock::new(Arc::new(secrets)),
        }
    }

    /// The secrets as last read.
    pub fn current(&self) -> Arc<Secrets> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where `jenkins.apiToken` is stored: `ssm:NAME`. `None` if there is none.
    pub fn api_token_source(&self) -> Option<String> {
        let (_, reference) = self.references.iter().find(|(path, _)| *path == API_TOKEN)?;
        let kind = match reference {
            SecretRef::Ssm(_) => "ssm",
            SecretRef::Env(_) => "env",
            SecretRef::File(_) => "file",
        };
        Some(format!("{kind}:{}", reference.name()))
    }

    /// Reads all secrets again.
    ///
    /// # Errors
    /// One line for each secret that could not be read; the old ones stay.
    pub async fn refresh(&self) -> Result<(), Vec<String>> {
        if self.references.is_empty() {
            return Ok(());
        }
        let parameters = self.parameters().await.map_err(|fault| fault.to_string());
        let mut errors = Vec::new();
        let mut secrets = Secrets::default();
        for (path, reference) in &self.references {
            let put = self.text(reference, &parameters).and_then(|secret| secrets.put(path, secret));
            if let Err(error) = put {
                errors.push(format!("{path}: {error}"));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(secrets);
        Ok(())
    }

    fn text(&self, reference: &SecretRef, parameters: &Result<Vec<Parameter>, String>) -> Result<Secret, String> {
        let text = match reference {
            SecretRef::Ssm(name) => {
                let parameter = parameters.as_ref()?.iter().find(|parameter| is_called(parameter, name));
                parameter
                    .and_then(|found| found.value.clone())
                    .ok_or_else(|| format!("there is no SSM parameter {name}"))
            }
            SecretRef::Env(name) => {
                (self.environment)(name).ok_or_else(|| format!("there is no environment variable {name}"))
            }
            SecretRef::File(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
            }
        };
        let secret = Secret::new(text?);
        if secret.expose().trim().is_empty() { Err(format!("{} is empty", reference.name())) } else { Ok(secret) }
    }

    /// All SSM parameters among the secrets, in one call: there are fewer than the ten that it accepts
    /// (API_GetParameters).
    async fn parameters(&self) -> Result<Vec<Parameter>, Fault> {
        let names: BTreeSet<_> = (self.references.iter())
            .filter(|(_, reference)| matches!(reference, SecretRef::Ssm(_)))
            .map(|(_, reference)| reference.name().to_owned())
            .collect();
        let Some(ssm) = self.ssm.as_ref().filter(|_| !names.is_empty()) else { return Ok(Vec::new()) };
        let answer = ssm
            .get_parameters()
            .set_names(Some(names.into_iter().collect()))
            .with_decryption(true)
            .send()
            .await
            .map_err(|error| Fault::from_sdk("ssm:GetParameters", error))?;
        Ok(answer.parameters.unwrap_or_default())
    }
}

/// Whether it was requested by this name: its own, its ARN, or its name with a `:VERSION` or `:LABEL` (API_Parameter).
fn is_called(parameter: &Parameter, asked: &str) -> bool {
    let (name, selector) = (parameter.name().unwrap_or_default(), parameter.selector().unwrap_or_default());
    asked == name
        || Some(asked) == parameter.arn()
        || asked.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')) == Some(selector.trim_start_matches(':'))
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_credential_types::Credentials;
    use aws_sdk_ssm::config::{BehaviorVersion, Region, SharedHttpClient};
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
    use aws_smithy_types::body::SdkBody;
    use serde_json::{Value, json};
    use std::sync::Mutex;

    use super::*;
    use crate::config::from_yaml;

    type Answer = dyn Fn(&str, Value) -> (u16, Value) + Send + Sync;

    /// An SSM without a network: the operation and its input determine status and body.
    pub(crate) fn ssm(answer: impl Fn(&str, Value) -> (u16, Value) + Send + Sync + 'static) -> aws_sdk_ssm::Client {
        let connector = SharedHttpConnector::new(Canned(Box::new(answer)));
        let http: SharedHttpClient = http_client_fn(move |_, _| connector.clone());
        let config = aws_sdk_ssm::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new("id", "key", None, None, "test"))
            .http_client(http)
            .build();
        aws_sdk_ssm::Client::from_conf(config)
    }

    struct Canned(Box<Answer>);

    impl fmt::Debug for Canned {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Canned")
        }
    }

    impl HttpConnector for Canned {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let operation = request.headers().get("x-amz-target").and_then(|target| target.split('.').next_back());
            let input = serde_json::from_slice(request.body().bytes().unwrap_or_default()).unwrap_or_default();
            let (status, body) = (self.0)(operation.unwrap_or_default(), input);
            let status = status.try_into().expect("a status");
            HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(body.to_string()))))
        }
    }

    fn config(jenkins: &str) -> Config {
        let template = "{name: t, labels: [l], taskDefinition: d, connect: ssh, ssh: {credentialsId: c}}";
        let cloud = format!("{{name: c, region: eu-west-1, templates: [{template}]}}");
        let user = if jenkins.contains("apiToken") { "user: u, " } else { "" };
        let yaml = format!("jenkins: {{url: https://ci.example.com/, {user}{jenkins}}}\nclouds: [{cloud}]");
        from_yaml(&yaml).expect("a configuration")
    }

    fn nothing() -> Environment {
        Arc::new(|_| None)
    }

    const ALL_IN_SSM: &str = "apiToken: {ssm: /token}, caCertificate: {ssm: '/ca:3'}, \
        webhook: {authorization: {ssm: 'arn:aws:ssm:eu-west-1:1:parameter/raw'}, signingSecret: {ssm: /signing}}";

    #[tokio::test]
    async fn reads_all_parameters_in_one_call() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate").pem();
        let stored = certificate.clone();
        let ssm = ssm(move |operation, input| {
            assert_eq!(operation, "GetParameters");
            assert_eq!(input["WithDecryption"], true);
            assert_eq!(input["Names"], json!(["/ca:3", "/signing", "/token", "arn:aws:ssm:eu-west-1:1:parameter/raw"]));
            let parameters = json!([
                {"Name": "/token", "Value": "t0ken\n"},
                {"Name": "/ca", "Selector": ":3", "Value": stored},
                {"Name": "/raw", "ARN": "arn:aws:ssm:eu-west-1:1:parameter/raw", "Value": "raw authorization\r\n"},
                {"Name": "/signing", "Value": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
            ]);
            (200, json!({"Parameters": parameters}))
        });
        let store = SecretStore::read(&config(ALL_IN_SSM), ssm, nothing()).await.expect("secrets");
        let secrets = store.current();
        assert_eq!(secrets.api_token.as_ref().map(Secret::expose), Some("t0ken"));
        assert_eq!(secrets.ca_certificate.as_ref().map(Secret::expose), Some(certificate.trim_end()));
        assert_eq!(secrets.webhook_authorization.as_ref().map(Secret::expose), Some("raw authorization"));
        assert_eq!(secrets.webhook_signing_key.as_ref().map(|key| key.expose().len()), Some(24));
        let printed = format!("{store:?} {secrets:?}");
        for secret in ["t0ken", "raw authorization", "MfKQ"] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }

    #[tokio::test]
    async fn names_every_missing_secret_at_once() {
        let ssm = ssm(|_, _| (200, json!({"Parameters": [], "InvalidParameters": ["/token"]})));
        let config = config(
            "apiToken: {ssm: /token}, caCertificate: {file: /nowhere/ca.pem}, webhook: {authorization: {env: RAW}}",
        );
        let errors = SecretStore::read(&config, ssm, nothing()).await.expect_err("missing");
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert_eq!(errors[0], "jenkins.apiToken: there is no SSM parameter /token");
        assert!(errors[1].starts_with("jenkins.caCertificate: cannot read /nowhere/ca.pem: "), "{errors:?}");
        assert_eq!(errors[2], "jenkins.webhook.authorization: there is no environment variable RAW");
    }

    #[tokio::test]
    async fn refuses_an_unsuitable_secret_without_repeating_it() {
        for (jenkins, fault) in [
            ("webhook: {signingSecret: {env: S}}", "jenkins.webhook.signingSecret: "),
            ("webhook: {authorization: {env: S}}", "jenkins.webhook.authorization: "),
            ("caCertificate: {env: S}", "jenkins.caCertificate: "),
        ] {
            let environment: Environment = Arc::new(|_| Some("hunter2\nhunter2!".into()));
            let ssm = ssm(|operation, _| panic!("{operation} was called"));
            let errors = SecretStore::read(&config(jenkins), ssm, environment).await.expect_err("no secret");
            assert!(
                matches!(errors.as_slice(), [one] if one.starts_with(fault) && !one.contains("hunter2")),
                "{errors:?}"
            );
        }
        let environment: Environment = Arc::new(|_| Some("\n".into()));
        let errors = SecretStore::read(&config("apiToken: {env: S}"), ssm(|_, _| unreachable!()), environment).await;
        assert_eq!(errors.expect_err("empty"), ["jenkins.apiToken: S is empty"]);
    }

    #[tokio::test]
    async fn reports_a_fault_of_ssm_for_each_of_its_secrets() {
        let ssm = ssm(|_, _| (400, json!({"__type": "AccessDeniedException", "message": "not authorized"})));
        let environment: Environment = Arc::new(|_| Some("x".into()));
        let config = config("apiToken: {ssm: /token}, webhook: {authorization: {env: RAW}}");
        let errors = SecretStore::read(&config, ssm, environment).await.expect_err("denied");
        assert_eq!(errors, ["jenkins.apiToken: ssm:GetParameters: AccessDeniedException: not authorized"]);
    }

    #[tokio::test]
    async fn a_refresh_reads_the_new_secret_or_keeps_the_old_one() {
        let value = Arc::new(Mutex::new(Some("old".to_owned())));
        let environment: Environment = {
            let value = value.clone();
            Arc::new(move |_| value.lock().expect("the value").clone())
        };
        let config = config("apiToken: {env: TOKEN}");
        let store = SecretStore::read(&config, ssm(|_, _| unreachable!()), environment).await.expect("secrets");
        let token = || store.current().api_token.as_ref().map(|token| token.expose().to_owned());
        *value.lock().expect("the value") = Some("new".into());
        assert_eq!(token().as_deref(), Some("old"));
        assert_eq!(store.api_token_source().as_deref(), Some("env:TOKEN"));
        store.refresh().await.expect("refreshed");
        assert_eq!(token().as_deref(), Some("new"));
        *value.lock().expect("the value") = None;
        store.refresh().await.expect_err("missing");
        assert_eq!(token().as_deref(), Some("new"));
    }
}

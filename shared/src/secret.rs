//! Secrets: fetched at start-up and once more when Jenkins refuses them, in a type that cannot be printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;

use crate::aws::ApiFault;
use crate::config::{Config, SecretRef};

/// A text that nobody prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// From its text, without the line break that files and consoles add.
    pub fn new(text: impl Into<String>) -> Self {
        let text: String = text.into();
        Self(text.trim_end_matches(['\n', '\r']).to_owned())
    }

    /// The text, for the one who needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The key of a signature, which nobody prints either.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Vec<u8>);

impl SigningKey {
    /// From `whsec_` and base64, as the Standard Webhooks specification writes it; the prefix may be missing.
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

    /// The bytes, for the one who signs.
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

/// Reads environment variables; only `config` does so for the process.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Where the secrets come from, and what they were when last read.
pub struct SecretStore {
    references: Vec<(&'static str, SecretRef)>,
    ssm: Option<aws_sdk_ssm::Client>,
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
    pub async fn read(config: &Config, ssm: aws_sdk_ssm::Client, environment: Environment) -> Result<Self, Vec<String>> {
        let jenkins = &config.jenkins;
        let references = [
            (API_TOKEN, &jenkins.api_token),
            (CA_CERTIFICATE, &jenkins.ca_certificate),
            (AUTHORIZATION, &jenkins.webhook.authorization),
            (SIGNING_SECRET, &jenkins.webhook.signing_secret),
        ];
        let references =
            references.into_iter().filter_map(|(path, reference)| Some((path, reference.clone()?))).collect();
        let store = Self { references, ssm: Some(ssm), environment, current: RwLock::default() };
        store.refresh().await?;
        Ok(store)
    }

    /// Secrets that are there already and stay as they are.
    pub fn fixed(secrets: Secrets) -> Self {
        Self { references: Vec::new(), ssm: None, environment: Arc::new(|_| None), current: RwLock::new(Arc::new(secrets)) }
    }

    /// The secrets as last read.
    pub fn current(&self) -> Arc<Secrets> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads all secrets again.
    ///
    /// # Errors
    /// One line for each secret that could not be read; the old ones stay.
    pub async fn refresh(&self) -> Result<(), Vec<String>> {
        if self.references.is_empty() {
            return Ok(());
        }
        let parameters = self.parameters().await.map_err(|fault| vec![fault.to_string()])?;
        let mut errors = Vec::new();
        let mut secrets = Secrets::default();
        for (path, reference) in &self.references {
            let value = match reference {
                SecretRef::Ssm(name) => {
                    parameters.get(name).cloned().ok_or_else(|| format!("there is no SSM parameter {name}"))
                }
                SecretRef::Env(name) => {
                    (self.environment)(name).ok_or_else(|| format!("there is no environment variable {name}"))
                }
                SecretRef::File(file) => {
                    std::fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))
                }
            };
            let secret = value.map(Secret::new).and_then(|secret| {
                if secret.expose().is_empty() { Err("is empty".into()) } else { Ok(secret) }
            });
            let put = secret.and_then(|secret| {
                match *path {
                    API_TOKEN => secrets.api_token = Some(secret),
                    CA_CERTIFICATE => secrets.ca_certificate = Some(secret),
                    AUTHORIZATION => secrets.webhook_authorization = Some(secret),
                    _ => secrets.webhook_signing_key = Some(SigningKey::from_secret(&secret)?),
                }
                Ok::<(), String>(())
            });
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

    /// All SSM parameters among the secrets, in one call: there are fewer than the ten that it takes (API_GetParameters).
    async fn parameters(&self) -> Result<BTreeMap<String, String>, ApiFault> {
        let names: BTreeSet<&String> = self
            .references
            .iter()
            .filter_map(|(_, reference)| match reference {
                SecretRef::Ssm(name) => Some(name),
                _ => None,
            })
            .collect();
        let Some(ssm) = self.ssm.as_ref().filter(|_| !names.is_empty()) else { return Ok(BTreeMap::new()) };
        let answer = ssm
            .get_parameters()
            .set_names(Some(names.into_iter().cloned().collect()))
            .with_decryption(true)
            .send()
            .await
            .map_err(|error| ApiFault::new("ssm:GetParameters", error))?;
        Ok(answer
            .parameters
            .unwrap_or_default()
            .into_iter()
            .filter_map(|parameter| Some((parameter.name?, parameter.value?)))
            .collect())
    }
}

//! What the three `main.rs` share: logging, configuration, clients, run.

use std::process::ExitCode;
use std::sync::Arc;

use aws_config::SdkConfig;
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;

use crate::app::{App, Clock, Memory};
use crate::aws::{self, CloudClients};
use crate::batch::Invocation;
use crate::config::settings::{self, SettingsFaults};
use crate::http::Http;
use crate::jenkins::Jenkins;
use crate::log;
use crate::secret::Environment;

/// Starts a function: everything wrong with its settings ends the start with one message.
pub async fn run<F>(handle: impl Fn(Arc<App>, Invocation, Value) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<Value>>,
{
    log::init(&settings::environment);
    let sdk = aws::sdk_config().await;
    let app = match build(&sdk, Arc::new(settings::environment), Clock::system()).await {
        Ok(app) => Arc::new(app),
        Err(faults) => {
            eprintln!("jenkins-ecs-agents cannot start: {faults}");
            return ExitCode::FAILURE;
        }
    };
    let handle = &handle;
    let service = service_fn(|event: LambdaEvent<Value>| {
        let invocation = Invocation::new(&event.context);
        let app = app.clone();
        async move { handle(app, invocation, event.payload).await.map_err(|error| format!("{error:#}")) }
    });
    match lambda_runtime::run(service).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %error, "the Lambda runtime ended");
            ExitCode::FAILURE
        }
    }
}

/// Builds what an invocation works with, from the environment alone.
///
/// # Errors
/// Every setting that is missing or wrong.
pub async fn build(sdk: &SdkConfig, environment: Environment, clock: Clock) -> Result<App, SettingsFaults> {
    build_with(sdk, environment, clock, None).await
}

/// The same, with HTTP of one's own for what does not go through the SDK, as tests have it.
///
/// # Errors
/// Every setting that is missing or wrong.
pub async fn build_with(
    sdk: &SdkConfig,
    environment: Environment,
    clock: Clock,
    http: Option<Http>,
) -> Result<App, SettingsFaults> {
    let ssm = aws_sdk_ssm::Client::new(sdk);
    let (settings, secrets) = settings::load(environment, ssm).await?;
    let fault = |error: anyhow::Error| SettingsFaults(vec![error.to_string()]);
    let private_authority = secrets.current().ca_certificate.clone();
    let (to_jenkins, to_ec2) = match http {
        Some(http) => (http.clone(), http),
        None => {
            let public = Http::with_tls(None).map_err(fault)?;
            let pem = private_authority.as_ref().map(|pem| pem.expose());
            (if pem.is_some() { Http::with_tls(pem).map_err(fault)? } else { public.clone() }, public)
        }
    };
    let mut clouds = Vec::new();
    for cloud in &settings.config.clouds {
        clouds.push(CloudClients::new(sdk, to_ec2.clone(), cloud).await);
    }
    Ok(App {
        clouds,
        sqs: aws_sdk_sqs::Client::new(sdk),
        events: aws_sdk_eventbridge::Client::new(sdk),
        sts: aws_sdk_sts::Client::new(sdk),
        jenkins: Jenkins::new(to_jenkins, &settings.config.jenkins, Arc::new(secrets)),
        clock,
        memory: Memory::default(),
        settings,
    })
}

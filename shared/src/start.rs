//! What the three `main.rs` share: logging, configuration, clients, run.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use aws_types::SdkConfig;
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::Instrument as _;

use crate::app::App;
use crate::aws::bus::Bus;
use crate::aws::queues::Queues;
use crate::aws::{self, Lazy};
use crate::batch::Invocation;
use crate::clock::Clock;
use crate::cloud::Clouds;
use crate::config::environment::Environment;
use crate::config::settings::{self, SettingsFaults};
use crate::fault::Fault;
use crate::http::Http;
use crate::jenkins::Jenkins;
use crate::log_fault;
use crate::memory::Memory;
use crate::metrics;
use crate::notifier::Notifier;
use crate::span;

/// Starts a function. If settings are wrong, the start ends with one message that names all of them.
pub async fn run<F>(handle: impl Fn(Arc<App>, Invocation, Value) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<Value>>,
{
    let environment: Environment = Arc::new(settings::environment);
    crate::log::init(&*environment);
    let app = match start(environment).await {
        Ok(app) => Arc::new(app),
        Err(faults) => {
            eprintln!("jenkins-ecs-agents cannot start: {faults}");
            return ExitCode::FAILURE;
        }
    };
    let handle = &handle;
    // As text: the runtime would keep the path to each value of the event while it reads it, which doubles the work.
    let service = service_fn(|event: LambdaEvent<Box<RawValue>>| {
        let invocation = Invocation::new(&event.context);
        let (app, span) = (app.clone(), span::invocation(&event.context.request_id));
        // Boxed: the runtime's layers would copy the future, of several KB, one after the other.
        Box::pin(async move {
            let answer = match serde_json::from_str(event.payload.get()) {
                Ok(event) => handle(app, invocation, event).await,
                Err(error) => Err(anyhow::Error::new(error).context("the event cannot be read")),
            };
            metrics::flush();
            answer.inspect_err(log_failure).map_err(|error| format!("{error:#}"))
        })
        .instrument(span)
    });
    match lambda_runtime::run(service).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %error, "the Lambda runtime ended");
            ExitCode::FAILURE
        }
    }
}

/// Lambda repeats an event whose invocation failed; the messages of a batch come back as well.
fn log_failure(error: &anyhow::Error) {
    match error.downcast_ref::<Fault>() {
        Some(fault) => log_fault!(fault, "the invocation failed"),
        None => tracing::error!(error = format!("{error:#}"), "the invocation failed"),
    }
}

async fn start(environment: Environment) -> Result<App, SettingsFaults> {
    // If the bundle is wrong, the other settings are still checked.
    let (http, fault) = match http(&environment) {
        Ok(http) => (Ok(http), None),
        Err(error) => (Http::with_tls(None), Some(format!("{error:#}"))),
    };
    let http = http.map_err(|error| SettingsFaults(vec![format!("{error:#}")]))?;
    let sdk = aws::sdk_config(&environment, &http);
    match (build(&sdk, environment, Clock::system(), http).await, fault) {
        (app, None) => app,
        (Ok(_), Some(fault)) => Err(SettingsFaults(vec![fault])),
        (Err(SettingsFaults(faults)), Some(fault)) => {
            Err(SettingsFaults(std::iter::once(fault).chain(faults).collect()))
        }
    }
}

/// Trusts the public authorities, and those of `AWS_CA_BUNDLE`, as the SDKs for other languages do.
fn http(environment: &Environment) -> anyhow::Result<Http> {
    let Some(path) = environment("AWS_CA_BUNDLE") else { return Http::with_tls(None) };
    let pem = std::fs::read_to_string(&path).with_context(|| format!("AWS_CA_BUNDLE: cannot read {path}"))?;
    Http::with_tls(Some(&pem)).with_context(|| format!("AWS_CA_BUNDLE: {path}"))
}

/// Builds what an invocation needs. `http` is for calls that do not go through the SDK.
///
/// # Errors
/// Every setting that is missing or wrong.
pub async fn build(sdk: &SdkConfig, environment: Environment, clock: Clock, http: Http) -> Result<App, SettingsFaults> {
    let ssm = Lazy::new(sdk, aws_sdk_ssm::Client::new);
    let (settings, secrets) = settings::load(environment, ssm).await?;
    let to_jenkins = match &secrets.current().ca_certificate {
        Some(pem) => Http::with_tls(Some(pem.expose()))
            .map_err(|error| SettingsFaults(vec![format!("jenkins.caCertificate: {error:#}")]))?,
        None => http.clone(),
    };
    let config = &settings.config;
    let jenkins = Arc::new(Jenkins::new(to_jenkins, &config.jenkins, Arc::new(secrets)));
    let queues = Queues::new(Lazy::new(sdk, aws_sdk_sqs::Client::new), settings.queues.clone());
    let bus = config.event_bus.as_ref().map(|name| Bus::new(Lazy::new(sdk, aws_sdk_eventbridge::Client::new), name));
    Ok(App {
        clouds: Clouds::new(sdk, &http, &config.clouds),
        notifier: Notifier {
            jenkins: jenkins.clone(),
            webhook: config.jenkins.webhook.url.as_deref().cloned(),
            bus,
            queues: queues.clone(),
            clock: clock.clone(),
        },
        queues,
        jenkins,
        sts: Lazy::new(sdk, aws_sdk_sts::Client::new),
        clock,
        memory: Memory::default(),
        settings,
    })
}

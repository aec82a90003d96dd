//! Start-up: logging, configuration, clients, run.

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    shared::start::run(async |app, invocation, event| request::handler::handle(&app, &invocation, event).await).await
}

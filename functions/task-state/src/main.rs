//! Start-up: logging, configuration, clients, run.

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    shared::start::run(async |app, invocation, event| task_state::handler::handle(&app, &invocation, event).await).await
}

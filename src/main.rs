//! The program: allocator, command line, exit code. Everything else is in the library.

use std::{
    error::Error,
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use stepflow_load_balancer::{
    config::{Action, ConfigError, Effective, Environment, File, Invocation, Mode, Sources},
    control::{ControlError, Signals},
    demo::{self, DemoBackends, Guide},
    server::{self, StartError},
    telemetry::{self, AccessWriter, TelemetryError},
};
use tracing::{info, warn};

// Heaps per thread, which is how the workers allocate, and freed pages go back to the system soon.
// Tools that check every access to memory know only the system's allocator: scripts/sanitize.sh.
#[cfg(not(system_allocator))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Why the program ends without having served.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("cannot start the thread of the access log: {0}")]
    AccessLog(io::Error),
    #[error("cannot start the component servers of the demo: {0}")]
    Demo(io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

fn main() -> ExitCode {
    let ended = match Invocation::parse(std::env::args_os()) {
        Ok(invocation) => run(invocation),
        // Help and version end with 0, misuse with 2.
        Err(error) => error.exit(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&with_causes(&failure));
            ExitCode::from(if matches!(failure, Failure::Config(_)) { 2 } else { 1 })
        }
    }
}

fn run(invocation: Invocation) -> Result<(), Failure> {
    let demo = match invocation.action {
        Action::Serve => None,
        Action::Demo => Some(DemoBackends::start().map_err(Failure::Demo)?),
    };
    let sources = Sources {
        flags: invocation.flags,
        environment: Environment::of_process(),
        file: invocation.config_file.as_deref().map(File::read),
        demo: &demo.as_ref().map(DemoBackends::defaults).unwrap_or_default(),
    };
    let resolution = sources.resolve()?;
    if invocation.mode == Mode::Check {
        resolution.warnings.iter().for_each(|warning| complain(warning));
        return print(&Effective(&resolution));
    }
    telemetry::install(&resolution.config.log)?;
    for warning in &resolution.warnings {
        warn!("{warning}");
    }
    info!(version = env!("CARGO_PKG_VERSION"), "Starting Stepflow Load Balancer");
    let writer = AccessWriter::start(resolution.config.log.access).map_err(Failure::AccessLog)?;
    let bound = server::start(resolution.config, &writer.logger(), Signals::Handle)?;
    if let Some(demo) = &demo {
        demo::wait_until_ready(bound.metrics);
        print(&Guide { demo, data: bound.data, metrics: bound.metrics })?;
    }
    let reason = bound.wait();
    writer.finish();
    // Whatever the reason, it is the end that was asked for, and the log has told which.
    reason?;
    Ok(())
}

fn print(text: &impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::Output)
}

/// The error and what lies behind it, on one line.
fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Many messages quote their cause already.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// Writes to standard error, where there is nobody to tell if that fails.
fn complain(what: &dyn Display) {
    let _ = writeln!(io::stderr(), "{what}");
}

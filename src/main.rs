//! The program: allocator, command line, exit code. Everything else is in the library.

use std::process::ExitCode;

use stepflow_load_balancer::{
    config::{Environment, File, Invocation, Sources},
    control::Signals,
    server, telemetry,
};

// Returns freed pages sooner than the system's allocator and costs less per connection.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let invocation = match Invocation::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    let sources = Sources {
        flags: invocation.flags,
        environment: Environment::of_process(),
        file: invocation.config_file.as_deref().map(File::read),
        demo: &[],
    };
    let resolution = match sources.resolve() {
        Ok(resolution) => resolution,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    telemetry::install(&resolution.config.log).unwrap();
    let writer = telemetry::AccessWriter::start(resolution.config.log.access).unwrap();
    let bound = match server::start(resolution.config, &writer.logger(), Signals::Handle) {
        Ok(bound) => bound,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = bound.wait();
    writer.finish();
    match ended {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

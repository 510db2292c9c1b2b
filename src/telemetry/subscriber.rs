//! The subscriber: which lines are wanted, how they look, and where they go.

use std::{
    fs::File,
    io::{self, IsTerminal},
    path::PathBuf,
    sync::Arc,
};

use tracing::Dispatch;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::MakeWriter,
    layer::SubscriberExt,
};

use super::time;
use crate::config::{Log, LogDestination, LogFormat};

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log file cannot be opened.
    #[error("cannot open the log file {}: {source}", .path.display())]
    OpenFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directives do not parse; configuration refuses such before.
    #[error("invalid log directives: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Something in this process has installed a subscriber already.
    #[error("logging is installed already")]
    InstalledTwice(#[from] tracing::dispatcher::SetGlobalDefaultError),
}

/// Installs the process-wide subscriber. The program calls it once; tests that start a server in
/// their own process need not.
///
/// # Errors
/// When the log file cannot be opened, or a subscriber is installed already.
pub fn install(log: &Log) -> Result<(), TelemetryError> {
    let dispatch = match &log.destination {
        LogDestination::Stdout => dispatch(log, io::stdout, io::stdout().is_terminal())?,
        LogDestination::File(path) => {
            let file = File::options().create(true).append(true).open(path);
            let path = path.clone();
            let file = file.map_err(|source| TelemetryError::OpenFile { path, source })?;
            // Each event is one write to a file in append mode, so lines of different threads stay
            // whole without a lock.
            dispatch(log, Arc::new(file), false)?
        }
    };
    Ok(tracing::dispatcher::set_global_default(dispatch)?)
}

pub(super) fn dispatch<W>(
    log: &Log,
    writer: W,
    is_terminal: bool,
) -> Result<Dispatch, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter: Targets = log.filter.parse()?;
    let subscriber = tracing_subscriber::fmt()
        // What is wanted is for the filter to say.
        .with_max_level(LevelFilter::TRACE)
        .with_timer(time::EventTime)
        .with_ansi(is_terminal)
        .with_writer(writer);
    Ok(match log.format {
        LogFormat::Text => subscriber.finish().with(filter).into(),
        // Flat, as the original's objects were: log pipelines look for `message` at the top.
        LogFormat::Json => subscriber.json().flatten_event(true).finish().with(filter).into(),
    })
}

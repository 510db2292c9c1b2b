//! The access log: records from workers, through a bounded queue, to one thread that writes.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tracing::{Dispatch, field::display, info, warn};

use super::time;
use crate::{config::AccessLog, model::InstanceId};

/// Target of access-log events, for directives such as `access=off`.
pub const ACCESS_TARGET: &str = "access";

/// Records that may wait for the writer: a tenth of a second at 40,000 requests per second, in
/// less than a megabyte.
pub(super) const RECORDS_MAX: usize = 4096;

/// Octets of a path that are logged; the rest is cut off.
pub(super) const PATH_BYTES_MAX: usize = 256;

/// How long the end of the process waits for a writer that is stuck in a full pipe.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// How an exchange found its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// The balancer chose.
    Balanced,
    /// The balancer chose one that takes no new work otherwise, because too few do.
    Panic,
    /// The request named its instance.
    Affinity,
    /// Its session told its backend.
    Session,
    /// It may begin a session: to the backend with the fewest.
    SessionBegins,
    /// Its session was lost, and another backend was chosen.
    SessionMoved,
    /// It brings a session that nobody can read.
    SessionLost,
    /// The balancer answered itself, from one of its own endpoints.
    Own,
    /// It ended before it got that far.
    None,
}

impl Routed {
    /// Label in the log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Panic => "panic",
            Self::Affinity => "affinity",
            Self::Session => "session",
            Self::SessionBegins => "session_begins",
            Self::SessionMoved => "session_moved",
            Self::SessionLost => "session_lost",
            Self::Own => "own",
            Self::None => "none",
        }
    }
}

/// One finished exchange, as the access log shows it.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// When it ended.
    pub finished: SystemTime,
    /// Method, by its label.
    pub method: &'static str,
    /// Path without the query, from [`loggable_path`].
    pub path: Box<str>,
    /// Status sent to the client; 0 when it left before there was one.
    pub status: u16,
    /// Backend that answered, or that was tried last.
    pub backend: Option<SocketAddr>,
    /// Who answers there.
    pub instance: Option<InstanceId>,
    /// How it was found.
    pub routed: Routed,
    /// Why it went there, where that is explained. Visible ASCII and spaces.
    pub decision: Option<Box<str>>,
    /// What the request is about, where MCP's own fields say so.
    pub mcp: Option<Box<McpRecord>>,
    /// How its event stream went, where it was one.
    pub stream: Option<Box<StreamRecord>>,
    /// From the first octet of the request to the last of the response.
    pub duration: Duration,
    /// Octets of the request's body.
    pub bytes_up: u64,
    /// Octets of the response's body.
    pub bytes_down: u64,
    /// What went wrong, by its label.
    pub failure: Option<&'static str>,
    /// Step in which it ended.
    pub stage: &'static str,
    /// Who asked.
    pub client: SocketAddr,
    /// Worker that served it.
    pub worker: usize,
}

/// What the fields of MCP say, each made by [`loggable`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct McpRecord {
    /// `Mcp-Method`.
    pub method: Option<Box<str>>,
    /// `Mcp-Name`.
    pub name: Option<Box<str>>,
}

/// How one event stream went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRecord {
    /// From the first octet of the request to the head of the stream.
    pub to_first_octet: Duration,
    /// From there too, to the end of the first event, if there was one.
    pub to_first_event: Option<Duration>,
    /// Events that came from the backend; `None` where a content coding hides them.
    pub events: Option<u64>,
    /// The longest time between two of them, if there were two.
    pub gap_max: Option<Duration>,
    /// Silences that lasted longer than `stream_stall`.
    pub stalls: u64,
    /// How it ended, by its label.
    pub end: &'static str,
    /// Whether what came from the backend ended between two events; `None` where that is hidden.
    pub at_boundary: Option<bool>,
}

/// The path of a request target such that it fits into a line of the log: without the query, which
/// may hold secrets, no longer than 256 octets, and with everything but visible ASCII escaped.
pub fn loggable_path(target: &[u8]) -> Box<str> {
    loggable(target.split(|b| *b == b'?').next().unwrap_or_default())
}

/// Octets of a client such that they fit into a line of the log: no longer than 256, and with
/// everything but visible ASCII escaped.
pub fn loggable(octets: &[u8]) -> Box<str> {
    let mut text = String::with_capacity(octets.len().min(PATH_BYTES_MAX));
    for (length, octet) in octets.iter().enumerate() {
        if length == PATH_BYTES_MAX {
            text.push_str("...");
            break;
        }
        match octet {
            b'!'..=b'~' => text.push(char::from(*octet)),
            _ => text.push_str(&format!("%{octet:02X}")),
        }
    }
    text.into_boxed_str()
}

/// A worker's end of the access log. Cheap to clone, never blocks.
#[derive(Clone, Debug)]
pub struct AccessLogger {
    queue: Sender<Item>,
    access: AccessLog,
}

#[derive(Debug)]
enum Item {
    Record(Box<AccessRecord>),
    Finish,
}

impl AccessLogger {
    /// Whether an exchange that ended like this gets a record. Asked first, because making a record
    /// allocates.
    #[inline]
    pub fn wants(&self, failure: Option<&'static str>) -> bool {
        match self.access {
            AccessLog::Off => false,
            AccessLog::Failures => failure.is_some(),
            AccessLog::All => true,
        }
    }

    /// Queues a record. Returns whether there was room; the caller counts the other case.
    #[must_use]
    pub fn log(&self, record: AccessRecord) -> bool {
        self.queue.try_send(Item::Record(Box::new(record))).is_ok()
    }
}

/// The thread that writes the access log.
#[derive(Debug)]
pub struct AccessWriter {
    logger: AccessLogger,
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

impl AccessWriter {
    /// Starts the thread. Its lines go to the subscriber of the caller.
    ///
    /// # Errors
    /// When the system grants no thread.
    pub fn start(access: AccessLog) -> io::Result<Self> {
        let (queue, records) = crossbeam_channel::bounded(RECORDS_MAX);
        let (end, ended) = crossbeam_channel::bounded(1);
        let dispatch = tracing::dispatcher::get_default(Dispatch::clone);
        let thread =
            std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
                tracing::dispatcher::with_default(&dispatch, || write(&records, access));
                drop(end);
            })?;
        Ok(Self { logger: AccessLogger { queue, access }, thread, ended })
    }

    /// An end for a worker.
    pub fn logger(&self) -> AccessLogger {
        self.logger.clone()
    }

    /// Writes what is queued and ends the thread; records that come later are refused. Waits two
    /// seconds at most: a log that nobody reads must not keep the process from ending.
    pub fn finish(self) {
        let asked = self.logger.queue.send_timeout(Item::Finish, FINISH_TIMEOUT);
        if asked.is_err() || self.ended.recv_timeout(FINISH_TIMEOUT).is_err_and(|e| e.is_timeout())
        {
            warn!("the access log is not being read; its last lines are lost");
            return;
        }
        if self.thread.join().is_err() {
            warn!("the thread of the access log panicked");
        }
    }
}

/// Lines per second about failures with one label, where only failures are logged. A backend that
/// is down fails every request in the same way: the twentieth line tells no more than the first,
/// and the rest would bury the line that does.
const FAILURE_LINES_PER_SECOND_MAX: u64 = 20;

fn write(records: &Receiver<Item>, access: AccessLog) {
    let mut quota = FailureQuota::default();
    loop {
        let item = records.recv_timeout(Duration::from_secs(1));
        let is_over = matches!(item, Ok(Item::Finish) | Err(RecvTimeoutError::Disconnected));
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for (failure, lines) in quota.enter(if is_over { u64::MAX } else { since_epoch.as_secs() })
        {
            let failure = display(failure);
            warn!(target: ACCESS_TARGET, failure, lines, "more requests failed like this");
        }
        match item {
            Ok(Item::Record(record)) => {
                let fits = |failure| access == AccessLog::All || quota.admits(failure);
                if record.failure.is_none_or(fits) {
                    time::at(record.finished, || emit(&record));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Item::Finish) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// How many lines each label has had in this second.
#[derive(Debug, Default)]
struct FailureQuota {
    second: u64,
    lines: BTreeMap<&'static str, u64>,
}

impl FailureQuota {
    /// Time is in this second. When it is another than before, gives what was held back until
    /// then, by label.
    fn enter(&mut self, second: u64) -> Vec<(&'static str, u64)> {
        if second == self.second {
            return Vec::new();
        }
        self.second = second;
        std::mem::take(&mut self.lines)
            .into_iter()
            .map(|(failure, lines)| (failure, lines.saturating_sub(FAILURE_LINES_PER_SECOND_MAX)))
            .filter(|(_, held_back)| *held_back > 0)
            .collect()
    }

    /// Whether one more line about this failure fits into this second.
    fn admits(&mut self, failure: &'static str) -> bool {
        let lines = self.lines.entry(failure).or_default();
        *lines += 1;
        *lines <= FAILURE_LINES_PER_SECOND_MAX
    }
}

fn emit(record: &AccessRecord) {
    let AccessRecord { method, path, status, client, worker, bytes_up, bytes_down, .. } = record;
    let backend = record.backend.map(display);
    let instance = record.instance.as_ref().map(display);
    let routed = record.routed.label();
    let decision = record.decision.as_deref();
    let mcp = record.mcp.as_deref();
    let mcp_method = mcp.and_then(|mcp| mcp.method.as_ref()).map(display);
    let mcp_name = mcp.and_then(|mcp| mcp.name.as_ref()).map(display);
    let duration_ms = milliseconds(record.duration);
    let stream = record.stream.as_deref();
    let ttfb_ms = stream.map(|stream| milliseconds(stream.to_first_octet));
    let ttfe_ms = stream.and_then(|stream| stream.to_first_event).map(milliseconds);
    let events = stream.and_then(|stream| stream.events);
    let gap_max_ms = stream.and_then(|stream| stream.gap_max).map(milliseconds);
    let stalls = stream.map(|stream| stream.stalls);
    let stream_end = stream.map(|stream| display(stream.end));
    let at_boundary = stream.and_then(|stream| stream.at_boundary);
    match record.failure {
        None => info!(
            target: ACCESS_TARGET,
            method = display(method), %path, status, backend, instance, routed = display(routed),
            decision, mcp_method, mcp_name, duration_ms, bytes_up, bytes_down, ttfb_ms, ttfe_ms,
            events, gap_max_ms, stalls, stream_end, at_boundary, %client, worker,
            "request completed"
        ),
        Some(failure) => warn!(
            target: ACCESS_TARGET,
            method = display(method), %path, status, backend, instance, routed = display(routed),
            decision, mcp_method, mcp_name, duration_ms, bytes_up, bytes_down, ttfb_ms, ttfe_ms,
            events, gap_max_ms, stalls, stream_end, at_boundary, %client, worker,
            failure = display(failure), stage = display(record.stage),
            "request failed"
        ),
    }
}

/// Hundredths are as fine as anybody reads.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_failure_leaves_room_for_another_and_is_summed_up() {
        let mut quota = FailureQuota::default();
        assert_eq!(quota.enter(1), []);
        let admitted = (0..1000).filter(|_| quota.admits("connect_failed")).count() as u64;
        assert_eq!(admitted, FAILURE_LINES_PER_SECOND_MAX);
        assert!(quota.admits("client_stalled"));
        assert_eq!(quota.enter(1), []);
        assert_eq!(quota.enter(2), [("connect_failed", 1000 - FAILURE_LINES_PER_SECOND_MAX)]);
        assert!(quota.admits("connect_failed"));
        assert_eq!(quota.enter(3), []);
    }
}

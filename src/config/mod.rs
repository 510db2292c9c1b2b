//! What the operator wants, from flags, environment and file to one validated [`Config`].
//!
//! Precedence is flag, then environment, then file, then default. Every option is one row of one
//! table ([`SETTINGS`]), so its flag, its variable, its key in the file, its default and its help
//! cannot drift apart. A value that is wrong is reported with its key, where it came from and what
//! would be accepted; all of them at once, because fixing a deployment one error at a time takes a
//! roll-out per error.
//!
//! Owns what can be configured and what is a valid configuration. Does not own what an option
//! means: that stands with the code that obeys it. Nothing here touches the network.

mod draft;
mod effective;
mod environment;
mod error;
mod file;
mod flags;
mod nearest;
mod options;
mod resolve;
mod units;

pub use effective::Effective;
pub use environment::Environment;
pub use error::{ConfigError, Place, Problem, Source, Warning, Written};
pub use file::File;
pub use flags::{Action, Flags, Invocation, Mode};
pub use options::{ADMIN_ADDRESS_DEFAULT, OUR_PREFIX, SETTINGS, Setting};
pub use resolve::{Resolution, Sources};

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use crate::{
    model::{FaultSet, HashOn, StatusSet, Target, TrustedProxies},
    session,
};

/// Everything the process was told, validated. Plain data: nothing in it can be wrong any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the backends are.
    pub upstream: Vec<Target>,
    /// Address that clients connect to.
    pub bind_address: SocketAddr,
    /// Address of the metrics and the control thread's own endpoints.
    pub metrics_address: SocketAddr,
    /// Address of the admin calls; `None` leaves them out.
    pub admin_address: Option<SocketAddr>,
    /// Worker threads; `None` means one per CPU that affinity and the cgroup quota allow.
    pub workers: Option<NonZeroUsize>,
    /// Connections that a worker may have more than another; beyond, it hands over what it accepts.
    /// `None` leaves them where the kernel put them.
    pub worker_imbalance_max: Option<NonZeroU32>,
    /// Which kernel interface the workers use.
    pub io_driver: IoDriver,
    /// How a backend is chosen for a request that names no instance.
    pub algorithm: Algorithm,
    /// What the algorithms go by.
    pub balancing: Balancing,
    /// Responses and the access log say why a request went where it went.
    pub explain: bool,
    /// Who a client may be to be believed about its own client.
    pub trusted_proxies: TrustedProxies,
    /// Requests say in `Via` that they came through us.
    pub via: bool,
    /// What an orchestrator's `initialize` says reaches every backend.
    pub initialize_replay: bool,
    /// How requests tell their session.
    pub sessions: session::Settings,
    /// Active health checks.
    pub health: HealthChecks,
    /// Ejections by the outcomes of requests.
    pub outliers: Outliers,
    /// What is done when too few backends are left.
    pub panic: PanicMode,
    /// Name resolution.
    pub dns: Dns,
    /// Path that the balancer answers itself on the data port; `None` leaves it to the backends.
    pub health_endpoint: Option<String>,
    /// What a client or a backend may make us hold.
    pub limits: Limits,
    /// What is tried again, and how much a backend may get at once.
    pub resilience: Resilience,
    /// How long we wait for whom.
    pub timeouts: Timeouts,
    /// What is done for event streams.
    pub streams: Streams,
    /// Logs.
    pub log: Log,
}

impl Config {
    /// Makes a configuration of what was said, by precedence.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn resolve(
        flags: Flags,
        environment: Environment,
        file: Option<File>,
    ) -> Result<Self, ConfigError> {
        let sources = Sources { flags, environment, file, demo: &[] };
        sources.resolve().map(|resolution| resolution.config)
    }

    /// What requests are hashed on, if they are.
    pub fn hash_on(&self) -> Option<&HashOn> {
        match self.algorithm {
            Algorithm::IpHash => Some(&HashOn::ClientAddress),
            Algorithm::ConsistentHash => Some(&self.balancing.hash_on),
            Algorithm::LeastConnections
            | Algorithm::LeastResponseTime
            | Algorithm::RoundRobin
            | Algorithm::Random
            | Algorithm::PowerOfTwo => None,
        }
    }
}

/// Choice of the kernel interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDriver {
    /// io_uring where the kernel grants it, else epoll.
    Auto,
    /// io_uring or refuse to start.
    IoUring,
    /// epoll.
    Epoll,
}

impl IoDriver {
    /// The word that the option takes.
    pub fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// Choice of the picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Fewest running exchanges relative to weight, counted exactly over all workers.
    LeastConnections,
    /// Least response time times running exchanges, relative to weight.
    LeastResponseTime,
    /// In turn, by weight, per worker.
    RoundRobin,
    /// By chance, by weight.
    Random,
    /// The less loaded of two that are drawn by weight.
    PowerOfTwo,
    /// Where the client's address leads.
    IpHash,
    /// Where the key of the request leads.
    ConsistentHash,
}

/// What the algorithms go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancing {
    /// What requests are hashed on.
    pub hash_on: HashOn,
    /// Percent of its share of all running exchanges that hashing may give a backend; `None` gives
    /// it any number.
    pub hash_balance_percent: Option<NonZeroU32>,
    /// How long a backend that joins others takes to come to its full weight; `None`: at once.
    pub slow_start: Option<Duration>,
    /// The time in which what was measured of a backend's response times comes to count half.
    pub response_time_half_life: Duration,
}

/// What a health check does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    /// `GET`, and a look at the answer.
    Http,
    /// Opens a connection, and closes it.
    Tcp,
    /// Nothing: every discovered backend is taken as healthy.
    Off,
}

/// Active health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChecks {
    /// What a probe does.
    pub check: HealthCheck,
    /// Path of the probe. [`HealthCheck::Http`] has one always, the others do not look at it.
    pub path: Option<String>,
    /// Statuses of a healthy backend.
    pub statuses: StatusSet,
    /// Text that the body of a healthy backend holds; empty for any.
    pub body: String,
    /// `Host` of the probe; `None` is the backend's address.
    pub host: Option<String>,
    /// Port of the probe; `None` is the backend's own.
    pub port: Option<u16>,
    /// Pause between two probes of one backend, before jitter.
    pub interval: Duration,
    /// The same behind a failure of a backend that is in.
    pub interval_failing: Duration,
    /// Longest a probe may take, connect included.
    pub timeout: Duration,
    /// Consecutive failures that take a backend out of balancing.
    pub max_failures: NonZeroU32,
    /// Consecutive successes that bring it back.
    pub healthy_threshold: NonZeroU32,
}

/// Ejections by the outcomes of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// Whether anybody is ejected.
    pub is_on: bool,
    /// What is held against a backend.
    pub faults: FaultSet,
    /// Failures in a row that eject; `None` counts no rows.
    pub failures_in_a_row: Option<NonZeroU32>,
    /// Failed connects in a row that eject; `None` does not count them apart.
    pub connect_failures_in_a_row: Option<NonZeroU32>,
    /// Share of failures that ejects, in percent; `None` does not look at it.
    pub failure_percent: Option<u8>,
    /// Time over which the share is taken.
    pub window: Duration,
    /// Requests within that time below which the share says nothing.
    pub requests_min: NonZeroU32,
    /// Share of event streams silent at the same time that ejects, in percent; `None` listens to
    /// none.
    pub silent_percent: Option<u8>,
    /// Shortest silence of a stream that counts.
    pub silence_min: Duration,
    /// Length of the first ejection, and by how much each further one is longer.
    pub ejection: Duration,
    /// Longest ejection.
    pub ejection_max: Duration,
    /// Most backends that may be ejected at once, in percent.
    pub ejected_percent_max: u8,
    /// What ends an ejection.
    pub ends: EjectionEnds,
}

/// What ends an ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionEnds {
    /// Its time.
    Time,
    /// Its time, or a health check that passes.
    Probe,
}

/// What is done when too few backends are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanicMode {
    /// Share of backends below which it begins, in percent; 0 is never.
    pub threshold_percent: u8,
    /// What is overlooked.
    pub scope: PanicScope,
}

/// What is overlooked when too few backends are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicScope {
    /// Ejections.
    Ejections,
    /// Health checks as well.
    Everything,
}

/// Name resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Servers to ask instead of those in `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// Shortest pause between two refreshes, whatever the TTL says.
    pub refresh_min: Duration,
    /// Longest pause between two refreshes, whatever the TTL says.
    pub refresh_max: Duration,
}

/// What a peer may make us hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets of a request head, request line included; more is 431.
    pub request_head_bytes_max: usize,
    /// Octets of a request line without its end; more is 414.
    pub request_line_bytes_max: usize,
    /// Octets of content in a request; more is 413. `None` takes any.
    pub request_body_bytes_max: Option<u64>,
    /// Octets of a response head; more is 502.
    pub response_head_bytes_max: usize,
    /// Fields in a head; more is 431 towards clients and 502 from backends.
    pub fields_max: usize,
    /// Clients in the middle of a request head, on all workers.
    pub heads_in_reading_max: NonZeroU32,
    /// Octets per second of a request head after its grace; `None` takes any pace.
    pub request_head_rate_min: Option<NonZeroU32>,
    /// Requests on one client connection; the last response announces its end. `None` serves any
    /// number.
    pub requests_per_connection_max: Option<NonZeroU32>,
    /// Client connections on all workers; `None` is what the descriptor limit allows.
    pub connections_max: Option<NonZeroU32>,
    /// Connections of one client on all workers; `None` allows any number.
    pub connections_per_client_max: Option<NonZeroU32>,
    /// Octets of chunk extensions in one body; more is 400, or 502 from backends.
    pub chunk_extension_bytes_max: u32,
    /// Octets of the trailer section of one body; more is 431, or 502 from backends.
    pub trailer_bytes_max: u32,
    /// Octets of coming requests taken in while one is being served; more wait with the client.
    pub pipelined_bytes_max: usize,
    /// Idle connections that one worker keeps to one backend.
    pub idle_connections_per_backend_max: usize,
}

/// What is tried again, and how much a backend may get at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resilience {
    /// Retries in percent of the requests of the last ten seconds; `None` bounds only each request.
    pub retry_budget_percent: Option<u32>,
    /// Retries per second, over all workers, that the budget allows however little traffic it has.
    pub retries_per_second_min: u32,
    /// Connections open to one backend, over all workers; `None` opens as many as are needed.
    pub connections_per_backend_max: Option<NonZeroU32>,
    /// Exchanges that run on one backend, over all workers; `None` is without a bound.
    pub requests_per_backend_max: Option<NonZeroU32>,
    /// Requests, over all workers, that may wait while every backend is full.
    pub queue_max: u32,
    /// How long each of them may wait.
    pub queue_timeout: Duration,
}

/// How long we wait for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first octet of a request head to its last.
    pub request_head: Duration,
    /// Between two requests on one client connection.
    pub keep_alive: Duration,
    /// To open a connection to a backend.
    pub connect: Duration,
    /// Without progress on a body of known length, or a client that does not take what we send.
    pub body: Duration,
    /// While the client of an event stream takes nothing of what is being sent; `None` waits for
    /// ever.
    pub client_stall: Option<Duration>,
    /// From the end of a request to the end of the final response head; `None` waits for ever.
    pub response_head: Option<Duration>,
    /// Without an octet in either direction of a tunnel; `None` waits for ever.
    pub tunnel_idle: Option<Duration>,
    /// A pooled upstream connection is dropped after this long without use. Must be shorter than
    /// the backends' own keep-alive, or requests meet connections that are about to close.
    pub upstream_idle: Duration,
    /// How long a request for a known instance is tried again while its connects fail.
    pub instance_retry: Duration,
    /// Between SIGTERM and the end of accepting.
    pub drain_grace: Duration,
    /// Between the end of accepting and the end of the process.
    pub drain: Duration,
    /// How long things may run on a backend that drains; `None`: to their end.
    pub backend_drain: Option<Duration>,
}

/// What is done for event streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    /// Silence after which a comment is sent between two events; `None` sends none.
    pub heartbeat: Option<Duration>,
    /// A `GET` stream whose backend dies goes on from another one, with `Last-Event-ID`.
    pub resume: bool,
    /// Streams that are ended per second, over all workers, while something drains.
    pub drain_rate: NonZeroU32,
    /// Shortest wait that the client of a stream is told which we end.
    pub retry_min: Duration,
    /// Longest of these waits. Not below the shortest.
    pub retry_max: Duration,
    /// Age at which a stream is ended whose client connects again, give or take a tenth; `None`
    /// lets it run.
    pub age_max: Option<Duration>,
    /// A silence that is longer is counted, and nothing else happens; `None` counts none.
    pub stall: Option<Duration>,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Directives for tracing-subscriber's `Targets`, made from `RUST_LOG` or the two levels.
    pub filter: String,
    /// Where lines go.
    pub destination: LogDestination,
    /// How lines look.
    pub format: LogFormat,
    /// Which exchanges get a line.
    pub access: AccessLog,
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDestination {
    /// Standard output.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Which exchanges get a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// Those that the balancer refused or that failed.
    Failures,
    /// All.
    All,
}

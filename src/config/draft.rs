//! A configuration on its way from nothing to valid.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use super::{
    AccessLog, Algorithm, Balancing, Config, Dns, EjectionEnds, HealthCheck, HealthChecks,
    IoDriver, Limits, Log, LogDestination, LogFormat, Outliers, PanicMode, PanicScope, Resilience,
    Streams, Timeouts,
};
use crate::{
    model::{FaultSet, HashOn, StatusSet, TrustedProxies},
    session,
};

/// A configuration while its options are being read.
///
/// The plain [`Config`] is filled in place; beside it stand the options of which several make up
/// one field. Every field is overwritten by its option's value or default.
#[derive(Debug)]
pub(super) struct Draft {
    /// What will be the result.
    pub(super) config: Config,
    /// Pause behind a failed health check, where it differs from the usual one.
    pub(super) interval_failing: Option<Duration>,
    /// Level of our own lines, as a word.
    pub(super) log_level: &'static str,
    /// Level of the lines of our dependencies, as a word.
    pub(super) other_log_level: &'static str,
    /// Directives that replace the two levels.
    pub(super) rust_log: Option<String>,
    /// Keys of sessions, as the option has them.
    pub(super) session_keys: Vec<session::Key>,
    /// Keys of sessions, as their file has them.
    pub(super) session_keys_of_file: Option<Vec<session::Key>>,
    /// Whether lines are to go to [`Draft::log_file`].
    pub(super) log_to_file: bool,
    /// The file.
    pub(super) log_file: Option<PathBuf>,
}

impl Draft {
    /// A draft in which nothing has been said yet.
    pub(super) fn blank() -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let config = Config {
            upstream: Vec::new(),
            bind_address: nowhere,
            metrics_address: nowhere,
            admin_address: None,
            workers: None,
            worker_imbalance_max: None,
            io_driver: IoDriver::Auto,
            algorithm: Algorithm::LeastConnections,
            balancing: Balancing {
                hash_on: HashOn::ClientAddress,
                hash_balance_percent: None,
                slow_start: None,
                response_time_half_life: Duration::ZERO,
            },
            explain: false,
            trusted_proxies: TrustedProxies::default(),
            via: false,
            initialize_replay: false,
            sessions: session::Settings {
                instance_header: session::Settings::INSTANCE_HEADER.into(),
                header: None,
                cookie: None,
                application_cookie: None,
                keys: Vec::new(),
                lost: session::LostRules::default(),
                idle: Duration::ZERO,
            },
            health: HealthChecks {
                check: HealthCheck::Off,
                path: None,
                statuses: StatusSet::default(),
                body: String::new(),
                host: None,
                port: None,
                interval: Duration::ZERO,
                interval_failing: Duration::ZERO,
                timeout: Duration::ZERO,
                max_failures: NonZeroU32::MIN,
                healthy_threshold: NonZeroU32::MIN,
            },
            outliers: Outliers {
                is_on: false,
                faults: FaultSet::default(),
                failures_in_a_row: None,
                connect_failures_in_a_row: None,
                failure_percent: None,
                window: Duration::ZERO,
                requests_min: NonZeroU32::MIN,
                silent_percent: None,
                silence_min: Duration::ZERO,
                ejection: Duration::ZERO,
                ejection_max: Duration::ZERO,
                ejected_percent_max: 0,
                ends: EjectionEnds::Time,
            },
            panic: PanicMode { threshold_percent: 0, scope: PanicScope::Ejections },
            dns: Dns {
                servers: Vec::new(),
                refresh_min: Duration::ZERO,
                refresh_max: Duration::ZERO,
            },
            health_endpoint: None,
            limits: Limits {
                request_head_bytes_max: 0,
                request_line_bytes_max: 0,
                request_body_bytes_max: None,
                response_head_bytes_max: 0,
                fields_max: 0,
                heads_in_reading_max: NonZeroU32::MIN,
                request_head_rate_min: None,
                requests_per_connection_max: None,
                connections_max: None,
                connections_per_client_max: None,
                chunk_extension_bytes_max: 0,
                trailer_bytes_max: 0,
                pipelined_bytes_max: 0,
                idle_connections_per_backend_max: 0,
            },
            resilience: Resilience {
                retry_budget_percent: None,
                retries_per_second_min: 0,
                connections_per_backend_max: None,
                requests_per_backend_max: None,
                queue_max: 0,
                queue_timeout: Duration::ZERO,
            },
            timeouts: Timeouts {
                request_head: Duration::ZERO,
                keep_alive: Duration::ZERO,
                connect: Duration::ZERO,
                body: Duration::ZERO,
                client_stall: None,
                response_head: None,
                tunnel_idle: None,
                upstream_idle: Duration::ZERO,
                instance_retry: Duration::ZERO,
                drain_grace: Duration::ZERO,
                drain: Duration::ZERO,
                backend_drain: None,
            },
            streams: Streams {
                heartbeat: None,
                resume: false,
                drain_rate: NonZeroU32::MIN,
                retry_min: Duration::ZERO,
                retry_max: Duration::ZERO,
                age_max: None,
                stall: None,
            },
            log: Log {
                filter: String::new(),
                destination: LogDestination::Stdout,
                format: LogFormat::Text,
                access: AccessLog::Off,
            },
        };
        Self {
            config,
            interval_failing: None,
            log_level: "off",
            other_log_level: "off",
            rust_log: None,
            session_keys: Vec::new(),
            session_keys_of_file: None,
            log_to_file: false,
            log_file: None,
        }
    }
}

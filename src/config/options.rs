//! The table of options: one row for each thing that can be configured.
//!
//! A row is the only place that knows an option's key in the file, its variable, its default and
//! how its text becomes part of a [`Config`](super::Config). Flags, `--help`, `--check`, error
//! messages, the search for unknown names and the test of `config/example.toml` all read this
//! table. It is longer than other files because a table is best read in one piece.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use super::{
    AccessLog, Algorithm, EjectionEnds, HealthCheck, IoDriver, LogFormat, PanicScope,
    draft::Draft,
    units::{
        self, ADDRESS, DURATION, DURATION_OR_OFF, PATH_OR_OFF, PERCENT, POSITIVE_DURATION, Parsed,
        Refusal, SERVER_LIST,
    },
};
use crate::{
    model::{FaultSet, HashOn, StatusSet, Target, TrustedProxies},
    session,
};

/// One option.
#[derive(Debug)]
pub struct Setting {
    /// Name in the file.
    pub key: &'static str,
    /// Name on the command line, without the dashes in front: the key with `-` for `_`.
    pub flag: &'static str,
    /// Name in the environment. Those that the original balancer had, or documented, are kept; ours
    /// start with [`OUR_PREFIX`].
    pub environment: &'static str,
    /// Value when nobody says anything; empty when there is none.
    pub default: &'static str,
    /// What the option takes, for error messages and the help.
    pub accepted: &'static str,
    /// What it does, in a line.
    pub help: &'static str,
    /// Heading under which `--help` and `--check` show it.
    pub group: &'static str,
    /// Reads a trimmed, non-empty text into the draft.
    pub(super) apply: fn(&mut Draft, &str) -> Parsed<()>,
}

/// Address of the admin calls when nobody says otherwise: only processes of the same host, or of
/// the same pod, reach it.
pub const ADMIN_ADDRESS_DEFAULT: &str = "127.0.0.1:9901";

/// Prefix of the variables that are ours alone.
pub const OUR_PREFIX: &str = "STEPFLOW_LB_";

/// Silence of fewer streams than half of them is not the backend's.
const SILENT_PERCENT_LEAST: u8 = 50;

/// What stands where a secret was.
pub(super) const NOT_SHOWN: &str = "(not shown)";

/// Levels from the quietest to the loudest.
pub(super) const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Every option, in the order in which people are shown them.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "upstream_service",
        flag: "upstream-service",
        environment: "UPSTREAM_SERVICE",
        default: "",
        accepted: Target::ACCEPTED,
        help: "Where the backends are",
        group: "Addresses",
        apply: |draft, text| {
            draft.config.upstream = Target::parse_list(text)
                .map_err(|(entry, e)| Refusal::Because(format!("{} in {entry:?}", e.reason())))?;
            Ok(())
        },
    },
    Setting {
        key: "bind_address",
        flag: "bind-address",
        environment: "BIND_ADDRESS",
        default: "0.0.0.0:8080",
        accepted: ADDRESS,
        help: "Address that clients connect to",
        group: "Addresses",
        apply: |draft, text| units::address(text).map(|a| draft.config.bind_address = a),
    },
    Setting {
        key: "metrics_address",
        flag: "metrics-address",
        environment: "METRICS_ADDRESS",
        default: "0.0.0.0:9090",
        accepted: ADDRESS,
        help: "Address of the metrics",
        group: "Addresses",
        apply: |draft, text| units::address(text).map(|a| draft.config.metrics_address = a),
    },
    Setting {
        key: "admin_address",
        flag: "admin-address",
        environment: "STEPFLOW_LB_ADMIN_ADDRESS",
        default: ADMIN_ADDRESS_DEFAULT,
        accepted: "ip:port such as 127.0.0.1:9901 or [::1]:9901, or off",
        help: "Address of the admin calls, which drain backends; whoever reaches it may use them",
        group: "Addresses",
        apply: |draft, text| {
            units::or_off(text, units::address).map(|a| draft.config.admin_address = a)
        },
    },
    Setting {
        key: "health_endpoint",
        flag: "health-endpoint",
        environment: "STEPFLOW_LB_HEALTH_ENDPOINT",
        default: "/health",
        accepted: PATH_OR_OFF,
        help: "Path that the balancer answers itself on the data port; off leaves it to the backends",
        group: "Addresses",
        apply: |draft, text| units::path_or_off(text).map(|p| draft.config.health_endpoint = p),
    },
    Setting {
        key: "workers",
        flag: "workers",
        environment: "STEPFLOW_LB_WORKERS",
        default: "auto",
        accepted: "auto or a number of threads from 1 to 1024",
        help: "Worker threads; auto is one per CPU that affinity and cgroup quota allow",
        group: "Threads",
        apply: |draft, text| {
            let auto = text.eq_ignore_ascii_case("auto");
            let count = if auto { None } else { Some(units::count(text, 1, 1024)?) };
            draft.config.workers = count.and_then(NonZeroUsize::new);
            Ok(())
        },
    },
    Setting {
        key: "worker_imbalance_max",
        flag: "worker-imbalance-max",
        environment: "STEPFLOW_LB_WORKER_IMBALANCE_MAX",
        default: "32",
        accepted: "a whole number from 1 to 4294967295, or off",
        help: "Connections a worker may have more than another before it hands new ones over",
        group: "Threads",
        apply: |draft, text| {
            units::or_off(text, units::positive_u32).map(|n| draft.config.worker_imbalance_max = n)
        },
    },
    Setting {
        key: "io_driver",
        flag: "io-driver",
        environment: "STEPFLOW_LB_IO_DRIVER",
        default: "auto",
        accepted: "auto, io_uring or epoll",
        help: "Kernel interface of the workers; auto is io_uring where the kernel grants it",
        group: "Threads",
        apply: |draft, text| {
            let words = [
                ("auto", IoDriver::Auto),
                ("io_uring", IoDriver::IoUring),
                ("epoll", IoDriver::Epoll),
            ];
            units::word(text, &words).map(|driver| draft.config.io_driver = driver)
        },
    },
    Setting {
        key: "algorithm",
        flag: "algorithm",
        environment: "STEPFLOW_LB_ALGORITHM",
        default: "least_connections",
        accepted: "least_connections, round_robin, least_response_time, random, power_of_two, ip_hash or consistent_hash",
        help: "How a backend is chosen for a request that names no instance",
        group: "Balancing",
        apply: |draft, text| {
            let words = [
                ("least_connections", Algorithm::LeastConnections),
                // The same: every algorithm goes by the weights there are.
                ("weighted_least_connections", Algorithm::LeastConnections),
                ("least_response_time", Algorithm::LeastResponseTime),
                ("round_robin", Algorithm::RoundRobin),
                ("weighted_round_robin", Algorithm::RoundRobin),
                ("random", Algorithm::Random),
                ("power_of_two", Algorithm::PowerOfTwo),
                ("ip_hash", Algorithm::IpHash),
                ("consistent_hash", Algorithm::ConsistentHash),
            ];
            units::word(text, &words).map(|algorithm| draft.config.algorithm = algorithm)
        },
    },
    Setting {
        key: "hash_on",
        flag: "hash-on",
        environment: "STEPFLOW_LB_HASH_ON",
        default: "client_address",
        accepted: HashOn::ACCEPTED,
        help: "What consistent_hash hashes; a request without it goes to the least loaded backend",
        group: "Balancing",
        apply: |draft, text| {
            draft.config.balancing.hash_on =
                HashOn::parse(text).map_err(|e| Refusal::Because(e.reason().to_owned()))?;
            Ok(())
        },
    },
    Setting {
        key: "hash_balance_percent",
        flag: "hash-balance-percent",
        environment: "STEPFLOW_LB_HASH_BALANCE_PERCENT",
        default: "off",
        accepted: "a number from 100 to 10000, or off",
        help: "Most that hashing may give a backend, in percent of its share of all running requests",
        group: "Balancing",
        apply: |draft, text| {
            let percent = units::or_off(text, |text| units::count(text, 100, 10_000))?;
            let percent = percent.and_then(|percent| u32::try_from(percent).ok());
            draft.config.balancing.hash_balance_percent = percent.and_then(NonZeroU32::new);
            Ok(())
        },
    },
    Setting {
        key: "slow_start",
        flag: "slow-start",
        environment: "STEPFLOW_LB_SLOW_START",
        default: "off",
        accepted: DURATION_OR_OFF,
        help: "How long a backend that joins others takes to get its full share",
        group: "Balancing",
        apply: |draft, text| {
            units::duration_or_off(text).map(|d| draft.config.balancing.slow_start = d)
        },
    },
    Setting {
        key: "response_time_half_life",
        flag: "response-time-half-life",
        environment: "STEPFLOW_LB_RESPONSE_TIME_HALF_LIFE",
        default: "5s",
        accepted: POSITIVE_DURATION,
        help: "Time in which a measured response time comes to count half, for least_response_time",
        group: "Balancing",
        apply: |draft, text| {
            let half_life = units::positive_duration(text)?;
            draft.config.balancing.response_time_half_life = half_life;
            Ok(())
        },
    },
    Setting {
        key: "explain",
        flag: "explain",
        environment: "STEPFLOW_LB_EXPLAIN",
        default: "off",
        accepted: "on or off",
        help: "Whether responses and the access log say why a request went to its backend",
        group: "Balancing",
        apply: |draft, text| {
            let words = [("on", true), ("off", false)];
            units::word(text, &words).map(|explain| draft.config.explain = explain)
        },
    },
    Setting {
        key: "instance_retry",
        flag: "instance-retry",
        environment: "STEPFLOW_LB_INSTANCE_RETRY",
        default: "2s",
        accepted: DURATION,
        help: "How long a request for a known instance is tried again while its connects fail",
        group: "Balancing",
        apply: |draft, text| {
            units::duration(text).map(|d| draft.config.timeouts.instance_retry = d)
        },
    },
    Setting {
        key: "initialize_replay",
        flag: "initialize-replay",
        environment: "STEPFLOW_LB_INITIALIZE_REPLAY",
        default: "on",
        accepted: "on or off",
        help: "Whether every backend gets the initialize that an orchestrator has sent to one of them",
        group: "Balancing",
        apply: |draft, text| {
            let words = [("on", true), ("off", false)];
            units::word(text, &words).map(|on| draft.config.initialize_replay = on)
        },
    },
    Setting {
        key: "instance_header",
        flag: "instance-header",
        environment: "STEPFLOW_LB_INSTANCE_HEADER",
        default: session::Settings::INSTANCE_HEADER,
        accepted: HEADER_NAME,
        help: "Header in which requests and responses name an instance",
        group: "Sessions",
        apply: |draft, text| {
            header_name(text).map(|name| draft.config.sessions.instance_header = name)
        },
    },
    Setting {
        key: "session_header",
        flag: "session-header",
        environment: "STEPFLOW_LB_SESSION_HEADER",
        default: "",
        accepted: HEADER_NAME,
        help: "Header in which backends give session ids, such as Mcp-Session-Id",
        group: "Sessions",
        apply: |draft, text| {
            header_name(text).map(|name| draft.config.sessions.header = Some(name))
        },
    },
    Setting {
        key: "session_cookie",
        flag: "session-cookie",
        environment: "STEPFLOW_LB_SESSION_COOKIE",
        default: "",
        accepted: "NAME, or NAME; with attributes as in Set-Cookie: Path, Domain, Max-Age, SameSite, Secure, HttpOnly, Partitioned",
        help: "Cookie that the balancer sets to keep a client on its backend",
        group: "Sessions",
        apply: |draft, text| {
            let spec = session::CookieSpec::parse(text);
            let spec = spec.map_err(|error| Refusal::Because(error.to_string()))?;
            draft.config.sessions.cookie = Some(spec);
            Ok(())
        },
    },
    Setting {
        key: "session_application_cookie",
        flag: "session-application-cookie",
        environment: "STEPFLOW_LB_SESSION_APPLICATION_COOKIE",
        default: "",
        accepted: "the name of a cookie",
        help: "Cookie in which backends give session ids",
        group: "Sessions",
        apply: |draft, text| {
            if !session::is_cookie_name(text) {
                return Err(Refusal::Form);
            }
            draft.config.sessions.application_cookie = Some(text.into());
            Ok(())
        },
    },
    Setting {
        key: "session_keys",
        flag: "session-keys",
        environment: "STEPFLOW_LB_SESSION_KEYS",
        default: "",
        accepted: SESSION_KEYS,
        help: "Keys that seal sessions, shared by all replicas; the first seals, all open",
        group: "Sessions",
        apply: |draft, text| {
            let keys = text.split([',', ' ', '\t', '\r', '\n']).filter(|key| !key.is_empty());
            session_keys(keys).map(|keys| draft.session_keys = keys)
        },
    },
    Setting {
        key: "session_keys_file",
        flag: "session-keys-file",
        environment: "STEPFLOW_LB_SESSION_KEYS_FILE",
        default: "",
        accepted: "the path of a file with one key a line, 64 hexadecimal digits each",
        help: "File with the keys, one a line",
        group: "Sessions",
        apply: |draft, text| {
            let because =
                |error: std::io::Error| Refusal::Because(format!("cannot read it: {error}"));
            let content = std::fs::read_to_string(text).map_err(because)?;
            let lines = content.lines().map(str::trim);
            let keys =
                session_keys(lines.filter(|line| !line.is_empty() && !line.starts_with('#')))?;
            draft.session_keys_of_file = Some(keys);
            Ok(())
        },
    },
    Setting {
        key: "session_lost",
        flag: "session-lost",
        environment: "STEPFLOW_LB_SESSION_LOST",
        default: "auto",
        accepted: "auto; 503, 404 or rebalance; or kind=word with commas between, kinds being instance, header, application_cookie and cookie",
        help: "What a request gets whose session's instance is gone",
        group: "Sessions",
        apply: |draft, text| {
            let rules = session::LostRules::parse(text);
            draft.config.sessions.lost =
                rules.map_err(|error| Refusal::Because(error.to_string()))?;
            Ok(())
        },
    },
    Setting {
        key: "session_idle",
        flag: "session-idle",
        environment: "STEPFLOW_LB_SESSION_IDLE",
        default: "30m",
        accepted: "a duration from 1s to 720h, such as 90s, 30m or 12h",
        help: "How long an unused session counts as live",
        group: "Sessions",
        apply: |draft, text| {
            let idle = units::positive_duration(text)?;
            if !(SESSION_IDLE_MIN..=SESSION_IDLE_MAX).contains(&idle) {
                return Err(Refusal::Form);
            }
            draft.config.sessions.idle = idle;
            Ok(())
        },
    },
    Setting {
        key: "trusted_proxies",
        flag: "trusted-proxies",
        environment: "STEPFLOW_LB_TRUSTED_PROXIES",
        default: "private",
        accepted: TrustedProxies::ACCEPTED,
        help: "Clients that are believed in X-Forwarded-*; private is loopback, private and link-local",
        group: "Identity",
        apply: |draft, text| {
            let parsed = TrustedProxies::parse(text);
            draft.config.trusted_proxies =
                parsed.map_err(|error| Refusal::Because(error.to_string()))?;
            Ok(())
        },
    },
    Setting {
        key: "via",
        flag: "via",
        environment: "STEPFLOW_LB_VIA",
        default: "on",
        accepted: "on or off",
        help: "Whether requests say in Via that they came through here, which ends loops",
        group: "Identity",
        apply: |draft, text| {
            let words = [("on", true), ("off", false)];
            units::word(text, &words).map(|via| draft.config.via = via)
        },
    },
    Setting {
        key: "health_check",
        flag: "health-check",
        environment: "STEPFLOW_LB_HEALTH_CHECK",
        default: "http",
        accepted: "http, tcp or off",
        help: "What a health check does; off takes every discovered backend as healthy",
        group: "Health checks",
        apply: |draft, text| {
            let words =
                [("http", HealthCheck::Http), ("tcp", HealthCheck::Tcp), ("off", HealthCheck::Off)];
            units::word(text, &words).map(|check| draft.config.health.check = check)
        },
    },
    Setting {
        key: "health_check_path",
        flag: "health-check-path",
        environment: "STEPFLOW_LB_HEALTH_CHECK_PATH",
        default: "/health",
        accepted: PATH_OR_OFF,
        help: "Path of the health checks; off takes every discovered backend as healthy",
        group: "Health checks",
        apply: |draft, text| units::target_or_off(text).map(|p| draft.config.health.path = p),
    },
    Setting {
        key: "health_check_status",
        flag: "health-check-status",
        environment: "STEPFLOW_LB_HEALTH_CHECK_STATUS",
        default: "200-299",
        accepted: StatusSet::ACCEPTED,
        help: "Statuses of a healthy backend",
        group: "Health checks",
        apply: |draft, text| {
            draft.config.health.statuses = StatusSet::parse(text)
                .map_err(|(entry, e)| Refusal::Because(format!("{} in {entry:?}", e.reason())))?;
            Ok(())
        },
    },
    Setting {
        key: "health_check_body",
        flag: "health-check-body",
        environment: "STEPFLOW_LB_HEALTH_CHECK_BODY",
        default: "",
        accepted: "a text of up to 256 octets",
        help: "Text that the body of a healthy backend holds",
        group: "Health checks",
        apply: |draft, text| {
            if text.len() > HEALTH_BODY_BYTES_MAX {
                return Err(Refusal::Form);
            }
            text.clone_into(&mut draft.config.health.body);
            Ok(())
        },
    },
    Setting {
        key: "health_check_host",
        flag: "health-check-host",
        environment: "STEPFLOW_LB_HEALTH_CHECK_HOST",
        default: "",
        accepted: "a host, alone or with a port",
        help: "Host header of the health checks; unless set, the backend's address",
        group: "Health checks",
        apply: |draft, text| units::host(text).map(|host| draft.config.health.host = Some(host)),
    },
    Setting {
        key: "health_check_port_number",
        flag: "health-check-port-number",
        environment: "STEPFLOW_LB_HEALTH_CHECK_PORT_NUMBER",
        default: "same",
        accepted: "same, or a port from 1 to 65535",
        help: "Port of the health checks; same is the backend's own",
        group: "Health checks",
        apply: |draft, text| {
            let same = text.eq_ignore_ascii_case("same");
            draft.config.health.port = if same { None } else { Some(units::port(text)?) };
            Ok(())
        },
    },
    Setting {
        key: "health_check_interval",
        flag: "health-check-interval",
        environment: "HEALTH_CHECK_INTERVAL",
        default: "10",
        accepted: POSITIVE_DURATION,
        help: "Pause between two checks of one backend",
        group: "Health checks",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.health.interval = d)
        },
    },
    Setting {
        key: "health_check_interval_failing",
        flag: "health-check-interval-failing",
        environment: "STEPFLOW_LB_HEALTH_CHECK_INTERVAL_FAILING",
        default: "off",
        accepted: DURATION_OR_OFF,
        help: "Shorter pause behind a failed check, until one passes or the backend is out",
        group: "Health checks",
        apply: |draft, text| units::duration_or_off(text).map(|d| draft.interval_failing = d),
    },
    Setting {
        key: "health_check_timeout",
        flag: "health-check-timeout",
        environment: "HEALTH_CHECK_TIMEOUT",
        default: "5",
        accepted: POSITIVE_DURATION,
        help: "Longest that a check may take, connect included",
        group: "Health checks",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.health.timeout = d)
        },
    },
    Setting {
        key: "max_failures",
        flag: "max-failures",
        environment: "MAX_FAILURES",
        default: "3",
        accepted: "a whole number from 1 up",
        help: "Failed checks in a row that take a backend out of balancing",
        group: "Health checks",
        apply: |draft, text| {
            units::positive_u32(text).map(|n| draft.config.health.max_failures = n)
        },
    },
    Setting {
        key: "healthy_threshold",
        flag: "healthy-threshold",
        environment: "STEPFLOW_LB_HEALTHY_THRESHOLD",
        default: "1",
        accepted: "a whole number from 1 up",
        help: "Successful checks in a row that bring a backend back",
        group: "Health checks",
        apply: |draft, text| {
            units::positive_u32(text).map(|n| draft.config.health.healthy_threshold = n)
        },
    },
    Setting {
        key: "outlier_detection",
        flag: "outlier-detection",
        environment: "STEPFLOW_LB_OUTLIER_DETECTION",
        default: "on",
        accepted: "on or off",
        help: "Whether backends that fail requests are ejected for a while",
        group: "Outlier detection",
        apply: |draft, text| {
            let words = [("on", true), ("off", false)];
            units::word(text, &words).map(|on| draft.config.outliers.is_on = on)
        },
    },
    Setting {
        key: "outlier_faults",
        flag: "outlier-faults",
        environment: "STEPFLOW_LB_OUTLIER_FAULTS",
        default: "connect,reset,timeout",
        accepted: FaultSet::ACCEPTED,
        help: "What counts as a failure of a backend",
        group: "Outlier detection",
        apply: |draft, text| {
            draft.config.outliers.faults = FaultSet::parse(text)
                .map_err(|(entry, reason)| Refusal::Because(format!("{reason} in {entry:?}")))?;
            Ok(())
        },
    },
    Setting {
        key: "outlier_consecutive_failures",
        flag: "outlier-consecutive-failures",
        environment: "STEPFLOW_LB_OUTLIER_CONSECUTIVE_FAILURES",
        default: "5",
        accepted: "a whole number from 1 to 4294967295, or off",
        help: "Failures in a row that eject a backend",
        group: "Outlier detection",
        apply: |draft, text| {
            units::or_off(text, units::positive_u32)
                .map(|n| draft.config.outliers.failures_in_a_row = n)
        },
    },
    Setting {
        key: "outlier_connect_failures",
        flag: "outlier-connect-failures",
        environment: "STEPFLOW_LB_OUTLIER_CONNECT_FAILURES",
        default: "3",
        accepted: "a whole number from 1 to 4294967295, or off",
        help: "Failed connects in a row that eject a backend",
        group: "Outlier detection",
        apply: |draft, text| {
            units::or_off(text, units::positive_u32)
                .map(|n| draft.config.outliers.connect_failures_in_a_row = n)
        },
    },
    Setting {
        key: "outlier_failure_rate",
        flag: "outlier-failure-rate",
        environment: "STEPFLOW_LB_OUTLIER_FAILURE_RATE",
        default: "50%",
        accepted: "a share from 1% to 100%, or off",
        help: "Share of failures within outlier_window that ejects a backend",
        group: "Outlier detection",
        apply: |draft, text| {
            units::or_off(text, |text| units::share(text, 1))
                .map(|share| draft.config.outliers.failure_percent = share)
        },
    },
    Setting {
        key: "outlier_window",
        flag: "outlier-window",
        environment: "STEPFLOW_LB_OUTLIER_WINDOW",
        default: "10s",
        accepted: POSITIVE_DURATION,
        help: "Time over which the share of failures is taken",
        group: "Outlier detection",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.outliers.window = d)
        },
    },
    Setting {
        key: "outlier_requests_min",
        flag: "outlier-requests-min",
        environment: "STEPFLOW_LB_OUTLIER_REQUESTS_MIN",
        default: "20",
        accepted: "a whole number from 1 up",
        help: "Requests within outlier_window below which their share of failures says nothing",
        group: "Outlier detection",
        apply: |draft, text| {
            units::positive_u32(text).map(|n| draft.config.outliers.requests_min = n)
        },
    },
    Setting {
        key: "outlier_silent_streams",
        flag: "outlier-silent-streams",
        environment: "STEPFLOW_LB_OUTLIER_SILENT_STREAMS",
        default: "off",
        accepted: "a share from 50% to 100%, or off",
        help: "Share of its event streams, silent at the same time, that ejects a backend",
        group: "Outlier detection",
        apply: |draft, text| {
            units::or_off(text, |text| units::share(text, SILENT_PERCENT_LEAST))
                .map(|share| draft.config.outliers.silent_percent = share)
        },
    },
    Setting {
        key: "outlier_silence_min",
        flag: "outlier-silence-min",
        environment: "STEPFLOW_LB_OUTLIER_SILENCE_MIN",
        default: "5s",
        accepted: POSITIVE_DURATION,
        help: "Shortest silence of an event stream that counts for outlier_silent_streams",
        group: "Outlier detection",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.outliers.silence_min = d)
        },
    },
    Setting {
        key: "outlier_ejection_time",
        flag: "outlier-ejection-time",
        environment: "STEPFLOW_LB_OUTLIER_EJECTION_TIME",
        default: "30s",
        accepted: POSITIVE_DURATION,
        help: "Length of a first ejection; each further one is longer by as much",
        group: "Outlier detection",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.outliers.ejection = d)
        },
    },
    Setting {
        key: "outlier_ejection_time_max",
        flag: "outlier-ejection-time-max",
        environment: "STEPFLOW_LB_OUTLIER_EJECTION_TIME_MAX",
        default: "5m",
        accepted: POSITIVE_DURATION,
        help: "Longest ejection",
        group: "Outlier detection",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.outliers.ejection_max = d)
        },
    },
    Setting {
        key: "outlier_ejected_max",
        flag: "outlier-ejected-max",
        environment: "STEPFLOW_LB_OUTLIER_EJECTED_MAX",
        default: "50%",
        accepted: PERCENT,
        help: "Share of the backends that may be ejected at once; of two or more one always may",
        group: "Outlier detection",
        apply: |draft, text| {
            units::share(text, 0).map(|share| draft.config.outliers.ejected_percent_max = share)
        },
    },
    Setting {
        key: "outlier_return",
        flag: "outlier-return",
        environment: "STEPFLOW_LB_OUTLIER_RETURN",
        default: "time",
        accepted: "time or probe",
        help: "What ends an ejection: its time alone, or also a health check that passes",
        group: "Outlier detection",
        apply: |draft, text| {
            let words = [("time", EjectionEnds::Time), ("probe", EjectionEnds::Probe)];
            units::word(text, &words).map(|ends| draft.config.outliers.ends = ends)
        },
    },
    Setting {
        key: "panic_threshold",
        flag: "panic-threshold",
        environment: "STEPFLOW_LB_PANIC_THRESHOLD",
        default: "50%",
        accepted: PERCENT,
        help: "Share of backends below which panic_scope is overlooked; 0% is never",
        group: "Outlier detection",
        apply: |draft, text| {
            units::share(text, 0).map(|share| draft.config.panic.threshold_percent = share)
        },
    },
    Setting {
        key: "panic_scope",
        flag: "panic-scope",
        environment: "STEPFLOW_LB_PANIC_SCOPE",
        default: "ejections",
        accepted: "ejections or everything",
        help: "What is overlooked when too few backends are left: ejections, or health checks as well",
        group: "Outlier detection",
        apply: |draft, text| {
            let words =
                [("ejections", PanicScope::Ejections), ("everything", PanicScope::Everything)];
            units::word(text, &words).map(|scope| draft.config.panic.scope = scope)
        },
    },
    Setting {
        key: "dns_servers",
        flag: "dns-servers",
        environment: "STEPFLOW_LB_DNS_SERVERS",
        default: "",
        accepted: SERVER_LIST,
        help: "Name servers to ask instead of those in /etc/resolv.conf",
        group: "Name resolution",
        apply: |draft, text| units::server_list(text).map(|s| draft.config.dns.servers = s),
    },
    Setting {
        key: "dns_refresh_min",
        flag: "dns-refresh-min",
        environment: "STEPFLOW_LB_DNS_REFRESH_MIN",
        default: "1s",
        accepted: POSITIVE_DURATION,
        help: "Shortest pause between two look-ups of a name, whatever its TTL",
        group: "Name resolution",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.dns.refresh_min = d)
        },
    },
    Setting {
        key: "dns_refresh_max",
        flag: "dns-refresh-max",
        environment: "STEPFLOW_LB_DNS_REFRESH_MAX",
        default: "30s",
        accepted: POSITIVE_DURATION,
        help: "Longest pause between two look-ups of a name, whatever its TTL",
        group: "Name resolution",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.dns.refresh_max = d)
        },
    },
    Setting {
        key: "connect_timeout",
        flag: "connect-timeout",
        environment: "STEPFLOW_LB_CONNECT_TIMEOUT",
        default: "2s",
        accepted: POSITIVE_DURATION,
        help: "Longest wait for a connection to a backend",
        group: "Timeouts",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.timeouts.connect = d)
        },
    },
    Setting {
        key: "request_head_timeout",
        flag: "request-head-timeout",
        environment: "STEPFLOW_LB_REQUEST_HEAD_TIMEOUT",
        default: "30s",
        accepted: POSITIVE_DURATION,
        help: "Longest time from the first octet of a request head to its last",
        group: "Timeouts",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.timeouts.request_head = d)
        },
    },
    Setting {
        key: "keep_alive_timeout",
        flag: "keep-alive-timeout",
        environment: "STEPFLOW_LB_KEEP_ALIVE_TIMEOUT",
        default: "75s",
        accepted: POSITIVE_DURATION,
        help: "How long a client connection may be idle between two requests",
        group: "Timeouts",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.timeouts.keep_alive = d)
        },
    },
    Setting {
        key: "body_timeout",
        flag: "body-timeout",
        environment: "STEPFLOW_LB_BODY_TIMEOUT",
        default: "60s",
        accepted: POSITIVE_DURATION,
        help: "Longest time without progress on a body; event streams may be silent for ever",
        group: "Timeouts",
        apply: |draft, text| units::positive_duration(text).map(|d| draft.config.timeouts.body = d),
    },
    Setting {
        key: "client_stall_timeout",
        flag: "client-stall-timeout",
        environment: "STEPFLOW_LB_CLIENT_STALL_TIMEOUT",
        default: "5m",
        accepted: DURATION_OR_OFF,
        help: "How long the client of an event stream may take nothing of what waits for it",
        group: "Timeouts",
        apply: |draft, text| {
            units::duration_or_off(text).map(|d| draft.config.timeouts.client_stall = d)
        },
    },
    Setting {
        key: "response_head_timeout",
        flag: "response-head-timeout",
        environment: "STEPFLOW_LB_RESPONSE_HEAD_TIMEOUT",
        default: "off",
        accepted: DURATION_OR_OFF,
        help: "Longest wait for a response head once the request is sent; then 504",
        group: "Timeouts",
        apply: |draft, text| {
            units::duration_or_off(text).map(|d| draft.config.timeouts.response_head = d)
        },
    },
    Setting {
        key: "tunnel_idle_timeout",
        flag: "tunnel-idle-timeout",
        environment: "STEPFLOW_LB_TUNNEL_IDLE_TIMEOUT",
        default: "1h",
        accepted: DURATION_OR_OFF,
        help: "How long an upgraded connection may carry nothing in either direction",
        group: "Timeouts",
        apply: |draft, text| {
            units::duration_or_off(text).map(|d| draft.config.timeouts.tunnel_idle = d)
        },
    },
    Setting {
        key: "upstream_idle_timeout",
        flag: "upstream-idle-timeout",
        environment: "STEPFLOW_LB_UPSTREAM_IDLE_TIMEOUT",
        default: "4s",
        accepted: POSITIVE_DURATION,
        help: "How long an unused backend connection is kept; less than the backends keep it",
        group: "Timeouts",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.timeouts.upstream_idle = d)
        },
    },
    Setting {
        key: "drain_grace",
        flag: "drain-grace",
        environment: "STEPFLOW_LB_DRAIN_GRACE",
        default: "3s",
        accepted: DURATION,
        help: "Time after SIGTERM in which connections are still accepted",
        group: "Timeouts",
        apply: |draft, text| units::duration(text).map(|d| draft.config.timeouts.drain_grace = d),
    },
    Setting {
        key: "drain_timeout",
        flag: "drain-timeout",
        environment: "STEPFLOW_LB_DRAIN_TIMEOUT",
        default: "30s",
        accepted: DURATION,
        help: "Time that running exchanges get after that to finish",
        group: "Timeouts",
        apply: |draft, text| units::duration(text).map(|d| draft.config.timeouts.drain = d),
    },
    Setting {
        key: "backend_drain_timeout",
        flag: "backend-drain-timeout",
        environment: "STEPFLOW_LB_BACKEND_DRAIN_TIMEOUT",
        default: "off",
        accepted: DURATION_OR_OFF,
        help: "How long things may run on a backend that drains; off lets them finish",
        group: "Timeouts",
        apply: |draft, text| {
            units::duration_or_off(text).map(|d| draft.config.timeouts.backend_drain = d)
        },
    },
    Setting {
        key: "request_head_bytes_max",
        flag: "request-head-bytes-max",
        environment: "STEPFLOW_LB_REQUEST_HEAD_BYTES_MAX",
        default: "32KiB",
        accepted: "a size such as 32768, 32KiB or 32kB; from 1KiB to 1MiB",
        help: "Longest request head; a longer one is answered with 431",
        group: "Limits",
        apply: |draft, text| {
            head_bytes(text).map(|n| draft.config.limits.request_head_bytes_max = n)
        },
    },
    Setting {
        key: "request_line_bytes_max",
        flag: "request-line-bytes-max",
        environment: "STEPFLOW_LB_REQUEST_LINE_BYTES_MAX",
        default: "16KiB",
        accepted: "a size such as 16384, 16KiB or 16kB; from 64 to 1MiB",
        help: "Longest request line; a longer one is answered with 414",
        group: "Limits",
        apply: |draft, text| {
            units::bytes(text, 64, 1024 * 1024)
                .map(|n| draft.config.limits.request_line_bytes_max = n)
        },
    },
    Setting {
        key: "request_body_bytes_max",
        flag: "request-body-bytes-max",
        environment: "STEPFLOW_LB_REQUEST_BODY_BYTES_MAX",
        default: "off",
        accepted: "a size such as 1048576, 10MiB or 1GiB; from 0 to 1024GiB; or off",
        help: "Most content in a request; more is answered with 413",
        group: "Limits",
        apply: |draft, text| {
            let bytes = units::or_off(text, |text| units::bytes(text, 0, BODY_BYTES_MAX))?;
            draft.config.limits.request_body_bytes_max = bytes.map(|bytes| bytes as u64);
            Ok(())
        },
    },
    Setting {
        key: "response_head_bytes_max",
        flag: "response-head-bytes-max",
        environment: "STEPFLOW_LB_RESPONSE_HEAD_BYTES_MAX",
        default: "64KiB",
        accepted: "a size such as 65536, 64KiB or 64kB; from 1KiB to 1MiB",
        help: "Longest response head; a longer one becomes a 502",
        group: "Limits",
        apply: |draft, text| {
            head_bytes(text).map(|n| draft.config.limits.response_head_bytes_max = n)
        },
    },
    Setting {
        key: "fields_max",
        flag: "fields-max",
        environment: "STEPFLOW_LB_FIELDS_MAX",
        default: "100",
        accepted: "a whole number from 1 to 256",
        help: "Most header fields in a head",
        group: "Limits",
        apply: |draft, text| units::count(text, 1, 256).map(|n| draft.config.limits.fields_max = n),
    },
    Setting {
        key: "heads_in_reading_max",
        flag: "heads-in-reading-max",
        environment: "STEPFLOW_LB_HEADS_IN_READING_MAX",
        default: "4096",
        accepted: "a whole number from 1 to 4294967295",
        help: "Clients in the middle of a request head; one more costs the slowest its place",
        group: "Limits",
        apply: |draft, text| {
            units::positive_u32(text).map(|n| draft.config.limits.heads_in_reading_max = n)
        },
    },
    Setting {
        key: "request_head_rate_min",
        flag: "request-head-rate-min",
        environment: "STEPFLOW_LB_REQUEST_HEAD_RATE_MIN",
        default: "off",
        accepted: "a whole number of octets per second from 1 to 4294967295, or off",
        help: "Slowest pace of a request head after its first 2 seconds",
        group: "Limits",
        apply: |draft, text| {
            units::or_off(text, units::positive_u32)
                .map(|n| draft.config.limits.request_head_rate_min = n)
        },
    },
    Setting {
        key: "requests_per_connection_max",
        flag: "requests-per-connection-max",
        environment: "STEPFLOW_LB_REQUESTS_PER_CONNECTION_MAX",
        default: "off",
        accepted: "a whole number from 1 to 4294967295, or off",
        help: "Requests after which a client connection is closed",
        group: "Limits",
        apply: |draft, text| {
            units::or_off(text, units::positive_u32)
                .map(|n| draft.config.limits.requests_per_connection_max = n)
        },
    },
    Setting {
        key: "connections_max",
        flag: "connections-max",
        environment: "STEPFLOW_LB_CONNECTIONS_MAX",
        default: "auto",
        accepted: "auto or a whole number from 1 to 4294967295",
        help: "Client connections at once; auto is what the descriptor limit allows",
        group: "Limits",
        apply: |draft, text| {
            let auto = text.eq_ignore_ascii_case("auto");
            let count = if auto { None } else { Some(units::positive_u32(text)?) };
            draft.config.limits.connections_max = count;
            Ok(())
        },
    },
    Setting {
        key: "connections_per_client_max",
        flag: "connections-per-client-max",
        environment: "STEPFLOW_LB_CONNECTIONS_PER_CLIENT_MAX",
        default: "off",
        accepted: "a whole number from 1 to 4294967295, or off",
        help: "Connections of one client address at once",
        group: "Limits",
        apply: |draft, text| {
            units::or_off(text, units::positive_u32)
                .map(|n| draft.config.limits.connections_per_client_max = n)
        },
    },
    Setting {
        key: "chunk_extension_bytes_max",
        flag: "chunk-extension-bytes-max",
        environment: "STEPFLOW_LB_CHUNK_EXTENSION_BYTES_MAX",
        default: "4KiB",
        accepted: "a size such as 4096, 4KiB or 4kB; from 0 to 1MiB",
        help: "Most octets of chunk extensions in a body; more is 400, or a 502 for a response",
        group: "Limits",
        apply: |draft, text| {
            body_part(text).map(|n| draft.config.limits.chunk_extension_bytes_max = n)
        },
    },
    Setting {
        key: "trailer_bytes_max",
        flag: "trailer-bytes-max",
        environment: "STEPFLOW_LB_TRAILER_BYTES_MAX",
        default: "8KiB",
        accepted: "a size such as 8192, 8KiB or 8kB; from 0 to 1MiB",
        help: "Longest trailer section of a body; more is 431, or a 502 for a response",
        group: "Limits",
        apply: |draft, text| body_part(text).map(|n| draft.config.limits.trailer_bytes_max = n),
    },
    Setting {
        key: "pipelined_bytes_max",
        flag: "pipelined-bytes-max",
        environment: "STEPFLOW_LB_PIPELINED_BYTES_MAX",
        default: "4KiB",
        accepted: "a size such as 4096, 4KiB or 4kB; from 0 to 1MiB",
        help: "Octets of coming requests taken in while one is served; more wait with the client",
        group: "Limits",
        apply: |draft, text| {
            let bytes = units::bytes(text, 0, 1024 * 1024)?;
            draft.config.limits.pipelined_bytes_max = bytes;
            Ok(())
        },
    },
    Setting {
        key: "idle_connections_per_backend_max",
        flag: "idle-connections-per-backend-max",
        environment: "STEPFLOW_LB_IDLE_CONNECTIONS_PER_BACKEND_MAX",
        default: "128",
        accepted: "a whole number from 0 to 65536; 0 opens a connection for every request",
        help: "Unused connections that one worker keeps to one backend",
        group: "Limits",
        apply: |draft, text| {
            let count = units::count(text, 0, 65_536)?;
            draft.config.limits.idle_connections_per_backend_max = count;
            Ok(())
        },
    },
    Setting {
        key: "retry_budget",
        flag: "retry-budget",
        environment: "STEPFLOW_LB_RETRY_BUDGET",
        default: "20%",
        accepted: "a share from 0% to 100%, or off",
        help: "Most retries, as a share of the requests of the last 10 seconds",
        group: "Resilience",
        apply: |draft, text| {
            units::or_off(text, units::percent)
                .map(|share| draft.config.resilience.retry_budget_percent = share)
        },
    },
    Setting {
        key: "retries_per_second_min",
        flag: "retries-per-second-min",
        environment: "STEPFLOW_LB_RETRIES_PER_SECOND_MIN",
        default: "10",
        accepted: "a whole number from 0 to 1000000",
        help: "Retries that the budget allows however little traffic there is",
        group: "Resilience",
        apply: |draft, text| {
            units::count_u32(text, 0, 1_000_000)
                .map(|n| draft.config.resilience.retries_per_second_min = n)
        },
    },
    Setting {
        key: "requests_per_backend_max",
        flag: "requests-per-backend-max",
        environment: "STEPFLOW_LB_REQUESTS_PER_BACKEND_MAX",
        default: "off",
        accepted: "a whole number from 1 to 4294967295, or off",
        help: "Requests and streams running on one backend at once",
        group: "Resilience",
        apply: |draft, text| {
            units::or_off(text, units::positive_u32)
                .map(|n| draft.config.resilience.requests_per_backend_max = n)
        },
    },
    Setting {
        key: "connections_per_backend_max",
        flag: "connections-per-backend-max",
        environment: "STEPFLOW_LB_CONNECTIONS_PER_BACKEND_MAX",
        default: "off",
        accepted: "a whole number from 1 to 4294967295, or off",
        help: "Connections open to one backend at once, unused ones included",
        group: "Resilience",
        apply: |draft, text| {
            units::or_off(text, units::positive_u32)
                .map(|n| draft.config.resilience.connections_per_backend_max = n)
        },
    },
    Setting {
        key: "queue_max",
        flag: "queue-max",
        environment: "STEPFLOW_LB_QUEUE_MAX",
        default: "1024",
        accepted: "a whole number from 0 to 1000000; 0 lets nobody wait",
        help: "Requests that may wait while every backend is full; one more is answered with 503",
        group: "Resilience",
        apply: |draft, text| {
            units::count_u32(text, 0, 1_000_000).map(|n| draft.config.resilience.queue_max = n)
        },
    },
    Setting {
        key: "queue_timeout",
        flag: "queue-timeout",
        environment: "STEPFLOW_LB_QUEUE_TIMEOUT",
        default: "5s",
        accepted: POSITIVE_DURATION,
        help: "Longest wait for a backend that is not full; then 503",
        group: "Resilience",
        apply: |draft, text| {
            units::positive_duration(text).map(|d| draft.config.resilience.queue_timeout = d)
        },
    },
    Setting {
        key: "stream_heartbeat",
        flag: "stream-heartbeat",
        environment: "STEPFLOW_LB_STREAM_HEARTBEAT",
        default: "off",
        accepted: DURATION_OR_OFF,
        help: "Silence of an event stream after which its client gets a comment",
        group: "Event streams",
        apply: |draft, text| {
            units::duration_or_off(text).map(|d| draft.config.streams.heartbeat = d)
        },
    },
    Setting {
        key: "stream_resume",
        flag: "stream-resume",
        environment: "STEPFLOW_LB_STREAM_RESUME",
        default: "off",
        accepted: "on or off",
        help: "Whether a GET stream whose backend dies goes on from another, with Last-Event-ID",
        group: "Event streams",
        apply: |draft, text| {
            let words = [("on", true), ("off", false)];
            units::word(text, &words).map(|resume| draft.config.streams.resume = resume)
        },
    },
    Setting {
        key: "stream_drain_rate",
        flag: "stream-drain-rate",
        environment: "STEPFLOW_LB_STREAM_DRAIN_RATE",
        default: "100",
        accepted: "a number of streams per second from 1 to 1000000",
        help: "Event streams that are ended per second while something drains",
        group: "Event streams",
        apply: |draft, text| {
            let rate = units::count_u32(text, 1, 1_000_000)?;
            draft.config.streams.drain_rate = NonZeroU32::new(rate).ok_or(Refusal::Form)?;
            Ok(())
        },
    },
    Setting {
        key: "stream_retry_min",
        flag: "stream-retry-min",
        environment: "STEPFLOW_LB_STREAM_RETRY_MIN",
        default: "1s",
        accepted: DURATION,
        help: "Shortest wait that the client of a stream is told when we end it",
        group: "Event streams",
        apply: |draft, text| units::duration(text).map(|d| draft.config.streams.retry_min = d),
    },
    Setting {
        key: "stream_retry_max",
        flag: "stream-retry-max",
        environment: "STEPFLOW_LB_STREAM_RETRY_MAX",
        default: "5s",
        accepted: DURATION,
        help: "Longest wait that the client of a stream is told when we end it",
        group: "Event streams",
        apply: |draft, text| units::duration(text).map(|d| draft.config.streams.retry_max = d),
    },
    Setting {
        key: "stream_age_max",
        flag: "stream-age-max",
        environment: "STEPFLOW_LB_STREAM_AGE_MAX",
        default: "off",
        accepted: DURATION_OR_OFF,
        help: "Age, within a tenth, at which a stream is ended whose client connects again",
        group: "Event streams",
        apply: |draft, text| units::duration_or_off(text).map(|d| draft.config.streams.age_max = d),
    },
    Setting {
        key: "stream_stall",
        flag: "stream-stall",
        environment: "STEPFLOW_LB_STREAM_STALL",
        default: "10s",
        accepted: DURATION_OR_OFF,
        help: "A silence in an event stream that is longer is counted as a stall",
        group: "Event streams",
        apply: |draft, text| units::duration_or_off(text).map(|d| draft.config.streams.stall = d),
    },
    Setting {
        key: "access_log",
        flag: "access-log",
        environment: "STEPFLOW_LB_ACCESS_LOG",
        default: "failures",
        accepted: "off, failures or all",
        help: "Which exchanges get a line in the log",
        group: "Logs",
        apply: |draft, text| {
            let words = [
                ("off", AccessLog::Off),
                ("failures", AccessLog::Failures),
                ("all", AccessLog::All),
            ];
            units::word(text, &words).map(|access| draft.config.log.access = access)
        },
    },
    Setting {
        key: "log_level",
        flag: "log-level",
        environment: "STEPFLOW_LOG_LEVEL",
        default: "info",
        accepted: "off, error, warn, info, debug or trace",
        help: "Level of the balancer's own lines, access log included",
        group: "Logs",
        apply: |draft, text| log_level(text).map(|level| draft.log_level = level),
    },
    Setting {
        key: "other_log_level",
        flag: "other-log-level",
        environment: "STEPFLOW_OTHER_LOG_LEVEL",
        default: "warn",
        accepted: "off, error, warn, info, debug or trace",
        help: "Level of the libraries' lines; unless set, never above log_level",
        group: "Logs",
        apply: |draft, text| log_level(text).map(|level| draft.other_log_level = level),
    },
    Setting {
        key: "rust_log",
        flag: "rust-log",
        environment: "RUST_LOG",
        default: "",
        accepted: "directives such as info or warn,stepflow_load_balancer=debug,access=off",
        help: "Replaces the two levels",
        group: "Logs",
        apply: |draft, text| {
            // Taken for part of a target, it would select nothing, without a word.
            if text.contains('[') {
                return Err(Refusal::Because("there are no spans to select by".to_owned()));
            }
            text.parse::<tracing_subscriber::filter::Targets>()
                .map_err(|error| Refusal::Because(error.to_string()))?;
            draft.rust_log = Some(text.to_owned());
            Ok(())
        },
    },
    Setting {
        key: "log_destination",
        flag: "log-destination",
        environment: "STEPFLOW_LOG_DESTINATION",
        default: "stdout",
        accepted: "stdout or file",
        help: "Where log lines go",
        group: "Logs",
        apply: |draft, text| {
            if text.eq_ignore_ascii_case("otlp") {
                let reason = "this balancer exports no OTLP";
                return Err(Refusal::Because(reason.to_owned()));
            }
            let words = [("stdout", false), ("file", true)];
            units::word(text, &words).map(|to_file| draft.log_to_file = to_file)
        },
    },
    Setting {
        key: "log_format",
        flag: "log-format",
        environment: "STEPFLOW_LOG_FORMAT",
        default: "text",
        accepted: "text or json",
        help: "How log lines look",
        group: "Logs",
        apply: |draft, text| {
            let words = [("text", LogFormat::Text), ("json", LogFormat::Json)];
            units::word(text, &words).map(|format| draft.config.log.format = format)
        },
    },
    Setting {
        key: "log_file",
        flag: "log-file",
        environment: "STEPFLOW_LOG_FILE",
        default: "",
        accepted: "the path of a file, which is appended to",
        help: "File for the log lines; implies log_destination = file",
        group: "Logs",
        apply: |draft, text| {
            draft.log_file = Some(PathBuf::from(text));
            Ok(())
        },
    },
];

/// Options of the original balancer that its manifests may set and that mean nothing here, as
/// flag and variable.
pub(super) const INERT: [(&str, &str); 3] = [
    ("trace-enabled", "STEPFLOW_TRACE_ENABLED"),
    ("metrics-enabled", "STEPFLOW_METRICS_ENABLED"),
    ("otlp-endpoint", "STEPFLOW_OTLP_ENDPOINT"),
];

/// Largest body limit. Whoever wants more wants none.
const BODY_BYTES_MAX: usize = 1024 * 1024 * 1024 * 1024;

/// Longest text that is looked for in a health body.
const HEALTH_BODY_BYTES_MAX: usize = 256;

/// Shortest and longest times after which a session no longer counts: the clock of the count has
/// seconds, and half a year of them.
const SESSION_IDLE_MIN: Duration = Duration::from_secs(1);
const SESSION_IDLE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Keys that are tried one after the other at each session.
const SESSION_KEYS_MAX: usize = 8;

const HEADER_NAME: &str = "the name of a header that HTTP itself has no use for";
const SESSION_KEYS: &str = "1 to 8 keys of 64 hexadecimal digits each, with commas between";

/// A name that the balancer reads in every request. Those that frame, route or describe a message
/// have a meaning already.
fn header_name(text: &str) -> Parsed<Box<str>> {
    const TAKEN: [&str; 18] = [
        "accept",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "max-forwards",
        "mcp-protocol-version",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    ];
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let name = text.to_ascii_lowercase();
    let is_taken = TAKEN.contains(&name.as_str())
        || ["proxy-", "x-forwarded-"].iter().any(|prefix| name.starts_with(prefix));
    match text.len() <= 256 && text.bytes().all(is_token) && !is_taken {
        true => Ok(text.into()),
        false => Err(Refusal::Form),
    }
}

fn session_keys<'a>(texts: impl Iterator<Item = &'a str>) -> Parsed<Vec<session::Key>> {
    let mut keys = Vec::new();
    for (number, text) in (1..).zip(texts) {
        let because = |reason: &str| Refusal::Because(format!("key {number}: {reason}"));
        let key = session::Key::parse(text).map_err(|error| because(error.reason()))?;
        if keys.contains(&key) {
            return Err(because("the same key stands there before"));
        }
        keys.push(key);
    }
    match keys.len() {
        1..=SESSION_KEYS_MAX => Ok(keys),
        number => Err(Refusal::Because(format!("these are {number} keys"))),
    }
}

fn head_bytes(text: &str) -> Parsed<usize> {
    units::bytes(text, 1024, 1024 * 1024)
}

/// What a chunked body holds besides its content. 0 allows none.
fn body_part(text: &str) -> Parsed<u32> {
    let bytes = units::bytes(text, 0, 1024 * 1024)?;
    u32::try_from(bytes).map_err(|_| Refusal::Form)
}

fn log_level(text: &str) -> Parsed<&'static str> {
    units::word(text, &LOG_LEVELS.map(|level| (level, level)))
}

impl Setting {
    /// Its value is in no message and no listing.
    pub fn is_secret(&self) -> bool {
        self.key == "session_keys"
    }

    /// The option with this key.
    pub(super) fn by_key(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }
}

// Rows are told apart by their key.
impl PartialEq for Setting {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Setting {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_follow_the_rules_and_are_unique() {
        let contract = [
            "UPSTREAM_SERVICE",
            "BIND_ADDRESS",
            "METRICS_ADDRESS",
            "HEALTH_CHECK_INTERVAL",
            "HEALTH_CHECK_TIMEOUT",
            "MAX_FAILURES",
            "RUST_LOG",
            "STEPFLOW_LOG_LEVEL",
            "STEPFLOW_OTHER_LOG_LEVEL",
            "STEPFLOW_LOG_DESTINATION",
            "STEPFLOW_LOG_FORMAT",
            "STEPFLOW_LOG_FILE",
        ];
        let mut seen = HashSet::new();
        for setting in SETTINGS {
            assert_eq!(setting.flag, setting.key.replace('_', "-"));
            let ours = format!("{OUR_PREFIX}{}", setting.key.to_ascii_uppercase());
            assert!(
                contract.contains(&setting.environment) || setting.environment == ours,
                "{}",
                setting.environment
            );
            assert!(seen.insert(setting.key) && seen.insert(setting.environment));
        }
        for name in contract {
            assert!(seen.contains(name), "{name} has no row");
        }
    }

    #[test]
    fn every_default_is_accepted_by_its_own_row() {
        for setting in SETTINGS.iter().filter(|setting| !setting.default.is_empty()) {
            assert_eq!((setting.apply)(&mut Draft::blank(), setting.default), Ok(()));
        }
    }
}

//! The configuration as an operator meets it: who wins, what is refused and in which words, and
//! that the manual says what the program does.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

use std::{collections::BTreeMap, path::Path, time::Duration};

use proptest::prelude::*;
use stepflow_load_balancer::{
    config::{
        AccessLog, Algorithm, Balancing, Config, ConfigError, Dns, Effective, EjectionEnds,
        Environment, File, Flags, HealthCheck, HealthChecks, Invocation, IoDriver, Limits, Log,
        LogDestination, LogFormat, Outliers, PanicMode, PanicScope, Resilience, Resolution,
        SETTINGS, Source, Sources, Streams, Timeouts,
    },
    model::{FaultSet, HashOn, StatusSet, TrustedProxies},
    session::{self, CookieSpec, Key, LostRules},
};

/// Two keys for sessions.
const KEYS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f,\
                    ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// What somebody said, in the three places.
#[derive(Clone, Copy, Default)]
struct Said<'a> {
    flags: &'a [&'a str],
    environment: &'a [(&'a str, &'a str)],
    file: Option<&'a str>,
}

fn sources(said: Said<'_>) -> Sources<'static> {
    let line = ["stepflow-load-balancer"].iter().chain(said.flags);
    Sources {
        flags: Invocation::parse(line).expect("a command line of the right form").flags,
        environment: Environment::from_pairs(said.environment.iter().copied()),
        file: said.file.map(|text| File::parse(Path::new("lb.toml"), text)),
        demo: &[],
    }
}

fn resolve(said: Said<'_>) -> Result<Resolution, ConfigError> {
    sources(said).resolve()
}

fn problems(said: Said<'_>) -> Vec<String> {
    let error = resolve(said).expect_err("should be refused");
    error.problems.iter().map(ToString::to_string).collect()
}

/// What is said besides an upstream, which is always needed.
fn with_upstream<'a>(environment: &'a [(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [("UPSTREAM_SERVICE", "127.0.0.1:1")].into_iter().chain(environment.iter().copied()).collect()
}

fn config(environment: &[(&str, &str)]) -> Config {
    let environment = with_upstream(environment);
    resolve(Said { environment: &environment, ..Said::default() }).expect("valid").config
}

fn refusals(environment: &[(&str, &str)]) -> Vec<String> {
    let environment = with_upstream(environment);
    problems(Said { environment: &environment, ..Said::default() })
}

#[test]
fn defaults_are_the_documented_ones() {
    let seconds = Duration::from_secs;
    let want = Config {
        upstream: stepflow_load_balancer::model::Target::parse_list("127.0.0.1:1").unwrap(),
        bind_address: "0.0.0.0:8080".parse().unwrap(),
        metrics_address: "0.0.0.0:9090".parse().unwrap(),
        admin_address: "127.0.0.1:9901".parse().ok(),
        workers: None,
        worker_imbalance_max: 32.try_into().ok(),
        io_driver: IoDriver::Auto,
        algorithm: Algorithm::LeastConnections,
        balancing: Balancing {
            hash_on: HashOn::ClientAddress,
            hash_balance_percent: None,
            slow_start: None,
            response_time_half_life: seconds(5),
        },
        explain: false,
        trusted_proxies: TrustedProxies::parse("private").unwrap(),
        via: true,
        initialize_replay: true,
        sessions: session::Settings {
            instance_header: "Stepflow-Instance-Id".into(),
            header: None,
            cookie: None,
            application_cookie: None,
            keys: Vec::new(),
            lost: LostRules::default(),
            idle: seconds(30 * 60),
        },
        health: HealthChecks {
            check: HealthCheck::Http,
            path: Some("/health".to_owned()),
            statuses: StatusSet::parse("200-299").unwrap(),
            body: String::new(),
            host: None,
            port: None,
            interval: seconds(10),
            interval_failing: seconds(10),
            timeout: seconds(5),
            max_failures: 3.try_into().unwrap(),
            healthy_threshold: 1.try_into().unwrap(),
        },
        outliers: Outliers {
            is_on: true,
            faults: FaultSet::parse("connect,reset,timeout").unwrap(),
            failures_in_a_row: 5.try_into().ok(),
            connect_failures_in_a_row: 3.try_into().ok(),
            failure_percent: Some(50),
            window: seconds(10),
            requests_min: 20.try_into().unwrap(),
            silent_percent: None,
            silence_min: seconds(5),
            ejection: seconds(30),
            ejection_max: seconds(300),
            ejected_percent_max: 50,
            ends: EjectionEnds::Time,
        },
        panic: PanicMode { threshold_percent: 50, scope: PanicScope::Ejections },
        dns: Dns { servers: Vec::new(), refresh_min: seconds(1), refresh_max: seconds(30) },
        health_endpoint: Some("/health".to_owned()),
        limits: Limits {
            request_head_bytes_max: 32_768,
            request_line_bytes_max: 16_384,
            request_body_bytes_max: None,
            response_head_bytes_max: 65_536,
            fields_max: 100,
            heads_in_reading_max: 4096.try_into().unwrap(),
            request_head_rate_min: None,
            requests_per_connection_max: None,
            connections_max: None,
            connections_per_client_max: None,
            chunk_extension_bytes_max: 4096,
            trailer_bytes_max: 8192,
            pipelined_bytes_max: 4096,
            idle_connections_per_backend_max: 128,
        },
        resilience: Resilience {
            retry_budget_percent: Some(20),
            retries_per_second_min: 10,
            connections_per_backend_max: None,
            requests_per_backend_max: None,
            queue_max: 1024,
            queue_timeout: seconds(5),
        },
        timeouts: Timeouts {
            request_head: seconds(30),
            keep_alive: seconds(75),
            connect: seconds(2),
            body: seconds(60),
            client_stall: Some(seconds(300)),
            response_head: None,
            tunnel_idle: Some(seconds(3600)),
            upstream_idle: seconds(4),
            instance_retry: seconds(2),
            drain_grace: seconds(3),
            drain: seconds(30),
            backend_drain: None,
        },
        streams: Streams {
            heartbeat: None,
            resume: false,
            drain_rate: 100.try_into().unwrap(),
            retry_min: seconds(1),
            retry_max: seconds(5),
            age_max: None,
            stall: Some(seconds(10)),
        },
        log: Log {
            filter: "warn,stepflow_load_balancer=info,access=info".to_owned(),
            destination: LogDestination::Stdout,
            format: LogFormat::Text,
            access: AccessLog::Failures,
        },
    };
    assert_eq!(config(&[]), want);
}

#[test]
fn every_option_reaches_the_configuration() {
    let environment = [
        ("UPSTREAM_SERVICE", "workers:80,srv:_http._tcp.x"),
        ("BIND_ADDRESS", "127.0.0.1:1"),
        ("METRICS_ADDRESS", "[::1]:2"),
        ("STEPFLOW_LB_ADMIN_ADDRESS", "off"),
        ("HEALTH_CHECK_INTERVAL", "1"),
        ("HEALTH_CHECK_TIMEOUT", "2"),
        ("MAX_FAILURES", "4"),
        ("STEPFLOW_LB_WORKERS", "5"),
        ("STEPFLOW_LB_WORKER_IMBALANCE_MAX", "off"),
        ("STEPFLOW_LB_IO_DRIVER", "epoll"),
        ("STEPFLOW_LB_ALGORITHM", "consistent_hash"),
        ("STEPFLOW_LB_HASH_ON", "cookie:SID"),
        ("STEPFLOW_LB_HASH_BALANCE_PERCENT", "125"),
        ("STEPFLOW_LB_SLOW_START", "23"),
        ("STEPFLOW_LB_RESPONSE_TIME_HALF_LIFE", "24"),
        ("STEPFLOW_LB_EXPLAIN", "on"),
        ("STEPFLOW_LB_TRUSTED_PROXIES", "192.0.2.0/24, ::1"),
        ("STEPFLOW_LB_VIA", "off"),
        ("STEPFLOW_LB_INITIALIZE_REPLAY", "off"),
        ("STEPFLOW_LB_INSTANCE_HEADER", "X-Pod"),
        ("STEPFLOW_LB_SESSION_HEADER", "Mcp-Session-Id"),
        ("STEPFLOW_LB_SESSION_COOKIE", "lb; Secure"),
        ("STEPFLOW_LB_SESSION_APPLICATION_COOKIE", "SID"),
        ("STEPFLOW_LB_SESSION_KEYS", KEYS),
        // The other place for keys: `keys_come_from_one_place_and_are_never_shown`.
        ("STEPFLOW_LB_SESSION_KEYS_FILE", ""),
        ("STEPFLOW_LB_SESSION_LOST", "header=503"),
        ("STEPFLOW_LB_SESSION_IDLE", "23"),
        ("STEPFLOW_LB_HEALTH_CHECK_PATH", "/h?full"),
        ("STEPFLOW_LB_HEALTHY_THRESHOLD", "6"),
        ("STEPFLOW_LB_HEALTH_CHECK", "tcp"),
        ("STEPFLOW_LB_HEALTH_CHECK_STATUS", "200, 401-403"),
        ("STEPFLOW_LB_HEALTH_CHECK_BODY", "all well"),
        ("STEPFLOW_LB_HEALTH_CHECK_HOST", "health.internal"),
        ("STEPFLOW_LB_HEALTH_CHECK_PORT_NUMBER", "8081"),
        ("STEPFLOW_LB_HEALTH_CHECK_INTERVAL_FAILING", "500ms"),
        ("STEPFLOW_LB_OUTLIER_DETECTION", "off"),
        ("STEPFLOW_LB_OUTLIER_FAULTS", "reset,500-502"),
        ("STEPFLOW_LB_OUTLIER_CONSECUTIVE_FAILURES", "23"),
        ("STEPFLOW_LB_OUTLIER_CONNECT_FAILURES", "off"),
        ("STEPFLOW_LB_OUTLIER_FAILURE_RATE", "24%"),
        ("STEPFLOW_LB_OUTLIER_WINDOW", "25"),
        ("STEPFLOW_LB_OUTLIER_REQUESTS_MIN", "26"),
        ("STEPFLOW_LB_OUTLIER_SILENT_STREAMS", "75%"),
        ("STEPFLOW_LB_OUTLIER_SILENCE_MIN", "2500ms"),
        ("STEPFLOW_LB_OUTLIER_EJECTION_TIME", "27"),
        ("STEPFLOW_LB_OUTLIER_EJECTION_TIME_MAX", "28"),
        ("STEPFLOW_LB_OUTLIER_EJECTED_MAX", "29%"),
        ("STEPFLOW_LB_OUTLIER_RETURN", "probe"),
        ("STEPFLOW_LB_PANIC_THRESHOLD", "30%"),
        ("STEPFLOW_LB_PANIC_SCOPE", "everything"),
        ("STEPFLOW_LB_HEALTH_ENDPOINT", "off"),
        ("STEPFLOW_LB_DNS_SERVERS", "10.0.0.1"),
        ("STEPFLOW_LB_DNS_REFRESH_MIN", "7"),
        ("STEPFLOW_LB_DNS_REFRESH_MAX", "8"),
        ("STEPFLOW_LB_CONNECT_TIMEOUT", "9"),
        ("STEPFLOW_LB_REQUEST_HEAD_TIMEOUT", "10"),
        ("STEPFLOW_LB_KEEP_ALIVE_TIMEOUT", "11"),
        ("STEPFLOW_LB_BODY_TIMEOUT", "12"),
        ("STEPFLOW_LB_CLIENT_STALL_TIMEOUT", "20"),
        ("STEPFLOW_LB_STREAM_STALL", "33"),
        ("STEPFLOW_LB_RESPONSE_HEAD_TIMEOUT", "16"),
        ("STEPFLOW_LB_TUNNEL_IDLE_TIMEOUT", "off"),
        ("STEPFLOW_LB_UPSTREAM_IDLE_TIMEOUT", "13"),
        ("STEPFLOW_LB_INSTANCE_RETRY", "0"),
        ("STEPFLOW_LB_DRAIN_GRACE", "14"),
        ("STEPFLOW_LB_DRAIN_TIMEOUT", "15"),
        ("STEPFLOW_LB_BACKEND_DRAIN_TIMEOUT", "28"),
        ("STEPFLOW_LB_REQUEST_HEAD_BYTES_MAX", "2kB"),
        ("STEPFLOW_LB_REQUEST_LINE_BYTES_MAX", "64"),
        ("STEPFLOW_LB_REQUEST_BODY_BYTES_MAX", "3GiB"),
        ("STEPFLOW_LB_RESPONSE_HEAD_BYTES_MAX", "2KiB"),
        ("STEPFLOW_LB_FIELDS_MAX", "256"),
        ("STEPFLOW_LB_HEADS_IN_READING_MAX", "21"),
        ("STEPFLOW_LB_REQUEST_HEAD_RATE_MIN", "22"),
        ("STEPFLOW_LB_REQUESTS_PER_CONNECTION_MAX", "17"),
        ("STEPFLOW_LB_CONNECTIONS_MAX", "18"),
        ("STEPFLOW_LB_CONNECTIONS_PER_CLIENT_MAX", "19"),
        ("STEPFLOW_LB_CHUNK_EXTENSION_BYTES_MAX", "0"),
        ("STEPFLOW_LB_TRAILER_BYTES_MAX", "1MiB"),
        ("STEPFLOW_LB_PIPELINED_BYTES_MAX", "3kB"),
        ("STEPFLOW_LB_IDLE_CONNECTIONS_PER_BACKEND_MAX", "0"),
        ("STEPFLOW_LB_RETRY_BUDGET", "100%"),
        ("STEPFLOW_LB_RETRIES_PER_SECOND_MIN", "0"),
        ("STEPFLOW_LB_CONNECTIONS_PER_BACKEND_MAX", "23"),
        ("STEPFLOW_LB_REQUESTS_PER_BACKEND_MAX", "24"),
        ("STEPFLOW_LB_QUEUE_MAX", "25"),
        ("STEPFLOW_LB_QUEUE_TIMEOUT", "26"),
        ("STEPFLOW_LB_STREAM_HEARTBEAT", "27"),
        ("STEPFLOW_LB_STREAM_RESUME", "on"),
        ("STEPFLOW_LB_STREAM_DRAIN_RATE", "29"),
        ("STEPFLOW_LB_STREAM_RETRY_MIN", "30"),
        ("STEPFLOW_LB_STREAM_RETRY_MAX", "31"),
        ("STEPFLOW_LB_STREAM_AGE_MAX", "32"),
        ("STEPFLOW_LB_ACCESS_LOG", "all"),
        ("RUST_LOG", "trace,access=off"),
        ("STEPFLOW_LOG_LEVEL", "debug"),
        ("STEPFLOW_OTHER_LOG_LEVEL", "error"),
        ("STEPFLOW_LOG_DESTINATION", "file"),
        ("STEPFLOW_LOG_FORMAT", "json"),
        ("STEPFLOW_LOG_FILE", "/tmp/lb.log"),
    ];
    assert_eq!(environment.len(), SETTINGS.len(), "an option is not covered here");
    let seconds = Duration::from_secs;
    let want = Config {
        upstream: stepflow_load_balancer::model::Target::parse_list(environment[0].1).unwrap(),
        bind_address: "127.0.0.1:1".parse().unwrap(),
        metrics_address: "[::1]:2".parse().unwrap(),
        admin_address: None,
        workers: 5.try_into().ok(),
        worker_imbalance_max: None,
        io_driver: IoDriver::Epoll,
        algorithm: Algorithm::ConsistentHash,
        balancing: Balancing {
            hash_on: HashOn::Cookie("SID".to_owned()),
            hash_balance_percent: 125.try_into().ok(),
            slow_start: Some(seconds(23)),
            response_time_half_life: seconds(24),
        },
        explain: true,
        trusted_proxies: TrustedProxies::parse("192.0.2.0/24,::1").unwrap(),
        via: false,
        initialize_replay: false,
        sessions: session::Settings {
            instance_header: "X-Pod".into(),
            header: Some("Mcp-Session-Id".into()),
            cookie: CookieSpec::parse("lb; Secure").ok(),
            application_cookie: Some("SID".into()),
            keys: KEYS.split(',').map(|key| Key::parse(key).unwrap()).collect(),
            lost: LostRules::parse("header=503").unwrap(),
            idle: seconds(23),
        },
        health: HealthChecks {
            check: HealthCheck::Tcp,
            path: Some("/h?full".to_owned()),
            statuses: StatusSet::parse("200,401,402,403").unwrap(),
            body: "all well".to_owned(),
            host: Some("health.internal".to_owned()),
            port: Some(8081),
            interval: seconds(1),
            interval_failing: Duration::from_millis(500),
            timeout: seconds(2),
            max_failures: 4.try_into().unwrap(),
            healthy_threshold: 6.try_into().unwrap(),
        },
        outliers: Outliers {
            is_on: false,
            faults: FaultSet::parse("500,501,502,reset").unwrap(),
            failures_in_a_row: 23.try_into().ok(),
            connect_failures_in_a_row: None,
            failure_percent: Some(24),
            window: seconds(25),
            requests_min: 26.try_into().unwrap(),
            silent_percent: Some(75),
            silence_min: Duration::from_millis(2500),
            ejection: seconds(27),
            ejection_max: seconds(28),
            ejected_percent_max: 29,
            ends: EjectionEnds::Probe,
        },
        panic: PanicMode { threshold_percent: 30, scope: PanicScope::Everything },
        dns: Dns {
            servers: vec!["10.0.0.1:53".parse().unwrap()],
            refresh_min: seconds(7),
            refresh_max: seconds(8),
        },
        health_endpoint: None,
        limits: Limits {
            request_head_bytes_max: 2000,
            request_line_bytes_max: 64,
            request_body_bytes_max: Some(3 << 30),
            response_head_bytes_max: 2048,
            fields_max: 256,
            heads_in_reading_max: 21.try_into().unwrap(),
            request_head_rate_min: 22.try_into().ok(),
            requests_per_connection_max: 17.try_into().ok(),
            connections_max: 18.try_into().ok(),
            connections_per_client_max: 19.try_into().ok(),
            chunk_extension_bytes_max: 0,
            trailer_bytes_max: 1_048_576,
            pipelined_bytes_max: 3000,
            idle_connections_per_backend_max: 0,
        },
        resilience: Resilience {
            retry_budget_percent: Some(100),
            retries_per_second_min: 0,
            connections_per_backend_max: 23.try_into().ok(),
            requests_per_backend_max: 24.try_into().ok(),
            queue_max: 25,
            queue_timeout: seconds(26),
        },
        timeouts: Timeouts {
            connect: seconds(9),
            request_head: seconds(10),
            keep_alive: seconds(11),
            body: seconds(12),
            client_stall: Some(seconds(20)),
            response_head: Some(seconds(16)),
            tunnel_idle: None,
            upstream_idle: seconds(13),
            instance_retry: Duration::ZERO,
            drain_grace: seconds(14),
            drain: seconds(15),
            backend_drain: Some(seconds(28)),
        },
        streams: Streams {
            heartbeat: Some(seconds(27)),
            resume: true,
            drain_rate: 29.try_into().unwrap(),
            retry_min: seconds(30),
            retry_max: seconds(31),
            age_max: Some(seconds(32)),
            stall: Some(seconds(33)),
        },
        log: Log {
            filter: "trace,access=off".to_owned(),
            destination: LogDestination::File("/tmp/lb.log".into()),
            format: LogFormat::Json,
            access: AccessLog::All,
        },
    };
    assert_eq!(config(&environment), want);
    // The same through flags and through the file.
    let text = |(name, text): &(&str, &str)| {
        let setting = SETTINGS.iter().find(|s| s.environment == *name).expect("a known name");
        (setting, (*text).to_owned())
    };
    let flags: Vec<String> =
        environment.iter().map(text).map(|(s, text)| format!("--{}={text}", s.flag)).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert_eq!(resolve(Said { flags: &flags, ..Said::default() }).unwrap().config, want);
    let file: String =
        environment.iter().map(text).map(|(s, text)| format!("{} = '{text}'\n", s.key)).collect();
    let said = Said { file: Some(&file), ..Said::default() };
    assert_eq!(resolve(said).unwrap().config, want);
}

proptest! {
    /// Whoever of the four speaks with the highest rank is obeyed, whatever the others say.
    #[test]
    fn flag_wins_over_environment_over_file_over_default(
        flag in prop::option::of(1_u32..1000),
        environment in prop::option::of(1_u32..1000),
        file in prop::option::of(1_u32..1000),
    ) {
        let flag_text = flag.map(|n| format!("--max-failures={n}"));
        let environment_text = environment.map(|n| n.to_string()).unwrap_or_default();
        let file_text = file.map(|n| format!("max_failures = {n}"));
        let environment_pair = [("MAX_FAILURES", environment_text.as_str())];
        let said = Said {
            flags: &flag_text.iter().map(String::as_str).collect::<Vec<_>>(),
            environment: &with_upstream(&environment_pair),
            file: file_text.as_deref(),
        };
        let got = resolve(said).unwrap();
        let want = flag.or(environment).or(file).unwrap_or(3);
        prop_assert_eq!(got.config.health.max_failures.get(), want);
        let source = &got.written.iter().find(|w| w.setting.key == "max_failures").unwrap().source;
        prop_assert_eq!(matches!(source, Source::Flag), flag.is_some());
        prop_assert_eq!(
            matches!(source, Source::Default),
            flag.or(environment).or(file).is_none()
        );
    }
}

#[test]
fn every_wrong_value_is_reported_with_key_value_source_and_what_is_accepted() {
    let said = Said {
        flags: &["--bind-address", "localhost:8080"],
        environment: &[("HEALTH_CHECK_INTERVAL", "abc"), ("UPSTREAM_SERVICE", "a:1,workers")],
        file: Some("\nfields_max = 1000\nworkres = 2\n"),
    };
    let want = [
        "unknown key workres (file lb.toml:3); did you mean workers?",
        "invalid value \"a:1,workers\" for upstream_service (environment UPSTREAM_SERVICE): the \
         port is missing in \"workers\"; expected name:port or ip:port, with ;weight=1 to 65535 \
         behind or without, or srv:_service._proto.name; each with ;health_port=1 to 65535 behind \
         or without; or several of these with commas between",
        "invalid value \"localhost:8080\" for bind_address (flag --bind-address): expected \
         ip:port such as 0.0.0.0:8080 or [::]:8080",
        "invalid value \"abc\" for health_check_interval (environment HEALTH_CHECK_INTERVAL): \
         expected a duration such as 10, 500ms, 1m; greater than 0",
        "invalid value \"1000\" for fields_max (file lb.toml:2): expected a whole number from 1 \
         to 256",
    ];
    assert_eq!(problems(said), want);
}

#[test]
fn each_option_refuses_what_it_cannot_mean() {
    let cases = [
        ("BIND_ADDRESS", "8080"),
        ("METRICS_ADDRESS", "0.0.0.0:99999"),
        ("STEPFLOW_LB_HEALTH_ENDPOINT", "health"),
        ("STEPFLOW_LB_WORKERS", "0"),
        ("STEPFLOW_LB_WORKERS", "1025"),
        ("STEPFLOW_LB_IO_DRIVER", "uring"),
        ("UPSTREAM_SERVICE", "127.0.0.1:80;weight=0"),
        ("STEPFLOW_LB_ALGORITHM", "least"),
        ("STEPFLOW_LB_HASH_ON", "header"),
        ("STEPFLOW_LB_HASH_ON", "cookie:a b"),
        ("STEPFLOW_LB_HASH_BALANCE_PERCENT", "99"),
        ("STEPFLOW_LB_SLOW_START", "0"),
        ("STEPFLOW_LB_RESPONSE_TIME_HALF_LIFE", "0"),
        ("STEPFLOW_LB_EXPLAIN", "always"),
        ("STEPFLOW_LB_TRUSTED_PROXIES", "private,localhost"),
        ("STEPFLOW_LB_TRUSTED_PROXIES", "10.1.2.3/8"),
        ("STEPFLOW_LB_TRUSTED_PROXIES", "none,10.0.0.1"),
        ("STEPFLOW_LB_VIA", "1.1 lb"),
        ("STEPFLOW_LB_HEALTH_CHECK_PATH", "/a b"),
        ("STEPFLOW_LB_HEALTH_CHECK", "grpc"),
        ("STEPFLOW_LB_HEALTH_CHECK_STATUS", "2xx"),
        ("STEPFLOW_LB_HEALTH_CHECK_STATUS", "299-200"),
        ("STEPFLOW_LB_HEALTH_CHECK_HOST", "a b"),
        ("STEPFLOW_LB_HEALTH_CHECK_PORT_NUMBER", "0"),
        ("STEPFLOW_LB_HEALTH_CHECK_INTERVAL_FAILING", "0"),
        ("STEPFLOW_LB_OUTLIER_DETECTION", "auto"),
        ("STEPFLOW_LB_OUTLIER_FAULTS", "connect,5xx"),
        ("STEPFLOW_LB_OUTLIER_CONSECUTIVE_FAILURES", "0"),
        ("STEPFLOW_LB_OUTLIER_CONNECT_FAILURES", "-1"),
        ("STEPFLOW_LB_OUTLIER_FAILURE_RATE", "0%"),
        ("STEPFLOW_LB_OUTLIER_WINDOW", "off"),
        ("STEPFLOW_LB_OUTLIER_REQUESTS_MIN", "0"),
        ("STEPFLOW_LB_OUTLIER_SILENT_STREAMS", "49%"),
        ("STEPFLOW_LB_OUTLIER_SILENCE_MIN", "0"),
        ("STEPFLOW_LB_OUTLIER_EJECTION_TIME", "0"),
        ("STEPFLOW_LB_OUTLIER_EJECTION_TIME_MAX", "never"),
        ("STEPFLOW_LB_OUTLIER_EJECTED_MAX", "101%"),
        ("STEPFLOW_LB_OUTLIER_RETURN", "never"),
        ("STEPFLOW_LB_PANIC_THRESHOLD", "0.5"),
        ("STEPFLOW_LB_PANIC_SCOPE", "all"),
        ("HEALTH_CHECK_INTERVAL", "0"),
        ("HEALTH_CHECK_TIMEOUT", "-1"),
        ("MAX_FAILURES", "0"),
        ("MAX_FAILURES", "4294967296"),
        ("STEPFLOW_LB_HEALTHY_THRESHOLD", "1.5"),
        ("STEPFLOW_LB_DNS_SERVERS", "dns.local"),
        ("STEPFLOW_LB_CONNECT_TIMEOUT", "0ms"),
        ("STEPFLOW_LB_CLIENT_STALL_TIMEOUT", "0"),
        ("STEPFLOW_LB_STREAM_STALL", "0"),
        ("STEPFLOW_LB_RESPONSE_HEAD_TIMEOUT", "0"),
        ("STEPFLOW_LB_TUNNEL_IDLE_TIMEOUT", "never"),
        ("STEPFLOW_LB_DRAIN_TIMEOUT", "soon"),
        ("STEPFLOW_LB_REQUEST_HEAD_BYTES_MAX", "100"),
        ("STEPFLOW_LB_REQUEST_LINE_BYTES_MAX", "63"),
        ("STEPFLOW_LB_REQUEST_BODY_BYTES_MAX", "2000GiB"),
        ("STEPFLOW_LB_RESPONSE_HEAD_BYTES_MAX", "2MiB"),
        ("STEPFLOW_LB_FIELDS_MAX", "257"),
        ("STEPFLOW_LB_HEADS_IN_READING_MAX", "off"),
        ("STEPFLOW_LB_REQUEST_HEAD_RATE_MIN", "1KiB"),
        ("STEPFLOW_LB_REQUESTS_PER_CONNECTION_MAX", "0"),
        ("STEPFLOW_LB_CONNECTIONS_MAX", "off"),
        ("STEPFLOW_LB_CONNECTIONS_PER_CLIENT_MAX", "0"),
        ("STEPFLOW_LB_CHUNK_EXTENSION_BYTES_MAX", "2MiB"),
        ("STEPFLOW_LB_TRAILER_BYTES_MAX", "-1"),
        ("STEPFLOW_LB_PIPELINED_BYTES_MAX", "off"),
        ("STEPFLOW_LB_IDLE_CONNECTIONS_PER_BACKEND_MAX", "many"),
        ("STEPFLOW_LB_ACCESS_LOG", "true"),
        ("STEPFLOW_LOG_LEVEL", "verbose"),
        ("STEPFLOW_OTHER_LOG_LEVEL", "1"),
        ("RUST_LOG", "stepflow_load_balancer=loud"),
        ("RUST_LOG", "info,access[span]=off"),
        ("STEPFLOW_LOG_DESTINATION", "otlp"),
        ("STEPFLOW_LOG_FORMAT", "xml"),
    ];
    for (name, value) in cases {
        let lines = refusals(&[(name, value)]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        let names_all =
            [name, &format!("{value:?}"), "expected "].iter().all(|p| lines[0].contains(p));
        assert!(names_all, "{lines:?}");
    }
}

#[test]
fn an_algorithm_may_be_called_by_its_other_name() {
    let named = |word| config(&[("STEPFLOW_LB_ALGORITHM", word)]).algorithm;
    assert_eq!(named("weighted_least_connections"), Algorithm::LeastConnections);
    assert_eq!(named("weighted_round_robin"), Algorithm::RoundRobin);
    assert_eq!(named("Round_Robin"), Algorithm::RoundRobin);
}

#[test]
fn values_that_contradict_each_other_are_shown_together() {
    let lines = refusals(&[
        ("METRICS_ADDRESS", "127.0.0.1:8080"),
        ("STEPFLOW_LB_DNS_REFRESH_MIN", "1m"),
        ("STEPFLOW_LB_STREAM_RETRY_MIN", "6s"),
        ("STEPFLOW_LB_HEALTH_CHECK_INTERVAL_FAILING", "11s"),
        ("STEPFLOW_LB_OUTLIER_EJECTION_TIME", "6m"),
        ("STEPFLOW_LB_OUTLIER_RETURN", "probe"),
        ("STEPFLOW_LB_HEALTH_CHECK_PATH", "off"),
        ("STEPFLOW_LOG_DESTINATION", "file"),
        ("STEPFLOW_LB_ALGORITHM", "ip_hash"),
        ("STEPFLOW_LB_HASH_ON", "path"),
    ]);
    let want = [
        "bind_address = \"0.0.0.0:8080\" (default) and metrics_address = \"127.0.0.1:8080\" \
         (environment METRICS_ADDRESS) do not go together: both listen on the same port of the \
         same address",
        "dns_refresh_min = \"1m\" (environment STEPFLOW_LB_DNS_REFRESH_MIN) and dns_refresh_max \
         = \"30s\" (default) do not go together: the shortest pause is longer than the longest",
        "stream_retry_min = \"6s\" (environment STEPFLOW_LB_STREAM_RETRY_MIN) and stream_retry_max \
         = \"5s\" (default) do not go together: the shortest wait is longer than the longest",
        "health_check_interval_failing = \"11s\" (environment \
         STEPFLOW_LB_HEALTH_CHECK_INTERVAL_FAILING) and health_check_interval = \"10\" (default) \
         do not go together: the pause behind a failed check is longer than the usual one",
        "outlier_ejection_time = \"6m\" (environment STEPFLOW_LB_OUTLIER_EJECTION_TIME) and \
         outlier_ejection_time_max = \"5m\" (default) do not go together: the first ejection is \
         longer than the longest",
        "outlier_return = \"probe\" (environment STEPFLOW_LB_OUTLIER_RETURN) and \
         health_check_path = \"off\" (environment STEPFLOW_LB_HEALTH_CHECK_PATH) do not go \
         together: without health checks none can end an ejection",
        "algorithm = \"ip_hash\" (environment STEPFLOW_LB_ALGORITHM) and hash_on = \"path\" \
         (environment STEPFLOW_LB_HASH_ON) do not go together: ip_hash hashes the client's \
         address; consistent_hash hashes what hash_on says",
        "log_destination = \"file\" (environment STEPFLOW_LOG_DESTINATION) and log_file = \"\" \
         (default) do not go together: log lines that go to a file need its path",
    ];
    assert_eq!(lines, want);
}

#[test]
fn without_an_upstream_it_says_what_to_set() {
    for said in [
        Said::default(),
        Said { environment: &[("UPSTREAM_SERVICE", " ")], ..Said::default() },
        Said { file: Some("upstream_service = ''"), ..Said::default() },
    ] {
        let lines = problems(said);
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in ["UPSTREAM_SERVICE", "--upstream-service", "name:port", "demo"] {
            assert!(lines[0].contains(part), "{part} in {lines:?}");
        }
    }
}

#[test]
fn a_broken_file_is_not_blamed_for_what_it_might_have_said() {
    let lines = problems(Said { file: Some("upstream_service = 'a:1"), ..Said::default() });
    assert!(lines.iter().all(|line| line.starts_with("file lb.toml:1 is not TOML")), "{lines:?}");
}

#[test]
fn a_variable_that_is_not_utf_8_is_named() {
    use std::{
        ffi::{OsStr, OsString},
        os::unix::ffi::OsStrExt,
    };
    let pairs = [
        (OsString::from("UPSTREAM_SERVICE"), OsString::from("a:1")),
        (OsString::from("BIND_ADDRESS"), OsStr::from_bytes(b"\xff:80").to_owned()),
    ];
    let error = Config::resolve(Flags::default(), Environment::from_pairs(pairs), None)
        .expect_err("should be refused");
    let want = "invalid value \"\\xFF:80\" for bind_address (environment BIND_ADDRESS): it is not \
                UTF-8; expected ip:port such as 0.0.0.0:8080 or [::]:8080";
    assert_eq!(error.to_string(), want);
}

#[test]
fn silence_is_silence_and_directives_are_taken_literally() {
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("STEPFLOW_LOG_LEVEL", "off")], "off,stepflow_load_balancer=off,access=off"),
        (&[("STEPFLOW_LOG_LEVEL", "Debug")], "warn,stepflow_load_balancer=debug,access=debug"),
        (
            &[("STEPFLOW_LOG_LEVEL", "error"), ("STEPFLOW_OTHER_LOG_LEVEL", "info")],
            "info,stepflow_load_balancer=error,access=error",
        ),
        (&[("RUST_LOG", "debug"), ("STEPFLOW_LOG_LEVEL", "off")], "debug"),
        (&[("RUST_LOG", "")], "warn,stepflow_load_balancer=info,access=info"),
    ];
    for (environment, want) in cases {
        assert_eq!(config(environment).log.filter, *want, "{environment:?}");
    }
}

#[test]
fn a_log_file_implies_its_destination() {
    let said = Said {
        flags: &["--log-file", "/tmp/x.log", "--upstream-service", "a:1"],
        ..Said::default()
    };
    let resolution = resolve(said).unwrap();
    assert_eq!(resolution.config.log.destination, LogDestination::File("/tmp/x.log".into()));
    let text = Effective(&resolution).to_string();
    assert!(text.contains("log_destination = \"file\" # implied by log_file"), "{text}");
}

#[test]
fn options_of_the_original_that_mean_nothing_here_are_accepted_with_a_warning() {
    let environment = with_upstream(&[
        ("STEPFLOW_TRACE_ENABLED", "true"),
        ("STEPFLOW_METRICS_ENABLED", "false"),
        ("STEPFLOW_LB_WROKERS", "2"),
    ]);
    let flags = ["--otlp-endpoint=http://collector:4317"];
    let resolution =
        resolve(Said { flags: &flags, environment: &environment, file: None }).unwrap();
    let warnings: Vec<String> = resolution.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].starts_with("--otlp-endpoint is accepted for compatibility"));
    assert!(warnings[1].ends_with("did you mean STEPFLOW_LB_WORKERS?"), "{warnings:?}");
    assert!(warnings[2].starts_with("STEPFLOW_TRACE_ENABLED is accepted"), "{warnings:?}");
}

#[test]
fn the_demo_has_defaults_that_anybody_may_overrule_but_for_its_backends() {
    let demo = [("upstream_service", "127.0.0.1:5".to_owned()), ("access_log", "all".to_owned())];
    let environment =
        [("STEPFLOW_LB_ACCESS_LOG", "off"), ("UPSTREAM_SERVICE", "workers.default.svc:8080")];
    let said = Said { environment: &environment, ..Said::default() };
    let resolution = Sources { demo: &demo, ..sources(said) }.resolve().unwrap();
    assert_eq!(resolution.config.upstream[0].to_string(), "127.0.0.1:5");
    assert_eq!(resolution.config.log.access, AccessLog::Off);
    let warnings: Vec<_> = resolution.warnings.iter().map(ToString::to_string).collect();
    let want = "upstream_service = \"workers.default.svc:8080\" (environment UPSTREAM_SERVICE) is \
                ignored: the demo balances over backends of its own";
    assert_eq!(warnings, [want]);
    let alone = Sources { demo: &demo, ..Sources::default() }.resolve().unwrap();
    assert_eq!((alone.config.log.access, alone.warnings.len()), (AccessLog::All, 0));
}

#[test]
fn the_effective_configuration_names_its_sources_and_can_be_read_back() {
    let said = Said {
        flags: &["--workers=2", "--log-file", "/tmp/a \"b\"\\c.log"],
        environment: &[("HEALTH_CHECK_INTERVAL", "500ms"), ("UPSTREAM_SERVICE", "a:1")],
        file: Some("# comment\nfields_max = 50"),
    };
    let resolution = resolve(said).unwrap();
    let text = Effective(&resolution).to_string();
    for line in [
        "health_check_interval = \"500ms\" # from environment HEALTH_CHECK_INTERVAL",
        "workers = 2 # from flag --workers",
        "fields_max = 50 # from file lb.toml:2",
        "max_failures = 3 # default",
        "dns_servers = \"\" # default",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    let again = resolve(Said { file: Some(&text), ..Said::default() }).unwrap();
    assert_eq!(again.config, resolution.config);
}

#[test]
fn keys_come_from_one_place_and_are_never_shown() {
    let path = std::env::temp_dir().join(format!("session-keys-{}", std::process::id()));
    let file = path.to_str().unwrap();
    let pair = [("STEPFLOW_LB_SESSION_KEYS_FILE", file)];
    let said = |text: &str| {
        std::fs::write(&path, text).unwrap();
        with_upstream(&pair)
    };
    let keys = KEYS.replace(',', "\r\n\n# the old one\n  ");
    let resolution = resolve(Said { environment: &said(&keys), ..Said::default() }).unwrap();
    let inline = config(&[("STEPFLOW_LB_SESSION_KEYS", KEYS)]);
    assert_eq!(resolution.config.sessions.keys, inline.sessions.keys);
    assert_eq!(inline.sessions.keys.len(), 2);
    // Both places at once.
    let both = [("STEPFLOW_LB_SESSION_KEYS", KEYS), ("STEPFLOW_LB_SESSION_KEYS_FILE", file)];
    let both = refusals(&both);
    assert!(both[0].contains("keys come from one place") && both.len() == 1, "{both:?}");
    // What is wrong is said without the key.
    let digits = &KEYS[..64];
    let wrong = [
        (digits[1..].to_owned(), "key 1: a key is 64 hexadecimal digits"),
        (format!("{digits},{digits}"), "key 2: the same key stands there before"),
        ("5a".repeat(32), "key 1: a key that repeats one octet is no secret"),
        (",".to_owned(), "these are 0 keys"),
    ];
    for (text, reason) in &wrong {
        let refused = refusals(&[("STEPFLOW_LB_SESSION_KEYS", text)]);
        let line = &refused[0];
        assert!(line.contains(reason) && line.contains("STEPFLOW_LB_SESSION_KEYS"), "{line}");
        assert!(!line.contains("5a5a") && !line.contains("0a0b0c"), "{line}");
        let in_file = said(&text.replace(',', "\n"));
        let in_file = problems(Said { environment: &in_file, ..Said::default() });
        assert!(in_file[0].contains(reason) && in_file[0].contains(file), "{in_file:?}");
        assert!(!in_file[0].contains("5a5a") && !in_file[0].contains("0a0b0c"), "{in_file:?}");
    }
    std::fs::remove_file(&path).unwrap();
    let missing = refusals(&[("STEPFLOW_LB_SESSION_KEYS_FILE", file)]);
    assert!(missing[0].contains("cannot read it: No such file"), "{missing:?}");
    // Nor does the listing show one.
    let environment = with_upstream(&[("STEPFLOW_LB_SESSION_KEYS", KEYS)]);
    let resolution = resolve(Said { environment: &environment, ..Said::default() }).unwrap();
    let listing = format!("{}{:?}", Effective(&resolution), resolution);
    assert!(!listing.contains("0a0b0c"), "{listing}");
    let line = "# session_keys is set and not shown # from environment STEPFLOW_LB_SESSION_KEYS";
    assert!(listing.contains(line), "{listing}");
}

#[test]
fn sessions_that_cannot_be_told_apart_are_refused() {
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("STEPFLOW_LB_SESSION_HEADER", "stepflow-instance-ID")], "one header cannot hold both"),
        (
            &[
                ("STEPFLOW_LB_SESSION_COOKIE", "sid; Path=/"),
                ("STEPFLOW_LB_SESSION_APPLICATION_COOKIE", "sid"),
            ],
            "one cookie cannot be both",
        ),
        (&[("STEPFLOW_LB_SESSION_HEADER", "Cookie")], "expected the name of a header"),
        (&[("STEPFLOW_LB_INSTANCE_HEADER", "X-Forwarded-Instance")], "expected the name of a hea"),
        (&[("STEPFLOW_LB_SESSION_HEADER", "a b")], "expected the name of a header"),
        (&[("STEPFLOW_LB_SESSION_COOKIE", "lb; SameSite=None")], "only with Secure"),
        (&[("STEPFLOW_LB_SESSION_APPLICATION_COOKIE", "a=b")], "expected the name of a cookie"),
        (&[("STEPFLOW_LB_SESSION_LOST", "header=500")], "\"500\" is none of 503, 404"),
        (&[("STEPFLOW_LB_SESSION_LOST", "mcp=404")], "\"mcp\" is no kind of session"),
        (&[("STEPFLOW_LB_SESSION_IDLE", "500ms")], "a duration from 1s to 720h"),
    ];
    for (environment, want) in cases {
        let refused = refusals(environment);
        assert!(refused.len() == 1 && refused[0].contains(want), "{refused:?}");
    }
}

/// `key = value` lines of the manual, commented out or not, as TOML.
fn manual_lines() -> Vec<(bool, String)> {
    let text = std::fs::read_to_string("config/example.toml").expect("the manual is there");
    let is_key =
        |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let parse = |line: &str| {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let (key, _) = bare.split_once(" = ")?;
        is_key(key).then(|| (line == bare, bare.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

#[test]
fn the_manual_shows_every_option_once_in_order_with_its_true_default() {
    let lines = manual_lines();
    let text: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
    let file = File::parse(Path::new("config/example.toml"), &text);
    let shown: BTreeMap<&str, &str> = file.values().collect();
    let keys = lines.iter().map(|(_, line)| line.split(" = ").next().unwrap());
    assert_eq!(keys.collect::<Vec<_>>(), SETTINGS.iter().map(|s| s.key).collect::<Vec<_>>());
    for setting in SETTINGS {
        if setting.key == "upstream_service" {
            assert!(setting.default.is_empty(), "then the manual should show it");
        } else {
            assert_eq!(shown.get(setting.key), Some(&setting.default), "{}", setting.key);
        }
    }
}

#[test]
fn the_manual_names_each_option_s_variable_above_it() {
    let text = std::fs::read_to_string("config/example.toml").unwrap();
    for setting in SETTINGS {
        // A key may be the end of another one.
        let at_line_start = ["\n", "\n# "].map(|start| format!("{start}{} = ", setting.key));
        let found = at_line_start.iter().find_map(|line| text.split_once(line));
        let (above, _) = found.unwrap();
        let variable = above.lines().rev().find_map(|l| l.strip_prefix("# Environment: "));
        assert_eq!(variable, Some(setting.environment), "{}", setting.key);
    }
}

#[test]
fn the_manual_is_a_configuration_that_works() {
    let said = std::fs::read_to_string("config/example.toml").unwrap();
    let from_manual = resolve(Said { file: Some(&said), ..Said::default() }).unwrap().config;
    assert_eq!(
        Config { upstream: Vec::new(), ..from_manual },
        Config { upstream: Vec::new(), ..config(&[]) }
    );
    assert!(manual_lines().iter().filter(|(active, _)| *active).count() == 1);
}

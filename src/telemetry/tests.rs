//! Records and lines, from the worker's call to the octets that are written.

use std::{
    io::{self, Write},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, SystemTime},
};

use crossbeam_channel::Receiver;

use super::{
    access::{PATH_BYTES_MAX, RECORDS_MAX},
    subscriber::dispatch,
    *,
};
use crate::{
    config::{AccessLog, Log, LogDestination, LogFormat},
    model::InstanceId,
};

fn log(filter: &str, format: LogFormat) -> Log {
    let filter = filter.to_owned();
    Log { filter, destination: LogDestination::Stdout, format, access: AccessLog::All }
}

fn record() -> AccessRecord {
    AccessRecord {
        finished: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_132_800_120),
        method: "POST",
        path: loggable_path(b"/"),
        status: 200,
        backend: "127.0.0.1:9101".parse().ok(),
        instance: InstanceId::parse(b"demo-1").ok(),
        routed: Routed::Affinity,
        decision: None,
        mcp: None,
        stream: None,
        duration: Duration::from_micros(1234),
        bytes_up: 10,
        bytes_down: 20,
        failure: None,
        stage: "conclude",
        client: ([127, 0, 0, 1], 5000).into(),
        worker: 1,
    }
}

/// Lines written by a subscriber, each as it is written.
#[derive(Clone)]
struct Lines(mpsc::Sender<String>);

impl Write for Lines {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.send(String::from_utf8_lossy(octets).into_owned()).map_err(io::Error::other)?;
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that is written while records pass through a writer thread.
fn written(log: &Log, records: impl IntoIterator<Item = AccessRecord>) -> Vec<String> {
    let (sender, lines) = mpsc::channel();
    let lines_to = move || Lines(sender.clone());
    let dispatch = dispatch(log, lines_to, false).expect("the directives are valid");
    let writer = tracing::dispatcher::with_default(&dispatch, || AccessWriter::start(log.access));
    let writer = writer.expect("a thread");
    let logger = writer.logger();
    for record in records {
        assert!(logger.log(record));
    }
    writer.finish();
    assert!(!logger.log(record()), "a record after the end must be refused");
    lines.try_iter().collect()
}

#[test]
fn a_completed_request_is_one_line_for_people() {
    let want = "2026-11-20T00:00:00.120Z  INFO access: request completed method=POST path=/ \
                status=200 backend=127.0.0.1:9101 instance=demo-1 routed=affinity \
                duration_ms=1.23 bytes_up=10 bytes_down=20 client=127.0.0.1:5000 worker=1\n";
    assert_eq!(written(&log("info", LogFormat::Text), [record()]), [want]);
}

#[test]
fn a_failed_request_warns_and_says_where_and_why() {
    let failed = AccessRecord {
        status: 503,
        backend: None,
        instance: None,
        routed: Routed::None,
        failure: Some("no_healthy_backend"),
        stage: "pick",
        ..record()
    };
    let want = "2026-11-20T00:00:00.120Z  WARN access: request failed method=POST path=/ \
                status=503 routed=none duration_ms=1.23 bytes_up=10 bytes_down=20 \
                client=127.0.0.1:5000 worker=1 failure=no_healthy_backend stage=pick\n";
    assert_eq!(written(&log("warn", LogFormat::Text), [record(), failed]), [want]);
}

#[test]
fn json_is_one_flat_object_per_line() {
    let lines = written(&log("info", LogFormat::Json), [record()]);
    let object: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    let want = serde_json::json!({
        "timestamp": "2026-11-20T00:00:00.120Z", "level": "INFO", "target": "access",
        "message": "request completed", "method": "POST", "path": "/", "status": 200,
        "backend": "127.0.0.1:9101", "instance": "demo-1", "routed": "affinity",
        "duration_ms": 1.23, "bytes_up": 10, "bytes_down": 20, "client": "127.0.0.1:5000",
        "worker": 1,
    });
    assert_eq!(object, want);
}

#[test]
fn finishing_writes_all_that_was_queued() {
    let records = (0..1000).map(|worker| AccessRecord { worker, ..record() });
    let lines = written(&log("info", LogFormat::Text), records);
    let workers = lines.iter().map(|line| line.trim_end().rsplit_once("worker=").unwrap().1);
    assert!(workers.eq((0..1000).map(|n: usize| n.to_string())));
}

#[test]
fn what_mcp_says_about_a_request_is_in_its_line_and_cannot_break_it() {
    let mcp = McpRecord {
        method: Some(loggable(b"tools/call")),
        name: Some(loggable(b"add two\nnumbers \xff")),
    };
    let said = AccessRecord { mcp: Some(Box::new(mcp)), routed: Routed::Session, ..record() };
    let lines = written(&log("info", LogFormat::Text), [said]);
    let want =
        "routed=session mcp_method=tools/call mcp_name=add%20two%0Anumbers%20%FF duration_ms";
    assert!(lines[0].contains(want), "{}", lines[0]);
}

#[test]
fn a_stream_says_how_it_went_in_both_formats() {
    let stream = StreamRecord {
        to_first_octet: Duration::from_micros(12_345),
        to_first_event: Some(Duration::from_millis(250)),
        events: Some(42),
        gap_max: Some(Duration::from_millis(1_500)),
        stalls: 1,
        end: "client_left",
        at_boundary: Some(false),
    };
    let streamed = || AccessRecord { stream: Some(Box::new(stream.clone())), ..record() };
    let lines = written(&log("info", LogFormat::Text), [streamed()]);
    let want = "bytes_down=20 ttfb_ms=12.35 ttfe_ms=250.0 events=42 gap_max_ms=1500.0 stalls=1 \
                stream_end=client_left at_boundary=false client=";
    assert!(lines[0].contains(want), "{}", lines[0]);
    let failed = AccessRecord { failure: Some("client_stalled"), ..streamed() };
    for record in [streamed(), failed] {
        let lines = written(&log("info", LogFormat::Json), [record]);
        let object: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        let want = serde_json::json!({
            "ttfb_ms": 12.35, "ttfe_ms": 250.0, "events": 42, "gap_max_ms": 1500.0, "stalls": 1,
            "stream_end": "client_left", "at_boundary": false,
        });
        for (field, value) in want.as_object().unwrap() {
            assert_eq!(object.get(field), Some(value), "{field}");
        }
    }
}

#[test]
fn what_nobody_knows_of_a_stream_is_not_in_its_line() {
    let coded = StreamRecord {
        to_first_octet: Duration::from_millis(1),
        to_first_event: None,
        events: None,
        gap_max: None,
        stalls: 0,
        end: "finished",
        at_boundary: None,
    };
    let coded = AccessRecord { stream: Some(Box::new(coded)), ..record() };
    let lines = written(&log("info", LogFormat::Text), [coded]);
    let want = "bytes_down=20 ttfb_ms=1.0 stalls=0 stream_end=finished client=";
    assert!(lines[0].contains(want), "{}", lines[0]);
}

#[test]
fn a_full_queue_refuses_records_and_waits_for_nobody() {
    // A writer that is stuck until the test lets it go.
    struct Stuck(mpsc::Sender<()>, Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(());
            let _ = self.1.recv();
            Ok(octets.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (stuck, is_stuck) = mpsc::channel();
    let (let_go, gate) = crossbeam_channel::bounded::<()>(0);
    let stuck_writer = move || Stuck(stuck.clone(), gate.clone());
    let dispatch = dispatch(&log("info", LogFormat::Text), stuck_writer, false).unwrap();
    let writer =
        tracing::dispatcher::with_default(&dispatch, || AccessWriter::start(AccessLog::All));
    let writer = writer.unwrap();
    let logger = writer.logger();
    assert!(logger.log(record()));
    let waited = is_stuck.recv_timeout(Duration::from_secs(10));
    assert_ne!(waited, Err(RecvTimeoutError::Timeout), "the writer never wrote");
    for _ in 0..RECORDS_MAX {
        assert!(logger.log(record()));
    }
    assert!(!logger.log(record()));
    drop(let_go);
    writer.finish();
}

#[test]
fn what_is_wanted_is_what_was_configured() {
    let cases = [
        (AccessLog::Off, false, false),
        (AccessLog::Failures, false, true),
        (AccessLog::All, true, true),
    ];
    for (access, success, failure) in cases {
        let writer = AccessWriter::start(access).unwrap();
        let logger = writer.logger();
        assert_eq!(logger.wants(None), success, "{access:?}");
        assert_eq!(logger.wants(Some("connect_refused")), failure, "{access:?}");
        writer.finish();
    }
}

#[test]
fn paths_cannot_break_a_line_nor_fill_the_log_nor_tell_secrets() {
    let cases: &[(&[u8], &str)] = &[
        (b"/a/b", "/a/b"),
        (b"/login?token=secret", "/login"),
        (b"*", "*"),
        (b"", ""),
        ("/ü\r\n x".as_bytes(), "/%C3%BC%0D%0A%20x"),
    ];
    for (target, want) in cases {
        assert_eq!(&*loggable_path(target), *want);
    }
    let long = loggable_path(&[b'a'; 1000]);
    assert_eq!(long.len(), PATH_BYTES_MAX + 3);
    assert!(long.ends_with("aaa..."));
    assert_eq!(loggable_path(&[b'a'; PATH_BYTES_MAX]).len(), PATH_BYTES_MAX);
}

#[test]
fn a_log_file_that_cannot_be_opened_is_named() {
    let destination = LogDestination::File("/nonexistent/lb.log".into());
    let error = install(&Log { destination, ..log("info", LogFormat::Text) }).unwrap_err();
    assert!(error.to_string().starts_with("cannot open the log file /nonexistent/lb.log: "));
}

//! The balancer's process, its log, and what it holds.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crossbeam_channel::{Sender, unbounded};

use crate::{
    inbox::PATIENCE,
    support::{Metrics, process},
    world::lock,
};

/// Lines that are kept of those that must not be there.
const LINES_MAX: usize = 100;

/// A running balancer. Killed when it is dropped.
pub(crate) struct Product {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) metrics_address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

/// What it has said.
#[derive(Default)]
pub(crate) struct Log {
    /// Lines by level.
    pub(crate) lines: BTreeMap<&'static str, u64>,
    /// Errors, panics, and whatever came on the standard error.
    pub(crate) alarming: Vec<String>,
}

/// What it holds at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    pub(crate) resident_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
}

impl Product {
    /// Starts `STEPFLOW_LB_BIN`, or the program of this build, with these options.
    pub(crate) fn start(options: &[(&str, &str)]) -> Self {
        let mut command = match std::env::var_os("STEPFLOW_LB_BIN") {
            Some(program) => Command::new(program),
            None => process::command(),
        };
        command
            .env_clear()
            // A wrapper around it may be looked for by it.
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("STEPFLOW_LB_WORKERS", "2")
            .env("BIND_ADDRESS", "127.0.0.1:0")
            .env("METRICS_ADDRESS", "127.0.0.1:0")
            .envs(options.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in crate::support::balancer::FROM_ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let mut child = command.spawn().expect("the program can be started");
        let log = Arc::new(Mutex::new(Log::default()));
        let (sender, found) = unbounded();
        follow(child.stdout.take().expect("it is piped"), &log, Some(sender));
        follow(child.stderr.take().expect("it is piped"), &log, None);
        let address = |marker: &str| -> SocketAddr {
            loop {
                let line: String = found.recv_timeout(PATIENCE).expect("it says where it listens");
                if let Some((_, rest)) = line.split_once(marker) {
                    let text = rest.split([' ', '/']).next().unwrap_or_default();
                    return text.parse().expect("an address");
                }
            }
        };
        let data = address("Load balancer listening on ");
        let metrics = address("Prometheus metrics available on http://");
        Self { child, address: data, metrics_address: metrics, log }
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::read(self.metrics_address)
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status();
        assert!(status.expect("there is a shell").success(), "{kill}");
    }

    pub(crate) fn holding(&self) -> Holding {
        let proc = format!("/proc/{}", self.child.id());
        let status = std::fs::read_to_string(format!("{proc}/status")).expect("it runs");
        let number = |key: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let words = line.unwrap_or_else(|| panic!("no {key} in {status}"));
            let word = words.split_ascii_whitespace().next().unwrap_or_default();
            word.parse().expect("a number")
        };
        Holding {
            resident_kib: number("VmRSS:"),
            descriptors: std::fs::read_dir(format!("{proc}/fd")).expect("it runs").count(),
            threads: usize::try_from(number("Threads:")).expect("a small number"),
        }
    }

    pub(crate) fn with_log<R>(&self, read: impl FnOnce(&Log) -> R) -> R {
        read(&lock(&self.log))
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the balancer has not ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end. Lines on the standard output are counted by level; those that matter are kept.
fn follow(
    pipe: impl Read + Send + 'static,
    log: &Arc<Mutex<Log>>,
    mut listener: Option<Sender<String>>,
) {
    const LEVELS: [&str; 5] = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
    let log = Arc::clone(log);
    let is_log = listener.is_some();
    let mut copy = std::env::var_os("SOAK_LOG").filter(|_| is_log).map(|path| {
        std::fs::File::create(&path).unwrap_or_else(|error| panic!("SOAK_LOG={path:?}: {error}"))
    });
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if let Some(copy) = &mut copy {
                writeln!(copy, "{line}").expect("SOAK_LOG can be written");
            }
            let mut words = line.split_ascii_whitespace().skip(1);
            let level = words.next().and_then(|word| LEVELS.into_iter().find(|l| *l == word));
            let level = level.unwrap_or("other");
            let mut log = lock(&log);
            *log.lines.entry(level).or_default() += 1;
            // Not any "panic": so is also called what balancing does when few backends are left.
            let is_alarming = !is_log || level == "ERROR" || line.contains("panicked");
            if is_alarming && log.alarming.len() < LINES_MAX {
                log.alarming.push(line.clone());
            }
            drop(log);
            if listener.as_ref().is_some_and(|sender| sender.send(line).is_err()) {
                // The addresses have been found.
                listener = None;
            }
        }
    });
}

//! A balancer, its backends, and what must be true of them before and after.

use std::{
    future::Future,
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use stepflow_load_balancer::sys::socket::raise_descriptor_limit;
use tokio::task::LocalSet;

use crate::{
    streaming::{figures, now_ns, source::Source},
    support::{Process, process, wait_until},
};

/// Descriptors of the test itself, the streams apart.
const OTHER_DESCRIPTORS: u64 = 200;

/// Gauges that are 0 when nobody asks for anything.
const GAUGES: [&str; 7] = [
    "connections_open",
    "active_connections",
    "event_streams_open",
    "tunnels_open",
    "queue_waiting",
    "upstream_open",
    "upstream_idle",
];

/// A number that the environment may give, and what it is when it does not.
pub(crate) fn number(name: &str, usual: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return usual };
    text.parse().unwrap_or_else(|_| panic!("{name}={text}: a whole number is wanted"))
}

/// The seed of this run, which it prints.
pub(crate) fn seed() -> u64 {
    let seed = number("STREAMS_LOAD_SEED", now_ns());
    println!("STREAMS_LOAD_SEED={seed}");
    seed
}

/// Runs on this thread until all is done that `run` waits for.
pub(crate) fn on_one_thread<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, run)
}

/// Makes sure of descriptors for so many streams, both ends of them.
pub(crate) fn allow_streams(streams: u64) {
    let limit = raise_descriptor_limit().expect("the limit can be raised to the hard one");
    let needed = 2 * streams + OTHER_DESCRIPTORS;
    assert!(limit >= needed, "{streams} streams need {needed} descriptors, the limit is {limit}");
}

/// A balancer in front of these backends.
pub(crate) struct Lab {
    pub(crate) balancer: Process,
    pub(crate) sources: Vec<Source>,
    /// Memory of the balancer before the first stream.
    base_kib: u64,
}

impl Lab {
    /// Starts them, with these options for the balancer.
    pub(crate) fn start(sources: usize, options: &[(&str, &str)]) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sources: Vec<_> = (0..sources)
            .map(|n| Source::start(any, &format!("source-{n}")).expect("ports are left"))
            .collect();
        let addresses: Vec<_> = sources.iter().map(|source| source.address).collect();
        let balancer = start_balancer(&addresses, options);
        let base_kib = figures::pss_kib(balancer.id()).expect("it runs");
        Self { balancer, sources, base_kib }
    }

    /// Streams that are open on the backends.
    pub(crate) fn open(&self) -> u64 {
        self.sources.iter().map(|source| source.ledger.open()).sum()
    }

    /// Memory of the balancer above what it took before the first stream.
    pub(crate) fn growth_kib(&self) -> u64 {
        figures::pss_kib(self.balancer.id()).expect("it runs").saturating_sub(self.base_kib)
    }

    /// The end of the balancer's log without the departures of clients, for whoever has found
    /// something wrong.
    pub(crate) fn last_words(&mut self) -> Vec<String> {
        let lines = self.balancer.lines_so_far();
        let telling = lines.iter().rev().filter(|line| !line.contains("client_gone"));
        telling.take(20).cloned().collect()
    }

    /// Waits until nothing is left of any stream, on any side, and ends the balancer.
    pub(crate) fn finish(mut self) {
        wait_until("no backend has an open stream", || self.open() == 0);
        let left = || {
            let metrics = self.balancer.metrics();
            let values = GAUGES.map(|name| metrics.sum(&format!("stepflow_lb_{name}"), &[]));
            GAUGES.into_iter().zip(values).filter(|(_, value)| *value > 0).collect::<Vec<_>>()
        };
        wait_until("every gauge is back at zero", || left().is_empty());
        assert_eq!(self.balancer.metrics().sum("stepflow_lb_panics_total", &[]), 0);
        self.balancer.signal("TERM");
        assert!(self.balancer.wait().success());
        let is_alarming = |line: &&String| line.contains(" ERROR ") || line.contains("panicked");
        let alarming: Vec<_> = self.balancer.lines_so_far().iter().filter(is_alarming).collect();
        assert!(alarming.is_empty(), "{alarming:#?}");
    }
}

/// Starts `STEPFLOW_LB_BIN`, or the program of this build, and waits until it knows its backends.
pub(crate) fn start_balancer(backends: &[SocketAddr], options: &[(&str, &str)]) -> Process {
    let command = match std::env::var_os("STEPFLOW_LB_BIN") {
        Some(program) => {
            let mut command = Command::new(program);
            command.env_clear().stdin(Stdio::null()).env("STEPFLOW_LB_WORKERS", "2");
            command
        }
        None => process::command(),
    };
    let addresses: Vec<_> = backends.iter().map(ToString::to_string).collect();
    let mut command = process::before(command, &[]);
    command
        .env("UPSTREAM_SERVICE", addresses.join(","))
        .env("STEPFLOW_LB_DRAIN_GRACE", "0s")
        // What is left open would be open for as long.
        .env("STEPFLOW_LB_UPSTREAM_IDLE_TIMEOUT", "1s")
        .envs(options.iter().copied());
    let balancer = Process::start(command);
    balancer.wait_for_healthy(backends.len() as u64);
    balancer
}

/// Sleeps until the answer is yes; fails when it has not come within this time.
pub(crate) async fn until(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(within, waiting).await;
    assert!(waited.is_ok(), "waited in vain until {what}");
}

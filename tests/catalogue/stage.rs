//! The program between a client and a backend, and what is seen of an exchange.

use std::net::SocketAddr;

use stepflow_load_balancer::config::SETTINGS;

use crate::support::{Backend, Client, Process, process};

/// A balancer with one worker, whose access log says everything.
pub(crate) struct Stage {
    process: Process,
}

impl Stage {
    pub(crate) fn before(backend: &Backend) -> Self {
        Self::with(backend, &[])
    }

    /// With these options, by their keys.
    pub(crate) fn with(backend: &Backend, options: &[(&str, &str)]) -> Self {
        let variable = |key| {
            let setting = SETTINGS.iter().find(|setting| setting.key == key);
            setting.unwrap_or_else(|| panic!("no option is called {key}")).environment
        };
        let mut command = process::before(process::command(), &[backend]);
        command
            // One pool, so that the next exchange finds the connection of the last one.
            .env("STEPFLOW_LB_WORKERS", "1")
            .env("STEPFLOW_LB_ACCESS_LOG", "all")
            .envs(options.iter().map(|(key, value)| (variable(*key), *value)));
        let process = Process::start(command);
        process.wait_for_healthy(1);
        Self { process }
    }

    pub(crate) fn connect(&mut self) -> Client {
        // What was logged before is about others.
        self.process.lines.clear();
        self.process.connect()
    }

    /// Waits for the line of the access log that tells of this client's failure.
    #[track_caller]
    pub(crate) fn wait_for_failure(&mut self, client: SocketAddr, label: &str) {
        self.process.wait_for_line(&format!("client={client} worker=0 failure={label} "));
    }

    /// Waits for the line of the access log that tells that this client's exchange was whole.
    #[track_caller]
    pub(crate) fn wait_for_success(&mut self, client: SocketAddr) {
        let line = self.process.wait_for_line(&format!("client={client} worker=0"));
        assert!(line.contains("request completed"), "{line}");
    }

    /// Every label so often as it is named is what the metrics have counted, and nothing is left of
    /// any exchange.
    #[track_caller]
    pub(crate) fn assert_counted(&self, labels: &[String]) {
        for label in labels {
            let want = labels.iter().filter(|other| *other == label).count() as u64;
            crate::support::wait_until(&format!("{want} failures are counted: {label}"), || {
                self.process.metrics().failures(label) == want
            });
        }
        crate::support::wait_until("nothing is left of any exchange", || {
            let metrics = self.process.metrics();
            metrics.sum("stepflow_lb_active_connections", &[]) == 0
                && metrics.sum("stepflow_lb_connections_open", &[]) == 0
        });
        let metrics = self.process.metrics();
        let failures = metrics.sum("stepflow_lb_failures_total", &[]);
        assert_eq!(failures, labels.len() as u64, "failures that nobody expected");
        assert_eq!(metrics.sum("stepflow_lb_panics_total", &[]), 0);
    }

    /// How many idle connections to backends were given up because of octets on them.
    pub(crate) fn poisoned(&self) -> u64 {
        self.process.metrics().sum("stepflow_lb_upstream_poisoned_total", &[])
    }

    /// Waits until so many idle connections to backends are held.
    #[track_caller]
    pub(crate) fn wait_for_idle(&self, idle: u64) {
        crate::support::wait_until(&format!("{idle} connections are idle"), || {
            self.process.metrics().sum("stepflow_lb_upstream_idle", &[]) == idle
        });
    }
}

/// The address that the balancer sees of a client.
pub(crate) fn address(client: &Client) -> SocketAddr {
    client.stream().local_addr().unwrap()
}

/// Plays each row, whatever became of the others, and fails with the places of those that failed.
#[track_caller]
pub(crate) fn play_all<R>(rows: impl IntoIterator<Item = R>, mut play: impl FnMut(&R)) {
    let failed = rows.into_iter().filter(|row| {
        let playing = std::panic::AssertUnwindSafe(|| play(row));
        std::panic::catch_unwind(playing).is_err()
    });
    let failed = failed.count();
    assert_eq!(failed, 0, "rows that failed, each with its panic above");
}

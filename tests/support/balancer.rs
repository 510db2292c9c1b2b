//! The product, in this process.

use std::{collections::BTreeMap, net::SocketAddr};

use stepflow_load_balancer::{
    config::{AccessLog, Config, Environment, Flags, SETTINGS},
    control::{ExitReason, Signals},
    server::{self, Bound},
    telemetry::AccessWriter,
};

use super::{Backend, Client, Response, wait_until};

/// A balancer that runs until it is dropped.
pub(crate) struct Balancer {
    bound: Option<Bound>,
    log: Option<AccessWriter>,
    /// Address that clients connect to.
    pub(crate) address: SocketAddr,
    /// Address of the metrics.
    pub(crate) metrics_address: SocketAddr,
    /// Address of the admin calls.
    pub(crate) admin_address: Option<SocketAddr>,
    /// What each worker runs on.
    pub(crate) drivers: Vec<String>,
}

/// A balancer that is being configured.
pub(crate) struct Setup {
    environment: BTreeMap<String, String>,
    backends: usize,
}

/// Options that the environment of the test run decides, so that all tests can be repeated on
/// another driver or with another number of workers.
pub(crate) const FROM_ENVIRONMENT: [&str; 2] = ["STEPFLOW_LB_IO_DRIVER", "STEPFLOW_LB_WORKERS"];

impl Balancer {
    /// One in front of these backends, as [`Setup::default`] configures it.
    pub(crate) fn start(backends: &[&Backend]) -> Self {
        Self::before(backends).start()
    }

    /// One in front of these backends, to be configured.
    pub(crate) fn before(backends: &[&Backend]) -> Setup {
        let addresses: Vec<_> = backends.iter().map(|b| b.address.to_string()).collect();
        let setup = Setup { environment: BTreeMap::new(), backends: backends.len() };
        let setup = setup
            .with("upstream_service", &addresses.join(","))
            .with("bind_address", "127.0.0.1:0")
            .with("metrics_address", "127.0.0.1:0")
            .with("admin_address", "127.0.0.1:0")
            .with("workers", "2")
            // Whoever fails a check is asked again soon: tests wait for what follows.
            .with("health_check_interval", "100ms")
            // What is pooled is there when a slow machine comes back to it.
            .with("upstream_idle_timeout", "60s")
            .with("drain_grace", "0s")
            // Longer than the test is ready to wait.
            .with("drain_timeout", "60s");
        FROM_ENVIRONMENT.into_iter().fold(setup, |mut setup, name| {
            if let Ok(value) = std::env::var(name) {
                setup.environment.insert(name.to_owned(), value);
            }
            setup
        })
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Asks on a connection of its own.
    pub(crate) fn ask(&self, request: impl AsRef<[u8]>) -> Response {
        self.connect().ask(request)
    }

    /// `GET target` on a connection of its own.
    pub(crate) fn get(&self, target: &str) -> Response {
        self.connect().get(target)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::read(self.metrics_address)
    }

    /// Waits until every worker knows of exactly so many healthy backends.
    #[track_caller]
    pub(crate) fn wait_for_healthy(&self, healthy: usize) {
        wait_until(&format!("{healthy} backends are healthy"), || {
            let metrics = self.metrics();
            metrics.sum("stepflow_lb_backend_pool_size", &[]) == healthy as u64
                && metrics.workers_are_up_to_date()
        });
    }

    /// Waits until exactly so many exchanges have failed for this reason. They are counted behind
    /// the answer, so whoever reads an answer may be earlier.
    #[track_caller]
    pub(crate) fn wait_for_failures(&self, reason: &str, n: u64) {
        wait_until(&format!("{n} exchanges have failed: {reason}"), || {
            self.metrics().failures(reason) == n
        });
    }

    /// Waits until no client connection is open.
    #[track_caller]
    pub(crate) fn wait_until_quiet(&self) {
        wait_until("no client connection is open", || {
            self.metrics().sum("stepflow_lb_connections_open", &[]) == 0
        });
    }

    /// Asks it to drain and end.
    pub(crate) fn shut_down(&self) {
        self.bound.as_ref().expect("it runs").shut_down();
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> ExitReason {
        let bound = self.bound.take().expect("it runs");
        bound.wait().expect("the control thread had started")
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if let Some(bound) = self.bound.take() {
            if !std::thread::panicking() {
                let panics = self.metrics().sum("stepflow_lb_panics_total", &[]);
                assert_eq!(panics, 0, "connections ended in a panic");
            }
            bound.shut_down();
            bound.shut_down();
            let ended = bound.wait();
            assert!(std::thread::panicking() || ended.is_ok(), "{ended:?}");
        }
        if let Some(log) = self.log.take() {
            log.finish();
        }
    }
}

impl Setup {
    /// Sets an option by its key in the configuration file.
    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        let setting = SETTINGS.iter().find(|setting| setting.key == key);
        let setting = setting.unwrap_or_else(|| panic!("no option is called {key}"));
        self.environment.insert(setting.environment.to_owned(), value.to_owned());
        self
    }

    /// Starts it and waits until all backends are known to be healthy.
    pub(crate) fn start(self) -> Balancer {
        let backends = self.backends;
        let balancer = self.start_unready();
        balancer.wait_for_healthy(backends);
        balancer
    }

    /// Starts it and does not wait for anybody.
    pub(crate) fn start_unready(self) -> Balancer {
        let environment = Environment::from_pairs(self.environment);
        let config = Config::resolve(Flags::default(), environment, None);
        let config = config.unwrap_or_else(|error| panic!("{error}"));
        let log = AccessWriter::start(AccessLog::Off).expect("threads are left");
        // The product opens a listener to see whether its port is free, and closes it again. A
        // child that another thread has just forked may hold it still; then there is another port.
        let start = |_| match server::start(config.clone(), &log.logger(), Signals::Ignore) {
            Err(error) if error.to_string().contains("Address already in use") => None,
            started => Some(started.unwrap_or_else(|error| panic!("{error}"))),
        };
        let bound = (0..20).find_map(start).expect("some port is free");
        Balancer {
            address: bound.data,
            metrics_address: bound.metrics,
            admin_address: bound.admin,
            drivers: bound.drivers.iter().map(ToString::to_string).collect(),
            bound: Some(bound),
            log: Some(log),
        }
    }
}

/// One scrape.
#[derive(Debug)]
pub(crate) struct Metrics {
    text: String,
}

impl Metrics {
    pub(crate) fn read(address: SocketAddr) -> Self {
        let response = Client::connect(address)
            .ask("GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        assert_eq!(response.status(), 200);
        Self { text: response.text() }
    }

    fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
        self.text.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            Some((labels, value.parse().expect("a whole number")))
        })
    }

    /// Sum over every sample of a family whose labels hold all of these, as `name="value"`.
    #[track_caller]
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        assert!(self.text.contains(&format!("# TYPE {name} ")), "no family is called {name}");
        let chosen = self.samples(name).filter(|(has, _)| labels.iter().all(|l| has.contains(l)));
        chosen.map(|(_, value)| value).sum()
    }

    /// Whether a family has a sample whose labels hold this.
    #[allow(dead_code, reason = "not every suite asks what is not there")]
    pub(crate) fn has(&self, name: &str, label: &str) -> bool {
        let prefix = format!("{name}{{");
        self.text.lines().any(|line| line.starts_with(&prefix) && line.contains(label))
    }

    /// How often something was measured, over every sample of a histogram.
    #[allow(dead_code, reason = "not every suite looks at histograms")]
    #[track_caller]
    pub(crate) fn observations(&self, name: &str) -> u64 {
        assert!(self.text.contains(&format!("# TYPE {name} histogram")), "no histogram {name}");
        self.samples(&format!("{name}_count")).map(|(_, count)| count).sum()
    }

    /// How often exchanges failed for this reason.
    #[track_caller]
    pub(crate) fn failures(&self, reason: &str) -> u64 {
        let label = format!(r#"reason="{reason}""#);
        assert!(self.text.contains(&label), "no failure is called {reason}");
        self.sum("stepflow_lb_failures_total", &[&label])
    }

    pub(crate) fn workers_are_up_to_date(&self) -> bool {
        let published = self.sum("stepflow_lb_snapshot_version_published", &[]);
        self.samples("stepflow_lb_snapshot_version").all(|(_, version)| version == published)
    }
}

//! The wiring: from a [`Config`] to threads that serve, and back to an exit reason.
//!
//! Order of starting: everything that can fail for a reason the operator can mend (addresses,
//! descriptors, rings) is done before anything serves. Order of stopping: the control thread is
//! told, publishes the phases of the drain, waits for the workers' connections, and ends; its end
//! closes the workers' doorbells.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::Arc,
    thread::JoinHandle,
};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tracing::{error, info, warn};

use crate::{
    config::{ADMIN_ADDRESS_DEFAULT, Config},
    control::{self, ControlError, ControlParts, ExitReason, Signals},
    link::{self, Links},
    stats::WorkerStats,
    sys::{cpu, socket},
    telemetry::AccessLogger,
    worker::{
        self, ActiveDriver, Fallback, Handovers, Queues, SharedPace, SharedSessions, WorkerParts,
    },
};

/// Why the process could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be bound.
    #[error("cannot listen on {address} ({option}): {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The option that names it.
        option: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A worker was granted no I/O driver.
    #[error("cannot start worker {worker} with io_driver = {asked}: {source}")]
    Driver {
        /// Number of the worker.
        worker: usize,
        /// What was asked for.
        asked: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A worker ended before it served.
    #[error("worker {worker} ended while starting")]
    WorkerEnded {
        /// Number of the worker.
        worker: usize,
    },
    /// Anything else the kernel refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was refused.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A running balancer.
pub struct Bound {
    /// Address that clients connect to.
    pub data: SocketAddr,
    /// Address of the metrics.
    pub metrics: SocketAddr,
    /// Address of the admin calls, if they are served.
    pub admin: Option<SocketAddr>,
    /// What each worker runs on.
    pub drivers: Vec<ActiveDriver>,
    shutdown: UnboundedSender<()>,
    control: JoinHandle<Result<ExitReason, ControlError>>,
    workers: Vec<JoinHandle<()>>,
}

impl Bound {
    /// Asks it to drain and end; asked again, it ends at once.
    pub fn shut_down(&self) {
        // It has ended already if nobody listens.
        let _ = self.shutdown.send(());
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the control thread could not start.
    pub fn wait(self) -> Result<ExitReason, ControlError> {
        let Ok(reason) = self.control.join() else {
            // The panic has been printed. Half a process is worse than none.
            std::process::abort();
        };
        for worker in self.workers {
            // Connections that outlived the drain are cut with their worker.
            let _ = worker.join();
        }
        reason
    }
}

/// Binds, starts every thread, and returns once all workers can serve.
///
/// # Errors
/// Whatever keeps it from serving.
pub fn start(config: Config, logger: &AccessLogger, signals: Signals) -> Result<Bound, StartError> {
    let config = Arc::new(config);
    let descriptors = socket::raise_descriptor_limit()
        .map_err(|source| StartError::System { what: "read the descriptor limit", source })?;
    let cpu::Allowance { workers: fed, cores } = cpu::allowance();
    let count = config.workers.map_or(fed, NonZeroUsize::get);
    let bind = |address, option| move |source| StartError::Bind { address, option, source };
    let listeners = socket::listeners(config.bind_address, count)
        .map_err(bind(config.bind_address, "bind_address"))?;
    let metrics_listener = socket::listeners(config.metrics_address, 1)
        .map_err(bind(config.metrics_address, "metrics_address"))?
        .remove(0);
    let admin_listener = match config.admin_address {
        Some(address) => listen_for_admin(address).map_err(bind(address, "admin_address"))?,
        None => None,
    };
    let local =
        |listener: &std::net::TcpListener, otherwise| listener.local_addr().unwrap_or(otherwise);
    let data = local(&listeners[0], config.bind_address);
    let metrics = local(&metrics_listener, config.metrics_address);
    let admin = admin_listener.as_ref().zip(config.admin_address);
    let admin = admin.map(|(listener, address)| local(listener, address));
    let Links { publisher, report_bell, workers: ends } = link::connect(count)
        .map_err(|source| StartError::System { what: "link the threads", source })?;
    let stats: Arc<[WorkerStats]> = (0..count).map(|_| WorkerStats::default()).collect();
    let seeds = RandomState::new();
    let connections_max = match config.limits.connections_max {
        Some(max) => u64::from(max.get()),
        None => connections_within(descriptors, count),
    };
    let (queues, queue_bells) = match worker::can_be_full(&config) {
        true => Queues::new(count)
            .map(|(queues, bells)| (Some(queues), bells))
            .map_err(|source| StartError::System { what: "link the queues", source })?,
        false => (None, Vec::new()),
    };
    let mut queue_bells = queue_bells.into_iter();
    let (handovers, inboxes) = match config.worker_imbalance_max {
        Some(_) if count > 1 => Handovers::new(count)
            .map(|(ways, inboxes)| (Some(ways), inboxes))
            .map_err(|source| StartError::System { what: "link the workers", source })?,
        Some(_) | None => (None, Vec::new()),
    };
    let mut inboxes = inboxes.into_iter();
    let sessions = SharedSessions::new(&config.sessions)
        .map_err(|source| StartError::System { what: "draw a key for sessions", source })?;
    if config.sessions.seals() && config.sessions.keys.is_empty() {
        warn!(
            "session_keys is not set: the key of this process ends with it, and other replicas \
             do not have it, so sessions are lost there"
        );
    }
    let drain_pace = SharedPace::new(&config);
    let mut starting = Vec::with_capacity(count);
    for (index, (listener, (subscriber, bell))) in listeners.into_iter().zip(ends).enumerate() {
        starting.push(spawn_worker(WorkerParts {
            index,
            config: Arc::clone(&config),
            listener,
            core: cores.get(index % cores.len().max(1)).copied(),
            subscriber,
            bell,
            stats: Arc::clone(&stats),
            logger: logger.clone(),
            seed: seeds.hash_one(index),
            connections_max,
            client_hasher: seeds.clone(),
            queues: queues.clone().zip(queue_bells.next()),
            handovers: handovers.clone().zip(inboxes.next()),
            sessions: sessions.clone(),
            drain_pace: drain_pace.clone(),
        })?);
    }
    let (mut workers, mut drivers) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for (index, (thread, started)) in starting.into_iter().enumerate() {
        let (driver, fallbacks) = started
            .recv()
            .map_err(|_| StartError::WorkerEnded { worker: index })?
            .map_err(|source| StartError::Driver {
                worker: index,
                asked: config.io_driver.label(),
                source,
            })?;
        for Fallback { tried, error } in fallbacks {
            let errno = error.raw_os_error();
            warn!(worker = index, %tried, %error, errno, using = %driver, "fell back to another I/O driver");
        }
        drivers.push(driver);
        workers.push(thread);
    }
    let (shutdown, shutdowns) = unbounded_channel();
    let parts = ControlParts {
        config: Arc::clone(&config),
        publisher,
        report_bell,
        workers: stats,
        drivers: drivers.iter().map(ActiveDriver::to_string).collect(),
        metrics_listener,
        admin_listener,
        shutdown: shutdowns,
        signals,
    };
    let control = std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || control::run(parts))
        .map_err(|source| StartError::System { what: "start the control thread", source })?;
    let driver = drivers.first().map(ActiveDriver::to_string);
    info!(
        workers = count,
        driver, descriptors, connections_max, "Load balancer listening on {data}"
    );
    if let Some(admin) = admin {
        info!("Admin calls available on http://{admin}/backends");
    }
    info!("Prometheus metrics available on http://{metrics}/metrics");
    Ok(Bound { data, metrics, admin, drivers, shutdown, control, workers })
}

/// Nobody chose the default address, so a second balancer on a host must not fail on it: it does
/// without the admin calls and says so.
fn listen_for_admin(address: SocketAddr) -> io::Result<Option<std::net::TcpListener>> {
    let is_default =
        ADMIN_ADDRESS_DEFAULT.parse().is_ok_and(|default: SocketAddr| default == address);
    match socket::listeners(address, 1) {
        Ok(mut listeners) => Ok(Some(listeners.remove(0))),
        Err(error) if is_default => {
            warn!(
                %error, %address, option = "admin_address",
                "cannot listen for admin calls, and goes on without them; another address, or off, \
                 ends this warning"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Client connections that so many descriptors allow: each takes one, and one to its backend. The
/// reserve is for probes and DNS (at most 160 at once), the log, the metrics port, and for each
/// worker its ring, listener and bells and the connections that it has just refused.
fn connections_within(descriptors: u64, workers: usize) -> u64 {
    const RESERVE: u64 = 256;
    const RESERVE_PER_WORKER: u64 = 24;
    let reserve = RESERVE.saturating_add(RESERVE_PER_WORKER.saturating_mul(workers as u64));
    // Where there are hardly any, half of them for clients is better than none.
    ((descriptors - reserve.min(descriptors / 2)) / 2).max(1)
}

type Started = io::Result<(ActiveDriver, Vec<Fallback>)>;
type Starting = (JoinHandle<()>, crossbeam_channel::Receiver<Started>);

fn spawn_worker(parts: WorkerParts) -> Result<Starting, StartError> {
    let (report, started) = crossbeam_channel::bounded(1);
    let index = parts.index;
    let thread = std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            // A worker that ends before its time leaves its share of the connections unserved,
            // while the kernel goes on handing it new ones. A restart is better.
            let guard = AbortOnPanic;
            let to_starter = report.clone();
            let ran = worker::run(parts, move |driver, fallbacks| {
                // The starter waits for this.
                let _ = to_starter.send(Ok((driver, fallbacks)));
            });
            if let Err(error) = ran {
                let _ = report.send(Err(error));
            }
            std::mem::forget(guard);
        })
        .map_err(|source| StartError::System { what: "start a worker thread", source })?;
    Ok((thread, started))
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        error!("a worker thread panicked: ending the process");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_default_admin_address_may_be_in_use() {
        let default: SocketAddr = ADMIN_ADDRESS_DEFAULT.parse().unwrap();
        // If this fails, it is in use as well.
        let _taken = std::net::TcpListener::bind(default);
        assert!(listen_for_admin(default).unwrap().is_none());
        let chosen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = listen_for_admin(chosen.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(listen_for_admin("127.0.0.1:0".parse().unwrap()).unwrap().is_some());
    }

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        let cases = [
            ((1_048_576, 2), 524_136),
            ((1024, 2), 360),
            ((512, 2), 128),
            ((64, 2), 16),
            ((1, 1), 1),
            ((u64::MAX, usize::MAX), u64::MAX / 4 + 1),
        ];
        for ((descriptors, workers), want) in cases {
            assert_eq!(connections_within(descriptors, workers), want, "{descriptors} {workers}");
        }
    }
}

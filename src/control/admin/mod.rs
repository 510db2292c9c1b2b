//! The two ports of the control thread. The metrics port has Prometheus text and the balancer's own
//! `/health` and `/ready`; the admin port has calls that change something (`backends`).
//!
//! Served by the control thread from the last snapshot and the workers' counters; no worker is
//! asked anything, so a scrape costs requests nothing. On the metrics port every path but the two
//! gives metrics, as with the original balancer.
//!
//! Invariant: whatever clients do here, the control thread goes on. Connections are few, bounded in
//! memory and in time, and an error in one ends that one.

mod backends;
mod exposition;
mod metrics;
mod process;

use std::{
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::spawn_local,
    time::sleep,
};
use tracing::{debug, warn};

use self::{metrics::Scrape, process::ProcessReading};
use super::AdminView;
use crate::{
    endpoint::{Connection, Limits, Request, Response},
    exchange::{Failure, SELF_NAME, health_answer},
    http1::Method,
    model::Snapshot,
    stats::WorkerStats,
};

/// Connections at once; more wait in the kernel's queue. A scraper needs one.
const CONNECTIONS_MAX: usize = 64;
/// Nobody has a reason to send us much, or slowly.
const LIMITS: Limits = Limits {
    body_bytes_max: 4096,
    idle: Duration::from_secs(10),
    transfer: Duration::from_secs(10),
};
/// Pause after an accept that failed: descriptors come back when connections end.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Shortest time between two lines about that: a scrape that waits fails ten times a second.
const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Metrics and health: changes nothing.
    Metrics,
    /// The admin calls.
    Admin,
}

/// Serves a port until the process ends. Must run within a `LocalSet`.
pub async fn serve(listener: TcpListener, view: Rc<AdminView>, port: Port) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut warned: Option<Instant> = None;
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let view = Rc::clone(&view);
                spawn_local(async move {
                    if let Err(error) = converse(stream, &view, port).await {
                        debug!(%peer, %error, ?port, "connection to the control thread ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                if warned.is_none_or(|at| at.elapsed() >= WARNING_PAUSE) {
                    warn!(%error, ?port, "cannot accept for the control thread");
                    warned = Some(Instant::now());
                }
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, view: &AdminView, port: Port) -> io::Result<()> {
    let mut connection = Connection::new(stream, LIMITS);
    while let Some(request) = connection.next_request().await? {
        let response = match port {
            Port::Metrics => answer(&request, view),
            Port::Admin => backends::answer(&request, view).await,
        };
        connection.respond(request.method, &response, request.closes).await?;
        if request.closes {
            break;
        }
    }
    Ok(())
}

fn answer(request: &Request, view: &AdminView) -> Response {
    if !matches!(request.method, Method::Get | Method::Head) {
        let text = "only GET and HEAD are answered here\n".to_owned();
        return Response::text(405, text).with("Allow", "GET, HEAD".to_owned());
    }
    let snapshot = Arc::clone(&view.snapshot.borrow());
    match request.path() {
        b"/health" | b"/ready" => {
            let (status, body) = health(view, &snapshot);
            Response::json(status, body).with("Cache-Control", "no-store".to_owned())
        }
        _ => {
            let text = metrics::render(&Scrape {
                workers: &view.workers,
                drivers: &view.drivers,
                snapshot: &snapshot,
                plane: &view.counters.borrow(),
                failures: Failure::LABELS,
                own_name: SELF_NAME,
                process: &ProcessReading::take(view.started),
            });
            let content_type = "text/plain; version=0.0.4; charset=utf-8";
            Response { content_type, ..Response::text(200, text) }
        }
    }
}

/// Bad news at once, and good news when every worker has heard it: whoever waits for it to send
/// requests is not to be refused by a worker that is behind.
fn health(view: &AdminView, newest: &Arc<Snapshot>) -> (u16, Vec<u8>) {
    let is_known = |worker: &WorkerStats| worker.snapshot_version.get() >= newest.version.0;
    if view.workers.iter().all(is_known) {
        view.known.replace(Arc::clone(newest));
    }
    let answer = |snapshot: &Snapshot| health_answer(snapshot.phase, snapshot.health_counts());
    let (known, newest) = (answer(&view.known.borrow()), answer(newest));
    if newest.0 == 200 && known.0 != 200 { known } else { newest }
}

#[cfg(test)]
mod tests;

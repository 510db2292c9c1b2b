//! Step 1: accept.

use std::{
    net::TcpListener,
    rc::Rc,
    time::{Duration, Instant},
};

use monoio::{io::Canceller, net::TcpStream};
use tracing::{debug, error, warn};

use super::{ActiveDriver, Worker, canonical, door, http, isolate};
use crate::{model::Phase, sys::socket};

/// How long accepting rests when descriptors or memory have run out. Accept fails at once then, a
/// million times a second if one lets it, while the connections that are open need the CPU to end.
const BACKOFF: Duration = Duration::from_millis(100);

/// Shortest time between two lines about that. At the limit each connection that ends makes room
/// for one that is accepted, so that accepting fails anew all the time.
const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// Accepts until the worker drains, then empties the accept queue: whoever is in it has completed a
/// handshake with us and would get a reset.
pub(super) async fn run(worker: Rc<Worker>, listener: TcpListener) {
    let queue = match listener.try_clone() {
        Ok(queue) => queue,
        Err(error) => return cannot_accept(&worker, &error),
    };
    let is_epoll = worker.driver == ActiveDriver::Epoll;
    let listener = listener
        .set_nonblocking(is_epoll)
        .and_then(|()| monoio::net::TcpListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return cannot_accept(&worker, &error),
    };
    let canceller = Canceller::new();
    let handle = canceller.handle();
    *worker.accepting.borrow_mut() = Some(canceller);
    let mut warned: Option<Instant> = None;
    while worker.phase() != Phase::Draining {
        match listener.cancelable_accept(handle.clone()).await {
            Ok((stream, address)) => begin(&worker, stream, address),
            Err(error) if socket::is_exhaustion(&error) => {
                worker.stats().accept_backoffs.add(1);
                if warned.is_none_or(|at| at.elapsed() >= WARNING_PAUSE) {
                    warn!(worker = worker.index, %error, "cannot accept: waiting for connections to end");
                    warned = Some(Instant::now());
                }
                monoio::time::sleep(BACKOFF).await;
            }
            // The loop's condition tells a cancelled accept from one that failed. Most failures are
            // those of a client that has gone already, but one that lasts must not spin.
            Err(error) => {
                debug!(worker = worker.index, %error, "an accept failed");
                monoio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    drain(&worker, &queue);
}

fn begin(worker: &Rc<Worker>, stream: TcpStream, address: std::net::SocketAddr) {
    worker.stats().connections_accepted.add(1);
    let address = canonical(address);
    match door::admit(worker, address) {
        Ok(guest) => {
            let connection = http::serve(Rc::clone(worker), stream, address);
            monoio::spawn(isolate(guest, connection));
        }
        Err(failure) => door::refuse(worker, stream, address, failure),
    }
}

fn drain(worker: &Rc<Worker>, queue: &TcpListener) {
    if let Err(error) = queue.set_nonblocking(true) {
        return cannot_accept(worker, &error);
    }
    while let Ok((stream, address)) = queue.accept() {
        let adopted = stream
            .set_nonblocking(worker.driver == ActiveDriver::Epoll)
            .and_then(|()| TcpStream::from_std(stream));
        match adopted {
            Ok(stream) => begin(worker, stream, address),
            Err(error) => warn!(worker = worker.index, %error, "lost a connection while draining"),
        }
    }
}

fn cannot_accept(worker: &Worker, error: &std::io::Error) {
    error!(worker = worker.index, %error, "this worker cannot accept connections");
}

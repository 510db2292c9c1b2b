//! Step 1: accept.

use std::{
    future::{Future, poll_fn},
    net::{SocketAddr, TcpListener},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use monoio::net::TcpStream;
use tracing::{debug, error, warn};

use super::{ActiveDriver, Worker, canonical, door, http, isolate};
use crate::{model::Phase, sys::socket};

/// Connections that are accepted in a row before everybody else has a turn. Under load several wait
/// whenever one looks; each takes some microseconds, in which the streams that run here wait.
const IN_A_ROW_MAX: usize = 16;

/// How long accepting rests when descriptors or memory have run out. Accept fails at once then, a
/// million times a second if one lets it, while the connections that are open need the CPU to end.
const BACKOFF: Duration = Duration::from_millis(100);

/// Shortest time between two lines about that. At the limit each connection that ends makes room
/// for one that is accepted, so that accepting fails anew all the time.
const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// Accepts until the worker drains, then empties the accept queue: whoever is in it has completed a
/// handshake with us and would get a reset.
pub(super) async fn run(worker: Rc<Worker>, listener: TcpListener) {
    // Of the two, one is waited on and the other accepted from. Nobody else has this listener, so
    // that it never blocks is nobody else's affair.
    let waited_on = listener
        .set_nonblocking(true)
        .and_then(|()| listener.try_clone())
        .and_then(monoio::net::TcpListener::from_std);
    let waited_on = match waited_on {
        Ok(waited_on) => waited_on,
        Err(error) => {
            error!(worker = worker.index, %error, "this worker cannot accept connections");
            return;
        }
    };
    let mut warned: Option<Instant> = None;
    while called(&worker, &waited_on).await {
        match accept_some(&worker, &listener) {
            Ok(Waiting::Nobody) => {}
            Ok(Waiting::Perhaps) => worker.turns.pass().await,
            Err(error) if socket::is_exhaustion(&error) => {
                worker.stats().accept_backoffs.add(1);
                if warned.is_none_or(|at| at.elapsed() >= WARNING_PAUSE) {
                    warn!(worker = worker.index, %error, "cannot accept: waiting for connections to end");
                    warned = Some(Instant::now());
                }
                monoio::time::sleep(BACKOFF).await;
            }
            // Most failures are those of a client that has gone already, but one that lasts must
            // not spin.
            Err(error) => {
                debug!(worker = worker.index, %error, "an accept failed");
                monoio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    while let Ok((stream, address)) = listener.accept() {
        worker.stats().connections_accepted.add(1);
        begin(&worker, stream, address);
    }
}

/// Waits until somebody has connected. False when nobody is to be accepted any more.
async fn called(worker: &Worker, listener: &monoio::net::TcpListener) -> bool {
    let mut ready = pin!(listener.readable(false));
    poll_fn(|cx| {
        if worker.phase() == Phase::Draining {
            return Poll::Ready(false);
        }
        // A failed poll is ready too: the accept that follows reports the error.
        if ready.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        *worker.accepting.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    })
    .await
}

/// Whether somebody waits to be accepted.
enum Waiting {
    Nobody,
    Perhaps,
}

/// Accepts whoever has connected, a turn's worth at most.
fn accept_some(worker: &Rc<Worker>, listener: &TcpListener) -> std::io::Result<Waiting> {
    for _ in 0..IN_A_ROW_MAX {
        match listener.accept() {
            Ok((stream, address)) => place(worker, stream, address),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Ok(Waiting::Nobody);
            }
            Err(error) => return Err(error),
        }
        if !socket::is_called(listener) {
            return Ok(Waiting::Nobody);
        }
    }
    Ok(Waiting::Perhaps)
}

/// Serves it here, or lets another worker do so that has fewer.
fn place(worker: &Rc<Worker>, stream: std::net::TcpStream, address: SocketAddr) {
    worker.stats().connections_accepted.add(1);
    let kept = match &worker.handover {
        Some(handover) => handover.try_hand_over(worker, stream, address),
        None => Some(stream),
    };
    if let Some(stream) = kept {
        begin(worker, stream, address);
    }
}

/// Serves a connection on this worker, or refuses it.
pub(super) fn begin(worker: &Rc<Worker>, stream: std::net::TcpStream, address: SocketAddr) {
    // monoio expects sockets that block on a ring, and such that do not on epoll.
    let adopted = match worker.driver {
        ActiveDriver::IoUring(_) => Ok(stream),
        ActiveDriver::Epoll => stream.set_nonblocking(true).map(|()| stream),
    };
    let stream = match adopted.and_then(TcpStream::from_std) {
        Ok(stream) => stream,
        Err(error) => {
            warn!(worker = worker.index, %error, "lost a connection that was accepted");
            return;
        }
    };
    let address = canonical(address);
    match door::admit(worker, address) {
        Ok(guest) => {
            let connection = http::serve(Rc::clone(worker), stream, address);
            monoio::spawn(isolate(guest, connection));
        }
        Err(failure) => door::refuse(worker, stream, address, failure),
    }
}

//! After `101 Switching Protocols`: octets both ways, which nobody reads (RFC 9110 §7.8).

use std::{future::Future, pin::pin, rc::Rc, task::Poll};

use super::{Worker, buffer::Size};
use crate::sys::{Duplex, Readiness};

/// Copies in both directions until both have ended, or one is broken. `to_client` and
/// `to_upstream` are octets that arrived behind the heads. Returns the octets copied each way,
/// towards the client first.
pub(super) async fn run(
    worker: &Rc<Worker>,
    client: &Duplex,
    upstream: &Duplex,
    to_client: Vec<u8>,
    to_upstream: Vec<u8>,
) -> (u64, u64) {
    let _open = worker.stats().tunnels_open.hold();
    let mut down = pin!(copy(worker, upstream, client, to_client));
    let mut up = pin!(copy(worker, client, upstream, to_upstream));
    let (mut down_end, mut up_end) = (None, None);
    std::future::poll_fn(|cx| {
        if down_end.is_none()
            && let Poll::Ready(end) = down.as_mut().poll(cx)
        {
            down_end = Some(end);
        }
        if up_end.is_none()
            && let Poll::Ready(end) = up.as_mut().poll(cx)
        {
            up_end = Some(end);
        }
        match (down_end, up_end) {
            (Some(down), Some(up)) => Poll::Ready((down.bytes, up.bytes)),
            // One direction is broken: the other has nobody to talk to.
            (Some(Copied { is_broken: true, bytes }), None) => Poll::Ready((bytes, 0)),
            (None, Some(Copied { is_broken: true, bytes })) => Poll::Ready((0, bytes)),
            _ => Poll::Pending,
        }
    })
    .await
}

#[derive(Clone, Copy)]
struct Copied {
    bytes: u64,
    is_broken: bool,
}

/// Copies one direction to its end, and hands the end on.
async fn copy(worker: &Worker, from: &Duplex, to: &Duplex, first: Vec<u8>) -> Copied {
    let mut arrivals = pin!(from.readiness());
    let mut bytes = first.len() as u64;
    let mut buffer = first;
    loop {
        let (sent, sent_buffer) = to.send_all(buffer).await;
        worker.buffers.give(sent_buffer);
        if sent.is_err() {
            return Copied { bytes, is_broken: true };
        }
        // No buffer is held while nothing arrives.
        buffer = loop {
            std::future::poll_fn(|cx| arrivals.as_mut().poll_ready(cx)).await;
            let mut buffer = worker.buffers.take(Size::Large);
            match from.try_recv(&mut buffer) {
                Ok(0) => {
                    worker.buffers.give(buffer);
                    to.finish_sending();
                    return Copied { bytes, is_broken: false };
                }
                Ok(n) => {
                    bytes += n as u64;
                    break buffer;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    worker.buffers.give(buffer);
                }
                Err(_) => return Copied { bytes, is_broken: true },
            }
        };
    }
}

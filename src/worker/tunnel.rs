//! After `101 Switching Protocols`: octets both ways, which nobody reads (RFC 9110 §7.8).

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
};

use super::{Worker, alarm::Alarm, buffer::Size, client::Client, relay::cancel};
use crate::{
    exchange::{Failure, Timer},
    sys::{Duplex, Readiness},
};

/// What went through a tunnel.
pub(super) struct Copied {
    /// Octets towards the client.
    pub(super) down: u64,
    /// Octets towards the backend.
    pub(super) up: u64,
    /// A tunnel that either side ended is no failure.
    pub(super) ended: Result<(), Failure>,
}

/// Copies in both directions until both have ended, one is broken, or nothing has moved in either
/// for `tunnel_idle_timeout`. `to_client` and `to_upstream` are octets that arrived behind the
/// heads.
pub(super) async fn run(
    worker: &Rc<Worker>,
    client: &Client<'_>,
    upstream: &Duplex,
    to_client: Vec<u8>,
    to_upstream: Vec<u8>,
) -> Copied {
    let _open = worker.stats().tunnels_open.hold();
    let alarm = client.alarm;
    alarm.clear_all();
    let progress = |counted: &Cell<u64>, n: usize| {
        counted.set(counted.get() + n as u64);
        expect_octets(worker, alarm);
    };
    expect_octets(worker, alarm);
    let (down_bytes, up_bytes) = (Cell::new(0), Cell::new(0));
    let client = client.connection;
    let mut down = pin!(copy(worker, upstream, client, to_client, |n| progress(&down_bytes, n)));
    let mut up = pin!(copy(worker, client, upstream, to_upstream, |n| progress(&up_bytes, n)));
    let (mut down_end, mut up_end) = (None, None);
    let ended = poll_fn(|cx| {
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
            // One side is broken: the other has nobody to talk to.
            (Some(End::BrokenSink), _) | (_, Some(End::BrokenSource)) => {
                cancel(worker, upstream);
                Poll::Ready(Ok(()))
            }
            (Some(End::BrokenSource), _) | (_, Some(End::BrokenSink)) | (Some(_), Some(_)) => {
                Poll::Ready(Ok(()))
            }
            _ => alarm.poll_expired(cx).map(|timer| {
                Err(match timer {
                    Timer::DrainOver => Failure::BackendDrainTimeout,
                    _ => Failure::TunnelIdle,
                })
            }),
        }
    })
    .await;
    alarm.clear_all();
    Copied { down: down_bytes.get(), up: up_bytes.get(), ended }
}

fn expect_octets(worker: &Worker, alarm: &Alarm) {
    if let Some(wait) = worker.config.timeouts.tunnel_idle {
        alarm.set(Timer::TunnelIdle, wait);
    }
}

#[derive(Clone, Copy)]
enum End {
    OfInput,
    /// Who sent is gone.
    BrokenSource,
    /// Who was to receive is gone.
    BrokenSink,
}

/// Copies one direction to its end, and hands the end on. `progress` hears of octets when they are
/// sent, so that a reader who takes nothing is no progress.
async fn copy(
    worker: &Worker,
    from: &Duplex,
    to: &Duplex,
    first: Vec<u8>,
    progress: impl Fn(usize),
) -> End {
    let mut arrivals = pin!(from.readiness());
    let mut buffer = first;
    loop {
        let octets = buffer.len();
        let (sent, sent_buffer) = to.send_all(buffer).await;
        worker.buffers.give(sent_buffer);
        if sent.is_err() {
            return End::BrokenSink;
        }
        progress(octets);
        // No buffer is held while nothing arrives.
        buffer = loop {
            poll_fn(|cx| arrivals.as_mut().poll_ready(cx)).await;
            let mut buffer = worker.buffers.take(Size::Large);
            match from.try_recv(&mut buffer) {
                Ok(0) => {
                    worker.buffers.give(buffer);
                    to.finish_sending();
                    return End::OfInput;
                }
                Ok(_) => break buffer,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    worker.buffers.give(buffer);
                }
                Err(_) => return End::BrokenSource,
            }
        };
    }
}

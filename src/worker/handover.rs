//! Step 1, between workers: connections that are handed over before anything is read from them.
//!
//! `SO_REUSEPORT` spreads connections by a hash of their addresses, which knows nothing of how many
//! a worker has. Streams last for hours, so what chance piles up on one worker stays there, and its
//! CPU is full while another idles. A worker that has many more than the one with the fewest gives
//! that one what it accepts next (ADR 30).
//!
//! Owns the way from one worker to another. Does not own who may stay: a connection is counted, and
//! perhaps refused, where it is served.
//!
//! Invariants
//! - A connection on its way is in the difference of what was handed over and what was taken over,
//!   and both only rise: whoever adds that to the open connections misses nobody.
//! - Nobody is handed over twice, nor by a worker that drains.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    rc::Rc,
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tracing::error;

use super::{Worker, accept, each_ring};

/// The ways to all workers.
#[derive(Debug)]
pub struct Handovers {
    // Not bounded by themselves: what waits in one counts as load of its worker, so nobody is sent
    // to where more wait than the sender has open.
    inboxes: Box<[Sender<Handed>]>,
    bells: Box<[UnixStream]>,
}

/// A worker's end.
#[derive(Debug)]
pub struct Inbox {
    handed: Receiver<Handed>,
    bell: UnixStream,
}

/// A connection that was accepted elsewhere.
#[derive(Debug)]
struct Handed {
    stream: TcpStream,
    address: SocketAddr,
}

impl Handovers {
    /// Ways to so many workers, and the end of each.
    ///
    /// # Errors
    /// When the process may not open `2 * workers` more descriptors.
    pub fn new(workers: usize) -> io::Result<(Arc<Self>, Vec<Inbox>)> {
        let (mut inboxes, mut bells) = (Vec::new(), Vec::new());
        let mut ends = Vec::new();
        for _ in 0..workers {
            let (inbox, handed) = unbounded();
            let (ringer, bell) = UnixStream::pair()?;
            ringer.set_nonblocking(true)?;
            inboxes.push(inbox);
            bells.push(ringer);
            ends.push(Inbox { handed, bell });
        }
        Ok((Arc::new(Self { inboxes: inboxes.into(), bells: bells.into() }), ends))
    }
}

/// One worker's part in it.
#[derive(Debug)]
pub(super) struct Handover {
    ways: Arc<Handovers>,
    imbalance_max: u64,
}

impl Handover {
    /// `imbalance_max` is how many connections a worker may have more than another.
    pub(super) fn new(ways: Arc<Handovers>, imbalance_max: u32) -> Self {
        Self { ways, imbalance_max: imbalance_max.into() }
    }

    /// Hands a connection to the worker that has the fewest, if this one has too many more. Gives
    /// it back if it has not.
    pub(super) fn try_hand_over(
        &self,
        worker: &Worker,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Option<TcpStream> {
        // Who is on the way to a worker is as good as there.
        let load = |index: usize| {
            let on_the_way = self.ways.inboxes[index].len() as u64;
            worker.all_stats[index].connections_open.get() + on_the_way
        };
        let mine = load(worker.index);
        // Nobody has fewer than none, so the others' counts, which lie in cache lines that they
        // write, are mostly not looked at.
        if mine < self.imbalance_max {
            return Some(stream);
        }
        let loads = (0..self.ways.inboxes.len()).map(load);
        let Some(to) = lighter(loads, worker.index, mine, self.imbalance_max) else {
            return Some(stream);
        };
        // Counted before it leaves.
        worker.stats().connections_handed_over.add(1);
        if let Err(refused) = self.ways.inboxes[to].send(Handed { stream, address }) {
            // That worker has ended, so the process is about to; the account stays even.
            worker.stats().connections_taken_over.add(1);
            return Some(refused.into_inner().stream);
        }
        // A full socket means that the bell is ringing already.
        let _ = (&self.ways.bells[to]).write(&[1]);
        None
    }
}

/// The worker with the smallest load, if one more connection here would put this worker more than
/// `imbalance_max` above it.
fn lighter(
    loads: impl Iterator<Item = u64>,
    here: usize,
    mine: u64,
    imbalance_max: u64,
) -> Option<usize> {
    let others = loads.enumerate().filter(|(index, _)| *index != here);
    let (index, load) = others.min_by_key(|(_, load)| *load)?;
    (mine >= load.saturating_add(imbalance_max)).then_some(index)
}

/// Takes over what others hand to this worker, for as long as it runs: also while it drains,
/// because whoever hands over may not have heard of that yet.
pub(super) async fn heed(worker: Rc<Worker>, inbox: Inbox) {
    let Inbox { handed, bell } = inbox;
    let take_over = || {
        while let Ok(Handed { stream, address }) = handed.try_recv() {
            accept::begin(&worker, stream, address);
            // Behind its own count: see the invariant.
            worker.stats().connections_taken_over.add(1);
        }
    };
    if let Err(error) = each_ring(&worker, bell, take_over).await {
        error!(worker = worker.index, %error, "cannot hear who hands connections over");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_goes_to_the_fewest_when_it_would_put_this_worker_too_far_above() {
        let cases: [(&[u64], u64, Option<usize>); 9] = [
            (&[5], 1, None),
            (&[0, 0], 1, None),
            (&[1, 0], 1, Some(1)),
            (&[3, 0], 4, None),
            (&[4, 0], 4, Some(1)),
            (&[4, 1], 4, None),
            (&[9, 5, 3, 4], 4, Some(2)),
            (&[9, 10, 11], 1, None),
            (&[u64::MAX, 0], u64::MAX, Some(1)),
        ];
        for (loads, imbalance_max, want) in cases {
            let got = lighter(loads.iter().copied(), 0, loads[0], imbalance_max);
            assert_eq!(got, want, "{loads:?} {imbalance_max}");
        }
    }

    #[test]
    fn arrivals_at_one_of_four_workers_leave_none_too_far_above_another() {
        for imbalance_max in [1, 2, 7] {
            let mut loads = [0_u64; 4];
            for _ in 0..100 {
                let to = lighter(loads.into_iter(), 2, loads[2], imbalance_max).unwrap_or(2);
                loads[to] += 1;
                let apart = loads.iter().max().unwrap() - loads.iter().min().unwrap();
                assert!(apart <= imbalance_max, "{loads:?}");
            }
        }
    }
}

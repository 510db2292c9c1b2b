//! The only channel between the control thread and the workers.
//!
//! Downwards go snapshots: one slot per worker in which the newest replaces an older one that the
//! worker has not taken yet, and a one-byte doorbell on a socket pair that the worker reads through
//! its own ring. That costs a request nothing, needs no lock, and keeps monoio's `sync` feature off
//! (ADR 4). Upwards go reports, through one bounded queue for all workers and one doorbell; a full
//! queue drops the report and the worker counts it, because every report is a hint that the next
//! probe or refresh would also give.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender, TrySendError};

pub use crate::model::Report;
use crate::model::Snapshot;

/// Reports that may wait for the control thread.
const REPORTS_MAX: usize = 1024;

/// The control thread's end: publishes to every worker, receives from all.
#[derive(Debug)]
pub struct Publisher {
    workers: Vec<Downlink>,
    reports: Receiver<Report>,
}

#[derive(Debug)]
struct Downlink {
    slot: Sender<Arc<Snapshot>>,
    // The control thread's own handle on the slot, with which it takes back what is outdated.
    outdated: Receiver<Arc<Snapshot>>,
    bell: UnixStream,
}

/// A worker's end.
#[derive(Debug)]
pub struct Subscriber {
    slot: Receiver<Arc<Snapshot>>,
    reporter: Reporter,
}

/// Sends reports. Cheap to call, never blocks.
#[derive(Debug)]
pub struct Reporter {
    queue: Sender<Report>,
    bell: UnixStream,
}

/// Everything that [`connect`] makes.
pub struct Links {
    /// For the control thread.
    pub publisher: Publisher,
    /// The control thread's doorbell: readable when reports wait. Non-blocking.
    pub report_bell: UnixStream,
    /// For each worker, its end and its doorbell: readable when a snapshot waits. Non-blocking.
    pub workers: Vec<(Subscriber, UnixStream)>,
}

/// Links a control thread with `workers` workers.
///
/// # Errors
/// When the process may not open `2 * (workers + 1)` more descriptors.
pub fn connect(workers: usize) -> io::Result<Links> {
    let (queue, reports) = crossbeam_channel::bounded(REPORTS_MAX);
    let (report_bell_ringer, report_bell) = bell()?;
    let mut links = Links {
        publisher: Publisher { workers: Vec::with_capacity(workers), reports },
        report_bell,
        workers: Vec::with_capacity(workers),
    };
    for _ in 0..workers {
        let (slot, receiver) = crossbeam_channel::bounded(1);
        let (ringer, bell) = bell()?;
        links.publisher.workers.push(Downlink { slot, outdated: receiver.clone(), bell: ringer });
        let reporter = Reporter { queue: queue.clone(), bell: report_bell_ringer.try_clone()? };
        links.workers.push((Subscriber { slot: receiver, reporter }, bell));
    }
    Ok(links)
}

fn bell() -> io::Result<(UnixStream, UnixStream)> {
    let (ringer, bell) = UnixStream::pair()?;
    ringer.set_nonblocking(true)?;
    bell.set_nonblocking(true)?;
    Ok((ringer, bell))
}

/// A full socket buffer means that the bell is ringing already, and a closed one that the other
/// side is gone with the process: neither is an error for the ringer.
fn ring(mut bell: &UnixStream) {
    let _ = bell.write(&[1]);
}

impl Publisher {
    /// Hands `snapshot` to every worker. What a worker has not taken yet is replaced.
    pub fn publish(&self, snapshot: &Arc<Snapshot>) {
        for worker in &self.workers {
            let mut newest = Arc::clone(snapshot);
            // Ends: only this thread sends, so after a take-back the slot is free unless the
            // worker was faster, and then it is free as well.
            while let Err(TrySendError::Full(refused)) = worker.slot.try_send(newest) {
                newest = refused;
                let _ = worker.outdated.try_recv();
            }
            ring(&worker.bell);
        }
    }

    /// The next report, if one waits.
    pub fn next_report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

impl Subscriber {
    /// The newest snapshot, if there is one that this worker has not taken.
    pub fn newest(&self) -> Option<Arc<Snapshot>> {
        self.slot.try_recv().ok()
    }

    /// Where this worker reports.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }
}

impl Reporter {
    /// Queues a report and rings.
    ///
    /// # Errors
    /// Gives the report back when the queue is full.
    pub fn report(&self, report: Report) -> Result<(), Report> {
        self.queue.try_send(report).map_err(TrySendError::into_inner)?;
        ring(&self.bell);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::model::{BackendId, Version};

    fn snapshot(version: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { version: Version(version), ..Snapshot::empty() })
    }

    #[test]
    fn a_slow_worker_gets_the_newest_snapshot_and_only_that() {
        let mut links = connect(2).unwrap();
        for version in 1..=100 {
            links.publisher.publish(&snapshot(version));
        }
        for (subscriber, bell) in &mut links.workers {
            assert!(bell.read(&mut [0; 128]).unwrap() > 0);
            assert_eq!(subscriber.newest().unwrap().version, Version(100));
            assert!(subscriber.newest().is_none());
        }
    }

    #[test]
    fn a_full_report_queue_gives_the_report_back() {
        let links = connect(1).unwrap();
        let reporter = links.workers[0].0.reporter();
        for _ in 0..REPORTS_MAX {
            reporter.report(Report::InstanceUnknown).unwrap();
        }
        let refused = Report::ConnectFailed(BackendId(7));
        assert_eq!(reporter.report(refused.clone()), Err(refused));
        assert_eq!(links.publisher.next_report(), Some(Report::InstanceUnknown));
    }
}

//! Which kernel interface a worker runs on: the largest ring that the kernel grants, else epoll.

use std::{fmt, future::Future, io};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::{config::IoDriver, sys::ring};

/// Ring sizes to try, in entries. Ring memory counts against `RLIMIT_MEMLOCK` of the whole user, so
/// a size that worked for one process may not be left for the next (about 410, 205 and 104 KiB).
const RING_ENTRIES: [u32; 3] = [1024, 512, 256];

/// What a worker runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActiveDriver {
    /// A ring with this many entries.
    IoUring(u32),
    /// epoll.
    Epoll,
}

impl fmt::Display for ActiveDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoUring(entries) => write!(f, "io_uring-{entries}"),
            Self::Epoll => f.write_str("epoll"),
        }
    }
}

/// A step down the ladder, and why.
#[derive(Debug)]
pub struct Fallback {
    /// What was tried.
    pub tried: ActiveDriver,
    /// What the kernel said.
    pub error: io::Error,
}

/// Builds a runtime and runs `main` on it to its end. `main` is told what it runs on, and which
/// steps led there.
///
/// # Errors
/// The last refusal, if even the last step permitted by `choice` was refused.
pub(super) fn run_on<F: Future<Output = ()>>(
    choice: IoDriver,
    main: impl FnOnce(ActiveDriver, Vec<Fallback>) -> F,
) -> io::Result<()> {
    let mut fallbacks = Vec::new();
    if choice != IoDriver::Epoll {
        for entries in RING_ENTRIES {
            let tried = ActiveDriver::IoUring(entries);
            match build_ring(entries) {
                Ok(mut runtime) => {
                    runtime.block_on(main(tried, fallbacks));
                    return Ok(());
                }
                // No smaller ring will be allowed where rings are forbidden.
                Err(error) if error.raw_os_error() != Some(libc::ENOMEM) => {
                    fallbacks.push(Fallback { tried, error });
                    break;
                }
                Err(error) => fallbacks.push(Fallback { tried, error }),
            }
        }
        if choice == IoDriver::IoUring {
            let refused = fallbacks.pop().map(|fallback| fallback.error);
            return Err(refused.unwrap_or_else(|| io::ErrorKind::Unsupported.into()));
        }
    }
    let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
    runtime.block_on(main(ActiveDriver::Epoll, fallbacks));
    Ok(())
}

type RingRuntime = monoio::Runtime<monoio::time::TimeDriver<IoUringDriver>>;

fn build_ring(entries: u32) -> io::Result<RingRuntime> {
    let flags = ring::usable_flags()?;
    RuntimeBuilder::<IoUringDriver>::new()
        .uring_builder(ring::builder(flags))
        .with_entries(entries)
        .enable_timer()
        .build()
}

//! Whether io_uring may be used, and with which flags.

use std::io;

use io_uring::{Builder, IoUring, opcode};

/// How a ring is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// Completions are run when the worker enters the kernel anyway, instead of by interrupting it,
    /// and the ring is told that it has one user: together a quarter less CPU per request than the
    /// default (ADR 10). `DEFER_TASKRUN` would save no more, and starves I/O under monoio 0.2.4.
    Tuned,
    /// None, for kernels older than 6.0, which refuse flags that they do not know.
    Plain,
}

/// A builder with these flags.
pub fn builder(flags: Flags) -> Builder {
    let mut builder = IoUring::builder();
    if flags == Flags::Tuned {
        builder.setup_coop_taskrun().setup_single_issuer();
    }
    builder
}

/// Makes a small ring and runs one operation on it; gives the best flags that work.
///
/// monoio asks only whether a ring can be *made*. A seccomp filter that allows the set-up but not
/// the entry would leave a worker spinning at 100 % CPU without a word.
///
/// # Errors
/// The kernel's: `EPERM` or `ENOSYS` when io_uring is forbidden, `ENOMEM` when the memlock limit
/// has no room.
pub fn usable_flags() -> io::Result<Flags> {
    match check(Flags::Tuned) {
        Ok(()) => Ok(Flags::Tuned),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            check(Flags::Plain).map(|()| Flags::Plain)
        }
        Err(error) => Err(error),
    }
}

fn check(flags: Flags) -> io::Result<()> {
    let mut ring: IoUring = builder(flags).build(4)?;
    let nop = opcode::Nop::new().build();
    // SAFETY: a no-op refers to no memory, so nothing has to outlive it.
    unsafe { ring.submission().push(&nop) }
        .map_err(|_| io::Error::other("the submission queue of a new ring is full"))?;
    ring.submit_and_wait(1)?;
    match ring.completion().next() {
        Some(_) => Ok(()),
        None => Err(io::Error::other("a no-op did not complete")),
    }
}

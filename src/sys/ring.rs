//! Whether io_uring may be used, and with which flags.

use std::io;

use io_uring::{Builder, IoUring, opcode};

/// The set-up that every worker's ring gets (ADR 10). Completions are run when the worker enters
/// the kernel anyway, instead of by interrupting it, and the ring is told that it has one user:
/// together a quarter less CPU per request than the default. `DEFER_TASKRUN` would save no more,
/// and starves I/O under monoio 0.2.4.
pub fn builder() -> Builder {
    let mut builder = IoUring::builder();
    builder.setup_coop_taskrun().setup_single_issuer();
    builder
}

/// Makes a small ring and runs one operation on it.
///
/// monoio asks only whether a ring can be *made*. A seccomp filter that allows the set-up but not
/// the entry would leave a worker spinning at 100 % CPU without a word.
///
/// # Errors
/// The kernel's: `EPERM` or `ENOSYS` when io_uring is forbidden, `ENOMEM` when the memlock limit
/// has no room, `EINVAL` when the flags are unknown to it.
pub fn check() -> io::Result<()> {
    let mut ring: IoUring = builder().build(4)?;
    let nop = opcode::Nop::new().build();
    // SAFETY: a no-op refers to no memory, so nothing has to outlive it.
    unsafe { ring.submission().push(&nop) }
        .map_err(|_| io::Error::other("submission queue full"))?;
    ring.submit_and_wait(1)?;
    match ring.completion().next() {
        Some(_) => Ok(()),
        None => Err(io::Error::other("a no-op did not complete")),
    }
}

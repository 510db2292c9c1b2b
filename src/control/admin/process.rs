//! What the kernel says about this process, under the names that Prometheus clients agree on.

use std::{
    fs,
    time::{Duration, Instant, SystemTime},
};

/// Clock ticks per second in `/proc`. Fixed at 100 in the kernel's interface to programs, whatever
/// its own timer does.
const TICKS_PER_SECOND: u64 = 100;

/// A reading. What cannot be read, for want of a `/proc`, is `None` rather than zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessReading {
    /// When the process started, since 1970.
    pub(super) start_time_since_epoch: Duration,
    /// CPU time used, user and system.
    pub(super) cpu_time: Option<Duration>,
    /// Memory in use.
    pub(super) resident_bytes: Option<u64>,
    /// Descriptors in use.
    pub(super) open_fds: Option<u64>,
    /// Descriptors allowed.
    pub(super) max_fds: Option<u64>,
    /// Threads.
    pub(super) threads: Option<u64>,
}

impl ProcessReading {
    /// Reads `/proc/self`. `started` is when the process started.
    pub(super) fn take(started: Instant) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).ok();
        let status = read("status").unwrap_or_default();
        Self {
            start_time_since_epoch: now.saturating_sub(started.elapsed()),
            cpu_time: read("stat").as_deref().and_then(cpu_time),
            resident_bytes: status_number(&status, "VmRSS:").map(|kibibytes| kibibytes * 1024),
            // One of them is the descriptor through which they are counted.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as u64 - 1),
            max_fds: read("limits").as_deref().and_then(max_fds),
            threads: status_number(&status, "Threads:"),
        }
    }
}

fn status_number(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Fields 14 and 15. The second one, the name, may hold blanks and parentheses, so fields are
/// counted from the last parenthesis.
fn cpu_time(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = fields.next()?.ok()? + fields.next()?.ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_the_kernel_writes_it() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 120 34 0 0 20 0 3 0 5 6 7";
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(1540)));
        assert_eq!(cpu_time(""), None);
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t3\n";
        assert_eq!(status_number(status, "VmRSS:"), Some(2048));
        assert_eq!(status_number(status, "Threads:"), Some(3));
        assert_eq!(status_number(status, "VmSwap:"), None);
        let limits = "Limit   Soft  Hard  Units\nMax open files            1024   4096   files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds("Max open files unlimited unlimited files"), None);
    }

    #[test]
    fn this_process_has_threads_memory_and_descriptors() {
        let started = Instant::now();
        let reading = ProcessReading::take(started);
        assert!(reading.threads.is_some_and(|n| n > 0));
        assert!(reading.resident_bytes.is_some_and(|n| n > 100_000));
        assert!(reading.open_fds.is_some_and(|n| n > 2));
        assert!(reading.cpu_time.is_some());
        assert!(reading.start_time_since_epoch > Duration::from_secs(1_700_000_000));
    }
}

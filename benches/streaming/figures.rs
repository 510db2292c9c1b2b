//! What a process costs, as the kernel has it, and how figures are summed up.

use std::{collections::BTreeSet, fs, io};

/// Processor time, in nanoseconds, that a process and its descendants have used so far, all their
/// threads together.
///
/// # Errors
/// There is no such process, or it is not ours to look at.
pub(crate) fn cpu_ns(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for pid in tree(pid)? {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // Threads may end meanwhile.
            if let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) {
                let first = text.split(' ').next().and_then(|first| first.parse::<u64>().ok());
                sum += first.ok_or_else(|| io::Error::other(format!("schedstat: {text:?}")))?;
            }
        }
    }
    Ok(sum)
}

/// Memory, in KiB, that a process and its descendants take up: pages that several share count in
/// parts.
///
/// # Errors
/// There is no such process, or it is not ours to look at.
pub(crate) fn pss_kib(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for pid in tree(pid)? {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        sum += number.ok_or_else(|| io::Error::other(format!("smaps_rollup: {text:?}")))?;
    }
    Ok(sum)
}

/// A process and its descendants.
fn tree(pid: u32) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    let mut pending = vec![pid];
    while let Some(pid) = pending.pop() {
        if !found.insert(pid) {
            continue;
        }
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // Threads may end meanwhile.
            let children = fs::read_to_string(thread?.path().join("children"));
            let children = children.unwrap_or_default();
            pending.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    Ok(found)
}

/// The value below which this share of all lies, 0 if there is none.
pub(crate) fn quantile(sorted: &[u32], share: f64) -> u32 {
    debug_assert!(sorted.is_sorted());
    let Some(last) = sorted.len().checked_sub(1) else { return 0 };
    #[expect(clippy::cast_possible_truncation, reason = "a place in a slice")]
    let index = (last as f64 * share).round() as usize;
    sorted[index.min(last)]
}

//! How many CPUs this process may use, and how to stay on one.

use std::{fs, num::NonZeroUsize};

pub use core_affinity::CoreId;

/// What this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// How many workers can be fed, at least one.
    pub workers: usize,
    /// The CPUs to keep them on; none if the scheduler had better place them.
    pub cores: Vec<CoreId>,
}

/// The CPUs that the affinity mask allows, cut to what the cgroup's CPU quota can feed. A quota of
/// 1.5 CPUs gives two workers: a thread more than the quota is throttled now and then, a thread
/// less wastes what was paid for. Where the quota cuts, workers are not pinned: every container
/// with a quota on the same host would choose the same first CPUs.
pub fn allowance() -> Allowance {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    settle(cores, cgroup_quota())
}

fn settle(cores: Vec<CoreId>, quota: Option<NonZeroUsize>) -> Allowance {
    let available = cores.len().max(1);
    match quota {
        Some(quota) if quota.get() < available => {
            Allowance { workers: quota.get(), cores: Vec::new() }
        }
        _ => Allowance { workers: available, cores },
    }
}

/// Keeps the calling thread on one CPU. Returns whether the kernel agreed.
pub fn pin_to(core: CoreId) -> bool {
    core_affinity::set_for_current(core)
}

/// CPUs that the quota pays for, rounded up: the smallest over this cgroup and its ancestors.
fn cgroup_quota() -> Option<NonZeroUsize> {
    let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
    let v2 = membership.lines().find_map(|line| line.strip_prefix("0::"));
    let v2_quota = v2.and_then(|path| {
        let mut path = format!("/sys/fs/cgroup{}", path.trim_end_matches('/'));
        let mut smallest: Option<NonZeroUsize> = None;
        loop {
            let quota = fs::read_to_string(format!("{path}/cpu.max")).ok();
            if let Some(cpus) = quota.as_deref().and_then(parse_cpu_max) {
                smallest = Some(smallest.map_or(cpus, |s| s.min(cpus)));
            }
            match path.rfind('/') {
                Some(end) if path.len() > "/sys/fs/cgroup".len() => path.truncate(end),
                _ => return smallest,
            }
        }
    });
    v2_quota.or_else(|| {
        let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/cpu/cpu.cfs_{name}_us"));
        parse_cpu_max(&format!("{} {}", read("quota").ok()?.trim(), read("period").ok()?.trim()))
    })
}

/// `quota period` in microseconds; `max` or a negative quota means none.
fn parse_cpu_max(text: &str) -> Option<NonZeroUsize> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    if period == 0 {
        return None;
    }
    NonZeroUsize::new(usize::try_from(quota.div_ceil(period)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_is_rounded_up_and_may_be_absent() {
        let cases = [
            ("max 100000\n", None),
            ("-1 100000", None),
            ("50000 100000\n", Some(1)),
            ("100000 100000", Some(1)),
            ("150000 100000", Some(2)),
            ("0 100000", None),
            ("1 0", None),
            ("junk", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_cpu_max(text).map(NonZeroUsize::get), want, "{text:?}");
        }
    }

    #[test]
    fn workers_are_pinned_unless_a_quota_shares_the_host() {
        let cores = |n| (0..n).map(|id| CoreId { id }).collect::<Vec<_>>();
        let quota = NonZeroUsize::new;
        assert_eq!(settle(cores(4), None), Allowance { workers: 4, cores: cores(4) });
        assert_eq!(settle(cores(4), quota(4)), Allowance { workers: 4, cores: cores(4) });
        assert_eq!(settle(cores(4), quota(2)), Allowance { workers: 2, cores: Vec::new() });
        assert_eq!(settle(Vec::new(), None), Allowance { workers: 1, cores: Vec::new() });
        assert!(allowance().workers >= 1);
    }
}

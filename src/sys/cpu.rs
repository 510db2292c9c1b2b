//! How many CPUs this process may use, and how to stay on one.

use std::{fs, num::NonZeroUsize};

pub use core_affinity::CoreId;

/// The CPUs to run workers on: those that the affinity mask allows, cut to what the cgroup's CPU
/// quota can feed. A quota of 1.5 CPUs gives two workers: a thread more than the quota is throttled
/// now and then, a thread less wastes what was paid for.
pub fn allowed() -> Vec<CoreId> {
    let mut cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(quota) = cgroup_quota() {
        cores.truncate(quota.get());
    }
    cores
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
    fn at_least_one_cpu_is_allowed_here() {
        assert!(!allowed().is_empty());
    }
}

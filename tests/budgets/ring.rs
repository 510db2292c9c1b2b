//! What a worker has asked its ring for, as the kernel and the ring itself tell it.
//!
//! `/proc/self/fdinfo` says how many entries the kernel has taken so far; the entries themselves
//! stay in the ring's memory, which this process shares, until the ring has gone round.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, read_dir, read_link, read_to_string},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::support::wait_until;

/// Offset at which the kernel maps the submission entries (`IORING_OFF_SQES`).
const ENTRIES_OFFSET: &str = "10000000";

/// Octets of one entry; its first names the operation.
const ENTRY_BYTES: u64 = 64;

/// Operations by their number (`enum io_uring_op`), as far as we use them.
const OPERATIONS: [(u8, &str); 10] = [
    (2, "writev"),
    (6, "poll"),
    (13, "accept"),
    (14, "cancel"),
    (16, "connect"),
    (19, "close"),
    (22, "read"),
    (23, "write"),
    (26, "send"),
    (27, "recv"),
];

/// The ring of the one worker that was started last. The other ring of a worker, that of its
/// standing polls, is much smaller.
pub(crate) struct Ring {
    fdinfo: PathBuf,
    entries_at: u64,
    entries: u64,
}

/// Rings and their memory that are there already.
pub(crate) struct Known(BTreeSet<String>);

/// How often each operation was asked for.
pub(crate) type Operations = BTreeMap<String, u64>;

fn rings() -> BTreeSet<String> {
    let fds = read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let is_ring = |path: &PathBuf| {
        read_link(path).is_ok_and(|target| target.as_os_str() == "anon_inode:[io_uring]")
    };
    let paths = fds.map(|entry| entry.path()).filter(is_ring);
    let mut found: BTreeSet<String> =
        paths.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let maps = read_to_string("/proc/self/maps").unwrap();
    let of_rings = maps.lines().filter(|line| line.ends_with("anon_inode:[io_uring]"));
    found.extend(
        of_rings
            .filter(|line| line.split_whitespace().nth(2) == Some(ENTRIES_OFFSET))
            .map(|line| line.split_whitespace().next().unwrap().to_owned()),
    );
    found
}

impl Known {
    /// Those that are there now.
    pub(crate) fn look() -> Self {
        Self(rings())
    }

    /// The one that has come since.
    pub(crate) fn newcomer(self) -> Ring {
        let new: Vec<String> = rings().difference(&self.0).cloned().collect();
        let (maps, fds): (Vec<_>, Vec<_>) = new.iter().partition(|name| name.contains('-'));
        let ends = maps.iter().map(|map| {
            let (from, to) = map.split_once('-').unwrap();
            [from, to].map(|address| u64::from_str_radix(address, 16).unwrap())
        });
        let largest = ends.max_by_key(|[from, to]| to - from);
        let info = |fd| ["/proc/self/fdinfo", fd].iter().collect::<PathBuf>();
        let rings = fds.iter().map(|fd| info(fd));
        let fdinfo = rings.max_by_key(|fdinfo| field(fdinfo, "SqMask"));
        let (Some([from, to]), Some(fdinfo)) = (largest, fdinfo) else {
            panic!("no ring: {new:?}")
        };
        Ring { fdinfo, entries_at: from, entries: (to - from) / ENTRY_BYTES }
    }
}

/// What the kernel says of a ring, in decimal or in hexadecimal.
fn field(fdinfo: &Path, name: &str) -> u64 {
    let text = read_to_string(fdinfo).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = line.unwrap_or_else(|| panic!("no {name} in {text}")).trim();
    value
        .strip_prefix("0x")
        .map_or_else(|| value.parse(), |hex| u64::from_str_radix(hex, 16))
        .unwrap()
}

impl Ring {
    /// Entries that the kernel has taken so far.
    fn taken(&self) -> u64 {
        field(&self.fdinfo, "CachedSqHead")
    }

    /// Counts what the worker asks for while something is going on. No more than the ring has
    /// entries, or the first of them are gone.
    pub(crate) fn during(&self, action: impl FnOnce()) -> Operations {
        let before = self.settled();
        action();
        let after = self.settled();
        assert!(after - before <= self.entries, "more than the ring remembers");
        let memory = File::open("/proc/self/mem").unwrap();
        let mut operations = Operations::new();
        for number in before..after {
            let mut operation = [0];
            let at = self.entries_at + number % self.entries * ENTRY_BYTES;
            memory.read_exact_at(&mut operation, at).unwrap();
            let known = OPERATIONS.iter().find(|(code, _)| *code == operation[0]);
            let name = known.map_or_else(|| format!("{operation:?}"), |(_, name)| (*name).into());
            *operations.entry(name).or_default() += 1;
        }
        operations
    }

    /// The number of entries, once the worker has done what it is doing.
    fn settled(&self) -> u64 {
        let mut last = self.taken();
        wait_until("the worker is quiet", || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            last == std::mem::replace(&mut last, self.taken())
        });
        last
    }
}

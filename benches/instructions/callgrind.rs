//! One run under callgrind for all cases: it collects only inside [`callgrind_counts_this`], and
//! writes a part of its output each time that returns.

use std::{fs, path::Path, process::Command};

/// The argument with which this program does nothing but run its cases.
pub(crate) const COUNT: &str = "--count";

/// What callgrind is told of the function, in two patterns that match it however it is mangled: of
/// two options for one and the same pattern, valgrind 3.19 forgets one.
const COLLECT: &str = "--toggle-collect=*callgrind_counts_this*";
const DUMP: &str = "--dump-after=*allgrind_counts_this*";

/// Runs of a case before it is counted: whatever grows once has grown, and what is resolved once by
/// the linker has been.
const WARM_UP: u32 = 3;

/// Instructions of one run of a case.
pub(crate) struct Count {
    pub(crate) name: String,
    pub(crate) instructions: u64,
}

/// Runs `operation` so many times. Nothing else of this program is counted. Not generic and never
/// inlined, so that it is one function with one name.
#[inline(never)]
fn callgrind_counts_this(times: u32, operation: &mut dyn FnMut()) {
    for _ in 0..times {
        operation();
    }
}

/// Runs cases, and prints in which order.
pub(crate) struct Cases;

impl Cases {
    /// Counts one run of `operation`: the mean of so many, where they differ.
    pub(crate) fn case(&mut self, name: &str, times: u32, mut operation: impl FnMut()) {
        (0..WARM_UP).for_each(|_| operation());
        println!("{times} {name}");
        callgrind_counts_this(times, &mut operation);
    }
}

/// Starts this program under callgrind and gathers what it counted.
pub(crate) fn count() -> Result<Vec<Count>, String> {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("callgrind.out");
    // One of an earlier run would be taken for this one's.
    let _ = fs::remove_file(&output);
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--combine-dumps=yes"])
        .arg(format!("--callgrind-out-file={}", output.display()))
        .args([COLLECT, DUMP])
        .arg(this)
        .arg(COUNT)
        // Where the stack begins depends on how much lies above it: the same everywhere.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !ran.status.success() {
        return Err(format!("{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr)));
    }
    let names = String::from_utf8_lossy(&ran.stdout);
    let text = fs::read_to_string(&output).map_err(|e| format!("{}: {e}", output.display()))?;
    let totals = text.lines().filter_map(|line| line.strip_prefix("totals: "));
    let totals: Vec<u64> = totals.filter_map(|total| total.trim().parse().ok()).collect();
    let cases: Vec<(u64, &str)> = names
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(times, name)| Some((times.parse().ok()?, name)))
        .collect();
    // The last part is what is left at the end, which is nothing.
    if totals.len() != cases.len() + 1
        || totals.last() != Some(&0)
        || totals[..cases.len()].contains(&0)
    {
        return Err(format!("{} cases, but parts of {totals:?}", cases.len()));
    }
    let counts = cases.into_iter().zip(totals).map(|((times, name), total)| Count {
        name: name.to_owned(),
        instructions: (total + times / 2) / times,
    });
    Ok(counts.collect())
}

//! The program under strace, and what its worker did between two marks.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Backend, Process, process, wait_until};

/// How often each kind of call was made.
pub(crate) type Calls = BTreeMap<String, u64>;

/// A program that is being traced.
pub(crate) struct Traced {
    pub(crate) process: Process,
    directory: Scratch,
}

/// A directory that goes with everything in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is in the way of nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether there is a strace that may trace.
pub(crate) fn is_there() -> bool {
    Command::new("strace").args(["-D", "true"]).output().is_ok_and(|out| out.status.success())
}

impl Traced {
    /// Starts the program with one worker on this driver, and waits until it serves.
    pub(crate) fn start(name: &str, driver: &str, backend: &Backend) -> Self {
        let place = format!("{}/{name}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
        let directory = Scratch(place.into());
        fs::create_dir_all(&directory.0).unwrap();
        let trace = directory.0.join("trace").display().to_string();
        // The tracer is a grandchild (-D), so that the child can be ended and waited for.
        let strace = ["strace", "-D", "-ff", "-qq", "-s", "128", "-o", &trace];
        let mut command = process::before(process::under(&strace), &[backend]);
        command
            .env("STEPFLOW_LB_WORKERS", "1")
            .env("STEPFLOW_LB_IO_DRIVER", driver)
            .env("HEALTH_CHECK_INTERVAL", "1h");
        let process = Process::start(command);
        process.wait_for_healthy(1);
        Self { process, directory }
    }

    /// Ends the program. Gives the lines of the trace of each thread.
    pub(crate) fn end(self) -> Traces {
        let Self { process, directory } = self;
        drop(process);
        let is_written = || traces(&directory.0).iter().all(|t| t.trim_end().ends_with("+++"));
        wait_until("strace has written how every thread ended", is_written);
        Traces(traces(&directory.0))
    }
}

fn traces(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files.map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// What every thread did.
pub(crate) struct Traces(Vec<String>);

impl Traces {
    /// What the worker did from behind the line that holds `begin` to the one that holds `end`.
    pub(crate) fn between(&self, begin: &str, end: &str) -> Vec<&str> {
        let worker = self.0.iter().find(|trace| trace.contains(begin));
        let worker = worker.unwrap_or_else(|| panic!("nobody received {begin:?}"));
        let lines: Vec<&str> = worker.lines().collect();
        let place = |text| lines.iter().position(|line| line.contains(text));
        let (Some(from), Some(to)) = (place(begin), place(end)) else {
            panic!("no {end:?} behind {begin:?}");
        };
        lines[from + 1..=to].to_vec()
    }
}

/// Counts the calls by what they did. Left out is what happens more or less often as the machine is
/// busy: calls that found nothing to do, waiting for the driver, the bells of turns, and entering
/// the ring, of which only is counted what it was entered with.
pub(crate) fn calls(lines: &[&str]) -> Calls {
    const BELL: &str = r#", "\1"#;
    let mut calls = Calls::new();
    for line in lines {
        let Some((name, rest)) = line.split_once('(') else { continue };
        let is_idle = rest.contains(" = -1 EAGAIN") || rest.ends_with("= 0 (Timeout)");
        let (kind, n) = match name {
            "io_uring_enter" => {
                let submitted = rest.split(", ").nth(1).and_then(|n| n.parse().ok());
                ("submitted to the ring", submitted.expect("a number"))
            }
            "epoll_wait" => continue,
            "recvfrom" if rest.contains("MSG_PEEK") => ("peek", 1),
            _ if is_idle || rest.contains(BELL) => continue,
            "recvfrom" => ("recv", 1),
            "sendto" => ("send", 1),
            other => (other, 1),
        };
        *calls.entry(kind.to_owned()).or_default() += n;
    }
    calls
}

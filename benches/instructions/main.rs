//! Instructions of the hot path, counted by callgrind and held against `benches/budgets.toml`.
//!
//! `cargo bench --bench instructions` starts itself once under valgrind, compares, and fails where
//! a count has left its budget; with `-- --update` it writes what it counted. `benches/README.md`
//! says how to read it, and `scripts/budgets.sh` is the short form of both.

#![allow(clippy::unwrap_used, reason = "a bench that cannot set up its world has failed")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is what it is for")]

mod budgets;
mod callgrind;
mod cases;

use std::process::ExitCode;

// The program's own allocator: what allocation costs is part of what is counted.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let has = |word| std::env::args().skip(1).any(|argument| argument == word);
    if has(callgrind::COUNT) {
        cases::run_all(&mut callgrind::Cases);
        return ExitCode::SUCCESS;
    }
    // Other processors execute other instructions.
    if !cfg!(target_arch = "x86_64") {
        eprintln!("SKIPPED: the budgets are those of x86_64");
        return ExitCode::SUCCESS;
    }
    let counts = match callgrind::count() {
        Ok(counts) => counts,
        Err(problem) => {
            eprintln!("cannot count instructions: {problem}");
            return ExitCode::FAILURE;
        }
    };
    let verdict = if has("--update") { budgets::update(&counts) } else { budgets::check(&counts) };
    verdict.unwrap_or_else(|problem| {
        eprintln!("{}: {problem}", budgets::FILE);
        ExitCode::FAILURE
    })
}

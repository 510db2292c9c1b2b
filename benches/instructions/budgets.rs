//! The budgets: reading, comparing, writing.

use std::{collections::BTreeMap, fmt::Write, fs, process::ExitCode};

use crate::callgrind::Count;

/// Where they are, from the directory of the package, in which cargo starts benches.
pub(crate) const FILE: &str = "benches/budgets.toml";

/// How far a count may be from its budget, in percent and, because a few instructions are many
/// percent of a small function, in instructions: one more `push` that the compiler found useful is
/// no news.
const TOLERANCE_PERCENT: u64 = 3;
const TOLERANCE_INSTRUCTIONS: u64 = 4;

const HEADER: &str = "\
# Instructions of one run of each case in benches/instructions/cases.rs, counted by callgrind with
# the compiler of rust-toolchain.toml, on x86_64. Checked by `scripts/budgets.sh`, written by
# `scripts/budgets.sh --update`. What a change does to them belongs into its commit message.

";

type Budgets = BTreeMap<String, u64>;

/// What a count is to its budget.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Within,
    /// Something has become slower.
    Above,
    /// Something has become faster. A failure too: a budget with room in it would hide the next
    /// change for the worse, and the remedy is one command.
    Below,
    /// There is no budget for it.
    New,
}

fn judge(budget: Option<u64>, count: u64) -> Verdict {
    let Some(budget) = budget else { return Verdict::New };
    let tolerance = budget * TOLERANCE_PERCENT / 100 + TOLERANCE_INSTRUCTIONS;
    match count {
        n if n > budget + tolerance => Verdict::Above,
        n if n + tolerance < budget => Verdict::Below,
        _ => Verdict::Within,
    }
}

fn read() -> Result<Budgets, String> {
    let text = fs::read_to_string(FILE).map_err(|error| error.to_string())?;
    toml::from_str(&text).map_err(|error| error.to_string())
}

/// Compares, prints every count, and at the end what scripts/test.sh adds up.
pub(crate) fn check(counts: &[Count]) -> Result<ExitCode, String> {
    let budgets = read()?;
    let mut failed = Vec::new();
    for Count { name, instructions } in counts {
        let budget = budgets.get(name).copied();
        let percent = budget.map_or(0.0, |budget| *instructions as f64 * 100.0 / budget as f64);
        println!("{name:44} {instructions:9}  {:5.1} % of its budget", percent);
        let advice = match judge(budget, *instructions) {
            Verdict::Within => continue,
            Verdict::Above => "is above its budget: see what has become slower",
            Verdict::Below => "is below its budget: lower it with scripts/budgets.sh --update",
            Verdict::New => "has no budget: give it one with scripts/budgets.sh --update",
        };
        let budget = budget.map_or_else(|| "none".to_owned(), |budget| budget.to_string());
        failed.push(format!("{name} {advice} (budget {budget}, counted {instructions})"));
    }
    let passed = counts.len() - failed.len();
    let is_counted = |name: &&String| counts.iter().any(|count| count.name == **name);
    failed.extend(
        budgets
            .keys()
            .filter(|name| !is_counted(name))
            .map(|name| format!("{name} has a budget, and is counted nowhere")),
    );
    failed.iter().for_each(|line| println!("FAILED {line}"));
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {} failed; 0 ignored", failed.len());
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the counts the budgets, and prints what changes.
pub(crate) fn update(counts: &[Count]) -> Result<ExitCode, String> {
    let before = read().unwrap_or_default();
    let mut text = HEADER.to_owned();
    for Count { name, instructions } in counts {
        // What is within stays, or every update would touch every line.
        let budget = match (judge(before.get(name).copied(), *instructions), before.get(name)) {
            (Verdict::Within, Some(budget)) => *budget,
            (_, before) => {
                let before = before.map_or_else(|| "none".to_owned(), u64::to_string);
                println!("{name}: {before} -> {instructions}");
                *instructions
            }
        };
        writeln!(text, "\"{name}\" = {budget}").expect("a text takes all that is written to it");
    }
    fs::write(FILE, text).map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

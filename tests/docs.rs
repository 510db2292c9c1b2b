//! Checks that the documentation is true where a program can tell: what it links to exists, the
//! tests and decisions that it names exist, and the public interface is in the changelog.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

#[path = "support/tree.rs"]
mod tree;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use stepflow_load_balancer::{
    config::{OUR_PREFIX, SETTINGS},
    exchange::Failure,
};
use tree::{expect_none, files};

/// Where text stands that speaks about the project.
const EVERYWHERE: &[&str] = &[
    "src",
    "tests",
    "scripts",
    "config",
    "deploy",
    "docs",
    "README.md",
    "CHANGELOG.md",
    "Cargo.toml",
    "clippy.toml",
    "deny.toml",
    "Dockerfile",
];

/// Pages written for people.
const PAGES: &[&str] =
    &["README.md", "CHANGELOG.md", "docs", "benches/README.md", "tests/stepflow/README.md"];

const DECISIONS: &str = "docs/adr";
const DECISION_HEADINGS: [&str; 4] =
    ["## Context", "## Decision", "## Consequences", "## What would change our mind"];

/// A decision is a page, not an essay.
const DECISION_LINES_MAX: usize = 70;

#[test]
fn links_lead_somewhere() {
    let mut errors = Vec::new();
    for (page, text) in files(PAGES, &["md"]) {
        for target in prose(&text).flat_map(links) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let found = match path {
                "" => page.clone(),
                path => page.with_file_name(path),
            };
            if !found.exists() {
                errors.push(format!("{}: {target} does not exist", page.display()));
            } else if !anchor.is_empty() && !anchors(&found).contains(anchor) {
                errors.push(format!("{}: {target}: no such heading", page.display()));
            }
        }
    }
    expect_none(&errors);
}

#[test]
fn decisions_that_are_cited_exist_and_have_their_form() {
    let mut errors = Vec::new();
    let index = std::fs::read_to_string(Path::new(DECISIONS).join("README.md")).unwrap();
    let mut numbers = BTreeSet::new();
    for (path, text) in files(&[DECISIONS], &["md"]) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "README.md" {
            continue;
        }
        let place = path.display();
        let number: Option<u32> = name.split('-').next().and_then(|digits| digits.parse().ok());
        let Some(number) = number.filter(|_| name.len() > 8) else {
            errors.push(format!("{place}: not named NNNN-title.md"));
            continue;
        };
        numbers.insert(number);
        if !text.starts_with(&format!("# {number}. ")) {
            errors.push(format!("{place}: must begin with `# {number}. `"));
        }
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with("## ")).collect();
        if headings != DECISION_HEADINGS {
            errors.push(format!("{place}: headings {headings:?}, not {DECISION_HEADINGS:?}"));
        }
        if text.lines().count() > DECISION_LINES_MAX {
            errors.push(format!("{place}: longer than {DECISION_LINES_MAX} lines"));
        }
        if !index.contains(&format!("({name})")) {
            errors.push(format!("{place}: not in the index"));
        }
    }
    for (place, text) in files(EVERYWHERE, &[]) {
        for cited in numbers_behind(&text, "ADR ").filter(|cited| !numbers.contains(cited)) {
            errors.push(format!("{}: ADR {cited} does not exist", place.display()));
        }
    }
    expect_none(&errors);
}

#[test]
fn pages_that_are_named_exist() {
    let mut errors = Vec::new();
    for (place, text) in files(EVERYWHERE, &[]) {
        for rest in text.split("docs/").skip(1) {
            let is_name = |c: &char| c.is_ascii_alphanumeric() || "_-./".contains(*c);
            let name: String = rest.chars().take_while(is_name).collect();
            if let Some(end) = name.find(".md") {
                let page = PathBuf::from("docs").join(&name[..end + 3]);
                if !page.exists() {
                    errors.push(format!("{}: {} does not exist", place.display(), page.display()));
                }
            }
        }
    }
    expect_none(&errors);
}

#[test]
fn each_guarantee_names_a_test_that_exists_or_is_pending() {
    let tests = names_of_tests();
    let page = std::fs::read_to_string("docs/GUARANTEES.md").unwrap();
    let mut errors = Vec::new();
    let mut promises = 0;
    for line in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
        // The last column is the proof; a cell holds no bar.
        let Some(proof) = line.trim_end_matches('|').rsplit('|').next().map(str::trim) else {
            continue;
        };
        if proof == "proof" {
            continue;
        }
        promises += 1;
        let named: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        if named.is_empty() && !proof.contains("*pending*") {
            errors.push(format!("neither a test nor *pending*: {line}"));
        }
        for name in named.iter().filter(|name| !tests.contains(**name)) {
            errors.push(format!("no test is called {name}"));
        }
    }
    assert!(promises > 10, "the table of promises was not found");
    expect_none(&errors);
}

#[test]
fn the_changelog_names_the_public_interface() {
    let changelog = std::fs::read_to_string("CHANGELOG.md").unwrap();
    let named: BTreeSet<&str> = changelog.split('`').skip(1).step_by(2).collect();
    let mut errors = Vec::new();
    for setting in SETTINGS {
        for name in [setting.key, setting.environment] {
            if !named.contains(name) {
                errors.push(format!("CHANGELOG.md lacks the option `{name}`"));
            }
        }
    }
    for label in Failure::LABELS.iter().filter(|label| !named.contains(*label)) {
        errors.push(format!("CHANGELOG.md lacks the failure `{label}`"));
    }
    let metrics = std::fs::read_to_string("docs/METRICS.md").unwrap();
    let rows = metrics.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut series = 0;
    for name in rows {
        series += 1;
        if !named.contains(name) {
            errors.push(format!("CHANGELOG.md lacks the series `{name}`"));
        }
    }
    assert!(series > 10, "the tables of docs/METRICS.md were not found");
    expect_none(&errors);
}

#[test]
fn variables_that_are_named_exist() {
    let mut errors = Vec::new();
    let mut seen = 0;
    for (page, text) in files(&["README.md", "CHANGELOG.md", "docs", "deploy"], &[]) {
        for rest in text.split(OUR_PREFIX).skip(1) {
            let is_name = |c: &char| c.is_ascii_uppercase() || *c == '_';
            let name: String = rest.chars().take_while(is_name).collect();
            // The prefix alone speaks of all of them.
            if name.is_empty() {
                continue;
            }
            seen += 1;
            let name = format!("{OUR_PREFIX}{name}");
            if !SETTINGS.iter().any(|setting| setting.environment == name) {
                errors.push(format!("{}: there is no {name}", page.display()));
            }
        }
    }
    assert!(seen > 10, "no page names a variable");
    expect_none(&errors);
}

#[test]
fn pages_keep_their_length() {
    let limits = [
        ("docs/ARCHITECTURE.md", 260),
        ("docs/LIFECYCLE.md", 160),
        ("docs/GUARANTEES.md", 220),
        ("docs/THREAT_MODEL.md", 110),
        ("docs/STYLE.md", 120),
    ];
    for (page, lines_max) in limits {
        let lines = std::fs::read_to_string(page).unwrap().lines().count();
        assert!(lines <= lines_max, "{page} has {lines} lines, more than {lines_max}");
    }
}

/// The lines of a page outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// Targets of the inline links in a line.
fn links(line: &str) -> Vec<&str> {
    let behind = line.split("](").skip(1);
    behind.filter_map(|rest| rest.split(')').next()).collect()
}

/// The anchors of a page's headings, as forges make them.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(page).unwrap_or_default();
    let headings = prose(&text).filter(|line| line.starts_with('#'));
    let anchor = |line: &str| -> String {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

fn numbers_behind<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = u32> + 'a {
    text.split(word).skip(1).filter_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
}

/// Functions that are tests: behind a test attribute in Rust, `test_…` in Python.
fn names_of_tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in files(&["src", "tests"], &["rs"]) {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some(rest) = function
                && std::mem::take(&mut is_test)
            {
                names.extend(rest.split(['(', '<']).next().map(str::to_owned));
            }
        }
    }
    for (_, text) in files(&["tests"], &["py"]) {
        let functions = text.lines().filter_map(|line| line.strip_prefix("def test_"));
        let name = |rest: &str| format!("test_{}", rest.split('(').next().unwrap_or_default());
        names.extend(functions.map(name));
    }
    assert!(names.len() > 100, "the tests were not found");
    names
}

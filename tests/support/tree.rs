//! The files of this repository as text, for the tests that read it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file below the directories and among the files `roots` whose name ends in one of
/// `extensions` (all, if none is given), with its text, in order of its path.
pub(crate) fn files(roots: &[&str], extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let mut pending: Vec<PathBuf> = roots.iter().map(PathBuf::from).collect();
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            pending.extend(entries.map(|entry| entry.expect("a readable directory").path()));
        } else if extensions.is_empty() || extensions.iter().any(|e| has_extension(&path, e)) {
            // What is not text is nobody's documentation: compiled Python, for instance.
            if let Ok(text) = fs::read_to_string(&path) {
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "a test that reads nothing passes for the wrong reason");
    found.sort();
    found
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}

/// Fails with everything that was found to be wrong, one line each.
pub(crate) fn expect_none(errors: &[String]) {
    assert!(errors.is_empty(), "\n{}\n", errors.join("\n"));
}

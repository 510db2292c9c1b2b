//! Target `config`: everything that an operator writes.
//!
//! Input: one octet that says where it is written, then text: `t` a TOML file, `e` variables and `f`
//! flags, one in each line, `u` the list of upstreams.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use stepflow_load_balancer::{
    config::{ConfigError, Effective, Environment, File, Invocation, Problem, Sources},
    model::Target as Upstream,
};

use super::Verdict;

/// Properties: nothing panics; an error is one line that names its key; a configuration that is
/// shown as a file is the same configuration when that file is read.
pub fn run(octets: &[u8]) -> Verdict {
    let Some((kind, rest)) = octets.split_first() else { return Verdict::Refused };
    let lines = || rest.split(|b| *b == b'\n');
    let mut sources = Sources::default();
    match kind {
        b't' => {
            let Ok(text) = std::str::from_utf8(rest) else { return Verdict::Refused };
            sources.file = Some(File::parse(Path::new("lb.toml"), text));
        }
        b'e' => {
            let pairs = lines().filter_map(|line| {
                let equals = line.iter().position(|b| *b == b'=')?;
                let word = |octets: &[u8]| OsString::from_vec(octets.to_vec());
                Some((word(&line[..equals]), word(&line[equals + 1..])))
            });
            sources.environment = Environment::from_pairs(pairs);
        }
        b'f' => {
            let arguments = lines().map(|line| std::ffi::OsStr::from_bytes(line).to_owned());
            match Invocation::parse([OsString::from("lb")].into_iter().chain(arguments)) {
                Ok(invocation) => sources.flags = invocation.flags,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    return Verdict::Refused;
                }
            }
        }
        _ => return upstreams(rest),
    }
    let resolution = match sources.resolve() {
        Ok(resolution) => resolution,
        Err(error) => return refused(&error),
    };
    for warning in &resolution.warnings {
        assert!(!warning.to_string().is_empty());
    }
    let shown = Effective(&resolution).to_string();
    let file = Some(File::parse(Path::new("shown.toml"), &shown));
    let again = Sources { file, ..Sources::default() }.resolve();
    let again = again.unwrap_or_else(|error| panic!("{error}\nin what was shown:\n{shown}"));
    assert_eq!(again.config, resolution.config, "shown as:\n{shown}");
    Verdict::Accepted
}

fn refused(error: &ConfigError) -> Verdict {
    assert!(!error.problems.is_empty(), "refused for no reason");
    for problem in &error.problems {
        let line = problem.to_string();
        let named = match problem {
            Problem::Invalid { setting, .. }
            | Problem::NotUnicode { setting, .. }
            | Problem::NotScalar { setting, .. } => {
                assert!(line.contains(setting.accepted), "{line}");
                setting.key
            }
            Problem::UnknownKey { place, .. } | Problem::Syntax { place, .. } => {
                assert!(place.line > 0 && line.contains(&place.to_string()), "{line}");
                "lb.toml"
            }
            Problem::Relation { values, .. } => {
                assert!(line.contains(values[1].setting.key), "{line}");
                values[0].setting.key
            }
            Problem::NoUpstream => "upstream_service",
            Problem::Unreadable { .. } => panic!("nothing is read from disk: {line}"),
        };
        assert!(line.contains(named), "{named} is not named: {line}");
        assert!(!line.contains(['\n', '\r']), "not one line: {line:?}");
    }
    Verdict::Refused
}

/// What is read is written as it was meant.
fn upstreams(text: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(text) else { return Verdict::Refused };
    match Upstream::parse_list(text) {
        Ok(targets) => {
            assert_eq!(targets.len(), text.split(',').count());
            let shown: Vec<String> = targets.iter().map(ToString::to_string).collect();
            assert_eq!(Upstream::parse_list(&shown.join(",")).as_ref(), Ok(&targets));
            Verdict::Accepted
        }
        Err((entry, error)) => {
            assert!(text.contains(&entry) && !error.reason().is_empty());
            Verdict::Refused
        }
    }
}

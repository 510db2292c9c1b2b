//! What can be wrong with a configuration, in words for whoever wrote it.

use std::{fmt, path::PathBuf};

use super::options::Setting;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Environment,
    /// A line of the configuration file.
    File(Place),
    /// The `demo` command, which has defaults of its own.
    Demo,
    /// Another option, named here, that implies this one.
    Implied(&'static str),
    /// Nobody said anything.
    Default,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as the operator named it.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
}

/// Everything that is wrong, in the order in which an operator would look for it.
#[derive(Debug, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong. Its text is one line that names the key, the value, where it came from
/// and what would be accepted.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A value that its option does not take.
    #[error(
        "invalid value {value:?} for {} ({}): {}expected {}",
        .setting.key, .source_.of(.setting), because(.reason), .setting.accepted
    )]
    Invalid {
        /// The option.
        setting: &'static Setting,
        /// The value as written.
        value: String,
        /// Where it was written. (`source` would make it an error's cause.)
        source_: Source,
        /// What is wrong in particular, where the expected form alone does not say it.
        reason: Option<String>,
    },
    /// A variable whose octets are not UTF-8.
    #[error(
        "invalid value {value} for {} (environment {}): it is not UTF-8; expected {}",
        .setting.key, .setting.environment, .setting.accepted
    )]
    NotUnicode {
        /// The option.
        setting: &'static Setting,
        /// The value in quotes, with its invalid octets escaped.
        value: String,
    },
    /// A key in the file that is no option.
    #[error("unknown key {} (file {place}){}", .key.escape_debug(), did_you_mean(.nearest))]
    UnknownKey {
        /// As written.
        key: String,
        /// Where.
        place: Place,
        /// What was probably meant.
        nearest: Option<&'static str>,
    },
    /// A table, an array or a date where one value belongs.
    #[error(
        "invalid value for {} (file {place}): it is a TOML {found}; expected a string or a number: {}",
        .setting.key, .setting.accepted
    )]
    NotScalar {
        /// The option.
        setting: &'static Setting,
        /// Where.
        place: Place,
        /// What TOML calls it.
        found: &'static str,
    },
    /// The file is not TOML.
    #[error("file {place} is not TOML: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says, on one line.
        message: String,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration file {} (flag --config): {error}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Nobody said where the backends are.
    #[error(
        "upstream_service is not set: set UPSTREAM_SERVICE, --upstream-service or the key in a \
         --config file to {}; for example UPSTREAM_SERVICE=component-server.stepflow-demo.svc.\
         cluster.local:8080 stepflow-load-balancer; to see it work without any backends: \
         stepflow-load-balancer demo",
        crate::model::Target::ACCEPTED
    )]
    NoUpstream,
    /// Two values that are fine alone and not together.
    #[error("{} and {} do not go together: {reason}", .values[0], .values[1])]
    Relation {
        /// The values.
        values: Box<[Written; 2]>,
        /// Why not.
        reason: &'static str,
    },
}

/// A value and who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The option.
    pub setting: &'static Setting,
    /// The value as written, or the default; empty when there is none.
    pub text: String,
    /// Where it was written.
    pub source: Source,
}

/// Something that is not wrong, but probably not what the operator meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A variable with our prefix that is no option.
    #[error("unknown variable {name} in the environment is ignored{}", did_you_mean(.nearest))]
    UnknownVariable {
        /// As written.
        name: String,
        /// What was probably meant.
        nearest: Option<&'static str>,
    },
    /// An option of the original balancer that is accepted for its manifests' sake.
    #[error(
        "{name} is accepted for compatibility and does nothing: this balancer exports no OTLP; \
         its metrics are scraped from metrics_address"
    )]
    Inert {
        /// The flag or variable.
        name: String,
    },
    /// The demo has backends of its own.
    #[error("{said} is ignored: the demo balances over backends of its own")]
    DemoUpstream {
        /// What was said.
        said: Written,
    },
}

impl Source {
    /// The source with the name that the option has there.
    pub fn of<'a>(&'a self, setting: &'a Setting) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| match self {
            Self::Flag => write!(f, "flag --{}", setting.flag),
            Self::Environment => write!(f, "environment {}", setting.environment),
            Self::File(place) => write!(f, "file {place}"),
            Self::Demo => f.write_str("demo"),
            Self::Implied(key) => write!(f, "implied by {key}"),
            Self::Default => f.write_str("default"),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, text, source } = self;
        write!(f, "{} = {text:?} ({})", setting.key, source.of(setting))
    }
}

fn because(reason: &Option<String>) -> impl fmt::Display + '_ {
    fmt::from_fn(move |f| match reason {
        Some(reason) => write!(f, "{reason}; "),
        None => Ok(()),
    })
}

fn did_you_mean(nearest: &Option<&'static str>) -> impl fmt::Display {
    let nearest = *nearest;
    fmt::from_fn(move |f| match nearest {
        Some(nearest) => write!(f, "; did you mean {nearest}?"),
        None => Ok(()),
    })
}

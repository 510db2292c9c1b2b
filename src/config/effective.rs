//! What `--check` prints: the configuration in effect, as a file that would bring it about again.

use std::fmt;

use super::{
    error::{Source, Written},
    resolve::Resolution,
};

/// Shows every option with its value and where that came from.
#[derive(Clone, Copy, Debug)]
pub struct Effective<'a>(pub &'a Resolution);

impl fmt::Display for Effective<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Configuration in effect for stepflow-load-balancer {}.", VERSION)?;
        let mut group = "";
        for written in &self.0.written {
            if written.setting.group != group {
                group = written.setting.group;
                writeln!(f, "\n# {group}")?;
            }
            let Written { setting, text, source } = written;
            if setting.is_secret() && !text.is_empty() {
                writeln!(
                    f,
                    "# {} is set and not shown # from {}",
                    setting.key,
                    source.of(setting)
                )?;
                continue;
            }
            match source {
                Source::Default => writeln!(f, "{} = {} # default", setting.key, Scalar(text))?,
                Source::Implied(_) => {
                    writeln!(f, "{} = {} # {}", setting.key, Scalar(text), source.of(setting))?;
                }
                _ => {
                    writeln!(
                        f,
                        "{} = {} # from {}",
                        setting.key,
                        Scalar(text),
                        source.of(setting)
                    )?;
                }
            }
        }
        Ok(())
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A text as TOML: a number where it is one, a string elsewhere.
struct Scalar<'a>(&'a str);

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Through a number and back, so that `010`, which is no TOML, becomes a string.
        match self.0.parse::<u32>() {
            Ok(number) if number.to_string() == self.0 => f.write_str(self.0),
            _ => write!(f, "{}", toml::Value::from(self.0)),
        }
    }
}

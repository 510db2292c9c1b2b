//! The command line. Collects texts; what they mean is the table's business.

use std::{ffi::OsString, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{
    environment::is_asked_for,
    error::Warning,
    options::{INERT, SETTINGS, Setting},
};

/// What the program is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Balance.
    Serve,
    /// Balance over backends that the program brings along.
    Demo,
}

/// Whether to go on after the configuration is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Go on.
    Run,
    /// Print the effective configuration and stop.
    Check,
}

/// A command line that has the right form.
#[derive(Debug)]
pub struct Invocation {
    /// What to do.
    pub action: Action,
    /// Whether to do it.
    pub mode: Mode,
    /// The file to read.
    pub config_file: Option<PathBuf>,
    /// The options given.
    pub flags: Flags,
}

/// Options from the command line, as texts.
#[derive(Debug, Default)]
pub struct Flags {
    values: Vec<(&'static Setting, String)>,
    inert: Vec<&'static str>,
}

impl Invocation {
    /// Reads a command line, the program's name included.
    ///
    /// # Errors
    /// A request for help or the version, and every misuse: clap's error knows its text and its
    /// exit code.
    pub fn parse<T>(arguments: impl IntoIterator<Item = T>) -> Result<Self, clap::Error>
    where
        T: Into<OsString> + Clone,
    {
        let matches = command().try_get_matches_from(arguments)?;
        let demo = matches.subcommand_matches("demo");
        let action = if demo.is_some() { Action::Demo } else { Action::Serve };
        // Every flag is global, so the innermost matches have them all.
        let given = demo.unwrap_or(&matches);
        Ok(Self {
            action,
            mode: if given.get_flag("check") { Mode::Check } else { Mode::Run },
            config_file: given.get_one::<PathBuf>("config").cloned(),
            flags: Flags::given(given),
        })
    }
}

impl Flags {
    fn given(matches: &ArgMatches) -> Self {
        let value = |id: &str| matches.get_one::<String>(id);
        let set = |setting: &'static Setting| Some((setting, value(setting.key)?.clone()));
        let asked = |(flag, _): (&'static str, _)| {
            value(flag).is_some_and(|text| is_asked_for(Some(text))).then_some(flag)
        };
        Self {
            values: SETTINGS.iter().filter_map(set).collect(),
            inert: INERT.into_iter().filter_map(asked).collect(),
        }
    }

    /// The value of an option, if it has one that is not blank.
    pub(super) fn value(&self, setting: &Setting) -> Option<&str> {
        let (_, text) = self.values.iter().find(|(given, _)| *given == setting)?;
        Some(text.trim()).filter(|text| !text.is_empty())
    }

    /// Flags that have no effect.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> {
        self.inert.iter().map(|flag| Warning::Inert { name: format!("--{flag}") })
    }
}

fn command() -> Command {
    let demo = Command::new("demo")
        .about("Starts three component servers on loopback and balances over them");
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .global(true)
        .help("TOML file with further options; config/example.toml explains every one");
    let check = Arg::new("check")
        .long("check")
        .action(ArgAction::SetTrue)
        .global(true)
        .help("Validates the configuration, prints what is in effect and why, and exits");
    let inert = INERT
        .iter()
        .map(|(flag, _)| Arg::new(*flag).long(*flag).value_name("VALUE").global(true).hide(true));
    Command::new("stepflow-load-balancer")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .after_help(
            "A flag wins over the variable in the environment, that over the file, and that over \
             the default.\nNumbers without a unit are seconds; ms, s, m and h are units.\nExit \
             codes: 0 after an orderly end, 1 when it could not start, 2 for a wrong configuration.",
        )
        .subcommand(demo)
        .args([config, check])
        .args(SETTINGS.iter().map(argument))
        .args(inert)
}

fn argument(setting: &'static Setting) -> Arg {
    let default = match setting.default {
        "" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let help = format!("{}{default} [env: {}]", setting.help, setting.environment);
    Arg::new(setting.key)
        .long(setting.flag)
        .value_name("VALUE")
        .help(help.clone())
        .long_help(format!("{help}\nAccepts {}", setting.accepted))
        .help_heading(setting.group)
        .global(true)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Invocation, clap::Error> {
        Invocation::parse(["stepflow-load-balancer"].into_iter().chain(line.split_whitespace()))
    }

    #[test]
    fn clap_finds_nothing_wrong_with_the_table() {
        command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for line in
            ["demo --workers 2 --check", "--workers 2 --check demo", "--check demo --workers=2"]
        {
            let invocation = parse(line).unwrap();
            assert_eq!((invocation.action, invocation.mode), (Action::Demo, Mode::Check), "{line}");
            let workers = Setting::by_key("workers").unwrap();
            assert_eq!(invocation.flags.value(workers), Some("2"), "{line}");
        }
    }

    #[test]
    fn misuse_is_an_error_of_its_kind() {
        let cases = [
            ("--wrokers 2", ErrorKind::UnknownArgument),
            ("serve", ErrorKind::InvalidSubcommand),
            ("--workers", ErrorKind::InvalidValue),
            ("--workers 1 --workers 2", ErrorKind::ArgumentConflict),
            ("--version", ErrorKind::DisplayVersion),
            ("--help", ErrorKind::DisplayHelp),
        ];
        for (line, want) in cases {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), want, "{line}");
            assert_eq!(error.exit_code() == 0, !error.use_stderr(), "{line}");
        }
    }

    #[test]
    fn help_names_every_option_with_its_variable_and_default() {
        let help = command().render_long_help().to_string();
        for setting in SETTINGS {
            assert!(help.contains(&format!("--{} ", setting.flag)), "{}", setting.key);
            assert!(help.contains(&format!("[env: {}]", setting.environment)), "{}", setting.key);
            assert!(help.contains(setting.help), "{}", setting.key);
        }
    }
}

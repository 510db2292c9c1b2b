//! From four sources to one [`Config`], or to a list of everything that is wrong.

use std::net::SocketAddr;

use super::{
    Algorithm, Config, EjectionEnds, HealthCheck, LogDestination,
    draft::Draft,
    environment::Environment,
    error::{ConfigError, Problem, Source, Warning, Written},
    file::File,
    flags::Flags,
    options::{LOG_LEVELS, NOT_SHOWN, SETTINGS, Setting},
    units::Refusal,
};
use crate::model::HashOn;

/// Key of the option that must be set.
const UPSTREAM: &str = "upstream_service";
const SAME_PORT: &str = "both listen on the same port of the same address";

/// Everything that was said, by whom.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// On the command line.
    pub flags: Flags,
    /// In the environment.
    pub environment: Environment,
    /// In the file, if there is one.
    pub file: Option<File>,
    /// Defaults of the `demo` command, as key and text; they come before those of the table. Its
    /// upstream is not a default but the point of it, and overrules everybody.
    pub demo: &'a [(&'static str, String)],
}

/// A valid configuration and how it came about.
#[derive(Debug)]
pub struct Resolution {
    /// The configuration.
    pub config: Config,
    /// Every option with its text and source, in the order of the table.
    pub written: Vec<Written>,
    /// What the operator should hear although nothing is wrong.
    pub warnings: Vec<Warning>,
}

impl Sources<'_> {
    /// Decides for each option who is obeyed, reads its text, and checks how the values go
    /// together. A value that is overruled is not looked at.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first thing.
    pub fn resolve(self) -> Result<Resolution, ConfigError> {
        let mut draft = Draft::blank();
        let mut problems = Vec::new();
        let mut written = Vec::with_capacity(SETTINGS.len());
        for setting in SETTINGS {
            let mut choice = self.choose(setting).unwrap_or_else(|problem| {
                problems.push(problem);
                Written::default_of(setting)
            });
            let applied = match choice.text.is_empty() {
                true => Ok(()),
                false => (setting.apply)(&mut draft, &choice.text),
            };
            choice.hide_secret();
            if let Err(refusal) = applied {
                problems.push(invalid(&choice, refusal));
            }
            written.push(choice);
        }
        let mut warnings: Vec<_> =
            self.flags.warnings().chain(self.environment.warnings()).collect();
        warnings.extend(self.overruled_upstream());
        // The missing option may stand in the part of the file that could not be understood.
        let legible = self.file.as_ref().is_none_or(File::is_legible);
        problems.splice(..0, self.file.map(File::into_problems).unwrap_or_default());

        if by_key(&mut written, UPSTREAM).text.is_empty() && legible {
            problems.push(Problem::NoUpstream);
        }
        // Only values that are sound alone are compared: otherwise one slip makes two errors.
        if problems.is_empty() {
            problems.extend(contradictions(&draft, &written));
        }
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        let config = finish(draft, &mut written);
        Ok(Resolution { config, written, warnings })
    }

    /// What the operator said, else the demo, else the default.
    fn choose(&self, setting: &'static Setting) -> Result<Written, Problem> {
        let demo = self.demo.iter().find(|(key, _)| *key == setting.key);
        let demo =
            demo.map(|(_, text)| Written { setting, text: text.clone(), source: Source::Demo });
        if setting.key == UPSTREAM
            && let Some(demo) = demo
        {
            return Ok(demo);
        }
        let said = self.said(setting)?;
        Ok(said.or(demo).unwrap_or_else(|| Written::default_of(setting)))
    }

    /// Flag, environment, file. A blank value is the same as none, because manifests often set
    /// variables to nothing.
    fn said(&self, setting: &'static Setting) -> Result<Option<Written>, Problem> {
        let written =
            |text: &str, source| Ok(Some(Written { setting, text: text.to_owned(), source }));
        if let Some(text) = self.flags.value(setting) {
            return written(text, Source::Flag);
        }
        if let Some(text) = self.environment.value(setting)? {
            return written(text, Source::Environment);
        }
        match self.file.as_ref().and_then(|file| file.value(setting)) {
            Some((text, place)) => written(text, Source::File(place.clone())),
            None => Ok(None),
        }
    }

    fn overruled_upstream(&self) -> Option<Warning> {
        self.demo.iter().find(|(key, _)| *key == UPSTREAM)?;
        let said = self.said(Setting::by_key(UPSTREAM)?).ok()??;
        Some(Warning::DemoUpstream { said })
    }
}

impl Written {
    /// From here on nobody can show it, in whatever message.
    fn hide_secret(&mut self) {
        if self.setting.is_secret() && !self.text.is_empty() {
            NOT_SHOWN.clone_into(&mut self.text);
        }
    }

    fn default_of(setting: &'static Setting) -> Self {
        Self { setting, text: setting.default.to_owned(), source: Source::Default }
    }
}

fn invalid(choice: &Written, refusal: Refusal) -> Problem {
    let reason = match refusal {
        Refusal::Form => None,
        Refusal::Because(reason) => Some(reason),
    };
    let Written { setting, text, source } = choice;
    Problem::Invalid { setting, value: text.clone(), source_: source.clone(), reason }
}

/// What cannot be seen in one value alone.
fn contradictions(draft: &Draft, written: &[Written]) -> Vec<Problem> {
    let config = &draft.config;
    let refresh_reversed = config.dns.refresh_min > config.dns.refresh_max;
    let failing_slower = draft.interval_failing.is_some_and(|pause| pause > config.health.interval);
    let ejection_reversed = config.outliers.ejection > config.outliers.ejection_max;
    let health_is_off_by = match config.health.check {
        HealthCheck::Off => Some("health_check"),
        HealthCheck::Http if config.health.path.is_none() => Some("health_check_path"),
        HealthCheck::Http | HealthCheck::Tcp => None,
    };
    let needs_probe = config.outliers.is_on && config.outliers.ends == EjectionEnds::Probe;
    let file_missing = draft.log_to_file && draft.log_file.is_none();
    let hashes_twice =
        config.algorithm == Algorithm::IpHash && config.balancing.hash_on != HashOn::ClientAddress;
    let rules = [
        (
            collide(config.bind_address, config.metrics_address),
            ("bind_address", "metrics_address"),
            SAME_PORT,
        ),
        (
            config.admin_address.is_some_and(|admin| collide(config.bind_address, admin)),
            ("bind_address", "admin_address"),
            SAME_PORT,
        ),
        (
            config.admin_address.is_some_and(|admin| collide(config.metrics_address, admin)),
            ("metrics_address", "admin_address"),
            SAME_PORT,
        ),
        (
            refresh_reversed,
            ("dns_refresh_min", "dns_refresh_max"),
            "the shortest pause is longer than the longest",
        ),
        (
            config.streams.retry_min > config.streams.retry_max,
            ("stream_retry_min", "stream_retry_max"),
            "the shortest wait is longer than the longest",
        ),
        (
            failing_slower,
            ("health_check_interval_failing", "health_check_interval"),
            "the pause behind a failed check is longer than the usual one",
        ),
        (
            ejection_reversed,
            ("outlier_ejection_time", "outlier_ejection_time_max"),
            "the first ejection is longer than the longest",
        ),
        (
            needs_probe && health_is_off_by.is_some(),
            ("outlier_return", health_is_off_by.unwrap_or("health_check")),
            "without health checks none can end an ejection",
        ),
        (
            !draft.session_keys.is_empty() && draft.session_keys_of_file.is_some(),
            ("session_keys", "session_keys_file"),
            "keys come from one place, or nobody could tell which is first",
        ),
        (
            config.sessions.header.as_ref().is_some_and(|header| {
                header.eq_ignore_ascii_case(&config.sessions.instance_header)
            }),
            ("instance_header", "session_header"),
            "one header cannot hold both a name and a session",
        ),
        (
            config.sessions.cookie.as_ref().is_some_and(|spec| {
                config.sessions.application_cookie.as_deref() == Some(spec.name())
            }),
            ("session_cookie", "session_application_cookie"),
            "one cookie cannot be both the balancer's and the application's",
        ),
        (
            hashes_twice,
            ("algorithm", "hash_on"),
            "ip_hash hashes the client's address; consistent_hash hashes what hash_on says",
        ),
        (
            file_missing,
            ("log_destination", "log_file"),
            "log lines that go to a file need its path",
        ),
    ];
    let find = |key: &str| written.iter().find(|w| w.setting.key == key).cloned();
    let broken = rules.into_iter().filter(|(broken, ..)| *broken);
    broken
        .filter_map(|(_, (left, right), reason)| {
            let values = Box::new([find(left)?, find(right)?]);
            Some(Problem::Relation { values, reason })
        })
        .collect()
}

/// Whether two listeners want the same port. An unspecified address is every address, of both
/// families as far as `::` is concerned.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let every = |x: SocketAddr, y: SocketAddr| {
        x.ip().is_unspecified() && (x.is_ipv6() || x.is_ipv4() == y.is_ipv4())
    };
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || every(a, b) || every(b, a))
}

/// Fills the fields that several options make up, and says so where one implies another.
fn finish(mut draft: Draft, written: &mut [Written]) -> Config {
    if let Some(path) = draft.log_file {
        draft.config.log.destination = LogDestination::File(path);
        let destination = by_key(written, "log_destination");
        if !draft.log_to_file {
            "file".clone_into(&mut destination.text);
            destination.source = Source::Implied("log_file");
        }
    }
    let health = &mut draft.config.health;
    health.interval_failing = draft.interval_failing.unwrap_or(health.interval);
    if health.check == HealthCheck::Http && health.path.is_none() {
        health.check = HealthCheck::Off;
    }
    draft.config.sessions.keys = draft.session_keys_of_file.unwrap_or(draft.session_keys);
    // Somebody who asks for silence means all of it.
    let loudness = |level: &str| LOG_LEVELS.iter().position(|l| *l == level);
    let other = by_key(written, "other_log_level");
    if other.source == Source::Default && loudness(draft.log_level) < loudness(&other.text) {
        draft.other_log_level = draft.log_level;
        draft.log_level.clone_into(&mut other.text);
        other.source = Source::Implied("log_level");
    }
    draft.config.log.filter = draft.rust_log.unwrap_or_else(|| {
        let (level, other) = (draft.log_level, draft.other_log_level);
        format!("{other},stepflow_load_balancer={level},access={level}")
    });
    draft.config
}

fn by_key<'a>(written: &'a mut [Written], key: &str) -> &'a mut Written {
    let found = written.iter_mut().find(|written| written.setting.key == key);
    found.expect("every key of the table has an entry, and only those are asked for")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_collide_when_one_would_take_the_other_s_port() {
        let cases = [
            ("0.0.0.0:1", "0.0.0.0:1", true),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "0.0.0.0:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::1]:1", "0.0.0.0:1", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "0.0.0.0:2", false),
            ("0.0.0.0:0", "0.0.0.0:0", false),
        ];
        for (a, b, want) in cases {
            assert_eq!(collide(a.parse().unwrap(), b.parse().unwrap()), want, "{a} {b}");
        }
    }
}

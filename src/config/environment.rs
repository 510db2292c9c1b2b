//! The environment, read once and handed around as a value, so that nothing else in the program
//! depends on it and tests need none.

use std::{collections::BTreeMap, ffi::OsString};

use super::{
    error::{Problem, Warning},
    nearest::nearest,
    options::{INERT, NOT_SHOWN, OUR_PREFIX, SETTINGS, Setting},
};

/// Names and values.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// One that is made up.
    pub fn from_pairs<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<OsString>,
        V: Into<OsString>,
    {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// The value of an option, if it has one that is not blank.
    pub(super) fn value(&self, setting: &'static Setting) -> Result<Option<&str>, Problem> {
        let Some(value) = self.0.get(std::ffi::OsStr::new(setting.environment)) else {
            return Ok(None);
        };
        match value.to_str() {
            Some(text) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
            None if setting.is_secret() => {
                Err(Problem::NotUnicode { setting, value: NOT_SHOWN.to_owned() })
            }
            None => Err(Problem::NotUnicode { setting, value: format!("{value:?}") }),
        }
    }

    /// Variables that look as if they were meant for us and have no effect.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let names = self.0.iter().filter_map(|(name, value)| Some((name.to_str()?, value)));
        names.filter_map(|(name, value)| warning(name, value.to_str())).collect()
    }
}

fn warning(name: &str, value: Option<&str>) -> Option<Warning> {
    if INERT.iter().any(|(_, inert)| *inert == name) {
        return is_asked_for(value).then(|| Warning::Inert { name: name.to_owned() });
    }
    let rest = name.strip_prefix(OUR_PREFIX)?;
    if SETTINGS.iter().any(|setting| setting.environment == name) || is_service_link(rest) {
        return None;
    }
    // By key, so that STEPFLOW_LB_MAX_FAILURES finds MAX_FAILURES.
    let nearest = nearest(&rest.to_ascii_lowercase(), SETTINGS.iter().map(|setting| setting.key))
        .and_then(Setting::by_key)
        .map(|setting| setting.environment);
    Some(Warning::UnknownVariable { name: name.to_owned(), nearest })
}

/// Whether the value of an inert option asks for something that will not happen.
pub(super) fn is_asked_for(value: Option<&str>) -> bool {
    !matches!(value.map(str::trim), Some("" | "false"))
}

/// Whether Kubernetes injects such a variable for a Service whose name starts with `stepflow-lb`:
/// `…SERVICE_HOST`, `…SERVICE_PORT[_name]`, `…PORT`, `…PORT_8080_TCP[_PROTO|_PORT|_ADDR]`.
fn is_service_link(rest: &str) -> bool {
    let ends_as = |suffix: &str| {
        rest.strip_suffix(suffix).is_some_and(|front| front.is_empty() || front.ends_with('_'))
    };
    let padded = format!("_{rest}");
    let numbered_port = padded.split("_PORT_").skip(1).any(|tail| {
        let mut words = tail.split('_');
        let number = words.next().unwrap_or_default();
        !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
            && matches!(words.next(), Some("TCP" | "UDP" | "SCTP"))
    });
    ends_as("SERVICE_HOST") || ends_as("PORT") || padded.contains("_SERVICE_PORT_") || numbered_port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_variables_with_our_prefix_are_named_with_what_was_meant() {
        let cases = [
            ("STEPFLOW_LB_WORKER", Some("STEPFLOW_LB_WORKERS")),
            ("STEPFLOW_LB_MAX_FAILURES", Some("MAX_FAILURES")),
            ("STEPFLOW_LB_COLOUR", None),
        ];
        for (name, nearest) in cases {
            let want = Warning::UnknownVariable { name: name.to_owned(), nearest };
            assert_eq!(Environment::from_pairs([(name, "1")]).warnings(), [want]);
        }
        let known_or_foreign = [("STEPFLOW_LB_WORKERS", "1"), ("WORKER", "1"), ("PATH", "/")];
        assert_eq!(Environment::from_pairs(known_or_foreign).warnings(), []);
    }

    #[test]
    fn what_kubernetes_injects_for_a_service_is_no_typing_error() {
        let links = [
            "STEPFLOW_LB_SERVICE_HOST",
            "STEPFLOW_LB_SERVICE_PORT",
            "STEPFLOW_LB_SERVICE_PORT_HTTP",
            "STEPFLOW_LB_PORT",
            "STEPFLOW_LB_PORT_8080_TCP",
            "STEPFLOW_LB_PORT_8080_TCP_PROTO",
            "STEPFLOW_LB_PORT_8080_TCP_PORT",
            "STEPFLOW_LB_PORT_8080_TCP_ADDR",
            "STEPFLOW_LB_METRICS_SERVICE_HOST",
            "STEPFLOW_LB_METRICS_PORT_9090_TCP_ADDR",
        ];
        for name in links {
            assert_eq!(Environment::from_pairs([(name, "x")]).warnings(), [], "{name}");
        }
        for name in ["STEPFLOW_LB_REPORT", "STEPFLOW_LB_PORT_X_TCP", "STEPFLOW_LB_HOST"] {
            assert_eq!(Environment::from_pairs([(name, "x")]).warnings().len(), 1, "{name}");
        }
    }

    #[test]
    fn inert_options_warn_only_when_they_ask_for_something() {
        let on = Environment::from_pairs([("STEPFLOW_TRACE_ENABLED", "true")]);
        assert_eq!(on.warnings(), [Warning::Inert { name: "STEPFLOW_TRACE_ENABLED".to_owned() }]);
        let off = [("STEPFLOW_TRACE_ENABLED", "false"), ("STEPFLOW_OTLP_ENDPOINT", "")];
        assert_eq!(Environment::from_pairs(off).warnings(), []);
    }

    #[test]
    fn no_option_of_ours_looks_like_a_service_link() {
        for setting in SETTINGS {
            let rest = setting.environment.strip_prefix(OUR_PREFIX);
            assert!(!rest.is_some_and(is_service_link), "{}", setting.environment);
        }
    }
}

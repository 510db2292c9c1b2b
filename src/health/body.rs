//! Pure: what the answer to a probe says.
//!
//! A component server answers `{"status":"healthy","instanceId":"…"}`. Other servers answer
//! anything, so each part is optional: 2xx alone is healthy, a JSON object is judged by its
//! `status` only if it has one that is text, and an instance is learned only if it names itself.
//! The same holds for the hints about load: one that is not as it should be is as good as none.

use std::num::NonZeroU32;

use serde_json::{Map, Value};

use super::ProbeFailure;
use crate::model::{Hint, Hints, InstanceId, InstanceIdError, StatusSet};

/// Most octets of a health body. Component servers send about 150.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Values of `status` that mean healthy, compared without case. `pass` is the word of the health
/// check format that the IETF drafted, `up` Spring's, `ok` nearly everybody's.
const HEALTHY_STATUSES: [&str; 4] = ["healthy", "ok", "up", "pass"];

/// What the answer of a healthy backend looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Its status is one of these.
    pub statuses: StatusSet,
    /// Its body holds this text; empty for any.
    pub body: String,
}

/// What a healthy backend said about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeSuccess {
    /// Who answered, if the body names it.
    pub instance: Option<InstanceId>,
    /// The body has an `instanceId` that cannot be used.
    pub ignored: Option<InstanceIdFault>,
    /// What it wants of us.
    pub hints: Hints,
    /// `activeStreams`: what it has running, whoever sent it.
    pub active_streams: Option<u32>,
    /// The first hint that cannot be used.
    pub ignored_hint: Option<Hint>,
}

/// Why an `instanceId` cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceIdFault {
    /// It is not text.
    NotText,
    /// It could not travel in a header.
    Invalid(InstanceIdError),
}

impl InstanceIdFault {
    /// What is wrong, for the end of a log line.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotText => "it is not a JSON string",
            Self::Invalid(InstanceIdError::Empty) => "it is empty",
            Self::Invalid(InstanceIdError::TooLong) => "it is longer than 256 octets",
            Self::Invalid(InstanceIdError::NotVisibleAscii) => {
                "it has octets other than visible ASCII"
            }
        }
    }
}

/// What a probe found.
pub type ProbeVerdict = Result<ProbeSuccess, ProbeFailure>;

/// Judges a complete answer.
///
/// # Errors
/// When the backend is not healthy.
pub fn judge(expected: &Expectation, status: u16, body: &[u8]) -> ProbeVerdict {
    if !expected.statuses.contains(status) {
        return Err(ProbeFailure::Status(status));
    }
    if body.len() > BODY_BYTES_MAX {
        return Err(ProbeFailure::BodyTooLarge);
    }
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
        return match holds(body, expected.body.as_bytes()) {
            true => Ok(ProbeSuccess::default()),
            false => Err(ProbeFailure::BodyUnexpected),
        };
    };
    // Whoever expects an error answer does not mean its wording.
    if (200..=299).contains(&status)
        && let Some(Value::String(said)) = fields.get("status")
        && !HEALTHY_STATUSES.iter().any(|healthy| said.eq_ignore_ascii_case(healthy))
    {
        return Err(ProbeFailure::SaysUnhealthy);
    }
    if !holds(body, expected.body.as_bytes()) {
        return Err(ProbeFailure::BodyUnexpected);
    }
    let mut success = ProbeSuccess::default();
    match fields.get("instanceId") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => match InstanceId::parse(text.as_bytes()) {
            Ok(instance) => success.instance = Some(instance),
            Err(error) => success.ignored = Some(InstanceIdFault::Invalid(error)),
        },
        Some(_) => success.ignored = Some(InstanceIdFault::NotText),
    }
    read_hints(&fields, &mut success);
    Ok(success)
}

/// Whether the text occurs in the body. A search that starts anew at each octet: both are bounded,
/// and a text of a few words costs a pass over the body.
fn holds(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}

fn read_hints(fields: &Map<String, Value>, success: &mut ProbeSuccess) {
    let percent = |value: &Value| value.as_u64().filter(|n| *n <= PERCENT_MAX);
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let mut read = Reading { fields, ignored: None };
    success.hints = Hints {
        weight_percent: read.hint(Hint::Weight, |value| u8::try_from(percent(value)?).ok()),
        capacity: read.hint(Hint::Capacity, |value| NonZeroU32::new(number(value)?)),
        draining: read.hint(Hint::Draining, Value::as_bool).unwrap_or(false),
    };
    success.active_streams = read.hint(Hint::ActiveStreams, number);
    success.ignored_hint = read.ignored;
}

const PERCENT_MAX: u64 = Hints::WEIGHT_PERCENT_MAX as u64;

struct Reading<'a> {
    fields: &'a Map<String, Value>,
    ignored: Option<Hint>,
}

impl Reading<'_> {
    fn hint<T>(&mut self, hint: Hint, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.fields.get(hint.name()).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.ignored.get_or_insert(hint);
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expecting(statuses: &str, body: &str) -> Expectation {
        Expectation { statuses: StatusSet::parse(statuses).unwrap(), body: body.to_owned() }
    }

    fn named(id: &str) -> ProbeVerdict {
        let instance = InstanceId::parse(id.as_bytes()).unwrap();
        Ok(ProbeSuccess { instance: Some(instance), ..ProbeSuccess::default() })
    }

    fn anonymous() -> ProbeVerdict {
        Ok(ProbeSuccess::default())
    }

    fn ignored(fault: InstanceIdFault) -> ProbeVerdict {
        Ok(ProbeSuccess { ignored: Some(fault), ..ProbeSuccess::default() })
    }

    #[test]
    fn answers_are_judged_as_documented() {
        let any = expecting("200-299", "");
        let invalid = InstanceIdFault::Invalid;
        let unhealthy = || Err(ProbeFailure::SaysUnhealthy);
        let too_long = format!(r#"{{"instanceId":"{}"}}"#, "a".repeat(257));
        let deep = "[".repeat(1000);
        let cases: &[(u16, &str, ProbeVerdict)] = &[
            (200, r#"{"status":"healthy","instanceId":"pod-1","timestamp":"…"}"#, named("pod-1")),
            (200, r#"{"status":"HEALTHY"}"#, anonymous()),
            (200, r#"{"status":"ok"}"#, anonymous()),
            (200, r#"{"status":"Up"}"#, anonymous()),
            (200, r#"{"status":"pass"}"#, anonymous()),
            (200, r#"{"status":"unhealthy","instanceId":"pod-1"}"#, unhealthy()),
            (200, r#"{"status":"draining"}"#, unhealthy()),
            (200, r#"{"status":""}"#, unhealthy()),
            // Only text is a status; a number may be anybody's.
            (200, r#"{"status":200}"#, anonymous()),
            (200, r#"{"instanceId":"pod-1"}"#, named("pod-1")),
            (200, r#"{"instanceId":null}"#, anonymous()),
            (200, r#"{"instanceId":""}"#, ignored(invalid(InstanceIdError::Empty))),
            (200, r#"{"instanceId":"a b"}"#, ignored(invalid(InstanceIdError::NotVisibleAscii))),
            (200, r#"{"instanceId":"a\r\nb"}"#, ignored(invalid(InstanceIdError::NotVisibleAscii))),
            (200, &too_long, ignored(invalid(InstanceIdError::TooLong))),
            (200, r#"{"instanceId":7}"#, ignored(InstanceIdFault::NotText)),
            (200, "", anonymous()),
            (204, "", anonymous()),
            (200, "OK", anonymous()),
            (200, "<html>", anonymous()),
            (200, r#"["status","unhealthy"]"#, anonymous()),
            (200, r#"{"status":"unhealthy""#, anonymous()),
            (200, &deep, anonymous()),
            (199, "", Err(ProbeFailure::Status(199))),
            (301, "", Err(ProbeFailure::Status(301))),
            (503, r#"{"status":"healthy"}"#, Err(ProbeFailure::Status(503))),
        ];
        for (status, body, want) in cases {
            assert_eq!(&judge(&any, *status, body.as_bytes()), want, "{status} {body}");
        }
    }

    #[test]
    fn body_over_the_limit_is_not_parsed() {
        let body = vec![b' '; BODY_BYTES_MAX + 1];
        let any = expecting("200-299", "");
        assert_eq!(judge(&any, 200, &body), Err(ProbeFailure::BodyTooLarge));
        assert_eq!(judge(&any, 200, &body[1..]), anonymous());
    }

    #[test]
    fn an_answer_is_as_expected_or_the_backend_is_out() {
        let cases = [
            ("200-299", "", 304, "", Err(ProbeFailure::Status(304))),
            ("200,304", "", 304, "", anonymous()),
            ("200,304", "", 204, "", Err(ProbeFailure::Status(204))),
            ("401", "", 401, r#"{"status":"unauthorized"}"#, anonymous()),
            ("200", "ready", 200, "all ready here", anonymous()),
            ("200", "ready", 200, "ready", anonymous()),
            ("200", "ready", 200, "Ready", Err(ProbeFailure::BodyUnexpected)),
            ("200", "ready", 200, "read", Err(ProbeFailure::BodyUnexpected)),
            ("200", "ready", 200, "", Err(ProbeFailure::BodyUnexpected)),
            ("200", "\"db\":true", 200, r#"{"db":true,"instanceId":"a"}"#, named("a")),
            ("200", "db", 200, r#"{"instanceId":"a"}"#, Err(ProbeFailure::BodyUnexpected)),
            ("200", "down", 200, r#"{"status":"down"}"#, Err(ProbeFailure::SaysUnhealthy)),
        ];
        for (statuses, text, status, body, want) in cases {
            let expected = expecting(statuses, text);
            assert_eq!(judge(&expected, status, body.as_bytes()), want, "{expected:?} {body}");
        }
    }

    #[test]
    fn hints_are_taken_as_they_are_or_not_at_all() {
        let none = Hints::default();
        let cases: &[(&str, Hints, Option<u32>, Option<Hint>)] = &[
            ("{}", none, None, None),
            (
                r#"{"weight":30,"capacity":8,"activeStreams":5,"draining":true}"#,
                Hints { weight_percent: Some(30), capacity: NonZeroU32::new(8), draining: true },
                Some(5),
                None,
            ),
            (r#"{"weight":0}"#, Hints { weight_percent: Some(0), ..none }, None, None),
            (r#"{"weight":100}"#, Hints { weight_percent: Some(100), ..none }, None, None),
            (r#"{"weight":null,"draining":false}"#, none, None, None),
            (r#"{"weight":101}"#, none, None, Some(Hint::Weight)),
            (r#"{"weight":-1}"#, none, None, Some(Hint::Weight)),
            (r#"{"weight":1.5}"#, none, None, Some(Hint::Weight)),
            (r#"{"weight":"50"}"#, none, None, Some(Hint::Weight)),
            (r#"{"capacity":0}"#, none, None, Some(Hint::Capacity)),
            (r#"{"capacity":4294967296}"#, none, None, Some(Hint::Capacity)),
            (r#"{"activeStreams":-3}"#, none, None, Some(Hint::ActiveStreams)),
            (r#"{"activeStreams":1e400}"#, none, None, None),
            (r#"{"draining":"yes"}"#, none, None, Some(Hint::Draining)),
            (
                r#"{"draining":1,"capacity":4}"#,
                Hints { capacity: NonZeroU32::new(4), ..none },
                None,
                Some(Hint::Draining),
            ),
        ];
        for (body, hints, active_streams, ignored_hint) in cases {
            let success = judge(&expecting("200", ""), 200, body.as_bytes()).unwrap();
            assert_eq!(success.hints, *hints, "{body}");
            assert_eq!(success.active_streams, *active_streams, "{body}");
            assert_eq!(success.ignored_hint, *ignored_hint, "{body}");
        }
    }
}

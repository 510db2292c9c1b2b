//! Pure: what the answer to a probe says.
//!
//! A component server answers `{"status":"healthy","instanceId":"…"}`. Other servers answer
//! anything, so each part is optional: 2xx alone is healthy, a JSON object is judged by its
//! `status` only if it has one that is text, and an instance is learned only if it names itself.

use serde_json::Value;

use super::ProbeFailure;
use crate::model::{InstanceId, InstanceIdError};

/// Most octets of a health body. Component servers send about 150.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Values of `status` that mean healthy, compared without case. `pass` is the word of the health
/// check format that the IETF drafted, `up` Spring's, `ok` nearly everybody's.
const HEALTHY_STATUSES: [&str; 4] = ["healthy", "ok", "up", "pass"];

/// What a healthy backend said about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeSuccess {
    /// Who answered, if the body names it.
    pub instance: Option<InstanceId>,
    /// The body has an `instanceId` that cannot be used.
    pub ignored: Option<InstanceIdFault>,
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
pub fn judge(status: u16, body: &[u8]) -> ProbeVerdict {
    if !(200..=299).contains(&status) {
        return Err(ProbeFailure::Status(status));
    }
    if body.len() > BODY_BYTES_MAX {
        return Err(ProbeFailure::BodyTooLarge);
    }
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
        return Ok(ProbeSuccess::default());
    };
    if let Some(Value::String(said)) = fields.get("status")
        && !HEALTHY_STATUSES.iter().any(|healthy| said.eq_ignore_ascii_case(healthy))
    {
        return Err(ProbeFailure::SaysUnhealthy);
    }
    Ok(match fields.get("instanceId") {
        None | Some(Value::Null) => ProbeSuccess::default(),
        Some(Value::String(text)) => match InstanceId::parse(text.as_bytes()) {
            Ok(instance) => ProbeSuccess { instance: Some(instance), ignored: None },
            Err(error) => {
                ProbeSuccess { instance: None, ignored: Some(InstanceIdFault::Invalid(error)) }
            }
        },
        Some(_) => ProbeSuccess { instance: None, ignored: Some(InstanceIdFault::NotText) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: &str) -> ProbeVerdict {
        let instance = InstanceId::parse(id.as_bytes()).unwrap();
        Ok(ProbeSuccess { instance: Some(instance), ignored: None })
    }

    fn anonymous() -> ProbeVerdict {
        Ok(ProbeSuccess::default())
    }

    fn ignored(fault: InstanceIdFault) -> ProbeVerdict {
        Ok(ProbeSuccess { instance: None, ignored: Some(fault) })
    }

    #[test]
    fn answers_are_judged_as_documented() {
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
            assert_eq!(&judge(*status, body.as_bytes()), want, "{status} {body}");
        }
    }

    #[test]
    fn body_over_the_limit_is_not_parsed() {
        let body = vec![b' '; BODY_BYTES_MAX + 1];
        assert_eq!(judge(200, &body), Err(ProbeFailure::BodyTooLarge));
        assert_eq!(judge(200, &body[1..]), anonymous());
    }
}

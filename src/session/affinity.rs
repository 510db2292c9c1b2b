//! Pure: `Stepflow-Instance-Id` in requests and responses.

use crate::model::InstanceId;

/// Whom a request must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity<'a> {
    /// Anybody.
    Any,
    /// This instance and no other: the state it needs lives only there.
    Instance(&'a str),
    /// An instance, by a name that no instance can have.
    Nobody,
}

impl<'a> Affinity<'a> {
    /// Reads the field value, if there is one. An empty value names nobody rather than anybody: a
    /// client that lost its instance must hear of it, not end up somewhere else.
    pub fn read(value: Option<&'a [u8]>) -> Self {
        let Some(octets) = value else { return Self::Any };
        let is_id = !octets.is_empty()
            && octets.len() <= InstanceId::BYTES_MAX
            && octets.iter().all(u8::is_ascii_graphic);
        match std::str::from_utf8(octets) {
            Ok(id) if is_id => Self::Instance(id),
            _ => Self::Nobody,
        }
    }
}

/// The instance that a response says it comes from, if it differs from the known one.
pub fn instance_in(value: &[u8], known: Option<&InstanceId>) -> Option<InstanceId> {
    if known.is_some_and(|known| known.as_bytes() == value) {
        return None;
    }
    InstanceId::parse(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_instance_can_have_names_nobody() {
        assert_eq!(Affinity::read(None), Affinity::Any);
        assert_eq!(Affinity::read(Some(b"pod-1")), Affinity::Instance("pod-1"));
        for value in [&b""[..], b"a b", b"\xff", &[b'a'; 257]] {
            assert_eq!(Affinity::read(Some(value)), Affinity::Nobody);
        }
    }

    #[test]
    fn only_news_is_reported() {
        let known = InstanceId::parse(b"pod-1").ok();
        assert_eq!(instance_in(b"pod-1", known.as_ref()), None);
        assert_eq!(instance_in(b"", known.as_ref()), None);
        assert_eq!(instance_in(b"pod-2", known.as_ref()).unwrap().as_str(), "pod-2");
        assert_eq!(instance_in(b"pod-1", None), known);
    }
}

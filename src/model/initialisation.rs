//! Pure: what a client's `initialize` leaves behind, and whether a backend has had it (ADR 21).

use std::{fmt, net::IpAddr, sync::Arc};

use super::BackendId;

/// A request as a backend got it, octet for octet.
///
/// Shown by its length only: what it says is the client's business, and it may hold credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Recording(Arc<[u8]>);

impl Recording {
    /// Keeps a copy.
    pub fn of(octets: &[u8]) -> Self {
        Self(Arc::from(octets))
    }

    /// The octets.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} octets", self.0.len())
    }
}

/// The `initialize` of a client.
#[derive(Clone, PartialEq, Eq)]
pub struct Initialize {
    /// Who sent it.
    pub client: IpAddr,
    /// Its parameters, in a form that is equal when they are: two that agree need no replay.
    pub terms: Arc<str>,
    /// All of it.
    pub request: Recording,
}

impl fmt::Debug for Initialize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Initialize by {}, {:?}", self.client, self.request)
    }
}

/// Whether a backend may take work, as far as its initialisation is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Initialisation {
    /// It has had one, there is none to be had, or it failed to take it too often.
    #[default]
    Settled,
    /// There is one that it has not had: it takes no new work until then.
    Pending,
}

/// How far the newest initialisation has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitialisationProgress {
    /// How many `initialized` have been taken in since the start.
    pub confirmed: u64,
    /// Who had answered `initialize` before the last of them, if anybody.
    pub answered_by: Option<BackendId>,
    /// Backends that take part and have not had it yet.
    pub awaited: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_is_not_shown() {
        let initialize = Initialize {
            client: IpAddr::from([127, 0, 0, 1]),
            terms: Arc::from(r#"{"secret":1}"#),
            request: Recording::of(b"POST / HTTP/1.1\r\nAuthorization: secret\r\n\r\n"),
        };
        let shown = format!("{initialize:?}");
        assert_eq!(shown, "Initialize by 127.0.0.1, 42 octets");
    }
}

//! Pure: one address that serves requests, and who answers there.

use std::{fmt, net::SocketAddr, num::NonZeroU16, sync::Arc};

use super::{Hints, Initialisation};
use crate::stats::BackendStats;

/// Identity of a backend across snapshots: one process at one address.
///
/// An address that answers with another instance id is another backend with another `BackendId`,
/// so counts, pooled connections and affinities of the dead process cannot leak to its successor.
/// Ids are handed out by the plane in rising order and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub u64);

/// The name under which a component server answers (`Stepflow-Instance-Id`).
///
/// One to 256 octets of visible ASCII, so that it is a valid field value (RFC 9110 §5.5), a valid
/// metric label and harmless in a log line.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(Arc<str>);

/// Why some octets are not an instance id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceIdError {
    /// No octets at all.
    Empty,
    /// More than [`InstanceId::BYTES_MAX`].
    TooLong,
    /// Something other than `0x21..=0x7e`.
    NotVisibleAscii,
}

impl InstanceId {
    /// Longest id accepted, in octets. Stepflow's own are a pod name and eight hex digits.
    pub const BYTES_MAX: usize = 256;

    /// Takes the id from a field value or a health body.
    ///
    /// # Errors
    /// Says which of the three conditions the octets break.
    pub fn parse(octets: &[u8]) -> Result<Self, InstanceIdError> {
        if octets.is_empty() {
            return Err(InstanceIdError::Empty);
        }
        if octets.len() > Self::BYTES_MAX {
            return Err(InstanceIdError::TooLong);
        }
        if !octets.iter().all(u8::is_ascii_graphic) {
            return Err(InstanceIdError::NotVisibleAscii);
        }
        let text = std::str::from_utf8(octets).map_err(|_| InstanceIdError::NotVisibleAscii)?;
        Ok(Self(Arc::from(text)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as it travels in a field value.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// Lets a map keyed by `InstanceId` be asked with the octets of a field value, without a copy.
// Sound for `Hash`/`Eq` because `Arc<str>` hashes as `str`, and the map uses this type's own
// `Hash`, which is the one of `str`.
impl std::borrow::Borrow<str> for InstanceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What health checking says about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not judged yet: takes no new work until its first probe succeeds.
    Unprobed,
    /// Takes new work.
    Healthy,
    /// Takes no new work, but stays reachable for requests that name its instance: the state they
    /// need lives only there.
    Unhealthy,
}

/// Whether discovery still names this backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Discovery names it.
    Present,
    /// Discovery dropped it while exchanges were running, or while it may have sessions. It takes
    /// no new work; requests that name its instance still reach it, because what runs may depend
    /// on them, and sessions do.
    Leaving,
}

/// Who wants a backend to take no new work although nothing is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainCause {
    /// The operator, by the admin call.
    Operator,
    /// The backend itself: its health body says that it is draining.
    Backend,
}

impl DrainCause {
    /// The word for it in logs and in the answers of the admin calls.
    pub fn label(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Backend => "backend",
        }
    }
}

/// What the outcomes of real requests say about a backend (docs/HEALTH.md, "Outlier detection").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Takes new work, as far as this is concerned.
    Admitted,
    /// Failed too often: takes no new work for a while, but stays reachable for requests that name
    /// its instance.
    Ejected,
}

/// Share of new work relative to the other backends of the same priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(NonZeroU16);

impl Weight {
    /// What a backend gets when nobody says otherwise.
    pub const ONE: Self = Self(NonZeroU16::MIN);

    /// A weight that somebody chose; `None` for zero, which is a share of nothing.
    pub fn new(weight: u16) -> Option<Self> {
        NonZeroU16::new(weight).map(Self)
    }

    /// An SRV weight. Zero means "hardly ever" (RFC 2782), which the smallest weight expresses.
    pub fn from_srv(weight: u16) -> Self {
        Self(NonZeroU16::new(weight).unwrap_or(NonZeroU16::MIN))
    }

    /// The weight as a number, at least one.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

/// One backend as a snapshot shows it.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Identity across snapshots.
    pub id: BackendId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Who answers there, once known from the health body or a response header.
    pub instance: Option<InstanceId>,
    /// Verdict of the health checks.
    pub health: Health,
    /// Whether discovery still names it.
    pub presence: Presence,
    /// Whether it is being emptied: it takes no new work, and stays reachable for requests that
    /// name its instance until they are done.
    pub draining: Option<DrainCause>,
    /// Verdict of the outlier detection.
    pub standing: Standing,
    /// What it says about itself in its health body.
    pub hints: Hints,
    /// Whether it has had the initialisation that there is.
    pub initialisation: Initialisation,
    /// Share of new work.
    pub weight: Weight,
    /// Lower is preferred; a higher one is used only when no lower one can take work (RFC 2782).
    pub priority: u16,
    /// Exact counts, one cell per worker. Belongs to the identity, so it survives every refresh.
    pub stats: Arc<BackendStats>,
}

/// One word for what a backend is doing, for people. Of several that apply the first one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Discovery dropped it; what runs there finishes.
    Leaving,
    /// Somebody wants it emptied; what runs there finishes.
    Draining,
    /// Healthy, but there is an initialisation that it has not had.
    Uninitialised,
    /// Takes new work.
    Healthy,
    /// Takes none for a while, because requests fail on it.
    Ejected,
    /// Out by its health checks.
    Unhealthy,
    /// Not judged yet.
    Unprobed,
}

impl BackendState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Healthy,
        Self::Ejected,
        Self::Uninitialised,
        Self::Unhealthy,
        Self::Unprobed,
        Self::Draining,
        Self::Leaving,
    ];

    /// The state of a backend.
    pub fn of(backend: &Backend) -> Self {
        match (backend.presence, backend.draining, backend.health, backend.standing) {
            (Presence::Leaving, ..) => Self::Leaving,
            (Presence::Present, Some(_), ..) => Self::Draining,
            (Presence::Present, None, Health::Unprobed, _) => Self::Unprobed,
            (Presence::Present, None, Health::Unhealthy, _) => Self::Unhealthy,
            (Presence::Present, None, Health::Healthy, Standing::Ejected) => Self::Ejected,
            (Presence::Present, None, Health::Healthy, Standing::Admitted) => {
                match backend.initialisation {
                    Initialisation::Pending => Self::Uninitialised,
                    Initialisation::Settled => Self::Healthy,
                }
            }
        }
    }

    /// The word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Leaving => "leaving",
            Self::Draining => "draining",
            Self::Uninitialised => "uninitialised",
            Self::Healthy => "healthy",
            Self::Ejected => "ejected",
            Self::Unhealthy => "unhealthy",
            Self::Unprobed => "unprobed",
        }
    }
}

impl Backend {
    /// May take work that names no instance.
    pub fn takes_new_work(&self) -> bool {
        self.passes_checks() && self.standing == Standing::Admitted
    }

    /// Would take new work if it were not ejected.
    pub fn passes_checks(&self) -> bool {
        self.is_open() && self.health == Health::Healthy
    }

    /// Would take new work if nothing were held against it: discovery names it, neither it nor
    /// anybody else wants it emptied, and it has had the initialisation that there is.
    pub fn is_open(&self) -> bool {
        self.presence == Presence::Present
            && self.draining.is_none()
            && self.initialisation == Initialisation::Settled
    }

    /// It is being emptied: somebody wants it so, or discovery dropped it.
    pub fn is_emptied(&self) -> bool {
        self.presence == Presence::Leaving || self.draining.is_some()
    }

    /// Its share of new work, as discovery says and as it asks for itself, in hundredths.
    pub fn weight_hundredths(&self) -> u32 {
        let percent = self.hints.weight_percent.unwrap_or(Hints::WEIGHT_PERCENT_MAX);
        (u32::from(self.weight.get()) * u32::from(percent)).max(1)
    }
}

#[cfg(test)]
impl Backend {
    /// For tests: a backend that takes new work, of which nothing is known but where it is, with
    /// cells for one worker.
    pub(crate) fn sample(id: u64, address: SocketAddr) -> Self {
        Self {
            id: BackendId(id),
            address,
            instance: None,
            health: Health::Healthy,
            presence: Presence::Present,
            draining: None,
            standing: Standing::Admitted,
            hints: Hints::default(),
            initialisation: Initialisation::Settled,
            weight: Weight::ONE,
            priority: 0,
            stats: Arc::new(BackendStats::new(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_id_is_visible_ascii_of_bounded_length() {
        assert_eq!(InstanceId::parse(b"pod-1-0000abcd").unwrap().as_str(), "pod-1-0000abcd");
        assert_eq!(InstanceId::parse(b""), Err(InstanceIdError::Empty));
        assert_eq!(InstanceId::parse(b"a b"), Err(InstanceIdError::NotVisibleAscii));
        assert_eq!(InstanceId::parse(b"a\r\nb"), Err(InstanceIdError::NotVisibleAscii));
        assert_eq!(InstanceId::parse("ü".as_bytes()), Err(InstanceIdError::NotVisibleAscii));
        assert_eq!(InstanceId::parse(&[b'a'; 257]), Err(InstanceIdError::TooLong));
        assert!(InstanceId::parse(&[b'a'; 256]).is_ok());
    }

    #[test]
    fn srv_weight_zero_still_gets_the_smallest_share() {
        assert_eq!(Weight::from_srv(0), Weight::ONE);
        assert_eq!(Weight::from_srv(7).get(), 7);
    }

    #[test]
    fn map_keyed_by_instance_answers_to_plain_text() {
        let id = InstanceId::parse(b"pod-1").unwrap();
        let map: std::collections::HashMap<InstanceId, u8> = [(id, 1)].into();
        assert_eq!(map.get("pod-1"), Some(&1));
        assert_eq!(map.get("pod-2"), None);
    }
}

//! Pure: the immutable, versioned picture that the control thread publishes.

use super::{Backend, Health, InitialisationProgress, Presence};

/// Number of a snapshot. Only grows; a worker that has version `n` has seen everything up to `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// What a worker has before the first publication.
    pub const NONE: Self = Self(0);

    /// The version after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Where the process is in its life. Only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepts and serves.
    Serving,
    /// Told to stop: readiness answers 503 and responses close their connections, but accepting
    /// goes on, because whoever sends traffic here needs a moment to notice.
    Unready,
    /// Listeners empty their accept queues and close; running exchanges finish.
    Draining,
}

/// What is overlooked because too few backends are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Panic {
    /// Nothing.
    #[default]
    Off,
    /// Ejections: every backend that its health checks accept is used.
    Ejections,
    /// Health checks as well: every backend that discovery names is used, unless it has never been
    /// judged.
    Everything,
}

/// One picture of the world. Never changes once published.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Rises by one per publication.
    pub version: Version,
    /// Phase of the process.
    pub phase: Phase,
    /// What is overlooked because too few backends are left.
    pub panic: Panic,
    /// How far the newest initialisation has come.
    pub initialisation: InitialisationProgress,
    /// Every backend that may still be reached, in order of identity.
    pub backends: Vec<Backend>,
}

/// How many backends there are, as `/health` and the metrics report them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthCounts {
    /// Named by discovery.
    pub total: usize,
    /// Of these, ready to take new work.
    pub healthy: usize,
    /// Of these, given new work: the healthy ones, and in panic others as well.
    pub usable: usize,
}

impl Snapshot {
    /// The picture before discovery has answered.
    pub fn empty() -> Self {
        Self {
            version: Version::NONE,
            phase: Phase::Serving,
            panic: Panic::Off,
            initialisation: InitialisationProgress::default(),
            backends: Vec::new(),
        }
    }

    /// Whether work that names no instance may go to this backend.
    pub fn is_usable(&self, backend: &Backend) -> bool {
        match self.panic {
            Panic::Off => backend.takes_new_work(),
            Panic::Ejections => backend.passes_checks(),
            Panic::Everything => backend.is_open() && backend.health != Health::Unprobed,
        }
    }

    /// Counts the backends that discovery names; those that are leaving no longer count.
    pub fn health_counts(&self) -> HealthCounts {
        let present = || self.backends.iter().filter(|b| b.presence == Presence::Present);
        HealthCounts {
            total: present().count(),
            healthy: present().filter(|b| b.takes_new_work()).count(),
            usable: present().filter(|b| self.is_usable(b)).count(),
        }
    }
}

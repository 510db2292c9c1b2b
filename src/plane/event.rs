//! Pure: everything the plane says about itself. One name per event, used as log field, in metrics
//! and in tests alike; the shell decides about levels and wording.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    ExitReason, ReplayCounters, ReplayFailure,
    dns::{Absence, Query, ResolveFailure},
};
use crate::{
    health::{InstanceIdFault, ProbeFailure, outlier::Reason},
    model::{BackendId, DrainCause, Hint, InstanceId, Panic},
};

/// Something an operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what their names and types say")]
pub enum PlaneEvent {
    /// Discovery names an address that it did not name before.
    BackendDiscovered { id: BackendId, address: SocketAddr },
    /// Discovery no longer names a backend that still has running exchanges, or may have sessions.
    BackendLeft {
        id: BackendId,
        address: SocketAddr,
        instance: Option<InstanceId>,
        in_flight: u64,
        sessions: u64,
    },
    /// Discovery names a leaving backend again.
    BackendReturned { id: BackendId, address: SocketAddr },
    /// A backend that discovery no longer names has nothing running any more.
    BackendGone { id: BackendId, address: SocketAddr, instance: Option<InstanceId> },
    /// A backend takes no new work, because the operator or the backend itself wants it emptied.
    BackendDraining {
        id: BackendId,
        address: SocketAddr,
        instance: Option<InstanceId>,
        cause: DrainCause,
        in_flight: u64,
    },
    /// Nobody wants a backend emptied any more.
    BackendUndrained { id: BackendId, address: SocketAddr, instance: Option<InstanceId> },
    /// Health checks brought a backend into balancing.
    BackendHealthy { id: BackendId, address: SocketAddr, instance: Option<InstanceId> },
    /// Health checks took a backend out of balancing.
    BackendUnhealthy {
        id: BackendId,
        address: SocketAddr,
        instance: Option<InstanceId>,
        reason: ProbeFailure,
        failures: u32,
    },
    /// A probe failed. `is_counting` while further failures in a row would take the backend out.
    ProbeFailed { address: SocketAddr, reason: ProbeFailure, in_a_row: u32, is_counting: bool },
    /// Requests failed too often on a backend: it takes no new work for a while. `ejections` are
    /// counted against it, this one included.
    BackendEjected {
        id: BackendId,
        address: SocketAddr,
        instance: Option<InstanceId>,
        reason: Reason,
        length: Duration,
        ejections: u32,
    },
    /// An ejection is over.
    BackendReadmitted { id: BackendId, address: SocketAddr, instance: Option<InstanceId> },
    /// A backend ought to be ejected, but too many are, or nobody else is left. Said once for as
    /// long as it lasts.
    EjectionWithheld { id: BackendId, address: SocketAddr, reason: Reason },
    /// Too few backends take new work, so what is held against others is overlooked.
    PanicBegan { panic: Panic, taking: usize, total: usize },
    /// Enough backends take new work again.
    PanicEnded { taking: usize, total: usize },
    /// The health body has a hint about load that cannot be used. Said once per process.
    HintIgnored { address: SocketAddr, hint: Hint },
    /// Who answers at this address is known from now on.
    InstanceLearned { id: BackendId, address: SocketAddr, instance: InstanceId },
    /// Another process answers at this address. `changes` counts how often that has happened at
    /// this address: a number that keeps rising means several instances behind one address.
    InstanceChanged {
        id: BackendId,
        address: SocketAddr,
        old: InstanceId,
        new: InstanceId,
        changes: u32,
    },
    /// The health body names an instance that cannot be used. Said once per process.
    InstanceIgnored { address: SocketAddr, fault: InstanceIdFault },
    /// Two addresses claim one instance id. Said once for as long as it lasts.
    InstanceClash { instance: InstanceId, first: SocketAddr, second: SocketAddr },
    /// A client has initialised this backend, in other words than the client before it: from now
    /// on every other backend gets the same.
    InitialisationLearned { client: IpAddr, id: BackendId },
    /// A backend has been initialised.
    InitialisationReplayed { id: BackendId, address: SocketAddr },
    /// A backend could not be initialised, and is tried again.
    InitialisationFailed {
        id: BackendId,
        address: SocketAddr,
        reason: ReplayFailure,
        failures: u32,
    },
    /// A backend could not be initialised so often that it takes work without.
    InitialisationExcused { id: BackendId, address: SocketAddr, reason: ReplayFailure },
    /// How many backends take new work has changed. `usable` counts those as well that get work
    /// although something is held against them.
    HealthyChanged { healthy: usize, usable: usize, total: usize },
    /// A question got another answer than before.
    Resolved { query: Query, records: usize },
    /// A question got no answer; what is known stays. `kept` is 0 when nothing is.
    ResolveFailedKept { query: Query, reason: ResolveFailure, in_a_row: u32, kept: usize },
    /// The answer was that there is nothing; what is known stays until that is certain.
    ResolveEmptyKept { query: Query, absence: Absence, in_a_row: u32, kept: usize },
    /// The answer was that there is nothing, often enough to be believed.
    ResolveEmptied { query: Query, absence: Absence },
    /// A name that has never led to a backend does not exist or has no usable records.
    NameEmpty { query: Query, absence: Absence },
    /// SIGTERM: readiness turns, accepting goes on.
    DrainStarted,
    /// The grace is over: listeners close.
    AcceptingStopped,
    /// The process ends.
    DrainFinished { reason: ExitReason },
}

impl PlaneEvent {
    /// The name under which logs, metrics and tests know this event.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BackendDiscovered { .. } => "backend_discovered",
            Self::BackendLeft { .. } => "backend_left",
            Self::BackendReturned { .. } => "backend_returned",
            Self::BackendGone { .. } => "backend_gone",
            Self::BackendDraining { .. } => "backend_draining",
            Self::BackendUndrained { .. } => "backend_undrained",
            Self::BackendEjected { .. } => "backend_ejected",
            Self::BackendReadmitted { .. } => "backend_readmitted",
            Self::EjectionWithheld { .. } => "ejection_withheld",
            Self::PanicBegan { .. } => "panic_began",
            Self::PanicEnded { .. } => "panic_ended",
            Self::HintIgnored { .. } => "hint_ignored",
            Self::BackendHealthy { .. } => "backend_healthy",
            Self::BackendUnhealthy { .. } => "backend_unhealthy",
            Self::ProbeFailed { .. } => "probe_failed",
            Self::InstanceLearned { .. } => "instance_learned",
            Self::InstanceChanged { .. } => "instance_changed",
            Self::InstanceIgnored { .. } => "instance_ignored",
            Self::InstanceClash { .. } => "instance_clash",
            Self::InitialisationLearned { .. } => "initialisation_learned",
            Self::InitialisationReplayed { .. } => "initialisation_replayed",
            Self::InitialisationFailed { .. } => "initialisation_failed",
            Self::InitialisationExcused { .. } => "initialisation_excused",
            Self::HealthyChanged { .. } => "healthy_changed",
            Self::Resolved { .. } => "resolved",
            Self::ResolveFailedKept { .. } => "resolve_failed_kept",
            Self::ResolveEmptyKept { .. } => "resolve_empty_kept",
            Self::ResolveEmptied { .. } => "resolve_emptied",
            Self::NameEmpty { .. } => "name_empty",
            Self::DrainStarted => "drain_started",
            Self::AcceptingStopped => "accepting_stopped",
            Self::DrainFinished { .. } => "drain_finished",
        }
    }
}

/// What the plane has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlaneCounters {
    /// DNS questions that ended, whatever the answer was.
    pub discovery_operations: u64,
    /// Of these, the ones without an answer: timeouts, server failures, broken answers.
    pub resolve_failures: u64,
    /// Of these, the ones whose answer was that there is nothing.
    pub resolve_absences: u64,
    /// Probes that found a healthy backend.
    pub probes_passed: u64,
    /// Probes that did not, by [`ProbeFailure::index`].
    pub probes_failed: [u64; ProbeFailure::LABELS.len()],
    /// Times that two backends began to claim one instance id.
    pub instance_clashes: u64,
    /// Times that another process answered at a known address.
    pub instance_changes: u64,
    /// Ejections, by [`Reason::index`].
    pub ejections: [u64; Reason::LABELS.len()],
    /// Times that an ejection was due and withheld, because too many were out or nobody else left.
    pub ejections_withheld: u64,
    /// Snapshots published.
    pub publishes: u64,
    /// What is known about initialisations.
    pub replays: ReplayCounters,
}

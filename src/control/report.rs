//! Says what the plane said, at the level it deserves. The words of the messages are those that
//! operators of Stepflow grep for.

use std::{num::NonZeroU32, time::Duration};

use tracing::{debug, error, info, warn};

use crate::{
    exchange::Shortfall,
    model::{InstanceId, Panic},
    plane::{ExitReason, PlaneEvent},
};

/// Failures in a row of one question that are worth a warning each; later ones are repetition.
const RESOLVE_WARNINGS_MAX: u32 = 3;

/// Changes of who answers at one address from which on the line says what the reason may be.
const CHANGES_SUSPICIOUS: u32 = 3;

/// Writes the log line of one event.
pub(super) fn log(event: &PlaneEvent) {
    let name = event.name();
    match event {
        PlaneEvent::BackendDiscovered { id, address } => {
            info!(event = name, backend = %address, id = id.0, "Discovered backend");
        }
        PlaneEvent::BackendLeft { id, address, instance, in_flight, sessions } => {
            let instance_id = shown(instance.as_ref());
            info!(
                event = name, backend = %address, id = id.0, instance_id, in_flight, sessions,
                "Backend left discovery and finishes what it has"
            );
        }
        PlaneEvent::BackendReturned { id, address } => {
            info!(event = name, backend = %address, id = id.0, "Backend returned to discovery");
        }
        PlaneEvent::BackendGone { id, address, instance } => {
            let instance_id = shown(instance.as_ref());
            info!(event = name, backend = %address, id = id.0, instance_id, "Backend is gone");
        }
        PlaneEvent::BackendDraining { id, address, instance, cause, in_flight } => {
            let instance_id = shown(instance.as_ref());
            info!(
                event = name, backend = %address, id = id.0, instance_id, cause = cause.label(),
                in_flight, "Backend is draining and takes no new work"
            );
        }
        PlaneEvent::BackendUndrained { id, address, instance } => {
            let instance_id = shown(instance.as_ref());
            info!(
                event = name, backend = %address, id = id.0, instance_id,
                "Backend is no longer draining"
            );
        }
        PlaneEvent::BackendHealthy { id, address, instance } => {
            let instance_id = shown(instance.as_ref());
            info!(event = name, backend = %address, id = id.0, instance_id, "Backend is healthy");
        }
        PlaneEvent::BackendUnhealthy { id, address, instance, reason, failures } => {
            let instance_id = shown(instance.as_ref());
            warn!(
                event = name, backend = %address, id = id.0, instance_id, %reason, failures,
                "Backend is unhealthy and takes no new work"
            );
        }
        PlaneEvent::ProbeFailed { address, reason, in_a_row, is_counting: true } => {
            warn!(event = name, backend = %address, %reason, in_a_row, "Backend health check failed");
        }
        PlaneEvent::ProbeFailed { address, reason, in_a_row, is_counting: false } => {
            debug!(event = name, backend = %address, %reason, in_a_row, "Backend health check failed");
        }
        PlaneEvent::BackendEjected { id, address, instance, reason, length, ejections } => {
            let instance_id = shown(instance.as_ref());
            warn!(
                event = name, backend = %address, id = id.0, instance_id,
                reason = reason.label(), seconds = length.as_secs_f64(), ejections,
                "Backend fails requests and takes no new work for a while"
            );
        }
        PlaneEvent::BackendReadmitted { id, address, instance } => {
            let instance_id = shown(instance.as_ref());
            info!(
                event = name, backend = %address, id = id.0, instance_id,
                "Backend takes new work again after it was ejected"
            );
        }
        PlaneEvent::EjectionWithheld { id, address, reason } => {
            warn!(
                event = name, backend = %address, id = id.0, reason = reason.label(),
                "Backend fails requests and is kept, because too few others are left"
            );
        }
        PlaneEvent::PanicBegan { panic, taking, total } => {
            let overlooked = match panic {
                Panic::Off => "nothing",
                Panic::Ejections => "ejections",
                Panic::Everything => "everything",
            };
            error!(
                event = name,
                overlooked,
                count = taking,
                total,
                "Panic: too few backends take new work, so others are used as well"
            );
        }
        PlaneEvent::PanicEnded { taking, total } => {
            info!(event = name, count = taking, total, "Panic is over");
        }
        PlaneEvent::HintIgnored { address, hint } => {
            warn!(
                event = name, backend = %address, hint = hint.name(), accepted = hint.accepted(),
                "Backend gives a hint in its health body that cannot be used"
            );
        }
        PlaneEvent::InstanceLearned { id, address, instance } => {
            info!(
                event = name, backend = %address, id = id.0, instance_id = %instance,
                "Backend instance learned"
            );
        }
        PlaneEvent::InstanceChanged { id, address, old, new, changes } => {
            let hint = match *changes {
                CHANGES_SUSPICIOUS.. => {
                    ": if this goes on, several instances answer at one address, and affinity \
                     needs a headless service that names each of them"
                }
                _ => "",
            };
            warn!(
                event = name, backend = %address, id = id.0, old_instance_id = %old,
                instance_id = %new, changes,
                "Backend instance changed, which is a restart{hint}"
            );
        }
        PlaneEvent::InstanceIgnored { address, fault } => {
            warn!(
                event = name, backend = %address, reason = fault.reason(),
                "Backend names an instanceId that cannot be used; it gets no affinity"
            );
        }
        PlaneEvent::InstanceClash { instance, first, second } => {
            warn!(
                event = name, instance_id = %instance, backend = %first, other = %second,
                "Two backends claim one instance id: both take new work, but affinity can reach \
                 only one of them"
            );
        }
        PlaneEvent::InitialisationLearned { client, id } => {
            info!(
                event = name, %client, id = id.0,
                "A client initialised a backend; every other one gets the same"
            );
        }
        PlaneEvent::InitialisationReplayed { id, address } => {
            info!(event = name, backend = %address, id = id.0, "Backend is initialised");
        }
        PlaneEvent::InitialisationFailed { id, address, reason, failures } => {
            warn!(
                event = name, backend = %address, id = id.0, %reason, failures,
                "Backend could not be initialised and is tried again"
            );
        }
        PlaneEvent::InitialisationExcused { id, address, reason } => {
            warn!(
                event = name, backend = %address, id = id.0, %reason,
                "Backend could not be initialised too often and takes requests without: calls that \
                 need what initialize says will fail there"
            );
        }
        PlaneEvent::HealthyChanged { healthy: 0, usable: 0, total } => {
            error!(event = name, count = 0, total, "No healthy backends: requests are refused");
        }
        PlaneEvent::HealthyChanged { healthy, total, .. } => {
            info!(event = name, count = healthy, total, "Discovered healthy backends");
        }
        PlaneEvent::Resolved { query, records } => {
            info!(
                event = name, service = %query.name, record = %query.kind, count = records,
                "Resolved addresses"
            );
        }
        PlaneEvent::ResolveFailedKept { query, reason, in_a_row, kept } => {
            let reason = reason.reason();
            let message = match kept {
                0 => "Backend discovery failed; waiting for an answer",
                _ => "Backend discovery failed; what is known stays in use",
            };
            if *in_a_row <= RESOLVE_WARNINGS_MAX {
                warn!(
                    event = name, service = %query.name, record = %query.kind, reason, in_a_row,
                    kept, "{message}"
                );
            } else {
                debug!(
                    event = name, service = %query.name, record = %query.kind, reason, in_a_row,
                    kept, "{message}"
                );
            }
        }
        PlaneEvent::ResolveEmptyKept { query, absence, in_a_row, kept } => {
            warn!(
                event = name, service = %query.name, record = %query.kind,
                reason = absence.reason(), in_a_row, kept,
                "Backend discovery found nothing; what is known stays in use for now"
            );
        }
        PlaneEvent::ResolveEmptied { query, absence } => {
            warn!(
                event = name, service = %query.name, record = %query.kind,
                reason = absence.reason(),
                "Backend discovery found nothing again; its backends take no new work"
            );
        }
        PlaneEvent::NameEmpty { query, absence } => {
            warn!(
                event = name, service = %query.name, reason = absence.reason(),
                "Backend discovery found nothing; waiting for the name to appear"
            );
        }
        PlaneEvent::DrainStarted => {
            info!(event = name, "Shutting down: not ready any more, still accepting");
        }
        PlaneEvent::AcceptingStopped => {
            info!(event = name, "Shutting down: accepting ends, running exchanges finish");
        }
        PlaneEvent::DrainFinished { reason: ExitReason::Drained } => {
            info!(event = name, "Shut down: every exchange has finished");
        }
        PlaneEvent::DrainFinished { reason: ExitReason::DrainTimeout { cut } } => {
            warn!(event = name, cut, "Shut down: time is up, open connections are cut");
        }
        PlaneEvent::DrainFinished { reason: ExitReason::Forced { cut } } => {
            warn!(event = name, cut, "Shut down at once: told to stop a second time");
        }
    }
}

/// Says that some streams will be cut although their clients would connect again.
pub(super) fn shortfall(
    streams: u64,
    rate: NonZeroU32,
    time: Duration,
    Shortfall { needs, left }: Shortfall,
) {
    warn!(
        event = "drain_too_slow",
        streams,
        stream_drain_rate = rate.get(),
        needs_seconds = needs.as_secs_f64(),
        drain_timeout_seconds = time.as_secs_f64(),
        cut = left,
        "Shutting down: not all event streams can be ended between two events in time; raise \
         stream_drain_rate or drain_timeout"
    );
}

fn shown(instance: Option<&InstanceId>) -> &str {
    instance.map_or("", InstanceId::as_str)
}

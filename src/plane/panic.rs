//! Pure: when so few backends are left that their verdicts had better be overlooked.
//!
//! Ejections are a guess from what requests happened to meet, and fail together when something that
//! all backends need fails; health checks are a backend's own word. So ejections are overlooked
//! first, and health checks only where the operator wants that (ADR 19).

use crate::model::{Backend, Health, Panic};

/// When to overlook what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanicPolicy {
    /// Below this share of backends that take new work, in percent; 0 is never.
    pub threshold_percent: u8,
    /// What may be overlooked.
    pub scope: PanicScope,
}

/// What may be overlooked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicScope {
    /// Ejections; the share is of those backends that the health checks accept.
    Ejections,
    /// Health checks as well; the share is of all that discovery names and somebody has judged.
    Everything,
}

impl PanicPolicy {
    /// What is to be overlooked, and nothing more than that takes.
    pub(super) fn judge<'a>(&self, backends: impl Iterator<Item = &'a Backend>) -> Panic {
        let (mut judged, mut passing, mut taking) = (0, 0, 0);
        for backend in backends.filter(|b| b.is_open() && b.health != Health::Unprobed) {
            judged += 1_usize;
            passing += usize::from(backend.passes_checks());
            taking += usize::from(backend.takes_new_work());
        }
        let whole = match self.scope {
            PanicScope::Ejections => passing,
            PanicScope::Everything => judged,
        };
        let are_too_few = |left: usize| left * 100 < whole * usize::from(self.threshold_percent);
        if !are_too_few(taking) {
            Panic::Off
        } else if !are_too_few(passing) {
            Panic::Ejections
        } else {
            Panic::Everything
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::model::{DrainCause, Presence, Standing};

    /// `h`ealthy, `e`jected, `u`nhealthy, both of these `x`, un`p`robed, `d`raining, `l`eaving.
    fn judge(scope: PanicScope, threshold_percent: u8, states: &str) -> Panic {
        let backend = |state| Backend {
            health: match state {
                'u' | 'x' => Health::Unhealthy,
                'p' => Health::Unprobed,
                _ => Health::Healthy,
            },
            presence: if state == 'l' { Presence::Leaving } else { Presence::Present },
            draining: (state == 'd').then_some(DrainCause::Backend),
            standing: match state {
                'e' | 'x' => Standing::Ejected,
                _ => Standing::Admitted,
            },
            ..Backend::sample(1, "127.0.0.1:1".parse().unwrap())
        };
        let backends: Vec<Backend> = states.chars().map(backend).collect();
        PanicPolicy { threshold_percent, scope }.judge(backends.iter())
    }

    #[test]
    fn no_more_is_overlooked_than_it_takes() {
        use Panic::{Everything, Off};
        use PanicScope as Scope;
        let ejections = Panic::Ejections;
        let cases = [
            (Scope::Ejections, 50, "hhhh", Off),
            (Scope::Ejections, 50, "hhee", Off),
            (Scope::Ejections, 50, "heee", ejections),
            (Scope::Ejections, 50, "heeu", ejections),
            (Scope::Ejections, 50, "eeee", ejections),
            (Scope::Ejections, 50, "uuuu", Off),
            (Scope::Ejections, 50, "xxxx", Off),
            (Scope::Ejections, 50, "huuu", Off),
            (Scope::Ejections, 50, "pppp", Off),
            (Scope::Ejections, 50, "", Off),
            (Scope::Ejections, 100, "hhhe", ejections),
            (Scope::Ejections, 0, "eeee", Off),
            (Scope::Everything, 50, "hhuu", Off),
            (Scope::Everything, 50, "huuu", Everything),
            (Scope::Everything, 50, "uuuu", Everything),
            (Scope::Everything, 50, "xxxx", Everything),
            (Scope::Everything, 50, "heuu", ejections),
            (Scope::Everything, 50, "heeu", ejections),
            // Nobody is used whom nobody has judged, who drains, or who leaves.
            (Scope::Everything, 50, "hppp", Off),
            (Scope::Everything, 50, "hddd", Off),
            (Scope::Everything, 50, "hlll", Off),
            (Scope::Everything, 0, "uuuu", Off),
        ];
        for (scope, percent, states, want) in cases {
            assert_eq!(judge(scope, percent, states), want, "{scope:?} {percent} % {states}");
        }
    }
}

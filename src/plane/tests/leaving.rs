//! Pure: backends that left discovery, and for how long they are kept for their sessions.

use super::*;

const IDLE: Duration = Duration::from_secs(600);

/// A backend with a name that discovery has just dropped, with nothing running on it, beside one
/// that stays.
fn left() -> World {
    world(Settings { session_idle: Some(IDLE), ..settings("workers:80") }, healthy_as("a"))
}

fn world(settings: Settings, verdict: ProbeVerdict) -> World {
    let is_probed = settings.health.is_some();
    let mut world = World::new(&settings);
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2"]));
    if is_probed {
        world.probe("10.0.0.1:80", verdict);
        world.probe("10.0.0.2:80", healthy_as("b"));
    } else if let Some(instance) = verdict.unwrap().instance {
        let id = world.backend("10.0.0.1:80").id;
        world.handle(Input::Reported(Report::InstanceSeen(id, instance)));
    }
    world.answer("A workers", addresses(&["10.0.0.2"]));
    world
}

impl World {
    fn is_kept(&self) -> bool {
        self.addresses().contains(&"10.0.0.1:80".to_owned())
    }

    /// Lets time pass in which the one that left answers every check, and the other one too.
    fn pass_checked(&mut self, time: Duration, verdict: &ProbeVerdict) {
        let end = self.now + time;
        while self.now < end {
            for (backend, address) in std::mem::take(&mut self.probes) {
                let verdict = match address.to_string().as_str() {
                    "10.0.0.1:80" => verdict.clone(),
                    _ => healthy_as("b"),
                };
                self.handle(Input::Probed { backend, verdict });
            }
            self.pass(SECOND);
        }
    }
}

#[test]
fn an_instance_that_left_is_kept_for_sessions_for_as_long_as_they_live() {
    let mut world = left();
    let backend = world.backend("10.0.0.1:80");
    assert_eq!(backend.presence, Presence::Leaving);
    assert!(!backend.takes_new_work());
    // Those that this process has not met yet would show in that time.
    world.pass_checked(IDLE - 2 * SECOND, &healthy_as("a"));
    assert!(world.is_kept());
    let stats = Arc::clone(&world.backend("10.0.0.1:80").stats);
    stats.cell(0).sessions_opened.add(1);
    world.pass_checked(3 * IDLE, &healthy_as("a"));
    assert!(world.is_kept());
    stats.cell(1).sessions_closed.add(1);
    world.pass_checked(2 * SECOND, &healthy_as("a"));
    assert!(!world.is_kept());
}

#[test]
fn whoever_takes_no_connection_is_gone_within_seconds() {
    for failure in [ProbeFailure::Refused, ProbeFailure::Unreachable, ProbeFailure::ConnectTimeout]
    {
        let mut world = left();
        world.backend("10.0.0.1:80").stats.cell(0).sessions_opened.add(1);
        world.pass_checked(2 * SECOND, &Err(failure));
        assert!(!world.is_kept(), "{failure}");
    }
}

#[test]
fn whoever_is_only_slow_or_not_asked_by_a_fault_of_ours_is_kept() {
    for failure in [ProbeFailure::ResponseTimeout, ProbeFailure::Local] {
        let mut world = left();
        world.pass_checked(IDLE / 2, &Err(failure));
        assert!(world.is_kept(), "{failure}");
    }
}

#[test]
fn whoever_fails_its_checks_in_another_way_is_gone_at_the_threshold() {
    let mut world = left();
    for _ in 0..2 {
        world.probe("10.0.0.1:80", Err(ProbeFailure::Status(503)));
        assert!(world.is_kept());
    }
    world.probe("10.0.0.1:80", Err(ProbeFailure::Status(503)));
    world.pass(SECOND);
    assert!(!world.is_kept());
}

#[test]
fn another_process_at_the_address_of_one_that_left_has_no_sessions() {
    let mut world = left();
    world.probe("10.0.0.1:80", healthy_as("c"));
    world.pass(SECOND);
    assert!(!world.is_kept());
}

#[test]
fn without_a_name_or_without_sessions_nobody_is_kept() {
    let with_sessions = Settings { session_idle: Some(IDLE), ..settings("workers:80") };
    assert!(!world(with_sessions, healthy()).is_kept());
    assert!(!world(settings("workers:80"), healthy_as("a")).is_kept());
}

#[test]
fn where_nobody_is_checked_a_refused_connection_is_the_end() {
    let unchecked = Settings { session_idle: Some(IDLE), ..unprobed("workers:80") };
    let mut world = world(unchecked, healthy_as("a"));
    world.pass(IDLE / 2);
    let id = world.backend("10.0.0.1:80").id;
    world.handle(Input::Reported(Report::ConnectFailed(id)));
    world.pass(SECOND);
    assert!(!world.is_kept());
}

#[test]
fn what_was_refused_before_it_left_means_nothing_where_nobody_is_checked() {
    let mut world = World::new(&Settings { session_idle: Some(IDLE), ..unprobed("workers:80") });
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2"]));
    let id = world.backend("10.0.0.1:80").id;
    world.handle(Input::Reported(Report::InstanceSeen(id, instance("a"))));
    world.handle(Input::Reported(Report::ConnectFailed(id)));
    world.answer("A workers", addresses(&["10.0.0.2"]));
    world.pass(IDLE / 2);
    assert!(world.is_kept());
}

#[test]
fn one_that_was_kept_and_returns_is_who_it_was() {
    let mut world = left();
    let before = world.backend("10.0.0.1:80").id;
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2"]));
    let after = world.backend("10.0.0.1:80");
    assert_eq!((after.id, after.presence), (before, Presence::Present));
    assert!(after.takes_new_work());
}

#[test]
fn an_order_for_an_address_ends_when_discovery_drops_it_and_one_for_a_process_does_not() {
    for (scope, want) in
        [(DrainScope::Address, None), (DrainScope::Instance, Some(DrainCause::Operator))]
    {
        let mut world = left();
        let backend = world.backend("10.0.0.1:80").id;
        world.handle(Input::DrainOrdered { backend, order: Some(scope) });
        world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(world.backend("10.0.0.1:80").draining, want, "{scope:?}");
    }
}

//! Pure: tests of ejections, panic and hints, as rules of all backends together.

use super::*;
use crate::{
    health::outlier::{Ends, Reason},
    model::{Hint, Hints, Panic, Standing},
};

fn outliers() -> outlier::Policy {
    outlier::Policy {
        failures_in_a_row: NonZeroU32::new(5),
        connect_failures_in_a_row: NonZeroU32::new(3),
        failure_percent: Some(50),
        window: 10 * SECOND,
        requests_min: NonZeroU32::new(20).unwrap(),
        silent_percent: None,
        ejection: 30 * SECOND,
        ejection_max: 300 * SECOND,
        ejected_percent_max: 50,
        ends: Ends::ByTime,
    }
}

fn with_outliers(backends: usize) -> Settings {
    let addresses: Vec<_> = (1..=backends).map(address).collect();
    Settings { outliers: Some(outliers()), ..unprobed(&addresses.join(",")) }
}

fn address(n: usize) -> String {
    format!("10.0.0.{n}:80")
}

impl World {
    /// Requests fail on a backend, and a worker reports it.
    fn fail(&mut self, n: usize, times: u32) {
        let backend = self.backend(&address(n)).clone();
        for _ in 0..times {
            backend.stats.cell(0).outcomes.fail();
        }
        self.handle(Input::Reported(Report::Failing(backend.id)));
    }

    fn ejected(&self) -> Vec<String> {
        let out = |b: &&Backend| b.standing == Standing::Ejected;
        self.snapshot().backends.iter().filter(out).map(|b| b.address.to_string()).collect()
    }

    fn count(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.name() == name).count()
    }
}

#[test]
fn a_backend_that_fails_its_requests_is_ejected_and_comes_back() {
    let mut world = World::new(&with_outliers(3));
    world.fail(2, 4);
    assert_eq!(world.ejected(), [""; 0]);
    world.fail(2, 1);
    assert_eq!(world.ejected(), [address(2)]);
    let backend = world.backend(&address(2));
    assert!(!backend.takes_new_work() && backend.passes_checks());
    assert_eq!(world.snapshot().health_counts().healthy, 2);
    world.pass(Duration::from_millis(29_999));
    assert_eq!(world.ejected(), [address(2)]);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.ejected(), [""; 0]);
    // The second time is longer, and what came before is forgotten.
    world.fail(2, 4);
    assert_eq!(world.ejected(), [""; 0]);
    world.fail(2, 1);
    world.pass(59 * SECOND);
    assert_eq!(world.ejected(), [address(2)]);
    world.pass(SECOND);
    assert_eq!(world.ejected(), [""; 0]);
    let lengths: Vec<_> = world
        .events
        .iter()
        .filter_map(|event| match event {
            PlaneEvent::BackendEjected { reason, length, ejections, .. } => {
                assert_eq!(*reason, Reason::ConsecutiveFailures);
                Some((length.as_secs(), *ejections))
            }
            _ => None,
        })
        .collect();
    assert_eq!(lengths, [(30, 1), (60, 2)]);
    assert_eq!(world.count("backend_readmitted"), 2);
    assert_eq!(world.plane.counters().ejections, [0, 2, 0, 0]);
}

#[test]
fn failures_that_nobody_reports_are_noticed_within_a_second() {
    let mut world = World::new(&with_outliers(3));
    world.pass(Duration::from_millis(500));
    let stats = Arc::clone(&world.backend(&address(1)).stats);
    for worker in [0, 1, 0, 1, 0] {
        stats.cell(worker).outcomes.fail();
    }
    world.pass(SECOND);
    assert_eq!(world.ejected(), [address(1)]);
}

#[test]
fn connects_that_fail_eject_sooner_than_other_failures() {
    let mut world = World::new(&with_outliers(3));
    let backend = world.backend(&address(1)).clone();
    for done in 1..=3 {
        backend.stats.cell(done % 2).outcomes.fail_connect();
        world.handle(Input::Reported(Report::ConnectFailed(backend.id)));
        assert_eq!(world.ejected().len(), usize::from(done == 3));
    }
    assert_eq!(world.plane.counters().ejections, [1, 0, 0, 0]);
}

#[test]
fn no_more_than_the_share_are_out_and_the_last_one_stays() {
    for (backends, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let mut world = World::new(&with_outliers(backends));
        for _ in 0..3 {
            for n in 1..=backends {
                world.fail(n, 10);
            }
        }
        assert_eq!(world.ejected().len(), most, "{backends}");
        assert_eq!(world.count("ejection_withheld"), backends - most, "said once each");
        assert_eq!(world.plane.counters().ejections_withheld, (backends - most) as u64);
    }
    // Whoever is unhealthy is no reserve.
    let policy = outlier::Policy { ejected_percent_max: 100, ..outliers() };
    let settings = settings("10.0.0.1:80,10.0.0.2:80");
    let mut world = World::new(&Settings { outliers: Some(policy), ..settings });
    world.probe("10.0.0.1:80", healthy());
    for _ in 0..3 {
        world.probe("10.0.0.2:80", refused());
    }
    world.fail(1, 10);
    assert_eq!(world.ejected(), [""; 0]);
}

#[test]
fn a_withheld_ejection_follows_when_there_is_room_for_it() {
    let mut world = World::new(&with_outliers(3));
    world.fail(1, 5);
    world.pass(10 * SECOND);
    world.fail(2, 5);
    assert_eq!(world.ejected(), [address(1)]);
    world.pass(20 * SECOND);
    assert_eq!(world.ejected(), [address(2)]);
}

#[test]
fn the_share_is_kept_when_backends_leave() {
    let settings = Settings { outliers: Some(outliers()), ..unprobed("workers:80") };
    let mut world = World::new(&settings);
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]));
    world.fail(1, 5);
    world.pass(SECOND);
    world.fail(2, 5);
    assert_eq!(world.ejected().len(), 2);
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    assert_eq!(world.ejected(), [address(2)], "the older ejection ends");
    world.answer("A workers", addresses(&["10.0.0.2"]));
    assert_eq!(world.ejected(), [""; 0]);
}

#[test]
fn another_process_at_the_address_has_done_nothing_wrong() {
    let mut world = World::new(&with_outliers(3));
    let id = world.backend(&address(1)).id;
    world.handle(Input::Reported(Report::InstanceSeen(id, instance("a"))));
    world.fail(1, 5);
    assert_eq!(world.ejected(), [address(1)]);
    world.handle(Input::Reported(Report::InstanceSeen(id, instance("b"))));
    assert_eq!(world.ejected(), [""; 0]);
    world.fail(1, 4);
    world.pass(100 * SECOND);
    assert_eq!(world.ejected(), [""; 0]);
}

#[test]
fn what_an_unhealthy_backend_fails_is_not_held_against_it_later() {
    let settings = settings("10.0.0.1:80,10.0.0.2:80,10.0.0.3:80");
    let mut world = World::new(&Settings { outliers: Some(outliers()), ..settings });
    for n in 1..=3 {
        world.probe(&address(n), healthy());
    }
    for _ in 0..3 {
        world.probe(&address(1), refused());
    }
    world.fail(1, 100);
    world.probe(&address(1), healthy());
    world.fail(1, 4);
    world.pass(2 * SECOND);
    assert_eq!(world.ejected(), [""; 0]);
    world.fail(1, 1);
    assert_eq!(world.ejected(), [address(1)]);
}

#[test]
fn a_health_check_ends_an_ejection_only_if_it_may_and_began_behind_it() {
    for (ends, wants) in [(Ends::ByTime, false), (Ends::ByProbe, true)] {
        let policy = outlier::Policy { ends, ..outliers() };
        let settings = settings("10.0.0.1:80,10.0.0.2:80");
        let mut world = World::new(&Settings { outliers: Some(policy), ..settings });
        for n in 1..=2 {
            world.probe(&address(n), healthy());
        }
        world.pass(20 * SECOND);
        assert!(world.probes.iter().any(|(_, at)| at.to_string() == address(1)));
        world.pass(Duration::from_millis(10));
        world.fail(1, 5);
        world.probe(&address(1), healthy());
        assert_eq!(world.ejected(), [address(1)], "that one had begun before");
        world.probe(&address(1), healthy());
        assert_eq!(world.ejected().is_empty(), wants, "{ends:?}");
    }
}

#[test]
fn when_too_few_are_left_ejections_are_overlooked_until_enough_are() {
    let settings = settings("10.0.0.1:80,10.0.0.2:80,10.0.0.3:80,10.0.0.4:80");
    let policy = outlier::Policy { ejection: 300 * SECOND, ..outliers() };
    let mut world = World::new(&Settings { outliers: Some(policy), ..settings });
    for n in 1..=4 {
        world.probe(&address(n), healthy());
    }
    world.fail(1, 5);
    world.fail(2, 5);
    assert_eq!(world.snapshot().panic, Panic::Off, "half of them are enough");
    for _ in 0..3 {
        world.probe(&address(3), refused());
    }
    assert_eq!(world.snapshot().panic, Panic::Ejections);
    let counts = world.snapshot().health_counts();
    assert_eq!((counts.total, counts.healthy, counts.usable), (4, 1, 3));
    world.probe(&address(3), healthy());
    assert_eq!(world.snapshot().panic, Panic::Off);
    assert_eq!((world.count("panic_began"), world.count("panic_ended")), (1, 1));
}

#[test]
fn health_checks_are_overlooked_only_where_that_is_wanted() {
    for (scope, threshold_percent, want) in [
        (PanicScope::Ejections, 50, Panic::Off),
        (PanicScope::Everything, 50, Panic::Everything),
        (PanicScope::Everything, 0, Panic::Off),
    ] {
        let panic = PanicPolicy { threshold_percent, scope };
        let mut world = World::new(&Settings { panic, ..settings("10.0.0.1:80") });
        world.probe("10.0.0.1:80", refused());
        assert_eq!(world.snapshot().panic, Panic::Off, "nobody has judged it");
        world.probe("10.0.0.1:80", refused());
        world.probe("10.0.0.1:80", refused());
        assert_eq!(world.snapshot().panic, want, "{scope:?}");
        let usable = usize::from(want == Panic::Everything);
        assert_eq!(world.snapshot().health_counts().usable, usable);
    }
}

fn saying(hints: Hints) -> ProbeVerdict {
    Ok(ProbeSuccess { hints, ..ProbeSuccess::default() })
}

#[test]
fn a_backend_that_says_that_it_drains_takes_no_new_work_until_it_says_otherwise() {
    let draining = Hints { draining: true, ..Hints::default() };
    let nothing = Hints { weight_percent: Some(0), ..Hints::default() };
    for hints in [draining, nothing] {
        let mut world = World::new(&settings("10.0.0.1:80"));
        world.probe("10.0.0.1:80", saying(Hints::default()));
        assert!(world.backend("10.0.0.1:80").takes_new_work());
        world.probe("10.0.0.1:80", saying(hints));
        let backend = world.backend("10.0.0.1:80");
        assert_eq!((backend.health, backend.takes_new_work()), (Health::Healthy, false));
        world.probe("10.0.0.1:80", saying(hints));
        // A check that fails says nothing about it.
        world.probe("10.0.0.1:80", refused());
        assert!(!world.backend("10.0.0.1:80").takes_new_work());
        world.probe("10.0.0.1:80", saying(Hints::default()));
        assert!(world.backend("10.0.0.1:80").takes_new_work());
        let events = world.events();
        let about_draining: Vec<_> = events.iter().filter(|e| e.contains("drain")).collect();
        assert_eq!(about_draining, [&"backend_draining", &"backend_undrained"]);
    }
}

#[test]
fn hints_end_with_the_process_that_gave_them() {
    let hints = Hints { weight_percent: Some(30), capacity: NonZeroU32::new(8), draining: true };
    let mut world = World::new(&settings("10.0.0.1:80"));
    world.probe("10.0.0.1:80", healthy_as("a"));
    let named = ProbeSuccess { instance: Some(instance("a")), hints, ..ProbeSuccess::default() };
    world.probe("10.0.0.1:80", Ok(named));
    let id = world.backend("10.0.0.1:80").id;
    assert_eq!(world.backend("10.0.0.1:80").hints, hints);
    assert_eq!(world.backend("10.0.0.1:80").weight_hundredths(), 30);
    world.handle(Input::Reported(Report::InstanceSeen(id, instance("b"))));
    let backend = world.backend("10.0.0.1:80");
    assert_eq!(backend.hints, Hints::default());
    assert!(backend.takes_new_work());
    assert_eq!(world.count("backend_undrained"), 1);
}

#[test]
fn of_the_streams_that_a_backend_counts_only_those_of_others_are_news() {
    let busy =
        |streams| Ok(ProbeSuccess { active_streams: Some(streams), ..ProbeSuccess::default() });
    let mut world = World::new(&settings("10.0.0.1:80"));
    world.probe("10.0.0.1:80", busy(7));
    let stats = Arc::clone(&world.backend("10.0.0.1:80").stats);
    assert_eq!(stats.unseen_load.get(), 7);
    stats.cell(0).event_streams.increment();
    stats.cell(1).event_streams.increment();
    let published = world.snapshots.len();
    world.probe("10.0.0.1:80", busy(7));
    assert_eq!(stats.unseen_load.get(), 5);
    world.probe("10.0.0.1:80", busy(1));
    assert_eq!(stats.unseen_load.get(), 0);
    world.probe("10.0.0.1:80", busy(9));
    world.probe("10.0.0.1:80", refused());
    assert_eq!(stats.unseen_load.get(), 7, "a check that fails says nothing about it");
    world.probe("10.0.0.1:80", healthy());
    assert_eq!(stats.unseen_load.get(), 0);
    assert_eq!(world.snapshots.len(), published, "no picture for what changes all the time");
}

#[test]
fn a_hint_that_cannot_be_used_is_said_once_per_process() {
    let odd = || {
        let instance = Some(instance("a"));
        Ok(ProbeSuccess { instance, ignored_hint: Some(Hint::Weight), ..ProbeSuccess::default() })
    };
    let mut world = World::new(&settings("10.0.0.1:80"));
    for _ in 0..5 {
        world.probe("10.0.0.1:80", odd());
    }
    assert_eq!(world.count("hint_ignored"), 1);
    assert!(world.backend("10.0.0.1:80").takes_new_work());
    world.probe("10.0.0.1:80", healthy_as("b"));
    world.probe("10.0.0.1:80", odd());
    assert_eq!(world.count("hint_ignored"), 2);
}

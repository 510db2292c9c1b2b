//! Pure: tests of backends whose event streams fall silent together.

use super::*;
use crate::{
    health::outlier::{Ends, Reason},
    model::Standing,
};

fn outliers() -> outlier::Policy {
    outlier::Policy {
        failures_in_a_row: NonZeroU32::new(5),
        connect_failures_in_a_row: NonZeroU32::new(3),
        failure_percent: None,
        window: 10 * SECOND,
        requests_min: NonZeroU32::new(20).unwrap(),
        silent_percent: Some(80),
        ejection: 30 * SECOND,
        ejection_max: 300 * SECOND,
        ejected_percent_max: 50,
        ends: Ends::ByTime,
    }
}

fn address(n: usize) -> String {
    format!("10.0.0.{n}:80")
}

/// So many healthy backends, each with ten streams that speak, on two workers.
fn world(backends: usize, policy: outlier::Policy) -> World {
    let addresses: Vec<_> = (1..=backends).map(address).collect();
    let settings = Settings { outliers: Some(policy), ..settings(&addresses.join(",")) };
    let mut world = World::new(&settings);
    for address in &addresses {
        world.probe(address, Ok(ProbeSuccess::default()));
    }
    for n in 1..=backends {
        world.hear(n, 10, 0);
    }
    world
}

impl World {
    /// Both workers have walked over the streams of a backend.
    fn hear(&self, n: usize, judged: u64, silent: u64) {
        let stats = &self.backend(&address(n)).stats;
        let half = |count: u64| (count / 2, count - count / 2);
        let ((judged_a, judged_b), (silent_a, silent_b)) = (half(judged), half(silent));
        stats.cell(0).silence.set(judged_a, silent_a);
        stats.cell(1).silence.set(judged_b, silent_b);
    }

    fn out(&self) -> Vec<String> {
        let out = |b: &&Backend| b.standing == Standing::Ejected;
        self.snapshot().backends.iter().filter(out).map(|b| b.address.to_string()).collect()
    }

    fn said(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.name() == name).count()
    }
}

#[test]
fn a_backend_whose_streams_fall_silent_together_is_out_until_its_time_or_its_streams_say_so() {
    for speaks in [false, true] {
        let mut world = world(3, outliers());
        world.pass(10 * SECOND);
        world.hear(2, 10, 9);
        world.pass(4 * SECOND);
        assert_eq!(world.out(), [address(2)]);
        assert_eq!(world.plane.counters().ejections, [0, 0, 0, 1]);
        let reasons: Vec<_> = world
            .events
            .iter()
            .filter_map(|event| match event {
                PlaneEvent::BackendEjected { reason, length, .. } => Some((*reason, *length)),
                _ => None,
            })
            .collect();
        assert_eq!(reasons, [(Reason::StreamsStalled, 30 * SECOND)]);
        // Health checks passed all the while.
        world.probe(&address(2), Ok(ProbeSuccess::default()));
        // Streams that end say nothing: their clients may have given up.
        world.hear(2, 3, 3);
        world.pass(5 * SECOND);
        assert_eq!(world.out(), [address(2)]);
        if speaks {
            let stats = Arc::clone(&world.backend(&address(2)).stats);
            (0..3).for_each(|_| stats.cell(1).silence.resume());
            world.pass(SECOND);
            assert_eq!(world.out(), [address(2)], "three are silent still");
            world.hear(2, 2, 2);
            world.pass(SECOND);
        } else {
            world.pass(25 * SECOND);
        }
        assert_eq!(world.out(), [""; 0], "{speaks}");
        assert_eq!(world.said("backend_readmitted"), 1);
    }
}

#[test]
fn whoever_is_silent_still_when_its_time_is_over_is_out_again_for_longer() {
    let mut world = world(3, outliers());
    world.hear(1, 10, 10);
    world.pass(34 * SECOND);
    assert_eq!(world.said("backend_readmitted"), 1);
    world.pass(60 * SECOND);
    assert_eq!(world.out(), [address(1)]);
    assert_eq!(world.said("backend_ejected"), 2);
}

#[test]
fn silence_that_all_or_most_backends_keep_ejects_nobody() {
    for backends in [1, 2, 3, 5] {
        let mut world = world(backends, outliers());
        // One after the other, as their streams differ in patience.
        for n in 1..=backends {
            world.hear(n, 10, 5);
        }
        world.pass(SECOND);
        for n in 1..=backends {
            world.hear(n, 10, 10);
        }
        world.pass(60 * SECOND);
        assert_eq!(world.out(), [""; 0], "{backends}");
        assert_eq!(world.said("ejection_withheld"), 0);
    }
    let mut world = world(5, outliers());
    (1..=3).for_each(|n| world.hear(n, 10, 10));
    world.pass(60 * SECOND);
    assert_eq!(world.out(), [""; 0], "two of four others are silent as well");
}

#[test]
fn two_of_five_that_are_silent_are_both_out_and_those_that_are_out_are_no_comparison() {
    let mut world = world(5, outliers());
    world.hear(1, 10, 10);
    world.hear(2, 10, 10);
    world.pass(4 * SECOND);
    assert_eq!(world.out(), [address(1), address(2)]);
    world.hear(3, 10, 10);
    world.pass(4 * SECOND);
    assert_eq!(world.said("ejection_withheld"), 1, "said once: the share is out already");
    world.pass(10 * SECOND);
    assert_eq!(world.said("ejection_withheld"), 1);
}

#[test]
fn a_health_check_does_not_end_an_ejection_for_silence() {
    let mut world = world(2, outlier::Policy { ends: Ends::ByProbe, ..outliers() });
    world.hear(1, 10, 10);
    world.pass(4 * SECOND);
    assert_eq!(world.out(), [address(1)]);
    world.probe(&address(1), Ok(ProbeSuccess::default()));
    world.probe(&address(1), Ok(ProbeSuccess::default()));
    assert_eq!(world.out(), [address(1)]);
}

#[test]
fn nobody_listens_unless_told() {
    let mut world = world(3, outlier::Policy { silent_percent: None, ..outliers() });
    world.hear(1, 10, 10);
    world.pass(60 * SECOND);
    assert_eq!(world.out(), [""; 0]);
}

#[test]
fn silence_of_an_unhealthy_or_draining_backend_is_not_judged() {
    let mut world = world(3, outliers());
    world.hear(1, 10, 10);
    world.hear(2, 10, 10);
    for _ in 0..3 {
        world.probe(&address(1), Err(ProbeFailure::Refused));
    }
    let id = world.backend(&address(2)).id;
    let order = Some(DrainScope::Instance);
    world.handle(Input::DrainOrdered { backend: id, order });
    world.pass(5 * SECOND);
    assert_eq!(world.out(), [""; 0]);
}

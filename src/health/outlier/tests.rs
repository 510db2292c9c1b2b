use super::*;
use crate::{model::Rng, stats::BackendStats};

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy {
        failures_in_a_row: NonZeroU32::new(5),
        connect_failures_in_a_row: NonZeroU32::new(3),
        failure_percent: Some(50),
        window: 10 * SECOND,
        requests_min: NonZeroU32::new(20).unwrap(),
        silent_percent: None,
        ejection: 30 * SECOND,
        ejection_max: 100 * SECOND,
        ejected_percent_max: 50,
        ends: Ends::ByTime,
    }
}

/// Counts as a worker does: `+` passed, `-` failed, `c` could not connect.
fn count(stats: &BackendStats, worker: usize, outcomes: &str) {
    for outcome in outcomes.chars() {
        let cell = &stats.cell(worker).outcomes;
        match outcome {
            '+' => cell.pass(),
            '-' => cell.fail(),
            _ => cell.fail_connect(),
        }
    }
}

#[test]
fn rows_of_failures_eject_at_their_length_and_not_before() {
    let rare = Policy { failure_percent: None, ..policy() };
    let no_connects = Policy { connect_failures_in_a_row: None, ..rare };
    let only_connects = Policy { failures_in_a_row: None, ..rare };
    let cases = [
        (rare, "-----", Some(Reason::ConsecutiveFailures)),
        (rare, "----", None),
        (rare, "+-----", Some(Reason::ConsecutiveFailures)),
        (rare, "----+----", None),
        (rare, "----+-----", Some(Reason::ConsecutiveFailures)),
        (rare, "ccc", Some(Reason::ConnectFailures)),
        (rare, "cc-c", None),
        (rare, "cc-cc", Some(Reason::ConsecutiveFailures)),
        (rare, "cc+ccc", Some(Reason::ConnectFailures)),
        (no_connects, "cccc", None),
        (no_connects, "ccccc", Some(Reason::ConsecutiveFailures)),
        (only_connects, "---------", None),
        (only_connects, "----ccc", Some(Reason::ConnectFailures)),
    ];
    // Looked at once at the end, or behind every outcome: the verdict is the same.
    for (policy, outcomes, want) in cases {
        let now = Instant::now();
        let (at_once, one_by_one) = (BackendStats::new(1), BackendStats::new(1));
        count(&at_once, 0, outcomes);
        let mut machine = OutlierMachine::new(now);
        assert_eq!(machine.observe(at_once.outcomes(), now, &policy), want, "{outcomes}");
        let mut machine = OutlierMachine::new(now);
        let mut last = None;
        for (index, outcome) in outcomes.char_indices() {
            count(&one_by_one, 0, &outcome.to_string());
            last = machine.observe(one_by_one.outcomes(), now, &policy);
            assert!(last.is_none() || index + 1 == outcomes.len(), "{outcomes} at {index}");
        }
        assert_eq!(last, want, "{outcomes}");
    }
}

#[test]
fn no_row_is_believed_in_which_any_worker_saw_a_success() {
    let start = Instant::now();
    let policy = Policy { failure_percent: None, ..policy() };
    for seed in 0..2000 {
        let mut rng = Rng::new(seed);
        let stats = BackendStats::new(3);
        let mut machine = OutlierMachine::new(start);
        let (mut row, mut connect_row) = (0, 0);
        for step in 0..200 {
            let worker = usize::try_from(rng.below(3)).unwrap();
            match rng.below(10) {
                0..3 => {
                    count(&stats, worker, "+");
                    (row, connect_row) = (0, 0);
                }
                3..7 => {
                    count(&stats, worker, "-");
                    (row, connect_row) = (row + 1, 0);
                }
                _ => {
                    count(&stats, worker, "c");
                    (row, connect_row) = (row + 1, connect_row + 1);
                }
            }
            if rng.below(3) == 0 {
                let reason = machine.observe(stats.outcomes(), start, &policy);
                assert!(machine.failed_in_a_row <= row, "seed {seed}, step {step}");
                assert!(machine.connect_failed_in_a_row <= connect_row, "seed {seed}, step {step}");
                match reason {
                    Some(Reason::ConsecutiveFailures) => assert!(row >= 5, "seed {seed}"),
                    Some(Reason::ConnectFailures) => assert!(connect_row >= 3, "seed {seed}"),
                    Some(reason @ (Reason::FailureRate | Reason::StreamsStalled)) => {
                        panic!("{reason:?} is off")
                    }
                    None => {}
                }
            }
        }
    }
}

#[test]
fn a_share_of_failures_ejects_only_with_enough_requests_within_the_window() {
    let policy = Policy { failures_in_a_row: None, ..policy() };
    let cases = [
        ("-+-+-+-+-+-+-+-+-+-", None),
        ("-+-+-+-+-+-+-+-+-+-+", Some(Reason::FailureRate)),
        ("+-+++-+-+-+-+-+-+-+-+", None),
        ("+++++++++++++++++++++++", None),
    ];
    for (outcomes, want) in cases {
        let (now, stats) = (Instant::now(), BackendStats::new(1));
        let mut machine = OutlierMachine::new(now);
        count(&stats, 0, outcomes);
        assert_eq!(machine.observe(stats.outcomes(), now, &policy), want, "{outcomes}");
    }
    // Failures that lie further back than the window do not count, and neither do successes.
    let (start, stats) = (Instant::now(), BackendStats::new(1));
    let mut machine = OutlierMachine::new(start);
    count(&stats, 0, &"+".repeat(1000));
    assert_eq!(machine.observe(stats.outcomes(), start, &policy), None);
    count(&stats, 0, &"+-".repeat(10));
    let at = |seconds: u32| start + SECOND * seconds;
    assert_eq!(machine.observe(stats.outcomes(), at(9), &policy), None, "a thousand were good");
    assert_eq!(machine.observe(stats.outcomes(), at(11), &policy), Some(Reason::FailureRate));
    assert_eq!(machine.observe(stats.outcomes(), at(20), &policy), None);
}

#[test]
fn a_window_forgets_nothing_younger_and_keeps_nothing_older_than_itself() {
    let mut rng = Rng::new(7);
    for _ in 0..200 {
        let start = Instant::now();
        let mut window = Window::new(start);
        let bucket = Duration::from_millis(100 + rng.below(1000));
        let (mut now, mut added) = (start, Vec::new());
        for _ in 0..100 {
            now += Duration::from_millis(rng.below(1500));
            let (passed, failed) = (rng.below(5), rng.below(5));
            window.add(passed, failed, now, bucket);
            added.push((now, passed, failed));
            let within = |age: u32| {
                let young = added.iter().filter(|(at, ..)| now - *at <= bucket * age);
                young.fold((0, 0), |(a, b), (_, passed, failed)| (a + passed, b + failed))
            };
            let (sum, least, most) = (window.sum(), within(9), within(10));
            assert!(least.0 <= sum.0 && sum.0 <= most.0, "{least:?} {sum:?} {most:?}");
            assert!(least.1 <= sum.1 && sum.1 <= most.1, "{least:?} {sum:?} {most:?}");
        }
    }
}

#[test]
fn ejections_grow_to_their_cap_and_shrink_while_all_is_well() {
    let (policy, mut now) = (policy(), Instant::now());
    let mut machine = OutlierMachine::new(now);
    // Seconds in before an ejection, and how long it then lasts.
    let story = [
        (100, 30, 1),
        (0, 60, 2),
        (29, 90, 3),
        (0, 100, 4),
        (30, 100, 4),
        (61, 90, 3),
        (500, 30, 1),
    ];
    for (well_for, want, ejections) in story {
        now += SECOND * well_for;
        assert_eq!(
            machine.eject(Reason::ConsecutiveFailures, now, &policy),
            (SECOND * want, ejections)
        );
        let until = machine.out_until().unwrap();
        assert_eq!((machine.out_since(), until), (Some(now), now + SECOND * want));
        now = until;
        machine.readmit(OutcomeReading::default(), now);
        assert_eq!(machine.out_until(), None);
    }
}

#[test]
fn what_happens_while_it_is_out_is_not_held_against_it() {
    let (policy, now, stats) = (policy(), Instant::now(), BackendStats::new(2));
    let mut machine = OutlierMachine::new(now);
    count(&stats, 0, "-----");
    assert!(machine.observe(stats.outcomes(), now, &policy).is_some());
    machine.eject(Reason::ConsecutiveFailures, now, &policy);
    count(&stats, 0, "------------------------");
    assert_eq!(machine.observe(stats.outcomes(), now, &policy), None);
    count(&stats, 1, "cccccccc");
    machine.readmit(stats.outcomes(), now);
    assert_eq!(machine.observe(stats.outcomes(), now, &policy), None);
    count(&stats, 0, "----");
    assert_eq!(machine.observe(stats.outcomes(), now, &policy), None);
    count(&stats, 1, "-");
    let reason = machine.observe(stats.outcomes(), now, &policy);
    assert_eq!(reason, Some(Reason::ConsecutiveFailures));
}

#[test]
fn a_share_may_be_out_and_of_two_or_more_always_one() {
    let allowed =
        |percent, present| Policy { ejected_percent_max: percent, ..policy() }.ejected_max(present);
    let cases = [
        (50, [0, 0, 1, 1, 2, 2]),
        (10, [0, 0, 1, 1, 1, 1]),
        (100, [0, 1, 2, 3, 4, 5]),
        (0, [0, 0, 0, 0, 0, 0]),
    ];
    for (percent, want) in cases {
        let got: Vec<usize> = (0..6).map(|present| allowed(percent, present)).collect();
        assert_eq!(got, want, "{percent} %");
    }
}

#[test]
fn counts_are_looked_at_often_enough_for_the_window_and_at_least_each_second() {
    let period = |window| Policy { window, ..policy() }.reading_period();
    assert_eq!(period(SECOND), Duration::from_millis(100));
    assert_eq!(period(10 * SECOND), SECOND);
    assert_eq!(period(600 * SECOND), SECOND);
    assert_eq!(period(Duration::from_millis(1)), Duration::from_millis(50));
}

fn streams(judged: u64, silent: u64) -> SilenceReading {
    SilenceReading { judged, silent, resumed: 0 }
}

#[test]
fn streams_that_are_silent_together_and_alone_eject_once_all_workers_have_looked() {
    let off = policy();
    let on = Policy { silent_percent: Some(80), ..off };
    let cases = [
        (off, (10, 10), (20, 0), false),
        (on, (10, 10), (20, 0), true),
        (on, (10, 8), (20, 0), true),
        (on, (10, 7), (20, 0), false),
        (on, (10, 1), (20, 0), false),
        // Too few to tell.
        (on, (5, 5), (5, 0), true),
        (on, (4, 4), (20, 0), false),
        // Nobody to compare with.
        (on, (10, 10), (4, 0), false),
        (on, (10, 10), (0, 0), false),
        // Others keep the same silence.
        (on, (10, 10), (20, 7), true),
        (on, (10, 10), (20, 8), false),
        (on, (10, 10), (20, 20), false),
        (on, (0, 0), (0, 0), false),
    ];
    for (policy, own, others, is_out) in cases {
        let start = Instant::now();
        let mut machine = OutlierMachine::new(start);
        let mut hear = |own, others, after| {
            machine.listen(own, others, start + after, &policy);
            machine.observe(OutcomeReading::default(), start + after, &policy)
        };
        let (own, others) = (streams(own.0, own.1), streams(others.0, others.1));
        let just_before = SILENCE_CONFIRMED.checked_sub(Duration::from_nanos(1)).unwrap();
        assert_eq!(hear(own, others, Duration::ZERO), None);
        assert_eq!(hear(own, others, just_before), None);
        let want = is_out.then_some(Reason::StreamsStalled);
        assert_eq!(hear(own, others, SILENCE_CONFIRMED), want, "{own:?} {others:?}");
        // One word from them, and it begins anew.
        assert_eq!(hear(streams(10, 0), others, 2 * SILENCE_CONFIRMED), None);
        assert_eq!(hear(own, others, 3 * SILENCE_CONFIRMED), None);
    }
}

#[test]
fn silence_of_a_backend_that_is_passed_over_is_not_held_against_it_later() {
    let start = Instant::now();
    let policy = Policy { silent_percent: Some(80), ..policy() };
    let mut machine = OutlierMachine::new(start);
    machine.listen(streams(9, 9), streams(9, 0), start, &policy);
    machine.skip(OutcomeReading::default(), start + SECOND);
    let later = start + SILENCE_CONFIRMED;
    machine.listen(streams(9, 9), streams(9, 0), later, &policy);
    assert_eq!(machine.observe(OutcomeReading::default(), later, &policy), None);
}

#[test]
fn it_speaks_again_when_more_have_spoken_than_are_silent_still() {
    let start = Instant::now();
    let policy = Policy { silent_percent: Some(80), ..policy() };
    let reading = |silent, resumed| SilenceReading { judged: 10, silent, resumed };
    for (reason, silent, resumed, want) in [
        (Reason::StreamsStalled, 0, 7, false),
        (Reason::StreamsStalled, 0, 8, true),
        (Reason::StreamsStalled, 5, 12, false),
        (Reason::StreamsStalled, 5, 13, true),
        (Reason::ConsecutiveFailures, 0, 17, false),
    ] {
        let mut machine = OutlierMachine::new(start);
        machine.listen(reading(10, 7), streams(9, 0), start, &policy);
        assert!(!machine.speaks_again(reading(0, 9)), "it is not out");
        machine.eject(reason, start, &policy);
        // Whoever is out is still heard, and nothing is held against it.
        machine.listen(reading(10, 8), streams(9, 0), start + SECOND, &policy);
        assert_eq!(machine.speaks_again(reading(silent, resumed)), want, "{silent} {resumed}");
    }
}

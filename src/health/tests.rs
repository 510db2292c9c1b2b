use super::*;

const INTERVAL: Duration = Duration::from_secs(10);

fn policy(max_failures: u32, healthy_threshold: u32) -> Policy {
    Policy {
        interval: INTERVAL,
        interval_failing: INTERVAL,
        max_failures: NonZeroU32::new(max_failures).unwrap(),
        healthy_threshold: NonZeroU32::new(healthy_threshold).unwrap(),
    }
}

/// Feeds `outcomes` (`+` passed, `-` failed), each when its probe is due, and writes what the
/// verdict was after each: `u`nprobed, `H`ealthy, `X` unhealthy.
fn verdicts(policy: Policy, outcomes: &str) -> String {
    let mut now = Instant::now();
    let mut rng = Rng::new(1);
    let mut machine = HealthMachine::new(now);
    let mut before = machine.health();
    outcomes
        .chars()
        .map(|outcome| {
            now = now.max(machine.due().expect("a next probe"));
            machine.begin(now);
            let outcome = if outcome == '+' { Outcome::Passed } else { Outcome::Failed };
            let transition = machine.observe(outcome, now, &policy, &mut rng);
            let after = machine.health();
            let want = match (before == after, after) {
                (true, _) | (false, Health::Unprobed) => None,
                (false, Health::Healthy) => Some(Transition::BecameHealthy),
                (false, Health::Unhealthy) => Some(Transition::BecameUnhealthy),
            };
            assert_eq!(transition, want);
            before = after;
            match after {
                Health::Unprobed => 'u',
                Health::Healthy => 'H',
                Health::Unhealthy => 'X',
            }
        })
        .collect()
}

#[test]
fn verdict_changes_at_its_threshold_and_not_before() {
    let cases = [
        (3, 1, "+", "H"),
        (3, 1, "---", "uuX"),
        (3, 1, "--+", "uuH"),
        (3, 1, "+--+--+---", "HHHHHHHHHX"),
        (3, 1, "+---+", "HHHXH"),
        (1, 1, "+-+-", "HXHX"),
        (1, 1, "-", "X"),
        (3, 2, "++", "uH"),
        (3, 2, "+-++", "uuuH"),
        (2, 3, "+++--++-+++", "uuHHXXXXXXH"),
    ];
    for (max_failures, healthy_threshold, outcomes, want) in cases {
        let policy = policy(max_failures, healthy_threshold);
        assert_eq!(verdicts(policy, outcomes), want, "{max_failures} {healthy_threshold}");
    }
}

#[test]
fn every_short_history_agrees_with_a_plain_recount() {
    for (max_failures, healthy_threshold) in [(1, 1), (2, 1), (3, 1), (3, 2), (2, 3)] {
        for bits in 0_u32..1 << 10 {
            let outcomes: String =
                (0..10).map(|i| if bits >> i & 1 == 1 { '+' } else { '-' }).collect();
            let got = verdicts(policy(max_failures, healthy_threshold), &outcomes);
            let mut verdict = 'u';
            for end in 1..=outcomes.len() {
                let past = &outcomes[..end];
                if past.ends_with(&"+".repeat(healthy_threshold as usize)) {
                    verdict = 'H';
                } else if past.ends_with(&"-".repeat(max_failures as usize)) {
                    verdict = 'X';
                }
                assert_eq!(got.as_bytes()[end - 1] as char, verdict, "{outcomes} at {end}");
            }
        }
    }
}

fn pause_after(outcomes: &str, policy: Policy, seed: u64) -> Duration {
    let now = Instant::now();
    let mut rng = Rng::new(seed);
    let mut machine = HealthMachine::new(now);
    for outcome in outcomes.chars() {
        machine.begin(now);
        let outcome = if outcome == '+' { Outcome::Passed } else { Outcome::Failed };
        machine.observe(outcome, now, &policy, &mut rng);
    }
    machine.due().unwrap() - now
}

#[test]
fn pace_is_the_interval_while_in_and_a_quarter_of_it_while_out() {
    let secs = Duration::from_secs_f64;
    let short = Policy { interval: Duration::from_millis(500), ..policy(3, 1) };
    let eager = Policy { interval_failing: Duration::from_secs(2), ..policy(3, 1) };
    let cases = [
        ("first success is spread over the interval", "+", policy(3, 1), 0.0, 10.0),
        ("in", "++", policy(3, 1), 9.0, 11.0),
        ("in, failing", "++-", policy(3, 1), 9.0, 11.0),
        ("in, failing, faster", "++-", eager, 1.8, 2.2),
        ("in, failing again, faster", "++--", eager, 1.8, 2.2),
        ("in, passing again", "++-+", eager, 9.0, 11.0),
        ("out is a quarter of the interval in any case", "+---", eager, 2.25, 2.75),
        ("out", "+---", policy(3, 1), 2.25, 2.75),
        ("never in", "-", policy(3, 1), 2.25, 2.75),
        ("almost in", "+", policy(3, 2), 2.25, 2.75),
        ("out, interval below the floor", "---", short, 0.45, 0.55),
    ];
    for (name, outcomes, policy, low, high) in cases {
        let pauses: Vec<_> = (0..200).map(|seed| pause_after(outcomes, policy, seed)).collect();
        assert!(pauses.iter().all(|p| (secs(low)..=secs(high)).contains(p)), "{name}: {pauses:?}");
        let (min, max) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(*max - *min > secs(high - low).mul_f64(0.8), "{name}: jitter is used");
    }
}

#[test]
fn demand_probes_at_once_but_not_twice_within_a_second() {
    let start = Instant::now();
    let mut rng = Rng::new(1);
    let mut machine = HealthMachine::new(start);
    machine.begin(start);
    machine.observe(Outcome::Passed, start, &policy(3, 1), &mut rng);

    machine.demand(start);
    assert_eq!(machine.due(), Some(start + DEMAND_SPACING));

    let later = start + Duration::from_millis(1500);
    machine.begin(later);
    machine.observe(Outcome::Passed, later, &policy(3, 1), &mut rng);
    let much_later = later + Duration::from_secs(5);
    machine.demand(much_later);
    assert_eq!(machine.due(), Some(much_later));
}

#[test]
fn demand_never_moves_a_probe_back() {
    let now = Instant::now();
    let mut machine = HealthMachine::new(now);
    machine.demand(now + Duration::from_secs(5));
    assert_eq!(machine.due(), Some(now));
}

#[test]
fn demand_during_a_probe_is_served_by_the_next_one() {
    let now = Instant::now();
    let mut rng = Rng::new(1);
    let mut machine = HealthMachine::new(now);
    machine.begin(now);
    machine.demand(now);
    assert_eq!(machine.due(), None);
    machine.observe(Outcome::Passed, now, &policy(3, 1), &mut rng);
    assert_eq!(machine.due(), Some(now + DEMAND_SPACING));
}

#[test]
fn an_inconclusive_probe_changes_nothing_but_the_time() {
    let now = Instant::now();
    let mut rng = Rng::new(1);
    let mut machine = HealthMachine::new(now);
    machine.begin(now);
    machine.observe(Outcome::Passed, now, &policy(2, 1), &mut rng);
    machine.begin(now);
    machine.observe(Outcome::Failed, now, &policy(2, 1), &mut rng);
    machine.begin(now);
    machine.postpone(now, &policy(2, 1), &mut rng);
    assert_eq!((machine.health(), machine.failures_in_a_row()), (Health::Healthy, 1));
    assert!(machine.due().unwrap() > now);
}

#[test]
fn a_restart_keeps_the_verdict_and_forgets_the_streak() {
    let now = Instant::now();
    let mut rng = Rng::new(1);
    let mut machine = HealthMachine::new(now);
    let policy = policy(2, 2);
    for outcome in [Outcome::Passed, Outcome::Passed, Outcome::Failed] {
        machine.begin(now);
        machine.observe(outcome, now, &policy, &mut rng);
    }
    machine.begin(now);
    machine.restart(now);
    assert_eq!((machine.health(), machine.failures_in_a_row()), (Health::Healthy, 0));
    assert_eq!(machine.due(), Some(now + DEMAND_SPACING));
    machine.begin(now);
    assert_eq!(machine.observe(Outcome::Failed, now, &policy, &mut rng), None);
}

use proptest::prelude::*;

use super::*;
use crate::model::{DrainCause, Hints, Panic, Standing, Weight};

fn backend(id: u64, instance: &str) -> Backend {
    let address = format!("127.0.0.1:{}", 1000 + id).parse().unwrap();
    let instance = InstanceId::parse(instance.as_bytes()).ok();
    Backend { instance, ..Backend::sample(id, address) }
}

const HALF_LIFE: Duration = Duration::from_secs(5);

fn snapshot(version: u64, backends: &[Backend]) -> Snapshot {
    Snapshot { version: Version(version), backends: backends.to_vec(), ..Snapshot::empty() }
}

fn table() -> BackendTable {
    BackendTable::new(0, Picker::least_connections(), Pacing::new(None, HALF_LIFE), 1)
}

#[test]
fn counts_and_slots_survive_a_refresh() {
    let (a, b) = (backend(1, "a"), backend(2, "b"));
    let mut table = table();
    table.apply(&snapshot(1, &[a.clone(), b.clone()]), Tick(0));
    let slot = table.instance("b").unwrap();
    table.acquire(slot);
    assert_eq!(table.apply(&snapshot(2, &[b.clone(), backend(3, "c")]), Tick(0)).len(), 1);
    assert_eq!(table.instance("b"), Some(slot));
    assert_eq!(b.stats.in_flight(), 1);
    table.release(slot);
    assert_eq!(b.stats.in_flight(), 0);
    assert_eq!(table.instance("a"), None);
}

#[test]
fn a_slot_in_use_is_not_given_away() {
    let (a, b) = (backend(1, "a"), backend(2, "b"));
    let mut table = table();
    table.apply(&snapshot(1, std::slice::from_ref(&a)), Tick(0));
    let slot = table.pick(&Tried::default(), None, Tick(0), None).unwrap();
    assert_eq!(table.apply(&snapshot(2, &[b]), Tick(0)), [slot]);
    assert_ne!(table.instance("b"), Some(slot));
    assert!(!table.is_known(slot));
    table.release(slot);
    assert_eq!(a.stats.in_flight(), 0);
    table.apply(&snapshot(3, &[backend(3, "c")]), Tick(0));
    assert_eq!(table.instance("c"), Some(slot));
}

#[test]
fn since_when_a_backend_is_emptied_outlasts_its_causes_but_not_its_return() {
    let (a, b) = (backend(1, "a"), backend(2, "b"));
    let drained = Backend { draining: Some(DrainCause::Operator), ..a.clone() };
    let leaving = Backend { presence: Presence::Leaving, ..a.clone() };
    let mut table = table();
    table.apply(&snapshot(1, &[a.clone(), b.clone()]), Tick(1));
    let slot = table.instance("a").unwrap();
    table.acquire(slot);
    let steps = [
        // (who is there, since when)
        (vec![drained.clone(), b.clone()], Some(Tick(2)), Takers::Some),
        (vec![drained.clone(), b.clone()], Some(Tick(2)), Takers::Some),
        (vec![leaving.clone(), b.clone()], Some(Tick(2)), Takers::Some),
        (vec![a.clone()], None, Takers::Some),
        (vec![leaving], Some(Tick(6)), Takers::None),
        // Gone, but something runs there still.
        (vec![], Some(Tick(6)), Takers::None),
    ];
    for ((step, since, takers), now) in steps.into_iter().zip(2..) {
        table.apply(&snapshot(u64::from(now), &step), Tick(now));
        assert_eq!(table.emptied_since(slot), since, "at {now}");
        assert_eq!(table.is_any_emptied(), since.is_some(), "at {now}");
        assert_eq!(table.takers(), takers, "at {now}");
    }
    table.release(slot);
    table.apply(&snapshot(8, &[drained]), Tick(8));
    let slot = table.instance("a").unwrap();
    assert_eq!(table.emptied_since(slot), Some(Tick(8)), "it came as one that drains");
}

#[test]
fn an_unhealthy_instance_is_reachable_by_name_only() {
    let mut table = table();
    let sick = Backend { health: Health::Unhealthy, ..backend(1, "a") };
    let leaving = Backend { presence: Presence::Leaving, ..backend(2, "b") };
    table.apply(&snapshot(1, &[sick, leaving]), Tick(0));
    assert_eq!(table.pick(&Tried::default(), None, Tick(0), None), None);
    assert!(table.instance("a").is_some() && table.instance("b").is_some());
    assert_eq!(table.counts(), HealthCounts { total: 1, healthy: 0, usable: 0 });
}

#[test]
fn a_session_goes_to_the_fewest_for_the_weight_of_those_that_may_have_it() {
    let (a, b) = (backend(1, "a"), backend(2, "b"));
    let heavy = Backend { weight: Weight::from_srv(3), ..backend(3, "c") };
    let mut table = table();
    table.apply(&snapshot(1, &[a.clone(), b.clone(), heavy.clone()]), Tick(0));
    let slot = |table: &BackendTable, name: &str| table.instance(name).unwrap();
    let (a_slot, b_slot, c_slot) = (slot(&table, "a"), slot(&table, "b"), slot(&table, "c"));
    a.stats.cell(0).sessions_opened.add(2);
    b.stats.cell(0).sessions_opened.add(1);
    heavy.stats.cell(0).sessions_opened.add(4);
    // Busy, which matters to the algorithm and not to a session.
    (0..9).for_each(|_| table.acquire(b_slot));
    let mut tried = Tried::for_session();
    let pick = |table: &mut BackendTable, tried: &Tried, now| {
        let slot = table.pick(tried, None, now, None)?;
        table.release(slot);
        Some(slot)
    };
    assert_eq!(pick(&mut table, &tried, Tick(0)), Some(b_slot));
    assert_ne!(pick(&mut table, &Tried::default(), Tick(0)), Some(b_slot));
    // 4 of weight 3 are fewer than 2 of weight 1.
    tried.note(b_slot);
    assert_eq!(pick(&mut table, &tried, Tick(0)), Some(c_slot));
    table.avoid(c_slot, Tick(0));
    assert_eq!(pick(&mut table, &tried, Tick(1)), Some(a_slot));
    tried.note(a_slot);
    assert_eq!(pick(&mut table, &tried, Tick(1)), Some(c_slot));
    // One that is about to begin counts.
    let _pending = b.stats.cell(0).sessions_pending.hold();
    a.stats.cell(0).sessions_closed.add(1);
    assert_eq!(pick(&mut table, &Tried::for_session(), Tick(1)), Some(a_slot));
}

#[test]
fn a_lower_priority_serves_only_when_no_higher_one_can() {
    let mut table = table();
    let spare = Backend { priority: 10, ..backend(1, "spare") };
    let main = backend(2, "main");
    table.apply(&snapshot(1, &[spare.clone(), main.clone()]), Tick(0));
    assert_eq!(table.pick(&Tried::default(), None, Tick(0), None), table.instance("main"));
    let main = Backend { health: Health::Unhealthy, ..main };
    table.apply(&snapshot(2, &[spare, main]), Tick(0));
    assert_eq!(table.pick(&Tried::default(), None, Tick(0), None), table.instance("spare"));
}

#[test]
fn an_ejected_instance_is_reachable_by_name_only_unless_there_is_panic() {
    let mut table = table();
    let bad = Backend { standing: Standing::Ejected, ..backend(1, "bad") };
    let sick = Backend { health: Health::Unhealthy, ..backend(2, "sick") };
    let good = backend(3, "good");
    let mut picks = |version, panic| {
        let backends = [bad.clone(), sick.clone(), good.clone()];
        table.apply(&Snapshot { panic, ..snapshot(version, &backends) }, Tick(0));
        let names = ["bad", "sick", "good"];
        assert!(names.iter().all(|name| table.instance(name).is_some()));
        let slots: Vec<Slot> = (0..100).map(|_| pick_and_release(&mut table)).collect();
        let name = |slot: &Slot| table.backend(*slot).instance.as_ref().unwrap().to_string();
        let mut picked: Vec<String> = slots.iter().map(name).collect();
        picked.sort();
        picked.dedup();
        (picked, table.counts())
    };
    let counts = |usable| HealthCounts { total: 3, healthy: 1, usable };
    assert_eq!(picks(1, Panic::Off), (vec!["good".to_owned()], counts(1)));
    let both = ["bad", "good"].map(str::to_owned);
    assert_eq!(picks(2, Panic::Ejections), (both.to_vec(), counts(2)));
    let all = ["bad", "good", "sick"].map(str::to_owned);
    assert_eq!(picks(3, Panic::Everything), (all.to_vec(), counts(3)));
}

/// Who would be picked now.
fn pick_and_release(table: &mut BackendTable) -> Slot {
    let slot = table.pick(&Tried::default(), None, Tick(0), None).unwrap();
    table.release(slot);
    slot
}

#[test]
fn what_a_backend_says_about_its_load_is_heeded() {
    let small = Hints { capacity: NonZeroU32::new(2), ..Hints::default() };
    let (a, b) = (Backend { hints: small, ..backend(1, "a") }, backend(2, "b"));
    let mut table = table();
    table.apply(&snapshot(1, &[a.clone(), b.clone()]), Tick(0));
    let slot = |table: &BackendTable, name| table.instance(name).unwrap();
    let (slot_a, slot_b) = (slot(&table, "a"), slot(&table, "b"));
    for _ in 0..5 {
        table.acquire(slot_b);
    }
    table.acquire(slot_a);
    assert_eq!(pick_and_release(&mut table), slot_a);
    table.acquire(slot_a);
    let picked = pick_and_release(&mut table);
    assert_eq!(picked, slot_b, "the other one is full, though it has less to do");
    table.release(slot_a);
    // Streams that came through somebody else count as ours do.
    a.stats.unseen_load.set(1);
    assert_eq!(pick_and_release(&mut table), slot_b);
    a.stats.unseen_load.set(0);
    b.stats.unseen_load.set(7);
    assert_eq!(pick_and_release(&mut table), slot_a);
    // Whoever is full is still better than nobody.
    table.apply(&snapshot(2, std::slice::from_ref(&a)), Tick(0));
    table.acquire(slot_a);
    assert_eq!(pick_and_release(&mut table), slot_a);
}

#[test]
fn work_is_shared_as_backends_ask_for_it() {
    let half = Hints { weight_percent: Some(50), ..Hints::default() };
    let (a, b) = (Backend { hints: half, ..backend(1, "a") }, backend(2, "b"));
    let mut table = table();
    table.apply(&snapshot(1, &[a.clone(), b.clone()]), Tick(0));
    for _ in 0..300 {
        table.pick(&Tried::default(), None, Tick(0), None).unwrap();
    }
    assert!((99..=101).contains(&a.stats.in_flight()), "{}", a.stats.in_flight());
}

#[test]
fn the_control_thread_is_told_once_a_tick_of_a_backend_that_fails() {
    let mut table = table();
    table.apply(&snapshot(1, &[backend(1, "a"), backend(2, "b")]), Tick(0));
    let (a, b) = (table.instance("a").unwrap(), table.instance("b").unwrap());
    let told = |table: &mut BackendTable, slot, tick| table.may_tell_of(slot, Tick(tick));
    assert!(told(&mut table, a, 7));
    assert!(!told(&mut table, a, 7));
    assert!(told(&mut table, b, 7));
    assert!(told(&mut table, a, 8));
}

#[test]
fn a_backend_that_refused_is_avoided_unless_it_is_the_last() {
    let mut table = table();
    table.apply(&snapshot(1, &[backend(1, "a"), backend(2, "b")]), Tick(0));
    let a = table.instance("a").unwrap();
    let b = table.instance("b").unwrap();
    table.avoid(a, Tick(0));
    assert!((0..50).all(|_| table.pick(&Tried::default(), None, Tick(1), None) == Some(b)));
    let mut tried = Tried::default();
    tried.note(b);
    assert_eq!(table.pick(&tried, None, Tick(1), None), Some(a));
    tried.note(a);
    assert_eq!(table.pick(&tried, None, Tick(1), None), None);
}

/// How many of `n` held exchanges each backend gets.
fn held(table: &mut BackendTable, backends: &[Backend], n: usize, now: Tick) -> Vec<u64> {
    let picked: Vec<_> =
        (0..n).map(|_| table.pick(&Tried::default(), None, now, None).unwrap()).collect();
    let loads = backends.iter().map(|backend| backend.stats.in_flight()).collect();
    picked.into_iter().for_each(|slot| table.release(slot));
    loads
}

#[test]
fn who_comes_back_gets_a_tenth_first_and_its_share_after_the_slow_start() {
    let pacing = Pacing::new(Some(Tick::LENGTH * 100), HALF_LIFE);
    let mut table = BackendTable::new(0, Picker::least_connections(), pacing, 1);
    let [a, b, c] = ["a", "b", "c"].map(|name| backend(u64::from(name.as_bytes()[0]), name));
    let all = [a, b, c];
    // They come one by one, and nobody is held back for that.
    table.apply(&snapshot(1, &all[..1]), Tick(0));
    table.apply(&snapshot(2, &all), Tick(3));
    assert_eq!(held(&mut table, &all, 210, Tick(3)), [70, 70, 70]);
    let sick = Backend { health: Health::Unhealthy, ..all[2].clone() };
    table.apply(&snapshot(3, &[all[0].clone(), all[1].clone(), sick]), Tick(200));
    assert_eq!(held(&mut table, &all, 210, Tick(200)), [105, 105, 0]);
    table.apply(&snapshot(4, &all), Tick(300));
    for (now, share) in [(300, 10), (350, 45), (399, 69), (400, 70), (999, 70)] {
        let loads = held(&mut table, &all, 210, Tick(now));
        assert!(loads[2].abs_diff(share) <= 1, "{loads:?} at {now}");
    }
}

#[test]
fn weights_are_kept_whatever_their_source_said() {
    let weigh = |id, weight| Backend { weight: Weight::from_srv(weight), ..backend(id, "x") };
    let all = [weigh(1, 1), weigh(2, 2), weigh(3, 0)];
    let mut table = table();
    table.apply(&snapshot(1, &all), Tick(0));
    assert_eq!(held(&mut table, &all, 400, Tick(0)), [100, 200, 100]);
    // The next snapshot says otherwise.
    let all = [weigh(1, 1), weigh(2, 1), weigh(3, 8)];
    table.apply(&snapshot(2, &all), Tick(0));
    assert_eq!(held(&mut table, &all, 400, Tick(0)), [40, 40, 320]);
}

#[test]
fn of_those_that_claim_one_instance_a_present_healthy_and_old_one_has_it() {
    let leaving = Backend { presence: Presence::Leaving, ..backend(1, "same") };
    let sick = Backend { health: Health::Unhealthy, ..backend(2, "same") };
    let (old, young) = (backend(3, "same"), backend(4, "same"));
    let mut table = table();
    let mut owner = |version, backends: &[Backend]| {
        table.apply(&snapshot(version, backends), Tick(0));
        table.backend(table.instance("same").unwrap()).id.0
    };
    assert_eq!(owner(1, std::slice::from_ref(&leaving)), 1);
    assert_eq!(owner(2, &[leaving.clone(), sick.clone()]), 2);
    assert_eq!(owner(3, &[leaving, sick, old, young]), 3);
}

proptest! {
    /// Any sequence of refreshes, acquisitions and releases: the cells hold exactly the
    /// exchanges that are held.
    #[test]
    fn cells_equal_guards(steps in proptest::collection::vec((0_u8..3, 0_u64..6), 1..200)) {
        let all: Vec<Backend> = (0..6).map(|id| backend(id, &format!("i{id}"))).collect();
        let mut table = table();
        let mut held: Vec<(Slot, BackendId)> = Vec::new();
        let mut version = 0;
        for (what, choice) in steps {
            match what {
                0 => {
                    version += 1;
                    let some: Vec<Backend> = all
                        .iter()
                        .filter(|b| (b.id.0 * 7 + choice * 5 + version) % 3 != 0)
                        .cloned()
                        .collect();
                    table.apply(&snapshot(version, &some), Tick(0));
                }
                1 => {
                    if let Some(slot) = table.pick(&Tried::default(), None, Tick(0), None) {
                        held.push((slot, table.backend(slot).id));
                    }
                }
                _ if !held.is_empty() => {
                    let index = usize::try_from(choice).unwrap() % held.len();
                    table.release(held.swap_remove(index).0);
                }
                _ => {}
            }
            table.check_invariants();
            for b in &all {
                let want = held.iter().filter(|(_, id)| *id == b.id).count();
                prop_assert_eq!(b.stats.in_flight(), want as u64);
            }
        }
    }
}

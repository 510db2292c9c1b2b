use super::*;
use crate::model::{Health, InstanceId};

const SECOND: Duration = Duration::from_secs(1);
const ORCHESTRATOR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const REFUSED: Result<(), ReplayFailure> = Err(ReplayFailure::Refused);

/// The machine, its backends, and everything that came out.
struct World {
    machine: Initialisations,
    backends: Vec<Backend>,
    journal: Journal,
    now: Instant,
    progress: InitialisationProgress,
}

impl World {
    /// As many healthy backends, numbered from 1.
    fn of(backends: u64) -> Self {
        Self {
            machine: Initialisations::default(),
            backends: (1..=backends).map(backend).collect(),
            journal: Journal::default(),
            now: Instant::now(),
            progress: InitialisationProgress::default(),
        }
    }

    /// A snapshot is made.
    fn publish(&mut self) {
        let mut backends = self.backends.clone();
        self.progress = self.machine.reconcile(&mut backends, self.now);
        for (ours, theirs) in self.backends.iter_mut().zip(backends) {
            ours.initialisation = theirs.initialisation;
        }
        self.machine.check_invariants();
        // As the roster gives them.
        self.backends.iter_mut().for_each(|b| b.initialisation = Initialisation::Settled);
    }

    /// Who may not take work in the next snapshot.
    fn pending(&mut self) -> Vec<u64> {
        let mut backends = self.backends.clone();
        self.progress = self.machine.reconcile(&mut backends, self.now);
        self.machine.check_invariants();
        let pending = backends.iter().filter(|b| b.initialisation == Initialisation::Pending);
        pending.map(|b| b.id.0).collect()
    }

    fn answered(&mut self, id: u64, client: IpAddr, terms: &str) {
        let request = Recording::of(terms.as_bytes());
        let initialize = Initialize { client, terms: Arc::from(terms), request };
        self.machine.answered(BackendId(id), initialize, self.now);
    }

    fn confirmed(&mut self, client: IpAddr) {
        let initialized = Recording::of(b"initialized");
        self.machine.confirmed(client, initialized, self.now, &mut self.journal);
        self.publish();
    }

    /// An orchestrator initialises a backend from beginning to end.
    fn initialise(&mut self, id: u64, terms: &str) {
        self.answered(id, ORCHESTRATOR, terms);
        self.confirmed(ORCHESTRATOR);
    }

    /// The replays that start now: to whom, and what.
    fn replays(&mut self) -> Vec<(u64, String)> {
        let started = std::iter::from_fn(|| self.machine.next_replay(self.now));
        let text = |replay: Replay| {
            assert_eq!(replay.initialized.octets(), b"initialized");
            let address = backend(replay.backend.0).address;
            assert_eq!(replay.address, address, "a replay to a stranger");
            (replay.backend.0, String::from_utf8(replay.initialize.octets().to_vec()).unwrap())
        };
        started.map(text).collect()
    }

    fn replayed(&mut self, id: u64, outcome: Result<(), ReplayFailure>) {
        let is_news = self.machine.replayed(BackendId(id), outcome, self.now, &mut self.journal);
        if is_news {
            self.publish();
        }
        self.machine.check_invariants();
    }

    fn counters(&self) -> ReplayCounters {
        self.journal.counters.replays
    }

    fn events(&mut self) -> Vec<&'static str> {
        let outputs = std::mem::take(&mut self.journal.outputs);
        let name = |output| match output {
            super::super::Output::Event(event) => event.name(),
            other => panic!("{other:?}"),
        };
        outputs.into_iter().map(name).collect()
    }
}

fn backend(id: u64) -> Backend {
    let address = SocketAddr::from(([10, 0, 1, 1], u16::try_from(id).unwrap()));
    let instance = InstanceId::parse(format!("pod-{id}").as_bytes()).ok();
    Backend { instance, ..Backend::sample(id, address) }
}

fn sent(ids: &[u64], terms: &str) -> Vec<(u64, String)> {
    ids.iter().map(|id| (*id, terms.to_owned())).collect()
}

#[test]
fn everybody_but_the_one_that_answered_gets_it_once() {
    let mut world = World::of(3);
    world.publish();
    assert_eq!((world.pending(), world.machine.timeout()), (vec![], None));
    world.answered(2, ORCHESTRATOR, "a");
    assert_eq!((world.pending(), world.replays()), (vec![], vec![]), "not before it is confirmed");
    world.confirmed(ORCHESTRATOR);
    assert_eq!(world.pending(), [1, 3]);
    assert_eq!(world.progress.answered_by, Some(BackendId(2)));
    assert_eq!((world.progress.confirmed, world.progress.awaited), (1, 2));
    assert_eq!(world.replays(), sent(&[1, 3], "a"));
    world.replayed(1, Ok(()));
    assert_eq!((world.pending(), world.progress.awaited), (vec![3], 1));
    world.replayed(3, Ok(()));
    assert_eq!((world.pending(), world.progress.awaited), (vec![], 0));
    world.now += 3600 * SECOND;
    assert_eq!((world.replays(), world.machine.timeout()), (vec![], None));
    assert_eq!(world.counters().passed, 2);
    let replayed = "initialisation_replayed";
    assert_eq!(world.events(), ["initialisation_learned", replayed, replayed]);
}

#[test]
fn a_newcomer_waits_for_its_own_and_a_restart_is_a_newcomer() {
    let mut world = World::of(1);
    world.initialise(1, "a");
    world.backends.push(Backend { health: Health::Unprobed, ..backend(2) });
    world.backends.push(backend(3));
    assert_eq!(world.pending(), [2, 3]);
    assert_eq!(world.replays(), sent(&[3], "a"), "only who is healthy is asked");
    world.replayed(3, Ok(()));
    world.backends[1].health = Health::Healthy;
    assert_eq!(world.pending(), [2], "as soon as it is healthy, and not before it is initialised");
    assert_eq!(world.replays(), sent(&[2], "a"));
    // Another process at the address of 3 is another backend.
    world.backends.remove(2);
    world.backends.push(backend(4));
    assert_eq!(world.pending(), [2, 4]);
    assert_eq!(world.replays(), sent(&[4], "a"));
    world.replayed(2, Ok(()));
    world.replayed(4, Ok(()));
    assert_eq!(world.pending(), [0; 0]);
}

#[test]
fn one_without_an_id_that_was_out_is_taken_for_another_process() {
    let mut world = World::of(2);
    world.backends[1].instance = None;
    world.initialise(1, "a");
    assert_eq!(world.replays(), sent(&[2], "a"));
    world.replayed(2, Ok(()));
    for _ in 0..2 {
        world.now += 10 * SECOND;
        for backend in &mut world.backends {
            backend.health = Health::Unhealthy;
        }
        world.publish();
        for backend in &mut world.backends {
            backend.health = Health::Healthy;
        }
        assert_eq!(world.pending(), [2], "the other one has said that it is the same");
        assert_eq!(world.replays(), sent(&[2], "a"));
        world.replayed(2, Ok(()));
        assert_eq!(world.pending(), [0; 0]);
    }
}

#[test]
fn the_newest_wins_and_nobody_who_has_had_one_stops_working_for_it() {
    let mut world = World::of(3);
    world.initialise(1, "a");
    assert_eq!(world.replays(), sent(&[2, 3], "a"));
    world.replayed(2, Ok(()));
    // While the replay to 3 is running.
    world.initialise(2, "b");
    assert_eq!((world.pending(), world.progress.awaited), (vec![3], 2));
    assert_eq!(world.replays(), sent(&[1], "b"), "one at a time");
    world.replayed(3, Ok(()));
    assert_eq!(world.pending(), [0; 0], "it has had one, if not the newest");
    world.replayed(1, Ok(()));
    assert_eq!(world.replays(), [], "two replays keep their distance");
    world.now += REPLAY_SPACING;
    assert_eq!(world.replays(), sent(&[3], "b"));
    world.replayed(3, Ok(()));
    assert_eq!((world.progress.awaited, world.counters().learned), (0, 2));
}

#[test]
fn clients_that_say_the_same_cause_no_replays() {
    let mut world = World::of(2);
    world.initialise(1, "a");
    assert_eq!(world.replays(), sent(&[2], "a"));
    world.replayed(2, Ok(()));
    world.events();
    world.now += 60 * SECOND;
    world.initialise(2, "a");
    assert_eq!((world.replays(), world.pending()), (vec![], vec![]));
    assert_eq!((world.progress.confirmed, world.progress.awaited), (2, 0));
    assert_eq!((world.counters().learned, world.events().len()), (1, 0));
}

#[test]
fn what_its_client_does_not_confirm_is_replaced_by_what_counts() {
    let mut world = World::of(2);
    world.initialise(1, "a");
    world.replays();
    world.replayed(2, Ok(()));
    world.answered(2, ORCHESTRATOR, "typo");
    assert_eq!((world.pending(), world.replays()), (vec![], vec![]));
    assert_eq!(world.machine.timeout(), Some(world.now + UNCONFIRMED_WAIT));
    world.now += UNCONFIRMED_WAIT;
    assert_eq!(world.replays(), sent(&[2], "a"));
    // One that is confirmed in time is not.
    let mut world = World::of(2);
    world.initialise(1, "a");
    world.replays();
    world.replayed(2, Ok(()));
    world.now += SECOND;
    world.answered(2, ORCHESTRATOR, "b");
    world.now += SECOND;
    world.confirmed(ORCHESTRATOR);
    world.now += UNCONFIRMED_WAIT;
    assert_eq!(world.replays(), sent(&[1], "b"));
}

#[test]
fn each_client_confirms_its_own() {
    let mut world = World::of(3);
    let clients: Vec<IpAddr> = (0..=16).map(|i| IpAddr::from([10, 9, 0, i])).collect();
    world.answered(1, clients[0], "first");
    world.answered(2, clients[1], "second");
    world.confirmed(clients[2]);
    assert_eq!((world.progress.answered_by, world.counters().learned), (None, 0));
    world.confirmed(clients[0]);
    assert_eq!(world.replays(), sent(&[2, 3], "first"));
    assert_eq!(world.progress.answered_by, Some(BackendId(1)));
    // Nothing is left to be confirmed twice.
    world.confirmed(clients[0]);
    assert_eq!(world.progress.answered_by, None);
    // Beyond the sixteenth the oldest is forgotten, which is the one of clients[1].
    for client in &clients[1..] {
        world.answered(3, *client, "other");
    }
    world.answered(3, clients[0], "other");
    world.confirmed(clients[1]);
    assert_eq!((world.progress.answered_by, world.counters().learned), (None, 1));
}

#[test]
fn whoever_will_not_be_initialised_takes_work_after_four_failures() {
    let mut world = World::of(2);
    world.initialise(1, "a");
    world.events();
    let mut pauses = Vec::new();
    let mut last = world.now;
    for failures in 1..=TRIES_MAX {
        assert_eq!(world.pending().is_empty(), failures > TRIES_PATIENT, "{failures}");
        assert_eq!(world.progress.awaited, usize::from(failures <= TRIES_PATIENT));
        world.now = world.machine.timeout().expect("another try").max(world.now);
        pauses.push((world.now - last).as_millis());
        last = world.now;
        assert_eq!(world.replays(), sent(&[2], "a"));
        world.replayed(2, REFUSED);
    }
    assert_eq!(
        pauses,
        [0, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]
    );
    world.publish();
    assert_eq!(world.machine.timeout(), None, "left alone from here on");
    let mut want = vec!["initialisation_failed"; 12];
    want[3] = "initialisation_excused";
    assert_eq!(world.events(), want);
    let ReplayCounters { refused, excused, .. } = world.counters();
    assert_eq!((refused, excused), (12, 1));
    // Another initialisation is another chance, and costs nobody any work.
    world.initialise(1, "b");
    assert_eq!((world.pending(), world.progress.awaited), (vec![], 0));
    assert_eq!(world.machine.timeout(), Some(world.now + REPLAY_SPACING));
    world.now += REPLAY_SPACING;
    assert_eq!(world.replays(), sent(&[2], "b"));
    world.replayed(2, REFUSED);
    world.now += SECOND;
    assert_eq!(world.replays(), sent(&[2], "b"));
    world.replayed(2, Ok(()));
    assert_eq!(world.machine.timeout(), None);
}

#[test]
fn whoever_goes_while_a_replay_is_running_is_forgotten() {
    let mut world = World::of(3);
    world.initialise(1, "a");
    assert_eq!(world.replays(), sent(&[2, 3], "a"));
    world.backends.remove(1);
    world.publish();
    assert_eq!(world.progress.awaited, 1);
    world.replayed(2, Ok(()));
    world.replayed(2, Ok(()));
    world.replayed(7, REFUSED);
    assert_eq!((world.counters().passed, world.counters().refused), (1, 0));
    // The backend that answered may go before its client has confirmed.
    world.answered(1, ORCHESTRATOR, "b");
    world.backends.remove(0);
    world.publish();
    world.confirmed(ORCHESTRATOR);
    world.replayed(3, Ok(()));
    world.now += SECOND;
    assert_eq!(world.replays(), sent(&[3], "b"));
}

#[test]
fn many_backends_are_asked_a_few_at_a_time() {
    let mut world = World::of(1000);
    world.initialise(1, "a");
    let mut asked = Vec::new();
    while asked.len() < 999 {
        let started = world.replays();
        assert!(!started.is_empty() && started.len() <= REPLAYS_RUNNING_MAX);
        for (id, _) in started {
            world.machine.replayed(BackendId(id), Ok(()), world.now, &mut world.journal);
            asked.push(id);
        }
    }
    assert_eq!(asked, (2..=1000).collect::<Vec<_>>());
    assert_eq!(world.pending(), [0; 0]);
}

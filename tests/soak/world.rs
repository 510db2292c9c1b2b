//! What all threads of a run share: when it ends, what was seen, what must not have been.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::backend::Backend;

/// Violations that are kept in words. More are counted.
const VIOLATIONS_MAX: usize = 40;

/// One run.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) began: Instant,
    stopping: AtomicBool,
    next_id: AtomicU64,
    /// Milliseconds since the beginning at which a backend was last killed.
    last_kill_ms: AtomicU64,
    tally: Mutex<BTreeMap<String, u64>>,
    violations: Mutex<Vec<String>>,
    violation_count: AtomicUsize,
    /// How often a request with this id has reached a backend.
    deliveries: Mutex<Vec<u8>>,
    pub(crate) backends: Vec<Backend>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl World {
    pub(crate) fn new(seed: u64, backends: Vec<Backend>) -> Self {
        Self {
            seed,
            began: Instant::now(),
            stopping: AtomicBool::new(false),
            next_id: AtomicU64::new(0),
            last_kill_ms: AtomicU64::new(0),
            tally: Mutex::default(),
            violations: Mutex::default(),
            violation_count: AtomicUsize::new(0),
            deliveries: Mutex::default(),
            backends,
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    pub(crate) fn set_stopping(&self, stopping: bool) {
        self.stopping.store(stopping, SeqCst);
    }

    pub(crate) fn next_id(&self) -> u64 {
        let id = self.next_id.fetch_add(1, SeqCst);
        let len = usize::try_from(id).expect("ids are counted from nought") + 1;
        let mut deliveries = lock(&self.deliveries);
        if deliveries.len() < len {
            deliveries.resize(len, 0);
        }
        id
    }

    /// A backend has read the head of this request; how often that has happened to it.
    pub(crate) fn delivered(&self, id: u64) -> u8 {
        let mut deliveries = lock(&self.deliveries);
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        deliveries.get_mut(index).map_or(u8::MAX, |count| {
            *count = count.saturating_add(1);
            *count
        })
    }

    pub(crate) fn deliveries(&self, id: u64) -> u8 {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        lock(&self.deliveries).get(index).copied().unwrap_or(u8::MAX)
    }

    /// A backend is about to be killed, or has just been.
    pub(crate) fn note_kill(&self) {
        self.last_kill_ms.fetch_max(self.ms(Instant::now()).max(1), SeqCst);
    }

    fn ms(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        u64::try_from(since.as_millis()).expect("runs end")
    }

    /// Whether a backend was killed since then, or so shortly before that connections to it may
    /// not have been known to be dead.
    pub(crate) fn was_disturbed_since(&self, then: Instant) -> bool {
        const MARGIN: Duration = Duration::from_millis(500);
        let last = self.last_kill_ms.load(SeqCst);
        last > 0 && last + u64::try_from(MARGIN.as_millis()).unwrap_or(0) >= self.ms(then)
    }

    pub(crate) fn count(&self, what: &str) {
        *lock(&self.tally).entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn tally(&self) -> BTreeMap<String, u64> {
        lock(&self.tally).clone()
    }

    /// Something happened that must not.
    pub(crate) fn violation(&self, what: &str) {
        self.violation_count.fetch_add(1, SeqCst);
        let at = self.began.elapsed().as_secs_f32();
        let line = format!("at {at:.1} s: {what}");
        println!("VIOLATION {line}");
        let mut violations = lock(&self.violations);
        if violations.len() < VIOLATIONS_MAX {
            violations.push(line);
        }
    }

    pub(crate) fn violations(&self) -> (usize, Vec<String>) {
        (self.violation_count.load(SeqCst), lock(&self.violations).clone())
    }

    /// Sleeps, unless the run ends.
    pub(crate) fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_stopping() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

//! An allocator that counts what worker threads ask for, and remembers from where.
//!
//! The program itself allocates with mimalloc; how often it asks does not depend on whom.

#![allow(unsafe_code, reason = "an allocator is unsafe by its trait; this one only counts")]
#![expect(clippy::disallowed_types, reason = "a test collects what another thread has seen")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static PLACES: Mutex<Vec<Backtrace>> = Mutex::new(Vec::new());

/// Allocations of which the place is remembered.
const PLACES_MAX: usize = 200;

thread_local! {
    /// Whether this thread is a worker, once somebody has asked.
    static IS_WORKER: Cell<Option<bool>> = const { Cell::new(None) };
    /// The allocator itself is at work on this thread: what it allocates does not count.
    static IS_NOTING: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

// SAFETY: every call goes on to the system's allocator as it came; counting allocates only behind a
// flag that keeps it from counting itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: it came from `System`, because everything does.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as in `dealloc`.
        unsafe { System.realloc(place, layout, size) }
    }
}

fn note(bytes: usize) {
    if !IS_COUNTING.load(SeqCst) || IS_NOTING.replace(true) {
        return;
    }
    if IS_WORKER.get().is_none() {
        let name = std::thread::current().name().map(|name| name.starts_with("worker-"));
        IS_WORKER.set(Some(name.unwrap_or(false)));
    }
    if IS_WORKER.get() == Some(true) {
        COUNT.fetch_add(1, SeqCst);
        BYTES.fetch_add(bytes as u64, SeqCst);
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() < PLACES_MAX {
            places.push(Backtrace::force_capture());
        }
    }
    IS_NOTING.set(false);
}

/// What workers allocated.
#[derive(Debug)]
pub(crate) struct Allocations {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    places: Vec<Backtrace>,
}

/// Counts what worker threads allocate while something is going on. One at a time.
pub(crate) fn during(mut action: impl FnMut()) -> Allocations {
    COUNT.store(0, SeqCst);
    BYTES.store(0, SeqCst);
    IS_COUNTING.store(true, SeqCst);
    action();
    IS_COUNTING.store(false, SeqCst);
    let places = std::mem::take(&mut *PLACES.lock().unwrap_or_else(PoisonError::into_inner));
    Allocations { count: COUNT.load(SeqCst), bytes: BYTES.load(SeqCst), places }
}

impl Allocations {
    /// From where they came, most frequent first: the frames that are ours or monoio's.
    pub(crate) fn places(&self) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for place in &self.places {
            *counts.entry(frames(&place.to_string())).or_default() += 1;
        }
        let mut ranked: Vec<_> = counts.into_iter().map(|(frames, n)| (n, frames)).collect();
        ranked.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
        ranked
            .iter()
            .map(|(n, frames)| format!("{n} of the first {PLACES_MAX}:\n{frames}"))
            .collect()
    }
}

/// The innermost frames of a backtrace that say where in our code it was.
fn frames(backtrace: &str) -> String {
    const FRAMES_MAX: usize = 8;
    let is_ours = |line: &&str| {
        (line.contains("stepflow_load_balancer::") || line.contains("monoio::"))
            && !line.contains("catch_unwind")
    };
    let lines = backtrace.lines().filter(is_ours).take(FRAMES_MAX);
    lines.map(|line| format!("    {}\n", line.trim())).collect()
}

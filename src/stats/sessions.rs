//! Pure: which sessions are live, on all workers, in bounded memory and without a lock.
//!
//! A session is a hashed number, its *tag*. It is live from the exchange that first shows it until
//! it is closed, or has been unused for a while; never while an exchange of it runs. The table
//! only helps to count: what a request needs to find its backend is in the request.
//!
//! The one exception to "one writer each" in this module: any worker may meet any session. Every
//! change of an entry is one compare-and-swap, and whoever made it counts it in cells of its own,
//! so that each entry is counted once, whatever happens at the same time.
//!
//! Invariants
//! - An entry that is neither vacant nor in change is counted once as opened, for its owner;
//!   whoever takes it out counts it once as closed, for the same owner.
//! - An entry with running exchanges is taken out only by [`LiveSessions::close`].
//! - A group that is full forgets the session that was unused longest, in the count only.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Entries that a tag may be in. Two tags of a full table meet in one group; 16 leave room for the
/// lumps of a hash.
const GROUP: usize = 16;
const GROUPS_BITS: u32 = 13;
const GROUPS: usize = 1 << GROUPS_BITS;

/// States of an entry that hold no session.
const VACANT: u64 = 0;
const IN_CHANGE: u64 = 1;

/// Sessions that are live, as tags. Two mebibytes.
#[derive(Debug)]
pub struct LiveSessions {
    entries: Box<[Entry]>,
}

#[derive(Debug, Default)]
struct Entry {
    tag: AtomicU64,
    state: AtomicU64,
}

/// A session, as a number that must be spread evenly over all numbers: a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTag(pub u64);

/// Who has a session: the low bits of a backend's identity. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOwner(u32);

impl SessionOwner {
    const BITS: u32 = 28;

    /// The owner of this identity. Identities are handed out one after the other; two that differ
    /// by a multiple of 268 million are one here.
    pub fn of(identity: u64) -> Self {
        // The low bits are what is wanted.
        let low = u32::try_from(identity & ((1 << Self::BITS) - 1)).unwrap_or_default();
        Self(low.max(1))
    }

    /// The identity, as far as it is kept.
    pub fn identity(self) -> u64 {
        self.0.into()
    }
}

/// Owner, exchanges that run, and the second of the last use, in one word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    owner: SessionOwner,
    running: u32,
    used: u32,
}

impl State {
    const RUNNING_BITS: u32 = 12;
    const USED_BITS: u32 = 24;
    const RUNNING_MAX: u32 = (1 << Self::RUNNING_BITS) - 1;
    const USED_MASK: u32 = (1 << Self::USED_BITS) - 1;

    fn read(word: u64) -> Option<Self> {
        if matches!(word, VACANT | IN_CHANGE) {
            return None;
        }
        let part = |shift: u32, bits: u32| {
            u32::try_from((word >> shift) & ((1 << bits) - 1)).unwrap_or_default()
        };
        Some(Self {
            owner: SessionOwner(part(Self::RUNNING_BITS + Self::USED_BITS, SessionOwner::BITS)),
            running: part(Self::USED_BITS, Self::RUNNING_BITS),
            used: part(0, Self::USED_BITS),
        })
    }

    // An owner is never 0, so the word is larger than `IN_CHANGE`.
    fn word(self) -> u64 {
        u64::from(self.owner.0) << (Self::RUNNING_BITS + Self::USED_BITS)
            | u64::from(self.running) << Self::USED_BITS
            | u64::from(self.used & Self::USED_MASK)
    }

    /// Seconds since the last use. The clock of 24 bits goes round in half a year.
    fn unused(self, now: u32) -> u32 {
        now.wrapping_sub(self.used) & Self::USED_MASK
    }
}

/// What a call has changed, to be counted by the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    /// The session is live on this owner from here on.
    pub opened: Option<SessionOwner>,
    /// Sessions of these owners are live no more: the same one, elsewhere, or another whose place
    /// was needed.
    pub closed: [Option<SessionOwner>; 2],
    /// The exchange is noted, and must be ended.
    pub is_held: bool,
}

impl Default for LiveSessions {
    fn default() -> Self {
        Self { entries: std::iter::repeat_with(Entry::default).take(GROUPS * GROUP).collect() }
    }
}

impl LiveSessions {
    /// Groups that [`LiveSessions::expire`] must walk.
    pub const GROUPS: usize = GROUPS;

    fn group(&self, tag: SessionTag) -> &[Entry] {
        // The low bits choose the group; all of them are compared in it.
        let group = usize::try_from(tag.0 & (GROUPS as u64 - 1)).unwrap_or_default();
        &self.entries[group * GROUP..(group + 1) * GROUP]
    }

    /// The entry of a tag with its state, the first of two.
    fn find(group: &[Entry], tag: SessionTag) -> Option<(&Entry, u64, State)> {
        group.iter().find_map(|entry| {
            if entry.tag.load(SeqCst) != tag.0 {
                return None;
            }
            let word = entry.state.load(SeqCst);
            State::read(word).map(|state| (entry, word, state))
        })
    }

    /// An exchange of this session begins on this owner, at this second.
    pub fn begin(&self, tag: SessionTag, owner: SessionOwner, now: u32) -> Begun {
        let group = self.group(tag);
        loop {
            let Some((entry, word, state)) = Self::find(group, tag) else {
                match Self::insert(group, tag, State { owner, running: 1, used: now }) {
                    Inserted::Done(closed) => {
                        // Another worker may have done the same: one of both takes one of both out.
                        let twin = Self::take_twin_out(group, tag);
                        let closed = [closed, twin];
                        return Begun { opened: Some(owner), closed, is_held: true };
                    }
                    Inserted::NoRoom => return Begun::default(),
                    Inserted::Again => continue,
                }
            };
            let is_held = state.running < State::RUNNING_MAX;
            let running = state.running + u32::from(is_held);
            let next = State { owner, running, used: now };
            if entry.state.compare_exchange(word, next.word(), SeqCst, SeqCst).is_err() {
                continue;
            }
            let moved = state.owner != owner;
            return Begun {
                opened: moved.then_some(owner),
                closed: [moved.then_some(state.owner), None],
                is_held,
            };
        }
    }

    fn insert(group: &[Entry], tag: SessionTag, state: State) -> Inserted {
        let words = || group.iter().map(|entry| (entry, entry.state.load(SeqCst)));
        let vacant = words().find(|(_, word)| *word == VACANT);
        let longest_unused = || {
            let idle = words().filter_map(|(entry, word)| Some((entry, word, State::read(word)?)));
            let idle = idle.filter(|(.., state)| state.running == 0);
            let longest = idle.max_by_key(|(.., other)| other.unused(state.used));
            longest.map(|(entry, word, _)| (entry, word))
        };
        let Some((entry, word)) = vacant.or_else(longest_unused) else { return Inserted::NoRoom };
        if entry.state.compare_exchange(word, IN_CHANGE, SeqCst, SeqCst).is_err() {
            return Inserted::Again;
        }
        entry.tag.store(tag.0, SeqCst);
        entry.state.store(state.word(), SeqCst);
        Inserted::Done(State::read(word).map(|evicted| evicted.owner))
    }

    /// Looks for a second entry of this tag and joins it to the first. Gives the owner of the one
    /// that was taken out.
    fn take_twin_out(group: &[Entry], tag: SessionTag) -> Option<SessionOwner> {
        let is_twin = |entry: &&Entry| {
            entry.tag.load(SeqCst) == tag.0 && State::read(entry.state.load(SeqCst)).is_some()
        };
        let mut same = group.iter().filter(is_twin);
        let (first, second) = (same.next()?, same.next()?);
        let taken = Self::take(second)?;
        // Its exchanges end at the first, so they must be held there.
        loop {
            let word = first.state.load(SeqCst);
            let state = State::read(word).filter(|_| first.tag.load(SeqCst) == tag.0);
            let Some(state) = state else { break };
            let running = (state.running + taken.running).min(State::RUNNING_MAX);
            let next = State { running, ..state };
            if first.state.compare_exchange(word, next.word(), SeqCst, SeqCst).is_ok() {
                break;
            }
        }
        Some(taken.owner)
    }

    /// Empties an entry, unless somebody else does.
    fn take(entry: &Entry) -> Option<State> {
        loop {
            let word = entry.state.load(SeqCst);
            let state = State::read(word)?;
            if entry.state.compare_exchange(word, IN_CHANGE, SeqCst, SeqCst).is_ok() {
                entry.tag.store(0, SeqCst);
                entry.state.store(VACANT, SeqCst);
                return Some(state);
            }
        }
    }

    /// An exchange that was held has ended.
    pub fn end(&self, tag: SessionTag, now: u32) {
        let group = self.group(tag);
        while let Some((entry, word, state)) = Self::find(group, tag) {
            let next = State { running: state.running.saturating_sub(1), used: now, ..state };
            if entry.state.compare_exchange(word, next.word(), SeqCst, SeqCst).is_ok() {
                return;
            }
        }
    }

    /// The session has ended. Gives whose it was, if it was live.
    pub fn close(&self, tag: SessionTag) -> Option<SessionOwner> {
        let (entry, ..) = Self::find(self.group(tag), tag)?;
        Self::take(entry).map(|state| state.owner)
    }

    /// Closes the sessions of one group that nobody has used for longer than this many seconds.
    pub fn expire(&self, group: usize, now: u32, idle: u32, mut closed: impl FnMut(SessionOwner)) {
        for entry in &self.entries[group * GROUP..(group + 1) * GROUP] {
            let word = entry.state.load(SeqCst);
            let Some(state) = State::read(word) else { continue };
            // A worker whose clock is behind must not see an age of half a year.
            let unused = state.unused(now);
            let is_due = unused > idle && unused <= State::USED_MASK / 2;
            if state.running == 0
                && is_due
                && entry.state.compare_exchange(word, IN_CHANGE, SeqCst, SeqCst).is_ok()
            {
                entry.tag.store(0, SeqCst);
                entry.state.store(VACANT, SeqCst);
                closed(state.owner);
            }
        }
    }
}

enum Inserted {
    /// It is in; somebody else had to go.
    Done(Option<SessionOwner>),
    /// Every entry of the group has exchanges that run.
    NoRoom,
    /// Somebody else was faster.
    Again,
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const A: SessionOwner = SessionOwner(7);
    const B: SessionOwner = SessionOwner(8);

    fn in_group(group: u64, number: u64) -> SessionTag {
        SessionTag(number << GROUPS_BITS | group)
    }

    #[test]
    fn a_session_is_live_from_its_first_exchange_until_it_is_closed() {
        let live = LiveSessions::default();
        let tag = SessionTag(0xabcd_ef01_2345_6789);
        let begun = live.begin(tag, A, 10);
        assert_eq!(begun, Begun { opened: Some(A), closed: [None; 2], is_held: true });
        assert_eq!(
            live.begin(tag, A, 10),
            Begun { opened: None, closed: [None; 2], is_held: true }
        );
        live.end(tag, 11);
        live.end(tag, 11);
        let moved = live.begin(tag, B, 12);
        assert_eq!(moved, Begun { opened: Some(B), closed: [Some(A), None], is_held: true });
        assert_eq!(live.close(tag), Some(B));
        assert_eq!(live.close(tag), None);
        live.end(tag, 13);
        assert_eq!(live.close(tag), None);
    }

    #[test]
    fn a_session_that_nobody_uses_expires_and_one_with_a_running_exchange_does_not() {
        let live = LiveSessions::default();
        let (idle, busy) = (in_group(5, 1), in_group(5, 2));
        live.begin(idle, A, 100);
        live.end(idle, 100);
        live.begin(busy, B, 100);
        let expire = |now| {
            let mut closed = Vec::new();
            (0..LiveSessions::GROUPS).for_each(|g| live.expire(g, now, 60, |o| closed.push(o)));
            closed
        };
        assert_eq!(expire(99), []);
        assert_eq!(expire(160), []);
        assert_eq!(expire(161), [A]);
        assert_eq!(expire(100_000), []);
        live.end(busy, 100_000);
        assert_eq!(expire(100_060), []);
        assert_eq!(expire(100_061), [B]);
    }

    #[test]
    fn a_full_group_forgets_the_one_that_was_unused_longest_and_nobody_who_runs() {
        let live = LiveSessions::default();
        let second = |number: u64| u32::try_from(number).unwrap();
        for number in 1..=16 {
            live.begin(in_group(3, number), A, second(number));
            // The first one goes on running.
            if number > 1 {
                live.end(in_group(3, number), second(number));
            }
        }
        let begun = live.begin(in_group(3, 17), B, 17);
        assert_eq!(begun, Begun { opened: Some(B), closed: [Some(A), None], is_held: true });
        assert_eq!(live.close(in_group(3, 2)), None);
        assert_eq!(live.close(in_group(3, 1)), Some(A));
        assert_eq!(live.close(in_group(3, 3)), Some(A));
    }

    #[test]
    fn where_everybody_runs_a_newcomer_is_not_counted() {
        let live = LiveSessions::default();
        (1..=16).for_each(|number| {
            live.begin(in_group(3, number), A, 1);
        });
        assert_eq!(live.begin(in_group(3, 17), B, 1), Begun::default());
        live.end(in_group(3, 17), 1);
        assert_eq!((1..=16).filter_map(|n| live.close(in_group(3, n))).count(), 16);
    }

    #[test]
    fn whatever_workers_do_at_the_same_time_each_session_is_counted_once() {
        // Few tags in few groups, so that everything that can meet meets.
        let live = LiveSessions::default();
        let balance: Vec<HashMap<u32, i64>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4_u64)
                .map(|worker| {
                    let live = &live;
                    scope.spawn(move || {
                        let mut counted = HashMap::<u32, i64>::new();
                        let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(worker + 1);
                        for round in 0..30_000_u32 {
                            random ^= random << 13;
                            random ^= random >> 7;
                            random ^= random << 17;
                            let tag = in_group(random & 1, (random >> 8) % 20 + 1);
                            let owner = SessionOwner::of(random >> 20 & 3);
                            let now = round / 100;
                            if random >> 32 & 7 == 0 {
                                if let Some(owner) = live.close(tag) {
                                    *counted.entry(owner.0).or_default() -= 1;
                                }
                                continue;
                            }
                            let begun = live.begin(tag, owner, now);
                            if let Some(owner) = begun.opened {
                                *counted.entry(owner.0).or_default() += 1;
                            }
                            for owner in begun.closed.into_iter().flatten() {
                                *counted.entry(owner.0).or_default() -= 1;
                            }
                            if begun.is_held {
                                live.end(tag, now);
                            }
                            live.expire(0, now, 50, |owner| {
                                *counted.entry(owner.0).or_default() -= 1;
                            });
                        }
                        counted
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        let mut left = HashMap::<u32, i64>::new();
        for group in 0..2 {
            for number in 1..=20 {
                while let Some(owner) = live.close(in_group(group, number)) {
                    *left.entry(owner.0).or_default() += 1;
                }
            }
        }
        for owner in 0..4 {
            let owner = SessionOwner::of(owner).0;
            let sum: i64 = balance.iter().filter_map(|counted| counted.get(&owner)).sum();
            assert_eq!(sum, left.get(&owner).copied().unwrap_or_default(), "owner {owner}");
        }
        let words = live.entries.iter().map(|entry| entry.state.load(SeqCst));
        assert!(words.into_iter().all(|word| word == VACANT), "an entry was left behind");
    }

    #[test]
    fn ten_thousand_sessions_are_all_counted() {
        let live = LiveSessions::default();
        // Spread as a hash spreads.
        let tag = |number: u64| {
            let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            SessionTag((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ mixed >> 32)
        };
        for number in 0..10_000 {
            let begun = live.begin(tag(number), A, 1);
            assert_eq!((begun.opened, begun.closed), (Some(A), [None; 2]), "{number}");
            live.end(tag(number), 1);
        }
        assert_eq!((0..10_000).filter_map(|number| live.close(tag(number))).count(), 10_000);
    }
}

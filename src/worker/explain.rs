//! Pure: why a request went to its backend, in words.
//!
//! Owns what a pick rested on, as the picker read it, and the text that is made of it. Does not
//! decide anything, and is not there at all unless `explain` is on. `docs/BALANCING.md` has the
//! words.
//!
//! Invariants
//! - The loads shown are those that the picker compared, from before this request was counted.
//! - The text is visible ASCII and spaces, and no longer than [`DECISION_BYTES_MAX`].

use std::{
    cell::{Cell, RefCell},
    fmt::Write,
    net::SocketAddr,
    time::Duration,
};

use super::tenure::WEIGHT_PARTS;
use crate::{
    balance::{Candidates, Condition},
    config::Algorithm,
    http1::{Edit, Edits, FieldLine},
    model::HashOn,
    telemetry::Routed,
};

/// The field that says why.
const DECISION: &str = "X-Stepflow-Routing-Decision";

/// The field that says where.
const ADDRESS: &str = "X-Stepflow-Backend-Address";

/// Candidates whose numbers are shown.
const SHOWN_MAX: usize = 8;

/// Characters of the name that requests are hashed on which are shown.
const HASH_ON_CHARS_MAX: usize = 64;

/// Longest text, with every number as long as it can be.
const DECISION_BYTES_MAX: usize = 1024;

/// A weight of one, in the parts of a hundredth in which pickers get it.
pub(super) const WEIGHT_ONE: u32 = 100 * WEIGHT_PARTS;

/// A candidate as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offer {
    candidate: usize,
    count: u64,
    /// In parts of [`WEIGHT_ONE`].
    weight: u32,
    latency: Latency,
}

/// How long a candidate takes to answer, as far as that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Latency {
    Unasked,
    Unknown,
    Us(u32),
}

/// What a choice rested on.
#[derive(Debug, Default)]
pub(super) struct Pick {
    chosen: Option<usize>,
    loads: Vec<Offer>,
    /// Sessions of all candidates, where the fewest decide who is one.
    sessions: Vec<Offer>,
    /// Requests are hashed, and this one had no key, or one that leads to nobody.
    is_keyless: bool,
    /// All candidates refused a connection lately or say that they are full, and one was asked all
    /// the same.
    is_last_resort: bool,
}

/// Sees what a picker reads, and so what its choice rests on.
#[derive(Debug, Default)]
pub(super) struct Witness(RefCell<Pick>);

impl Witness {
    /// A new pick begins.
    pub(super) fn begin(&self) {
        self.0.take();
    }

    /// The candidate has so many sessions, and this weight.
    pub(super) fn note_sessions(&self, candidate: usize, count: u64, weight: u16) {
        let weight = u32::from(weight) * WEIGHT_ONE;
        let latency = Latency::Unasked;
        self.0.borrow_mut().sessions.push(Offer { candidate, count, weight, latency });
    }

    /// Nobody could be chosen properly: who had better be avoided comes into question, and sessions
    /// do not matter.
    pub(super) fn note_last_resort(&self) {
        self.0.replace(Pick { is_last_resort: true, ..Pick::default() });
    }

    /// The candidates, seen by this witness.
    pub(super) fn beside<'a, C>(&'a self, candidates: &'a C) -> Watched<'a, C> {
        Watched { candidates, pick: &self.0 }
    }

    /// What was seen of the pick that was made last, unless it was taken already.
    pub(super) fn take(&self) -> Option<Pick> {
        Some(self.0.take()).filter(|pick| pick.chosen.is_some())
    }
}

/// Candidates whose loads are noted when they are read.
pub(super) struct Watched<'a, C> {
    candidates: &'a C,
    pick: &'a RefCell<Pick>,
}

impl<C: Candidates> Candidates for Watched<'_, C> {
    fn count(&self) -> usize {
        self.candidates.count()
    }

    fn load(&self, candidate: usize) -> u64 {
        let count = self.candidates.load(candidate);
        let (weight, latency) = (self.candidates.weight(candidate), Latency::Unasked);
        self.pick.borrow_mut().loads.push(Offer { candidate, count, weight, latency });
        count
    }

    fn weight(&self, candidate: usize) -> u32 {
        self.candidates.weight(candidate)
    }

    fn latency_us(&self, candidate: usize) -> Option<u32> {
        let latency_us = self.candidates.latency_us(candidate);
        let loads = &mut self.pick.borrow_mut().loads;
        if let Some(offer) = loads.iter_mut().rfind(|offer| offer.candidate == candidate) {
            offer.latency = latency_us.map_or(Latency::Unknown, Latency::Us);
        }
        latency_us
    }

    fn is_excluded(&self, candidate: usize) -> bool {
        self.candidates.is_excluded(candidate)
    }

    fn enter(&self, candidate: usize, condition: Condition) -> bool {
        let is_entered = self.candidates.enter(candidate, condition);
        let pick = &mut self.pick.borrow_mut();
        match is_entered {
            true => pick.chosen = Some(candidate),
            // Somebody was faster: the choice is made again, from other loads.
            false => {
                pick.is_keyless = false;
                pick.loads.clear();
            }
        }
        is_entered
    }

    fn note_keyless(&self) {
        let pick = &mut self.pick.borrow_mut();
        pick.is_keyless = true;
        pick.loads.clear();
    }
}

/// Why one request went where it went.
#[derive(Debug)]
pub(super) struct Explanation {
    /// What the request brought.
    origin: Routed,
    /// The last pick that was made for it.
    pick: Option<Pick>,
    is_panic: bool,
    attempt: u32,
    waited: Duration,
    /// Age of the request when it entered the queue in which it is.
    queued_at: Option<Duration>,
    restarted: Cell<bool>,
}

impl Explanation {
    /// Of a request that comes to its backend like this.
    pub(super) fn new(origin: Routed) -> Self {
        Self {
            origin,
            pick: None,
            is_panic: false,
            attempt: 1,
            waited: Duration::ZERO,
            queued_at: None,
            restarted: Cell::new(false),
        }
    }

    /// Its session was lost, and it goes elsewhere.
    pub(super) fn note_move(&mut self) {
        self.origin = Routed::SessionMoved;
    }

    /// Another process has the address of its session's.
    pub(super) fn note_restart(&self) {
        self.restarted.set(true);
    }

    /// A backend was picked for it.
    pub(super) fn note_pick(&mut self, pick: Pick) {
        self.pick = Some(pick);
    }

    /// Whether its backend takes work only because too few others do.
    pub(super) fn note_panic(&mut self, is_panic: bool) {
        self.is_panic = is_panic;
    }

    /// It is tried again.
    pub(super) fn note_retry(&mut self) {
        self.attempt += 1;
    }

    /// It waits for a place, from this age on.
    pub(super) fn note_queued(&mut self, age: Duration) {
        self.queued_at = Some(age);
    }

    /// It waits no more.
    pub(super) fn note_unqueued(&mut self, age: Duration) {
        self.waited += age.saturating_sub(self.queued_at.take().unwrap_or(age));
    }

    /// The whole of it, in the order of `docs/BALANCING.md`.
    pub(super) fn text(&self, algorithm: Algorithm, hash_on: Option<&HashOn>) -> String {
        let mut text = String::new();
        if self.origin != Routed::Balanced {
            text.push_str(self.origin.label());
            if let Some(pick) = &self.pick {
                write_offers(&mut text, pick.chosen, &pick.sessions);
            }
        }
        if self.restarted.get() {
            item(&mut text, "restart_detected");
        }
        match &self.pick {
            Some(pick) => {
                write_rule(&mut text, pick, algorithm, hash_on);
                if pick.is_last_resort {
                    item(&mut text, "last_resort");
                }
            }
            // Only the end of a handshake has a place that nobody picked.
            None if self.origin == Routed::Balanced => item(&mut text, "handshake"),
            None => {}
        }
        if self.is_panic {
            item(&mut text, "panic");
        }
        if self.attempt > 1 {
            item(&mut text, "retry");
            number(&mut text, self.attempt);
        }
        if !self.waited.is_zero() {
            item(&mut text, "queued");
            number(&mut text, self.waited.as_millis());
            text.push_str(" ms");
        }
        debug_assert!(text.len() <= DECISION_BYTES_MAX, "{text}");
        text
    }
}

/// What a backend says under our names must not pass as ours; a final response says what is so.
pub(super) fn edit(
    edits: &mut Edits,
    fields: &[FieldLine<'_>],
    decision: Option<(String, SocketAddr)>,
) {
    for (index, line) in (0..=u8::MAX).zip(fields) {
        if [DECISION, ADDRESS].iter().any(|name| line.name.eq_ignore_ascii_case(name)) {
            edits.line(index, Edit::Drop);
        }
    }
    if let Some((text, address)) = decision {
        edits.add(DECISION.as_bytes(), text.into_bytes());
        edits.add(ADDRESS.as_bytes(), address.to_string().into_bytes());
    }
}

fn item(text: &mut String, word: &str) {
    if !text.is_empty() {
        text.push_str(", ");
    }
    text.push_str(word);
}

/// Writing into a text cannot fail.
fn number(text: &mut String, number: impl std::fmt::Display) {
    let _ = write!(text, " {number}");
}

fn write_rule(text: &mut String, pick: &Pick, algorithm: Algorithm, hash_on: Option<&HashOn>) {
    let word = match algorithm {
        Algorithm::RoundRobin => return item(text, "round_robin"),
        Algorithm::Random => return item(text, "random"),
        Algorithm::IpHash if !pick.is_keyless => return item(text, "ip_hash"),
        Algorithm::ConsistentHash if !pick.is_keyless => {
            item(text, "consistent_hash");
            let on = hash_on.map(HashOn::to_string).unwrap_or_default();
            let _ = write!(text, " {on:.HASH_ON_CHARS_MAX$}");
            return;
        }
        Algorithm::LeastConnections | Algorithm::IpHash | Algorithm::ConsistentHash => {
            "least_connections"
        }
        Algorithm::LeastResponseTime => "least_response_time",
        Algorithm::PowerOfTwo => "power_of_two",
    };
    item(text, word);
    write_offers(text, pick.chosen, &pick.loads);
}

/// The chosen one's number, and those that it was compared with: ` 3 of [3,5,5]`.
fn write_offers(text: &mut String, chosen: Option<usize>, offers: &[Offer]) {
    let Some(of_chosen) = offers.iter().find(|offer| Some(offer.candidate) == chosen) else {
        return;
    };
    let are_equal = offers.iter().all(|offer| offer.weight == of_chosen.weight);
    text.push(' ');
    of_chosen.write(text, are_equal);
    text.push_str(" of [");
    for (n, offer) in offers.iter().take(SHOWN_MAX).enumerate() {
        if n > 0 {
            text.push(',');
        }
        offer.write(text, are_equal);
    }
    if offers.len() > SHOWN_MAX {
        let _ = write!(text, ",+{}", offers.len() - SHOWN_MAX);
    }
    text.push(']');
}

impl Offer {
    /// Like `3`, with its weight `3/2`, with its latency `3@1250us` or `3@?`.
    fn write(&self, text: &mut String, hides_weight: bool) {
        let _ = write!(text, "{}", self.count);
        if !hides_weight {
            let hundredths = (u64::from(self.weight) * 100).div_ceil(u64::from(WEIGHT_ONE));
            let _ = write!(text, "/{}", hundredths / 100);
            if hundredths % 100 != 0 {
                let decimals = format!(".{:02}", hundredths % 100);
                text.push_str(decimals.trim_end_matches('0'));
            }
        }
        match self.latency {
            Latency::Unasked => {}
            Latency::Unknown => text.push_str("@?"),
            Latency::Us(us) => {
                let _ = write!(text, "@{us}us");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(candidate: usize, count: u64) -> Offer {
        Offer { candidate, count, weight: WEIGHT_ONE, latency: Latency::Unasked }
    }

    fn pick(chosen: usize, loads: &[u64]) -> Pick {
        let loads = loads.iter().enumerate().map(|(i, load)| offer(i, *load)).collect();
        Pick { chosen: Some(chosen), loads, ..Pick::default() }
    }

    /// How least connections explains this pick.
    fn said(pick: Pick) -> String {
        let mut explanation = Explanation::new(Routed::Balanced);
        explanation.note_pick(pick);
        explanation.text(Algorithm::LeastConnections, None)
    }

    #[test]
    fn eight_candidates_are_shown_and_the_rest_is_counted() {
        assert_eq!(said(pick(0, &[3, 5, 5])), "least_connections 3 of [3,5,5]");
        let many: Vec<_> = (10..21).collect();
        let want = "least_connections 20 of [10,11,12,13,14,15,16,17,+3]";
        assert_eq!(said(pick(10, &many)), want);
    }

    #[test]
    fn weights_are_shown_where_they_differ_and_as_short_as_they_can_be() {
        let mut pick = pick(0, &[6, 4, 1, 0]);
        for (offer, weight) in
            pick.loads.iter_mut().zip([3 * WEIGHT_ONE, WEIGHT_ONE / 2, 125 * WEIGHT_PARTS, 1])
        {
            offer.weight = weight;
        }
        assert_eq!(said(pick), "least_connections 6/3 of [6/3,4/0.5,1/1.25,0/0.01]");
    }

    #[test]
    fn everything_that_applies_is_said_in_its_order() {
        let mut all = Explanation::new(Routed::SessionBegins);
        all.note_move();
        all.note_restart();
        let sessions = vec![offer(0, 2), offer(1, 3)];
        all.note_pick(Pick { sessions, is_last_resort: true, ..pick(0, &[7]) });
        all.note_panic(true);
        all.note_retry();
        for (from, to) in [(10, 15), (20, 27)] {
            all.note_queued(Duration::from_millis(from));
            all.note_unqueued(Duration::from_millis(to));
        }
        let want = "session_moved 2 of [2,3], restart_detected, power_of_two 7 of [7], \
                    last_resort, panic, retry 2, queued 12 ms";
        assert_eq!(all.text(Algorithm::PowerOfTwo, None), want);
        let plain = |origin| Explanation::new(origin).text(Algorithm::Random, None);
        assert_eq!(plain(Routed::Affinity), "affinity");
        assert_eq!(plain(Routed::SessionLost), "session_lost");
        assert_eq!(plain(Routed::Balanced), "handshake");
    }

    #[test]
    fn the_longest_text_keeps_within_its_bound_and_is_visible() {
        let widest = |candidate| Offer {
            candidate,
            count: u64::MAX,
            weight: u32::MAX - u32::try_from(candidate % 2).unwrap() * 999,
            latency: Latency::Us(u32::MAX),
        };
        let offers: Vec<_> = (0..100_000).map(widest).collect();
        let sessions =
            offers.iter().map(|o| Offer { latency: Latency::Unasked, ..*o }).collect::<Vec<_>>();
        let hash_on = HashOn::Header("x".repeat(10_000));
        for algorithm in [Algorithm::LeastResponseTime, Algorithm::ConsistentHash] {
            let mut explanation = Explanation::new(Routed::SessionBegins);
            explanation.note_restart();
            explanation.note_panic(true);
            explanation.note_queued(Duration::ZERO);
            explanation.note_unqueued(Duration::MAX);
            (0..3).for_each(|_| explanation.note_retry());
            explanation.note_pick(Pick {
                chosen: Some(1),
                loads: offers.clone(),
                sessions: sessions.clone(),
                is_keyless: false,
                is_last_resort: true,
            });
            let text = explanation.text(algorithm, Some(&hash_on));
            assert!(text.len() <= DECISION_BYTES_MAX, "{} octets", text.len());
            assert!(text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{text}");
        }
    }

    /// Two candidates, one of which gets ahead of us once.
    struct Busy {
        loads: [Cell<u64>; 2],
        is_late: Cell<bool>,
    }

    impl Candidates for Busy {
        fn count(&self) -> usize {
            2
        }

        fn load(&self, candidate: usize) -> u64 {
            self.loads[candidate].get()
        }

        fn weight(&self, _: usize) -> u32 {
            WEIGHT_ONE
        }

        fn latency_us(&self, _: usize) -> Option<u32> {
            None
        }

        fn is_excluded(&self, _: usize) -> bool {
            false
        }

        fn enter(&self, candidate: usize, _: Condition) -> bool {
            let load = &self.loads[candidate];
            load.set(load.get() + 1);
            !self.is_late.take()
        }
    }

    #[test]
    fn a_choice_that_is_made_again_shows_what_it_rests_on_in_the_end() {
        let busy = Busy { loads: [2, 4].map(Cell::new), is_late: Cell::new(true) };
        let witness = Witness::default();
        let mut picker = crate::balance::Picker::least_connections();
        let mut rng = crate::model::Rng::new(1);
        let picked = picker.pick(&witness.beside(&busy), None, &mut rng);
        assert_eq!(picked, Some(0));
        assert_eq!(witness.take().map(said).unwrap(), "least_connections 3 of [3,4]");
        assert!(witness.take().is_none(), "it was taken");
    }
}

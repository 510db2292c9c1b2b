//! Pure: who is ended before its time, and when.
//!
//! A stream whose client connects again by itself loses nothing if it ends between two events: the
//! client goes on elsewhere. Whatever else runs must finish, because nobody asks for the rest of it
//! (ADR 27). Here stands what an exchange is in this respect ([`Nature`]), how far the draining of
//! its backend has come for it ([`Stretch`]), and what follows ([`verdict`], [`ends_by_age`]). Not
//! here: at what pace ([`super::Pace`]), and how a stream is ended.

use std::time::Duration;

use super::{RequestPlan, ResponsePlan, Tick};
use crate::{
    http1::Method,
    model::{Phase, Rng},
};

/// What an exchange is, as far as its end is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// No event stream, as far as is known.
    Other,
    /// An event stream that must finish: its client will not ask again, or nothing of ours may be
    /// written into it.
    Finite,
    /// An event stream whose client connects again, and comes back to the same backend.
    Tied,
    /// An event stream whose client connects again, and any backend will do.
    Free,
}

impl Nature {
    /// Every nature.
    pub const ALL: [Self; 4] = [Self::Other, Self::Finite, Self::Tied, Self::Free];

    /// What an exchange with this head is. `is_tied`: its client would come back to this backend,
    /// because it names its instance or has a session there.
    ///
    /// A browser's `EventSource` and an MCP client on its stream ask with `GET`, and ask again when
    /// it ends (WHATWG HTML §9.2.3, MCP 2025-11-25). A stream that answers a `POST` is an answer:
    /// asked again, it would do again what it did.
    pub fn of(request: &RequestPlan, response: &ResponsePlan, is_tied: bool) -> Self {
        let may_be_written = !response.is_coded && response.body_bytes.is_none();
        let reconnects = request.method == Method::Get
            && request.accepts_event_stream
            && (200..300).contains(&response.status)
            && may_be_written;
        match (response.is_event_stream, reconnects, is_tied) {
            (false, ..) => Self::Other,
            (true, false, _) => Self::Finite,
            (true, true, true) => Self::Tied,
            (true, true, false) => Self::Free,
        }
    }

    /// Its client connects again.
    pub fn reconnects(self) -> bool {
        matches!(self, Self::Tied | Self::Free)
    }
}

/// Whether anybody takes work that names no instance. If not, whoever connects again would be
/// refused, and a browser that is refused does not ask a third time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takers {
    /// Somebody does.
    Some,
    /// Nobody does.
    None,
}

/// How far the draining of a backend has come for one exchange on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// It does not drain.
    None,
    /// It drains, and there is time.
    Open,
    /// Little time is left.
    Last,
    /// No time is left.
    Over,
}

/// For how long things may run on a backend that drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTerm {
    ticks: u32,
    /// How much of that is its last stretch.
    last: u32,
}

/// What the last stretch of a term is at least, unless the term is shorter.
const LAST_STRETCH_MIN: Duration = Duration::from_secs(1);

impl DrainTerm {
    /// A term of this length, whose last tenth, and at least last second, is its last stretch.
    pub fn new(length: Duration) -> Self {
        let ticks = Tick::count(length);
        Self { ticks, last: (ticks / 10).max(Tick::count(LAST_STRETCH_MIN)).min(ticks) }
    }

    /// How far an exchange that began at `begun` is, on a backend that drains since `since`.
    ///
    /// What begins when the term is over names its instance, and is part of what others wait for:
    /// it has as much time again. What begins in the last stretch is not ended within it, or a
    /// client that comes straight back would be sent away again and again.
    pub fn stretch(term: Option<Self>, since: Option<Tick>, begun: Tick, now: Tick) -> Stretch {
        let Some(since) = since else { return Stretch::None };
        let Some(Self { ticks, last }) = term else { return Stretch::Open };
        let end = since.0.saturating_add(ticks);
        let end = if begun.0 < end { end } else { begun.0.saturating_add(ticks) };
        match now.0 {
            now if now >= end => Stretch::Over,
            now if now >= end - last && begun.0 <= end - last => Stretch::Last,
            _ => Stretch::Open,
        }
    }
}

/// What becomes of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Stays,
    /// It is ended between two events, when its turn has come.
    EndsInTurn,
    /// It is ended at once: between two events if it is there and its client connects again, else
    /// it is cut.
    EndsNow,
}

/// Why we ended a stream that its backend had not. No failure: nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyEnd {
    /// Its backend drains, or the process.
    Drained,
    /// It was as old as a stream may be.
    Aged,
}

/// Decides whether an exchange goes on, in this phase of the process and stretch of its backend's
/// draining.
pub fn verdict(nature: Nature, phase: Phase, stretch: Stretch, takers: Takers) -> Verdict {
    match (stretch, nature) {
        (Stretch::Over, _) => Verdict::EndsNow,
        (_, Nature::Other | Nature::Finite) => Verdict::Stays,
        // Whoever comes back finds another process, or this one's successor.
        (_, Nature::Tied | Nature::Free) if phase == Phase::Draining => Verdict::EndsInTurn,
        // Nobody gains by ending it earlier: it would come straight back.
        (Stretch::Last, Nature::Tied | Nature::Free) => Verdict::EndsInTurn,
        (Stretch::Open, Nature::Free) if takers == Takers::Some => Verdict::EndsInTurn,
        (Stretch::Open | Stretch::None, Nature::Tied | Nature::Free) => Verdict::Stays,
    }
}

/// Whether a stream that is old enough is ended for it.
pub fn ends_by_age(nature: Nature, takers: Takers) -> bool {
    match nature {
        Nature::Other | Nature::Finite => false,
        Nature::Tied => true,
        Nature::Free => takers == Takers::Some,
    }
}

/// The age that one stream may reach, within a tenth of what all may: streams that began together
/// shall not end together.
pub fn age_of_one(age_max: Duration, rng: &mut Rng) -> Duration {
    let tenth = age_max / 10;
    rng.between(age_max - tenth, age_max + tenth)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 3] = [Phase::Serving, Phase::Unready, Phase::Draining];
    const STRETCHES: [Stretch; 4] = [Stretch::None, Stretch::Open, Stretch::Last, Stretch::Over];

    #[test]
    fn every_case_has_its_verdict() {
        use Verdict::{EndsInTurn as Turn, EndsNow as Now, Stays};
        // By nature, stretch and takers (some, none); the phase is serving or unready, then
        // draining.
        let table = [
            (Nature::Other, Stretch::None, [Stays, Stays], Stays),
            (Nature::Other, Stretch::Open, [Stays, Stays], Stays),
            (Nature::Other, Stretch::Last, [Stays, Stays], Stays),
            (Nature::Other, Stretch::Over, [Now, Now], Now),
            (Nature::Finite, Stretch::None, [Stays, Stays], Stays),
            (Nature::Finite, Stretch::Open, [Stays, Stays], Stays),
            (Nature::Finite, Stretch::Last, [Stays, Stays], Stays),
            (Nature::Finite, Stretch::Over, [Now, Now], Now),
            (Nature::Tied, Stretch::None, [Stays, Stays], Turn),
            (Nature::Tied, Stretch::Open, [Stays, Stays], Turn),
            (Nature::Tied, Stretch::Last, [Turn, Turn], Turn),
            (Nature::Tied, Stretch::Over, [Now, Now], Now),
            (Nature::Free, Stretch::None, [Stays, Stays], Turn),
            (Nature::Free, Stretch::Open, [Turn, Stays], Turn),
            (Nature::Free, Stretch::Last, [Turn, Turn], Turn),
            (Nature::Free, Stretch::Over, [Now, Now], Now),
        ];
        let mut cases = 0;
        for (nature, stretch, serving, draining) in table {
            for phase in PHASES {
                for (takers, serving) in [Takers::Some, Takers::None].into_iter().zip(serving) {
                    let want = if phase == Phase::Draining { draining } else { serving };
                    let got = verdict(nature, phase, stretch, takers);
                    assert_eq!(got, want, "{nature:?} {phase:?} {stretch:?} {takers:?}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, Nature::ALL.len() * STRETCHES.len() * PHASES.len() * 2);
    }

    #[test]
    fn what_must_finish_is_ended_by_nothing_but_the_end_of_its_term() {
        for nature in Nature::ALL.into_iter().filter(|nature| !nature.reconnects()) {
            for (phase, stretch) in PHASES.into_iter().flat_map(|p| STRETCHES.map(|s| (p, s))) {
                for takers in [Takers::Some, Takers::None] {
                    let ends = verdict(nature, phase, stretch, takers) != Verdict::Stays;
                    assert_eq!(ends, stretch == Stretch::Over);
                    assert!(!ends_by_age(nature, takers));
                }
            }
        }
    }

    #[test]
    fn age_ends_whoever_would_be_taken_in_again() {
        assert!(ends_by_age(Nature::Free, Takers::Some));
        assert!(!ends_by_age(Nature::Free, Takers::None), "a browser would give up");
        assert!(ends_by_age(Nature::Tied, Takers::Some));
        assert!(ends_by_age(Nature::Tied, Takers::None), "its own backend takes it");
    }

    /// Seconds as ticks.
    fn at(seconds: u32) -> Tick {
        Tick(seconds * 20)
    }

    #[test]
    fn a_term_is_counted_from_the_drain_and_anew_for_what_comes_behind_it() {
        let term = Some(DrainTerm::new(Duration::from_secs(100)));
        // The backend drains since second 1000; its last stretch begins at 1090.
        let cases = [
            // (begun, now, stretch)
            (5, 1000, Stretch::Open),
            (5, 1089, Stretch::Open),
            (5, 1090, Stretch::Last),
            (5, 1099, Stretch::Last),
            (5, 1100, Stretch::Over),
            (5, 9999, Stretch::Over),
            // Begun while it drained.
            (1050, 1089, Stretch::Open),
            (1050, 1090, Stretch::Last),
            (1050, 1100, Stretch::Over),
            // Begun in the last stretch: left alone until its end.
            (1095, 1099, Stretch::Open),
            (1095, 1100, Stretch::Over),
            // Begun when it was over.
            (1100, 1100, Stretch::Open),
            (1100, 1189, Stretch::Open),
            (1100, 1190, Stretch::Last),
            (1100, 1200, Stretch::Over),
        ];
        for (begun, now, want) in cases {
            let got = DrainTerm::stretch(term, Some(at(1000)), at(begun), at(now));
            assert_eq!(got, want, "begun at {begun}, at {now}");
            let endless = DrainTerm::stretch(None, Some(at(1000)), at(begun), at(now));
            assert_eq!(endless, Stretch::Open);
            assert_eq!(DrainTerm::stretch(term, None, at(begun), at(now)), Stretch::None);
        }
    }

    #[test]
    fn the_last_stretch_is_a_tenth_but_not_below_a_second_nor_above_the_term() {
        let cases =
            [(50, 1, 1), (500, 10, 10), (1000, 20, 20), (5000, 100, 20), (300_000, 6000, 600)];
        for (ms, ticks, last) in cases {
            assert_eq!(DrainTerm::new(Duration::from_millis(ms)), DrainTerm { ticks, last });
        }
    }

    #[test]
    fn ages_are_spread_over_a_tenth_to_either_side() {
        let mut rng = Rng::new(11);
        let mut ages: Vec<_> =
            (0..1000).map(|_| age_of_one(Duration::from_secs(100), &mut rng).as_millis()).collect();
        ages.sort_unstable();
        assert!(ages[0] >= 90_000 && ages[999] <= 110_000, "{} {}", ages[0], ages[999]);
        // A thousand even draws leave no gap of a fiftieth of the range.
        assert!(ages.windows(2).all(|pair| pair[1] - pair[0] < 400));
        assert!(ages[0] < 90_400 && ages[999] > 109_600);
        assert_eq!(age_of_one(Duration::from_millis(1), &mut rng).as_millis(), 1);
    }
}

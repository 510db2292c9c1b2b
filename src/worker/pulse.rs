//! Pure: when one event stream is silent for longer than its own past explains.
//!
//! A stream is measured against itself and nothing else: tokens come every 20 ms, states every
//! 15 s, a person's questions when they come. What is remembered is the longest pause so far, not a
//! mean and a deviation: a stream that speaks in bursts has a mean that says "20 ms" at the end of
//! every burst, and would be found silent between any two.
//!
//! Only time in which the backend is listened to counts. While the client is to take first what
//! there is, nobody can know whether the backend would speak.
//!
//! Owns the memory of one stream. Does not own what the silence of many means for their backend
//! (`health::outlier`).
//!
//! Invariants
//! - A stream is judged only when it has been heard for [`HEARD_PATIENCES`] times the silence that
//!   would count, which takes at least eight pauses.
//! - The wait for a first event is no pause: a long prompt is not a long silence.

use std::cell::Cell;

use crate::exchange::Tick;

/// A silence counts that is so many times as long as the longest pause before it.
const PAUSES_PER_PATIENCE: u32 = 2;

/// For how many such silences a stream must have been heard before one counts. Shorter ones were
/// all that it had time for.
const HEARD_PATIENCES: u32 = 4;

/// What one event stream sounded like so far. Written by its task, read by the walk over all.
#[derive(Debug)]
pub(super) struct Pulse {
    /// When the backend spoke last, put off by what its client took.
    silent_since: Cell<Tick>,
    /// Since when the client is to take something; [`Tick::NEVER`] while the backend is heard.
    away_since: Cell<Tick>,
    longest_pause_ticks: Cell<u32>,
    /// Sum of all pauses; `None` before the first event.
    heard_ticks: Cell<Option<u32>>,
    found: Cell<Found>,
}

/// What the last look has found, as far as the next one must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Silence,
    /// Silence, and it has spoken since.
    SilenceBroken,
}

/// What a look at a stream finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) state: Listened,
    /// The last look had found it silent, and it has spoken since.
    pub(super) has_resumed: bool,
}

/// How a stream sounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listened {
    /// Too little is known of it, or its client is to take something first.
    Unjudged,
    /// As ever.
    Speaking,
    /// For longer than it ever was.
    Silent,
}

impl Pulse {
    /// The head of a stream is here.
    pub(super) fn new(now: Tick) -> Self {
        Self {
            silent_since: Cell::new(now),
            away_since: Cell::new(Tick::NEVER),
            longest_pause_ticks: Cell::new(0),
            heard_ticks: Cell::new(None),
            found: Cell::new(Found::Nothing),
        }
    }

    /// An event has come.
    #[inline]
    pub(super) fn hear(&self, now: Tick) {
        let pause = now.0.saturating_sub(self.silent_since.replace(now).0);
        match self.heard_ticks.get() {
            None => self.heard_ticks.set(Some(0)),
            Some(heard) => {
                self.heard_ticks.set(Some(heard.saturating_add(pause)));
                self.longest_pause_ticks.set(self.longest_pause_ticks.get().max(pause));
            }
        }
        if self.found.get() == Found::Silence {
            self.found.set(Found::SilenceBroken);
        }
    }

    /// The client is to take something before the backend is listened to again.
    #[inline]
    pub(super) fn turn_away(&self, now: Tick) {
        self.away_since.set(now);
    }

    /// It has.
    #[inline]
    pub(super) fn turn_back(&self, now: Tick) {
        let away = now.0.saturating_sub(self.away_since.replace(Tick::NEVER).0);
        self.silent_since.set(Tick(self.silent_since.get().0.saturating_add(away)));
    }

    /// Judges it. `silence_min_ticks` is the shortest silence that counts.
    pub(super) fn look(&self, now: Tick, silence_min_ticks: u32) -> Look {
        let has_resumed = self.has_resumed();
        let longest = self.longest_pause_ticks.get();
        let patience = longest.saturating_mul(PAUSES_PER_PATIENCE).max(silence_min_ticks);
        let is_known = |heard: u32| heard >= patience.saturating_mul(HEARD_PATIENCES);
        let is_listened_to = self.away_since.get() == Tick::NEVER;
        let silence = now.0.saturating_sub(self.silent_since.get().0);
        let state = match self.heard_ticks.get().is_some_and(is_known) && is_listened_to {
            false => Listened::Unjudged,
            true if silence > patience => Listened::Silent,
            true => Listened::Speaking,
        };
        if state == Listened::Silent {
            self.found.set(Found::Silence);
        }
        Look { state, has_resumed }
    }

    /// Whether the last look had found it silent, and it has spoken since. Told once.
    pub(super) fn has_resumed(&self) -> bool {
        let is_broken = self.found.get() == Found::SilenceBroken;
        if is_broken {
            self.found.set(Found::Nothing);
        }
        is_broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rng;

    const TICKS_PER_SECOND: u32 = 20;
    const SILENCE_MIN_TICKS: u32 = 5 * TICKS_PER_SECOND;

    /// One stream, and a walk over it every second.
    struct Stream {
        pulse: Pulse,
        now_ms: u64,
        looked_ms: u64,
        /// What every look has found.
        looks: Vec<Look>,
    }

    impl Stream {
        fn new() -> Self {
            Self { pulse: Pulse::new(Tick(0)), now_ms: 0, looked_ms: 0, looks: Vec::new() }
        }

        /// The first event comes with the head.
        fn begin() -> Self {
            let stream = Self::new();
            stream.speak();
            stream
        }

        fn tick(&self) -> Tick {
            Tick(u32::try_from(self.now_ms / 50).unwrap())
        }

        /// An event that the client takes at once.
        fn speak(&self) {
            self.pulse.hear(self.tick());
            self.pulse.turn_away(self.tick());
            self.pulse.turn_back(self.tick());
        }

        fn pass(&mut self, ms: u64) {
            let end = self.now_ms + ms;
            while self.looked_ms + 1000 <= end {
                self.looked_ms += 1000;
                self.now_ms = self.looked_ms;
                self.looks.push(self.pulse.look(self.tick(), SILENCE_MIN_TICKS));
            }
            self.now_ms = end;
        }

        fn events(&mut self, pauses_ms: impl IntoIterator<Item = u64>) {
            for ms in pauses_ms {
                self.pass(ms);
                self.speak();
            }
        }

        fn looks_that_find(&self, state: Listened) -> usize {
            self.looks.iter().filter(|look| look.state == state).count()
        }

        /// Seconds of silence until a look finds it.
        fn silent_after_seconds(&mut self) -> usize {
            let before = self.looks.len();
            self.pass(600_000);
            let is_silent = |look: &Look| look.state == Listened::Silent;
            self.looks[before..].iter().position(is_silent).expect("found silent") + 1
        }
    }

    #[test]
    fn tokens_are_judged_after_twenty_seconds_and_missed_after_five() {
        let mut stream = Stream::begin();
        stream.events([20; 980]);
        assert_eq!(stream.looks_that_find(Listened::Unjudged), stream.looks.len());
        stream.events([20; 2020]);
        assert_eq!(stream.looks_that_find(Listened::Speaking), 40);
        assert_eq!(stream.looks_that_find(Listened::Silent), 0);
        assert_eq!(stream.silent_after_seconds(), 6);
    }

    #[test]
    fn what_comes_every_fifteen_seconds_is_missed_after_two_of_them() {
        let mut stream = Stream::begin();
        stream.events((0..100).map(|n| 14_900 + n % 5 * 50));
        assert_eq!(stream.looks_that_find(Listened::Silent), 0);
        let judged = stream.looks_that_find(Listened::Speaking);
        assert!((1300..1400).contains(&judged), "{judged}");
        assert_eq!(stream.silent_after_seconds(), 31);
    }

    #[test]
    fn somebody_who_speaks_every_few_minutes_may_take_as_long_again() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut stream = Stream::begin();
            stream.events((0..200).map(|_| 1_000 + rng.below(300_000)));
            assert_eq!(stream.looks_that_find(Listened::Silent), 0, "seed {seed}");
        }
    }

    #[test]
    fn streams_that_speak_in_bursts_are_not_silent_together() {
        let mut most = 0;
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let streams = [(); 10].map(|()| {
                let mut stream = Stream::begin();
                while stream.now_ms < 3_600_000 {
                    let (tokens, pause) = (rng.below(1000), 1_000 + rng.below(60_000));
                    stream.events((0..tokens).map(|_| 20));
                    stream.events([pause]);
                }
                stream
            });
            for second in 0..3600 {
                let looks = streams.iter().map(|stream| stream.looks[second].state);
                most = most.max(looks.filter(|state| *state == Listened::Silent).count());
            }
        }
        assert!(most < 4, "{most} of 10");
    }

    #[test]
    fn the_wait_for_the_first_event_is_no_pause() {
        let mut stream = Stream::new();
        stream.pass(300_000);
        stream.speak();
        stream.events([100; 190]);
        assert_eq!(stream.looks_that_find(Listened::Unjudged), 319);
        stream.events([100; 60]);
        assert_eq!(stream.silent_after_seconds(), 6);
    }

    #[test]
    fn a_client_that_takes_nothing_makes_no_silence() {
        // Behind an event, and behind a comment that is none.
        for is_event in [true, false] {
            let mut stream = Stream::begin();
            stream.events([100; 300]);
            stream.pass(1_000);
            if is_event {
                stream.pulse.hear(stream.tick());
            }
            stream.pulse.turn_away(stream.tick());
            stream.pass(60_000);
            assert_eq!(stream.looks_that_find(Listened::Silent), 0);
            assert_eq!(stream.looks.last().map(|look| look.state), Some(Listened::Unjudged));
            stream.pulse.turn_back(stream.tick());
            let left = if is_event { 6 } else { 5 };
            assert_eq!(stream.silent_after_seconds(), left);
            assert!(stream.looks.iter().all(|look| !look.has_resumed));
        }
    }

    #[test]
    fn who_speaks_again_is_told_once_and_may_pause_for_longer_from_then_on() {
        let mut stream = Stream::begin();
        stream.events([100; 300]);
        stream.pass(20_000);
        assert!(stream.looks.iter().all(|look| !look.has_resumed));
        stream.speak();
        stream.events([100; 50]);
        let resumed: Vec<_> = stream.looks.iter().filter(|look| look.has_resumed).collect();
        assert_eq!(resumed, [&Look { state: Listened::Unjudged, has_resumed: true }]);
        // Its longest pause is twenty seconds: it is judged again once it is known for long enough.
        stream.events([100; 2000]);
        assert_eq!(stream.silent_after_seconds(), 41);
        // One that ends in the middle of its silence has not resumed.
        assert!(!stream.pulse.has_resumed());
        stream.speak();
        assert!(stream.pulse.has_resumed() && !stream.pulse.has_resumed());
    }
}

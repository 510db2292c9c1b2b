//! Pure: what one event stream is like for whoever reads it.
//!
//! Owns what must be remembered from one event to the next, and says what is counted. Does not own
//! the counts, which are the backend's, nor the reading of events: it is told how many there were.
//!
//! Times are taken where octets arrive from the backend, once for each piece that is received: two
//! events that came together have no time between them. While the client takes nothing, nobody
//! listens to the backend; that time is its client's and counts neither as a gap nor as silence.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{exchange::StreamEnd, sse::Pushed, stats::BackendStats, telemetry::StreamRecord};

/// Measures one event stream. Times are in microseconds from the first octet of its request.
#[derive(Debug)]
pub(super) struct StreamMeter {
    /// Where is counted: with the backend that the stream comes from.
    stats: Arc<BackendStats>,
    /// Who counts.
    worker: usize,
    started: Instant,
    to_first_octet_us: u64,
    to_first_event_us: Option<u64>,
    /// The end of the last event; before the first one, of the head.
    quiet_since_us: u64,
    gap_us_max: u64,
    /// A silence that lasts longer is a stall.
    stall_us: u64,
    events: u64,
    stalls: u64,
    /// What has come ends between two events; `None` where that is hidden.
    at_boundary: Option<bool>,
}

impl StreamMeter {
    /// The head of the stream is here. `started` is when its request began to arrive; a silence
    /// longer than `stall` is one.
    pub(super) fn begin(
        stats: Arc<BackendStats>,
        worker: usize,
        started: Instant,
        now: Instant,
        stall: Option<Duration>,
    ) -> Self {
        let to_first_octet_us = us(now.saturating_duration_since(started));
        stats.cell(worker).streams().to_first_octet.observe_us(to_first_octet_us);
        Self {
            stats,
            worker,
            started,
            to_first_octet_us,
            to_first_event_us: None,
            quiet_since_us: to_first_octet_us,
            gap_us_max: 0,
            stall_us: stall.map_or(u64::MAX, us),
            events: 0,
            stalls: 0,
            at_boundary: Some(true),
        }
    }

    /// The stream goes on from another backend. To its client it is the same one.
    pub(super) fn go_on_from(&mut self, stats: &Arc<BackendStats>) {
        self.stats = Arc::clone(stats);
    }

    /// A piece has arrived. `at_boundary`: what has come ends between two events, if anybody can
    /// tell.
    pub(super) fn content(&mut self, piece: Pushed, at_boundary: Option<bool>, now: Instant) {
        let series = self.stats.cell(self.worker).streams();
        series.octets.add(piece.content as u64);
        self.at_boundary = at_boundary;
        let events = u64::from(piece.events);
        // Where events cannot be seen, any octet is a sign of life.
        if events == 0 && at_boundary.is_some() {
            return;
        }
        let now_us = us(now.saturating_duration_since(self.started));
        let quiet_us = now_us.saturating_sub(self.quiet_since_us);
        self.quiet_since_us = now_us;
        if quiet_us > self.stall_us {
            self.stalls += 1;
            series.stalls.add(1);
        }
        if events == 0 {
            return;
        }
        if self.to_first_event_us.is_some() {
            self.gap_us_max = self.gap_us_max.max(quiet_us);
            series.gaps.observe_us(quiet_us);
        } else {
            self.to_first_event_us = Some(now_us);
            series.to_first_event.observe_us(now_us);
        }
        if events > 1 {
            series.gaps.observe_zeros(events - 1);
        }
        self.events += events;
        series.events.add(events);
    }

    /// The client has taken what it was sent, and took its time: the backend is listened to again.
    pub(super) fn taken(&mut self, now: Instant) {
        self.quiet_since_us = us(now.saturating_duration_since(self.started));
    }

    /// The stream is over.
    pub(super) fn end(mut self, end: StreamEnd, now: Instant) -> StreamRecord {
        let series = self.stats.cell(self.worker).streams();
        let now_us = us(now.saturating_duration_since(self.started));
        if now_us.saturating_sub(self.quiet_since_us) > self.stall_us {
            self.stalls += 1;
            series.stalls.add(1);
        }
        series.ends[end.index()].add(1);
        StreamRecord {
            to_first_octet: Duration::from_micros(self.to_first_octet_us),
            to_first_event: self.to_first_event_us.map(Duration::from_micros),
            events: self.at_boundary.map(|_| self.events),
            gap_max: (self.events > 1).then(|| Duration::from_micros(self.gap_us_max)),
            stalls: self.stalls,
            end: end.label(),
            at_boundary: self.at_boundary,
        }
    }
}

/// Microseconds; half a million years and more are one.
fn us(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000).saturating_add(duration.subsec_micros().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{StreamReading, StreamScale, TimingsReading};

    const MS: Duration = Duration::from_millis(1);
    const BOUNDARY: Option<bool> = Some(true);
    const INSIDE: Option<bool> = Some(false);
    const HIDDEN: Option<bool> = None;

    struct Stream {
        started: Instant,
        stats: Arc<BackendStats>,
        meter: StreamMeter,
    }

    /// A stream whose head is here 3 ms after its request, and which may be silent for 1 s.
    fn stream() -> Stream {
        let (started, stats) = (Instant::now(), Arc::new(BackendStats::new(2)));
        let (now, stall) = (started + 3 * MS, Some(1000 * MS));
        let meter = StreamMeter::begin(Arc::clone(&stats), 1, started, now, stall);
        Stream { started, stats, meter }
    }

    impl Stream {
        fn content(&mut self, at_ms: u32, content: usize, events: u32, place: Option<bool>) {
            let piece = Pushed { taken: content + 5, content, events };
            self.meter.content(piece, place, self.started + at_ms * MS);
        }

        fn events(&mut self, at_ms: u32, events: u32) {
            self.content(at_ms, 10 * events as usize, events, BOUNDARY);
        }

        fn end(self, at_ms: u32, end: StreamEnd) -> (StreamRecord, StreamReading) {
            let record = self.meter.end(end, self.started + at_ms * MS);
            (record, reading(&self.stats))
        }
    }

    fn reading(stats: &BackendStats) -> StreamReading {
        let mut reading = StreamReading::default();
        stats.streams().for_each(|series| reading.merge(series));
        reading
    }

    /// The reading of these times in milliseconds.
    fn times(ms: &[u64]) -> (u64, Vec<u64>) {
        let mut buckets = TimingsReading::<StreamScale>::default().buckets;
        let bounds_us = <StreamScale as crate::stats::Scale>::BOUNDS_US;
        for ms in ms {
            let bucket = bounds_us.iter().position(|us| us >= &(ms * 1000));
            buckets[bucket.unwrap_or(bounds_us.len())] += 1;
        }
        (1000 * ms.iter().sum::<u64>(), buckets)
    }

    #[test]
    fn a_stream_is_timed_by_its_pieces_and_counted_by_its_events() {
        let mut stream = stream();
        stream.content(20, 5, 0, INSIDE);
        stream.content(30, 5, 1, BOUNDARY);
        stream.events(100, 3);
        stream.content(140, 4, 0, INSIDE);
        let (record, reading) = stream.end(150, StreamEnd::ClientLeft);
        let want = StreamRecord {
            to_first_octet: 3 * MS,
            to_first_event: Some(30 * MS),
            events: Some(4),
            gap_max: Some(70 * MS),
            stalls: 0,
            end: "client_left",
            at_boundary: Some(false),
        };
        assert_eq!(record, want);
        let of = |reading: &TimingsReading<_>| (reading.sum_us, reading.buckets.clone());
        assert_eq!(of(&reading.to_first_octet), times(&[3]));
        assert_eq!(of(&reading.to_first_event), times(&[30]));
        assert_eq!(of(&reading.gaps), times(&[70, 0, 0]));
        assert_eq!((reading.events, reading.octets, reading.stalls), (4, 44, 0));
        let mut ends = [0; StreamEnd::ALL.len()];
        ends[StreamEnd::ClientLeft.index()] = 1;
        assert_eq!(reading.ends, ends);
    }

    #[test]
    fn a_silence_is_a_stall_when_it_ends_however_it_ends() {
        // When events came, when the stream ended, and how many stalls there were.
        let cases: [(&[u32], u32, u64); 7] = [
            (&[10, 1010], 1500, 0),
            (&[10, 1011], 1500, 1),
            (&[10], 1011, 1),
            (&[1003], 1500, 0),
            (&[1004], 1500, 1),
            (&[], 1003, 0),
            (&[5000, 10_000], 15_000, 3),
        ];
        for (events, end, stalls) in cases {
            let mut stream = stream();
            for at_ms in events {
                stream.events(*at_ms, 1);
            }
            let (record, reading) = stream.end(end, StreamEnd::Finished);
            assert_eq!((record.stalls, reading.stalls), (stalls, stalls), "{events:?} {end}");
        }
    }

    #[test]
    fn where_stalls_are_off_no_silence_is_one() {
        let (started, stats) = (Instant::now(), Arc::new(BackendStats::new(1)));
        let meter = StreamMeter::begin(Arc::clone(&stats), 0, started, started, None);
        let now = started + Duration::from_secs(86_400 * 365);
        let record = meter.end(StreamEnd::Finished, now);
        assert_eq!((record.stalls, reading(&stats).stalls), (0, 0));
        assert_eq!((record.to_first_event, record.gap_max), (None, None));
        assert_eq!((record.events, record.at_boundary), (Some(0), Some(true)));
    }

    #[test]
    fn part_of_an_event_breaks_no_silence() {
        let mut stream = stream();
        stream.events(10, 1);
        stream.content(900, 1, 0, INSIDE);
        stream.events(1800, 1);
        let (record, _) = stream.end(1800, StreamEnd::Finished);
        assert_eq!((record.stalls, record.gap_max), (1, Some(1790 * MS)));
    }

    #[test]
    fn time_in_which_the_client_took_nothing_is_nobodys_silence() {
        let mut stream = stream();
        stream.events(10, 1);
        stream.meter.taken(stream.started + 5000 * MS);
        stream.events(5020, 1);
        let (record, reading) = stream.end(5030, StreamEnd::TooSlow);
        assert_eq!((record.stalls, record.gap_max), (0, Some(20 * MS)));
        assert_eq!(reading.gaps.sum_us, 20_000);
    }

    #[test]
    fn of_a_coded_stream_octets_are_the_signs_of_life() {
        let mut stream = stream();
        for at_ms in [500, 1000, 3000] {
            stream.content(at_ms, 7, 0, HIDDEN);
        }
        let (record, reading) = stream.end(3500, StreamEnd::BackendDied);
        assert_eq!((record.events, record.at_boundary, record.stalls), (None, None, 1));
        assert_eq!((reading.octets, reading.gaps.count()), (21, 0));
        assert_eq!(reading.to_first_event.count(), 0);
    }

    #[test]
    fn a_stream_that_goes_on_from_another_backend_is_one_stream_and_counts_where_it_came_from() {
        let mut stream = stream();
        stream.events(10, 1);
        let other = Arc::new(BackendStats::new(2));
        stream.meter.go_on_from(&other);
        stream.events(60, 2);
        let (record, first) = stream.end(70, StreamEnd::Finished);
        let second = reading(&other);
        assert_eq!((record.events, record.to_first_event), (Some(3), Some(10 * MS)));
        assert_eq!((first.events, second.events), (1, 2));
        assert_eq!((first.gaps.count(), second.gaps.sum_us), (0, 50_000));
        assert_eq!((first.to_first_octet.count(), second.to_first_octet.count()), (1, 0));
        assert_eq!((first.ends[0], second.ends[0]), (0, 1));
    }

    #[test]
    fn a_meter_is_small() {
        assert!(size_of::<StreamMeter>() <= 112, "{}", size_of::<StreamMeter>());
    }
}

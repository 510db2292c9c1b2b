//! Pure: how event streams from one backend have felt to whoever read them.

use super::{Counter, StreamScale, Timings, TimingsReading};

/// Ways in which a stream may end; `exchange::StreamEnd` asserts that it has as many.
pub const STREAM_ENDS: usize = 7;

/// Counts of event streams. One writer.
#[derive(Debug, Default)]
pub struct StreamSeries {
    /// From the first octet of a request to the head of the stream that answers it.
    pub to_first_octet: Timings<StreamScale>,
    /// From there too, to the end of the first event.
    pub to_first_event: Timings<StreamScale>,
    /// Between the ends of two events of one stream.
    pub gaps: Timings<StreamScale>,
    /// Events.
    pub events: Counter,
    /// Octets of content, which is what events are made of.
    pub octets: Counter,
    /// Silences that lasted longer than they should.
    pub stalls: Counter,
    /// Streams that have ended, by `StreamEnd` index.
    pub ends: [Counter; STREAM_ENDS],
}

/// A sum over the series of several workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamReading {
    /// As in [`StreamSeries`].
    pub to_first_octet: TimingsReading<StreamScale>,
    /// As in [`StreamSeries`].
    pub to_first_event: TimingsReading<StreamScale>,
    /// As in [`StreamSeries`].
    pub gaps: TimingsReading<StreamScale>,
    /// As in [`StreamSeries`].
    pub events: u64,
    /// As in [`StreamSeries`].
    pub octets: u64,
    /// As in [`StreamSeries`].
    pub stalls: u64,
    /// As in [`StreamSeries`].
    pub ends: [u64; STREAM_ENDS],
}

impl StreamReading {
    /// Adds what one worker counted.
    pub fn merge(&mut self, series: &StreamSeries) {
        self.to_first_octet.merge(&series.to_first_octet);
        self.to_first_event.merge(&series.to_first_event);
        self.gaps.merge(&series.gaps);
        self.events += series.events.get();
        self.octets += series.octets.get();
        self.stalls += series.stalls.get();
        for (total, end) in self.ends.iter_mut().zip(&series.ends) {
            *total += end.get();
        }
    }
}

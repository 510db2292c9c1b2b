//! Pure: the events of a stream, which follow from what its client has ordered.

use std::{sync::LazyLock, time::Duration};

/// Digits of the time stamp in each event.
const STAMP_DIGITS: usize = 20;

/// Longest average payload that can be ordered, in octets.
const SIZE_MAX: usize = 32 * 1024;

/// What payloads are cut out of, because making each of them up would cost more than sending it.
static NOISE: LazyLock<String> = LazyLock::new(|| {
    let mut random = Random(1);
    let mut noise = String::new();
    while noise.len() < PLACES + 2 * SIZE_MAX {
        let index = usize::try_from(random.below(64)).expect("below 64");
        noise.push(ALPHABET[index]);
    }
    noise
});

/// Places of [`NOISE`] where a payload may begin.
const PLACES: usize = 64 * 1024;

/// What payloads are made of: 64 characters of one to four octets. No line ends, which would be
/// another field.
const ALPHABET: [char; 64] = [
    'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r', 's',
    't', 'u', 'v', 'w', 'x', 'y', 'z', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B',
    'C', 'D', 'E', 'F', 'G', 'H', 'I', 'J', 'K', 'L', 'M', 'N', '{', '}', '"', ':', ',', '.', ' ',
    '-', '/', '\\', 'é', 'ß', '€', '𝄞',
];

/// How the end of a stream is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// With a last chunk.
    Chunked,
    /// By closing the connection.
    Close,
}

/// A stream as its client orders it, in the target of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Its number.
    pub(crate) stream: u64,
    /// With the number, what its events hold.
    pub(crate) seed: u64,
    /// From one event to the next. Zero is as fast as they are taken.
    pub(crate) period: Duration,
    /// How many there are; `u64::MAX` is without end.
    pub(crate) events: u64,
    /// Octets in the payload of an event on average: each has from half to one and a half times as
    /// many.
    pub(crate) size: usize,
    /// How the backend tells the end.
    pub(crate) framing: Framing,
    /// When the stream began, in nanoseconds since 1970: events that were due since then are sent at
    /// once. 0 is when the backend gets the request.
    pub(crate) since_ns: u64,
}

/// Why octets are not the event that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unexpected;

impl Order {
    /// The target of a request for it.
    pub(crate) fn target(&self) -> String {
        let Self { stream, seed, events, size, since_ns, .. } = *self;
        let period = self.period.as_micros();
        let framing = match self.framing {
            Framing::Chunked => "chunked",
            Framing::Close => "close",
        };
        format!(
            "/events/{stream}?seed={seed}&period_us={period}&events={events}&size={size}\
             &framing={framing}&since_ns={since_ns}"
        )
    }

    /// What a target orders, if it is one of ours.
    pub(crate) fn from_target(target: &str) -> Option<Self> {
        let (stream, query) = target.strip_prefix("/events/")?.split_once('?')?;
        let value =
            |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let number = |key: &str| value(key)?.parse::<u64>().ok();
        let size = usize::try_from(number("size")?).ok().filter(|size| *size <= SIZE_MAX)?;
        Some(Self {
            stream: stream.parse().ok()?,
            seed: number("seed")?,
            period: Duration::from_micros(number("period_us")?),
            events: number("events")?,
            size,
            framing: match value("framing")? {
                "chunked" => Framing::Chunked,
                "close" => Framing::Close,
                _ => return None,
            },
            since_ns: number("since_ns")?,
        })
    }

    /// When an event is due, for a stream that began at `since_ns`. Streams that began together
    /// take turns within the period.
    pub(crate) fn due_ns(&self, since_ns: u64, event: u64) -> u64 {
        let period = u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX);
        // Multiples of the golden ratio fill the period evenly, however many streams there are.
        let share = self.stream.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let phase = (u128::from(period) * u128::from(share)) >> 32;
        let phase = u64::try_from(phase).expect("a part of the period");
        since_ns.saturating_add(phase).saturating_add(event.saturating_mul(period))
    }

    /// Appends an event, with the time at which it is sent.
    pub(crate) fn write(&self, event: u64, sent_ns: u64, out: &mut Vec<u8>) {
        let mut digits = [b'0'; STAMP_DIGITS];
        let mut rest = sent_ns;
        for digit in digits.iter_mut().rev() {
            *digit += u8::try_from(rest % 10).expect("a digit");
            rest /= 10;
        }
        self.write_stamped(event, &digits, out);
    }

    fn write_stamped(&self, event: u64, stamp: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"id: ");
        write_number(event, out);
        out.extend_from_slice(b"\ndata: ");
        out.extend_from_slice(stamp);
        out.push(b' ');
        write_number(self.stream, out);
        out.push(b' ');
        let mut random = Random(self.seed ^ self.stream.rotate_left(40) ^ event.rotate_left(20));
        let mut draw = |below: usize| {
            let below = u64::try_from(below).expect("a usize is no longer");
            usize::try_from(random.below(below)).expect("no more than there were")
        };
        let from = NOISE.ceil_char_boundary(draw(PLACES));
        let to = NOISE.ceil_char_boundary(from + self.size / 2 + draw(self.size + 1));
        out.extend_from_slice(&NOISE.as_bytes()[from..to]);
        let two_lines = draw(4) == 0;
        if two_lines {
            out.extend_from_slice(b"\ndata: and another line");
        }
        out.extend_from_slice(b"\n\n");
    }

    /// When these octets were sent, if they are this event and nothing else.
    ///
    /// # Errors
    /// They are not.
    pub(crate) fn check(
        &self,
        event: u64,
        octets: &[u8],
        scratch: &mut Vec<u8>,
    ) -> Result<u64, Unexpected> {
        let stamp = octets.split(|octet| *octet == b'\n').nth(1).ok_or(Unexpected)?;
        let stamp = stamp.get(6..6 + STAMP_DIGITS).ok_or(Unexpected)?;
        scratch.clear();
        self.write_stamped(event, stamp, scratch);
        if scratch != octets {
            return Err(Unexpected);
        }
        let stamp = std::str::from_utf8(stamp).map_err(|_| Unexpected)?;
        stamp.parse().map_err(|_| Unexpected)
    }
}

/// Appends a number in decimal digits, without formatting.
fn write_number(mut number: u64, out: &mut Vec<u8>) {
    let at = out.len();
    loop {
        out.push(b'0' + u8::try_from(number % 10).expect("a digit"));
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out[at..].reverse();
}

/// SplitMix64: the same numbers for the same seed, everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(stream: u64) -> Order {
        Order {
            stream,
            seed: 7,
            period: Duration::from_millis(100),
            events: 30,
            size: 100,
            framing: Framing::Close,
            since_ns: 1_000,
        }
    }

    #[test]
    fn an_order_survives_its_target() {
        for framing in [Framing::Chunked, Framing::Close] {
            let order = Order { framing, ..order(3) };
            assert_eq!(Order::from_target(&order.target()), Some(order));
        }
        let target = order(3).target();
        for other in [target.replace("seed", "need"), target.replace("close", "else")] {
            assert_eq!(Order::from_target(&other), None, "{other}");
        }
    }

    #[test]
    fn an_event_is_known_from_every_other_and_from_every_damage() {
        let (mut octets, mut scratch) = (Vec::new(), Vec::new());
        for event in 0..200 {
            octets.clear();
            order(3).write(event, 42, &mut octets);
            let mut check =
                |order: Order, event, octets: &[u8]| order.check(event, octets, &mut scratch);
            assert_eq!(check(order(3), event, &octets), Ok(42));
            assert_eq!(check(order(3), event + 1, &octets), Err(Unexpected));
            assert_eq!(check(order(4), event, &octets), Err(Unexpected));
            assert_eq!(check(order(3), event, &octets[1..]), Err(Unexpected));
            assert_eq!(check(order(3), event, &octets[..octets.len() - 1]), Err(Unexpected));
            let stamp = octets.iter().position(|octet| *octet == b'\n').unwrap() + 7;
            for at in (0..octets.len()).filter(|at| !(stamp..stamp + STAMP_DIGITS).contains(at)) {
                octets[at] ^= 1;
                assert_eq!(check(order(3), event, &octets), Err(Unexpected), "octet {at}");
                octets[at] ^= 1;
            }
        }
    }

    #[test]
    fn streams_take_turns_within_their_period() {
        let mut due: Vec<_> = (0..1000).map(|stream| order(stream).due_ns(0, 0)).collect();
        due.sort_unstable();
        let gaps = due.windows(2).map(|pair| pair[1] - pair[0]);
        // Even spread would be 100 µs from one to the next.
        assert!(gaps.clone().all(|gap| (10_000..300_000).contains(&gap)), "{:?}", gaps.max());
    }
}

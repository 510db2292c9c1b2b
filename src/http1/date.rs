//! Pure: dates as HTTP writes them (RFC 9110 §5.6.7).

use std::time::Duration;

/// A moment as a field line: `Date: Sun, 06 Nov 1994 08:49:37 GMT` and its end (RFC 9110 §6.6.1).
///
/// It stays written out for as long as its second lasts: whoever says it often moves one on, and
/// copies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DateLine {
    second: u64,
    octets: [u8; TEMPLATE.len()],
}

const TEMPLATE: [u8; 37] = *b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n";

/// The last second of the year 9999: the format has four digits for a year.
const SECOND_MAX: u64 = 253_402_300_799;

impl DateLine {
    /// The moment so long after 1970-01-01 00:00 UTC. Those after the year 9999 are its end.
    pub fn at(since_epoch: Duration) -> Self {
        let mut line = Self { second: 0, octets: TEMPLATE };
        line.move_to(since_epoch);
        line
    }

    /// Says another moment, later or earlier. Within one second nothing is written.
    pub fn move_to(&mut self, since_epoch: Duration) {
        let second = since_epoch.as_secs().min(SECOND_MAX);
        if second != self.second {
            self.second = second;
            self.write();
        }
    }

    /// The whole line, CR LF included.
    pub fn as_bytes(&self) -> &[u8] {
        &self.octets
    }

    #[expect(clippy::cast_possible_truncation, reason = "each part of a date is below 100")]
    fn write(&mut self) {
        // 1970-01-01 was a Thursday.
        const WEEKDAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
        const MONTHS: [&[u8; 3]; 12] = [
            b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
            b"Dec",
        ];
        let (days, second) = (self.second / 86_400, self.second % 86_400);
        let CivilDate { year, month, day } = CivilDate::from_days(days);
        let mut put = |at: usize, text: &[u8]| {
            self.octets[at..at + text.len()].copy_from_slice(text);
        };
        put(6, WEEKDAYS[usize::from((days % 7) as u8)]);
        put(11, &two_digits(day));
        put(14, MONTHS[usize::from(month) - 1]);
        put(18, &two_digits((year / 100) as u8));
        put(20, &two_digits((year % 100) as u8));
        put(23, &two_digits((second / 3600) as u8));
        put(26, &two_digits((second % 3600 / 60) as u8));
        put(29, &two_digits((second % 60) as u8));
    }
}

fn two_digits(number: u8) -> [u8; 2] {
    [b'0' + number / 10, b'0' + number % 10]
}

/// A day of the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CivilDate {
    /// From 1970.
    pub year: u64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
}

impl CivilDate {
    /// The day so many days after 1970-01-01.
    ///
    /// Counts in years that begin in March, which puts the leap day last and makes the lengths of
    /// the months before it a linear function.
    #[expect(clippy::cast_possible_truncation, reason = "months and days are below 32")]
    pub fn from_days(days: u64) -> Self {
        const ERA: u64 = 146_097; // days in 400 years
        let days = days + 719_468; // from 0000-03-01
        let (era, day_of_era) = (days / ERA, days % ERA);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (ERA - 1)) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let months_from_march = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * months_from_march + 2) / 5 + 1) as u8;
        let month = (months_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        Self { year, month: month as u8, day }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_imf_fixdates() {
        let cases = [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (86_399, "Thu, 01 Jan 1970 23:59:59 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (946_684_799, "Fri, 31 Dec 1999 23:59:59 GMT"),
            (946_684_800, "Sat, 01 Jan 2000 00:00:00 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_709_210_096, "Thu, 29 Feb 2024 12:34:56 GMT"),
            (1_798_761_599, "Thu, 31 Dec 2026 23:59:59 GMT"),
            (2_147_483_647, "Tue, 19 Jan 2038 03:14:07 GMT"),
            (2_147_483_648, "Tue, 19 Jan 2038 03:14:08 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (4_294_967_296, "Sun, 07 Feb 2106 06:28:16 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            // A clock that has lost its mind still makes a date.
            (253_402_300_800, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ];
        // One line goes through all of them, forwards and back.
        let mut moved = DateLine::at(Duration::from_secs(1));
        for (seconds, want) in cases.iter().chain(cases.iter().rev()) {
            let moment = Duration::new(*seconds, 999_999_999);
            moved.move_to(moment);
            let want = format!("Date: {want}\r\n");
            assert_eq!(
                moved.as_bytes().escape_ascii().to_string(),
                want.escape_default().to_string()
            );
            assert_eq!(moved, DateLine::at(moment), "{seconds}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let is_leap =
            |y: u64| y.is_multiple_of(4) && !y.is_multiple_of(100) || y.is_multiple_of(400);
        let mut expected = CivilDate { year: 1970, month: 1, day: 1 };
        for days in 0..200_000 {
            assert_eq!(CivilDate::from_days(days), expected, "day {days}");
            let CivilDate { year, month, day } = expected;
            let length = match month {
                2 => 28 + u8::from(is_leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, day) {
                (12, 31) => CivilDate { year: year + 1, month: 1, day: 1 },
                (_, day) if day == length => CivilDate { year, month: month + 1, day: 1 },
                _ => CivilDate { year, month, day: day + 1 },
            };
        }
    }
}

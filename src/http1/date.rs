//! Pure: dates as HTTP writes them (RFC 9110 §5.6.7).

use std::{fmt, time::Duration};

/// A moment as `Sun, 06 Nov 1994 08:49:37 GMT`, given as the time since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpDate(pub Duration);

/// Length of every date in octets, up to the year 9999.
pub const HTTP_DATE_BYTES: usize = 29;

impl fmt::Display for HttpDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 1970-01-01 was a Thursday.
        const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let seconds = self.0.as_secs();
        let days = seconds / 86_400;
        let CivilDate { year, month, day } = CivilDate::from_days(days);
        let weekday = WEEKDAYS[usize::from((days % 7) as u8)];
        let month = MONTHS[usize::from(month) - 1];
        let (hour, minute, second) = (seconds % 86_400 / 3600, seconds % 3600 / 60, seconds % 60);
        write!(f, "{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
    }
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
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ];
        for (seconds, want) in cases {
            let text = HttpDate(Duration::from_secs(seconds)).to_string();
            assert_eq!(text, want);
            assert_eq!(text.len(), HTTP_DATE_BYTES);
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

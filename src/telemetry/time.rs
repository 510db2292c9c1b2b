//! Time stamps: RFC 3339 in UTC, to the millisecond.

use std::{
    cell::Cell,
    fmt,
    time::{Duration, SystemTime},
};

use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

thread_local! {
    // The formatter gets no say in when an event happened; this is how `at` tells it.
    static HAPPENED: Cell<Option<SystemTime>> = const { Cell::new(None) };
}

/// Runs `log`, whose events carry the time `happened` instead of that of their formatting.
pub(super) fn at(happened: SystemTime, log: impl FnOnce()) {
    HAPPENED.set(Some(happened));
    log();
    HAPPENED.set(None);
}

/// Writes when an event happened.
pub(super) struct EventTime;

impl FormatTime for EventTime {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        rfc3339(w, HAPPENED.get().unwrap_or_else(SystemTime::now))
    }
}

fn rfc3339(w: &mut impl fmt::Write, time: SystemTime) -> fmt::Result {
    const DAY: u64 = 24 * 60 * 60;
    // A clock before 1970 is shown as 1970: it is wrong either way.
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (seconds, ms) = (since_epoch.as_secs(), since_epoch.subsec_millis());
    let (year, month, day) = civil(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    write!(w, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Year, month and day of a day since 1970-01-01, in the proleptic Gregorian calendar. The years
/// are taken to begin in March, which puts the leap day last and makes months a linear function.
fn civil(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097; // days in 400 years
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / ERA, days % ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_rfc_3339() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, 5, "2000-02-29T00:00:00.005Z"),
            (1_709_251_199, 999, "2024-02-29T23:59:59.999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000Z"),
            (1_795_132_800, 120, "2026-11-20T00:00:00.120Z"),
        ];
        for (seconds, ms, want) in cases {
            let since_epoch = Duration::from_secs(seconds) + Duration::from_millis(ms);
            let mut text = String::new();
            rfc3339(&mut text, SystemTime::UNIX_EPOCH + since_epoch).unwrap();
            assert_eq!(text, want);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let is_leap =
            |y: u64| y.is_multiple_of(4) && !y.is_multiple_of(100) || y.is_multiple_of(400);
        let mut expected = (1970, 1, 1);
        for days in 0..200_000 {
            assert_eq!(civil(days), expected, "day {days}");
            let (year, month, day) = expected;
            let length = match month {
                2 => 28 + u64::from(is_leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, day) if day == length => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }
}

//! Time stamps: RFC 3339 in UTC, to the millisecond.

use std::{
    cell::Cell,
    fmt,
    time::{Duration, SystemTime},
};

use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

use crate::http1::CivilDate;

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
    let CivilDate { year, month, day } = CivilDate::from_days(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    write!(w, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
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
}

//! Dates as we write them against somebody else's hand.

use std::time::{Duration, UNIX_EPOCH};

use stepflow_load_balancer::http1::DateLine;

/// Days from 1970 to the end of 9999.
const DAYS: u64 = 2_932_897;

#[test]
fn every_date_is_written_as_httpdate_writes_it() {
    // Every day for two hundred years, and every third month beyond; each at another time of day.
    let days = (0..84_000).chain((84_000..DAYS).step_by(97)).chain([DAYS - 1]);
    let mut line = DateLine::at(Duration::ZERO);
    for second in days.map(|day| day * 86_400 + day * 7_919 % 86_400) {
        let moment = Duration::from_secs(second);
        line.move_to(moment);
        let want = format!("Date: {}\r\n", httpdate::fmt_http_date(UNIX_EPOCH + moment));
        assert_eq!(line.as_bytes(), want.as_bytes(), "{second}");
    }
}

//! A moment in UTC, in the form that people read.

const DAY_MS: i64 = 24 * 3600 * 1000;

/// `2026-01-02 03:04:05.678`, from unix milliseconds.
pub fn shown(unix_ms: i64) -> String {
    let (days, ms) = (unix_ms.div_euclid(DAY_MS), unix_ms.rem_euclid(DAY_MS));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let ms = ms % 1000;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}")
}

/// Year, month and day, from days since 1970-01-01. Years begin in March, so that the leap day is
/// the last day of one; 400 years have 146,097 days.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month < 10 {
        true => (era * 400 + year, month + 3),
        false => (era * 400 + year + 1, month - 9),
    };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SQLite confirms the moments, for days far apart and next to leap days.
    #[test]
    fn moments_are_those_of_sqlite() {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        let text = "SELECT strftime('%Y-%m-%d %H:%M:%f', ?1 / 1000.0, 'unixepoch')";
        let mut asked = conn.prepare(text).unwrap();
        let spread = (0..3000).map(|i| i * 24_631_427_311);
        let leap = (0..800).map(|i| 951_782_400_000 + (i - 400) * DAY_MS / 4);
        for ms in spread.chain(leap) {
            let expected: String = asked.query_row([ms], |r| r.get(0)).unwrap();
            assert_eq!(shown(ms), expected, "{ms}");
        }
    }
}

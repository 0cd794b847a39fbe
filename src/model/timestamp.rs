//! Moments in UTC: unix milliseconds to text and back.
//!
//! The broker writes its times as RFC 3339, as Go does (`2026-01-02T03:04:05.678901234Z`).

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Unix milliseconds in the form that people read: `2026-01-02 03:04:05.678`.
pub fn shown(unix_ms: i64) -> String {
    let (date, time) = parts(unix_ms);
    format!("{date} {time}.{:03}", unix_ms.rem_euclid(1000))
}

/// Unix milliseconds as RFC 3339, cut to the second.
pub fn rfc3339(unix_ms: i64) -> String {
    let (date, time) = parts(unix_ms);
    format!("{date}T{time}Z")
}

/// Unix milliseconds as RFC 3339, with three digits of the second's fraction.
pub fn rfc3339_ms(unix_ms: i64) -> String {
    let (date, time) = parts(unix_ms);
    format!("{date}T{time}.{:03}Z", unix_ms.rem_euclid(1000))
}

/// Date and time of day, cut to the second.
fn parts(unix_ms: i64) -> (String, String) {
    let (days, ms) = (unix_ms.div_euclid(DAY_MS), unix_ms.rem_euclid(DAY_MS));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    (
        format!("{year:04}-{month:02}-{day:02}"),
        format!("{hour:02}:{minute:02}:{second:02}"),
    )
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

/// Parses RFC 3339 in UTC to unix milliseconds; none if `text` is not such a time.
pub fn unix_ms(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut time = time.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    if !(0..=9999).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    let millis: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let seconds = ((days_from_civil(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(seconds * 1000 + millis)
}

/// Days since 1970-01-01. A year begins in March here, so the leap day is its last day.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
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

    #[test]
    fn known_moments() {
        assert_eq!(unix_ms("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix_ms("2024-02-29T12:00:00.5Z"), Some(1_709_208_000_500));
        assert_eq!(
            unix_ms("2026-11-21T05:55:23.123456789Z"),
            Some(1_795_240_523_123)
        );
        assert_eq!(unix_ms("2000-03-01T00:00:00.001Z"), Some(951_868_800_001));
        for day in (-800_000..=800_000).step_by(13) {
            let time_ms = day * 86_400_000 + 3_723_000;
            let text = rfc3339(time_ms);
            match text.starts_with('-') {
                true => assert!(time_ms < 0),
                false => assert_eq!(unix_ms(&text), Some(time_ms), "{text}"),
            }
        }
        for bad in [
            "",
            "2024-02-29",
            "2024-13-01T00:00:00Z",
            "2024-01-01T00:00:00+01:00",
        ] {
            assert_eq!(unix_ms(bad), None, "{bad}");
        }
    }
}

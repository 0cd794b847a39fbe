//! The broker's times, RFC 3339 in UTC as Go writes them (`2026-01-02T03:04:05.678901234Z`).

/// Parses a time to unix milliseconds; None if `text` is not such a time.
pub(crate) fn unix_ms(text: &str) -> Option<i64> {
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

/// Formats unix milliseconds, cut to the second.
pub(crate) fn rfc3339(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // This estimate is at most the right year; the loop advances it.
    let mut year = 1970 + days.div_euclid(366).min(days.div_euclid(365));
    while days_from_civil(year + 1, 1, 1) <= days {
        year += 1;
    }
    let month = (1..=12)
        .rev()
        .find(|m| days_from_civil(year, *m, 1) <= days);
    let month = month.unwrap_or(1);
    let day = days - days_from_civil(year, month, 1) + 1;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Formats unix milliseconds with three digits of the second's fraction.
pub(crate) fn rfc3339_ms(unix_ms: i64) -> String {
    let seconds = rfc3339(unix_ms);
    let seconds = seconds.trim_end_matches('Z');
    format!("{seconds}.{:03}Z", unix_ms.rem_euclid(1000))
}

/// Days since 1970-01-01. A year begins in March here, so the leap day is its last day.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::{rfc3339, unix_ms};

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

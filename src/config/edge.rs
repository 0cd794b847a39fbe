//! `[edge]`: a node on a box with little flash, or behind a slow, metered or rarely available
//! connection.

use std::time::Duration;

use super::section::Section;

/// Smallest limit: less than that counts as a broken connection elsewhere.
const LEAST_BANDWIDTH: u64 = 32 * 1024;

/// Shortest `heartbeat`, in milliseconds.
const LEAST_HEARTBEAT: u64 = 1_000;

const DAY: u32 = 24 * 3600;

/// Longest `publish_interval`.
const LONGEST_INTERVAL: Duration = Duration::from_secs(DAY as u64);

/// `[edge]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeSettings {
    /// How often the broker says that an idle connection is alive, 1 s to 300 s; none: as often as
    /// its kind needs.
    pub heartbeat: Option<Duration>,
    /// Bytes a second in each direction; none: no limit.
    pub max_bandwidth: Option<u64>,
    /// Outside of it the node does not connect; none: it is always connected.
    pub sync_window: Option<Window>,
    /// Local writes are captured and sent at most this often; 0: at once.
    pub publish_interval: Duration,
}

/// A part of each day, by the local time of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Seconds since midnight.
    from: u32,
    to: u32,
    /// The text in the configuration.
    pub text: String,
}

impl EdgeSettings {
    pub(super) fn read(section: &Section, runs_a_server: bool) -> EdgeSettings {
        let what = "milliseconds between two signs of life of the broker, 0 for the usual time";
        let heartbeat = section.int("heartbeat", 0, 0..=300_000, what);
        if (1..LEAST_HEARTBEAT).contains(&heartbeat) {
            let text = format!("is {heartbeat}, but must be 0 or an integer from 1000 to 300000");
            section.note("heartbeat", text);
        }
        let sync_window = section.parsed("sync_window", "", window);
        if sync_window.is_some() && runs_a_server {
            let text = "is set, so nats.urls must be set too: a nats-server of our own would stay \
                        connected to those of other nodes";
            section.note("sync_window", text);
        }
        EdgeSettings {
            heartbeat: (heartbeat > 0).then(|| Duration::from_millis(heartbeat)),
            max_bandwidth: max_bandwidth(section),
            sync_window,
            publish_interval: section.parsed("publish_interval", "0s", publish_interval),
        }
    }
}

fn max_bandwidth(section: &Section) -> Option<u64> {
    const WHAT: &str = "bytes a second in each direction, 0 for no limit";
    let bytes = section.int("max_bandwidth", 0, 0..=1 << 40, WHAT);
    if (1..LEAST_BANDWIDTH).contains(&bytes) {
        let text = format!("is {bytes}, but must be 0 (no limit) or at least {LEAST_BANDWIDTH}");
        section.note("max_bandwidth", text);
    }
    (bytes > 0).then_some(bytes)
}

fn publish_interval(text: &str) -> Result<Duration, String> {
    let time = duration(text).filter(|time| *time <= LONGEST_INTERVAL);
    time.ok_or_else(|| "a time from \"0s\" to \"24h\", such as \"500ms\", \"60s\" or \"5m\"".into())
}

/// A whole number with a unit: ms, s, m or h.
fn duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_millis(number.checked_mul(millis)?))
}

fn window(text: &str) -> Result<Option<Window>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let allowed = || "two different times of the day, such as \"02:00-05:00\"".to_owned();
    let (from, to) = text.split_once('-').ok_or_else(allowed)?;
    let (from, to) = (
        time(from).ok_or_else(allowed)?,
        time(to).ok_or_else(allowed)?,
    );
    if from == to {
        return Err(allowed());
    }
    let text = text.to_owned();
    Ok(Some(Window { from, to, text }))
}

/// Seconds since midnight of `HH:MM`.
fn time(text: &str) -> Option<u32> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let number = |text: &str, most: u32| {
        let is_plain = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u32>().ok().filter(|n| is_plain && *n <= most)
    };
    Some(number(hours, 23)? * 3600 + number(minutes, 59)? * 60)
}

impl Window {
    /// Whether the window is open at `now`, in seconds since midnight, and in how many seconds that
    /// changes.
    pub fn at(&self, now: u32) -> (bool, u32) {
        let until = |edge: u32| (edge + DAY - now % DAY - 1) % DAY + 1;
        let (opens, closes) = (until(self.from), until(self.to));
        match closes < opens {
            true => (true, closes),
            false => (false, opens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_opens_and_closes_each_day() {
        let night = window("02:00-05:00").unwrap().unwrap();
        let hours = |hours: u32| hours * 3600;
        assert_eq!(night.at(0), (false, hours(2)));
        assert_eq!(night.at(hours(2) - 1), (false, 1));
        assert_eq!(night.at(hours(2)), (true, hours(3)));
        assert_eq!(night.at(hours(5) - 1), (true, 1));
        assert_eq!(night.at(hours(5)), (false, hours(21)));
        let over_midnight = window("23:30-00:30").unwrap().unwrap();
        assert_eq!(over_midnight.at(0), (true, 1800));
        assert_eq!(over_midnight.at(hours(12)), (false, hours(11) + 1800));
        assert_eq!(over_midnight.at(hours(23) + 1800), (true, 3600));
    }

    #[test]
    fn times_have_units() {
        let millis = |text| duration(text).map(|time| time.as_millis());
        assert_eq!(millis("500ms"), Some(500));
        assert_eq!(millis("60s"), Some(60_000));
        assert_eq!(millis("5m"), Some(300_000));
        assert_eq!(millis("24h"), Some(86_400_000));
        for text in [
            "",
            "60",
            "s",
            "-1s",
            "1.5s",
            "60 s",
            "99999999999999999h",
            "1d",
        ] {
            assert_eq!(millis(text), None, "{text}");
        }
        assert!(publish_interval("25h").is_err());
    }

    #[test]
    fn texts_that_are_no_window() {
        for text in [
            "2:00-5:00",
            "02:00",
            "02:00-24:00",
            "02:00-02:00",
            "a-b",
            "02:60-03:00",
        ] {
            assert!(window(text).is_err(), "{text}");
        }
        assert_eq!(window("").unwrap(), None);
    }
}

//! The status as text for a terminal.

use super::report::{KnownBy, Lag, LongWork, Node, Status};
use crate::model::timestamp::shown;

/// Number of characters shown of a hash: enough to tell a few schemas apart.
const HASH: usize = 12;

/// Number of origins that are listed with their lag.
const ORIGINS: usize = 10;

/// Number of recent warnings that are listed, the newest first.
const WARNINGS: usize = 5;

/// The status in several lines, the most important first.
pub fn text(status: &Status) -> String {
    let mut lines = vec![verdict(status).to_owned()];
    lines.extend(
        status
            .offline
            .iter()
            .map(|why| format!("offline on purpose: {why}")),
    );
    for (subject, why) in &status.problems {
        lines.push(format!("problem: {subject}: {}", why.escape_debug()));
    }
    let now_ms = status.time_ms;
    lines.push(format!("this {}", line(&status.this)));
    lines.extend(details(&status.this, now_ms));
    let behind = status.lag.iter().filter(|lag| lag.seconds > 0.0);
    let behind = behind.take(ORIGINS).map(|Lag { origin, seconds }| {
        format!("  changes of node {origin} are {seconds:.1} s behind here")
    });
    lines.extend(behind);
    for node in &status.others {
        lines.push(line(node));
        lines.extend(details(node, now_ms));
    }
    if status.others_left_out > 0 {
        let more = status.others_left_out;
        lines.push(format!("and {more} more node(s), which are not shown"));
    }
    if let Some(why) = &status.others_unknown {
        lines.push(format!("other nodes: not known: {}", why.escape_debug()));
    }
    lines.extend(status.progress.iter().map(at_work));
    if let Some(newest) = &status.newest_snapshot {
        let (ago, kilobytes) = (span(newest.age_seconds as f64), newest.size.div_ceil(1024));
        lines.push(format!(
            "the newest snapshot was made {ago}, {kilobytes} KB"
        ));
    }
    let last = status.warnings.iter().rev().take(WARNINGS);
    lines.extend(last.map(|warning| {
        let times = match warning.count {
            0 | 1 => String::new(),
            count => format!(" ({count} times)"),
        };
        let (when, text) = (shown(warning.time_ms), warning.text.escape_debug());
        format!("{} at {when}: {text}{times}", warning.level)
    }));
    lines.join("\n") + "\n"
}

/// How far long work is, in one line.
pub fn at_work(work: &LongWork) -> String {
    let percent = work.percent.map_or(String::new(), |p| format!(", {p} %"));
    let (what, step, seconds) = (&work.what, &work.step, work.seconds);
    let text = format!("at work for {seconds} s: {what}: {step}{percent}");
    text.escape_debug().to_string()
}

fn verdict(status: &Status) -> &'static str {
    let tell_nothing = |node: &Node| node.known_by == KnownBy::Messages;
    let is_unknown = status.others_left_out > 0 || status.others.iter().any(tell_nothing);
    match (status.running, status.fine, &status.others_unknown) {
        (false, ..) => "no daemon runs on this database; this is what the file says",
        (_, true, None) if is_unknown => "every node that tells of itself has everything",
        (_, true, None) => "every node has everything",
        (_, true, Some(_)) => "this node has everything that it heard of",
        _ => "not every node has everything",
    }
}

fn line(node: &Node) -> String {
    let name = match node.name.is_empty() {
        true => String::new(),
        false => format!(" ({})", node.name.escape_debug()),
    };
    let mut facts = Vec::new();
    if node.known_by == KnownBy::Messages {
        facts.push("tells nothing of itself: an older release, or status_interval = 0".into());
    }
    if let Some(release) = &node.release {
        facts.push(format!("release {}", release.escape_debug()));
    }
    if let Some(hash) = &node.schema.hash {
        let short: String = hash.chars().take(HASH).collect();
        facts.push(format!("schema {}", short.escape_debug()));
    }
    facts.push(match (node.seen_seconds_ago, node.seen_ms) {
        (Some(ago), _) if ago < 1.0 => "seen just now".into(),
        (Some(ago), Some(ms)) if node.silent => {
            format!("SILENT, last seen {} ({})", shown(ms), span(ago))
        }
        (Some(ago), _) => format!("last seen {}", span(ago)),
        _ => "not seen since this daemon started".into(),
    });
    format!("node {}{name}: {}", node.node, facts.join(", "))
}

fn span(seconds: f64) -> String {
    let seconds = seconds as u64;
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn details(node: &Node, now_ms: Option<i64>) -> Vec<String> {
    let lacks = node.lacks.iter();
    let lacks = lacks.map(|lack| format!("  {}", lack.escape_debug()));
    let mut lines: Vec<String> = lacks.collect();
    if let Some(since_ms) = node.lacks_since_ms {
        let ago = now_ms.map_or(String::new(), |now| {
            let seconds = now.saturating_sub(since_ms).max(0) as f64 / 1000.0;
            format!(" ({})", span(seconds))
        });
        lines.push(format!("  since {}{ago}", shown(since_ms)));
    }
    let streams = node.streams.iter().map(|stream| {
        let behind = match stream.behind {
            Some(0) => ", all of it".to_owned(),
            Some(behind) => format!(", {behind} behind"),
            None => String::new(),
        };
        format!("  read {} up to {}{behind}", stream.stream, stream.position)
    });
    lines.extend(streams);
    let counts = [
        ("not sent yet", node.unsent),
        ("displaced, see harmonylite conflicts", node.displaced),
        ("rejected", node.rejected),
        ("in quarantine", node.quarantined),
    ];
    for (what, count) in counts {
        if let Some(count @ 1..) = count {
            lines.push(format!("  {count} {what}"));
        }
    }
    if let Some(snapshot) = &node.snapshot {
        lines.push(format!(
            "  began with or merged {}",
            snapshot.escape_debug()
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::report::{NewestSnapshot, RecentWarning, SchemaHash, StreamProgress};
    use super::*;

    #[test]
    fn the_text_for_two_nodes() {
        let node = |id: &str, ago: f64| Node {
            node: id.into(),
            name: "a\u{1b}[31m".into(),
            release: Some("1.0".into()),
            schema: SchemaHash {
                hash: Some("0123456789abcdef".into()),
                previous: None,
            },
            streams: vec![StreamProgress {
                stream: "c-1".into(),
                position: 7,
                behind: Some(3),
                gap: false,
            }],
            seen_ms: Some(0),
            seen_seconds_ago: Some(ago),
            silent: ago > 900.0,
            lacks: vec!["3 message(s) behind in c-1".into()],
            lacks_since_ms: Some(0),
            ..Node::default()
        };
        let status = Status {
            running: true,
            time_ms: Some(7_300_000),
            progress: vec![LongWork {
                what: "verify".into(),
                step: "comparing rows".into(),
                percent: Some(40),
                seconds: 3,
            }],
            newest_snapshot: Some(NewestSnapshot {
                made_ms: 0,
                age_seconds: 7300,
                size: 2049,
            }),
            warnings: vec![RecentWarning {
                time_ms: 0,
                level: "warn".into(),
                text: "a\nb".into(),
                count: 2,
            }],
            this: node("1", 0.0),
            others: vec![node("2", 7300.0)],
            lag: vec![Lag {
                origin: "2".into(),
                seconds: 1.25,
            }],
            ..Status::default()
        };
        let text = text(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "not every node has everything");
        assert_eq!(
            lines[1],
            "this node 1 (a\\u{1b}[31m): release 1.0, schema 0123456789ab, seen just now"
        );
        assert_eq!(lines[2], "  3 message(s) behind in c-1");
        assert!(lines[3].starts_with("  since 1970-01-01") && lines[3].ends_with("(2 h ago)"));
        assert_eq!(lines[4], "  read c-1 up to 7, 3 behind");
        assert_eq!(lines[5], "  changes of node 2 are 1.2 s behind here");
        assert!(lines[6].contains("SILENT, last seen 1970-01-01") && lines[6].contains("2 h ago"));
        let last = &lines[lines.len() - 3..];
        assert_eq!(last[0], "at work for 3 s: verify: comparing rows, 40 %");
        assert_eq!(last[1], "the newest snapshot was made 2 h ago, 3 KB");
        assert!(last[2].starts_with("warn at 1970-01-01") && last[2].ends_with("a\\nb (2 times)"));
    }
}

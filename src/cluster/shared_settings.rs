//! Settings that all nodes must share, compared with those that the cluster stores.
//!
//! Anybody with a login to the broker can write the stored ones. So a value that makes no sense is
//! reported and otherwise ignored.

use serde_json::{Map, Value};

use crate::model::text::foreign;

pub(super) const SHARDS: &str = "replication_log.shards";
pub(super) const COMPRESS: &str = "replication_log.compress";

/// Most bytes of stored settings that are read.
const MOST_BYTES: usize = 4 << 10;

/// How a node's settings relate to the stored ones.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Same,
    /// The stored value is not one of settings, for this reason.
    Unreadable(String),
    /// The differences, with advice.
    Differs {
        differences: String,
        /// Whether `update_existing` can bring the stored settings in line.
        is_possible: bool,
    },
}

/// Compares `ours`, an object, with stored bytes.
pub(super) fn compare(ours: &Value, stored: &[u8]) -> Comparison {
    let theirs = match read(stored) {
        Ok(theirs) => theirs,
        Err(why) => return Comparison::Unreadable(why),
    };
    let own = ours.as_object().into_iter().flatten();
    let differs: Vec<(&String, &Value)> = own.filter(|(k, v)| theirs.get(*k) != Some(*v)).collect();
    // A key that a release writes has one type in all releases.
    let is_odd = |(key, value): &&(&String, &Value)| match theirs.get(*key) {
        Some(theirs) => std::mem::discriminant(theirs) != std::mem::discriminant(*value),
        None => true,
    };
    if let Some((key, _)) = differs.iter().find(is_odd) {
        let found = theirs.get(*key).map_or("nothing".into(), Value::to_string);
        return Comparison::Unreadable(format!("{key} is {} there", foreign(&found)));
    }
    let each = differs.iter().map(|(key, value)| {
        let theirs = foreign(&theirs[*key].to_string());
        format!("{key} is {value} here and {theirs} on the other nodes")
    });
    let differences: Vec<String> = each.collect();
    if differences.is_empty() {
        return Comparison::Same;
    }
    // Streams with and without compression have different names, but the same subjects.
    let same_streams = theirs.get(COMPRESS) == ours.get(COMPRESS);
    let shards = |settings: Option<&Value>| settings.and_then(Value::as_u64).unwrap_or_default();
    let is_fewer = shards(theirs.get(SHARDS)) > shards(ours.get(SHARDS));
    let otherwise = match (same_streams, is_fewer) {
        (false, _) => "; compress cannot be changed while the streams exist",
        // Nodes that are away have not read the other streams to the end, and would never read
        // the rest.
        (_, true) => "; shards can be raised, not lowered",
        _ => ", or set replication_log.update_existing on this one to change it for all",
    };
    Comparison::Differs {
        differences: format!(
            "{}. Give all nodes the same value{otherwise}",
            differences.join(", ")
        ),
        is_possible: same_streams && !is_fewer,
    }
}

fn read(stored: &[u8]) -> Result<Map<String, Value>, String> {
    if stored.len() > MOST_BYTES {
        return Err(format!("{} bytes are no settings", stored.len()));
    }
    match serde_json::from_slice(stored) {
        Ok(Value::Object(settings)) => Ok(settings),
        Ok(other) => Err(format!("{} are no settings", foreign(&other.to_string()))),
        Err(_) => {
            let text = String::from_utf8_lossy(stored);
            Err(format!("{:?} are no settings", foreign(&text)))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ours() -> Value {
        json!({ "format": 1, SHARDS: 2, COMPRESS: true, "nats.subject_prefix": "a" })
    }

    fn compared(change: impl FnOnce(&mut Value)) -> Comparison {
        let mut theirs = ours();
        change(&mut theirs);
        compare(&ours(), theirs.to_string().as_bytes())
    }

    #[test]
    fn settings_without_sense_are_none() {
        let long = format!("{{\"format\": \"{}\"}}", "x".repeat(MOST_BYTES));
        for garbage in [
            "garbage",
            "",
            "null",
            "[1]",
            "{}",
            "{\"format\": \"1\"}",
            &long,
        ] {
            let compared = compare(&ours(), garbage.as_bytes());
            assert!(matches!(compared, Comparison::Unreadable(_)), "{garbage}");
        }
        let Comparison::Unreadable(why) = compared(|theirs| theirs[SHARDS] = json!("x\n\x1b[2J"))
        else {
            panic!("a text is no number");
        };
        assert!(why.starts_with("replication_log.shards is"), "{why}");
        assert!(!why.contains(char::is_control), "{why:?}");
    }

    #[test]
    fn differences_are_named() {
        assert_eq!(compared(|_| {}), Comparison::Same);
        assert_eq!(
            compared(|theirs| theirs["later"] = json!(1)),
            Comparison::Same
        );
        for (key, value, possible, says) in [
            (SHARDS, json!(1), true, "is 2 here and 1 on the other nodes"),
            (SHARDS, json!(3), false, "raised, not lowered"),
            (COMPRESS, json!(false), false, "cannot be changed"),
            ("nats.subject_prefix", json!("b"), true, "update_existing"),
        ] {
            match compared(|theirs| theirs[key] = value) {
                Comparison::Differs {
                    differences,
                    is_possible,
                } => {
                    assert_eq!(is_possible, possible, "{key}");
                    assert!(differences.contains(says), "{differences}");
                }
                other => panic!("{key}: {other:?}"),
            }
        }
    }
}

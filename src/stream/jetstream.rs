//! The shards' streams on JetStream: their names, settings and state.
//!
//! The `nats` crate's own JetStream layer waits without limit and resets settings it does not know.
//! So this module speaks the API directly: JSON requests to `$JS.API.…`.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::client::{API_TIMEOUT, AnswerKind, ApiError, Client};
use super::delivery::{self, Origin, header};
use super::limits::{MESSAGE_BYTES, size_within};
use super::{Retention, StreamError, StreamState};
use crate::model::backoff::Backoff;
use crate::model::timestamp;

/// Error codes of the JetStream API.
pub(super) mod code {
    pub(crate) const STREAM_NOT_FOUND: u32 = 10059;
    /// The stream name or the subjects belong to an existing stream. It may be the wanted one,
    /// which is just being created.
    pub(crate) const TAKEN: [u32; 2] = [10058, 10065];
    pub(crate) const NO_MESSAGE_FOUND: u32 = 10037;
    pub(crate) const WRONG_LAST_SEQUENCE: [u32; 2] = [10071, 10164];
    /// Invalid settings, subjects that overlap with those of a different stream, or replicas
    /// without a cluster: a later attempt gets the same answer.
    pub(crate) const NEEDS_A_PERSON: [u32; 3] = [10052, 10065, 10074];
    /// The account or the server has no room for a stream of that size.
    pub(crate) const NO_ROOM: [u32; 4] = [10002, 10023, 10047, SIZE_TOO_LARGE];
    /// The account requires a size limit for every stream, or refuses one as large as this.
    pub(crate) const SIZE_WANTED: u32 = 10113;
    pub(crate) const SIZE_TOO_LARGE: u32 = 10122;
    /// "JetStream system temporarily unavailable": the stream or the cluster elects a leader.
    pub(crate) const UNAVAILABLE: u32 = 10008;
}

/// Limit in bytes of a stream whose number of messages is our choice: twice the largest row, which
/// travels in several messages.
const CHOSEN_BYTES: u64 = 512 << 20;

/// Messages of such a stream where the broker has no room for as many bytes.
const FEW_ENTRIES: i64 = 1024;

/// How long the broker remembers a `Nats-Msg-Id`. A message that is sent again later is stored
/// again.
const DUPLICATE_WINDOW_NS: u64 = 120_000_000_000;

/// How long a stream that is being created may have its name taken and not be found. Its store is
/// written by then, also on a slow card.
const BEING_MADE: Duration = Duration::from_secs(5);

/// How long the server keeps a consumer that looks up a message, if the request to delete it gets
/// lost.
const LOOKUP_LIFETIME: Duration = Duration::from_secs(10);

/// Names, number and limits of the shards' streams.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Stream names begin with it; letters, digits, `-` and `_` only.
    pub stream_prefix: String,
    /// Subjects begin with it; letters, digits, `-` and `_` only.
    pub subject_prefix: String,
    /// Whether frames are compressed. It is part of the name, so compressed and plain frames never
    /// mix.
    pub compress: bool,
    /// Number of streams.
    pub shards: u32,
    /// Messages kept per stream; 0 means no limit.
    pub max_entries: i64,
    /// Nobody configured `max_entries`: an existing stream keeps its number, and a new one gets a
    /// limit in bytes as well, or fewer messages where the broker has no room for that.
    pub is_chosen: bool,
    /// Bytes kept per stream. None means no limit, or a limit calculated from `max_entries` if the
    /// account requires one.
    pub max_bytes: Option<u64>,
    /// How long a message is kept; none for ever.
    pub max_age: Option<Duration>,
    /// Number of servers that keep a copy of each stream.
    pub replicas: u32,
    /// Change streams whose settings differ, instead of leaving them as they are.
    pub update_existing: bool,
}

/// Stream name `<stream_prefix>[-c]-<shard>`; shards count from 1.
pub fn stream_name(options: &StreamOptions, shard: u32) -> String {
    let compressed = if options.compress { "-c" } else { "" };
    format!("{}{compressed}-{shard}", options.stream_prefix)
}

/// Whether `name` can be a stream of that prefix, compressed or not.
pub fn is_stream_name(stream_prefix: &str, name: &str) -> bool {
    let rest = name.strip_prefix(stream_prefix);
    let rest = rest.map(|rest| rest.strip_prefix("-c").unwrap_or(rest));
    let shard = rest.and_then(|rest| rest.strip_prefix('-'));
    shard.is_some_and(|n| n.len() < 10 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Subject `<subject_prefix>-<shard>`; shards count from 1.
pub fn subject(options: &StreamOptions, shard: u32) -> String {
    format!("{}-{shard}", options.subject_prefix)
}

/// Creates missing streams and checks the existing ones.
///
/// Returns `Refused` while the cluster cannot hold them yet (too few servers are up). The caller
/// tries again, never with fewer replicas. Returns `Fatal` if a prefix is invalid, a stream exists
/// with different subjects, or the broker cannot create it.
pub fn ensure_streams(client: &Client, options: &StreamOptions) -> Result<(), StreamError> {
    // A space in a subject would break the connection; a dot in a name would break the API's
    // subjects.
    for prefix in [&options.stream_prefix, &options.subject_prefix] {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if prefix.is_empty() || !prefix.chars().all(allowed) {
            let text = format!("prefix {prefix:?}: only letters, digits, - and _ can be in a name");
            return Err(StreamError::Fatal(text));
        }
    }
    (1..=options.shards).try_for_each(|shard| ensure_stream(client, options, shard))
}

fn ensure_stream(client: &Client, options: &StreamOptions, shard: u32) -> Result<(), StreamError> {
    let name = stream_name(options, shard);
    let mut wanted = json!({
        "subjects": [subject(options, shard)],
        "num_replicas": options.replicas,
    });
    let mut fixed = fixed_settings();
    // The server uses -1 for "no limit".
    let entries = if options.max_entries > 0 {
        options.max_entries
    } else {
        -1
    };
    match options.is_chosen {
        true => {
            fixed["max_msgs"] = json!(entries);
            fixed["max_bytes"] = json!(CHOSEN_BYTES);
        }
        false => wanted["max_msgs"] = json!(entries),
    }
    if let Some(bytes) = options.max_bytes {
        wanted["max_bytes"] = json!(bytes);
    }
    if let Some(age) = options.max_age {
        wanted["max_age"] = json!(age.as_nanos() as u64);
    }
    let wanted = wanted.as_object().cloned().unwrap_or_default();
    let counted = if options.is_chosen {
        FEW_ENTRIES
    } else {
        entries
    };
    let reckoned = MESSAGE_BYTES.saturating_mul(counted.max(1) as u64);
    let existing = create_stream(client, &name, &wanted, &fixed, reckoned)?;
    let Some(mut config) = existing else {
        return Ok(());
    };
    let differences = differences(&config, &wanted);
    if differences.is_empty() {
        return Ok(());
    }
    let differences = differences.join(", ");
    if options.update_existing {
        log::info!("stream {name}: updating {differences}");
        // Extends the server's settings, so that settings unknown here keep their values.
        config.extend(wanted);
        let call = format!("STREAM.UPDATE.{name}");
        let updated = client.api(&call, &Value::Object(config))?;
        return updated
            .map(drop)
            .map_err(|error| rejected("update", &name, &error));
    }
    if config.get("subjects") != wanted.get("subjects") {
        let text = format!("stream {name} exists with other subjects: {differences}");
        return Err(StreamError::Fatal(text));
    }
    log::warn!("stream {name} stays as it is (update_existing is off): {differences}");
    Ok(())
}

fn fixed_settings() -> Value {
    json!({
        "retention": "limits", "storage": "file", "discard": "old",
        "duplicate_window": DUPLICATE_WINDOW_NS, "allow_direct": true,
    })
}

/// Creates a stream, or returns the settings of the existing one. If the account requires a size
/// and none is given, the size is `reckoned` bytes, or less if the account has less room.
pub(super) fn create_stream(
    client: &Client,
    name: &str,
    wanted: &Map<String, Value>,
    fixed: &Value,
    reckoned: u64,
) -> Result<Option<Map<String, Value>>, StreamError> {
    let mut config = Map::from_iter([("name".to_string(), json!(name))]);
    config.extend(fixed.as_object().cloned().unwrap_or_default());
    config.extend(wanted.clone());
    // Repeat, if a different node creates the stream between our query and our attempt. For a
    // moment its subjects are taken and it is not found yet.
    let mut waits = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    let deadline = Instant::now() + BEING_MADE;
    loop {
        match client.api(&format!("STREAM.INFO.{name}"), &Value::Null)? {
            Ok(mut info) => {
                let existing = info["config"].take();
                return Ok(Some(existing.as_object().cloned().unwrap_or_default()));
            }
            Err(error) if error.err_code == code::STREAM_NOT_FOUND => {}
            Err(error) => return Err(error.refused(format_args!("describe stream {name}"))),
        }
        let call = format!("STREAM.CREATE.{name}");
        match client.api(&call, &Value::Object(config.clone()))? {
            Ok(_) => return Ok(None),
            Err(error) if code::TAKEN.contains(&error.err_code) && Instant::now() < deadline => {
                thread::sleep(waits.wait());
            }
            Err(error)
                if error.err_code == code::SIZE_WANTED && !config.contains_key("max_bytes") =>
            {
                let replicas = config.get("num_replicas").and_then(Value::as_u64);
                let bytes = size_within(client, reckoned, replicas.unwrap_or(1))?;
                log::info!("stream {name}: the account wants a size for it: {bytes} bytes");
                config.insert("max_bytes".to_string(), json!(bytes));
            }
            // A size that nobody asked for may be smaller.
            Err(error)
                if code::NO_ROOM.contains(&error.err_code)
                    && config.get("max_bytes") == fixed.get("max_bytes")
                    && config.remove("max_bytes").is_some() =>
            {
                config.insert("max_msgs".to_string(), json!(FEW_ENTRIES));
            }
            Err(error) => return Err(rejected("create", name, &error)),
        }
    }
}

fn rejected(verb: &str, name: &str, error: &ApiError) -> StreamError {
    let text = format!("{verb} stream {name}: {error}");
    if code::NEEDS_A_PERSON.contains(&error.err_code) {
        StreamError::Fatal(text)
    } else {
        StreamError::Refused(text)
    }
}

/// The settings that differ, each with both values.
pub(super) fn differences(have: &Map<String, Value>, wanted: &Map<String, Value>) -> Vec<String> {
    let differs = |(key, want): (&String, &Value)| match have.get(key).unwrap_or(&Value::Null) {
        have if have == want => None,
        have => Some(format!("{key} is {have}, configured {want}")),
    };
    wanted.iter().filter_map(differs).collect()
}

/// Reads the current state of the stream `name`. Returns `Refused` if there is none.
pub fn stream_state(client: &Client, name: &str) -> Result<StreamState, StreamError> {
    Ok(state_in(&stream_info(client, name)?))
}

/// Sequence of the last message of each stream. Streams that do not exist are left out.
pub fn last_sequences(
    client: &Client,
    streams: &[String],
) -> Result<BTreeMap<String, u64>, StreamError> {
    let call = |stream: &String| (format!("STREAM.INFO.{stream}"), json!({}));
    let calls: Vec<_> = streams.iter().map(call).collect();
    let answers = client.api_many(&calls)?;
    let each = streams.iter().zip(answers);
    let last = each.filter_map(|(stream, info)| {
        let last = info.ok()?["state"]["last_seq"].as_u64()?;
        Some((stream.clone(), last))
    });
    Ok(last.collect())
}

/// When the broker stored each of these messages, given by stream and sequence, in unix
/// milliseconds. `None` if the stream does not hold the message any more.
pub fn times_stored(
    client: &Client,
    messages: &[(String, u64)],
) -> Result<Vec<Option<i64>>, StreamError> {
    let call =
        |(stream, seq): &(String, u64)| (format!("STREAM.MSG.GET.{stream}"), json!({ "seq": seq }));
    let calls: Vec<_> = messages.iter().map(call).collect();
    let answers = client.api_many(&calls)?.into_iter();
    let time = |answer: Value| timestamp::unix_ms(answer["message"]["time"].as_str()?);
    Ok(answers.map(|answer| time(answer.ok()?)).collect())
}

pub(super) fn state_in(info: &Value) -> StreamState {
    let number = |key: &str| info["state"][key].as_u64().unwrap_or(0);
    let last = number("last_seq");
    // A stream that never held a message reports 0 for both.
    let first = if number("messages") == 0 {
        last + 1
    } else {
        number("first_seq")
    };
    let created = info["created"].as_str().unwrap_or_default().to_string();
    StreamState {
        first,
        last,
        created,
        now_ms: info["ts"].as_str().and_then(timestamp::unix_ms),
        retention: retention_in(info),
    }
}

/// -1 and 0 stand for "no limit".
fn retention_in(info: &Value) -> Retention {
    let limit = |key: &str| info["config"][key].as_u64().filter(|&limit| limit > 0);
    let held = |key: &str| info["state"][key].as_u64().unwrap_or(0);
    Retention {
        max_bytes: limit("max_bytes"),
        max_messages: limit("max_msgs"),
        max_age: limit("max_age").map(Duration::from_nanos),
        message_bytes: held("bytes").checked_div(held("messages")),
    }
}

/// Looks up the `Nats-Msg-Id` of the message at `sequence`. Returns `Ok(None)` if there is no such
/// message, or if it has no id.
pub fn message_id(
    client: &Client,
    stream: &str,
    sequence: u64,
) -> Result<Option<String>, StreamError> {
    if let Ok(Some(id)) = id_without_body(client, stream, sequence) {
        return Ok(Some(id));
    }
    // A consumer does not report missing messages, and may run on a server that is down. Only this
    // request asks the stream itself.
    let call = format!("STREAM.MSG.GET.{stream}");
    match client.api(&call, &json!({ "seq": sequence }))? {
        Ok(reply) => Ok(header(&reply["message"], "Nats-Msg-Id")),
        Err(error) if error.err_code == code::NO_MESSAGE_FOUND => Ok(None),
        Err(error) => {
            let tried = format!("look up message {sequence} of stream {stream}");
            Err(error.refused(tried))
        }
    }
}

/// Looks the id up without the message's body, which takes minutes on a slow connection. `Ok(None)`
/// means that the answer is not known.
fn id_without_body(
    client: &Client,
    stream: &str,
    sequence: u64,
) -> Result<Option<String>, StreamError> {
    let config = json!({
        "deliver_policy": "by_start_sequence", "opt_start_seq": sequence.max(1),
        "ack_policy": "none", "replay_policy": "instant", "headers_only": true,
        "mem_storage": true, "num_replicas": 1,
        "inactive_threshold": LOOKUP_LIFETIME.as_nanos() as u64,
    });
    let body = json!({ "stream_name": stream, "config": config });
    let Ok(created) = client.api(&format!("CONSUMER.CREATE.{stream}"), &body)? else {
        return Ok(None);
    };
    let name = created["name"].as_str().unwrap_or_default();
    let call = client.api_subject(&format!("CONSUMER.MSG.NEXT.{stream}.{name}"));
    let body = br#"{"batch":1,"no_wait":true}"#;
    let next = client.request_message(&call, &[], body, API_TIMEOUT, AnswerKind::From(name))?;
    // Spares the server keeping the consumer; the request may get lost.
    let call = client.api_subject(&format!("CONSUMER.DELETE.{stream}.{name}"));
    client.publish(&call, None, &[], b"")?;
    let origin = next.reply.as_deref().and_then(Origin::parse);
    let is_it = origin.is_some_and(|o| o.consumer == name && o.sequence == sequence);
    Ok(is_it.then(|| delivery::id(&next)).flatten())
}

/// Information about the stream `name`, as the API returns it.
pub(super) fn stream_info(client: &Client, name: &str) -> Result<Value, StreamError> {
    client
        .api(&format!("STREAM.INFO.{name}"), &Value::Null)?
        .map_err(|error| error.refused(format_args!("describe stream {name}")))
}

/// The broker's clock in unix milliseconds, except for the time that the answer takes.
pub fn server_time_ms(client: &Client, stream: &str) -> Result<i64, StreamError> {
    let info = stream_info(client, stream)?;
    let time = match info["ts"].as_str() {
        Some(time) => time.to_string(),
        // A server before 2.10 does not report its time, but dates a consumer, which it soon
        // deletes.
        None => {
            let config = json!({
                "ack_policy": "none", "deliver_policy": "new", "mem_storage": true,
                "inactive_threshold": 1_000_000_000,
            });
            let body = json!({ "stream_name": stream, "config": config });
            let consumer = client
                .api(&format!("CONSUMER.CREATE.{stream}"), &body)?
                .map_err(|error| error.refused(format_args!("ask the time at stream {stream}")))?;
            consumer["created"].as_str().unwrap_or_default().to_string()
        }
    };
    timestamp::unix_ms(&time).ok_or_else(|| {
        StreamError::Refused(format!("{} tells no time: {time:?}", client.address()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let mut options = StreamOptions {
            stream_prefix: "harmonylite-changes".into(),
            subject_prefix: "harmonylite-change-log".into(),
            compress: false,
            shards: 2,
            max_entries: 1024,
            is_chosen: false,
            max_bytes: None,
            max_age: None,
            replicas: 1,
            update_existing: false,
        };
        assert_eq!(stream_name(&options, 2), "harmonylite-changes-2");
        assert_eq!(subject(&options, 2), "harmonylite-change-log-2");
        options.compress = true;
        assert_eq!(stream_name(&options, 1), "harmonylite-changes-c-1");
    }

    #[test]
    fn a_difference_names_both_values() {
        let have = json!({ "max_msgs": 5, "num_replicas": 1, "storage": "file" });
        let want = json!({ "max_msgs": 7, "num_replicas": 1 });
        let found = differences(have.as_object().unwrap(), want.as_object().unwrap());
        assert_eq!(found, ["max_msgs is 5, configured 7"]);
    }
}

//! A NATS key-value bucket, which holds shared settings, leases and the founder's name.
//!
//! The module speaks the API directly, with a deadline on every call. It uses the layout of the
//! official clients: the bucket is the stream `KV_<bucket>`, and a key is the subject
//! `$KV.<bucket>.<key>`. The value of a key is the newest message there, and its revision is that
//! message's sequence. A deletion is an empty message with the header `KV-Operation`. Reads go to
//! the stream's leader, so they see every acknowledged write.
#![allow(deprecated)]

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Value, json};

use super::StreamError;
use super::client::{API_TIMEOUT, ApiError, Client, Inbox};
use super::delivery::header;
use super::jetstream::{code, create_stream, differences};
use super::newer_key;
use crate::model::base64;
use crate::model::timestamp;
use crate::seal::{ClusterKey, OVERHEAD, Received, Seal, SealPlace};

const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// Size in bytes for an account that requires one: one value of a few KB per key.
const SIZE: u64 = 16 << 20;

/// The header that makes the broker refuse a write if the key has changed since.
const EXPECTED_REVISION: &str = "Nats-Expected-Last-Subject-Sequence";
/// Attempts to change a value that other nodes change as well.
const TRIES: usize = 8;

const DELETION: (&str, &str) = ("KV-Operation", "DEL");

/// The newest message of a key.
struct StoredValue {
    value: Vec<u8>,
    revision: u64,
    deleted: bool,
}

/// A value with the time of its write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedValue {
    /// Bytes of the value.
    pub value: Vec<u8>,
    /// When the broker stored it, in unix milliseconds of the broker's clock.
    pub time_ms: i64,
}

/// A bucket, accessed over `client`. Values are sealed; one whose seal is not right counts as
/// deleted, so that it can be written anew.
#[derive(Debug, Clone, Copy)]
pub struct KeyValue<'a> {
    client: &'a Client,
    bucket: &'a str,
    seal: &'a Seal,
}

impl<'a> KeyValue<'a> {
    /// Opens `bucket` and creates it if it is missing, with one value per key. Values vanish
    /// `max_age` after they were written; `None` keeps them. An existing bucket keeps its settings,
    /// and differences are logged. Returns `Fatal` if the name is invalid for NATS.
    pub fn ensure_bucket(
        client: &'a Client,
        bucket: &'a str,
        replicas: u32,
        max_age: Option<Duration>,
    ) -> Result<KeyValue<'a>, StreamError> {
        check(bucket, "bucket", "-_")?;
        let max_age = max_age.unwrap_or_default();
        let window = if max_age.is_zero() {
            DUPLICATE_WINDOW
        } else {
            DUPLICATE_WINDOW.min(max_age)
        };
        let wanted = json!({ "num_replicas": replicas, "max_age": max_age.as_nanos() as u64 });
        let fixed = json!({
            "subjects": [format!("$KV.{bucket}.>")], "max_msgs_per_subject": 1,
            "retention": "limits", "storage": "file", "discard": "new",
            "duplicate_window": window.as_nanos() as u64,
            "allow_rollup_hdrs": true, "deny_delete": true, "allow_direct": true,
        });
        let wanted = wanted.as_object().cloned().unwrap_or_default();
        let existing = create_stream(client, &format!("KV_{bucket}"), &wanted, &fixed, SIZE)?;
        let differences = existing
            .map(|config| differences(&config, &wanted))
            .unwrap_or_default();
        if !differences.is_empty() {
            log::warn!("bucket {bucket} stays as it is: {}", differences.join(", "));
        }
        Ok(KeyValue::open(client, bucket))
    }

    /// Opens a bucket that was ensured before, without a request.
    pub fn open(client: &'a Client, bucket: &'a str) -> KeyValue<'a> {
        let seal = client.seal();
        KeyValue {
            client,
            bucket,
            seal,
        }
    }

    /// The same bucket, under different keys.
    pub fn sealed_by<'s>(self, seal: &'s Seal) -> KeyValue<'s>
    where
        'a: 's,
    {
        KeyValue { seal, ..self }
    }

    /// Receives a message for every write to `bucket` from now on. Writes to a bucket of a
    /// different domain do not pass to this client's server, so their writers publish a notice
    /// beside the bucket.
    pub fn watch(client: &Client, bucket: &str) -> Result<Inbox, StreamError> {
        match client.is_elsewhere() {
            true => client.watch(bucket),
            false => client.watch(&format!("$KV.{bucket}")),
        }
    }

    /// Value and revision of `key`; none if it has no value.
    pub fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, StreamError> {
        let entry = self.entry(key)?.filter(|entry| !entry.deleted);
        Ok(entry.map(|entry| (entry.value, entry.revision)))
    }

    /// Writes `key` only if it has no value. Returns `false` if it has one.
    pub fn create(&self, key: &str, value: &[u8]) -> Result<bool, StreamError> {
        if self.update(key, value, 0)? {
            return Ok(true);
        }
        // A deletion is a message too, so its revision must be replaced.
        match self.entry(key)? {
            Some(entry) if entry.deleted => self.update(key, value, entry.revision),
            _ => Ok(false),
        }
    }

    /// Writes `key` only if its revision is still `revision`. Returns `false` if it has changed.
    ///
    /// After `Disconnected` the value may or may not have been written: read it again.
    pub fn update(&self, key: &str, value: &[u8], revision: u64) -> Result<bool, StreamError> {
        Ok(self.replace(key, value, revision)?.is_some())
    }

    /// As [`Self::update`]; returns the new revision, or `None` if the key has changed.
    pub fn replace(
        &self,
        key: &str,
        value: &[u8],
        revision: u64,
    ) -> Result<Option<u64>, StreamError> {
        let headers = [(EXPECTED_REVISION, &*revision.to_string())];
        let reply = self.publish(key, &headers, value)?;
        let new = reply.as_ref().ok().and_then(|reply| reply["seq"].as_u64());
        Ok(self
            .replaced("update", key, reply)?
            .then(|| new.unwrap_or(0)))
    }

    /// Removes `key` only if its revision is still `revision`. Returns `false` if it has changed.
    pub fn delete_revision(&self, key: &str, revision: u64) -> Result<bool, StreamError> {
        let revision = revision.to_string();
        let headers = [(EXPECTED_REVISION, &*revision), DELETION];
        self.replaced("delete", key, self.publish(key, &headers, b"")?)
    }

    fn replaced(
        &self,
        verb: &str,
        key: &str,
        reply: Result<Value, ApiError>,
    ) -> Result<bool, StreamError> {
        match reply {
            Ok(_) => Ok(true),
            Err(error) if code::WRONG_LAST_SEQUENCE.contains(&error.err_code) => Ok(false),
            Err(error) => Err(self.refused(verb, key, &error)),
        }
    }

    /// Writes `key` unconditionally, and returns its new revision.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<u64, StreamError> {
        let reply = self.publish(key, &[], value)?;
        let reply = reply.map_err(|error| self.refused("write", key, &error))?;
        Ok(reply["seq"].as_u64().unwrap_or(0))
    }

    /// Removes `key`. A missing value is no error.
    pub fn delete(&self, key: &str) -> Result<(), StreamError> {
        let reply = self.publish(key, &[DELETION], b"")?;
        reply
            .map(drop)
            .map_err(|error| self.refused("delete", key, &error))
    }

    /// Keys that begin with `prefix`, including deleted ones. Meant for buckets with few keys.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>, StreamError> {
        let call = format!("STREAM.INFO.KV_{}", self.bucket);
        let ask = json!({ "subjects_filter": format!("$KV.{}.>", self.bucket) });
        let info = self.client.api(&call, &ask)?;
        let info = info.map_err(|error| self.refused("list", prefix, &error))?;
        let subjects = info["state"]["subjects"].as_object();
        let under = format!("$KV.{}.", self.bucket);
        let keys = subjects.into_iter().flatten();
        let keys = keys.filter_map(|(subject, _)| subject.strip_prefix(&under));
        Ok(keys
            .filter(|key| key.starts_with(prefix))
            .map(str::to_owned)
            .collect())
    }

    /// The values of `keys`, in the same order; none where a key has no value. A value larger than
    /// `most` bytes counts as none.
    pub fn get_all(
        &self,
        keys: &[String],
        most: usize,
    ) -> Result<Vec<Option<TimedValue>>, StreamError> {
        let call = format!("STREAM.MSG.GET.KV_{}", self.bucket);
        let ask = |key: &String| {
            let subject = self.subject(key)?;
            Ok((call.clone(), json!({ "last_by_subj": subject })))
        };
        let calls: Result<Vec<_>, StreamError> = keys.iter().map(ask).collect();
        let answers = self.client.api_many(&calls?)?;
        let each = keys.iter().zip(answers).map(|(key, answer)| match answer {
            Ok(reply) if is_deletion(&reply["message"]) => Ok(None),
            Ok(reply) => self.timed(key, &reply["message"], most),
            Err(error) if error.err_code == code::NO_MESSAGE_FOUND => Ok(None),
            Err(error) => Err(self.refused("read", key, &error)),
        });
        each.collect()
    }

    /// Changes a value that other nodes change as well. It stays as it is if `change` returns None.
    pub fn amend(
        &self,
        key: &str,
        change: impl Fn(Option<&[u8]>) -> Option<Vec<u8>>,
    ) -> Result<(), StreamError> {
        for _ in 0..TRIES {
            let stored = self.get(key)?;
            let Some(bytes) = change(stored.as_ref().map(|(bytes, _)| &bytes[..])) else {
                return Ok(());
            };
            let is_written = match stored {
                Some((_, revision)) => self.update(key, &bytes, revision)?,
                None => self.create(key, &bytes)?,
            };
            if is_written {
                return Ok(());
            }
        }
        Err(StreamError::Refused(format!(
            "bucket {}, key {key}: too many nodes write it at once",
            self.bucket
        )))
    }

    /// Seals the value of `key` anew, if an older key seals it, or none and `also_open`.
    pub fn renew(&self, key: &str, also_open: bool) -> Result<(), StreamError> {
        let stored = self.stored(key)?.filter(|stored| !stored.deleted);
        let stored = stored.filter(|stored| self.seal.is_stale(&stored.value, also_open));
        let Some(StoredValue {
            value, revision, ..
        }) = stored
        else {
            return Ok(());
        };
        match self.received(key, value)? {
            // If it has changed meanwhile, its writer sealed it.
            Some(value) => self.update(key, &value, revision).map(drop),
            None => Ok(()),
        }
    }

    /// The value of `key` that this cluster key alone may seal. None if it has none.
    pub(super) fn opened_by(
        &self,
        by: &ClusterKey,
        key: &str,
    ) -> Result<Option<Vec<u8>>, StreamError> {
        let stored = self.stored(key)?.filter(|stored| !stored.deleted);
        let place = self.place(key);
        Ok(stored.and_then(|stored| self.seal.receive_by(by, place, stored.value)))
    }

    fn entry(&self, key: &str) -> Result<Option<StoredValue>, StreamError> {
        let Some(mut stored) = self.stored(key)? else {
            return Ok(None);
        };
        if !stored.deleted {
            let opened = self.received(key, stored.value)?;
            stored.deleted = opened.is_none();
            stored.value = opened.unwrap_or_default();
        }
        Ok(Some(stored))
    }

    /// The newest message of a key, as it is stored.
    fn stored(&self, key: &str) -> Result<Option<StoredValue>, StreamError> {
        let subject = self.subject(key)?;
        let call = format!("STREAM.MSG.GET.KV_{}", self.bucket);
        let reply = match self
            .client
            .api(&call, &json!({ "last_by_subj": subject }))?
        {
            Ok(reply) => reply,
            Err(error) if error.err_code == code::NO_MESSAGE_FOUND => return Ok(None),
            Err(error) => return Err(self.refused("read", key, &error)),
        };
        let message = &reply["message"];
        let value = base64::decode(message["data"].as_str().unwrap_or_default());
        let (Some(value), Some(revision)) = (value, message["seq"].as_u64()) else {
            let text = format!(
                "read key {key} of bucket {}: unreadable answer",
                self.bucket
            );
            return Err(StreamError::Refused(text));
        };
        Ok(Some(StoredValue {
            value,
            revision,
            deleted: is_deletion(message),
        }))
    }

    fn publish(
        &self,
        key: &str,
        headers: &[(&str, &str)],
        value: &[u8],
    ) -> Result<Result<Value, ApiError>, StreamError> {
        let subject = self.client.key_subject(&self.subject(key)?);
        let value = match headers.contains(&DELETION) {
            true => Cow::Borrowed(value),
            false => self.seal.seal(self.place(key), value),
        };
        let written = self.client.ask(&subject, headers, &value, API_TIMEOUT)?;
        if written.is_ok() && self.client.is_elsewhere() {
            // A notice for watchers. Losing it costs them time, nothing else.
            let word = format!("{}.{key}", self.bucket);
            self.client.publish(&word, None, &[], b"")?;
        }
        Ok(written)
    }

    fn place<'k>(&'k self, key: &'k str) -> SealPlace<'k> {
        let bucket = self.bucket;
        SealPlace::Value { bucket, key }
    }

    /// Opens a value. None if its seal is not right.
    fn received(&self, key: &str, value: Vec<u8>) -> Result<Option<Vec<u8>>, StreamError> {
        let look = || newer_key::look(self.client, self.seal);
        match self.seal.receive(self.place(key), value, look)? {
            Received::Opened(value) => Ok(Some(value)),
            Received::Refused => Ok(None),
            Received::Waits(why) => Err(StreamError::Refused(format!(
                "read key {key} of bucket {}: {why}",
                self.bucket
            ))),
        }
    }

    fn timed(
        &self,
        key: &str,
        message: &Value,
        most: usize,
    ) -> Result<Option<TimedValue>, StreamError> {
        let data = message["data"].as_str().unwrap_or_default();
        let value = base64::decode(data).filter(|value| value.len() <= most + OVERHEAD);
        let time_ms = message["time"].as_str().and_then(timestamp::unix_ms);
        let (Some(value), Some(time_ms)) = (value, time_ms) else {
            return Ok(None);
        };
        let value = self.received(key, value)?;
        let value = value.filter(|value| value.len() <= most);
        Ok(value.map(|value| TimedValue { value, time_ms }))
    }

    fn subject(&self, key: &str) -> Result<String, StreamError> {
        check(key, "key", "-_./=")?;
        Ok(format!("$KV.{}.{key}", self.bucket))
    }

    fn refused(&self, verb: &str, key: &str, error: &ApiError) -> StreamError {
        error.refused(format_args!("{verb} key {key} of bucket {}", self.bucket))
    }
}

/// Whether the message is a deletion: clients write DEL or PURGE, and newer servers mark an expired
/// value with a different header.
fn is_deletion(message: &Value) -> bool {
    header(message, "KV-Operation").is_some() || header(message, "Nats-Marker-Reason").is_some()
}

/// Checks a name. A space or wildcard in a subject would break the connection or write to a
/// different key.
fn check(name: &str, what: &str, signs: &str) -> Result<(), StreamError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || signs.contains(c);
    let empty_part = name.split('.').any(str::is_empty);
    if !empty_part && name.chars().all(allowed) {
        return Ok(());
    }
    Err(StreamError::Fatal(format!(
        "{what} {name:?}: not a name for nats"
    )))
}

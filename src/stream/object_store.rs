//! A NATS object-store bucket: snapshots.
//!
//! Spoken directly, with a deadline on every wait, in the layout of the official clients, so that
//! `nats object ls` shows what is here: stream `OBJ_<bucket>`, a description at
//! `$O.<bucket>.M.<base64 of the name>` and the bytes as chunks at `$O.<bucket>.C.<id of the
//! upload>`. An object is its description, which is written last and in one message. What is
//! replaced or removed is purged at once; what a broken upload left is purged by the next one.
//!
//! A server that lost power may have kept one without the other. Such an object is told from a
//! server that is away or slow ([`ObjectError::Damaged`]), and can be replaced, listed and removed.
#![allow(deprecated)]

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::client::{API_TIMEOUT, Client, Inbox};
use super::jetstream::{code, create_stream, differences, server_time_ms};
use super::{StreamError, timestamp};
use crate::model::base64;

mod download;
mod upload;

/// What the official clients use, and what is safe over TLS when it goes alone.
const CHUNK: usize = 128 * 1024;
/// For an account that wants to know: the snapshots of most applications.
const SIZE: u64 = 1 << 30;
/// An upload whose newest chunk is older, and which nobody described, was given up.
const ABANDONED_MS: i64 = 10 * 60 * 1000;

/// A bucket with a connection of its own.
pub struct ObjectStore {
    client: Client,
    bucket: String,
    /// For acknowledgements and chunks.
    inbox: Inbox,
    /// The last number given to a chunk: what comes late for an earlier upload is known by it.
    token: u64,
}

/// Why an object was not read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The server answers, and does not have what is described: another try would find the same.
    #[error("damaged: {0}")]
    Damaged(String),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// The description of an object, as far as it matters here. One that cannot be read is of no
/// upload: its `nuid` is empty.
#[derive(Default, serde::Deserialize)]
struct Description {
    #[serde(default)]
    nuid: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    chunks: u64,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    deleted: bool,
}

impl ObjectStore {
    /// Whether there is a bucket of this name.
    pub fn exists(client: &Client, bucket: &str) -> Result<bool, StreamError> {
        let name = format!("OBJ_{bucket}");
        match client.api(&format!("STREAM.INFO.{name}"), &Value::Null)? {
            Ok(_) => Ok(true),
            Err(error) if error.err_code == code::STREAM_NOT_FOUND => Ok(false),
            Err(error) => Err(error.refused(format_args!("look at stream {name}"))),
        }
    }

    /// Opens `bucket` and creates it if it is missing, with room for `max_bytes`, where that is
    /// limited. One that exists keeps its settings; what differs is logged.
    pub fn ensure_bucket(
        client: Client,
        bucket: &str,
        replicas: u32,
        max_bytes: Option<u64>,
    ) -> Result<ObjectStore, StreamError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if bucket.is_empty() || !bucket.chars().all(allowed) {
            let text = format!("bucket {bucket:?}: not a name for nats");
            return Err(StreamError::Fatal(text));
        }
        let mut wanted = Map::from_iter([("num_replicas".to_string(), json!(replicas))]);
        if let Some(bytes) = max_bytes {
            wanted.insert("max_bytes".to_string(), json!(bytes));
        }
        let fixed = json!({
            "subjects": [format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
            "description": "snapshots of harmonylite",
            "retention": "limits", "storage": "file", "discard": "new",
            "allow_rollup_hdrs": true, "allow_direct": true,
        });
        let existing = create_stream(&client, &format!("OBJ_{bucket}"), &wanted, &fixed, SIZE)?;
        let differences = existing
            .map(|config| differences(&config, &wanted))
            .unwrap_or_default();
        if !differences.is_empty() {
            log::warn!("bucket {bucket} stays as it is: {}", differences.join(", "));
        }
        let inbox = client.inbox()?;
        Ok(ObjectStore {
            client,
            bucket: bucket.to_string(),
            inbox,
            token: 0,
        })
    }

    /// Writes the object, or replaces it. It is there, whole, when this returns Ok.
    pub fn put(&mut self, name: &str, from: &mut dyn Read) -> Result<(), StreamError> {
        self.purge_abandoned()?;
        let replaced = self.description(name)?;
        let [high, low] = [0, 1].map(|n| RandomState::new().hash_one((name, n)));
        let id = format!("{high:016x}{low:016x}");
        let result = self
            .upload(&id, from)
            .and_then(|sent| self.describe(name, &id, &sent));
        if let Err(error) = result {
            // Where the connection is stuck, even asking could block.
            if !matches!(error, StreamError::Disconnected(_)) {
                let _ = self.purge(&self.chunks_subject(&id));
            }
            return Err(error);
        }
        match replaced {
            Some(old) if is_id(&old.nuid) => self.purge(&self.chunks_subject(&old.nuid)),
            _ => Ok(()),
        }
    }

    /// Writes the object's bytes to `into`; `false` if there is none.
    pub fn get(&mut self, name: &str, into: &mut dyn Write) -> Result<bool, ObjectError> {
        let Some(described) = self.description(name)? else {
            return Ok(false);
        };
        let result = self.download(&described, into);
        if matches!(result, Err(ObjectError::Damaged(_))) {
            // Who replaces or removes an object changes the description first, then the chunks go.
            let now = self.description(name)?;
            if now.is_none_or(|now| now.nuid != described.nuid) {
                let text = "it was replaced or removed while it was read";
                return Err(StreamError::Refused(text.into()).into());
            }
        }
        result.map(|()| true)
    }

    /// The names of all objects.
    pub fn list(&mut self) -> Result<Vec<String>, StreamError> {
        Ok(self
            .described()?
            .into_iter()
            .map(|(name, _)| name)
            .collect())
    }

    /// Removes the object; no error if there is none.
    pub fn remove(&mut self, name: &str) -> Result<(), StreamError> {
        let described = self.description(name)?;
        self.purge(&self.description_subject(name))?;
        match described {
            Some(described) if is_id(&described.nuid) => {
                self.purge(&self.chunks_subject(&described.nuid))
            }
            _ => Ok(()),
        }
    }

    fn stream(&self) -> String {
        format!("OBJ_{}", self.bucket)
    }

    fn description_subject(&self, name: &str) -> String {
        let name = base64::to_url_signs(&base64::encode(name.as_bytes()));
        format!("$O.{}.M.{name}", self.bucket)
    }

    fn chunks_subject(&self, id: &str) -> String {
        format!("$O.{}.C.{id}", self.bucket)
    }

    /// The newest message at `subject`.
    fn newest(&self, subject: &str) -> Result<Option<Value>, StreamError> {
        self.message(&json!({ "last_by_subj": subject }))
    }

    /// The message that the stream's leader has at `place`.
    fn message(&self, place: &Value) -> Result<Option<Value>, StreamError> {
        let call = format!("STREAM.MSG.GET.{}", self.stream());
        match self.client.api(&call, place)? {
            Ok(mut reply) => Ok(Some(reply["message"].take())),
            Err(error) if error.err_code == code::NO_MESSAGE_FOUND => Ok(None),
            Err(error) => Err(error.refused(format_args!("look at {place}"))),
        }
    }

    fn description(&self, name: &str) -> Result<Option<Description>, StreamError> {
        let Some(message) = self.newest(&self.description_subject(name))? else {
            return Ok(None);
        };
        let text = base64::decode(message["data"].as_str().unwrap_or_default());
        let described = text.and_then(|text| serde_json::from_slice(&text).ok());
        let described: Description = described.unwrap_or_default();
        Ok(Some(described).filter(|described| !described.deleted))
    }

    /// Makes what was uploaded as `id` the object `name`.
    fn describe(&self, name: &str, id: &str, sent: &upload::Sent) -> Result<(), StreamError> {
        let described = json!({
            "name": name, "bucket": self.bucket, "nuid": id, "size": sent.size,
            "chunks": sent.chunks, "digest": digest_text(&sent.hash),
            "mtime": "0001-01-01T00:00:00Z", // the clients take the message's time
            "options": { "max_chunk_size": CHUNK },
        });
        let subject = self.description_subject(name);
        let headers = [("Nats-Rollup", "sub")];
        let text = described.to_string();
        self.client
            .ask(&subject, &headers, text.as_bytes(), API_TIMEOUT)?
            .map(drop)
            .map_err(|error| error.refused("describe the object"))
    }

    fn purge(&self, subject: &str) -> Result<(), StreamError> {
        let call = format!("STREAM.PURGE.{}", self.stream());
        let purged = self.client.api(&call, &json!({ "filter": subject }))?;
        purged
            .map(drop)
            .map_err(|error| error.refused(format_args!("purge {subject}")))
    }

    /// The last parts of the subjects below `$O.<bucket>.<kind>.`.
    fn subjects(&self, kind: char) -> Result<Vec<String>, StreamError> {
        let start = format!("$O.{}.{kind}.", self.bucket);
        let counts = self.counts(&format!("{start}>"))?;
        Ok(counts
            .keys()
            .filter_map(|subject| Some(subject.strip_prefix(&start)?.to_string()))
            .collect())
    }

    /// How many messages the stream's leader has at each subject that `filter` matches.
    fn counts(&self, filter: &str) -> Result<Map<String, Value>, StreamError> {
        let body = json!({ "subjects_filter": filter });
        let mut info = self
            .client
            .api(&format!("STREAM.INFO.{}", self.stream()), &body)?
            .map_err(|error| error.refused("list the bucket"))?;
        match info["state"]["subjects"].take() {
            Value::Object(counts) => Ok(counts),
            _ => Ok(Map::new()),
        }
    }

    fn described(&self) -> Result<Vec<(String, Description)>, StreamError> {
        let mut all = Vec::new();
        for encoded in self.subjects('M')? {
            let name = base64::decode(&base64::from_url_signs(&encoded));
            let Some(name) = name.and_then(|name| String::from_utf8(name).ok()) else {
                continue;
            };
            if let Some(described) = self.description(&name)? {
                all.push((name, described));
            }
        }
        Ok(all)
    }

    /// Frees what uploads left that came to no end: their sender died, or lost its connection.
    fn purge_abandoned(&self) -> Result<(), StreamError> {
        let uploads = self.subjects('C')?;
        if uploads.is_empty() {
            return Ok(());
        }
        // In this order: one that is described in between is found here.
        let described = self.described()?;
        let now = server_time_ms(&self.client, &self.stream())?;
        for id in uploads {
            let subject = self.chunks_subject(&id);
            if described.iter().any(|(_, object)| object.nuid == id) {
                continue;
            }
            let newest = self.newest(&subject)?;
            let time = newest.and_then(|newest| timestamp::unix_ms(newest["time"].as_str()?));
            if time.is_some_and(|time| now - time > ABANDONED_MS) {
                log::info!("bucket {}: purging what a broken upload left", self.bucket);
                self.purge(&subject)?;
            }
        }
        Ok(())
    }
}

/// A token of a subject: a peer's word in a purge could otherwise match more than one upload.
fn is_id(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric())
}

fn digest_text(hash: &Sha256) -> String {
    let digest = hash.clone().finalize();
    format!("SHA-256={}", base64::to_url_signs(&base64::encode(&digest)))
}

//! A NATS object-store bucket, which holds snapshots.
//!
//! The module speaks the API directly, with a deadline on every wait. It uses the layout of the
//! official clients, so `nats object ls` shows the objects: stream `OBJ_<bucket>`, a description at
//! `$O.<bucket>.M.<base64 of the name>`, and the bytes as chunks at `$O.<bucket>.C.<id of the
//! upload>`. An object exists once its description does, which is written last and in one message.
//! The chunks of a replaced or removed object are purged at once. The next upload purges the chunks
//! of a broken one.
//!
//! A server that lost power may have kept only the description or only the chunks.
//! [`ObjectError::Damaged`] distinguishes such an object from a server that is down or slow. It can
//! be replaced, listed and removed.
#![allow(deprecated)]

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::StreamError;
use super::client::{API_TIMEOUT, Client, Inbox};
use super::jetstream::{code, create_stream, differences, server_time_ms};
use crate::model::base64;
use crate::model::timestamp;

mod download;
mod upload;

/// Bytes per chunk: the size that the official clients use, and safe over TLS when one chunk is
/// sent at a time.
const CHUNK: usize = 128 * 1024;
/// Size in bytes for an account that requires one: enough for the snapshots of most applications.
const SIZE: u64 = 1 << 30;
/// An upload without a description counts as given up when its newest chunk is older than this.
const ABANDONED_MS: i64 = 10 * 60 * 1000;

/// A bucket with its own connection.
pub struct ObjectStore {
    client: Client,
    bucket: String,
    /// Receives acknowledgements and chunks.
    inbox: Inbox,
    /// The last number given to a chunk. It identifies late acknowledgements of an earlier upload.
    token: u64,
}

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The server answers, but does not have what the description says. Another attempt would find
    /// the same.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The request failed, or the object changed while it was read: another attempt may succeed.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// The part of an object's description that matters here. An unreadable description belongs to no
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
    /// Whether a bucket of this name exists.
    pub fn exists(client: &Client, bucket: &str) -> Result<bool, StreamError> {
        let name = format!("OBJ_{bucket}");
        match client.api(&format!("STREAM.INFO.{name}"), &Value::Null)? {
            Ok(_) => Ok(true),
            Err(error) if error.err_code == code::STREAM_NOT_FOUND => Ok(false),
            Err(error) => Err(error.refused(format_args!("describe stream {name}"))),
        }
    }

    /// Opens `bucket` and creates it if it is missing, with a limit of `max_bytes` if one is given.
    /// An existing bucket keeps its settings, and differences are logged. Returns `Fatal` if the
    /// name is invalid for NATS.
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

    /// Writes or replaces the object. When this returns `Ok`, the whole object is in the bucket.
    pub fn put(&mut self, name: &str, from: &mut dyn Read) -> Result<(), StreamError> {
        self.purge_abandoned()?;
        let replaced = self.description(name)?;
        let [high, low] = [0, 1].map(|n| RandomState::new().hash_one((name, n)));
        let id = format!("{high:016x}{low:016x}");
        let result = self
            .upload(&id, from)
            .and_then(|sent| self.describe(name, &id, &sent));
        if let Err(error) = result {
            // On a stuck connection, even the purge could block.
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

    /// Writes the object's bytes to `into`. Returns `false` if there is no such object, and
    /// `Damaged` if its chunks do not match its description.
    pub fn get(&mut self, name: &str, into: &mut dyn Write) -> Result<bool, ObjectError> {
        let Some(described) = self.description(name)? else {
            return Ok(false);
        };
        let result = self.download(&described, into);
        if matches!(result, Err(ObjectError::Damaged(_))) {
            // A replacement or removal changes the description first and purges the chunks
            // afterwards.
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

    /// Removes the object. A missing object is no error.
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

    /// The message at `place`, as the stream's leader has it.
    fn message(&self, place: &Value) -> Result<Option<Value>, StreamError> {
        let call = format!("STREAM.MSG.GET.{}", self.stream());
        match self.client.api(&call, place)? {
            Ok(mut reply) => Ok(Some(reply["message"].take())),
            Err(error) if error.err_code == code::NO_MESSAGE_FOUND => Ok(None),
            Err(error) => Err(error.refused(format_args!("describe {place}"))),
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

    /// Makes the upload `id` the object `name`, by writing its description.
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

    /// Number of messages at each subject that matches `filter`, as the stream's leader has them.
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

    /// Purges the chunks of unfinished uploads, whose sender died or lost its connection.
    fn purge_abandoned(&self) -> Result<(), StreamError> {
        let uploads = self.subjects('C')?;
        if uploads.is_empty() {
            return Ok(());
        }
        // In this order: the description of an upload that finishes in between is found here.
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
                log::info!(
                    "bucket {}: purging the rest of a broken upload",
                    self.bucket
                );
                self.purge(&subject)?;
            }
        }
        Ok(())
    }
}

/// Whether `text` is a single token of a subject. An id from a peer could otherwise match several
/// uploads in a purge.
fn is_id(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric())
}

fn digest_text(hash: &Sha256) -> String {
    let digest = hash.clone().finalize();
    format!("SHA-256={}", base64::to_url_signs(&base64::encode(&digest)))
}

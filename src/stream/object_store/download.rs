//! Fetches the chunks of an object, a batch at a time, through a throwaway pull consumer.
#![allow(deprecated)]

use std::io::Write;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::super::StreamError;
use super::super::delivery::{Origin, status};
use super::{Description, ObjectStore, digest_text, is_id};

/// Chunks asked for at a time: 4 MiB, and so much memory.
const BATCH: u64 = 32;
/// How long the next chunk may take.
const SILENCE: Duration = Duration::from_secs(30);
/// The server forgets the consumer when nobody asked for so long: longer than `into` takes.
const INACTIVE: Duration = Duration::from_secs(300);

impl ObjectStore {
    /// Writes the bytes of `described` to `into`, and finds out whether they are the right ones.
    pub(super) fn download(
        &self,
        described: &Description,
        into: &mut dyn Write,
    ) -> Result<(), StreamError> {
        let (mut hash, mut size) = (Sha256::new(), 0);
        if described.chunks > 0 {
            let mut write = |data: &[u8]| {
                hash.update(data);
                size += data.len() as u64;
                into.write_all(data)
                    .map_err(|error| StreamError::Refused(format!("write: {error}")))
            };
            self.chunks(described, &mut write)?;
        }
        into.flush()
            .map_err(|error| StreamError::Refused(format!("write: {error}")))?;
        if size != described.size || digest_text(&hash) != described.digest {
            let want = described.size;
            let text = format!("damaged: {size} of {want} bytes came, or not the ones described");
            return Err(StreamError::Refused(text));
        }
        Ok(())
    }

    fn chunks(
        &self,
        described: &Description,
        write: &mut dyn FnMut(&[u8]) -> Result<(), StreamError>,
    ) -> Result<(), StreamError> {
        if !is_id(&described.nuid) {
            return Err(StreamError::Refused("unreadable description".into()));
        }
        let stream = self.stream();
        let config = json!({
            "filter_subject": self.chunks_subject(&described.nuid),
            "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant",
            "mem_storage": true, "num_replicas": 1,
            "inactive_threshold": INACTIVE.as_nanos() as u64,
        });
        let body = json!({ "stream_name": stream, "config": config });
        let created = self
            .client
            .api(&format!("CONSUMER.CREATE.{stream}"), &body)?
            .map_err(|error| error.refused("read the chunks"))?;
        let consumer = created["name"].as_str().unwrap_or_default().to_string();
        let mut left = described.chunks;
        while left > 0 {
            let batch = left.min(BATCH);
            let body = json!({ "batch": batch, "expires": SILENCE.as_nanos() as u64 });
            let call = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
            let reply = format!("{}.{consumer}", self.inbox.subject);
            let body = body.to_string();
            self.client
                .publish(&call, Some(&reply), &[], body.as_bytes())?;
            for _ in 0..batch {
                write(&self.chunk(&consumer)?)?;
            }
            left -= batch;
        }
        // Sparing the server minutes of keeping it; whether it arrives does not matter.
        let call = format!("$JS.API.CONSUMER.DELETE.{stream}.{consumer}");
        self.client.publish(&call, None, &[], b"")
    }

    /// The next one that `consumer` delivers; what else arrives was meant for an earlier one.
    fn chunk(&self, consumer: &str) -> Result<Vec<u8>, StreamError> {
        loop {
            let message = self.inbox.messages.recv_timeout(SILENCE);
            let message = message.map_err(|refusal| {
                if refusal.is_timeout() {
                    let (address, waited) = (self.client.address(), SILENCE.as_secs());
                    StreamError::Disconnected(format!("{address} sent nothing for {waited} s"))
                } else {
                    self.client.lost()
                }
            })?;
            let origin = message.reply.as_deref().and_then(Origin::parse);
            if origin.is_some_and(|origin| origin.consumer == consumer) {
                return Ok(message.data);
            }
            match status(&message) {
                Some(_) if !message.subject.ends_with(consumer) => {}
                Some((404 | 408, _)) => {
                    return Err(StreamError::Refused("chunks are missing".into()));
                }
                Some((_, text)) => return Err(StreamError::Refused(text)),
                None => {}
            }
        }
    }
}

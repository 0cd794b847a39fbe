//! Fetches the chunks of an object in batches, through a disposable pull consumer.
//!
//! A consumer does not report missing chunks. So the chunks are counted first. If a chunk does not
//! arrive, the stream is asked for it: only its answer makes the object a damaged one.
#![allow(deprecated)]

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::delivery::{Origin, status};
use super::super::{QUICK, StreamError};
use super::{Description, ObjectError, ObjectStore, digest_text, is_id};

/// Most chunks requested at a time: 4 MiB, which also bounds the memory. A download starts with
/// one, because the server drops a client that does not take all requested bytes within 10 s.
const BATCH: u64 = 32;
/// How long the next chunk may take.
const SILENCE: Duration = Duration::from_secs(15);
/// The server deletes a consumer without requests after this time. A write to `into` takes less.
const INACTIVE: Duration = Duration::from_secs(300);

impl ObjectStore {
    /// Writes the bytes of `described` to `into`, and verifies their size and digest.
    pub(super) fn download(
        &self,
        described: &Description,
        into: &mut dyn Write,
    ) -> Result<(), ObjectError> {
        if !is_id(&described.nuid) {
            return Err(ObjectError::Damaged("unreadable description".into()));
        }
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
            let text = format!("{size} of {want} bytes came, or not the ones described");
            return Err(ObjectError::Damaged(text));
        }
        Ok(())
    }

    fn chunks(
        &self,
        described: &Description,
        write: &mut dyn FnMut(&[u8]) -> Result<(), StreamError>,
    ) -> Result<(), ObjectError> {
        let (stream, subject) = (self.stream(), self.chunks_subject(&described.nuid));
        let counts = self.counts(&subject)?;
        let count = counts.get(&subject).and_then(Value::as_u64).unwrap_or(0);
        if count < described.chunks {
            let text = format!("{count} of {} chunks are there", described.chunks);
            return Err(ObjectError::Damaged(text));
        }
        let config = json!({
            "filter_subject": subject,
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
        let (mut left, mut last, mut most) = (described.chunks, 0, 1);
        while left > 0 {
            let (batch, began) = (left.min(most), Instant::now());
            let body = json!({ "batch": batch, "expires": SILENCE.as_nanos() as u64 });
            let call = self
                .client
                .api_subject(&format!("CONSUMER.MSG.NEXT.{stream}.{consumer}"));
            let reply = format!("{}.{consumer}", self.inbox.subject);
            let body = body.to_string();
            self.client
                .publish(&call, Some(&reply), &[], body.as_bytes())?;
            for _ in 0..batch {
                let (sequence, data) = match self.chunk(&consumer)? {
                    Some(chunk) => chunk,
                    None => return Err(self.find_chunk(&subject, last)?),
                };
                write(&data)?;
                last = sequence;
            }
            left -= batch;
            if began.elapsed() < QUICK {
                most = (2 * most).min(BATCH);
            }
        }
        // Spares the server minutes of keeping the consumer; the request may get lost.
        let call = self
            .client
            .api_subject(&format!("CONSUMER.DELETE.{stream}.{consumer}"));
        Ok(self.client.publish(&call, None, &[], b"")?)
    }

    /// The reason why the chunk after sequence `last` does not arrive.
    fn find_chunk(&self, subject: &str, last: u64) -> Result<ObjectError, StreamError> {
        let next = json!({ "next_by_subj": subject, "seq": last.saturating_add(1) });
        if self.message(&next)?.is_none() {
            return Ok(ObjectError::Damaged("a chunk cannot be read".into()));
        }
        let (address, waited) = (self.client.address(), SILENCE.as_secs());
        let text = format!("{address} sent nothing for {waited} s");
        Ok(StreamError::Disconnected(text).into())
    }

    /// The next chunk that `consumer` delivers, with its sequence; None if it does not arrive.
    /// Other messages belong to an earlier consumer and are skipped.
    fn chunk(&self, consumer: &str) -> Result<Option<(u64, Vec<u8>)>, StreamError> {
        loop {
            let message = match self.inbox.messages.recv_timeout(SILENCE) {
                Ok(message) => message,
                Err(refusal) if refusal.is_timeout() => return Ok(None),
                Err(_) => return Err(self.client.lost()),
            };
            let origin = message.reply.as_deref().and_then(Origin::parse);
            if let Some(origin) = origin.filter(|origin| origin.consumer == consumer) {
                return Ok(Some((origin.sequence, message.data)));
            }
            match status(&message) {
                Some(_) if !message.subject.ends_with(consumer) => {}
                Some((404 | 408, _)) => return Ok(None),
                Some((_, text)) => return Err(StreamError::Refused(text)),
                None => {}
            }
        }
    }
}

//! Sends chunks, a few ahead of their acknowledgements.
//!
//! A separate thread writes to the socket, since a server that stopped reading would block the
//! writing thread (see `writer`). That thread ends with the upload or, when stuck, with the
//! connection.
#![allow(deprecated)]

use std::collections::VecDeque;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use sha2::{Digest, Sha256};

use super::super::link::Link;
use super::super::writer::{acknowledgement, start};
use super::super::{QUICK, StreamError, at_slowest};
use super::{CHUNK, ObjectStore};

/// Most chunks without an acknowledgement, enough for a fast network. An upload starts with one,
/// which takes seconds to leave the buffers of a slow network.
const PLAIN_WINDOW: u64 = 8;
/// Over TLS the crate loses the connection when the socket's send buffer fills.
const TLS_WINDOW: u64 = 1;
/// Bytes of a message that are reserved for everything but the data.
const OVERHEAD: usize = 1024;
/// How long the server may take for a chunk. A slower network counts as broken.
const SILENCE: Duration = at_slowest(CHUNK);

/// Totals of an upload, for the description.
pub(super) struct Sent {
    pub(super) size: u64,
    pub(super) chunks: u64,
    pub(super) hash: Sha256,
}

struct Chunk {
    reply: String,
    data: Vec<u8>,
}

impl ObjectStore {
    /// Uploads all of `from` as chunks of the upload `id`, and waits until all are acknowledged.
    pub(super) fn upload(&mut self, id: &str, from: &mut dyn Read) -> Result<Sent, StreamError> {
        let (jobs, todo) = bounded(0);
        let (link, subject) = (self.client.link().clone(), self.chunks_subject(id));
        start("nats-objects", move || feed(&link, &subject, &todo))?;
        let most = if self.client.is_tls() {
            TLS_WINDOW
        } else {
            PLAIN_WINDOW
        };
        let room = CHUNK.min(self.client.max_payload().saturating_sub(OVERHEAD));
        let mut sent = Sent {
            size: 0,
            chunks: 0,
            hash: Sha256::new(),
        };
        let first = self.token + 1;
        let (mut acknowledged, mut window) = (0, 1);
        let mut under_way = VecDeque::new();
        loop {
            let data = read_chunk(from, room)
                .map_err(|error| StreamError::Refused(format!("read the object: {error}")))?;
            if data.is_empty() {
                break;
            }
            sent.hash.update(&data);
            sent.size += data.len() as u64;
            sent.chunks += 1;
            self.token += 1;
            let reply = format!("{}.{}", self.inbox.subject, self.token);
            under_way.push_back(Instant::now());
            self.hand_over(&jobs, Chunk { reply, data })?;
            while sent.chunks - acknowledged >= window {
                self.await_ack(first)?;
                acknowledged += 1;
                let began = under_way.pop_front();
                if began.is_some_and(|began| began.elapsed() < QUICK) {
                    window = most.min(window + 1);
                }
            }
        }
        while acknowledged < sent.chunks {
            self.await_ack(first)?;
            acknowledged += 1;
        }
        Ok(sent)
    }

    fn hand_over(&self, jobs: &Sender<Chunk>, chunk: Chunk) -> Result<(), StreamError> {
        jobs.send_timeout(chunk, SILENCE).map_err(|refusal| {
            if refusal.is_timeout() {
                let address = self.client.address();
                StreamError::Disconnected(format!("{address} takes no more data"))
            } else {
                self.client.lost()
            }
        })
    }

    /// Waits for one acknowledgement. Chunks, numbered from `first`, are acknowledged in any order,
    /// each exactly once.
    fn await_ack(&self, first: u64) -> Result<(), StreamError> {
        loop {
            let message = self
                .inbox
                .messages
                .recv_timeout(SILENCE)
                .map_err(|refusal| {
                    if refusal.is_timeout() {
                        let (address, waited) = (self.client.address(), SILENCE.as_secs());
                        let text = format!("{address} acknowledged nothing for {waited} s");
                        StreamError::Disconnected(text)
                    } else {
                        self.client.lost()
                    }
                })?;
            if let Some(ack) = acknowledgement(&message).filter(|ack| ack.token >= first) {
                return ack
                    .result
                    .map(drop)
                    .map_err(|refusal| StreamError::Refused(refusal.text));
            }
        }
    }
}

/// Body of `nats-objects`.
fn feed(link: &Link, subject: &str, todo: &Receiver<Chunk>) {
    for Chunk { reply, data } in todo {
        let Ok(connection) = link.connection() else {
            return;
        };
        let sent = connection.publish_with_reply_or_headers(subject, Some(&reply), None, data);
        if sent.is_err() {
            return link.end();
        }
    }
}

/// The next chunk of `from`: full unless it is the last.
fn read_chunk(from: &mut dyn Read, room: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(room);
    from.take(room as u64).read_to_end(&mut data)?;
    Ok(data)
}

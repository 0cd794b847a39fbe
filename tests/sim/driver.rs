//! The publisher's and the consumers' logic, step by step: what `publisher.rs` and `consumer.rs` do
//! between two waits.

use std::time::Duration;

use crossbeam_channel::Receiver;
use harmonylite::apply::{Arrived, Content};
use harmonylite::capture::Captured;
use harmonylite::cluster::stream_continuity;
use harmonylite::model::frame::{self, Frame, unpack};
use harmonylite::stream::{self, Reader as _, Retention, StreamError, StreamState};

use crate::broker::{Broker, Message, Stream};
use crate::node::{Link, Node, Options, Packet, Reader};

type Step<T> = Result<T, String>;

fn failed(e: harmonylite::database::DatabaseError) -> String {
    format!("database: {e}")
}

/// Messages of a stream that one transaction applied.
pub struct Read {
    pub messages: usize,
    pub captured: Captured,
    /// Whether there was a transaction, which begins with a capture. It may apply a part of the
    /// first message, and then no message is done.
    pub applied: bool,
}

impl Node {
    /// Captures as `Publisher::verify_position` does.
    pub fn capture(&self) -> Step<Captured> {
        let mut locked = self.shared().lock();
        let db = &mut locked.database;
        let is_hint = db.is_changed().map_err(failed)? || db.has_more();
        if !(is_hint && db.waits_for_capture().map_err(failed)?) {
            return Ok(Captured::default());
        }
        let mut captured = db.capture().map_err(failed)?;
        let copy = copy_of(&captured);
        locked.hand_over(&mut captured);
        Ok(copy)
    }

    /// The reasons for which the publisher may not send, for people.
    pub fn publisher_state(&self, broker: &Broker) -> String {
        let locked = self.shared().lock();
        let unread = |s: &Stream| locked.database.unread(&s.name);
        let unread: Vec<u64> = broker.streams.iter().map(unread).collect();
        format!(
            "live {}, at end {}, may publish {}, outbox empty {}, unread {unread:?}",
            locked.database.is_live(),
            self.shared().all_at_end(),
            self.shared().may_publish(&locked.database),
            locked.outbox.is_empty()
        )
    }

    /// Whether the next turn of [`Self::send`] begins with a capture.
    pub fn sends_backlog(&self) -> bool {
        let locked = self.shared().lock();
        locked.outbox.is_empty() && !locked.database.is_live()
    }

    /// Does one turn of `Publisher::send`. True if there was something to do.
    pub fn send(&mut self, options: &Options, broker: &Broker) -> Step<bool> {
        let room = |link: &Link| link.messages.len() < options.in_flight;
        let (Some(shared), Some(link)) = (&self.shared, self.link.as_mut().filter(|l| room(l)))
        else {
            return Ok(false);
        };
        let mut locked = shared.lock();
        let streams = broker.streams.iter().map(|s| &s.name[..]);
        if locked.is_ahead(streams, link.messages.len(), options.most_ahead()) {
            return Ok(false);
        }
        if locked.outbox.is_empty() && !locked.database.is_live() {
            let may_publish = shared.all_at_end() && shared.may_publish(&locked.database);
            if !may_publish || !locked.database.is_captured() {
                return Ok(false);
            }
            let limit = options.max_transaction_bytes;
            let frames = locked.database.backlog(limit).map_err(failed)?;
            if frames.is_empty() {
                return Ok(locked.database.is_captured());
            }
            let _ = locked.outbox.push(frames);
        }
        let Some(out) = locked.pop() else {
            return Ok(false);
        };
        let mut compressor = options
            .compress
            .then(|| zstd::bulk::Compressor::new(1).expect("zstd"));
        let packed = frame::pack(out.raw, compressor.as_mut());
        let parts = packed.messages(out.salt, options.max_message_bytes);
        let number = link.next;
        link.frames.insert(number, (out.local_tx, parts.len()));
        for data in parts {
            let id = frame::message_id(&data, out.salt);
            shared.remember_own(&id, &data);
            let (token, shard, id) = (link.next, out.shard, frame::id_text(&id));
            link.messages.insert(token, (number, shard, id.clone()));
            link.wire.push_back(Packet {
                token,
                shard,
                id,
                data,
            });
            link.next += 1;
        }
        Ok(true)
    }

    /// Handles one of the acknowledgements under way, as `Publisher::acknowledged` does.
    pub fn take_ack(&mut self, which: usize, broker: &Broker) -> bool {
        let (Some(shared), Some(link)) = (&self.shared, &mut self.link) else {
            return false;
        };
        let Some((token, seq, is_duplicate)) = link.acks.remove(which) else {
            return false;
        };
        let Some((number, shard, id)) = link.messages.remove(&token) else {
            return true;
        };
        let (at, left) = link.frames.get_mut(&number).expect("it has messages");
        *left -= 1;
        let whole = (*left == 0).then_some(*at);
        if whole.is_some() {
            link.frames.remove(&number);
        }
        let stream = &broker.streams[shard as usize - 1].name;
        let mut locked = shared.lock();
        if !locked.acknowledged(stream, (seq, is_duplicate), id, whole) {
            drop(locked);
            self.drop_link();
        }
        true
    }

    /// Gives up the connection, as `Publisher::drop_link` does.
    pub fn drop_link(&mut self) {
        self.link = None;
        if let Some(shared) = &self.shared {
            let mut locked = shared.lock();
            locked.outbox.clear();
            locked.database.stop_live();
        }
    }

    /// Connects the publisher, as its `connect` does.
    pub fn connect_link(&mut self, broker: &Broker) -> Step<()> {
        for shard in 0..broker.streams.len() {
            self.verify_position(shard, broker)?;
        }
        self.link.get_or_insert_default();
        Ok(())
    }

    fn verify_position(&self, shard: usize, broker: &Broker) -> Step<u64> {
        let stream = &broker.streams[shard];
        let mut reader = StreamReader(stream);
        let state = reader.state().expect("there is always an answer");
        if let Some(now_ms) = state.now_ms {
            self.db().heard_broker_time(now_ms);
        }
        stream_continuity::verify_position(self.shared(), &stream.name, &mut reader, &state)
            .map_err(|e| e.to_string())
    }

    /// Does what `Consumer::read` does before its loop.
    pub fn connect_reader(&mut self, shard: usize, broker: &Broker) -> Step<()> {
        let (stream, next) = (&broker.streams[shard], self.verify_position(shard, broker)?);
        if stream.first() > next {
            self.db()
                .miss(&stream.name, stream.first())
                .map_err(failed)?;
        }
        let (from, end) = (next.max(stream.first()), stream.last());
        self.readers[shard] = Some(Reader { from, end });
        self.shared().set_at_end(shard as u32 + 1, from > end);
        Ok(())
    }

    pub fn drop_reader(&mut self, shard: usize) {
        self.readers[shard] = None;
        if let Some(shared) = &self.shared {
            shared.set_at_end(shard as u32 + 1, false);
        }
    }

    /// Fetches up to `limit` messages and applies them in one transaction.
    pub fn read(&mut self, shard: usize, limit: usize, broker: &Broker) -> Step<Option<Read>> {
        let (Some(shared), Some(mut reader)) = (self.shared.clone(), self.readers[shard]) else {
            return Ok(None);
        };
        let stream = &broker.streams[shard];
        if reader.from != self.db().position(&stream.name).seq + 1 {
            // A snapshot moved the position, perhaps beyond a stream that is shorter now.
            self.connect_reader(shard, broker)?;
            reader = self.readers[shard].expect("just connected");
        }
        let from = reader.from;
        if from > reader.end {
            shared.set_at_end(shard as u32 + 1, true);
        }
        let fetched: Vec<(u64, &Message)> = stream.from(from).take(limit).collect();
        let Some((last, newest)) = fetched.last().map(|(seq, m)| (*seq, m.time_ms)) else {
            return Ok(None);
        };
        let first = fetched[0].0;
        if first > from {
            self.db().miss(&stream.name, first).map_err(failed)?;
        }
        let unpacked: Vec<_> = fetched.iter().map(|(_, m)| unpack(&m.data)).collect();
        let mut arrived = Vec::new();
        for ((seq, message), raw) in fetched.iter().zip(&unpacked) {
            let content = match raw {
                _ if shared.is_own(&message.id, &message.data) => Content::Own,
                Ok(raw) => Content::Frame(Frame::decode(raw).map_err(|e| e.to_string())?),
                Err(e) => return Err(e.to_string()),
            };
            arrived.push(Arrived {
                seq: *seq,
                id: &message.id,
                time_ms: message.time_ms,
                content,
            });
        }
        let mut locked = shared.lock();
        if last > reader.end {
            locked.database.heard_broker_time(newest);
        }
        let is_own = |a: &&Arrived<'_>| matches!(a.content, Content::Own);
        let own = arrived.iter().take_while(is_own).count();
        let read = if own > 0 {
            let last = &arrived[own - 1];
            locked.database.read_up_to(&stream.name, last.seq, last.id);
            Read {
                messages: own,
                captured: Captured::default(),
                applied: false,
            }
        } else {
            let applied = locked.database.apply(&stream.name, &arrived);
            let mut applied = applied.map_err(failed)?;
            let captured = copy_of(&applied.captured);
            locked.hand_over(&mut applied.captured);
            Read {
                applied: true,
                messages: applied.messages,
                captured,
            }
        };
        let from = first + read.messages as u64;
        self.readers[shard] = Some(Reader { from, ..reader });
        if from > reader.end {
            shared.set_at_end(shard as u32 + 1, true);
        }
        Ok(Some(read))
    }
}

fn copy_of(captured: &Captured) -> Captured {
    Captured {
        frames: captured.frames.clone(),
        ..*captured
    }
}

/// A stream, in the form in which the core asks for it.
struct StreamReader<'s>(&'s Stream);

impl stream::Reader for StreamReader<'_> {
    fn state(&mut self) -> Result<StreamState, StreamError> {
        Ok(StreamState {
            first: self.0.first(),
            last: self.0.last(),
            created: self.0.created.clone(),
            now_ms: self.0.now_ms,
            retention: Retention::default(),
        })
    }

    fn fetch(
        &mut self,
        _: u64,
        _: Duration,
        _: &Receiver<()>,
    ) -> Result<Vec<stream::Message>, StreamError> {
        unreachable!("the simulation fetches by itself")
    }

    fn message_id(&mut self, sequence: u64) -> Result<Option<String>, StreamError> {
        let id = self.0.id(sequence);
        Ok((!id.is_empty()).then(|| id.to_owned()))
    }
}

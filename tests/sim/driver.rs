//! The publisher's and the consumers' logic, step by step: what `publisher.rs` and `consumer.rs` do
//! between two waits.

use harmonylite::apply::{Arrived, Content, Position};
use harmonylite::capture::Captured;
use harmonylite::model::frame::{self, Frame, MAX_FRAME_BYTES, unpack};
use harmonylite::mutation::{self, Mutation};

use crate::broker::{Broker, Message};
use crate::node::{Link, Node, Options, Packet, Reader};

type Step<T> = Result<T, String>;

fn failed(e: harmonylite::database::DatabaseError) -> String {
    format!("database: {e}")
}

/// What arrived from a stream, applied by one transaction.
pub struct Read {
    pub messages: usize,
    pub captured: Captured,
}

impl Node {
    /// `Publisher::look`.
    pub fn capture(&mut self) -> Step<Captured> {
        let mut captured = self.db().capture().map_err(failed)?;
        let copy = Captured {
            frames: captured.frames.clone(),
            ..captured
        };
        self.hand_over(&mut captured);
        Ok(copy)
    }

    fn hand_over(&mut self, captured: &mut Captured) {
        if !self.outbox.push(std::mem::take(&mut captured.frames)) {
            self.db().stop_live();
        }
    }

    /// One turn of `Publisher::send`. True if something was done.
    pub fn send(&mut self, options: &Options) -> Step<bool> {
        let room = |link: &Link| link.messages.len() < options.in_flight;
        if !self.link.as_ref().is_some_and(room) {
            return Ok(false);
        }
        if self.outbox.is_empty() && !self.db().is_live() {
            if !self.at_end.iter().all(|a| *a) {
                return Ok(false);
            }
            let frames = self
                .db()
                .backlog(options.max_transaction_bytes)
                .map_err(failed)?;
            if frames.is_empty() {
                return Ok(true);
            }
            let _ = self.outbox.push(frames);
        }
        let Some(out) = self.outbox.pop() else {
            return Ok(false);
        };
        let mut compressor = options
            .compress
            .then(|| zstd::bulk::Compressor::new(1).expect("zstd"));
        let packed = frame::pack(out.raw, compressor.as_mut());
        let parts = match packed.len() <= options.max_message_bytes {
            true => vec![packed],
            false => frame::cut(
                &frame::message_id(&packed, 0),
                &packed,
                options.max_message_bytes,
            ),
        };
        let link = self.link.as_mut().expect("there is room on it");
        let number = link.next;
        link.frames.insert(number, (out.at, parts.len()));
        for data in parts {
            let id = frame::message_id(&data, 0);
            self.own.insert(u128::from_be_bytes(id));
            link.messages.insert(link.next, number);
            let (token, shard, id) = (link.next, out.shard, frame::id_text(&id));
            link.wire.push_back(Packet {
                token,
                shard,
                id,
                data,
            });
            link.next += 1;
        }
        if mutation::is(Mutation::MarksClearedOnSend) {
            if let Some(up_to) = self.outbox.acknowledged(out.at) {
                self.db().acknowledged(up_to);
            }
        }
        Ok(true)
    }

    /// The next acknowledgement arrives.
    pub fn take_ack(&mut self, broker: &Broker) {
        let Some((token, shard, seq, id)) = self.link.as_mut().and_then(|l| l.acks.pop_front())
        else {
            return;
        };
        if mutation::is(Mutation::AckMovesPosition) {
            let stream = &broker.streams[shard as usize - 1].name;
            let known = self.db().position(stream);
            if known.seq < seq {
                self.db()
                    .move_position(stream, Position { seq, id, ..known });
            }
        }
        let link = self.link.as_mut().expect("just seen");
        let Some(number) = link.messages.remove(&token) else {
            return;
        };
        let Some((at, left)) = link.frames.get_mut(&number) else {
            return;
        };
        let at = *at;
        *left -= 1;
        if *left > 0 {
            return;
        }
        link.frames.remove(&number);
        if let Some(up_to) = self.outbox.acknowledged(at) {
            self.db().acknowledged(up_to);
        }
    }

    /// `Publisher::drop_link`.
    pub fn drop_link(&mut self) {
        self.link = None;
        self.outbox.clear();
        if let Some(db) = &mut self.db {
            db.stop_live();
        }
    }

    /// `Consumer::read` up to its loop, with `place`.
    pub fn connect_reader(&mut self, shard: usize, broker: &Broker) -> Step<()> {
        let stream = &broker.streams[shard];
        let mut position = self.db().position(&stream.name);
        if is_other_stream(broker, shard, &position) && !mutation::is(Mutation::NoLookUp) {
            position = Position {
                gap: position.gap,
                ..Position::default()
            };
            self.db().mark_all_again().map_err(failed)?;
        }
        position.created = stream.created.clone();
        let next = position.seq + 1;
        self.db().move_position(&stream.name, position);
        self.readers[shard] = Some(Reader {
            from: next,
            end: stream.last(),
        });
        self.at_end[shard] = next > stream.last();
        Ok(())
    }

    pub fn drop_reader(&mut self, shard: usize) {
        self.readers[shard] = None;
        self.at_end[shard] = false;
    }

    /// One fetch of up to `limit` messages, and one transaction for them.
    pub fn read(&mut self, shard: usize, limit: usize, broker: &Broker) -> Step<Option<Read>> {
        let Some(reader) = self.readers[shard] else {
            return Ok(None);
        };
        let stream = &broker.streams[shard];
        let fetched: Vec<(u64, &Message)> = stream
            .messages
            .iter()
            .enumerate()
            .map(|(i, m)| (i as u64 + 1, m))
            .skip(reader.from as usize - 1)
            .take(limit)
            .collect();
        let Some((_, newest)) = fetched.last() else {
            self.at_end[shard] |= reader.from > reader.end;
            return Ok(None);
        };
        let newest = newest.time_ms;
        let unpacked: Vec<_> = fetched
            .iter()
            .map(|(_, m)| unpack(&m.data, MAX_FRAME_BYTES))
            .collect();
        let mut arrived = Vec::new();
        for ((seq, message), raw) in fetched.iter().zip(&unpacked) {
            let number = u128::from_str_radix(&message.id, 16).unwrap_or(0);
            let content = match raw {
                _ if self.own.contains(&number) => Content::Own,
                Ok(raw) => Content::Frame(Frame::decode(raw).map_err(|e| e.to_string())?),
                Err(e) => return Err(e.to_string()),
            };
            arrived.push(Arrived {
                seq: *seq,
                id: &message.id,
                content,
            });
        }
        self.db().heard_broker_time(newest);
        let own = arrived
            .iter()
            .take_while(|a| matches!(a.content, Content::Own))
            .count();
        let read = if own > 0 {
            let last = &arrived[own - 1];
            let known = self.db().position(&stream.name);
            let position = Position {
                seq: last.seq,
                id: last.id.to_owned(),
                ..known
            };
            self.db().move_position(&stream.name, position);
            Read {
                messages: own,
                captured: Captured::default(),
            }
        } else {
            let mut applied = self.db().apply(&stream.name, &arrived).map_err(failed)?;
            let captured = Captured {
                frames: applied.captured.frames.clone(),
                ..applied.captured
            };
            self.hand_over(&mut applied.captured);
            Read {
                messages: applied.messages,
                captured,
            }
        };
        let from = reader.from + read.messages as u64;
        self.readers[shard] = Some(Reader { from, ..reader });
        self.at_end[shard] |= from > reader.end;
        Ok(Some(read))
    }
}

/// `Consumer::is_other_stream`.
fn is_other_stream(broker: &Broker, shard: usize, position: &Position) -> bool {
    let stream = &broker.streams[shard];
    position.seq != 0
        && (!position.created.is_empty() && position.created != stream.created
            || position.seq > stream.last()
            || !position.id.is_empty() && stream.id(position.seq) != position.id)
}

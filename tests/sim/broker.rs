//! The streams of a broker that loses and forgets messages.

use std::collections::VecDeque;
use std::sync::Arc;

/// Number of message ids by which a stream recognises a repetition.
const REMEMBERED: usize = 64;

#[derive(Clone)]
pub struct Message {
    pub id: String,
    pub time_ms: i64,
    pub data: Arc<Vec<u8>>,
}

/// One shard's stream. Sequences begin at 1.
pub struct Stream {
    pub name: String,
    pub created: String,
    /// The broker's time, as the stream tells it.
    pub now_ms: Option<i64>,
    /// How many messages were dropped, the oldest first.
    dropped: u64,
    messages: Vec<Message>,
    /// The dropped messages.
    gone: Vec<Message>,
    /// Id and sequence of the newest messages.
    ids: VecDeque<(String, u64)>,
}

pub struct Broker {
    pub streams: Vec<Stream>,
    /// Messages that a stream keeps.
    max_entries: usize,
    wiped: u32,
    /// The broker lost some messages and gave their numbers out again.
    pub forgot: bool,
}

impl Broker {
    pub fn new(shards: u32, max_entries: usize) -> Self {
        let mut broker = Broker {
            streams: Vec::new(),
            max_entries,
            wiped: 0,
            forgot: false,
        };
        for shard in 1..=shards {
            broker.streams.push(Stream {
                name: format!("sim-{shard}"),
                created: "created-0".into(),
                now_ms: None,
                dropped: 0,
                messages: Vec::new(),
                gone: Vec::new(),
                ids: VecDeque::new(),
            });
        }
        broker
    }

    /// Sets the time that every stream tells.
    pub fn pass(&mut self, now_ms: i64) {
        let streams = self.streams.iter_mut();
        streams.for_each(|s| s.now_ms = Some(now_ms));
    }

    /// Stores a message, unless its id is remembered. Returns its sequence, and whether it was
    /// there already.
    pub fn publish(&mut self, shard: u32, message: Message) -> (u64, bool) {
        let ids = &self.streams[shard as usize - 1].ids;
        if let Some((_, seq)) = ids.iter().find(|(id, _)| *id == message.id) {
            return (*seq, true);
        }
        (self.store(shard, message), false)
    }

    /// Stores a message without a look at its id.
    pub fn store(&mut self, shard: u32, message: Message) -> u64 {
        let stream = &mut self.streams[shard as usize - 1];
        stream.messages.push(message);
        stream.remember(stream.last());
        if stream.messages.len() > self.max_entries {
            let gone = stream.messages.remove(0);
            stream.gone.push(gone);
            stream.dropped += 1;
        }
        stream.last()
    }

    /// Loses the last `count` messages: a power cut takes messages that were acknowledged and not
    /// synced.
    pub fn forget(&mut self, shard: usize, count: usize) {
        let messages = &mut self.streams[shard].messages;
        self.forgot |= count > 0 && !messages.is_empty();
        messages.truncate(messages.len().saturating_sub(count));
    }

    /// Fills the memory of ids from the messages that are there, as a start does. While the server
    /// runs, ids outlive their messages (after a purge, for example).
    pub fn find_ids(&mut self) {
        for stream in &mut self.streams {
            stream.ids.clear();
            let from = stream.last().saturating_sub(REMEMBERED as u64) + 1;
            (from.max(stream.first())..=stream.last()).for_each(|seq| stream.remember(seq));
        }
    }

    pub fn wipe(&mut self) {
        self.wiped += 1;
        for stream in &mut self.streams {
            stream.messages.clear();
            stream.gone.clear();
            stream.dropped = 0;
            stream.ids.clear();
            stream.created = format!("created-{}", self.wiped);
        }
    }
}

impl Stream {
    fn remember(&mut self, seq: u64) {
        let id = self.id(seq).to_owned();
        self.ids.push_back((id, seq));
        if self.ids.len() > REMEMBERED {
            self.ids.pop_front();
        }
    }

    /// Sequence of the oldest message that is still there, or of the next one if there is none.
    pub fn first(&self) -> u64 {
        self.dropped + 1
    }

    pub fn last(&self) -> u64 {
        self.dropped + self.messages.len() as u64
    }

    /// Messages from a sequence on, or from the oldest that is there.
    pub fn from(&self, seq: u64) -> impl Iterator<Item = (u64, &Message)> {
        let skip = seq.saturating_sub(self.first());
        (self.first()..).zip(&self.messages).skip(skip as usize)
    }

    /// All messages up to a sequence, dropped or not.
    pub fn stored(&self, seq: u64) -> impl Iterator<Item = &Message> {
        self.gone.iter().chain(&self.messages).take(seq as usize)
    }

    pub fn id(&self, seq: u64) -> &str {
        let message = self.from(seq).next().filter(|(found, _)| *found == seq);
        message.map_or("", |(_, m)| &m.id)
    }
}

//! The streams, as a broker that is not to be trusted keeps them.

use std::collections::VecDeque;
use std::sync::Arc;

/// Ids that are remembered to recognise a repetition.
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
    pub messages: Vec<Message>,
    /// Id and sequence of the newest messages.
    ids: VecDeque<(String, u64)>,
}

pub struct Broker {
    pub streams: Vec<Stream>,
    wiped: u32,
}

impl Broker {
    pub fn new(shards: u32) -> Self {
        let mut broker = Broker {
            streams: Vec::new(),
            wiped: 0,
        };
        for shard in 1..=shards {
            broker.streams.push(Stream {
                name: format!("sim-{shard}"),
                created: "created-0".into(),
                messages: Vec::new(),
                ids: VecDeque::new(),
            });
        }
        broker
    }

    /// Stores a message, unless its id is remembered. Returns its sequence.
    pub fn publish(&mut self, shard: u32, message: Message) -> u64 {
        let ids = &self.streams[shard as usize - 1].ids;
        if let Some((_, seq)) = ids.iter().find(|(id, _)| *id == message.id) {
            return *seq;
        }
        self.store(shard, message)
    }

    /// Stores a message, whatever its id.
    pub fn store(&mut self, shard: u32, message: Message) -> u64 {
        let stream = &mut self.streams[shard as usize - 1];
        stream.messages.push(message);
        stream.remember(stream.last());
        stream.last()
    }

    /// A power cut takes what was acknowledged and not yet synced.
    pub fn forget(&mut self, shard: usize, count: usize) {
        let messages = &mut self.streams[shard].messages;
        messages.truncate(messages.len().saturating_sub(count));
    }

    /// Ids are remembered in memory: a start finds them in what there is. Without one (somebody
    /// purged a stream) they outlive their messages.
    pub fn find_ids(&mut self) {
        for stream in &mut self.streams {
            stream.ids.clear();
            let from = stream.last().saturating_sub(REMEMBERED as u64);
            (from + 1..=stream.last()).for_each(|seq| stream.remember(seq));
        }
    }

    pub fn wipe(&mut self) {
        self.wiped += 1;
        for stream in &mut self.streams {
            stream.messages.clear();
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

    pub fn last(&self) -> u64 {
        self.messages.len() as u64
    }

    pub fn id(&self, seq: u64) -> &str {
        let message = seq
            .checked_sub(1)
            .and_then(|i| self.messages.get(i as usize));
        message.map_or("", |m| &m.id)
    }
}

//! The streams, as a broker that is not to be trusted keeps them.

use std::sync::Arc;

/// Messages back from the end in which a repeated id is recognised.
const DUPLICATES: usize = 64;

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
            });
        }
        broker
    }

    /// Stores a message, unless it just did. Returns its sequence.
    pub fn publish(&mut self, shard: u32, message: Message) -> u64 {
        let messages = &mut self.streams[shard as usize - 1].messages;
        let recent = messages.len().saturating_sub(DUPLICATES);
        if let Some(i) = messages[recent..].iter().position(|m| m.id == message.id) {
            return (recent + i + 1) as u64;
        }
        messages.push(message);
        messages.len() as u64
    }

    /// A power cut takes what was acknowledged and not yet synced.
    pub fn forget(&mut self, shard: usize, count: usize) {
        let messages = &mut self.streams[shard].messages;
        messages.truncate(messages.len().saturating_sub(count));
    }

    pub fn wipe(&mut self) {
        self.wiped += 1;
        for stream in &mut self.streams {
            stream.messages.clear();
            stream.created = format!("created-{}", self.wiped);
        }
    }
}

impl Stream {
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

//! Connections to the broker, as the threads need them: each its own, made anew when it broke.
//!
//! What all nodes must share stands in a bucket of the broker; a node that is set up otherwise is
//! told so by name instead of writing into the wrong streams.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::cluster::registry::{KeyValueRegistry, PUBLISHER};
use crate::model::frame;
use crate::stream::client::{Client, ClientOptions};
use crate::stream::jetstream::{StreamOptions, ensure_streams, stream_name};
use crate::stream::key_value::KeyValue;
use crate::stream::reader::JetStreamReader;
use crate::stream::writer::JetStreamWriter;
use crate::stream::{Reader, StreamError, Writer};

/// A try to connect that takes longer has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the nodes of a cluster leave word for each other.
pub fn meta_bucket(stream_prefix: &str) -> String {
    format!("{stream_prefix}-meta")
}

/// Makes connections.
pub trait Broker: Send + Sync {
    fn writer(&self) -> Result<Box<dyn Writer>, StreamError>;
    /// For one shard, from 1.
    fn reader(&self, shard: u32) -> Result<Box<dyn Reader>, StreamError>;
    /// How many shards there are.
    fn shards(&self) -> u32;
    /// Name of a shard's stream.
    fn stream(&self, shard: u32) -> String;
}

/// The real one.
pub struct JetStreamBroker {
    /// None while our own server is not up.
    client: Mutex<Option<ClientOptions>>,
    streams: StreamOptions,
    /// Who publishes here.
    node: AtomicU64,
    /// The newest connection of [`Self::registry`], for whoever needs one now and then.
    shared: Mutex<Option<Client>>,
}

impl JetStreamBroker {
    pub fn new(client: Option<ClientOptions>, streams: StreamOptions, node: u64) -> Self {
        JetStreamBroker {
            node: AtomicU64::new(node),
            shared: Mutex::new(None),
            client: Mutex::new(client),
            streams,
        }
    }

    /// Our own server is up, at another address each time; or it is gone.
    pub fn set_client(&self, options: Option<ClientOptions>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = options;
    }

    /// A connection to a broker that has the streams, set up as here.
    fn prepared(&self) -> Result<Client, StreamError> {
        let client = self.connect()?;
        self.check_shared_settings(&client)?;
        ensure_streams(&client, &self.streams)?;
        Ok(client)
    }

    /// How many servers keep a copy of each stream.
    pub fn replicas(&self) -> u8 {
        self.streams.replicas as u8
    }

    /// What the nodes tell each other about snapshots.
    pub fn registry(
        &self,
        leader_ttl: Duration,
        token: &str,
    ) -> Result<KeyValueRegistry, StreamError> {
        let prefix = &self.streams.stream_prefix;
        let client = self.prepared()?;
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = client.beside().ok();
        KeyValueRegistry::open(
            client,
            prefix,
            self.streams.replicas,
            leader_ttl,
            token.to_owned(),
        )
    }

    /// A connection for a few words now and then: that of the registry if there is one, else a new
    /// one. Each connection costs memory and wakes up now and then.
    pub fn beside(&self) -> Result<Client, StreamError> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = shared.take().filter(Client::is_open);
        shared.map_or_else(|| self.prepared(), Ok)
    }

    /// A connection.
    pub fn connect(&self) -> Result<Client, StreamError> {
        let options = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(options) = options else {
            return Err(StreamError::Disconnected(
                "our nats-server is not up yet".into(),
            ));
        };
        Client::connect(&options, CONNECT_TIMEOUT)
    }

    /// Every node of a cluster must agree on these.
    fn check_shared_settings(&self, client: &Client) -> Result<(), StreamError> {
        let bucket = meta_bucket(&self.streams.stream_prefix);
        let kv = KeyValue::ensure_bucket(client, &bucket, self.streams.replicas, None)?;
        let ours = serde_json::json!({
            "format": frame::FORMAT,
            "replication_log.shards": self.streams.shards,
            "replication_log.compress": self.streams.compress,
            "nats.subject_prefix": self.streams.subject_prefix,
        });
        let text = ours.to_string().into_bytes();
        if kv.create("settings", &text)? {
            return Ok(());
        }
        let Some((stored, _)) = kv.get("settings")? else {
            return Err(StreamError::Refused(
                "the shared settings were just deleted".into(),
            ));
        };
        let theirs: serde_json::Value = serde_json::from_slice(&stored).unwrap_or_default();
        let differs = |(key, value): &(&String, &serde_json::Value)| theirs.get(key) != Some(value);
        let own = ours.as_object().into_iter().flatten();
        let differences: Vec<String> = own
            .filter(differs)
            .map(|(key, value)| {
                let theirs = theirs
                    .get(key)
                    .map_or("nothing".into(), ToString::to_string);
                format!("{key} is {value} here and {theirs} on the other nodes")
            })
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        // Streams with and without compression have different names, but one set of subjects.
        let compress = "replication_log.compress";
        let same_streams = theirs.get(compress) == ours.get(compress);
        let known = theirs["replication_log.shards"].as_u64();
        let is_fewer = known.is_some_and(|shards| shards > u64::from(self.streams.shards));
        if self.streams.update_existing && same_streams && !is_fewer {
            log::warn!(
                "update_existing: the shared settings are changed: {}",
                differences.join(", ")
            );
            kv.put("settings", &text)?;
            return Ok(());
        }
        let otherwise = match (same_streams, is_fewer) {
            (false, _) => "; compress cannot be changed while the streams exist",
            // Nobody would read what is in the others for those who are away.
            (_, true) => "; shards can be raised, not lowered",
            _ => ", or set replication_log.update_existing on this one to change it for all",
        };
        Err(StreamError::Fatal(format!(
            "this node is not set up like the others: {}. Give all nodes the same value{otherwise}",
            differences.join(", ")
        )))
    }
}

impl Broker for JetStreamBroker {
    fn writer(&self) -> Result<Box<dyn Writer>, StreamError> {
        let client = self.prepared()?;
        // Known before the first message: whoever misses some asks whose they may have been.
        let bucket = meta_bucket(&self.streams.stream_prefix);
        let name = format!("{PUBLISHER}{}", self.node.load(Ordering::Relaxed));
        KeyValue::open(&client, &bucket).create(&name, b"")?;
        Ok(Box::new(JetStreamWriter::new(client, &self.streams)?))
    }

    fn reader(&self, shard: u32) -> Result<Box<dyn Reader>, StreamError> {
        Ok(Box::new(JetStreamReader::new(
            self.prepared()?,
            self.stream(shard),
        )?))
    }

    fn shards(&self) -> u32 {
        self.streams.shards
    }

    fn stream(&self, shard: u32) -> String {
        stream_name(&self.streams, shard)
    }
}

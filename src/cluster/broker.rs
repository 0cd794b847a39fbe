//! The connection to the broker. Threads share one, because each costs two threads more. A thread
//! whose request failed makes a new one, which the others share as soon as they need one.
//!
//! Transfers of snapshots have connections of their own ([`JetStreamBroker::connect`]): they keep a
//! slow connection busy for minutes, and are rare.
//!
//! A bucket of the broker stores the settings that all nodes must share. A node with different
//! settings gets an error that names them, instead of writing to the wrong streams.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::cluster::dialer::Dialer;
use crate::cluster::registry::{KeyValueRegistry, PUBLISHER};
use crate::model::frame;
use crate::stream::bandwidth::Bandwidth;
use crate::stream::client::{Client, ClientOptions};
use crate::stream::jetstream::{StreamOptions, ensure_streams, stream_name};
use crate::stream::key_value::KeyValue;
use crate::stream::reader::JetStreamReader;
use crate::stream::writer::JetStreamWriter;
use crate::stream::{Reader, StreamError, Writer};

/// Deadline of an attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Name of the bucket in which the nodes of a cluster leave information for each other.
pub fn meta_bucket(stream_prefix: &str) -> String {
    format!("{stream_prefix}-meta")
}

/// Makes connections to the streams. Simulations bring their own.
pub trait Broker: Send + Sync {
    /// A new writer to all shards. Returns `Disconnected` if the broker cannot be reached, `Fatal`
    /// if this node's settings differ from the cluster's.
    fn writer(&self) -> Result<Box<dyn Writer>, StreamError>;
    /// A new reader of one shard, counted from 1. Fails like `writer`.
    fn reader(&self, shard: u32) -> Result<Box<dyn Reader>, StreamError>;
    /// How many shards there are.
    fn shards(&self) -> u32;
    /// Name of a shard's stream; shards count from 1.
    fn stream(&self, shard: u32) -> String;
    /// Waits before the next attempt to connect, for about `least` or longer. Returns false if
    /// `stop` is closed first.
    fn pause(&self, least: Duration, stop: &Receiver<()>) -> bool {
        stop.recv_timeout(least) == Err(RecvTimeoutError::Timeout)
    }
}

/// The [`Broker`] that speaks to NATS JetStream.
pub struct JetStreamBroker {
    /// None while our own server is not up.
    client: Mutex<Option<ClientOptions>>,
    streams: StreamOptions,
    /// Id of this node, which publishes here.
    node: AtomicU64,
    /// The newest connection of those that threads share.
    shared: Mutex<Option<Client>>,
    /// When a connection may be tried.
    pub dialer: Arc<Dialer>,
}

impl JetStreamBroker {
    /// Connects to nothing yet. `client` is None while our own server is not up; `node` is the id
    /// of this node.
    pub fn new(
        client: Option<ClientOptions>,
        streams: StreamOptions,
        node: u64,
        dialer: Arc<Dialer>,
    ) -> Self {
        JetStreamBroker {
            dialer,
            node: AtomicU64::new(node),
            shared: Mutex::new(None),
            client: Mutex::new(client),
            streams,
        }
    }

    /// Sets the address after our own server has started, which changes with each start; or None
    /// when the server is gone.
    pub fn set_client(&self, options: Option<ClientOptions>) {
        let is_up = options.is_some();
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = options;
        *self.shared() = None;
        if is_up {
            self.dialer.try_now();
        }
    }

    /// The limit of bytes a second for connections; none: no limit.
    pub fn bandwidth(&self) -> Option<Arc<Bandwidth>> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client.as_ref()?.bandwidth.clone()
    }

    /// A connection to a broker that has the streams, after a check of the shared settings.
    fn prepared(&self) -> Result<Client, StreamError> {
        self.dialer.attempt(|| {
            let client = self.join()?;
            let is_fit = self.check_shared_settings(&client);
            let is_fit = is_fit.and_then(|()| ensure_streams(&client, &self.streams));
            is_fit.inspect_err(|_| client.doubt())?;
            Ok(client)
        })
    }

    /// The connection that threads share, or a new one for them.
    fn join(&self) -> Result<Client, StreamError> {
        let mut shared = self.shared();
        let sound = shared.take().filter(Client::is_sound);
        let client = sound.map_or_else(|| self.dial(), Ok)?;
        let joined = client.beside()?;
        *shared = Some(client);
        Ok(joined)
    }

    fn shared(&self) -> MutexGuard<'_, Option<Client>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of servers that keep a copy of each stream.
    pub fn replicas(&self) -> u8 {
        self.streams.replicas as u8
    }

    /// Opens the registry through which nodes share information about snapshots. The lease expires
    /// `leader_ttl` after its last renewal, and `token` identifies this process in it.
    pub fn registry(
        &self,
        leader_ttl: Duration,
        token: &str,
    ) -> Result<KeyValueRegistry, StreamError> {
        let prefix = &self.streams.stream_prefix;
        KeyValueRegistry::open(
            self.prepared()?,
            prefix,
            self.streams.replicas,
            leader_ttl,
            token.to_owned(),
        )
    }

    /// The shared connection, for occasional requests.
    pub fn beside(&self) -> Result<Client, StreamError> {
        let shared = self.shared();
        let sound = shared.as_ref().filter(|client| client.is_sound());
        let joined = sound.and_then(|client| client.beside().ok());
        drop(shared);
        joined.map_or_else(|| self.prepared(), Ok)
    }

    /// A new connection that nobody shares, without any check. Returns `Disconnected` while our own
    /// server is not up, and between two attempts to reach a broker that is away.
    pub fn connect(&self) -> Result<Client, StreamError> {
        self.dialer.permit()?;
        self.dial()
    }

    fn dial(&self) -> Result<Client, StreamError> {
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
        let client = Client::connect(&options, CONNECT_TIMEOUT)?;
        self.dialer.keep(client.closer())?;
        Ok(client)
    }

    /// Compares this node's settings with those that the cluster shares, or stores them if there
    /// are none.
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
        // Streams with and without compression have different names, but the same subjects.
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
            // Nodes that are away have not read the other streams to the end, and would never read
            // the rest.
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
        // Registered before the first message: a node that misses messages looks up which nodes may
        // have published them.
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

    fn pause(&self, least: Duration, stop: &Receiver<()>) -> bool {
        self.dialer.wait(least, stop)
    }
}

//! The connection to the broker. Threads share one, because each costs two threads more. A thread
//! whose request failed makes a new one, which the others share as soon as they need one.
//!
//! Transfers of snapshots have connections of their own ([`JetStreamBroker::connect`]): they keep a
//! slow connection busy for minutes, and are rare.
//!
//! A bucket of the broker stores the settings that all nodes must share. A node with different
//! settings gets an error that names them, instead of writing to the wrong streams.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::cluster::dialer::Dialer;
use crate::cluster::key_change;
use crate::cluster::registry::{KeyValueRegistry, PUBLISHER};
use crate::cluster::shared_settings::{COMPRESS, Comparison, SHARDS, compare};
use crate::model::frame;
use crate::stream::bandwidth::Bandwidth;
use crate::stream::client::{Client, ClientOptions};
use crate::stream::jetstream::{StreamOptions, ensure_streams, stream_name};
use crate::stream::key_value::KeyValue;
use crate::stream::newer_key;
use crate::stream::reader::JetStreamReader;
use crate::stream::writer::JetStreamWriter;
use crate::stream::{Reader, StreamError, Writer};

/// Key of the settings that all nodes share.
pub(super) const SETTINGS: &str = "settings";

/// Deadline of an attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node waits for that makes nothing itself.
const ONLY_READS: &str = "a node with publish = false makes nothing at the broker, and waits for a \
                          node that publishes";

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
    /// Why the settings that the cluster shares are not those of this node, which goes on with its
    /// own; none if they are the same.
    fn settings_differ(&self) -> Option<String> {
        None
    }
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
    /// This node publishes nothing, and its login may not: it makes and writes nothing here.
    only_reads: bool,
    /// This process has met the cluster with its settings.
    has_agreed: AtomicBool,
    /// See [`Broker::settings_differ`].
    differs: Mutex<Option<String>>,
    /// The newest connection of those that threads share.
    shared: Mutex<Option<Client>>,
    /// When a connection may be tried.
    pub dialer: Arc<Dialer>,
}

impl JetStreamBroker {
    /// Connects to nothing yet. `client` is None while our own server is not up; `node` is the id
    /// of this node, and whether it only reads.
    pub fn new(
        client: Option<ClientOptions>,
        streams: StreamOptions,
        (node, only_reads): (u64, bool),
        dialer: Arc<Dialer>,
    ) -> Self {
        JetStreamBroker {
            dialer,
            node: AtomicU64::new(node),
            only_reads,
            has_agreed: AtomicBool::new(false),
            differs: Mutex::new(None),
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
            self.take_part(&client).inspect_err(|_| client.doubt())?;
            Ok(client)
        })
    }

    /// Agrees with the other nodes on keys and settings, and makes what is missing on the broker.
    fn take_part(&self, client: &Client) -> Result<(), StreamError> {
        let bucket = meta_bucket(&self.streams.stream_prefix);
        let bucket = match self.only_reads {
            true => KeyValue::open(client, &bucket),
            false => KeyValue::ensure_bucket(client, &bucket, self.streams.replicas, None)?,
        };
        let seal = client.seal();
        if !seal.keys().is_empty() {
            newer_key::follow(&bucket, seal)?;
            if !self.only_reads {
                key_change::tell(&bucket, seal)?;
                key_change::renew(&bucket, seal, self.node.load(Ordering::Relaxed))?;
            }
        }
        self.check_shared_settings(&bucket)?;
        if !self.only_reads {
            ensure_streams(client, &self.streams)?;
        }
        if !seal.keys().is_empty() && (seal.requires() || !self.only_reads) {
            let streams = (1..=self.streams.shards).map(|shard| self.stream(shard));
            key_change::note_open(&bucket, client, &streams.collect::<Vec<_>>())?;
        }
        Ok(())
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
            (token.to_owned(), self.only_reads),
        )
    }

    /// Whether this node makes and writes nothing at the broker.
    pub fn only_reads(&self) -> bool {
        self.only_reads
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
    /// are none. A node that has met the cluster keeps its settings whatever others write: one
    /// write to the bucket must not end every daemon.
    fn check_shared_settings(&self, bucket: &KeyValue<'_>) -> Result<(), StreamError> {
        let ours = serde_json::json!({
            "format": frame::FORMAT,
            SHARDS: self.streams.shards,
            COMPRESS: self.streams.compress,
            "nats.subject_prefix": self.streams.subject_prefix,
        });
        let text = ours.to_string().into_bytes();
        if !self.only_reads && bucket.create(SETTINGS, &text)? {
            return self.agree(None);
        }
        let stored = match bucket.get(SETTINGS) {
            Err(StreamError::Refused(text)) if self.only_reads => {
                return Err(StreamError::Refused(format!("{text}; {ONLY_READS}")));
            }
            stored => stored?,
        };
        let Some((stored, revision)) = stored else {
            return Err(StreamError::Refused(match self.only_reads {
                true => format!("there are no shared settings; {ONLY_READS}"),
                false => "the shared settings were just deleted".into(),
            }));
        };
        let (differences, is_possible) = match compare(&ours, &stored) {
            Comparison::Same => return self.agree(None),
            Comparison::Unreadable(why) => {
                // As if there were none: what was there made no node take part.
                let name = meta_bucket(&self.streams.stream_prefix);
                if self.only_reads {
                    let text = format!("bucket {name}, key settings: {why}; {ONLY_READS}");
                    return Err(StreamError::Refused(text));
                }
                log::error!("bucket {name}, key settings: {why}; they are written anew");
                return match bucket.update(SETTINGS, &text, revision)? {
                    true => self.agree(None),
                    false => Err(StreamError::Refused(
                        "the shared settings just changed".into(),
                    )),
                };
            }
            Comparison::Differs {
                differences,
                is_possible,
            } => (differences, is_possible),
        };
        if self.streams.update_existing && is_possible && !self.only_reads {
            log::warn!("update_existing: the shared settings are changed: {differences}");
            bucket.put(SETTINGS, &text)?;
            return self.agree(None);
        }
        let text = format!("this node is not set up like the others: {differences}");
        match self.has_agreed.load(Ordering::Relaxed) {
            true => self.agree(Some(format!(
                "{text}; it goes on with its own settings until it is started again"
            ))),
            false => Err(StreamError::Fatal(text)),
        }
    }

    /// Notes that this node takes part with its settings, and how they differ from what is stored.
    fn agree(&self, differs: Option<String>) -> Result<(), StreamError> {
        self.has_agreed.store(true, Ordering::Relaxed);
        let mut known = self.differs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = differs.as_ref().filter(|text| known.as_ref() != Some(text)) {
            log::error!("{text}");
        }
        *known = differs;
        Ok(())
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

    fn settings_differ(&self) -> Option<String> {
        let differs = self.differs.lock().unwrap_or_else(PoisonError::into_inner);
        differs.clone()
    }

    fn pause(&self, least: Duration, stop: &Receiver<()>) -> bool {
        self.dialer.wait(least, stop)
    }
}

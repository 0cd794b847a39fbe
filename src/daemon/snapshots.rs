//! The daemon's part in snapshots: starts their thread, and fetches a database that is missing.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use crate::cluster::broker::{JetStreamBroker, meta_bucket};
use crate::cluster::registry;
use crate::config::Config;
use crate::config::snapshot::StoreSettings as Kind;
use crate::db_file::access::FileAccess;
use crate::mirror::Mirror;
use crate::model::backoff::Backoff;
use crate::model::manifest::SnapshotEntry;
use crate::seal::Seal;
use crate::shared::Shared;
use crate::snapshot::error::TransferError;
use crate::snapshot::thread::{Inputs, Places, Progress, SnapshotRequest};
use crate::snapshot::transfer;
use crate::snapshot::{say_code, scheduler, thread};
use crate::store::{self, Store, StoreError};
use crate::stream::key_value::KeyValue;
use crate::thread::{Exited, spawn_detached};

/// How long a new node waits for the broker or the store to say whether there is a snapshot. Then
/// it begins with an empty database, which merges a snapshot later.
const BRING_WITHIN: Duration = Duration::from_secs(10);

/// Wait before a damaged snapshot is fetched again: it stays damaged until a new one is uploaded.
const DAMAGED_AGAIN: Duration = Duration::from_secs(4);

/// How long the search for a snapshot has to end after a signal.
const END_WITHIN: Duration = Duration::from_secs(1);

const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Whether this node makes or merges snapshots at all.
pub fn are_kept(config: &Config) -> bool {
    config.snapshot.enabled && config.replicate
}

/// A random id for a node that has neither an id nor a database to keep it in.
pub fn random_node_id() -> u64 {
    let random = RandomState::new().hash_one(Instant::now());
    random >> 1 | 1
}

/// Starts the thread that makes and merges snapshots.
pub fn start(
    config: &Config,
    shared: &Arc<Shared>,
    broker: &Arc<JetStreamBroker>,
    (stop, asks, is_awaited): (Receiver<()>, Receiver<SnapshotRequest>, bool),
    exits: &Sender<Exited>,
) -> JoinHandle<()> {
    let options = scheduler::SchedulerOptions {
        cluster: config.common.stream_prefix.clone(),
        max_entries: config.replication_log.entries(),
        interval: config.snapshot.interval,
        leader_ttl: config.snapshot.leader_ttl,
        may_make: config.publish && config.replicate && config.snapshot.make,
        scratch: config.snapshot.scratch.clone(),
        selection: config.tables.described(),
    };
    let token = format!("{:016x}", random_node_id());
    let (ttl, place, prefix, seal) = (
        config.snapshot.leader_ttl,
        place(config, broker),
        config.common.stream_prefix.clone(),
        config.seal.clone(),
    );
    let (to_registry, to_store) = (broker.clone(), broker.clone());
    let places = Places {
        registry: Box::new(move || to_registry.registry(ttl, &token)),
        store: Box::new(move || open_store(&place, &prefix, &seal, &to_store)),
        dialer: broker.dialer.clone(),
    };
    let inputs = Inputs {
        stop,
        asks,
        is_awaited,
    };
    let backoff = Backoff::new(Duration::from_millis(500), LONGEST_BACKOFF);
    thread::start(shared.clone(), options, places, inputs, backoff, exits)
}

/// Result of the wait for a database.
#[derive(Debug, PartialEq, Eq)]
pub enum Brought {
    /// The file exists, or may be created.
    GoOn,
    /// The snapshot of that name is now the database.
    Snapshot(String),
    /// A signal asked for the end.
    Stopped,
}

/// Puts the newest snapshot in place of the missing database file, if there is one. That runs on a
/// thread of its own: broker or store may keep it waiting, and a signal ends the wait.
pub fn bring_database(
    config: &Config,
    broker: &Arc<JetStreamBroker>,
    signals: &Receiver<()>,
) -> Brought {
    let ((stop, stopped), (tell, told)) = (bounded(0), bounded(1));
    let (config, broker) = (config.clone(), broker.clone());
    let search = move || drop(tell.send(search_snapshot(&config, &broker, &stopped)));
    if let Err(e) = spawn_detached("first-snapshot", search) {
        log::warn!("this node begins without a snapshot: {e}");
        return Brought::GoOn;
    }
    select! {
        recv(told) -> brought => brought.unwrap_or(Brought::GoOn),
        recv(signals) -> _ => {
            drop(stop);
            let _ = told.recv_timeout(END_WITHIN); // it removes its scratch file
            Brought::Stopped
        }
    }
}

fn search_snapshot(config: &Config, broker: &JetStreamBroker, stop: &Receiver<()>) -> Brought {
    let deadline = Instant::now() + BRING_WITHIN;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    let mut progress = Progress::new(stop, "first snapshot");
    log::info!(
        "there is no database at {}: this node searches for a snapshot to begin with, for {} s",
        config.db_path.display(),
        BRING_WITHIN.as_secs()
    );
    loop {
        if config.db_path.exists() {
            return Brought::GoOn; // the application was faster
        }
        let mut wait = backoff.wait();
        match bring(config, broker, &mut progress) {
            Ok(Some(name)) => return Brought::Snapshot(name),
            Ok(None) => return Brought::GoOn,
            Err(TransferError::Stopped) => return Brought::Stopped,
            Err(e) if Instant::now() >= deadline => {
                log::warn!("this node begins without a snapshot: {e}");
                return Brought::GoOn;
            }
            Err(
                TransferError::Bad { .. }
                | TransferError::NotOurs { .. }
                | TransferError::Database(_),
            ) => wait = DAMAGED_AGAIN,
            Err(e) => log::debug!("searching for a snapshot: {e}"),
        }
        if stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return Brought::Stopped;
        }
    }
}

/// Name of the snapshot put in place; none if there is no snapshot, or if a file appeared.
fn bring(
    config: &Config,
    broker: &JetStreamBroker,
    progress: &mut Progress<'_>,
) -> Result<Option<String>, TransferError> {
    let prefix = &config.common.stream_prefix;
    let store = open_store(&place(config, broker), prefix, &config.seal, broker);
    let mut store = match store {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        store => store?,
    };
    let mut manifest = transfer::read_manifest(&mut *store, prefix)?;
    if let Some(manifest) = &mut manifest {
        let announced = announced(config, broker)?;
        for name in manifest.anchor(&announced) {
            log::warn!(
                "snapshot {name} is not taken: the store lists it, and no node announced it"
            );
        }
    }
    let mut last = Ok(None);
    let access = FileAccess::of_database(&config.db_path);
    for entry in manifest.into_iter().flat_map(|m| m.snapshots) {
        let place = (&*config.db_path, &access);
        let fetched = transfer::fetch(&entry, place, &mut *store, progress).and_then(|file| {
            let names = transfer::code(file.path(), config.snapshot.takes_code)?;
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            say_code(&names, config.snapshot.takes_code);
            transfer::put_in_place(file, &config.db_path, progress)
        });
        match fetched {
            Ok(false) => {
                log::info!(
                    "{} appeared in the meantime: this node merges a snapshot into it",
                    config.db_path.display()
                );
                return Ok(None);
            }
            Ok(true) => {
                let sequences = entry.streams.iter().map(|(s, p)| (s.clone(), p.seq));
                let sequences: Vec<_> = sequences.collect();
                Mirror::new(&config.seq_map_path, &config.db_path).write(&sequences);
                log::info!(
                    "{} is new: it begins with snapshot {} of node {}",
                    config.db_path.display(),
                    entry.name,
                    entry.node
                );
                return Ok(Some(entry.name));
            }
            Err(e @ (TransferError::Bad { .. } | TransferError::Database(_))) => {
                log::error!("{e}");
                last = Err(e);
            }
            Err(e) => return Err(e),
        }
    }
    last
}

/// The snapshots that nodes announced at the broker.
fn announced(
    config: &Config,
    broker: &JetStreamBroker,
) -> Result<Vec<SnapshotEntry>, TransferError> {
    let bucket = meta_bucket(&config.common.stream_prefix);
    let ask = || {
        let client = broker.connect()?;
        registry::announced(&KeyValue::open(&client, &bucket))
    };
    ask().map_err(|e| {
        TransferError::Store(StoreError::failed(
            "the broker",
            "ask for announced snapshots",
            e,
        ))
    })
}

fn open_store(
    place: &Kind,
    prefix: &str,
    seal: &Arc<Seal>,
    broker: &JetStreamBroker,
) -> Result<Box<dyn Store>, StoreError> {
    let open = match broker.only_reads() {
        true => store::open_existing,
        false => store::open,
    };
    let store = open(place, prefix, &|| broker.connect())?;
    let store = store::limited(store, broker.bandwidth().as_ref());
    Ok(store::sealed(store, seal, prefix))
}

/// The store of snapshots. In a cluster of our own servers it has as many copies as the streams:
/// with one copy, a server that is away would take all snapshots with it.
pub fn place(config: &Config, broker: &JetStreamBroker) -> Kind {
    let mut place = config.snapshot.store.clone();
    if let (Kind::Nats(nats), true) = (&mut place, config.nats.urls.is_empty()) {
        nats.replicas = nats.replicas.max(broker.replicas());
        nats.max_bytes = nats.max_bytes.or(config.nats.snapshot_share());
    }
    place
}

//! Starts the threads, watches them and stops them in order.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};

use crate::cli::Flags;
use crate::clock::{SystemClock, local_second_of_day};
use crate::cluster::offline::Offline;
use crate::config::Config;
use crate::config::node_id::{MACHINE_ID_FILES, derive};
use crate::control::{Context, Doors};
use crate::database::{Database, DatabaseError, Settings};
use crate::model::backoff::Backoff;
use crate::poller::Poller;
use crate::snapshot::scratch;
use crate::snapshot::thread::SnapshotRequest;
use crate::stream::bandwidth::Bandwidth;
use crate::stream::jetstream::stream_name;
use crate::thread::{Exited, Outcome};
use crate::{inspect, lock, logging, memory, mirror};

mod membership;
pub mod net;
mod network;
mod reread;
mod signals;
pub mod snapshots;
mod status_waits;
mod supervisor;
mod threads;

use net::Net;
use network::Network;
use reread::Reread;
use signals::Heard;
use snapshots::Brought;
use status_waits::StatusWaits;
use supervisor::{PidFile, Supervisor};
use threads::Threads;

/// If one failed thread ended the others, its cause arrives within this time.
const CAUSE_WITHIN: Duration = Duration::from_millis(200);

/// Longest wait for a snapshot before sleep: a broker that is away must not keep us awake.
const LAST_SNAPSHOT: Duration = Duration::from_secs(60);

/// Longest time between two looks at the clock for `sync_window`.
const LOOK_AT_WINDOW: Duration = Duration::from_secs(600);

/// The cause of an end that nobody requested.
#[derive(Debug)]
pub struct Failure(pub String);

/// An event, besides a signal, that ends the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// No event; or `sleep_timeout`, if configured.
    Told,
    /// A snapshot is saved.
    SnapshotSaved,
}

/// Runs until SIGTERM, SIGINT or SIGQUIT, until a thread fails, or until the event of `until`.
pub fn run(config: &Config, options: &Flags, until: Until) -> Result<(), Failure> {
    let mut node_id = options
        .node_id
        .or(config.node_id)
        .or_else(|| derive(&MACHINE_ID_FILES));
    let log_file = logging::start(&config.logging, node_id).map_err(Failure)?;
    for text in &config.exposed {
        log::warn!("{text}");
    }
    memory::require_room().map_err(Failure)?;
    let (exits, exited) = unbounded();
    let poller = Poller::start(&exits).map_err(|e| Failure(format!("waiting for events: {e}")))?;
    say_trust(config);
    let (ask, asks) = unbounded();
    let waiting_is_over = Arc::new(AtomicBool::new(false));
    let opening = Arc::new(AtomicBool::new(true));
    let dialer = Arc::new(net::dialer(config));
    let heard = Heard {
        reread: Reread::new(options, config, log_file),
        network: Network::watch(dialer.clone()),
        ask: ask.clone(),
        opening: opening.clone(),
        waiting_is_over: waiting_is_over.clone(),
    };
    let signals = signals::listen(heard, &poller).map_err(|e| Failure(format!("signals: {e}")))?;
    if until == Until::SnapshotSaved {
        require_something_to_save(config).map_err(Failure)?;
    }
    let _lock = take_lock(config, until, &waiting_is_over)?;
    let seq_map_path = mirror::place(&config.seq_map_path, &config.db_path).map_err(Failure)?;
    let config = &Config {
        seq_map_path,
        ..config.clone()
    };
    let pid_file = options.pid_file.as_deref().map(PidFile::write);
    let _pid_file = pid_file.transpose().map_err(Failure)?;
    let supervisor = Supervisor::of_environment();
    let context = Context::new(config.clone());
    let mark = lock::pause_of_database(&config.db_path);
    let offline = (until == Until::Told).then(|| Arc::new(Offline::new(dialer.clone(), mark)));
    let offline = offline.inspect(|offline| context.goes_offline(offline.clone()));
    look_at_window(config, offline.as_deref());
    let bandwidth = config.edge.max_bandwidth.map(Bandwidth::new).map(Arc::new);
    let connects = (&dialer, bandwidth.as_ref());
    let doors = (until == Until::Told).then(|| Doors::open(config));
    let doors = doors.transpose().map_err(Failure)?;
    let _socket = doors.and_then(|doors| doors.serve(&context, &poller, &exits));
    scratch::remove_stale(&config.db_path, config.snapshot.scratch.as_deref());
    let (mut net, mut began_with) = (None, None);
    if !config.db_path.exists() && snapshots::are_kept(config) {
        let node = *node_id.get_or_insert_with(snapshots::random_node_id);
        let begun = net.insert(Net::start(config, options, node, connects, &exits));
        match snapshots::bring_database(config, &begun.broker, &signals) {
            Brought::Stopped => return Ok(()),
            Brought::Snapshot(name) => began_with = Some(name),
            Brought::GoOn => {}
        }
    }
    let Some(mut database) = open(config, node_id, &waiting_is_over, &signals)? else {
        return Ok(());
    };
    opening.store(false, Ordering::Relaxed);
    let node = database.node();
    if let Some(name) = began_with {
        let noted = database.note_merged_snapshot(&name);
        noted.map_err(|e| Failure(e.to_string()))?;
    }
    logging::node_is(node);
    if !config.seq_map_path.exists() && !database.sequences().is_empty() {
        log::info!(
            "{} is missing: this node merges the newest snapshot and reads the streams again",
            config.seq_map_path.display()
        );
        let forgot = database.forget_positions();
        forgot.map_err(|e| Failure(e.to_string()))?;
    }
    log::info!(
        "harmonylite {} node {node} on {}, {} table(s)",
        env!("CARGO_PKG_VERSION"),
        config.db_path.display(),
        database.tables().len()
    );
    inspect::warn(&database);
    let net = net.unwrap_or_else(|| Net::start(config, options, node, connects, &exits));
    let is_awaited = until == Until::SnapshotSaved;
    let inputs = threads::ThreadInputs {
        asks,
        is_awaited,
        poller,
    };
    let threads = Threads::start(config, net, database, inputs, &exits);
    // Before the health is told: what a thread could not do while offline is no problem.
    if let Some(offline) = &offline {
        offline.opened(threads.shared());
    }
    context.opened(threads.shared());
    if until == Until::Told {
        start_heartbeat(&context, &exits);
    }
    let (reply, saved) = bounded(1);
    if until == Until::SnapshotSaved {
        let _ = ask.send(SnapshotRequest {
            reply,
            only_if_new: false,
        });
    }
    supervisor.is_ready();
    let mut status = StatusWaits::new(threads.shared());
    let end = loop {
        let quiet = match until {
            Until::Told => threads.sleeps_in(config.sleep_timeout),
            Until::SnapshotSaved => None,
        };
        let window = look_at_window(config, offline.as_deref());
        let waits = [quiet, supervisor.watchdog(), window, status.within()];
        let wait = waits.into_iter().flatten().min();
        match wait_for_the_end(&exited, &signals, &saved, &mut status, wait) {
            EndReason::Quiet if threads.sleeps_in(config.sleep_timeout) == Some(Duration::ZERO) => {
                break save_before_sleep(&ask, &exited, &signals);
            }
            EndReason::Quiet => supervisor.is_alive(),
            end => break end,
        }
    };
    supervisor.is_stopping();
    let failure = end.failure();
    if let Some(cause) = &failure {
        log::error!("{cause}");
    }
    threads.stop(&waiting_is_over, &signals);
    log::logger().flush();
    failure.map_or(Ok(()), |cause| Err(Failure(cause)))
}

/// Says how far the other nodes, and what comes from them, are trusted.
fn say_trust(config: &Config) {
    let Some(key) = config.seal.key() else {
        log::info!(
            "there is no cluster_key_file: this node trusts every holder of a login at the broker, \
             and everybody who can write to the store of snapshots"
        );
        return;
    };
    let open = match config.seal.requires() {
        true => "refused",
        false => "accepted, too (require_key = false)",
    };
    let id = key.id_text();
    log::info!("this node seals with cluster key {id}; what is not sealed is {open}");
}

/// Goes offline if `sync_window` is closed now, and online if it is open. Returns when to look
/// again: when that changes, or after a while, because the clock may be set.
fn look_at_window(config: &Config, offline: Option<&Offline>) -> Option<Duration> {
    let (window, offline) = (config.edge.sync_window.as_ref()?, offline?);
    let (is_open, seconds) = window.at(local_second_of_day());
    let why = || format!("outside of sync_window {}", window.text);
    offline.set_window((!is_open).then(why));
    Some(Duration::from_secs(u64::from(seconds)).min(LOOK_AT_WINDOW))
}

/// Takes the database's lock. A supervisor may start us while our predecessor still ends, so the
/// daemon waits for the lock.
fn take_lock(config: &Config, until: Until, stop: &AtomicBool) -> Result<File, Failure> {
    let patience = match until {
        Until::Told => lock::PATIENCE,
        Until::SnapshotSaved => Duration::ZERO,
    };
    let is_stopped = || stop.load(Ordering::Relaxed);
    lock::take_database(&config.db_path, patience, is_stopped).map_err(|text| {
        Failure(match until {
            Until::Told => text,
            Until::SnapshotSaved => format!("{text}, or send it SIGUSR1 to save a snapshot"),
        })
    })
}

fn require_something_to_save(config: &Config) -> Result<(), String> {
    if !(config.snapshot.enabled && config.replicate) {
        let text = "-save-snapshot: snapshot.enabled or replicate is false in the configuration";
        return Err(text.into());
    }
    // Otherwise an empty database would be made, saved, and taken for the cluster's beginning.
    if !config.db_path.exists() {
        let path = config.db_path.display();
        return Err(format!(
            "-save-snapshot: db_path: there is no database at {path}"
        ));
    }
    Ok(())
}

/// Starts the heartbeat if the configuration has a URL for it.
fn start_heartbeat(context: &Arc<Context>, exits: &Sender<Exited>) {
    #[cfg(feature = "heartbeat")]
    if let Some(url) = &context.config.health_check.heartbeat_url {
        let options = crate::heartbeat::HeartbeatOptions {
            url: url.clone(),
            interval: context.config.health_check.heartbeat_interval,
        };
        let context = context.clone();
        crate::heartbeat::start(options, move || context.is_healthy(), exits);
    }
    #[cfg(not(feature = "heartbeat"))]
    let _ = (context, exits); // the configuration was refused
}

/// Nothing changed for `sleep_timeout`: saves a snapshot if there is anything new.
fn save_before_sleep(
    ask: &Sender<SnapshotRequest>,
    exited: &Receiver<Exited>,
    signals: &Receiver<()>,
) -> EndReason {
    log::info!("nothing changed for sleep_timeout: saving a snapshot, then ending");
    let (reply, saved) = bounded(1);
    let _ = ask.send(SnapshotRequest {
        reply,
        only_if_new: true,
    });
    let mut status = StatusWaits::none();
    match wait_for_the_end(exited, signals, &saved, &mut status, Some(LAST_SNAPSHOT)) {
        EndReason::Quiet => {
            log::warn!("no snapshot could be saved; nothing is lost by that");
            EndReason::Signal
        }
        EndReason::Saved(saved) => {
            if let Err(text) = saved {
                log::warn!("no snapshot was saved: {text}");
            }
            EndReason::Signal
        }
        end => end,
    }
}

/// The reason why the daemon ends.
#[derive(Debug, PartialEq, Eq)]
enum EndReason {
    Signal,
    /// A thread ended, and nobody asked it to.
    Thread(Exited),
    Saved(Result<(), String>),
    /// Nothing happened for the given time.
    Quiet,
}

impl EndReason {
    fn failure(self) -> Option<String> {
        match self {
            EndReason::Signal | EndReason::Quiet | EndReason::Saved(Ok(())) => None,
            EndReason::Saved(Err(text)) => Some(format!("no snapshot was saved: {text}")),
            EndReason::Thread(exited) => Some(exited.to_string()),
        }
    }
}

/// Opens the database and retries while an error is temporary. None if a signal came first.
fn open(
    config: &Config,
    node_id: Option<u64>,
    waiting_is_over: &Arc<AtomicBool>,
    signals: &Receiver<()>,
) -> Result<Option<Database>, Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let clock = Arc::new(SystemClock);
        let opened = Database::open(settings(config, node_id), clock, waiting_is_over.clone());
        match opened.map_err(|e| e.of_file(&config.db_path)) {
            Ok(mut database) => {
                database.limits.held_bytes = config.max_held_bytes;
                database.limits.set_frame_bytes(config.max_frame_bytes);
                database.takes_code = config.snapshot.takes_code;
                return Ok(Some(database));
            }
            Err(e) if e.is_temporary() => {
                log::warn!("{e}; trying again");
                if signals.recv_timeout(backoff.wait()).is_ok() {
                    return Ok(None);
                }
            }
            Err(DatabaseError::Stopped) => return Ok(None),
            Err(e) => {
                log::error!("{e}");
                return Err(Failure(e.to_string()));
            }
        }
    }
}

/// Opens the database for a command that works on it while no daemon does. The caller holds its
/// lock.
pub(crate) fn open_alone(config: &Config) -> Result<Database, DatabaseError> {
    let clock = Arc::new(SystemClock);
    let stop = Arc::new(AtomicBool::new(false));
    Database::open(settings(config, config.node_id), clock, stop)
}

fn settings(config: &Config, node_id: Option<u64>) -> Settings {
    let streams = net::stream_options(config, 1);
    Settings {
        path: config.db_path.clone(),
        node_id,
        publish: config.publish,
        shards: config.common.shards,
        streams: (1..=config.common.shards)
            .map(|shard| stream_name(&streams, shard))
            .collect(),
        scan_max_changes: config.scan_max_changes,
        cache_size: config.cache_size,
        cleanup_interval: config.cleanup_interval,
        max_transaction_bytes: config.replication_log.max_transaction_bytes,
        max_clock_drift: config.max_clock_drift,
        courtesy: config.courtesy,
        tombstone_retention: config.tombstone_retention,
        births: false,
        births_later: config.keeps_collisions,
        allow_rowid_tables: config.allow_rowid_tables,
        joins_by_snapshot: snapshots::are_kept(config),
        seq_map_path: Some(config.seq_map_path.clone()),
        tables: config.tables.clone(),
        apply_triggers: config.apply_triggers.clone(),
    }
}

/// Waits for an end. A thread that merely stopped may have followed a failed one, whose cause
/// arrives a moment later and counts.
fn wait_for_the_end(
    exited: &Receiver<Exited>,
    signals: &Receiver<()>,
    saved: &Receiver<Result<(), String>>,
    status: &mut StatusWaits,
    quiet: Option<Duration>,
) -> EndReason {
    let timeout = quiet.map_or_else(never, crossbeam_channel::after);
    let first = select! {
        recv(exited) -> exit => match exit {
            Ok(exit) => exit,
            Err(_) => return EndReason::Signal,
        },
        recv(signals) -> _ => {
            log::info!("stopping");
            return EndReason::Signal;
        }
        recv(saved) -> saved => {
            let saved = saved.unwrap_or_else(|_| Err("the thread for it ended".into()));
            return EndReason::Saved(saved);
        }
        recv(status.told) -> waits => {
            status.rest(waits.ok());
            return EndReason::Quiet;
        }
        recv(status.waits.changes) -> _ => {
            status.changed();
            return EndReason::Quiet;
        }
        recv(status.waits.words) -> word => {
            status.wake(word.ok().map(|message| message.subject));
            return EndReason::Quiet;
        }
        recv(status.waits.called) -> _ => {
            status.wake(None);
            return EndReason::Quiet;
        }
        recv(timeout) -> _ => {
            status.wake_if_due();
            return EndReason::Quiet;
        }
    };
    let stopped = |exit: &Exited| exit.outcome == Outcome::Stopped;
    if !stopped(&first) {
        return EndReason::Thread(first);
    }
    let deadline = Instant::now() + CAUSE_WITHIN;
    let mut later = std::iter::from_fn(|| exited.recv_deadline(deadline).ok());
    EndReason::Thread(later.find(|exit| !stopped(exit)).unwrap_or(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_not_there_is_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let text = format!("db_path = \"{}\"", path.display());
        let config = Config::parse(std::path::Path::new("box.toml"), &text).unwrap();
        let refused = require_something_to_save(&config).unwrap_err();
        assert!(refused.contains("there is no database at"), "{refused}");
        std::fs::write(&path, "").unwrap();
        assert_eq!(require_something_to_save(&config), Ok(()));
    }

    fn exited(name: &str, outcome: Outcome) -> Exited {
        let name = name.to_owned();
        Exited { name, outcome }
    }

    /// A publisher that panics ends its watcher, whose end is reported first.
    #[test]
    fn the_cause_counts_not_who_followed() {
        let ((exits, ends), (_signals, signalled)) = (unbounded(), unbounded());
        exits.send(exited("watcher", Outcome::Stopped)).unwrap();
        let cause = exited("publisher", Outcome::Panicked("bug".into()));
        exits.send(cause.clone()).unwrap();
        let mut status = StatusWaits::none();
        let mut wait = || wait_for_the_end(&ends, &signalled, &never(), &mut status, None);
        assert_eq!(wait(), EndReason::Thread(cause));
        let alone = exited("watcher", Outcome::Stopped);
        exits.send(alone.clone()).unwrap();
        assert_eq!(wait(), EndReason::Thread(alone));
    }
}

//! The threads, their shared state, and their orderly end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::net::{self, Net};
use super::snapshots;
use crate::cluster::broker::Broker;
use crate::config::Config;
use crate::database::Database;
use crate::mirror::Mirror;
use crate::model::backoff::Backoff;
use crate::poller::Poller;
use crate::shared::Shared;
use crate::snapshot::thread::SnapshotRequest;
use crate::status::board::About;
use crate::thread::{Exited, spawn};
use crate::{consumer, publisher, status, watcher};

/// Longest time that the end of the daemon takes.
const STOP_WITHIN: Duration = Duration::from_millis(2800);

/// Time that killing our nats-server takes.
const KILL_WITHIN: Duration = Duration::from_millis(50);

/// After this part of the end, no thread waits for the application's lock any more.
const STOP_WAITING: Duration = Duration::from_millis(1500);

/// After this part of the end, the daemon ends our nats-server, although threads still use it. That
/// ends their waits for it (no server answers the last node of a cluster), and it has the time to
/// write its state. A row that is not sent by then is sent at the next start.
const STOP_SERVER: Duration = Duration::from_millis(2000);

/// Interval of polls of the database if the file system gives no hints.
const POLL_WITHOUT_HINTS: Duration = Duration::from_millis(250);

/// The running threads, and the handles that end them.
pub(super) struct Threads {
    shared: Arc<Shared>,
    /// Dropping it ends all threads but the server's.
    stop: Sender<()>,
    threads: Vec<JoinHandle<()>>,
    exits: Sender<Exited>,
    mirror: Mirror,
    /// Our own nats-server's thread, which ends last.
    server: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Input of the threads.
pub(super) struct ThreadInputs {
    /// Requests for a snapshot, from a signal or the daemon.
    pub asks: Receiver<SnapshotRequest>,
    /// Whether the daemon waits for a snapshot and ends after it.
    pub is_awaited: bool,
    /// Waits for events of files.
    pub poller: Poller,
}

impl Threads {
    pub(super) fn start(
        config: &Config,
        net: Net,
        database: Database,
        inputs: ThreadInputs,
        exits: &Sender<Exited>,
    ) -> Threads {
        let Net { broker, server } = net;
        let poller = inputs.poller.clone();
        let shards = match config.replicate {
            true => config.common.shards,
            false => 0,
        };
        let strays = database.fence().strays();
        let (shared, woken) = Shared::new(database, shards);
        let shared = Arc::new(shared);
        shared.health.watch_seal(&config.seal);
        let (stop, stopped) = bounded(0);
        let backoff = Backoff::new(config.nats.reconnect_wait / 4, config.nats.reconnect_wait);
        let retries = config.nats.connect_retries;
        let mut threads = Vec::new();
        shared.status.introduce(About {
            name: config.node_name.clone(),
            streams: (1..=config.common.shards)
                .map(|s| broker.stream(s))
                .collect(),
        });
        if let Some(interval) = config.status_interval {
            let options = status::thread::StatusOptions {
                stream_prefix: config.common.stream_prefix.clone(),
                interval,
            };
            let (shared, broker, stopped) = (shared.clone(), broker.clone(), stopped.clone());
            status::verify::worker::start(shared.clone(), stopped.clone(), exits);
            status::thread::start(shared, broker, options, stopped, exits);
        } else if config.keeps_collisions {
            log::warn!(
                "on_collision = \"keep\" does not begin with status_interval = 0: this node does \
                 not ask whether all nodes know it"
            );
        }
        if snapshots::are_kept(config)
            && let Err(e) = shared.hold_reading()
        {
            log::debug!("reading begins before the snapshot: {e}"); // that only costs time
        }
        for shard in 1..=shards {
            let (shared, broker) = (shared.clone(), broker.clone() as Arc<dyn Broker>);
            let (stopped, backoff) = (stopped.clone(), backoff.clone());
            threads.push(consumer::start(
                shared, broker, shard, stopped, backoff, retries, exits,
            ));
        }
        if snapshots::are_kept(config) {
            let inputs = (stopped.clone(), inputs.asks, inputs.is_awaited);
            threads.push(snapshots::start(config, &shared, &broker, inputs, exits));
        }
        let watcher = watcher::Watcher::start(&config.db_path, strays, &poller)
            .map_err(|e| {
                log::warn!(
                    "watching {}: {e}; polling instead",
                    config.db_path.display()
                )
            })
            .ok();
        let polling = config.polling_interval;
        let options = publisher::PublisherOptions {
            publish: config.publish,
            compress: config.common.compress,
            max_transaction_bytes: config.replication_log.max_transaction_bytes,
            max_entries: config.replication_log.entries(),
            cleanup_interval: config.cleanup_interval,
            publish_interval: config.edge.publish_interval,
            polling_interval: polling.or(watcher.is_none().then_some(POLL_WITHOUT_HINTS)),
            pauses: publisher::ConnectPauses {
                backoff,
                refused: Backoff::new(config.nats.reconnect_wait / 4, net::longest_wait(config)),
                retries,
            },
        };
        let inputs = publisher::PublisherInputs {
            stop: stopped,
            woken,
        };
        let mirror = Mirror::new(&config.seq_map_path, &config.db_path);
        threads.push(publisher::start(
            shared.clone(),
            broker,
            options,
            inputs,
            watcher,
            mirror,
            exits,
        ));
        Threads {
            shared,
            stop,
            threads,
            exits: exits.clone(),
            mirror: Mirror::new(&config.seq_map_path, &config.db_path),
            server,
        }
    }

    /// Time until nothing has changed for `timeout`; none if `timeout` is none.
    pub(super) fn sleeps_in(&self, timeout: Option<Duration>) -> Option<Duration> {
        Some(timeout?.saturating_sub(self.shared.quiet_for()))
    }

    /// The shared state for threads that do not take part in the orderly end, such as HTTP.
    pub(super) fn shared(&self) -> Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    /// Ends the threads that write, then closes the database, then ends the server. A second signal
    /// ends the daemon at once.
    pub(super) fn stop(self, waiting_is_over: &AtomicBool, signals: &Receiver<()>) {
        let began = Instant::now();
        drop(self.stop);
        let mut threads = self.threads;
        threads.extend(self.shared.status.close());
        let mut open = Some((self.shared, self.mirror));
        let (mut server, mut asked, mut ends_early) = (self.server, None, None);
        let mut end_server = || {
            let (stop, thread) = server.take()?;
            let _ = stop.try_send(());
            asked = Some(stop);
            Some(thread)
        };
        loop {
            threads.retain(|t| !t.is_finished());
            if threads.is_empty() {
                let close = open.take().map(|(shared, mirror)| {
                    spawn("closing", &self.exits, move || close(&shared, mirror))
                });
                let server = || end_server().or_else(|| ends_early.take());
                match close.or_else(server) {
                    Some(thread) => threads.push(thread),
                    None => return,
                }
            }
            let passed = began.elapsed();
            if passed >= STOP_WAITING {
                waiting_is_over.store(true, Ordering::Relaxed);
            }
            if passed >= STOP_SERVER && ends_early.is_none() {
                ends_early = end_server();
            }
            if passed >= STOP_WITHIN || signals.recv_timeout(Duration::from_millis(5)).is_ok() {
                log::info!("ending without waiting any longer; nothing is lost by that");
                let servers = end_server().into_iter().chain(ends_early);
                let servers: Vec<JoinHandle<()>> = servers.collect();
                wait_for(&servers);
                drop(asked); // if our nats-server hangs, it is killed now
                wait_for(&servers);
                wait_for(&threads);
                return;
            }
        }
    }
}

/// Waits until the threads have ended, at most [`KILL_WITHIN`].
fn wait_for(threads: &[JoinHandle<()>]) {
    let deadline = Instant::now() + KILL_WITHIN;
    while threads.iter().any(|t| !t.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes the last write of all. A later write would reserve time again, and the next start would
/// take that time for used.
fn close(shared: &Shared, mut mirror: Mirror) -> Result<(), String> {
    let mut locked = shared.lock();
    if let Err(e) = locked.database.close() {
        log::warn!("closing the database: {e}; nothing is lost by that");
    }
    mirror.write(&locked.database.sequences());
    Ok(())
}

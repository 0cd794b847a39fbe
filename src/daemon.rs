//! Wires the threads together, watches them and stops them in order.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::broker::{Broker, JetStreamBroker};
use crate::cli::{Options, Peer};
use crate::clock::SystemClock;
use crate::config::node_id::{MACHINE_ID_FILES, derive};
use crate::config::{Config, Nats};
use crate::database::{Database, DatabaseError, Settings};
use crate::gate::Gate;
use crate::mirror::Mirror;
use crate::model::backoff::Backoff;
use crate::stream::client::ClientOptions;
use crate::stream::jetstream::StreamOptions;
use crate::stream::server::{Server, ServerError, ServerOptions};
use crate::thread::{Exited, Outcome, spawn};
use crate::{consumer, lock, logging, publisher, watcher};

/// The end takes no longer than this, whatever hangs.
const STOP_WITHIN: Duration = Duration::from_millis(2800);

/// From then on nobody waits for the application's lock any more.
const STOP_WAITING: Duration = Duration::from_millis(1500);

/// A thread that ended the others has said why by then.
const CAUSE_WITHIN: Duration = Duration::from_millis(200);

/// Where hints cannot be had, the database is looked at this often.
const POLL_WITHOUT_HINTS: Duration = Duration::from_millis(250);

/// The wait between two tries to start our own server grows up to this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Why the daemon ended other than by request.
#[derive(Debug)]
pub struct Failure(pub String);

/// Runs until SIGTERM or SIGINT, or until a thread fails.
pub fn run(config: &Config, options: &Options) -> Result<(), Failure> {
    let node_id = options
        .node_id
        .or(config.node_id)
        .or_else(|| derive(&MACHINE_ID_FILES));
    let node_text = node_id.map_or("random".to_owned(), |id| id.to_string());
    logging::start(&config.logging, &node_text).map_err(Failure)?;
    let _lock = lock::take_database(&config.db_path).map_err(Failure)?;
    let (exits, exited) = unbounded();
    let waiting_is_over = Arc::new(AtomicBool::new(false));
    let opening = Arc::new(AtomicBool::new(true));
    let signals = forward_signals(&exits, opening.clone(), waiting_is_over.clone())
        .map_err(|e| Failure(format!("signals: {e}")))?;
    let Some(mut database) = open(config, node_id, &waiting_is_over, &signals)? else {
        return Ok(());
    };
    opening.store(false, Ordering::Relaxed);
    let node = database.node();
    if !config.seq_map_path.exists() && !database.sequences().is_empty() {
        log::info!(
            "{} is missing: reading the streams from their start",
            config.seq_map_path.display()
        );
        database.forget_positions();
    }
    log::info!(
        "harmonylite {} node {node} on {}, {} table(s)",
        env!("CARGO_PKG_VERSION"),
        config.db_path.display(),
        database.tables().len()
    );
    let parts = Parts::start(config, options, database, &exits).map_err(Failure)?;
    let first = wait_for_the_end(&exited, &signals);
    let failure = match first {
        Some(Exited {
            name,
            outcome: Outcome::Failed(cause),
        }) => Some(format!("{name}: {cause}")),
        Some(Exited {
            name,
            outcome: Outcome::Panicked(text),
        }) => Some(format!("{name} panicked: {text}; please report this")),
        Some(Exited {
            name,
            outcome: Outcome::Stopped,
        }) => Some(format!("{name} ended by itself")),
        None => None,
    };
    if let Some(cause) = &failure {
        log::error!("{cause}");
    }
    parts.stop(&waiting_is_over, &signals);
    failure.map_or(Ok(()), |cause| Err(Failure(cause)))
}

/// SIGTERM and SIGINT as messages. While the database is being opened nobody reads those, and the
/// wait for an application's lock ends at once.
fn forward_signals(
    exits: &Sender<Exited>,
    opening: Arc<AtomicBool>,
    waiting_is_over: Arc<AtomicBool>,
) -> std::io::Result<Receiver<()>> {
    let (sender, receiver) = unbounded();
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    spawn("signals", exits, move || {
        signals.forever().for_each(|_| {
            let _ = sender.send(());
            if opening.load(Ordering::Relaxed) {
                waiting_is_over.store(true, Ordering::Relaxed);
            }
        });
        Ok(())
    });
    Ok(receiver)
}

/// Opens the database, for as long as that takes. None if a signal came first.
fn open(
    config: &Config,
    node_id: Option<u64>,
    waiting_is_over: &Arc<AtomicBool>,
    signals: &Receiver<()>,
) -> Result<Option<Database>, Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let clock = Arc::new(SystemClock::new());
        match Database::open(settings(config, node_id), clock, waiting_is_over.clone()) {
            Ok(database) => return Ok(Some(database)),
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

fn settings(config: &Config, node_id: Option<u64>) -> Settings {
    let tables = config.tables.clone();
    Settings {
        path: config.db_path.clone(),
        node_id,
        publish: config.publish,
        shards: config.shared.shards,
        scan_max_changes: config.scan_max_changes,
        max_transaction_bytes: config.replication_log.max_transaction_bytes,
        max_clock_drift: config.max_clock_drift,
        tombstone_retention: config.tombstone_retention,
        allow_rowid_tables: config.allow_rowid_tables,
        selects: Box::new(move |table| tables.selects(table)),
        apply_triggers: config.apply_triggers.clone(),
    }
}

/// None for a signal, else the thread that ended unasked. One that merely stops may have followed
/// another, whose cause is told a moment later and counts.
fn wait_for_the_end(exited: &Receiver<Exited>, signals: &Receiver<()>) -> Option<Exited> {
    let first = select! {
        recv(exited) -> exit => exit.ok()?,
        recv(signals) -> _ => {
            log::info!("stopping");
            return None;
        }
    };
    let stopped = |exit: &Exited| exit.outcome == Outcome::Stopped;
    if !stopped(&first) {
        return Some(first);
    }
    let deadline = Instant::now() + CAUSE_WITHIN;
    let mut later = std::iter::from_fn(|| exited.recv_deadline(deadline).ok());
    later.find(|exit| !stopped(exit)).or(Some(first))
}

/// The running threads, and what ends them.
struct Parts {
    /// Dropped to end publisher and consumers.
    stop: Sender<()>,
    threads: Vec<JoinHandle<()>>,
    /// Our own nats-server's thread, which ends last.
    server: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Parts {
    fn start(
        config: &Config,
        options: &Options,
        database: Database,
        exits: &Sender<Exited>,
    ) -> Result<Parts, String> {
        let name = format!("harmonylite-node-{}", database.node());
        let shards = config.shared.shards;
        let embedded = config.nats.urls.is_empty();
        let servers = if embedded { server_count(options) } else { 1 };
        let streams = stream_options(config, servers);
        let client = (!embedded).then(|| client_options(&config.nats, &name));
        let broker = Arc::new(JetStreamBroker::new(client, streams));
        let (gate, woken) = Gate::new(database, if config.replicate { shards } else { 0 });
        let gate = Arc::new(gate);
        let (stop, stopped) = bounded(0);
        let backoff = Backoff::new(config.nats.reconnect_wait / 4, config.nats.reconnect_wait);
        let retries = config.nats.connect_retries;
        let server = embedded.then(|| {
            let server = server_options(config, options, name);
            supervise(server, broker.clone(), config.nats.reconnect_wait, exits)
        });
        let mut threads = Vec::new();
        for shard in 1..=if config.replicate { shards } else { 0 } {
            let (gate, broker) = (gate.clone(), broker.clone() as Arc<dyn Broker>);
            let (stopped, backoff) = (stopped.clone(), backoff.clone());
            threads.push(consumer::start(
                gate, broker, shard, stopped, backoff, retries, exits,
            ));
        }
        let watcher = watcher::Watcher::start(&config.db_path, exits)
            .map_err(|e| {
                log::warn!(
                    "watching {}: {e}; polling instead",
                    config.db_path.display()
                )
            })
            .ok();
        let polling = config.polling_interval;
        let options = publisher::Options {
            publish: config.publish,
            compress: config.shared.compress,
            max_transaction_bytes: config.replication_log.max_transaction_bytes,
            cleanup_interval: config.cleanup_interval,
            polling_interval: polling.or(watcher.is_none().then_some(POLL_WITHOUT_HINTS)),
            backoff,
            retries,
        };
        let inputs = publisher::Inputs {
            stop: stopped,
            woken,
        };
        let mirror = Mirror::new(config.seq_map_path.clone());
        threads.extend(publisher::start(
            gate, broker, options, inputs, watcher, mirror, exits,
        ));
        Ok(Parts {
            stop,
            threads,
            server,
        })
    }

    /// Ends publisher and consumers, then the server. A second signal ends it at once.
    fn stop(self, waiting_is_over: &AtomicBool, signals: &Receiver<()>) {
        let began = Instant::now();
        drop(self.stop);
        let mut threads = self.threads;
        let mut server = self.server;
        loop {
            threads.retain(|t| !t.is_finished());
            if threads.is_empty() {
                match server.take() {
                    None => return,
                    Some((stop, thread)) => {
                        drop(stop);
                        threads.push(thread);
                    }
                }
            }
            let passed = began.elapsed();
            if passed >= STOP_WAITING {
                waiting_is_over.store(true, Ordering::Relaxed);
            }
            if passed >= STOP_WITHIN || signals.recv_timeout(Duration::from_millis(5)).is_ok() {
                log::warn!("ending without waiting any longer; nothing is lost by that");
                return;
            }
        }
    }
}

fn client_options(nats: &Nats, name: &str) -> ClientOptions {
    let password = nats
        .user_password
        .as_ref()
        .map_or("", |p| p.reveal())
        .to_owned();
    let (cert_file, key_file) = nats.client_cert.clone().unzip();
    ClientOptions {
        name: name.to_owned(),
        urls: nats.urls.iter().map(|u| u.reveal().to_owned()).collect(),
        user: nats.user_name.clone().map(|user| (user, password)),
        seed_file: nats.seed_file.clone(),
        ca_file: nats.ca_file.clone(),
        cert_file,
        key_file,
    }
}

/// With a cluster of our own servers, fewer replicas than servers would put a stream on one node,
/// without which nobody could publish; three are enough.
fn stream_options(config: &Config, servers: u32) -> StreamOptions {
    StreamOptions {
        stream_prefix: config.shared.stream_prefix.clone(),
        subject_prefix: config.shared.subject_prefix.clone(),
        compress: config.shared.compress,
        shards: config.shared.shards,
        max_entries: config.replication_log.max_entries,
        replicas: u32::from(config.replication_log.replicas).max(servers.min(3)),
        update_existing: config.replication_log.update_existing,
    }
}

/// Servers of the cluster as the command line names them, this one included.
fn server_count(options: &Options) -> u32 {
    let own = options.cluster_addr.as_ref().map(ToString::to_string);
    let others = options.cluster_peers.iter().map(|peer| match peer {
        Peer::Dns { min, .. } => min.saturating_sub(1),
        Peer::Direct(url) => {
            let address = format!("{}:{}", url.host, url.port.unwrap_or_default());
            u32::from(own.as_deref() != Some(&address))
        }
    });
    1 + others.sum::<u32>()
}

fn server_options(config: &Config, options: &Options, node_name: String) -> ServerOptions {
    let folder = config
        .db_path
        .parent()
        .map(PathBuf::from)
        .unwrap_or_default();
    let urls = |peers: &[Peer]| -> Vec<String> { peers.iter().map(peer_url).collect() };
    let password = config
        .nats
        .user_password
        .as_ref()
        .map_or("", |p| p.reveal())
        .to_owned();
    ServerOptions {
        binary: config.nats.server_binary.clone(),
        store_dir: folder.join("nats").join(&node_name),
        node_name,
        bind_address: config.nats.bind_address.to_string(),
        user: config.nats.user_name.clone().map(|user| (user, password)),
        cluster_addr: options.cluster_addr.as_ref().map(ToString::to_string),
        peers: urls(&options.cluster_peers),
        leaf_servers: urls(&options.leaf_servers),
        user_config: config.nats.server_config.clone(),
    }
}

fn peer_url(peer: &Peer) -> String {
    match peer {
        Peer::Direct(url) => url.reveal().to_owned(),
        Peer::Dns {
            host,
            port,
            min,
            interval,
        } => {
            format!(
                "dns://{host}:{port}/?min={min}&interval_ms={}",
                interval.as_millis()
            )
        }
    }
}

/// Keeps our own nats-server running. The thread that starts it must live as long as it does: the
/// kernel ends the server with that thread, so that none is ever left behind.
fn supervise(
    options: ServerOptions,
    broker: Arc<JetStreamBroker>,
    wait: Duration,
    exits: &Sender<Exited>,
) -> (Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = bounded(0);
    let thread = spawn("nats-server", exits, move || {
        let mut backoff = Backoff::new(wait / 4, LONGEST_BACKOFF);
        loop {
            let cause = match Server::start(&options, &stopped) {
                Ok(mut server) => {
                    broker.set_client(Some(server.client_options(&options.node_name)));
                    backoff.reset();
                    select! {
                        recv(stopped) -> _ => {
                            server.stop();
                            return Ok(());
                        }
                        recv(server.end()) -> _ => {}
                    }
                    broker.set_client(None);
                    server.exited().unwrap_or_default()
                }
                Err(ServerError::Stopped) => return Ok(()),
                Err(e) if e.is_fatal() => return Err(e.to_string()),
                Err(e) => e.to_string(),
            };
            log::error!("nats-server: {cause}; starting it again");
            select! {
                recv(stopped) -> _ => return Ok(()),
                default(backoff.wait()) => {}
            }
        }
    });
    (stop, thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(name: &str, outcome: Outcome) -> Exited {
        let name = name.to_owned();
        Exited { name, outcome }
    }

    /// A publisher that panics takes its watcher along, whose end is told first.
    #[test]
    fn the_cause_counts_not_who_followed() {
        let ((exits, ends), (_signals, signalled)) = (unbounded(), unbounded());
        exits.send(exited("watcher", Outcome::Stopped)).unwrap();
        let cause = exited("publisher", Outcome::Panicked("bug".into()));
        exits.send(cause.clone()).unwrap();
        assert_eq!(wait_for_the_end(&ends, &signalled), Some(cause));
        let alone = exited("watcher", Outcome::Stopped);
        exits.send(alone.clone()).unwrap();
        assert_eq!(wait_for_the_end(&ends, &signalled), Some(alone));
    }
}

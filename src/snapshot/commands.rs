//! `harmonylite snapshots` and `harmonylite restore`: what a store holds, and a plain copy of it.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, unbounded};
use rusqlite::{Connection, OptionalExtension};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::Options;
use crate::config::Config;
use crate::config::node_id::{MACHINE_ID_FILES, derive};
use crate::config::snapshot::Store as Kind;
use crate::daemon::net::{Net, client_options, server_store};
use crate::daemon::snapshots::place;
use crate::database::own_tables;
use crate::lock;
use crate::model::backoff::Backoff;
use crate::output;
use crate::snapshot::beside;
use crate::snapshot::manifest::{Entry, Manifest};
use crate::snapshot::thread::Progress;
use crate::snapshot::transfer::{self, TransferError, disk};
use crate::store::{self, Store, StoreError};
use crate::stream::StreamError;
use crate::stream::client::{Client, ClientOptions};
use crate::stream::server;
use crate::thread::{Exited, spawn};

/// Our own server is up by then, or cannot be had.
const SERVER_WITHIN: Duration = Duration::from_secs(20);

/// A way to the store, and what must stay for as long as it is used.
struct Access {
    store: Box<dyn Store>,
    _server: Option<(Net, Receiver<Exited>, std::fs::File)>,
}

/// Says what the store holds.
pub fn list(
    config: &Config,
    options: &Options,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), String> {
    let mut access = open(config, options)?;
    let manifest = read(config, &mut *access.store)?;
    let text = match json {
        true => serde_json::to_string_pretty(&manifest.snapshots).map_err(|e| e.to_string())?,
        false => listed(access.store.address(), &manifest),
    };
    writeln!(out, "{text}").map_err(output::failed)
}

fn listed(address: &str, manifest: &Manifest) -> String {
    let mut lines = vec![address.to_owned()];
    if manifest.snapshots.is_empty() {
        lines.push("no snapshots yet".into());
    }
    lines.extend(manifest.snapshots.iter().map(described));
    lines.join("\n")
}

fn described(entry: &Entry) -> String {
    let time = crate::stream::timestamp::rfc3339(entry.time_ms);
    let streams = entry.streams.iter();
    let streams: Vec<String> = streams
        .map(|(s, p)| format!("{s} up to {}", p.seq))
        .collect();
    format!(
        "{time}  {:>9} KB, unpacked {:>9} KB  node {}  {}\n  {}",
        entry.size.div_ceil(1024),
        entry.database_size.div_ceil(1024),
        entry.node,
        entry.name,
        streams.join(", ")
    )
}

/// Writes the newest snapshot to a new file, as a plain database.
pub fn restore(
    config: &Config,
    options: &Options,
    to: Option<&Path>,
    out: &mut dyn Write,
) -> Result<(), String> {
    let to = to.unwrap_or(Path::new("restored.db"));
    require_free(to)?;
    let mut access = open(config, options)?;
    let manifest = read(config, &mut *access.store)?;
    if manifest.snapshots.is_empty() {
        return Err(format!("{}: no snapshots yet", access.store.address()));
    }
    let stop = stop_signals()?;
    restore_first(&manifest, to, &mut *access.store, &stop, out)
}

/// SIGTERM and SIGINT from now on. (Before there is a file to remove, they may end us at once.)
fn stop_signals() -> Result<Receiver<()>, String> {
    let signals = Signals::new([SIGTERM, SIGINT]);
    let mut signals = signals.map_err(|e| format!("signals: {e}"))?;
    let (sender, receiver) = unbounded();
    spawn("signals", &unbounded().0, move || {
        signals.forever().for_each(|_| {
            let _ = sender.send(());
        });
        Ok(())
    });
    Ok(receiver)
}

/// Writes the newest of the snapshots that is sound, unless told to `stop`.
fn restore_first(
    manifest: &Manifest,
    to: &Path,
    store: &mut dyn Store,
    stop: &Receiver<()>,
    out: &mut dyn Write,
) -> Result<(), String> {
    let mut failure = String::new();
    for entry in &manifest.snapshots {
        if !failure.is_empty() {
            let _ = writeln!(
                io::stderr(),
                "harmonylite: {failure}; trying the one before"
            );
        }
        match restore_one(entry, to, store, stop) {
            Ok(aside) => {
                let mut text = format!("{} is snapshot {}\n", to.display(), entry.name);
                if aside > 0 {
                    text += &format!(
                        "{aside} row(s) were kept aside and are not in it: see the README, Conflicts\n"
                    );
                }
                return out.write_all(text.as_bytes()).map_err(output::failed);
            }
            Err(e) => {
                // A signal to all of a terminal's processes ends our server, too.
                if matches!(e, TransferError::Stopped) || is_told(stop) {
                    return Err(format!("stopped: {} was not written", to.display()));
                }
                failure = e.to_string();
                if matches!(e, TransferError::Disk { .. }) {
                    break; // another would not fare better
                }
            }
        }
    }
    Err(failure)
}

/// Returns how many rows were kept aside.
fn restore_one(
    entry: &Entry,
    to: &Path,
    store: &mut dyn Store,
    stop: &Receiver<()>,
) -> Result<i64, TransferError> {
    let file = transfer::fetch(entry, to, store, &mut Progress::new(stop, true))?;
    let aside = clean(file.path()).map_err(|e| disk(to, format!("{}: {e}", entry.name)))?;
    if is_told(stop) {
        return Err(TransferError::Stopped);
    }
    require_free(to).map_err(|text| disk(to, text))?; // fetching took a while
    beside::place(file.path(), to).map_err(|e| disk(to, e))?;
    Ok(aside)
}

fn is_told(stop: &Receiver<()>) -> bool {
    stop.try_recv() != Err(TryRecvError::Empty)
}

/// Neither the file is there nor what SQLite would take for its unfinished business, and write over
/// what was restored.
fn require_free(to: &Path) -> Result<(), String> {
    if to.symlink_metadata().is_ok() {
        return Err(format!("{} exists: nothing is overwritten", to.display()));
    }
    let Some(leftover) = beside::leftover(to) else {
        return Ok(());
    };
    Err(format!(
        "{} is left over from another database, and SQLite would write what is in it over {}: \
         move it away, or name another file with -o; nothing was changed",
        leftover.display(),
        to.display()
    ))
}

/// Takes everything of ours out. Returns how many displaced and held rows went with it.
fn clean(file: &Path) -> rusqlite::Result<i64> {
    let conn = Connection::open(file)?;
    let aside = conn.query_row(
        "SELECT (SELECT count(*) FROM __harmonylite___displaced)
              + (SELECT count(*) FROM (SELECT DISTINCT table_name, shape, key
                                 FROM __harmonylite___held))",
        [],
        |r| r.get(0),
    )?;
    own_tables::drop_all(&conn)?;
    conn.close().map_err(|(_, e)| e)?;
    Ok(aside)
}

fn read(config: &Config, store: &mut dyn Store) -> Result<Manifest, String> {
    let manifest = transfer::read_manifest(store, &config.shared.stream_prefix);
    Ok(manifest.map_err(|e| e.to_string())?.unwrap_or_default())
}

fn open(config: &Config, options: &Options) -> Result<Access, String> {
    let embedded = config.nats.urls.is_empty();
    let prefix = &config.shared.stream_prefix;
    let place = &config.snapshot.store;
    if let Some(warning) = warning(place) {
        let _ = writeln!(io::stderr(), "harmonylite: {warning}");
    }
    let node = node(config, options);
    let name = format!("harmonylite-node-{node}");
    if !matches!(place, Kind::Nats(_)) || !embedded {
        let client = client_options(&config.nats, &name);
        let store = store::open_existing(place, prefix, &|| connect(&client));
        let store = store.map_err(|e| e.to_string())?;
        return Ok(Access {
            store,
            _server: None,
        });
    }
    // The snapshots are on our own server: the one that a daemon runs now, or one of our own.
    match lock::take(&lock::of_database(&config.db_path)) {
        Ok(Some(lock)) => own_server(config, options, node, lock),
        Ok(None) => {
            let client = server::running(&server_store(config, &name), &name).ok_or(
                "a daemon works on this database, but its nats-server is not up: try again later",
            )?;
            let store = store::open_existing(place, prefix, &|| connect(&client));
            Ok(Access {
                store: store.map_err(|e| e.to_string())?,
                _server: None,
            })
        }
        Err(e) => Err(format!("locking {}: {e}", config.db_path.display())),
    }
}

/// What the daemon's log says of the store when it opens it.
fn warning(place: &Kind) -> Option<&'static str> {
    match place {
        Kind::Sftp(sftp) if sftp.trusts_anybody() => Some(
            "snapshot.sftp.insecure_ignore_host_key is set: whoever answers is trusted with the \
             login and the snapshots",
        ),
        _ => None,
    }
}

fn own_server(
    config: &Config,
    options: &Options,
    node: u64,
    lock: std::fs::File,
) -> Result<Access, String> {
    let (exits, exited) = unbounded();
    let net = Net::start(config, options, node, &exits);
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    let deadline = Instant::now() + SERVER_WITHIN;
    loop {
        let prefix = &config.shared.stream_prefix;
        let place = place(config, &net.broker);
        let opened = store::open_existing(&place, prefix, &|| net.broker.connect());
        match opened {
            Ok(store) => {
                return Ok(Access {
                    store,
                    _server: Some((net, exited, lock)),
                });
            }
            Err(e @ StoreError::NotFound { .. }) => return Err(e.to_string()),
            Err(e) if Instant::now() >= deadline => return Err(e.to_string()),
            Err(_) => {}
        }
        if let Ok(end) = exited.recv_timeout(backoff.wait()) {
            return Err(end.to_string());
        }
    }
}

fn connect(client: &ClientOptions) -> Result<Client, StreamError> {
    Client::connect(client, store::CONNECT)
}

/// The id that the daemon would run under: its server's folder has the name.
fn node(config: &Config, options: &Options) -> u64 {
    let kept = || {
        let conn = Connection::open(&config.db_path).ok()?;
        let id: Option<i64> = conn
            .query_row(
                "SELECT value FROM __harmonylite___meta WHERE key = 'node_id'",
                [],
                |r| r.get(0),
            )
            .optional()
            .ok()?;
        id.map(|id| id as u64)
    };
    let configured = options.node_id.or(config.node_id);
    let configured = configured.or_else(|| derive(&MACHINE_ID_FILES));
    let exists = config.db_path.exists();
    configured.or_else(|| exists.then(kept)?).unwrap_or(1)
}

#[cfg(test)]
mod tests;

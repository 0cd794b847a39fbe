//! Access to the store of snapshots for a command that runs beside a daemon, or without one.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use rusqlite::Connection;

use crate::cli::Flags;
use crate::config::Config;
use crate::config::node_id::{MACHINE_ID_FILES, derive};
use crate::config::snapshot::StoreSettings as Kind;
use crate::daemon::net::{self, Net, client_options, server_store};
use crate::daemon::snapshots::place;
use crate::database::meta::{Meta, get_meta};
use crate::db_file::access::FileAccess;
use crate::lock;
use crate::model::backoff::Backoff;
use crate::model::manifest::Manifest;
use crate::snapshot::transfer;
use crate::store::{self, Store, StoreError};
use crate::stream::StreamError;
use crate::stream::client::{Client, ClientOptions};
use crate::stream::server;
use crate::thread::Exited;

/// Our own server is up within this time, or cannot be had.
const SERVER_WITHIN: Duration = Duration::from_secs(20);

/// A store, and everything that must live for as long as it is used.
pub(super) struct Access {
    pub store: Box<dyn Store>,
    _server: Option<(Net, Receiver<Exited>, std::fs::File)>,
}

pub(super) fn read(config: &Config, store: &mut dyn Store) -> Result<Manifest, String> {
    let manifest = transfer::read_manifest(store, &config.common.stream_prefix);
    Ok(manifest.map_err(|e| e.to_string())?.unwrap_or_default())
}

pub(super) fn open(config: &Config, options: &Flags) -> Result<Access, String> {
    let embedded = config.nats.urls.is_empty();
    let prefix = &config.common.stream_prefix;
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
            store: store::sealed(store, &config.seal, prefix),
            _server: None,
        });
    }
    // The snapshots are on our own server: the one that a running daemon has, or one that we start.
    let access = FileAccess::of_database(&config.db_path);
    match lock::take(&lock::of_database(&config.db_path), &access) {
        Ok(Some(lock)) => own_server(config, options, node, lock),
        Ok(None) => {
            let client = server::running(&server_store(config, &name), &name).ok_or(
                "a daemon runs on this database, but its nats-server is not up: try again later",
            )?;
            let store = store::open_existing(place, prefix, &|| connect(&client));
            let store = store.map_err(|e| e.to_string())?;
            Ok(Access {
                store: store::sealed(store, &config.seal, prefix),
                _server: None,
            })
        }
        Err(e) => Err(format!("locking {}: {e}", config.db_path.display())),
    }
}

/// The warning about the store that the daemon logs when it opens it.
pub(super) fn warning(place: &Kind) -> Option<&'static str> {
    match place {
        Kind::Sftp(sftp) if sftp.trusts_anybody() => Some(
            "snapshot.sftp.insecure_ignore_host_key is set: any server that answers gets the \
             login and the snapshots",
        ),
        _ => None,
    }
}

fn own_server(
    config: &Config,
    options: &Flags,
    node: u64,
    lock: std::fs::File,
) -> Result<Access, String> {
    let (exits, exited) = unbounded();
    let dialer = Arc::new(net::dialer(config));
    let net = Net::start(config, options, node, (&dialer, None), &exits);
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    let deadline = Instant::now() + SERVER_WITHIN;
    loop {
        let prefix = &config.common.stream_prefix;
        let place = place(config, &net.broker);
        let opened = store::open_existing(&place, prefix, &|| net.broker.connect());
        match opened {
            Ok(store) => {
                return Ok(Access {
                    store: store::sealed(store, &config.seal, prefix),
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

/// The id under which the daemon would run: its server's folder is named by it.
fn node(config: &Config, options: &Flags) -> u64 {
    let kept = || {
        let conn = Connection::open(&config.db_path).ok()?;
        let id: Option<i64> = get_meta(&conn, Meta::NodeId).ok()?;
        id.map(|id| id as u64)
    };
    let configured = options.node_id.or(config.node_id);
    let configured = configured.or_else(|| derive(&MACHINE_ID_FILES));
    let exists = config.db_path.exists();
    configured.or_else(|| exists.then(kept)?).unwrap_or(1)
}

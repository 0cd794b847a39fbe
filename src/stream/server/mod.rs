//! The supervised `nats-server` ("embedded NATS"), used when `nats.urls` is empty.
//!
//! ```text
//! <folder>/<node>/        the store: whatever nats-server writes
//! <folder>/<node>.lock    locked by the daemon and by the child
//! <folder>/<node>.run/    nats.conf (generated, mode 0600) and the file that tells the port
//! ```
//!
//! Two servers on one store would both acknowledge the same sequences, and the messages of one
//! would be lost. nats-server does not check for that. So the lock file is the child's stdin: the
//! lock is held as long as the daemon *or* the child lives, and an orphaned server keeps a second
//! one out.
//!
//! [`Server::start`] returns when the port is known. JetStream may not be ready then: only a stream
//! and an acknowledgement prove that. When the server exits, its owner waits and starts it again
//! with the same options. The port may be different then.

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use crossbeam_channel::{Receiver, Sender, select};
use rustix::process::Signal;
use serde_json::Value;

use super::client::ClientOptions;
use crate::db_file::access::FileAccess;
use crate::db_file::with_end;
use crate::lock;
use child::Child;
use config::ServerConfig;
use discover::ServerPeers;

mod binary;
mod child;
mod config;
mod discover;
mod sections;
mod user_config;

pub use binary::find_binary;

/// Deadline for the port file. It appeared after 6 to 14 ms in tests, but the server recovers its
/// store first, and the recovery of a big store on an SD card must not be interrupted.
const START_TIMEOUT: Duration = Duration::from_secs(600);
const START_POLL: Duration = Duration::from_millis(5);
/// After SIGTERM the server writes its state, which took 1 to 7 ms in tests.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Blocks of the file that tests whether the disk is full: 1 MiB, as large as the largest messages.
const PROBE_BLOCKS: usize = (1 << 20) / 4096;

/// JetStream domain of our own servers. A leaf finds the streams of its hub by it, since each of
/// our other servers may be a hub. If the hub uses a different domain, the operator's file names
/// it: `default_js_domain { $G: other }`.
pub(super) const DOMAIN: &str = "harmonylite";

/// Exists in the store of a server that was part of a cluster: the state that the servers agree on.
const OF_CLUSTER: &str = "jetstream/$SYS/_js_/_meta_";

/// Program, store, addresses and login of the supervised server.
#[derive(Clone, Default)]
pub struct ServerOptions {
    /// Path of the program; searched for if none is given (see [`find_binary`]).
    pub binary: Option<PathBuf>,
    /// Name of the server, `harmonylite-node-<id>`; must be unique in the cluster.
    pub node_name: String,
    /// Folder of its data, `<database folder>/nats/<node_name>`.
    pub store_dir: PathBuf,
    /// Most bytes that it stores there; none: no limit.
    pub max_bytes: Option<u64>,
    /// `HOST:PORT` for clients; port -1 means any free port.
    pub bind_address: String,
    /// Name and password of clients. None means a random password per start, unless `user_config`
    /// defines logins.
    pub user: Option<(String, String)>,
    /// `HOST:PORT` for the other servers of the cluster; none if it is not in a cluster.
    pub cluster_addr: Option<String>,
    /// `nats://host:port/`, or `dns://host:port/?min=3&interval_ms=1000`. Credentials in a URL are
    /// those that the servers present to each other.
    pub peers: Vec<String>,
    /// The login of the servers of the cluster at each other, besides those in `peers`.
    pub route_login: Option<(String, String)>,
    /// PEM files for TLS between them: authority, certificate, key.
    pub route_tls: Option<[PathBuf; 3]>,
    /// Servers without a login may join the cluster.
    pub is_insecure: bool,
    /// URLs of the hubs that it connects to as a leaf node.
    pub leaf_servers: Vec<String>,
    /// The operator's own nats-server configuration; takes precedence over the generated one.
    pub user_config: Option<PathBuf>,
}

impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |urls: &[String]| -> Vec<_> {
            urls.iter()
                .map(|url| url.parse::<crate::address::server::Address>())
                .collect()
        };
        f.debug_struct("ServerOptions")
            .field("binary", &self.binary)
            .field("node_name", &self.node_name)
            .field("store_dir", &self.store_dir)
            .field("max_bytes", &self.max_bytes)
            .field("bind_address", &self.bind_address)
            .field("user", &self.user.as_ref().map(|(user, _)| user))
            .field("cluster_addr", &self.cluster_addr)
            .field("peers", &named(&self.peers))
            .field("leaf_servers", &named(&self.leaf_servers))
            .field("user_config", &self.user_config)
            .finish()
    }
}

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No program was found; the value names the places tried.
    #[error(
        "no nats-server found (tried {0}): install it (apt-get install nats-server, or a release \
         from github.com/nats-io/nats-server), set nats.server_binary to its path, or set \
         nats.urls to use a server that runs elsewhere"
    )]
    NoBinary(String),
    /// The store at this path is locked.
    #[error(
        "store {0} is in use by another nats-server or daemon: stop that one, or wait for it to \
         end; if it is that of another database in the same directory, set nats.store_dir to a \
         directory of its own for each"
    )]
    StoreInUse(PathBuf),
    /// The store at this path was part of a cluster, and the options describe a lone server.
    #[error(
        "store {0} belongs to a cluster, whose streams a lone server would lose: start with the \
         flags -cluster-addr and -cluster-peers, as before; or, if this node is to be alone from \
         now on, move {0} away: then this node republishes all rows"
    )]
    OfCluster(PathBuf),
    /// The generated or the operator's configuration was refused, for this reason.
    #[error("configuration of the embedded nats-server: {0}")]
    Config(String),
    /// A file or process operation failed; the text names it.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// The server ended, or did not open its port in time; the value holds its last log lines.
    #[error("nats-server did not start: {0}")]
    Failed(String),
    /// `stop` was closed while [`Server::start`] waited.
    #[error("stopped")]
    Stopped,
}

impl ServerError {
    /// Whether another attempt cannot succeed until someone installs or configures something.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            ServerError::NoBinary(_) | ServerError::OfCluster(_) | ServerError::Config(_)
        )
    }

    fn io(tried: impl fmt::Display, path: &Path) -> impl FnOnce(io::Error) -> ServerError {
        let tried = format!("{tried} {}", path.display());
        move |error| ServerError::Io(tried, error)
    }
}

/// File that tells commands on the same machine how to reach the server.
const REACH: &str = "client.json";

fn leave_word(
    run_dir: &Path,
    url: &str,
    user: &Option<(String, String)>,
) -> Result<(), ServerError> {
    let path = run_dir.join(REACH);
    let text = serde_json::json!({ "url": url, "user": user }).to_string();
    // The file holds a password.
    let file = FileAccess::OURS.replace(&path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(ServerError::io("write", &path))
}

/// How to connect to the server that a different process runs on this store. None if no server has
/// run there; the server may have ended since. `name` is the connection's name.
pub fn running(store: &Path, name: &str) -> Option<ClientOptions> {
    #[derive(serde::Deserialize)]
    struct ServerAccess {
        url: String,
        user: Option<(String, String)>,
    }
    let text = fs::read(beside(store, "run").join(REACH)).ok()?;
    let ServerAccess { url, user } = serde_json::from_slice(&text).ok()?;
    Some(ClientOptions {
        name: name.to_owned(),
        urls: vec![url],
        user,
        ..ClientOptions::default()
    })
}

/// A running `nats-server`. Dropping it ends the process without waiting. Until the process has
/// ended, a new start on its store fails with [`ServerError::StoreInUse`].
pub struct Server {
    // Dropped in this order: first no more signals for new peers, then the child, then the lock.
    _asking_for_peers: Option<Sender<()>>,
    child: Child,
    _lock: File,
    store: PathBuf,
    url: String,
    user: Option<(String, String)>,
}

impl Server {
    /// Starts the server and waits until it listens. Returns an error if it ends, or if `stop` is
    /// closed.
    pub fn start(options: &ServerOptions, stop: &Receiver<()>) -> Result<Server, ServerError> {
        let binary = find_binary(options.binary.as_deref())?;
        let store = &options.store_dir;
        let for_us = |path: &Path| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
        };
        for_us(store).map_err(ServerError::io("create", store))?;
        let lock = lock_store(store)?;
        let run_dir = beside(store, "run");
        // The port file of a killed server would be taken for the new one's.
        let _ = fs::remove_dir_all(&run_dir);
        for_us(&run_dir).map_err(ServerError::io("create", &run_dir))?;

        let peers = ServerPeers::parse(&options.peers).map_err(ServerError::Config)?;
        let known = peers.resolve_first();
        let mut config = ServerConfig::new(options, &run_dir)?;
        if config.is_alone() && store.join(OF_CLUSTER).is_dir() {
            return Err(ServerError::OfCluster(store.clone()));
        }
        config.write(&known)?;
        config.probe(&binary, &known)?;

        let stdin = lock
            .try_clone()
            .map_err(ServerError::io("share the lock of", store))?;
        let child = Child::spawn(&binary, &config.arguments(), stdin)?;
        let url = wait_until_listening(&child, &run_dir, &options.bind_address, stop)?;
        log::info!(
            "nats-server {} (pid {}) listens at {url}",
            binary.display(),
            child.pid()
        );
        let user = config.user();
        leave_word(&run_dir, &url, &user)?;
        let process = child.process().clone();
        let asking = peers.keep_asking(known, move |routes| match config.write(routes) {
            Ok(()) => process.signal(Signal::HUP),
            Err(error) => log::warn!("tell nats-server its new peers: {error}"),
        });
        Ok(Server {
            _asking_for_peers: asking,
            child,
            _lock: lock,
            store: store.clone(),
            url,
            user,
        })
    }

    /// `nats://127.0.0.1:port`, for clients in this process.
    pub fn client_url(&self) -> String {
        self.url.clone()
    }

    /// Name and password to connect with. None if the operator's configuration defines logins and
    /// the options name no user.
    pub fn user(&self) -> Option<(String, String)> {
        self.user.clone()
    }

    /// Options to connect to it under the connection name `name`.
    pub fn client_options(&self, name: &str) -> ClientOptions {
        let (name, urls, user) = (name.to_string(), vec![self.client_url()], self.user());
        ClientOptions {
            name,
            urls,
            user,
            ..ClientOptions::default()
        }
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// How the server ended, with its last log lines; none while it runs.
    pub fn exited(&self) -> Option<String> {
        self.child.exited()
    }

    /// Closed when the server has ended, for use in a select. Then call [`exited`](Server::exited).
    pub fn end(&self) -> &Receiver<()> {
        self.child.end()
    }

    /// Receives a message when a write of the server fails: it then accepts no messages until it is
    /// restarted.
    pub fn refuses(&self) -> &Receiver<()> {
        self.child.refuses()
    }

    /// Whether the disk of its store accepts another 1 MiB.
    pub fn can_write(&self) -> bool {
        let probe = self.store.join("probe");
        let written = FileAccess::OURS
            .replace(&probe)
            .and_then(|mut file| (0..PROBE_BLOCKS).try_for_each(|_| file.write_all(&[0; 4096])));
        let _ = fs::remove_file(probe);
        written.is_ok()
    }

    /// Stops the server in good order: its state is then written, as far as the system has synced
    /// it. Kills it at once, and returns true, when `hurry` receives something or is closed.
    pub fn stop(self, hurry: &Receiver<()>) -> bool {
        self.child.stop(hurry, STOP_TIMEOUT)
    }
}

/// `<store>.<kind>`, outside the store itself.
fn beside(store: &Path, kind: &str) -> PathBuf {
    with_end(store, &format!(".{kind}"))
}

fn lock_store(store: &Path) -> Result<File, ServerError> {
    let path = beside(store, "lock");
    match lock::take(&path, &FileAccess::OURS).map_err(ServerError::io("lock", &path))? {
        Some(file) => Ok(file),
        None => Err(ServerError::StoreInUse(store.to_path_buf())),
    }
}

/// Waits for the port file and makes a URL of it.
fn wait_until_listening(
    child: &Child,
    run_dir: &Path,
    bind: &str,
    stop: &Receiver<()>,
) -> Result<String, ServerError> {
    let file = run_dir.join(format!("nats-server_{}.ports", child.pid()));
    let host = sections::split_host_port(bind)
        .map_err(ServerError::Config)?
        .0;
    // A server that listens on all interfaces listens on loopback, too.
    let host = match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => "127.0.0.1".to_string(),
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host,
    };
    let polls = START_TIMEOUT.as_millis() / START_POLL.as_millis();
    for _ in 0..polls {
        // An incomplete file does not parse, and is read again.
        let ports = fs::read(&file).ok();
        let ports: Option<Value> = ports.and_then(|text| serde_json::from_slice(&text).ok());
        let url = ports.as_ref().and_then(|ports| ports["nats"][0].as_str());
        if let Some((_, port)) = url.and_then(|url| url.trim_end_matches('/').rsplit_once(':')) {
            return Ok(format!("nats://{host}:{port}"));
        }
        select! {
            recv(child.end()) -> _ => return Err(ServerError::Failed(child.last_words())),
            recv(stop) -> _ => return Err(ServerError::Stopped),
            default(START_POLL) => {}
        }
    }
    let waited = START_TIMEOUT.as_secs();
    Err(ServerError::Failed(format!(
        "no port within {waited} s: {}",
        child.last_words()
    )))
}

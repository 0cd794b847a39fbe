//! The connection to the broker: an external one, or our own nats-server, kept running.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::membership;
use crate::address::secret::Secret;
use crate::address::server::encode;
use crate::cli::{Flags, Peer};
use crate::cluster::broker::{JetStreamBroker, meta_bucket};
use crate::cluster::dialer::Dialer;
use crate::config::nats::ServerLogin;
use crate::config::{Config, NatsSettings};
use crate::model::backoff::Backoff;
use crate::seal::Seal;
use crate::stream::bandwidth::Bandwidth;
use crate::stream::client::ClientOptions;
use crate::stream::jetstream::StreamOptions;
use crate::stream::server::{Server, ServerError, ServerOptions};
use crate::thread::{Exited, spawn};

/// Longest wait between two attempts to start our own server.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// First wait before a failed disk is checked again. The wait grows, because each check wears the
/// disk.
const DISK_CHECK: Duration = Duration::from_secs(1);

/// The broker, and our own nats-server's thread if no URL is configured.
pub struct Net {
    /// The broker that all threads share.
    pub broker: Arc<JetStreamBroker>,
    /// Our own nats-server's thread. A message ends it in good order, a dropped sender at once.
    pub server: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Net {
    /// Prepares the broker. Starts our own nats-server if `nats.urls` is empty.
    pub fn start(
        config: &Config,
        options: &Flags,
        node: u64,
        (dialer, bandwidth): (&Arc<Dialer>, Option<&Arc<Bandwidth>>),
        exits: &Sender<Exited>,
    ) -> Net {
        let name = format!("harmonylite-node-{node}");
        let embedded = config.nats.urls.is_empty();
        let options = &match embedded {
            true => membership::complete(options, &server_store(config, &name)),
            false => options.clone(),
        };
        let servers = if embedded { server_count(options) } else { 1 };
        let streams = stream_options(config, servers);
        let edge = EdgeOptions {
            seal: config.seal.clone(),
            meta_bucket: meta_bucket(&config.common.stream_prefix),
            heartbeat: config.edge.heartbeat,
            bandwidth: bandwidth.cloned(),
        };
        let client = (!embedded).then(|| edge.with(client_options(&config.nats, &name)));
        let broker = Arc::new(JetStreamBroker::new(
            client,
            streams,
            (node, !config.publish),
            dialer.clone(),
        ));
        let server = embedded.then(|| {
            let server = server_options(config, options, name);
            supervise(
                server,
                broker.clone(),
                (edge, config.nats.reconnect_wait),
                exits,
            )
        });
        Net { broker, server }
    }
}

/// Decides when the threads connect.
pub fn dialer(config: &Config) -> Dialer {
    Dialer::new(config.nats.reconnect_wait / 4, longest_wait(config))
}

/// Longest wait between two attempts to connect. Our own server is on this machine: to try it costs
/// no traffic, and it may wait for the servers of other nodes.
pub(super) fn longest_wait(config: &Config) -> Duration {
    let nats = &config.nats;
    match nats.urls.is_empty() {
        true => nats.reconnect_wait,
        false => nats.reconnect_wait.max(nats.reconnect_max_wait),
    }
}

/// Options of a client of an external broker, as configured.
pub fn client_options(nats: &NatsSettings, name: &str) -> ClientOptions {
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
        domain: nats.jetstream_domain.clone(),
        ..ClientOptions::default()
    }
}

/// The options of a client that do not say how to reach the broker.
#[derive(Clone)]
struct EdgeOptions {
    seal: Arc<Seal>,
    meta_bucket: String,
    heartbeat: Option<Duration>,
    bandwidth: Option<Arc<Bandwidth>>,
}

impl EdgeOptions {
    fn with(&self, options: ClientOptions) -> ClientOptions {
        ClientOptions {
            seal: self.seal.clone(),
            meta_bucket: self.meta_bucket.clone(),
            heartbeat: self.heartbeat,
            bandwidth: self.bandwidth.clone(),
            ..options
        }
    }
}

/// Options of the streams, in a cluster of `servers` servers of our own. Fewer replicas than
/// servers would put a stream on one node, without which no node could publish. Three are enough.
pub fn stream_options(config: &Config, servers: u32) -> StreamOptions {
    StreamOptions {
        stream_prefix: config.common.stream_prefix.clone(),
        subject_prefix: config.common.subject_prefix.clone(),
        compress: config.common.compress,
        shards: config.common.shards,
        max_entries: config.replication_log.entries() as i64,
        is_chosen: config.replication_log.max_entries == 0,
        max_bytes: config
            .replication_log
            .max_bytes
            .or(config.nats.stream_share(config.common.shards)),
        max_age: config.replication_log.max_age,
        replicas: u32::from(config.replication_log.replicas).max(servers.min(3)),
        update_existing: config.replication_log.update_existing,
    }
}

/// The number of servers that the command line names, this one included.
fn server_count(options: &Flags) -> u32 {
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

fn server_options(config: &Config, options: &Flags, node_name: String) -> ServerOptions {
    let urls = |peers: &[Peer], login: &Option<ServerLogin>| -> Vec<String> {
        let urls = peers.iter().map(peer_url);
        urls.map(|url| with_login(url, login)).collect()
    };
    let route_login = &route_login(config, options);
    let password = config
        .nats
        .user_password
        .as_ref()
        .map_or("", |p| p.reveal())
        .to_owned();
    ServerOptions {
        binary: config.nats.server_binary.clone(),
        store_dir: server_store(config, &node_name),
        max_bytes: config.nats.store_max_bytes,
        node_name,
        bind_address: config.nats.bind_address.to_string(),
        user: config.nats.user_name.clone().map(|user| (user, password)),
        cluster_addr: options.cluster_addr.as_ref().map(ToString::to_string),
        peers: urls(&options.cluster_peers, route_login),
        leaf_servers: urls(&options.leaf_servers, &config.nats.leaf_login),
        route_login: route_login
            .as_ref()
            .map(|l| (l.user.clone(), l.password.reveal().to_owned())),
        route_tls: config.nats.route_tls.clone(),
        is_insecure: options.insecure_cluster,
        user_config: config.nats.server_config.clone(),
    }
}

/// The login of our own servers at each other: as configured, else made of the cluster key, unless
/// they know each other in a different way.
fn route_login(config: &Config, options: &Flags) -> Option<ServerLogin> {
    let nats = &config.nats;
    let has_login = |peer: &Peer| peer_url(peer).contains('@');
    let is_closed = nats.route_tls.is_some() || options.cluster_peers.iter().any(has_login);
    let key = config.seal.key();
    let key = key.filter(|_| !is_closed && !options.insecure_cluster);
    let derived = key.map(|key| ServerLogin {
        user: "harmonylite".into(),
        password: Secret::new(key.route_password()),
    });
    nats.route_login.clone().or(derived)
}

/// The URL with the configured login, unless it has one.
fn with_login(url: String, login: &Option<ServerLogin>) -> String {
    match (login, url.split_once("://")) {
        (Some(login), Some((scheme, rest))) if !url.contains('@') => {
            let (user, password) = (encode(&login.user), encode(login.password.reveal()));
            format!("{scheme}://{user}:{password}@{rest}")
        }
        _ => url,
    }
}

/// The folder where our own server keeps its streams.
pub fn server_store(config: &Config, node_name: &str) -> PathBuf {
    let beside = || config.db_path.with_file_name("nats");
    let folder = config.nats.store_dir.clone().unwrap_or_else(beside);
    folder.join(node_name)
}

pub(super) fn peer_url(peer: &Peer) -> String {
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

/// Keeps our own nats-server running. The kernel ends the server with the thread that started it,
/// so that none is left behind; that thread must live as long as the server. A message ends both
/// in good order; dropping the sender ends both at once.
fn supervise(
    options: ServerOptions,
    broker: Arc<JetStreamBroker>,
    (edge, wait): (EdgeOptions, Duration),
    exits: &Sender<Exited>,
) -> (Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = bounded(1);
    let thread = spawn("nats-server", exits, move || {
        let mut backoff = Backoff::new(wait / 4, LONGEST_BACKOFF);
        loop {
            let cause = match Server::start(&options, &stopped) {
                Ok(server) => {
                    broker.set_client(Some(edge.with(server.client_options(&options.node_name))));
                    backoff.reset();
                    let cause = attend(&server, &stopped);
                    if cause.is_some() {
                        broker.set_client(None);
                    }
                    let hurried = server.stop(&stopped);
                    match cause {
                        Some(cause) if !hurried => cause,
                        _ => return Ok(()),
                    }
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

/// Waits until the server ends, and returns the cause. Also returns once a write of the server has
/// failed and the disk is well again: the server must then be restarted, and until then it can
/// still be read. None: it shall stop.
fn attend(server: &Server, stopped: &Receiver<()>) -> Option<String> {
    select! {
        recv(stopped) -> _ => return None,
        recv(server.end()) -> _ => {}
        recv(server.refuses()) -> _ => {}
    }
    let mut backoff = Backoff::new(DISK_CHECK, LONGEST_BACKOFF);
    loop {
        select! {
            recv(stopped) -> _ => return None,
            recv(server.end()) -> _ => return Some(server.exited().unwrap_or_default()),
            default(backoff.wait()) => {}
        }
        if server.can_write() {
            return Some("a write failed, and it takes no messages until it is restarted".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::key;

    #[test]
    fn servers_of_one_cluster_key_have_a_login() {
        let folder = tempfile::tempdir().unwrap();
        let (database, file) = (folder.path().join("a.db"), folder.path().join("key"));
        std::fs::write(&file, key::make(1).unwrap()).unwrap();
        let login = |more: &str, flags: &Flags| {
            let text = format!("db_path = '{}'\n{more}", database.display());
            let config = Config::parse("box.toml".as_ref(), &text).unwrap();
            route_login(&config, flags)
        };
        let with_key = format!("cluster_key_file = '{}'\n", file.display());
        let flags = Flags::default();
        let derived = login(&with_key, &flags).unwrap();
        assert_eq!(derived.password.reveal().len(), 64);
        assert_eq!(login(&with_key, &flags), Some(derived));
        let own = format!("{with_key}[nats.cluster]\npassword = 'own'\n");
        assert_eq!(login(&own, &flags).unwrap().password.reveal(), "own");
        assert_eq!(login("", &flags), None);
        let insecure = Flags {
            insecure_cluster: true,
            ..flags
        };
        assert_eq!(login(&with_key, &insecure), None);
    }
}

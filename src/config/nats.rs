//! `[nats]`: how to reach the servers, or how to run one beside us; names that NATS accepts.

use std::path::PathBuf;
use std::time::Duration;

use super::section::Section;
use crate::address::configured::{ListenAddress, ServerUrl};
use crate::address::secret::Secret;

/// The meaning of every `replicas` key, for error messages.
pub(super) const REPLICAS: &str = "servers that keep a copy";

/// Smallest limit of a stream: below it, the stream could not hold a row of 1 MB.
const LEAST_BYTES: u64 = 4 << 20;

/// Smallest limit of our server's store, for each shard.
const STORE_PER_SHARD: u64 = 4 * LEAST_BYTES;

/// Schemes of a client's URL; WebSocket is not supported.
const SCHEMES: [&str; 2] = ["nats", "tls"];

/// `[nats]`, without the prefixes, which are in [`super::Common`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsSettings {
    /// Empty: run a server beside us.
    pub urls: Vec<ServerUrl>,
    /// A file that the configuration of our own server includes.
    pub server_config: Option<PathBuf>,
    /// None: look beside our executable, then in PATH.
    pub server_binary: Option<PathBuf>,
    /// The folder where our own server keeps its streams, with a subfolder per node; none: `nats`
    /// beside the database.
    pub store_dir: Option<PathBuf>,
    /// Most bytes that our own server keeps there; none: no limit.
    pub store_max_bytes: Option<u64>,
    /// The address where our own server listens for clients.
    pub bind_address: ListenAddress,
    /// A seed, or a JWT with its seed, for the login; read for every connection.
    pub seed_file: Option<PathBuf>,
    /// Login by name and password.
    pub user_name: Option<String>,
    /// None: the password is empty. Never set without `user_name`.
    pub user_password: Option<Secret>,
    /// PEM file of the authority that signed the servers' certificates; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of this client's certificate and key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// The login that our own servers present to each other.
    pub route_login: Option<ServerLogin>,
    /// The login with which our own server joins `-leaf-servers`.
    pub leaf_login: Option<ServerLogin>,
    /// PEM files for mutual TLS between our own servers: authority, certificate, key.
    pub route_tls: Option<[PathBuf; 3]>,
    /// The JetStream domain to use on `urls`; none: the server's own.
    pub jetstream_domain: Option<String>,
    /// Attempts after the first before giving up; none: try for ever.
    pub connect_retries: Option<u32>,
    /// Wait between two attempts at first, 1 s to 3600 s.
    pub reconnect_wait: Duration,
    /// Longest wait between two attempts, 1 s to a day.
    pub reconnect_max_wait: Duration,
}

/// The login of a server at another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLogin {
    /// Its name.
    pub user: String,
    /// Never empty.
    pub password: Secret,
}

impl ServerLogin {
    fn read(section: &Section, default_user: &str) -> Option<ServerLogin> {
        let user = section.string("user");
        let from_file = section.file("password_file").and_then(|file| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().next().unwrap_or_default().trim().to_owned();
            if line.is_empty() {
                section.note("password_file", "must hold a password in its first line");
            }
            (!line.is_empty()).then(|| Secret::new(line))
        });
        let given = section.secret("password");
        if given.is_some() && from_file.is_some() {
            section.note(
                "password_file",
                "is set beside password: keep one of the two",
            );
        }
        let password = given.or(from_file);
        if password.is_none() && user.is_some() {
            section.note(
                "user",
                "is set, so password or password_file must be set too",
            );
        }
        Some(ServerLogin {
            user: user.unwrap_or_else(|| default_user.to_owned()),
            password: password?,
        })
    }
}

/// Authority, certificate and key, which are needed together.
fn read_route_tls(section: &Section) -> Option<[PathBuf; 3]> {
    let keys = ["ca_file", "cert_file", "key_file"];
    let files = keys.map(|key| section.file(key));
    if let [Some(ca), Some(cert), Some(key)] = &files {
        return Some([ca, cert, key].map(Clone::clone));
    }
    if files.iter().any(Option::is_some) {
        for (key, _) in keys.iter().zip(&files).filter(|(_, file)| file.is_none()) {
            section.note(
                key,
                "is missing: ca_file, cert_file and key_file go together",
            );
        }
    }
    None
}

impl NatsSettings {
    /// Bytes of the store of our own server that each of `shards` streams may take: half of it for
    /// all. None: no limit is set, or the server is not ours.
    pub fn stream_share(&self, shards: u32) -> Option<u64> {
        self.own_limit().map(|all| all / 2 / u64::from(shards))
    }

    /// Bytes of the store of our own server that snapshots may take: a third. The rest is for
    /// keys. None: no limit is set, or the server is not ours.
    pub fn snapshot_share(&self) -> Option<u64> {
        self.own_limit().map(|all| all / 3)
    }

    fn own_limit(&self) -> Option<u64> {
        self.store_max_bytes.filter(|_| self.urls.is_empty())
    }

    pub(super) fn read(section: &Section, shards: u32) -> NatsSettings {
        let user_name = section.string("user_name");
        let user_password = section.secret("user_password");
        if user_password.is_some() && user_name.is_none() {
            section.note("user_password", "is set, so user_name must be set too");
        }
        let retries = section.int(
            "connect_retries",
            0,
            0..=u32::MAX,
            "more attempts, 0 for ever",
        );
        NatsSettings {
            urls: read_urls(section),
            server_config: section.file("server_config"),
            server_binary: section.file("server_binary"),
            store_dir: section.path("store_dir"),
            store_max_bytes: limit(
                section,
                "store_max_bytes",
                STORE_PER_SHARD * u64::from(shards),
                "of the store, so that each stream has room for a row of 1 MB",
            ),
            bind_address: section.parsed("bind_address", "127.0.0.1:-1", str::parse),
            seed_file: section.file("seed_file"),
            user_name,
            user_password,
            ca_file: file_or_alias(section, "ca_file"),
            client_cert: read_client_cert(section),
            route_login: ServerLogin::read(&section.section("cluster"), "route"),
            leaf_login: ServerLogin::read(&section.section("leaf"), "leaf"),
            route_tls: read_route_tls(&section.section("cluster")),
            jetstream_domain: section.parsed("jetstream_domain", "", domain),
            connect_retries: (retries > 0).then_some(retries),
            reconnect_wait: read_reconnect_wait(section),
            reconnect_max_wait: Duration::from_secs(section.int(
                "reconnect_max_wait_seconds",
                300,
                1..=86_400,
                "longest time between two attempts",
            )),
        }
    }
}

/// An entry that does not fit is named by its number, because it may hold a password.
fn read_urls(section: &Section) -> Vec<ServerUrl> {
    let mut urls = Vec::new();
    for (index, text) in section.list("urls").unwrap_or_default().iter().enumerate() {
        let number = index + 1;
        match ServerUrl::parse(text, &SCHEMES) {
            Ok(url) => urls.push(url),
            Err(allowed) => {
                section.note(
                    "urls",
                    format!("has an entry, number {number}, that must be {allowed}"),
                );
            }
        }
    }
    urls
}

/// The client's certificate and key, which must be set together.
fn read_client_cert(section: &Section) -> Option<(PathBuf, PathBuf)> {
    match (
        file_or_alias(section, "cert_file"),
        file_or_alias(section, "key_file"),
    ) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (Some(_), None) => {
            section.note("cert_file", "is set, so key_file must be set too");
            None
        }
        (None, Some(_)) => {
            section.note("key_file", "is set, so cert_file must be set too");
            None
        }
        (None, None) => None,
    }
}

/// A file key under either name: the Go documentation says `tls_ca_file`, its code reads `ca_file`.
fn file_or_alias(section: &Section, key: &str) -> Option<PathBuf> {
    let alias = format!("tls_{key}");
    let (file, aliased) = (section.file(key), section.file(&alias));
    if file.is_some() && aliased.is_some() {
        section.note(
            &alias,
            format!("is a different name of {key}: keep one of the two"),
        );
    }
    file.or(aliased)
}

/// Seconds; 0 would be a busy loop, so it stands for the default.
fn read_reconnect_wait(section: &Section) -> Duration {
    const DEFAULT: u64 = 2;
    let seconds = section.int(
        "reconnect_wait_seconds",
        DEFAULT,
        0..=3600,
        "between two attempts",
    );
    Duration::from_secs(if seconds == 0 { DEFAULT } else { seconds })
}

/// The value of a `max_bytes` key; none: no limit.
pub(super) fn max_bytes(section: &Section) -> Option<u64> {
    limit(section, "max_bytes", LEAST_BYTES, "that a stream keeps")
}

/// A limit in bytes, at least `least`; none if it is 0, which is the default.
pub(super) fn limit(section: &Section, key: &str, least: u64, what: &str) -> Option<u64> {
    let what = format!("bytes {what}, 0 for no limit");
    let bytes = section.int(key, 0, 0..=i64::MAX as u64, &what);
    if (1..least).contains(&bytes) {
        let text = format!("is {bytes}, but must be 0 (no limit) or at least {least}");
        section.note(key, text);
    }
    (bytes > 0).then_some(bytes)
}

/// A token of a subject; none if empty.
fn domain(text: &str) -> Result<Option<String>, String> {
    match text {
        "" => Ok(None),
        text => name(text).map(Some),
    }
}

/// The name of a stream or bucket.
pub(super) fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=128).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.into());
    }
    Err("1 to 128 ASCII letters, digits, - and _".into())
}

/// A subject: one or more names separated by dots.
pub(super) fn subject(text: &str) -> Result<String, String> {
    match text.split('.').try_for_each(|token| name(token).map(drop)) {
        Ok(()) => Ok(text.into()),
        Err(allowed) => Err(format!(
            "{allowed}, also in several parts with a . between them"
        )),
    }
}

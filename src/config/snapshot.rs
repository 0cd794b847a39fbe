//! `[snapshot]`: when snapshots are made and where they are kept.
//!
//! The sections of all stores are checked, so that a mistake shows before the day of a switch. Keys
//! that a store cannot do without are required only if that store is in use.

use std::path::PathBuf;
use std::time::Duration;

use super::nats::{REPLICAS, max_bytes, name};
use super::section::Section;
use crate::address::secret::Secret;

pub(in crate::config) mod check;

/// `[snapshot]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// False: this node neither makes nor merges snapshots.
    pub enabled: bool,
    /// False: this node merges snapshots and makes none.
    pub make: bool,
    /// Folder for scratch files, which exists; none: the database's.
    pub scratch: Option<PathBuf>,
    /// False: a node that begins with a snapshot leaves out its triggers and views.
    pub takes_code: bool,
    /// Where snapshots are kept.
    pub store: StoreSettings,
    /// Time between two snapshots; none: only when much was written.
    pub interval: Option<Duration>,
    /// How long the node with the lease may be silent before another takes over; at least 1 s.
    pub leader_ttl: Duration,
}

/// The store in use, with its section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreSettings {
    /// The object store of the NATS servers.
    Nats(NatsStore),
    /// S3, or a server that speaks its protocol.
    S3(S3Store),
    /// A WebDAV server.
    WebDav(WebDavStore),
    /// A server reached by SFTP.
    Sftp(SftpStore),
    /// A directory, such as a mounted disk.
    File(FileStore),
}

impl StoreSettings {
    /// The name that `snapshot.store` uses for it.
    pub fn kind(&self) -> &'static str {
        match self {
            StoreSettings::Nats(_) => "nats",
            StoreSettings::S3(_) => "s3",
            StoreSettings::WebDav(_) => "webdav",
            StoreSettings::Sftp(_) => "sftp",
            StoreSettings::File(_) => "file",
        }
    }
}

/// `[snapshot.file]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStore {
    /// The directory.
    pub path: PathBuf,
    /// The database: those who may read it may read its snapshots.
    pub database: PathBuf,
}

/// `[snapshot.nats]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsStore {
    /// Servers that keep a copy, 1 to 5.
    pub replicas: u8,
    /// Most bytes of a new bucket; none: no limit.
    pub max_bytes: Option<u64>,
    /// None: a name of our choice.
    pub bucket: Option<String>,
}

/// `[snapshot.s3]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Store {
    /// Host, and port if needed; empty only if the store is not in use.
    pub endpoint: String,
    /// Name of the bucket; empty only if the store is not in use.
    pub bucket: String,
    /// A directory in the bucket, put before the names of objects.
    pub path: Option<String>,
    /// False: http in place of https.
    pub use_ssl: bool,
    /// Where the bucket's name stands: true behind the host, false before it; none: as the server
    /// demands.
    pub path_style: Option<bool>,
    /// Access key; set exactly if `secret` is.
    pub access_key: Option<Secret>,
    /// Secret key.
    pub secret: Option<Secret>,
    /// Token of a temporary login.
    pub session_token: Option<Secret>,
    /// None: the endpoint says it.
    pub region: Option<String>,
    /// Bytes sent in one piece, 5 MiB to 5 GiB.
    pub part_size: u64,
}

/// `[snapshot.webdav]`: either `url`, which holds everything, or `endpoint` and the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebDavStore {
    /// Address, directory and login in one.
    pub url: Option<Secret>,
    /// The server's root; never set beside `url`.
    pub endpoint: Option<String>,
    /// The directory on the server.
    pub path: Option<String>,
    /// Login, unless `url` has it.
    pub username: Option<String>,
    /// Password, unless `url` has it.
    pub password: Option<Secret>,
}

/// `[snapshot.sftp]`: either `url`, with address, login and path, or `endpoint` and the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftpStore {
    /// Address, login and directory in one.
    pub url: Option<Secret>,
    /// Host, and port if needed; never set beside `url`.
    pub endpoint: Option<String>,
    /// The directory on the server.
    pub path: Option<String>,
    /// Login, unless `url` has it.
    pub username: Option<String>,
    /// Password, unless `url` has it or `key_file` is used.
    pub password: Option<Secret>,
    /// The file of a private key.
    pub key_file: Option<PathBuf>,
    /// The passphrase of `key_file`.
    pub passphrase: Option<Secret>,
    /// The file of known servers' keys; none: `~/.ssh/known_hosts`.
    pub known_hosts: Option<PathBuf>,
    /// The server's public key, as a line of a `known_hosts` file has it.
    pub host_key: Option<String>,
    /// Trust any server, unless `host_key` is set.
    pub insecure_ignore_host_key: bool,
}

impl Snapshot {
    pub(super) fn read(section: &Section, database: PathBuf) -> Snapshot {
        let enabled = section.bool("enabled", true);
        let chosen = section.parsed("store", "nats", store_name);
        let used = |store: &str| enabled && chosen == store;
        if enabled {
            check::must_be_built_in(section, chosen);
        }
        let nats = NatsStore::read(&section.section("nats"));
        let s3 = S3Store::read(&section.section("s3"), used("s3"));
        let webdav = WebDavStore::read(&section.section("webdav"), used("webdav"));
        let sftp = SftpStore::read(&section.section("sftp"), used("sftp"));
        let file = read_file(&section.section("file"), used("file"));
        Snapshot {
            enabled,
            make: section.bool("make", true),
            scratch: section.folder("scratch"),
            takes_code: section.parsed("schema", "all", |text| match text {
                "all" => Ok(true),
                "tables" => Ok(false),
                _ => Err("all, tables".to_owned()),
            }),
            store: match chosen {
                "s3" => StoreSettings::S3(s3),
                "webdav" => StoreSettings::WebDav(webdav),
                "sftp" => StoreSettings::Sftp(sftp),
                "file" => StoreSettings::File(FileStore {
                    path: file.into(),
                    database,
                }),
                _ => StoreSettings::Nats(nats),
            },
            interval: section.millis_or_off("interval", 1_000, "between two snapshots"),
            leader_ttl: section.millis("leader_ttl", 30_000, 1_000, "until another takes over"),
        }
    }
}

fn store_name(text: &str) -> Result<&'static str, String> {
    let stores = ["nats", "s3", "webdav", "sftp", "file"];
    stores
        .into_iter()
        .find(|&store| store == text)
        .ok_or_else(|| stores.join(", "))
}

fn read_file(section: &Section, used: bool) -> String {
    let path = required(section, "path", used);
    check::file(section, &path);
    path
}

/// A string that must be there if the store is `used`; empty if not.
fn required(section: &Section, key: &str, used: bool) -> String {
    section.string(key).unwrap_or_else(|| {
        if used {
            section.note(key, "is missing, and snapshot.store needs it");
        }
        String::new()
    })
}

/// `url` and `endpoint`: never both, and at least one if the store is `used`. An endpoint may be
/// shown, so one that holds a login or a query is noted and left out.
fn read_address(section: &Section, used: bool) -> (Option<Secret>, Option<String>) {
    let url = section.secret("url");
    let endpoint = section.string("endpoint");
    match (&url, &endpoint) {
        (Some(_), Some(_)) => section.note("endpoint", "is set beside url: keep one of the two"),
        (None, None) if used => section.note("endpoint", "is missing, and snapshot.store needs it"),
        (None, Some(text)) if text.contains('@') => {
            section.note(
                "endpoint",
                "holds a login: move it to username and password",
            );
            return (url, None);
        }
        (None, Some(text)) if text.contains('?') => {
            section.note(
                "endpoint",
                "has a ?: move what is behind it to path, username and password",
            );
            return (url, None);
        }
        _ => {}
    }
    (url, endpoint)
}

impl NatsStore {
    fn read(section: &Section) -> NatsStore {
        let bucket = |text: &str| match text {
            "" => Ok(None),
            text => name(text).map(Some),
        };
        NatsStore {
            replicas: section.int("replicas", 1, 1..=5, REPLICAS),
            max_bytes: max_bytes(section),
            bucket: section.parsed("bucket", "", bucket),
        }
    }
}

impl S3Store {
    fn read(section: &Section, used: bool) -> S3Store {
        /// S3 takes no smaller parts, and no larger ones than 5 GiB.
        const PART: std::ops::RangeInclusive<u64> = 5 << 20..=5 << 30;
        let store = S3Store {
            endpoint: required(section, "endpoint", used),
            bucket: required(section, "bucket", used),
            path: section.string("path"),
            use_ssl: section.bool("use_ssl", true),
            path_style: section.bool_or_auto("path_style"),
            access_key: section.secret("access_key"),
            secret: section.secret("secret"),
            session_token: section.secret("session_token"),
            region: section.string("region"),
            part_size: section.int("part_size", *PART.start(), PART, "bytes, as S3 allows"),
        };
        check::s3(section, &store);
        store
    }
}

impl WebDavStore {
    fn read(section: &Section, used: bool) -> WebDavStore {
        let (url, endpoint) = read_address(section, used);
        let store = WebDavStore {
            url,
            endpoint,
            path: section.string("path"),
            username: section.string("username"),
            password: section.secret("password"),
        };
        check::webdav(section, &store, used);
        store
    }
}

impl SftpStore {
    /// Whether any server is trusted: `insecure_ignore_host_key` counts only without `host_key`.
    pub fn trusts_anybody(&self) -> bool {
        self.insecure_ignore_host_key && self.host_key.is_none()
    }

    fn read(section: &Section, used: bool) -> SftpStore {
        let (url, endpoint) = read_address(section, used);
        let store = SftpStore {
            url,
            endpoint,
            path: section.string("path"),
            username: section.string("username"),
            password: section.secret("password"),
            key_file: section.file("key_file"),
            passphrase: section.secret("passphrase"),
            known_hosts: section.file("known_hosts"),
            host_key: section.string("host_key"),
            insecure_ignore_host_key: section.bool("insecure_ignore_host_key", false),
        };
        check::sftp(section, &store, used);
        store
    }
}

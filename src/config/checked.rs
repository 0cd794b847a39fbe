//! The configuration as the rest of the program sees it: within bounds, with units, files present.
//!
//! Each struct reads its own section; `[nats]`, `[snapshot]` and `[tables]` have their own files.
//! `config.toml` explains the keys to operators, so the docs here add only types and units.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;

use super::edge::EdgeSettings;
use super::nats::{self, NatsSettings};
use super::raw::Document;
use super::section::Section;
use super::snapshot::Snapshot;
use super::tables::Tables;
use crate::address::configured::ListenAddress;
use crate::address::secret::Secret;
use crate::model::frame::{FRAME_BYTES, FRAME_BYTES_ALLOWED, MAX_MESSAGE_BYTES};
use crate::seal::{self, Seal};

/// Messages of a stream if the configuration leaves the number to us. A message takes little room
/// and a snapshot much, so this is more than the 1024 of the Go version.
const CHOSEN_ENTRIES: u64 = 65_536;

/// Least `max_age`, in milliseconds: a snapshot must be made within half of it.
const TEN_MINUTES: u64 = 600_000;

/// Least `logging.max_bytes`: the lines of a start, some times over.
const LEAST_LOG: u64 = 16 << 10;

/// Default of `max_held_bytes`, in bytes.
pub(crate) const MAX_HELD_BYTES: u64 = 64 << 20;

/// Default of `cache_size`, in KiB: SQLite's own.
pub(crate) const CACHE_SIZE: u32 = 2000;

/// Everything that can be configured. `common` holds the settings that all nodes must have in
/// common; the rest is this node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Settings that all nodes of the cluster must have in common.
    pub common: Common,
    /// The database file, with symbolic links followed; its folder exists.
    pub db_path: PathBuf,
    /// The configured id, never 0; if absent see [`super::node_id::derive`].
    pub node_id: Option<u64>,
    /// The name of this node for people: as configured, else the host's name.
    pub node_name: String,
    /// Shortest time between two status messages to the other nodes; none: no messages.
    pub status_interval: Option<Duration>,
    /// The file that shows how far each stream was read; its folder exists.
    pub seq_map_path: PathBuf,
    /// The Unix socket at which the running daemon answers; none: it has none.
    pub control_socket: Option<PathBuf>,
    /// Further names under which HTTP is asked by TCP.
    pub http_hosts: Vec<String>,
    /// `[edge]`
    pub edge: EdgeSettings,
    /// Whether changes of this database are sent to the other nodes.
    pub publish: bool,
    /// Whether changes of the other nodes are applied here.
    pub replicate: bool,
    /// Changed rows that a capture reads at a time, 1 to 1,000,000.
    pub scan_max_changes: usize,
    /// KiB of the database that SQLite keeps in memory, 64 to 1,048,576.
    pub cache_size: u32,
    /// Time between two clean-ups of our own tables.
    pub cleanup_interval: Duration,
    /// How long nothing may change before the daemon saves a snapshot and ends; none: never.
    pub sleep_timeout: Option<Duration>,
    /// Time between two checks of the database; none: rely on the file system's hints.
    pub polling_interval: Option<Duration>,
    /// Whether tables without a primary key are replicated, by rowid.
    pub allow_rowid_tables: bool,
    /// `ids.on_collision`: whether rows that two nodes gave one number are kept.
    pub keeps_collisions: bool,
    /// Names of the application's triggers that also run for rows that arrive.
    pub apply_triggers: Vec<String>,
    /// How far a local version may be ahead of the broker's clock.
    pub max_clock_drift: Duration,
    /// How long a write waits for the application's readers; 0: it does not wait.
    pub courtesy: Duration,
    /// How long a tombstone is kept, by the broker's clock.
    pub tombstone_retention: Duration,
    /// Most bytes of held changes of tables that are not in the database.
    pub max_held_bytes: u64,
    /// Largest frame that is put together from parts, in bytes after unpacking.
    pub max_frame_bytes: usize,
    /// The tables that take part.
    pub tables: Tables,
    /// The streams in which changes travel.
    pub replication_log: ReplicationLog,
    /// When snapshots are made, and where they are kept.
    pub snapshot: Snapshot,
    /// The servers, and how to log in to them.
    pub nats: NatsSettings,
    /// The file of the cluster key; none: everything is open.
    pub cluster_key_file: Option<PathBuf>,
    /// The keys in it, and whether what is not sealed is refused.
    pub seal: Arc<Seal>,
    /// The log.
    pub logging: Logging,
    /// The metrics and their address.
    pub prometheus: Prometheus,
    /// The address of `/health`, and the heartbeat.
    pub health_check: HealthCheck,
    /// Files and folders that others can change, each with who can; empty unless read from a file.
    pub exposed: Vec<String>,
}

/// Settings that all nodes of a cluster must have in common. A connecting node compares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    /// Number of streams, 1 to 256.
    pub shards: u32,
    /// Whether messages are compressed with zstd.
    pub compress: bool,
    /// Start of every subject's name; the shard follows.
    pub subject_prefix: String,
    /// Start of every stream's name; the shard follows.
    pub stream_prefix: String,
}

/// `[replication_log]`, without the keys in [`Common`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationLog {
    /// Most messages in a stream; 0: HarmonyLite chooses ([`ReplicationLog::entries`]).
    pub max_entries: i64,
    /// Most bytes in a stream; none: no limit, or HarmonyLite's choice.
    pub max_bytes: Option<u64>,
    /// Greatest age of a message in a stream; none: no limit.
    pub max_age: Option<Duration>,
    /// Servers that keep a copy of each stream, 1 to 5.
    pub replicas: u8,
    /// Whether the settings of existing streams are changed to these.
    pub update_existing: bool,
    /// Bytes up to which a transaction travels as one frame.
    pub max_transaction_bytes: usize,
}

/// `[logging]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// `level`, or debug if `verbose` and `level` would show less.
    pub level: LevelFilter,
    /// The form of a line.
    pub format: LogFormat,
    /// None: standard output, or the system's log if `syslog`.
    pub file: Option<PathBuf>,
    /// Most bytes of `file`; none: no limit.
    pub max_bytes: Option<u64>,
    /// Whether lines go to the system's log, in place of standard output; with `file`, to both.
    pub syslog: bool,
}

/// The form of a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Console,
    /// One JSON object a line.
    Json,
}

/// `[prometheus]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prometheus {
    /// Whether the address is served.
    pub enable: bool,
    /// The address to listen on.
    pub bind: ListenAddress,
    /// First part of every metric's name; may be empty.
    pub namespace: String,
    /// Second part of every metric's name; may be empty.
    pub subsystem: String,
}

/// `[health_check]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Whether the address is served.
    pub enable: bool,
    /// The address to listen on.
    pub bind: ListenAddress,
    /// Begins with a slash.
    pub path: String,
    /// False: answers have the HTTP status and no body.
    pub detailed: bool,
    /// The URL to call while all is well; it may hold a token.
    pub heartbeat_url: Option<Secret>,
    /// Shortest time between two calls.
    pub heartbeat_interval: Duration,
}

impl Config {
    /// Reads every key. A mistake is noted in `document`, and a stand-in takes the value's place.
    pub(super) fn read(document: &Document) -> Config {
        let top = document.top();
        let log = top.section("replication_log");
        let nats = top.section("nats");
        let db_path = read_db_path(&top);
        let seq_map_path = read_seq_map_path(&top, &db_path);
        let taken = [("db_path", &*db_path), ("seq_map_path", &*seq_map_path)];
        check_own(&top, "seq_map_path", &seq_map_path, &taken[..1]);
        let logging = Logging::read(&top.section("logging"), &taken);
        let common = Common::read(&log, &nats);
        let nats = NatsSettings::read(&nats, common.shards);
        let snapshot = Snapshot::read(&top.section("snapshot"), db_path.clone());
        let cluster_key_file = top.path("cluster_key_file");
        Config {
            exposed: Vec::new(),
            seal: Arc::new(read_seal(&top, cluster_key_file.as_deref())),
            cluster_key_file,
            edge: EdgeSettings::read(&top.section("edge"), nats.urls.is_empty()),
            control_socket: read_control_socket(&top, &db_path),
            http_hosts: top.list("http_hosts").unwrap_or_default(),
            seq_map_path,
            db_path,
            node_id: top.opt_int(
                "node_id",
                1..=i64::MAX as u64,
                "leave it out to have one made",
            ),
            node_name: top.parsed("node_name", "", node_name),
            status_interval: read_status_interval(&top),
            publish: top.bool("publish", true),
            replicate: top.bool("replicate", true),
            scan_max_changes: top.int("scan_max_changes", 512, 1..=1_000_000, "rows at a time"),
            cache_size: top.int(
                "cache_size",
                CACHE_SIZE,
                64..=1 << 20,
                "KiB of the database",
            ),
            cleanup_interval: top.millis("cleanup_interval", 5_000, 100, "between two clean-ups"),
            sleep_timeout: top.millis_or_off("sleep_timeout", 1, "of quiet before sleep"),
            polling_interval: top.millis_or_off("polling_interval", 10, "between two polls"),
            allow_rowid_tables: top.bool("allow_rowid_tables", true),
            keeps_collisions: top
                .section("ids")
                .parsed("on_collision", "replace", on_collision),
            apply_triggers: top.list("apply_triggers").unwrap_or_default(),
            max_clock_drift: top.millis("max_clock_drift", 60_000, 0, "ahead of the broker"),
            courtesy: read_courtesy(&top),
            tombstone_retention: read_tombstone_retention(&top),
            max_held_bytes: top.int(
                "max_held_bytes",
                MAX_HELD_BYTES,
                1 << 16..=1 << 40,
                "bytes of changes that do not fit the tables here",
            ),
            max_frame_bytes: top.int(
                "max_frame_bytes",
                FRAME_BYTES,
                FRAME_BYTES_ALLOWED,
                "bytes of a row and what travels with it, which a reader keeps in memory",
            ),
            tables: Tables::read(&top.section("tables")),
            replication_log: ReplicationLog::read(&log),
            snapshot,
            nats,
            common,
            logging,
            prometheus: Prometheus::read(&top.section("prometheus")),
            health_check: HealthCheck::read(&top.section("health_check")),
        }
    }
}

/// A name for people; if `text` is empty, the host's name.
fn node_name(text: &str) -> Result<String, String> {
    const LONGEST: usize = 64;
    if text.chars().any(char::is_control) || text.chars().count() > LONGEST {
        return Err(format!(
            "at most {LONGEST} characters, none of them a line break"
        ));
    }
    Ok(match text {
        "" => host_name(),
        text => text.to_owned(),
    })
}

fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    crate::model::text::printable(&name)
}

fn read_status_interval(top: &Section) -> Option<Duration> {
    const DEFAULT: u64 = 10_000;
    let least = 1_000;
    let millis = top.millis(
        "status_interval",
        DEFAULT,
        0,
        "between two reports to the others",
    );
    if !millis.is_zero() && millis < Duration::from_millis(least) {
        let text = format!(
            "is {}, but must be 0 (off) or at least {least}",
            millis.as_millis()
        );
        top.note("status_interval", text);
    }
    (!millis.is_zero()).then_some(millis)
}

fn read_control_socket(top: &Section, db_path: &Path) -> Option<PathBuf> {
    let path = match top.path("control_socket") {
        Some(path) => path,
        None if top.is_given("control_socket") => return None,
        None => return Some(crate::lock::socket_of_database(db_path)),
    };
    check_folder(top, "control_socket", &path);
    Some(path)
}

fn on_collision(text: &str) -> Result<bool, String> {
    match text {
        "replace" => Ok(false),
        "keep" => Ok(true),
        _ => Err("\"replace\" or \"keep\"".to_owned()),
    }
}

fn read_courtesy(top: &Section) -> Duration {
    const DEFAULT: u64 = 250;
    top.millis("courtesy", DEFAULT, 0, "that a write waits for readers")
}

fn read_tombstone_retention(top: &Section) -> Duration {
    const THIRTY_DAYS: u64 = 30 * 24 * 3600 * 1000;
    top.millis(
        "tombstone_retention",
        THIRTY_DAYS,
        1_000,
        "until a delete is forgotten",
    )
}

fn read_db_path(top: &Section) -> PathBuf {
    let Some(path) = top.path("db_path") else {
        top.note("db_path", "is missing: add db_path = \"/path/to/app.db\"");
        return PathBuf::new();
    };
    let path = crate::lock::follow_links(path);
    let text = path.to_string_lossy();
    if text.starts_with("file:") || text == ":memory:" {
        top.note(
            "db_path",
            format!("is {text}, but must be the plain path of a file"),
        );
    } else if path.is_dir() {
        top.note(
            "db_path",
            format!("is {text}, a directory, but must be the database file in it"),
        );
    } else if is_special(&path) {
        top.note(
            "db_path",
            format!("is {text}, which is no file, but must be a file or the place for a new one"),
        );
    } else if let Some(why) = crate::db_file::unfit(&path) {
        top.note("db_path", why);
    } else {
        check_folder(top, "db_path", &path);
    }
    path
}

/// Whether the path leads to anything but a regular file: a device, a pipe, a circle of links.
fn is_special(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|data| !data.is_file())
}

fn read_seq_map_path(top: &Section, db_path: &Path) -> PathBuf {
    match top.path("seq_map_path") {
        Some(path) => {
            check_folder(top, "seq_map_path", &path);
            path
        }
        None => db_path.with_file_name("seq-map.cbor"),
    }
}

/// Notes a missing folder. The operator makes it; we or the application may make the file later.
fn check_folder(section: &Section, key: &str, file: &Path) {
    let folder = folder_of(file);
    if !folder.is_dir() {
        let folder = folder.display();
        let path = file.display();
        section.note(
            key,
            format!("is {path}, but there is no directory {folder}: create it"),
        );
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Notes a file that is one of `taken`, given with their keys: we would write over that one.
fn check_own(section: &Section, key: &str, file: &Path, taken: &[(&str, &Path)]) {
    let place = |path: &Path| {
        let folder = folder_of(path).canonicalize().ok()?;
        Some(folder.join(path.file_name()?))
    };
    let is_one = |path: &Path| place(file).is_some_and(|file| Some(file) == place(path));
    for (other, path) in taken {
        if is_one(path) || is_same_file(file, path) {
            let file = file.display();
            section.note(
                key,
                format!("is {file}, but must not be {other}, which would be lost"),
            );
        }
    }
}

/// Whether both names lead to the same file through links.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        found.is_file().then(|| (found.dev(), found.ino()))
    };
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

/// The keys of the cluster.
fn read_seal(top: &Section, file: Option<&Path>) -> Seal {
    let requires = top.bool("require_key", true);
    let Some(file) = file else {
        let is_alone = top.is_given("require_key") && !top.is_given("cluster_key_file");
        if is_alone && requires {
            top.note(
                "require_key",
                "is true, so cluster_key_file must be set too",
            );
        }
        return Seal::default();
    };
    let keys = match std::fs::read(file) {
        Ok(bytes) => seal::key::parse(&String::from_utf8_lossy(&bytes)),
        Err(cause) => Err(format!("but must be a file that can be read: {cause}")),
    };
    let keys = keys.unwrap_or_else(|wrong| {
        let file = file.display();
        let advice = "harmonylite key new FILE makes a file with a key";
        top.note("cluster_key_file", format!("is {file}, {wrong}; {advice}"));
        Vec::new()
    });
    Seal::new(keys, requires)
}

impl Common {
    fn read(log: &Section, nats: &Section) -> Common {
        let subject = "harmonylite-change-log";
        let stream = "harmonylite-changes";
        Common {
            shards: log.int(
                "shards",
                1,
                1..=256,
                "streams, the same number on all nodes",
            ),
            compress: log.bool("compress", true),
            subject_prefix: nats.parsed("subject_prefix", subject, nats::subject),
            stream_prefix: nats.parsed("stream_prefix", stream, nats::name),
        }
    }
}

impl ReplicationLog {
    /// Most messages in a stream, as far as the configuration says.
    pub fn entries(&self) -> u64 {
        match u64::try_from(self.max_entries) {
            Ok(0) | Err(_) => CHOSEN_ENTRIES,
            Ok(entries) => entries,
        }
    }

    fn read(section: &Section) -> ReplicationLog {
        let without_limit = "messages kept in a stream, which without a limit would fill the disk";
        let whole =
            "bytes of a transaction that travels whole: readers take twice that in one message";
        let (least, most) = (1 << 10, MAX_MESSAGE_BYTES / 2);
        ReplicationLog {
            max_entries: section.int("max_entries", 0, 0..=i64::MAX, without_limit),
            max_bytes: nats::max_bytes(section),
            max_age: section.millis_or_off("max_age", TEN_MINUTES, "that a stream keeps messages"),
            replicas: section.int("replicas", 1, 1..=5, nats::REPLICAS),
            update_existing: section.bool("update_existing", false),
            max_transaction_bytes: section.int(
                "max_transaction_bytes",
                1 << 20,
                least..=most,
                whole,
            ),
        }
    }
}

impl Logging {
    fn read(section: &Section, taken: &[(&str, &Path)]) -> Logging {
        let level = section.parsed("level", "info", level);
        let verbose = section.bool("verbose", false);
        let file = section.path("file");
        if let Some(file) = &file {
            check_folder(section, "file", file);
            check_own(section, "file", file, taken);
        }
        Logging {
            level: if verbose {
                level.max(LevelFilter::Debug)
            } else {
                level
            },
            format: section.parsed("format", "console", format),
            file,
            max_bytes: nats::limit(section, "max_bytes", LEAST_LOG, "of the file"),
            syslog: section.bool("syslog", false),
        }
    }
}

fn level(name: &str) -> Result<LevelFilter, String> {
    let levels = "error, warn, info, debug or trace";
    name.parse()
        .ok()
        .filter(|&level| level != LevelFilter::Off)
        .ok_or_else(|| levels.into())
}

fn format(name: &str) -> Result<LogFormat, String> {
    match name {
        "console" => Ok(LogFormat::Console),
        "json" => Ok(LogFormat::Json),
        _ => Err("console or json".into()),
    }
}

impl Prometheus {
    fn read(section: &Section) -> Prometheus {
        Prometheus {
            enable: section.bool("enable", false),
            bind: section.parsed("bind", "127.0.0.1:3010", http_address),
            namespace: section.parsed("namespace", "harmonylite", metric_name),
            subsystem: section.parsed("subsystem", "", metric_name),
        }
    }
}

fn read_heartbeat_url(section: &Section) -> Option<Secret> {
    let url = section.secret("heartbeat_url")?;
    let is_http = ["http://", "https://"]
        .iter()
        .any(|s| url.reveal().starts_with(s));
    if !is_http {
        let text = "must be a URL that begins with https:// or http:// (and is not shown)";
        section.note("heartbeat_url", text);
    } else if !cfg!(feature = "heartbeat") {
        section.note(
            "heartbeat_url",
            "is set, but this build is without heartbeat: leave it out",
        );
    }
    Some(url)
}

impl HealthCheck {
    fn read(section: &Section) -> HealthCheck {
        const FIVE_MINUTES: u64 = 300_000;
        HealthCheck {
            enable: section.bool("enable", false),
            bind: section.parsed("bind", "127.0.0.1:8090", http_address),
            path: section.parsed("path", "/health", url_path),
            detailed: section.bool("detailed", true),
            heartbeat_url: read_heartbeat_url(section),
            heartbeat_interval: section.millis(
                "heartbeat_interval",
                FIVE_MINUTES,
                1_000,
                "between two calls of heartbeat_url",
            ),
        }
    }
}

/// Without a host, the address is IPv6 and IPv4 on all interfaces, as in the Go version.
fn http_address(text: &str) -> Result<ListenAddress, String> {
    let address: ListenAddress = text.parse()?;
    let host = match text.starts_with(':') {
        true => "::".to_owned(),
        false => address.host,
    };
    Ok(ListenAddress { host, ..address })
}

fn url_path(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#');
    match text.starts_with('/') && text.chars().all(fits) {
        true => Ok(text.into()),
        false => Err("a path that begins with /, without ? and #".into()),
    }
}

/// Part of a metric's name, as Prometheus allows it; may be empty.
fn metric_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.chars().all(fits) && !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(text.into());
    }
    Err("ASCII letters, digits and _, not starting with a digit".into())
}

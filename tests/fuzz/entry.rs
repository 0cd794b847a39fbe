//! The places where bytes from elsewhere enter, each as a function of bytes alone. The fuzz targets
//! beside this file and `tests/hostile` run the same functions. A panic is a failure, an error
//! never is.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use harmonylite::apply::{Arrived, Content};
use harmonylite::clock::ManualClock;
use harmonylite::cluster::registry::parse_requested;
use harmonylite::config::Config;
use harmonylite::database::rows::decode_exceptions;
use harmonylite::database::{Database, Settings};
use harmonylite::model::cbor;
use harmonylite::model::frame::{
    Frame, FrameBuilder, KeyColumn, MAX_FRAME_BYTES, Parts, Row, TableHeader, unpack,
};
use harmonylite::model::key::key_bytes;
use harmonylite::model::manifest::{Manifest, SnapshotEntry};
use harmonylite::model::value::Value;
use harmonylite::model::version::Version;
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

/// An entry: its name, its function, and inputs to begin with.
pub struct Way {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All entries. (The program only writes `seq-map.cbor` and never reads it.)
pub const WAYS: [Way; 5] = [
    Way {
        name: "frame",
        run: frame,
        seeds: messages,
    },
    Way {
        name: "apply",
        run: apply,
        seeds: streams,
    },
    Way {
        name: "config",
        run: config,
        seeds: configs,
    },
    Way {
        name: "manifest",
        run: manifest,
        seeds: manifests,
    },
    Way {
        name: "stored",
        run: stored,
        seeds: keys_and_exceptions,
    },
];

/// A message of a stream, unpacked and decoded to its last value.
pub fn frame(bytes: &[u8]) {
    let Ok(raw) = unpack(bytes) else { return };
    match Frame::decode(&raw) {
        Ok(Frame::Rows { nodes, tables, .. }) => {
            for table in &tables {
                let (mut rows, mut row) = (table.rows(&nodes), Row::default());
                // The frame was decoded before, so this cannot fail.
                while rows.next(&mut row).unwrap() {
                    assert!(row.version.is_valid());
                }
            }
        }
        Ok(Frame::Part(part)) => {
            if let Ok(mut parts) = Parts::new(part.bytes, MAX_FRAME_BYTES) {
                let _ = parts.add(part.bytes).and_then(|()| parts.finish());
            }
        }
        Err(_) => {}
    }
}

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b);
    CREATE TABLE u(k TEXT COLLATE NOCASE, n NUMERIC, v NOT NULL, PRIMARY KEY(k, n)) WITHOUT ROWID;
    CREATE TABLE s(id INTEGER PRIMARY KEY, i INTEGER, x TEXT) STRICT;
    CREATE UNIQUE INDEX e ON s(lower(x)) WHERE i > 0; CREATE TABLE r(v)";

/// A database that has our tables. Each run begins with a copy, because installing takes most of a
/// run.
static INSTALLED: LazyLock<Mutex<Connection>> = LazyLock::new(|| {
    let path = "file:installed?mode=memory&cache=shared";
    let app = Connection::open(path).unwrap();
    app.execute_batch(SCHEMA).unwrap();
    open(path);
    Mutex::new(app)
});

fn open(path: &str) -> Database {
    let settings = Settings {
        path: path.into(),
        node_id: Some(1),
        publish: true,
        shards: 1,
        streams: Default::default(),
        cache_size: 2000,
        cleanup_interval: Duration::from_secs(5),
        scan_max_changes: 512,
        max_transaction_bytes: 1 << 20,
        max_clock_drift: Duration::from_secs(60),
        courtesy: Duration::ZERO,
        tombstone_retention: Duration::from_secs(30 * 24 * 3600),
        births: false,
        births_later: false,
        allow_rowid_tables: true,
        joins_by_snapshot: false,
        seq_map_path: None,
        tables: Default::default(),
        apply_triggers: vec![],
    };
    let clock = Arc::new(ManualClock::at(1_700_000_000_000));
    let mut database = Database::open(settings, clock, Arc::new(AtomicBool::new(false))).unwrap();
    while database.capture().unwrap().more {}
    database
}

/// Messages of a stream, applied to a database in order, twice.
pub fn apply(bytes: &[u8]) {
    let messages = split(bytes);
    // An input without any frame, as most mutations are, tells no more than the entry `frame` does.
    let is_frame = |data: &&[u8]| unpack(data).is_ok_and(|raw| Frame::decode(&raw).is_ok());
    if !messages.iter().any(is_frame) {
        return;
    }
    let installed = INSTALLED.lock().unwrap(); // until the end: there is one copy at a time
    let path = "file:copy?mode=memory&cache=shared";
    let mut app = Connection::open(path).unwrap();
    let copied = Backup::new(&installed, &mut app).unwrap().step(-1);
    assert_eq!(copied.unwrap(), StepResult::Done);
    let mut database = open(path);
    for (i, data) in messages.iter().chain(&messages).enumerate() {
        let raw = unpack(data);
        let bad = |reason: String| Content::Bad { reason, data };
        let content = match &raw {
            Ok(raw) => Frame::decode(raw).map_or_else(|e| bad(e.to_string()), Content::Frame),
            Err(e) => bad(e.to_string()),
        };
        let arrived = [Arrived {
            seq: i as u64 + 1,
            id: "x",
            time_ms: 0,
            content,
        }];
        let applied = database.apply("s", &arrived).unwrap();
        assert_eq!(applied.messages, 1);
        let again = i >= messages.len();
        assert!(!again || applied.rows == 0, "a join twice is a join once");
    }
    while database.capture().unwrap().more {}
    let sound: String = app
        .query_row("PRAGMA integrity_check", [], |r| r.get(0))
        .unwrap();
    assert_eq!(sound, "ok");
}

/// The bytes between two messages. A length would be wrong after most mutations.
const NEXT: &[u8] = b"\xff\xfeNX";

/// The messages of an input; more than a few only take time.
fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut messages) = (bytes, Vec::new());
    while let Some(at) = rest.windows(NEXT.len()).position(|next| next == NEXT)
        && messages.len() < 7
    {
        messages.push(&rest[..at]);
        rest = &rest[at + NEXT.len()..];
    }
    messages.push(rest);
    messages
}

/// Each message alone, one plain and packed, and the parts of a frame in either order.
fn streams() -> Vec<Vec<u8>> {
    let mut all = messages();
    let parts = all[2..].to_vec();
    let mut reversed = parts.clone();
    reversed.reverse();
    all.extend([all[..2].join(NEXT), parts.join(NEXT), reversed.join(NEXT)]);
    all
}

pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(e) = Config::parse(Path::new("config.toml"), text)
    {
        assert!(!e.to_string().is_empty());
    }
}

/// A configuration with each store in use, and one with all of them described.
fn configs() -> Vec<Vec<u8>> {
    let mut all = vec![include_bytes!("../../config.toml").to_vec()];
    all.extend(["nats", "s3", "webdav", "sftp", "file"].map(|store| {
        let used = format!("[snapshot]\nstore = {store:?}\n");
        [FULL, &used, STORES].concat().into_bytes()
    }));
    all
}

const FULL: &str = r#"db_path = "/tmp/a.db"
node_id = 3
max_clock_drift = 60_000
apply_triggers = ["fts_insert", 'fts_delete']
tables = { include = ["*"], exclude = ["cache_?", "session"] }
logging.format = "json"
prometheus = { enable = true, bind = "[::1]:3010", namespace = "h" }
replication_log.shards = 4
[nats]
urls = ["nats://user:p%40ss@a:4222", "tls://[::1]:4222"]
subject_prefix = "a.b"
reconnect_wait_seconds = 5
"#;

const STORES: &str = r#"interval = 3600000
leader_ttl = 10000
[snapshot.nats]
replicas = 3
bucket = "b"
[snapshot.s3]
endpoint = "s3.eu-central-1.amazonaws.com:443"
bucket = "b"
path = "a/b"
access_key = "k"
secret = "s"
part_size = 5242880
[snapshot.webdav]
url = "https://host/root?dir=/a%20b&login=l&secret=s"
[snapshot.sftp]
url = "sftp://name@host:22/a"
password = "p"
host_key = "host ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB5fbYpVmWDpwmNqAaKqcxxLZpvqnNnLkCmbPVkIXG0a"
[snapshot.file]
path = "/tmp/snapshots"
"#;

/// Manifests with no, one and two snapshots, whole and with gaps; an entry alone; a request.
fn manifests() -> Vec<Vec<u8>> {
    let later = ENTRY
        .replace(r#""dropped": [117649934, 7],"#, "")
        .replace("9938-3", "9939-4")
        .replace("[1, 2]", r#"[], "learnt": 8, "acked": 4"#);
    let of =
        |entries: &str| format!(r#"{{"format": 1, "cluster": "c", "snapshots": [{entries}]}}"#);
    let two = of(&format!("{later}, {ENTRY}"));
    let place = r#"{"c-2": {"seq": 7, "id": "", "created": "2026-11-21T10:22:59Z"}}"#;
    [of(""), of(ENTRY), two, later, place.to_owned()]
        .map(String::into_bytes)
        .into()
}

const ENTRY: &str = r#"{
    "name": "snapshot-1795256579938-3-a576e1001.db.zst", "size": 1024, "database_size": 69632,
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "node": 3, "time_ms": 1795256579938, "schema": -5, "dropped": [117649934, 7],
    "streams": {"c-1": {"seq": 9, "id": "x", "created": "2026-11-21T10:22:59Z",
                        "gap": {"end": 5, "heard": [1, 2]}},
                "c-2": {"seq": 0, "id": "", "created": "2026-11-21T10:22:59.5Z"}}}"#;

/// The manifest of a store and the keys of the bucket, which other programs can write to.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes, "c") {
        let written = manifest.to_bytes();
        assert_eq!(Manifest::parse(&written, "c").as_ref(), Ok(&manifest));
        for entry in &manifest.snapshots {
            assert_eq!(SnapshotEntry::parse(&entry.to_bytes()).as_ref(), Ok(entry));
        }
    }
    let _ = SnapshotEntry::parse(bytes);
    let _ = parse_requested(bytes);
}

/// CBOR in the database, which another program may have written.
pub fn stored(bytes: &[u8]) {
    if let Ok(values) = cbor::key_values(bytes) {
        let key = values.iter().map(|v| v.borrow());
        let collations = values.iter().map(|_| "BINARY");
        let written = key_bytes(key, collations);
        assert_eq!(cbor::key_values(&written).unwrap().len(), values.len());
    }
    let _ = decode_exceptions(bytes);
}

/// A key of each kind of value, one of all kinds, and versions of columns.
fn keys_and_exceptions() -> Vec<Vec<u8>> {
    let values = [
        Value::Null,
        Value::Integer(23),
        Value::Integer(i64::MIN),
        Value::Real(0.5),
        Value::Text(b"x"),
        Value::Text(b"\xff\0"),
        Value::Blob(b"\0\xff"),
    ];
    let key =
        |values: &[Value<'_>]| key_bytes(values.iter().copied(), values.iter().map(|_| "BINARY"));
    let mut all: Vec<_> = values.iter().map(|value| key(&[*value])).collect();
    all.push(key(&values));
    all.push(b"\x86\x61a\x03\x1a\x07\x03\x2e\x4e\x61b\x07\x05".to_vec());
    all
}

/// Frames for the tables of [`SCHEMA`] and for others.
fn messages() -> Vec<Vec<u8>> {
    let version = |hlc| Version {
        hlc,
        node: hlc as u64 % 3,
    };
    let key = |columns: &[(&str, &'static str, &str)]| -> Vec<KeyColumn> {
        let column = |(name, affinity, collation): &(&str, &'static str, &str)| KeyColumn {
            name: (*name).into(),
            affinity,
            collation: (*collation).into(),
        };
        columns.iter().map(column).collect()
    };
    let id = key(&[("id", "INTEGER", "BINARY")]);
    let t = TableHeader::new(1, "t", &id, &["id", "a", "b"]);
    let pair = key(&[("k", "TEXT", "NOCASE"), ("n", "NUMERIC", "BINARY")]);
    let u = TableHeader::new(2, "U", &pair, &["k", "n", "v"]);
    let s = TableHeader::new(3, "s", &id, &["id", "x", "i", "later"]);
    let rowid = key(&[("\0rowid", "INTEGER", "BINARY")]);
    let r = TableHeader::new(4, "r", &rowid, &["\0rowid", "v"]);
    let mut frame = FrameBuilder::default();
    for i in 1..4 {
        let text = Value::Text(b"Ann");
        let row = [Value::Integer(i), Value::Integer(i % 2), Value::Real(1.5)];
        frame.upsert(&t, version(i), &[], row.into_iter());
        let row = [text, Value::Integer(i), Value::Blob(b"\0\xff")];
        frame.upsert(
            &u,
            version(i),
            &[(2, version(1)), (3, version(1))],
            row.into_iter(),
        );
        let row = [Value::Integer(i), text, Value::Integer(5), Value::Null];
        frame.upsert(&s, version(10 * i), &[], row.into_iter());
        frame.upsert(&r, version(i), &[], [Value::Integer(-i), text].into_iter());
        frame.delete(&t, version(5 * i), [Value::Integer(i + 1)].into_iter());
        frame.delete(
            &u,
            version(9),
            [Value::Text(b"ANN\xff"), Value::Real(0.5)].into_iter(),
        );
    }
    let raw = frame.finish();
    let mut all = vec![raw.clone()];
    let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
    let packed = harmonylite::model::frame::pack(raw, Some(&mut zstd));
    all.extend(packed.clone().messages(0, 1 << 20));
    all.extend(packed.messages(0, 200));
    all
}

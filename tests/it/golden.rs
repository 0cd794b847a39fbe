//! Files of earlier releases, kept under tests/golden/RELEASE for ever: a database, the messages of
//! its streams, and a snapshot in a folder. Each release must go on with the files of earlier ones.
//!
//! `HARMONYLITE_GOLDEN=RELEASE cargo test --test it golden` writes the files of this build, once
//! for each release. Without the variable the tests read the files that are there.

use std::fs;
use std::path::{Path, PathBuf};

use harmonylite::stream::jetstream::{StreamOptions, stream_name};
use harmonylite::stream::{Message, Writer};
use rusqlite::Connection;

use crate::cluster::{Cluster, client_of, converge};
use crate::node::{Node, texts, until};
use crate::stream::node::{self as broker, read};

/// Tables of both nodes. Node 2 alone has `later` and `kinds.extra`.
const SCHEMA: &str = "
    CREATE TABLE kinds (id TEXT PRIMARY KEY, i INTEGER, r REAL, t TEXT, b BLOB, d DATETIME, any);
    CREATE TABLE pairs (a TEXT COLLATE NOCASE, b INTEGER, v, PRIMARY KEY (a, b)) WITHOUT ROWID;
    CREATE TABLE keyless (v);
    CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE, name);";

const LATER: &str = "
    CREATE TABLE later (id INTEGER PRIMARY KEY, v);
    ALTER TABLE kinds ADD COLUMN extra DEFAULT 'none';";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn streams() -> StreamOptions {
    StreamOptions {
        stream_prefix: "harmonylite-changes".into(),
        subject_prefix: "harmonylite-change-log".into(),
        ..broker::streams()
    }
}

fn pack(path: &Path, bytes: &[u8]) {
    fs::write(path, zstd::encode_all(bytes, 19).unwrap()).unwrap();
}

fn unpack(path: &Path) -> Vec<u8> {
    zstd::decode_all(&fs::read(path).unwrap()[..]).unwrap()
}

/// Ids and bodies of messages, as lines of hexadecimal digits.
fn to_lines(messages: &[Message]) -> String {
    let line = |m: &Message| {
        let data: String = m.data.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} {data}\n", m.id.as_deref().unwrap_or("-"))
    };
    messages.iter().map(line).collect()
}

fn from_lines(text: &str) -> Vec<(String, Vec<u8>)> {
    let read = |line: &str| {
        let (id, data) = line.split_once(' ').unwrap();
        let byte = |i| u8::from_str_radix(&data[i..i + 2], 16).unwrap();
        let data = (0..data.len()).step_by(2).map(byte).collect();
        (id.to_owned(), data)
    };
    text.lines().map(read).collect()
}

/// Gives the node a store of snapshots in a folder, and settings that decide when it makes one.
fn with_store(node: &mut Node, store: &Path) {
    node.set("snapshot.store", "'file'")
        .set("snapshot.file.path", &format!("'{}'", store.display()));
}

/// The messages of the broker's stream, all of them.
fn messages(cluster: &Cluster) -> Vec<Message> {
    let mut reader = cluster.broker.reader(&streams());
    let last = harmonylite::stream::Reader::state(&mut reader)
        .unwrap()
        .last;
    read(&mut reader, 1, last as usize)
}

fn write(release: &str) {
    let to = folder().join(release);
    fs::create_dir_all(to.join("store")).unwrap();
    let mut cluster = Cluster::stopped(2, |node| {
        node.execute("DROP TABLE item");
        node.execute(SCHEMA);
    });
    let stored = cluster.nodes[0].file("store");
    fs::create_dir(&stored).unwrap();
    cluster
        .nodes
        .iter_mut()
        .for_each(|n| with_store(n, &stored));
    Node::start_all(&mut cluster.nodes);
    cluster.converge();
    let [one, two] = &cluster.nodes[..] else {
        unreachable!()
    };
    one.execute(
        "INSERT INTO kinds VALUES
             ('least', -9223372036854775808, -1.5e300, '', x'', '2026-01-02', NULL),
             ('most', 9223372036854775807, 5e-324, 'Übung', x'00ff', 17.5, x'01'),
             ('twice', 1, 1.0, 't', NULL, 'x', 'y');
         INSERT INTO pairs VALUES ('A', 1, 'one'), ('b', 2, 'two'), ('c', 3, 'gone');
         INSERT INTO keyless VALUES ('k');
         PRAGMA secure_delete = ON;
         INSERT INTO kinds(id, b) VALUES ('large', randomblob(120000));",
    );
    cluster.converge();
    one.execute("PRAGMA secure_delete = ON; DELETE FROM kinds WHERE id = 'large'");
    two.execute("UPDATE kinds SET t = 'changed' WHERE id = 'twice'; DELETE FROM pairs WHERE b = 3");
    cluster.converge();
    // Node 1 has neither the table nor the column, and holds these rows.
    two.execute(LATER);
    two.execute(
        "INSERT INTO later VALUES (1, 'held'); UPDATE kinds SET extra = 'held' WHERE i = 1",
    );
    let held = "SELECT count(DISTINCT table_name) = 2 FROM __harmonylite___held";
    until("both are held", || (one.number(held) == 1).then_some(()));
    // Of two rows with one address, the older one is displaced.
    for node in &mut cluster.nodes {
        node.stop();
    }
    cluster.nodes[0].execute("INSERT INTO users VALUES (1, 'ann@x.org', 'Ann')");
    cluster.nodes[1].execute("INSERT INTO users VALUES (2, 'ann@x.org', 'Anna')");
    Node::start_all(&mut cluster.nodes);
    let displaced = "SELECT count(*) FROM __harmonylite___displaced";
    for node in &cluster.nodes {
        until("a row gives way", || {
            (node.is_quiet() && node.number(displaced) == 1).then_some(())
        });
    }
    cluster.nodes[1].stop();
    let one = &mut cluster.nodes[0];
    one.stop();
    let saved = one.run(&["-save-snapshot"]);
    assert!(saved.status.success(), "{saved:?}");
    pack(
        &to.join("messages.zst"),
        to_lines(&messages(&cluster)).as_bytes(),
    );
    for file in fs::read_dir(&stored).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join("store").join(file.file_name())).unwrap();
    }
    let one = &mut cluster.nodes[0];
    fs::write(to.join("rows-snapshot.txt"), one.rows().join("\n")).unwrap();
    // These rows are captured and not sent; the next ones are written while no daemon runs.
    one.set("publish", "false");
    one.start();
    one.execute("INSERT INTO pairs VALUES ('unsent', 5, 'captured')");
    let empty = "SELECT count(*) FROM __harmonylite___change_log_global";
    until("it is captured", || (one.number(empty) == 0).then_some(()));
    one.kill();
    one.execute("INSERT INTO pairs VALUES ('raw', 6, 'noted'); DELETE FROM pairs WHERE a = 'B'");
    one.execute("PRAGMA wal_checkpoint(TRUNCATE)");
    pack(&to.join("database.zst"), &fs::read(one.database()).unwrap());
    fs::write(to.join("rows-database.txt"), one.rows().join("\n")).unwrap();
}

fn releases() -> Vec<PathBuf> {
    if let Some(release) = std::env::var_os("HARMONYLITE_GOLDEN") {
        write(release.to_str().unwrap());
    }
    let each = fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<_> = each.filter(|path| path.is_dir()).collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

/// The rows in the file, without those that `without` names.
fn expected(release: &Path, file: &str, without: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(release.join(file)).unwrap();
    let lines = text.lines().map(str::to_owned);
    lines
        .filter(|line| !without.iter().any(|w| line.starts_with(w)))
        .collect()
}

/// Two nodes go on with a release's database: known, held, displaced and unsent rows are all there.
fn goes_on_with_the_database(release: &Path) {
    let broker = crate::cluster::broker();
    let mut nodes = [Node::new(1), Node::new(2)];
    fs::write(nodes[0].database(), unpack(&release.join("database.zst"))).unwrap();
    let versions = "SELECT group_concat(hlc || ' ' || site || ' ' || deleted)
                    FROM (SELECT * FROM __harmonylite__kinds_versions ORDER BY 1)";
    let before: String = texts(&nodes[0].open(), versions).remove(0);
    fs::remove_file(nodes[1].database()).unwrap();
    for node in &mut nodes {
        client_of(&broker, node);
    }
    nodes[0].start();
    nodes[0].until_log("made, because"); // an empty node that comes first would found the cluster
    nodes[1].start();
    let all = "SELECT count(*) = 3 FROM pairs WHERE b IN (1, 5, 6)";
    until("the rows are on node 2", || {
        let app = Connection::open(nodes[1].database()).ok()?;
        app.query_row(all, [], |r| r.get(0))
            .is_ok_and(|complete: bool| complete)
            .then_some(())
    });
    let rows = converge(&nodes);
    assert_eq!(rows, expected(release, "rows-database.txt", &[]));
    for node in &nodes {
        assert_eq!(texts(&node.open(), versions)[0], before);
        let shown = String::from_utf8(node.run(&["conflicts"]).stdout).unwrap();
        assert!(
            shown.contains("has email = 'ann@x.org', name = 'Ann'"),
            "{shown}"
        );
        node.execute(LATER);
    }
    for node in &nodes {
        until("what was held is taken in", || {
            let app = node.open();
            let held = "SELECT (SELECT v FROM later) || (SELECT extra FROM kinds WHERE i = 1)";
            let found = app.query_row(held, [], |r| r.get::<_, String>(0));
            found.is_ok_and(|text| text == "heldheld").then_some(())
        });
    }
    converge(&nodes);
}

/// A node that reads the messages alone gets the same rows.
fn reads_the_messages(release: &Path) {
    let broker = crate::cluster::broker();
    let mut node = Node::new(3);
    client_of(&broker, &mut node);
    node.execute(SCHEMA);
    node.execute(LATER);
    let client = broker.client();
    broker::ensure(&client, &streams());
    let mut writer = broker.writer(&streams());
    let text = String::from_utf8(unpack(&release.join("messages.zst"))).unwrap();
    let messages = from_lines(&text);
    for (token, (id, data)) in (0..).zip(&messages) {
        writer.send(1, id, data, token).unwrap();
    }
    writer.flush();
    for _ in &messages {
        let ack = writer.acks().recv_timeout(broker::PATIENCE).unwrap();
        assert!(ack.result.is_ok(), "{ack:?}");
    }
    node.start();
    let stream = stream_name(&streams(), 1);
    let read = format!("SELECT seq FROM __harmonylite___seq_map WHERE stream = '{stream}'");
    until("all is read", || {
        let app = node.open();
        let seq = app.query_row(&read, [], |r| r.get::<_, i64>(0)).ok();
        (seq? >= messages.len() as i64).then_some(())
    });
    let mut rows = node.rows();
    rows.retain(|row| !row.starts_with("later") && !row.starts_with("kinds"));
    let without = ["later", "kinds"];
    assert_eq!(rows, expected(release, "rows-snapshot.txt", &without));
    assert_eq!(texts(&node.open(), "SELECT v FROM later"), ["held"]);
    assert_eq!(
        texts(&node.open(), "SELECT extra FROM kinds WHERE i = 1"),
        ["held"]
    );
    node.check();
}

/// A new node begins with the snapshot.
fn begins_with_the_snapshot(release: &Path) {
    let broker = crate::cluster::broker();
    let mut node = Node::new(4);
    client_of(&broker, &mut node);
    let store = node.file("store");
    fs::create_dir(&store).unwrap();
    for file in fs::read_dir(release.join("store")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), store.join(file.file_name())).unwrap();
    }
    with_store(&mut node, &store);
    fs::remove_file(node.database()).unwrap();
    node.start();
    let rows = expected(release, "rows-snapshot.txt", &[]);
    until("the snapshot is here", || {
        let app = Connection::open(node.database()).ok()?;
        let joined = "SELECT 1 FROM __harmonylite___meta WHERE key = 'joined'";
        app.query_row(joined, [], |_| Ok(())).ok()
    });
    assert_eq!(node.rows(), rows);
    let shown = String::from_utf8(node.run(&["conflicts"]).stdout).unwrap();
    assert!(
        shown.contains("has email = 'ann@x.org', name = 'Ann'"),
        "{shown}"
    );
    node.check();
}

#[test]
fn golden_files_of_earlier_releases_are_understood() {
    for release in releases() {
        eprintln!("{}", release.display());
        goes_on_with_the_database(&release);
        reads_the_messages(&release);
        begins_with_the_snapshot(&release);
    }
}

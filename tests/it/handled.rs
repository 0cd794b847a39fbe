//! The database file in other programs' hands: mounted, linked, removed, copied over.

use std::fs;
use std::process::Command;

use crate::cluster::Cluster;
use crate::node::{Node, pause, texts, until};

/// Asserts that a start and `-check` refuse the file and change nothing.
fn assert_refused(node: &Node, command: impl Fn(&[&str]) -> Command, why: &str) {
    let before = fs::read(node.database()).unwrap();
    for words in [&["-check"][..], &[]] {
        let done = command(words).output().unwrap();
        let says = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{says}");
        assert!(says.contains("db_path is ") && says.contains(why), "{says}");
        assert!(says.contains("line "), "{says}");
    }
    assert_eq!(fs::read(node.database()).unwrap(), before);
}

#[test]
fn a_file_with_two_names_is_refused() {
    let node = Node::new(1);
    fs::hard_link(node.database(), node.file("second.db")).unwrap();
    assert_refused(&node, |words| node.command(words), "hard link");
    fs::remove_file(node.file("second.db")).unwrap();
    assert_eq!(node.run(&["-check"]).status.code(), Some(0));
}

/// Docker mounts a single file like this with `-v /srv/app/app.db:/db/app.db`.
#[test]
fn a_file_that_is_mounted_alone_is_refused() {
    let mut node = Node::new(1);
    let mounts = Command::new("unshare").args(["-m", "true"]).status();
    if !mounts.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a file needs root");
        return;
    }
    fs::create_dir(node.file("container")).unwrap();
    let inner = node.file("container/app.db");
    fs::write(&inner, "").unwrap();
    node.set("db_path", &format!("'{}'", inner.display()));
    let mounted = |words: &[&str]| {
        let daemon = node.command(words);
        let mut command = Command::new("unshare");
        command
            .args([
                "-m",
                "sh",
                "-ec",
                "mount --bind \"$0\" \"$1\"; shift; exec \"$@\"",
            ])
            .args([node.database(), inner.clone()])
            .arg(daemon.get_program())
            .args(daemon.get_args());
        command
    };
    assert_refused(
        &node,
        mounted,
        "is mounted as a single file: mount its folder",
    );
}

/// A node with one sent row, and a table with an index.
fn one_node() -> Cluster {
    let cluster = Cluster::start(1, |node| {
        node.execute("CREATE INDEX by_value ON item(value)");
    });
    let node = &cluster.nodes[0];
    node.until_log("connected to NATS, publishing");
    // Waits for the first snapshot: removing a -wal during a checkpoint, such as after a copy,
    // damages any file.
    node.until_log(" made, because ");
    insert(node, 1);
    until("it is sent", || node.is_quiet().then_some(()));
    cluster
}

fn insert(node: &Node, id: i64) {
    node.execute(&format!("INSERT INTO item VALUES ({id}, 'value {id}', 0)"));
}

fn ids(node: &Node) -> Vec<i64> {
    let app = node.open();
    let mut ids = app.prepare("SELECT id FROM item ORDER BY id").unwrap();
    let ids = ids.query_map([], |r| r.get(0)).unwrap();
    ids.collect::<Result<_, _>>().unwrap()
}

fn assert_sound(node: &Node) {
    assert_eq!(texts(&node.open(), "PRAGMA integrity_check"), ["ok"]);
}

/// Asserts that the daemon ended unasked, with a line that says why.
fn assert_ends(node: &mut Node, why: &str) {
    assert_eq!(node.wait().code(), Some(1));
    node.until_log(why);
    assert!(!node.log().contains("panicked"));
}

/// Asserts that the daemon goes on after a start.
fn assert_goes_on(node: &mut Node) {
    node.start();
    insert(node, 1_000_000);
    until("it is sent", || node.is_quiet().then_some(()));
    node.stop();
    assert_sound(node);
}

/// Somebody thought -wal and -shm useless and removed them, with the application stopped or
/// running.
#[test]
fn companions_that_are_removed() {
    for (removed, names) in [
        (&["-wal", "-shm"][..], "app.db-wal was removed"),
        (&["-wal"], "app.db-wal was removed"),
        (&["-shm"], "app.db-shm was removed"),
    ] {
        let mut cluster = one_node();
        let node = &mut cluster.nodes[0];
        for end in removed {
            fs::remove_file(node.file(&format!("app.db{end}"))).unwrap();
        }
        // Our tables may have been in the WAL alone and be gone. Until the daemon ends, the
        // application may get an I/O error.
        let write = "CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY, value, writer);
                     INSERT INTO item VALUES (3, 'value 3', 0)";
        until("the application can write", || {
            node.open().execute_batch(write).ok()
        });
        assert_ends(node, names);
        assert_sound(node);
        assert!(
            ids(node).contains(&3),
            "committed after the removal: {:?}",
            ids(node)
        );
        assert_goes_on(node);
        assert!(ids(node).contains(&3));
    }
}

/// The WAL belongs to the file that was there before, and holds a part of the writes since the
/// backup.
#[test]
fn a_backup_that_is_copied_over_the_file() {
    let mut cluster = one_node();
    let node = &mut cluster.nodes[0];
    node.execute(
        "WITH n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
         INSERT INTO item SELECT i, 'value ' || i, 0 FROM n",
    );
    until("it is sent", || node.is_quiet().then_some(()));
    backup(node, "yesterday.db");
    node.execute("DELETE FROM item WHERE id % 3 = 0");
    until("it is sent", || node.is_quiet().then_some(()));
    node.execute("PRAGMA wal_checkpoint(TRUNCATE)");
    node.execute("UPDATE item SET value = 'new ' || id WHERE id < 400");
    fs::copy(node.file("yesterday.db"), node.database()).unwrap();
    assert_ends(node, "a different file was copied over");
    assert_sound(node);
    assert_eq!(ids(node).len(), 5000);
    assert_eq!(
        node.number("SELECT count(*) FROM item WHERE value LIKE 'new%'"),
        0
    );
    assert_goes_on(node);
}

fn backup(node: &Node, name: &str) {
    let mut copy = rusqlite::Connection::open(node.file(name)).unwrap();
    let app = node.open();
    let backup = rusqlite::backup::Backup::new(&app, &mut copy).unwrap();
    let pause = std::time::Duration::ZERO;
    backup.run_to_completion(1000, pause, None).unwrap();
}

#[test]
fn a_file_that_is_emptied() {
    let mut cluster = one_node();
    let node = &mut cluster.nodes[0];
    node.execute("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::File::create(node.database()).unwrap();
    assert_ends(node, "a different file was copied over");
    let schema = "CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)";
    node.execute(schema);
    assert_eq!(ids(node), [0; 0]);
    assert_goes_on(node);
}

/// The new file counts, and the earlier one is whole under its new name.
#[test]
fn a_backup_that_is_moved_into_the_place() {
    let mut cluster = one_node();
    let node = &mut cluster.nodes[0];
    backup(node, "yesterday.db");
    insert(node, 2);
    until("it is sent", || node.is_quiet().then_some(()));
    fs::rename(node.database(), node.file("old.db")).unwrap();
    fs::rename(node.file("yesterday.db"), node.database()).unwrap();
    assert_ends(node, "it takes the file that is there now");
    assert_sound(node);
    assert_eq!(ids(node), [1]);
    let old = rusqlite::Connection::open(node.file("old.db")).unwrap();
    let rows = "SELECT count(*) FROM item";
    assert_eq!(old.query_row(rows, [], |r| r.get(0)), Ok(2));
    assert_goes_on(node);
}

fn wal_bytes(node: &Node) -> u64 {
    fs::metadata(node.file("app.db-wal")).map_or(0, |data| data.len())
}

/// Inserts enough rows at a time to make a large WAL.
fn insert_many(node: &Node, from: i64) {
    node.execute(&format!(
        "WITH n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {from} + 20000)
         INSERT INTO item SELECT i, hex(randomblob(50)), 0 FROM n"
    ));
}

#[test]
fn a_wal_is_cut_when_nobody_works() {
    let cluster = one_node();
    let node = &cluster.nodes[0];
    insert_many(node, 1000);
    assert!(wal_bytes(node) > 2 << 20);
    until("it is cut", || (wal_bytes(node) == 0).then_some(()));
    // The WAL grows while a reader stays in its transaction, and is cut once the reader has ended.
    let app = node.open();
    app.execute_batch("BEGIN").unwrap();
    app.query_row("SELECT count(*) FROM item", [], |_| Ok(()))
        .unwrap();
    insert_many(node, 100_000);
    until("it is sent", || node.is_quiet().then_some(()));
    pause(3000);
    assert!(wal_bytes(node) > 0);
    app.execute_batch("COMMIT").unwrap();
    until("it is cut", || (wal_bytes(node) == 0).then_some(()));
    assert_sound(node);
}

/// A schema tool that does not know our tables drops them.
#[test]
fn our_tables_are_dropped_one_by_one() {
    let mut cluster = Cluster::start(2, |_| {});
    let node = &cluster.nodes[0];
    node.until_log("connected to NATS, publishing");
    node.execute("INSERT INTO item VALUES (1, 'a', 0), (2, 'b', 0), (3, 'c', 0)");
    cluster.converge();
    cluster.broker.kill();
    let node = &cluster.nodes[0];
    node.execute("UPDATE item SET value = 'unsent' WHERE id = 1; DELETE FROM item WHERE id = 2");
    let log = "SELECT count(*) FROM __harmonylite___change_log_global";
    until("it is captured", || (node.number(log) == 0).then_some(()));
    let app = node.open();
    let list =
        "SELECT name FROM sqlite_schema WHERE name GLOB '__harmonylite__*' AND type = 'table'";
    for name in texts(&app, list) {
        app.execute_batch(&format!("DROP TABLE {name}")).unwrap();
    }
    // Each statement also reads: a connection that only fails to write would not notice that the
    // tables are back.
    let write = "SELECT count(*) FROM item; INSERT INTO item(value) VALUES ('after')";
    for _ in 0..20 {
        until("the application can write", || {
            app.execute_batch(write).ok()
        });
    }
    cluster.broker.start_again();
    let rows = cluster.converge();
    assert!(rows.iter().any(|row| row.contains("'unsent'")), "{rows:?}");
    assert!(!rows.iter().any(|row| row.contains("'b'")), "{rows:?}");
    assert_eq!(rows.len(), 22);
    assert!(cluster.nodes[0].log().contains("creates them again"));
}

/// The application sets its journal mode at each of its starts.
#[test]
fn a_journal_mode_that_the_application_wants() {
    let mut cluster = one_node();
    let node = &mut cluster.nodes[0];
    let set = |node: &Node| -> rusqlite::Result<String> {
        let app = node.open();
        app.query_row("PRAGMA journal_mode = DELETE", [], |r| r.get(0))
    };
    assert!(set(node).is_err(), "as README says");
    node.stop();
    assert_eq!(set(node).as_deref(), Ok("delete"));
    node.start();
    node.until_log("leaves it in that");
    assert_eq!(set(node).as_deref(), Ok("delete"));
    insert(node, 2);
    until("it is sent", || node.is_quiet().then_some(()));
    assert_eq!(set(node).as_deref(), Ok("delete"));
    // The application sets WAL mode again.
    node.execute("PRAGMA journal_mode = WAL");
    insert(node, 3);
    until("it is sent", || node.is_quiet().then_some(()));
    fs::remove_file(node.file("app.db-wal")).unwrap();
    assert_ends(node, "app.db-wal was removed");
}

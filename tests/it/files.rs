//! Modes and owners of the files that a node makes, and files that others planted before.
//!
//! Without root some of it cannot be tried. That is said, unless `HARMONYLITE_REQUIRE_ROOT` is set:
//! then it is a failure.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harmonylite::snapshot::scratch;
use rustix::process::{Signal, geteuid};

use crate::cluster::Cluster;
use crate::node::{Node, until};

/// Users without a name or a right.
const NOBODY: u32 = 65_534;
const STRANGER: u32 = 65_533;

pub(crate) fn is_root(test: &str) -> bool {
    let must = std::env::var_os("HARMONYLITE_REQUIRE_ROOT").is_some();
    let is_root = geteuid().is_root();
    assert!(is_root || !must, "{test} needs root");
    if !is_root {
        // The harness keeps what `eprintln!` says.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test} needs root");
    }
    is_root
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files
}

/// Two nodes, not started, that keep snapshots in one folder.
fn cluster() -> (Cluster, PathBuf) {
    let mut cluster = Cluster::stopped(2, |_| {});
    let store = cluster.nodes[0].file("store");
    fs::create_dir(&store).unwrap();
    for node in &mut cluster.nodes {
        node.set("snapshot.store", "'file'")
            .set("snapshot.file.path", &format!("'{}'", store.display()));
    }
    (cluster, store)
}

fn save_snapshot(node: &Node) {
    let made = || node.log().matches(" made, because ").count();
    let before = made();
    node.signal(Signal::USR1);
    until("a snapshot is made", || (made() > before).then_some(()));
}

/// The files that a node made of its database and of what it read, once it has made a snapshot and
/// `restored.db`.
fn made_by(node: &Node, store: &Path) -> Vec<PathBuf> {
    let mut files = list(store);
    assert!(files.len() > 1, "manifest and snapshot: {files:?}");
    let names = ["app.db-harmonylite.lock", "seq-map.cbor", "restored.db"];
    files.extend(names.map(|name| node.file(name)));
    files
}

fn restore(node: &Node) {
    let to = node.file("restored.db");
    let restored = node.run(&["restore", "-o", to.to_str().unwrap()]);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}");
}

/// Starts the node, whose database is for its owner alone, and makes all that a node makes of it.
fn make_copies(node: &mut Node) {
    chmod(&node.database(), 0o600);
    node.start();
    node.execute("INSERT INTO item VALUES (1, 'secret', 0)");
    until("all is sent", || node.is_quiet().then_some(()));
    save_snapshot(node);
    restore(node);
    until("positions are written", || {
        node.file("seq-map.cbor").exists().then_some(())
    });
}

#[test]
fn copies_are_for_those_who_may_read_the_database() {
    let (mut cluster, store) = cluster();
    let [first, second] = &mut cluster.nodes[..] else {
        panic!("two nodes");
    };
    make_copies(first);
    let beside = ["-wal", "-shm", "-harmonylite.sock"];
    let beside = beside.map(|end| first.file(&format!("app.db{end}")));
    for file in made_by(first, &store).iter().chain(&beside) {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    fs::remove_file(second.database()).unwrap();
    second.start();
    second.until_log("it begins with snapshot");
    until("the row is there", || {
        let is_there = fs::metadata(second.file("app.db-wal")).is_ok();
        (is_there && second.rows().len() == 1).then_some(())
    });
    assert_eq!(mode(&second.database()), 0o600);
    // A database that the group may read has such copies.
    first.stop();
    chmod(&first.database(), 0o640);
    let before = list(&store);
    let saved = first.run(&["-save-snapshot"]);
    assert_eq!(saved.status.code(), Some(0), "{saved:?}");
    let new: Vec<_> = list(&store);
    let new: Vec<_> = new.iter().filter(|file| !before.contains(file)).collect();
    assert_eq!(new.len(), 1);
    assert_eq!(mode(new[0]), 0o640);
    assert_eq!(mode(&first.file("app.db-harmonylite.lock")), 0o600);
}

#[test]
fn a_new_database_is_for_its_owner() {
    let (mut cluster, _) = cluster();
    let node = &mut cluster.nodes[0];
    node.set("snapshot.enabled", "false");
    fs::remove_file(node.database()).unwrap();
    node.start();
    node.until_log("is new, and only its owner can open it");
    assert_eq!(mode(&node.database()), 0o600);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
}

/// The application's user may make files in the folder while the daemon is a mightier one.
#[test]
fn links_that_others_planted_are_not_followed() {
    let (mut cluster, _) = cluster();
    let node = &mut cluster.nodes[0];
    let precious = node.file("precious");
    fs::write(&precious, "kept").unwrap();
    let lock = node.file("app.db-harmonylite.lock");
    symlink(node.file("absent"), &lock).unwrap();
    node.start();
    assert_eq!(node.wait().code(), Some(1));
    node.until_log("symbolic link");
    fs::remove_file(&lock).unwrap();

    for scratch_folder in [None, Some(node.file("scratch"))] {
        if let Some(folder) = &scratch_folder {
            fs::create_dir(folder).unwrap();
            node.set("snapshot.scratch", &format!("'{}'", folder.display()));
        }
        node.start();
        node.execute("INSERT OR REPLACE INTO item VALUES (1, random(), 0)");
        until("all is sent", || node.is_quiet().then_some(()));
        let base = scratch::base(&node.database(), scratch_folder.as_deref());
        for what in ["copy", "copy-journal", "copy-wal", "packed", "fetched"] {
            let name = format!("{}.harmonylite-{what}", base.display());
            until("no snapshot is being made", || {
                symlink(&precious, &name).ok()
            });
        }
        let _ = fs::remove_file(node.file("seq-map.cbor.new"));
        symlink(&precious, node.file("seq-map.cbor.new")).unwrap();
        node.execute("INSERT OR REPLACE INTO item VALUES (2, random(), 0)");
        save_snapshot(node);
        until("positions are written", || {
            node.file("seq-map.cbor").exists().then_some(())
        });
        node.stop();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
        fs::remove_file(node.file("seq-map.cbor")).unwrap();
    }
    assert!(!node.file("absent").exists());
}

#[test]
fn a_configuration_that_others_can_write_is_named() {
    let (mut cluster, _) = cluster();
    let node = &mut cluster.nodes[0];
    let config = node.file("config.toml");
    let said = |node: &Node| {
        let output = node.run(&["-check"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(!said(node).contains("can be written"), "{}", said(node));
    chmod(&config, 0o666);
    let says = "config.toml can be written by every user (mode 666), and with it";
    assert!(said(node).contains(says), "{}", said(node));
    node.start();
    node.until_log(says);
    node.kill();
    chmod(&config, 0o644);
    chmod(node.folder.path(), 0o777);
    assert!(said(node).contains("every user can make files beside"));
}

/// The daemon is root, the database that of a user.
#[test]
fn root_gives_files_to_the_owner_of_the_database() {
    if !is_root("root_gives_files_to_the_owner_of_the_database") {
        return;
    }
    let (mut cluster, store) = cluster();
    for node in &cluster.nodes {
        chown(node.folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        chown(node.database(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let [first, second] = &mut cluster.nodes[..] else {
        panic!("two nodes");
    };
    make_copies(first);
    fs::remove_file(second.database()).unwrap();
    second.start();
    second.until_log("it begins with snapshot");
    let mut files = made_by(first, &store);
    files.push(second.database());
    for file in &files {
        let data = fs::metadata(file).unwrap();
        let found = (data.uid(), data.gid(), data.mode() & 0o777);
        assert_eq!(found, (NOBODY, NOBODY, 0o600), "{}", file.display());
    }
}

/// The daemon is an ordinary user, and a different one is on the same machine.
#[test]
fn a_stranger_neither_reads_nor_blocks() {
    if !is_root("a_stranger_neither_reads_nor_blocks") {
        return;
    }
    let (mut cluster, store) = cluster();
    let node = &mut cluster.nodes[0];
    node.run_as(NOBODY);
    chown(&store, Some(NOBODY), Some(NOBODY)).unwrap();
    chmod(node.folder.path(), 0o755);
    // The stranger may read the database, and so its copies; lock no file.
    chmod(&node.database(), 0o644);
    let lock = node.file("app.db-harmonylite.lock");
    let flock = |file: &Path| {
        let mut command = Command::new("sh");
        command.args(["-c", "exec 9<\"$1\" && flock -n 9", "sh"]);
        command.arg(file).uid(STRANGER).gid(STRANGER);
        command.output().unwrap().status.success()
    };
    node.start();
    node.until_log("connected to NATS"); // root makes no file that the daemon cannot open yet
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    until("all is sent", || node.is_quiet().then_some(()));
    save_snapshot(node);
    until("positions are written", || {
        node.file("seq-map.cbor").exists().then_some(())
    });
    node.stop();
    assert!(list(&store).iter().all(|file| mode(file) == 0o644));
    assert!(flock(&node.database()), "it can lock what it can read");
    for file in [&lock, &node.file("seq-map.cbor")] {
        assert_eq!(fs::metadata(file).unwrap().uid(), NOBODY);
        assert!(!flock(file), "{}", file.display());
    }
    // A lock of the stranger's own is no lock.
    fs::remove_file(&lock).unwrap();
    fs::write(&lock, "").unwrap();
    chown(&lock, Some(STRANGER), Some(STRANGER)).unwrap();
    chmod(&lock, 0o666);
    node.start();
    assert_eq!(node.wait().code(), Some(1));
    node.until_log("the file belongs to a different user (number 65533)");
    fs::remove_file(&lock).unwrap();
    let connected = |node: &Node| node.log().matches("connected to NATS").count();
    let before = connected(node);
    node.start();
    until("it is connected again", || {
        (connected(node) > before).then_some(())
    });
    node.execute("INSERT INTO item VALUES (2, 'b', 0)");
    until("all is sent", || node.is_quiet().then_some(()));
}

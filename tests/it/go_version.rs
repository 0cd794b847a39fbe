//! A cluster that ran the Go version becomes one of ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rusqlite::Connection;

use crate::cluster::Cluster;
use crate::node::{Node, pause, until};

#[path = "../../src/database/go_version/made_by_go.rs"]
mod made_by_go;

/// Milliseconds, of a whole second: enough for tests.
const NOW: &str = "CAST(strftime('%s', 'now') AS INTEGER) * 1000";

/// What Go made, for the tables of these tests.
fn go() -> String {
    let item = [("id", "INTEGER"), ("value", ""), ("writer", "")];
    let word = [("a", "TEXT"), ("b", "BLOB"), ("v", "")];
    made_by_go::go_log("item", &item, NOW) + &made_by_go::go_log("word", &word, NOW)
}

const TABLES: &str = "
    CREATE TABLE word(a TEXT, b BLOB, v, PRIMARY KEY(a, b)) WITHOUT ROWID;
    INSERT INTO item VALUES (1, 'Dune', 0), (2, 'Solaris', 0), (3, 'Emma', 0);
    INSERT INTO word VALUES ('a', x'00', 1), ('b', x'ff', 2)";

fn of_go(count: u64) -> Cluster {
    Cluster::stopped(count, |node| {
        node.execute(TABLES);
        node.execute(&go());
    })
}

/// An application that writes all the time, and is never refused.
struct Application {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Application {
    fn start(app: Connection, writer: u64) -> Application {
        let (stop, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, count) = (stop.clone(), written.clone());
        let thread = std::thread::spawn(move || {
            let mut insert = app
                .prepare("INSERT INTO item VALUES (?1, 'new', ?2)")
                .unwrap();
            let mut update = app
                .prepare("UPDATE item SET value = ?1 WHERE id = 3")
                .unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let n = count.fetch_add(1, Ordering::Relaxed);
                insert.execute([1000 * writer + n, writer]).unwrap();
                update.execute([n]).unwrap();
                pause(3);
            }
        });
        Application {
            stop,
            written,
            thread,
        }
    }

    fn until_written(&self, more: u64) {
        let enough = self.written.load(Ordering::Relaxed) + more;
        until("the application writes", || {
            let written = self.written.load(Ordering::Relaxed);
            (written >= enough || self.thread.is_finished()).then_some(())
        });
    }

    /// How many rows it wrote.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no write failed");
        self.written.load(Ordering::Relaxed)
    }
}

#[test]
fn the_application_writes_while_go_gives_way() {
    let mut cluster = of_go(2);
    // Go was stopped before it had published these.
    cluster.nodes[0].execute(
        "INSERT INTO item VALUES (4, 'Ubik', 0); UPDATE item SET value = 'Dune 2' WHERE id = 1;
         DELETE FROM item WHERE id = 2; DELETE FROM word WHERE a = 'a'",
    );
    cluster.nodes[1].execute("UPDATE word SET v = 3 WHERE a = 'b'");
    let applications: Vec<Application> = cluster
        .nodes
        .iter()
        .zip(1..)
        .map(|(node, writer)| Application::start(node.open(), writer))
        .collect();
    applications.iter().for_each(|app| app.until_written(20));
    Node::start_all(&mut cluster.nodes);
    for node in &cluster.nodes {
        node.until_log("managed by the Go version");
    }
    applications.iter().for_each(|app| app.until_written(20));
    let written: u64 = applications.into_iter().map(Application::end).sum();
    let rows = cluster.converge();
    let news = rows.iter().filter(|row| row.contains("'new'")).count();
    assert_eq!(news as u64, written);
    for there in [
        "item: 1 'Dune 2' 0",
        "item: 4 'Ubik' 0",
        "word: 'b' X'FF' 3",
    ] {
        assert!(
            rows.iter().any(|row| row == there),
            "{there} is not in {rows:?}"
        );
    }
    let gone = |row: &&String| row.starts_with("item: 2 ") || row.starts_with("word: 'a'");
    assert_eq!(rows.iter().find(gone), None);
    for node in &cluster.nodes {
        let left = "SELECT count(*) FROM sqlite_schema WHERE name GLOB '*_change_log_on_*'
                    OR name GLOB '*_change_log' OR name = '__harmonylite__schema_version'";
        assert_eq!(node.number(left), 0);
    }
}

#[test]
fn check_and_cleanup_know_a_database_of_go() {
    let cluster = of_go(1);
    let node = &cluster.nodes[0];
    node.execute("DELETE FROM item WHERE id < 3");
    let before = node.rows();
    let checked = node.run(&["-check"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        checked.status.success() && said.contains("the 2 change(s)"),
        "{said}"
    );
    assert_eq!(
        node.number("SELECT count(*) FROM __harmonylite__item_change_log"),
        2
    );
    let cleaned = node.run(&["-cleanup"]);
    let said = String::from_utf8_lossy(&cleaned.stdout).into_owned();
    assert!(
        cleaned.status.success() && said.contains("2 change(s)"),
        "{said}"
    );
    let left = "SELECT count(*) FROM sqlite_schema WHERE name GLOB '__harmonylite__*'";
    assert_eq!((node.number(left), node.rows()), (0, before));
}

/// A schema file of a framework, loaded on a new machine.
#[test]
fn tables_with_our_names_from_elsewhere_are_refused_with_rows_and_replaced_without() {
    let mut cluster = Cluster::stopped(1, |_| {});
    let node = &mut cluster.nodes[0];
    node.execute(
        "CREATE TABLE __harmonylite___unsent(id INTEGER PRIMARY KEY, note);
         INSERT INTO __harmonylite___unsent VALUES (1, 'x')",
    );
    for words in [&["-check"][..], &[]] {
        let refused = node.run(words);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains("__harmonylite___unsent"),
            "{said}"
        );
        assert_eq!(
            node.number("SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'"),
            0
        );
    }
    node.execute("DELETE FROM __harmonylite___unsent");
    node.start();
    node.until_log("1 table(s)");
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    until("it is sent", || node.is_quiet().then_some(()));
}

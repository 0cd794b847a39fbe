//! Applications are processes here, this program again: what a process locks it does not see itself.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use super::{Gap, KEEPS_OUT};
use crate::apply::tests::support::Node;
use crate::clock::SystemClock;
use crate::database::own_tables::{get_meta, set_meta};
use crate::database::{Database, Result};
use crate::gate::Gate;

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
const COURTESY: Duration = Duration::from_millis(250);
/// Longer than any test takes.
const FOR_EVER: Duration = Duration::from_secs(3600);

fn node(courtesy: Duration) -> Node {
    Node::with(1, SCHEMA, |settings| settings.courtesy = courtesy)
}

fn write(db: &mut Database) {
    db.write(|db| {
        let before: i64 = get_meta(&db.conn, "x")?.unwrap_or_default();
        Ok(set_meta(&db.conn, "x", before + 1)?)
    })
    .unwrap();
}

/// A process with a connection to the node's database.
struct Application {
    process: Child,
    says: BufReader<ChildStdout>,
    hears: ChildStdin,
}

impl Application {
    /// Returns when it is where it will wait, or at work.
    fn start(node: &Node, part: &str) -> Application {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "database::fence::tests::plays_an_application",
                "--nocapture",
            ])
            .env("HARMONYLITE_TEST_PART", part)
            .env("HARMONYLITE_TEST_DB", node.dir.path().join("app.db"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        let hears = process.stdin.take().unwrap();
        let mut application = Application {
            process,
            says,
            hears,
        };
        assert_eq!(application.said(), "ready");
        application
    }

    /// What it says next.
    fn said(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.says.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some((_, text)) = line.split_once("app: ") {
                return text.trim().to_owned();
            }
        }
    }

    /// Tells it to go on, and what it says then.
    fn goes_on(&mut self) -> String {
        self.hears.write_all(b"\n").unwrap();
        self.said()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn say(text: &str) {
    println!("app: {text}");
}

fn wait_for_word() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Not a test but what those start.
#[test]
fn plays_an_application() {
    let (Ok(part), Some(path)) = (
        std::env::var("HARMONYLITE_TEST_PART"),
        std::env::var_os("HARMONYLITE_TEST_DB"),
    ) else {
        return;
    };
    if part == "writes for ever" {
        let mut settings = crate::apply::tests::support::settings();
        (settings.path, settings.courtesy) = (path.clone().into(), COURTESY);
        let mut db = Database::open(settings, Arc::new(SystemClock), Arc::default()).unwrap();
        let never: Result<()> = db.write(|_| {
            say("ready");
            std::thread::sleep(FOR_EVER);
            Ok(())
        });
        never.unwrap();
    }
    let app = Connection::open(path).unwrap();
    app.busy_timeout(Duration::from_secs(30)).unwrap();
    match &part[..] {
        "reads" => {
            app.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
            say("ready");
            wait_for_word();
            say(
                match app.execute_batch("INSERT INTO t(v) VALUES (1); COMMIT") {
                    Ok(()) => "wrote",
                    Err(_) => "refused",
                },
            );
        }
        "checkpoints" => {
            say("ready");
            wait_for_word();
            app.busy_timeout(Duration::ZERO).unwrap();
            let text = "PRAGMA wal_checkpoint(TRUNCATE)";
            let is_busy: i64 = app.query_row(text, [], |r| r.get(0)).unwrap();
            say(&is_busy.to_string());
        }
        "looks" => {
            say("ready");
            wait_for_word();
            let began = Instant::now();
            app.execute_batch("SELECT count(*) FROM t").unwrap();
            say(&began.elapsed().as_millis().to_string());
        }
        "loops" => {
            let mut refused = 0;
            say("ready");
            for _ in 0..300 {
                app.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
                std::thread::sleep(Duration::from_millis(2));
                if app
                    .execute_batch("INSERT INTO t(v) VALUES (1); COMMIT")
                    .is_err()
                {
                    refused += 1;
                    app.execute_batch("ROLLBACK").unwrap();
                }
            }
            say(&refused.to_string());
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_transaction_that_reads_and_then_writes_is_not_refused() {
    let mut node = node(FOR_EVER);
    let mut app = Application::start(&node, "loops");
    let mut writes = 0;
    while app.process.try_wait().unwrap().is_none() {
        node.db.capture().unwrap();
        writes += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(writes > 10, "{writes}");
    let refused: u32 = app.said().parse().unwrap();
    assert!(refused <= 3, "{refused} of 300");
}

#[test]
fn a_reader_that_never_ends_is_waited_for_once() {
    let mut node = node(COURTESY);
    let mut app = Application::start(&node, "reads");
    let began = Instant::now();
    write(&mut node.db);
    assert!(began.elapsed() >= COURTESY);
    let since = Instant::now();
    assert_eq!(node.db.fence.wait(since), Gap::Fence, "it has passed by");
    node.db.fence.let_go();
    for _ in 0..20 {
        write(&mut node.db);
    }
    assert!(
        since.elapsed() < 20 * COURTESY,
        "none of them waits for long"
    );
    let mut second = Application::start(&node, "reads");
    let since = Instant::now();
    write(&mut node.db);
    assert!(since.elapsed() >= COURTESY / 2, "this one counts");
    assert_eq!(app.goes_on(), "refused");
    assert_eq!(second.goes_on(), "refused");
}

#[test]
fn a_wait_ends_with_the_reader() {
    let mut node = node(FOR_EVER);
    let mut app = Application::start(&node, "reads");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| write(&mut node.db));
        assert_eq!(app.goes_on(), "wrote");
        waits.join().unwrap();
    });
}

#[test]
fn a_wait_ends_when_all_is_to_end() {
    let node = node(FOR_EVER);
    let _app = Application::start(&node, "reads");
    let (fence, stop) = (node.db.fence.clone(), node.db.stop.clone());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| fence.wait(Instant::now()));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(waits.join().unwrap(), Gap::None);
    });
}

/// Health, acknowledgements, reading.
#[test]
fn who_waits_is_not_inside() {
    let node = node(FOR_EVER);
    let mut app = Application::start(&node, "reads");
    let (dir, gate) = (node.dir, Gate::new(node.db, 1).0);
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| write(&mut gate.enter_to_write().database));
        for _ in 0..5 {
            drop(gate.enter());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!writes.is_finished());
        assert_eq!(app.goes_on(), "wrote");
    });
    drop(dir);
}

/// A checkpoint that resets the WAL would take away what the view reads.
#[test]
fn a_view_keeps_its_lock_while_we_write() {
    let mut node = node(COURTESY);
    node.run("INSERT INTO t(v) VALUES (1)");
    let view = loop {
        if let (Some(view), _) = node.db.view().unwrap() {
            break view;
        }
    };
    let mut app = Application::start(&node, "checkpoints");
    for _ in 0..3 {
        write(&mut node.db);
    }
    assert_eq!(app.goes_on(), "1", "somebody reads");
    // While it reads, others are looked for, and those are in the way.
    let mut reader = Application::start(&node, "reads");
    let since = Instant::now();
    write(&mut node.db);
    assert!(since.elapsed() >= COURTESY / 2);
    assert_eq!(reader.goes_on(), "refused");
    drop(view);
    assert_eq!(node.db.fence.wait(Instant::now()), Gap::Fence);
    node.db.fence.let_go();
}

#[test]
fn a_transaction_that_takes_long_lets_readers_in() {
    let mut node = node(COURTESY);
    let mut app = Application::start(&node, "looks");
    let told = node.db.write(|_| {
        let began = Instant::now();
        let waited: u128 = app.goes_on().parse().unwrap();
        assert!(began.elapsed() >= KEEPS_OUT / 2, "it was kept out first");
        Ok(waited)
    });
    assert!(told.unwrap() < 9_000);
}

#[test]
fn what_was_held_by_a_process_that_was_killed_is_free() {
    let mut node = node(COURTESY);
    let other = Application::start(&node, "writes for ever");
    drop(other);
    node.capture();
    node.run("INSERT INTO t(v) VALUES (1)");
    assert_eq!(node.capture(), 1);
}

/// What is found then is for the transaction to say.
#[test]
fn a_transaction_begins_without_our_tables() {
    let mut node = node(COURTESY);
    node.app
        .execute_batch("DROP TABLE __harmonylite___meta")
        .unwrap();
    assert!(node.db.write(|_| Ok(())).is_err());
    assert!(node.db.conn.is_autocommit());
}

/// Its locks stay, and readers wait for it as for any lock.
#[test]
fn what_was_held_by_a_process_that_was_stopped_is_free_when_that_goes_on() {
    let node = node(COURTESY);
    let mut app = Application::start(&node, "looks");
    let other = Application::start(&node, "writes for ever");
    let pid = Pid::from_child(&other.process);
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| app.goes_on());
        std::thread::sleep(2 * KEEPS_OUT);
        kill_process(pid, Signal::CONT).unwrap();
        assert!(looks.join().unwrap().parse::<u128>().unwrap() < 9_000);
    });
}

#[test]
fn readers_of_a_rollback_journal_are_waited_for() {
    let mut node = node(FOR_EVER);
    let conn = &node.db.conn;
    // Nobody else has the file open.
    node.app = Connection::open_in_memory().unwrap();
    let mode: String = conn
        .query_row("PRAGMA journal_mode = DELETE", [], |r| r.get(0))
        .unwrap();
    assert_eq!(mode, "delete");
    node.db.files.forget_beside(); // knows of a WAL
    node.db.fence.attach(&node.db.conn).unwrap();
    let mut app = Application::start(&node, "reads");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| write(&mut node.db));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        assert_eq!(app.goes_on(), "wrote");
        waits.join().unwrap();
    });
}

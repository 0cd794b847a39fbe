//! Applications are separate processes here, further runs of this program: a process does not see
//! its own locks.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use super::index::SLOTS;
use super::{FenceKind, Index, KEEPS_OUT, READERS, ReaderGap};
use crate::apply::tests::support::Node;
use crate::clock::SystemClock;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::{Database, Result};
use crate::shared::Shared;

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
const COURTESY: Duration = Duration::from_millis(250);
/// Longer than any test takes.
const FOR_EVER: Duration = Duration::from_secs(3600);

fn node(courtesy: Duration) -> Node {
    Node::with(1, SCHEMA, |settings| settings.courtesy = courtesy)
}

fn write(db: &mut Database) {
    db.write(|db| {
        let before: i64 = get_meta(&db.conn, Meta::GoRead)?.unwrap_or_default();
        Ok(set_meta(&db.conn, Meta::GoRead, before + 1)?)
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
    /// Returns when the process has come to the point where it waits, or is at work.
    fn start(node: &Node, part: &str) -> Application {
        Application::start_by(Command::new(std::env::current_exe().unwrap()), node, part)
    }

    fn start_by(mut command: Command, node: &Node, part: &str) -> Application {
        let mut process = command
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

    /// The next line that the process says.
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

    /// Tells the process to go on, and returns the next line that it says.
    fn goes_on(&mut self) -> String {
        self.hears.write_all(b"\n").unwrap();
        self.said()
    }

    /// States of the threads of the process, in the letters of `ps`.
    fn states(&self) -> String {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let stats = tasks
            .flatten()
            .map(|task| std::fs::read_to_string(task.path().join("stat")));
        let state = |stat: String| stat.rsplit_once(") ").and_then(|(_, s)| s.chars().next());
        stats.flatten().filter_map(state).collect()
    }

    /// Whether the process has the fence. No other process of these tests has the bytes with this
    /// id.
    fn has_fence(&self) -> bool {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words.get(at)?.parse::<i64>().ok();
            words.get(3) == Some(&"WRITE")
                && number(4) == Some(i64::from(self.process.id()))
                && number(6).is_some_and(|first| first <= READERS.start)
                && number(7).is_some_and(|last| last >= READERS.end - 1)
        })
    }

    /// Stops the process while it has the fence.
    fn stop_locked(&self) {
        let pid = Pid::from_child(&self.process);
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            kill_process(pid, Signal::STOP).unwrap();
            while !self.states().chars().all(|state| state == 'T') {
                std::thread::sleep(Duration::from_millis(1));
            }
            if self.has_fence() {
                return;
            }
            kill_process(pid, Signal::CONT).unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        panic!("it never has the fence");
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

/// Acts roughly like a second daemon.
fn write_on(path: PathBuf, to_disk: bool) {
    let mut settings = crate::apply::tests::support::settings();
    (settings.path, settings.courtesy) = (path, COURTESY);
    let mut db = Database::open(settings, Arc::new(SystemClock), Arc::default()).unwrap();
    say("ready");
    loop {
        let done: Result<()> = match to_disk {
            true => db.write_synced(|db| Ok(set_meta(&db.conn, Meta::LostStreams, 1)?)),
            false => db.write(|_| {
                std::thread::sleep(KEEPS_OUT / 4);
                Ok(())
            }),
        };
        done.unwrap();
        std::thread::sleep(KEEPS_OUT / 4); // readers get in
    }
}

/// Not a test: the program that [`Application::start`] runs.
#[test]
fn plays_an_application() {
    let (Ok(part), Some(path)) = (
        std::env::var("HARMONYLITE_TEST_PART"),
        std::env::var_os("HARMONYLITE_TEST_DB"),
    ) else {
        return;
    };
    if part.starts_with("writes") {
        write_on(path.clone().into(), part == "writes to the disk");
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
            match app.execute_batch("SELECT count(*) FROM t") {
                Ok(()) => say(&began.elapsed().as_millis().to_string()),
                Err(e) => say(&format!("after {:?}: {e}", began.elapsed())),
            }
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

/// Number of refused transactions, of the 300 of an application. Meanwhile HarmonyLite runs at
/// least `least` captures, and `between` after each.
fn refused(node: &mut Node, least: u32, between: impl Fn(&mut Node)) -> u32 {
    let mut app = Application::start(node, "loops");
    let mut writes = 0;
    while app.process.try_wait().unwrap().is_none() {
        node.db.capture().unwrap();
        writes += 1;
        between(node);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(writes >= least, "{writes}");
    app.said().parse().unwrap()
}

#[test]
fn a_transaction_that_reads_and_then_writes_is_not_refused() {
    assert_eq!(refused(&mut node(FOR_EVER), 10, |_| {}), 0);
}

/// Beginning the WAL anew makes SQLite release the readers' bytes. A reader that comes in then is
/// refused if it writes before this process runs again.
#[test]
fn nor_is_it_where_the_wal_is_begun_anew_each_time() {
    let refused = refused(&mut node(FOR_EVER), 10, |node| {
        let checkpoint = "PRAGMA wal_checkpoint(PASSIVE)";
        node.db.conn.execute_batch(checkpoint).unwrap();
    });
    assert!(refused <= 3, "{refused} of 300");
}

/// A reader that finds no free place while the fence is let go reads the last commit under an older
/// place.
#[test]
fn a_fence_that_is_let_go_leaves_no_older_place_behind() {
    let mut node = node(COURTESY);
    let mut reader = Application::start(&node, "reads");
    for value in 0..3 {
        node.run(&format!("INSERT INTO t(v) VALUES ({value})"));
        write(&mut node.db);
        let FenceKind::Wal(wal) = node.db.fence.way() else {
            panic!("the fence is off");
        };
        let index = Index::read(&wal.shm).unwrap();
        let older = (1..SLOTS).filter(|slot| !index.is_current(*slot));
        assert_eq!(older.count(), 1, "that of the reader");
    }
    assert_eq!(reader.goes_on(), "refused");
}

/// A snapshot's copy keeps the fence from being taken. Instead the fence checks for readers, before
/// and after the begin.
#[test]
fn a_snapshot_is_copied_beside_an_application_at_work() {
    let mut node = node(FOR_EVER);
    node.run("INSERT INTO t VALUES (1, 'a')");
    let view = loop {
        if let (Some(view), _) = node.db.view().unwrap() {
            break view;
        }
    };
    let (begin, begun) = crossbeam_channel::bounded::<()>(0);
    let to = node.dir.path().join("copy");
    std::thread::scope(|scope| {
        let copies = scope.spawn(|| {
            view.copy(&to, &mut |_| {
                let _ = begun.recv(); // until it is closed
                Ok(())
            })
        });
        let refused = refused(&mut node, 1, |_| {});
        assert!(refused <= 15, "{refused} of 300");
        assert!(!copies.is_finished());
        drop(begin);
        copies.join().unwrap().unwrap();
    });
    let count = "SELECT count(*) FROM t";
    let copy = Connection::open(&to).unwrap();
    let copied: i64 = copy.query_row(count, [], |r| r.get(0)).unwrap();
    assert_eq!(copied, 1, "as of its begin");
    assert_eq!(node.db.fence.wait(Instant::now()), ReaderGap::Fence);
    node.db.fence.let_go();
}

#[test]
fn a_reader_that_never_ends_is_waited_for_once() {
    let mut node = node(COURTESY);
    let mut app = Application::start(&node, "reads");
    let began = Instant::now();
    write(&mut node.db);
    assert!(began.elapsed() >= COURTESY);
    let since = Instant::now();
    assert_eq!(
        node.db.fence.wait(since),
        ReaderGap::Fence,
        "it has passed by"
    );
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
        assert_eq!(waits.join().unwrap(), ReaderGap::None);
    });
}

/// Health, acknowledgements and reading must not wait for it.
#[test]
fn a_process_that_waits_is_not_inside() {
    let node = node(FOR_EVER);
    let mut app = Application::start(&node, "reads");
    let (dir, shared) = (node.dir, Shared::new(node.db, 1).0);
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| write(&mut shared.lock_to_write().database));
        for _ in 0..5 {
            drop(shared.lock());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!writes.is_finished());
        assert_eq!(app.goes_on(), "wrote");
    });
    drop(dir);
}

/// A checkpoint that resets the WAL would remove frames that the view reads.
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
    // While the view reads, the fence only checks for readers, and this reader is in the way.
    let mut reader = Application::start(&node, "reads");
    let since = Instant::now();
    write(&mut node.db);
    assert!(since.elapsed() >= COURTESY / 2);
    assert_eq!(reader.goes_on(), "refused");
    drop(view);
    assert_eq!(node.db.fence.wait(Instant::now()), ReaderGap::Fence);
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
fn locks_of_a_killed_process_are_free() {
    let mut node = node(COURTESY);
    let other = Application::start(&node, "writes");
    other.stop_locked();
    drop(other); // by SIGKILL
    node.capture();
    node.run("INSERT INTO t(v) VALUES (1)");
    assert_eq!(node.capture(), 1);
}

/// The transaction itself reports the missing table.
#[test]
fn a_transaction_begins_without_our_tables() {
    let mut node = node(COURTESY);
    node.app
        .execute_batch("DROP TABLE __harmonylite___meta")
        .unwrap();
    assert!(node.db.write(|_| Ok(())).is_err());
    assert!(node.db.conn.is_autocommit());
}

/// The locks of a stopped process stay, and readers wait for them as for any lock.
#[test]
fn locks_of_a_stopped_process_are_free_when_it_goes_on() {
    let node = node(COURTESY);
    let mut app = Application::start(&node, "looks");
    let other = Application::start(&node, "writes");
    other.stop_locked();
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| app.goes_on().parse::<u128>().unwrap());
        std::thread::sleep(2 * KEEPS_OUT);
        assert!(other.has_fence() && !looks.is_finished());
        kill_process(Pid::from_child(&other.process), Signal::CONT).unwrap();
        let waited = looks.join().unwrap();
        assert!((KEEPS_OUT.as_millis()..9_000).contains(&waited), "{waited}");
    });
}

/// Each sync takes 300 ms: a process that is in one keeps nobody out.
#[test]
fn no_sync_is_waited_for_inside_the_fence() {
    let trace = [
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync,fdatasync",
        "--seccomp-bpf",
    ];
    let slow = ["-e", "inject=fsync,fdatasync:delay_enter=300000"];
    let mut tries = Command::new("strace");
    if !tries
        .args(trace)
        .arg("true")
        .status()
        .is_ok_and(|s| s.success())
    {
        eprintln!("SKIPPED: strace may not trace here");
        return;
    }
    let node = node(COURTESY);
    let mut command = Command::new("strace");
    command.args(trace).args(slow);
    let other = Application::start_by(command_for(command), &node, "writes to the disk");
    // The tracer has stopped the process: it is in a sync, or for a moment in a different system
    // call.
    let is_in_sync = || other.states().contains('t');
    let (mut in_sync, mut with_fence) = (0, 0);
    let until = Instant::now() + Duration::from_secs(30);
    while in_sync < 500 && Instant::now() < until {
        if is_in_sync() {
            in_sync += 1;
            if other.has_fence() {
                std::thread::sleep(KEEPS_OUT / 3);
                with_fence += usize::from(is_in_sync() && other.has_fence());
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(
        in_sync >= 100 && with_fence <= 1,
        "{with_fence} of {in_sync}"
    );
}

/// Makes `runner` run this program.
fn command_for(mut runner: Command) -> Command {
    runner.arg(std::env::current_exe().unwrap());
    runner
}

#[test]
fn readers_of_a_rollback_journal_are_waited_for() {
    let mut node = node(FOR_EVER);
    let conn = &node.db.conn;
    // No other connection has the file open now.
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

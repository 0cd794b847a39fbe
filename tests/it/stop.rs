//! Each end in good order, and `-cleanup`.

use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::Cluster;
use crate::node::{pause, texts, until};

const LIMIT: Duration = Duration::from_secs(3);

#[test]
fn sigterm_and_sigint_under_load() {
    let mut cluster = Cluster::start(2, |_| {});
    let stop = AtomicBool::new(false);
    let app = cluster.nodes[0].open();
    std::thread::scope(|scope| {
        let stop_writing = &stop;
        let writer = scope.spawn(move || {
            for i in 0.. {
                if stop_writing.load(Ordering::Relaxed) {
                    break;
                }
                app.execute("REPLACE INTO item VALUES (?1, ?2, 0)", [i % 500, i])
                    .unwrap();
            }
        });
        for round in 0..6 {
            pause(300);
            let node = &mut cluster.nodes[round % 2];
            let began = Instant::now();
            node.signal(if round < 3 { Signal::TERM } else { Signal::INT });
            let status = node.wait();
            let took = began.elapsed();
            assert_eq!(status.code(), Some(0));
            assert!(took < LIMIT, "{took:?}");
            node.start();
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    cluster.converge();
}

#[test]
fn the_end_comes_even_if_broker_and_application_hang() {
    let mut cluster = Cluster::start(1, |_| {});
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
    let app = cluster.nodes[0].open();
    // The application holds the lock, and the broker stands still.
    app.execute_batch("BEGIN IMMEDIATE; INSERT INTO item VALUES (2, 'b', 0)")
        .unwrap();
    cluster.broker.signal(Signal::STOP);
    let took = cluster.nodes[0].stop();
    assert!(took < LIMIT, "{took:?}");
    cluster.nodes[0].start();
    pause(300);
    let began = Instant::now();
    let node = &mut cluster.nodes[0];
    node.signal(Signal::TERM);
    pause(100);
    node.signal(Signal::INT);
    assert_eq!(node.wait().code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_millis(1000),
        "{:?}",
        began.elapsed()
    );
    cluster.broker.signal(Signal::CONT);
    app.execute_batch("COMMIT").unwrap();
    drop(app);
    cluster.nodes[0].start();
    assert_eq!(cluster.converge().len(), 2);
}

/// Rows that the application committed before the signal reach the others.
#[test]
fn the_last_rows_are_sent() {
    let mut cluster = Cluster::start(2, |_| {});
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
    for id in 2..12 {
        cluster.nodes[0].execute(&format!("INSERT INTO item VALUES ({id}, 'last', 0)"));
        cluster.nodes[0].stop();
        assert!(
            cluster.nodes[0].is_quiet(),
            "captured, sent and acknowledged"
        );
        cluster.nodes[0].start();
        // The node is connected, and its next rows are under way.
        cluster.nodes[0].execute(&format!("UPDATE item SET value = {id} WHERE id = 1"));
        cluster.converge();
    }
}

/// The signal comes while rows that were written before the start are on their way.
#[test]
fn the_rest_of_the_backlog_is_sent() {
    let mut cluster = Cluster::start(2, |node| {
        node.set("replication_log.max_transaction_bytes", "16384");
    });
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
    cluster.nodes[0].stop();
    let app = cluster.nodes[0].open();
    for id in 2..100 {
        let sql = "INSERT INTO item VALUES (?1, hex(randomblob(1000)), 0)";
        app.execute(sql, [id]).unwrap();
    }
    drop(app);
    cluster.nodes[0].start();
    until("the other node has the first of them", || {
        (cluster.nodes[1].number("SELECT count(*) FROM item") > 1).then_some(())
    });
    cluster.nodes[0].stop();
    assert!(cluster.nodes[0].is_quiet(), "sent and acknowledged");
    cluster.nodes[0].start();
    assert_eq!(cluster.converge().len(), 99);
}

#[test]
fn cleanup_leaves_no_trace() {
    let mut cluster = Cluster::start(1, |_| {});
    let schema = "SELECT name || ' ' || coalesce(sql, '') FROM sqlite_schema ORDER BY name";
    let node = &mut cluster.nodes[0];
    node.execute("CREATE TRIGGER own AFTER INSERT ON item BEGIN SELECT 1; END");
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
    let node = &mut cluster.nodes[0];
    let app = node.open();
    assert_ne!(texts(&app, schema).len(), 2);
    let refused = node.run(&["-cleanup"]);
    assert_eq!(refused.status.code(), Some(1), "while the daemon runs");
    node.stop();
    // The application goes on with the file open.
    let mut read = app.prepare("SELECT value FROM item").unwrap();
    let mut rows = read.query([]).unwrap();
    assert!(rows.next().unwrap().is_some());
    let done = node.run(&["-cleanup"]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(String::from_utf8_lossy(&done.stdout).contains("removed "));
    drop(rows);
    drop(read);
    let left = texts(&app, schema);
    assert!(
        left.len() == 2 && left[0].starts_with("item") && left[1].starts_with("own"),
        "{left:?}"
    );
    app.execute("INSERT INTO item VALUES (2, 'b', 0)", [])
        .unwrap();
    for file in ["seq-map.cbor", "app.db-harmonylite.lock"] {
        assert!(!node.file(file).exists(), "{file}");
    }
    let again = node.run(&["-cleanup"]);
    assert!(again.status.success());
    drop(app);
    fs::remove_file(node.database()).unwrap();
    let missing = node.run(&["--cleanup"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("there is no database"));
    assert!(!node.database().exists());
}

/// A supervisor's `restart` may start the next daemon while the last one still ends.
#[test]
fn a_start_waits_for_the_one_that_ends() {
    let mut cluster = Cluster::start(1, |_| {});
    let node = &mut cluster.nodes[0];
    node.until_log("connected to NATS");
    let pid_file = node.file("pid");
    let words = ["-pid-file", pid_file.to_str().unwrap()];
    let mut next = node.command(&words).stdout(Stdio::null()).spawn().unwrap();
    node.stop();
    let pid = format!("{}\n", next.id());
    until("the next one runs", || {
        fs::read_to_string(&pid_file)
            .is_ok_and(|text| text == pid)
            .then_some(())
    });
    kill_process(Pid::from_child(&next), Signal::TERM).unwrap();
    assert_eq!(next.wait().unwrap().code(), Some(0));
    assert!(!pid_file.exists());
}

/// Two daemons on one database would clear each other's marks.
#[test]
fn a_second_daemon_is_turned_away() {
    let cluster = Cluster::start(1, |_| {});
    let node = &cluster.nodes[0];
    node.until_log("connected to NATS");
    let second = node.run(&[]);
    assert_eq!(second.status.code(), Some(1));
    let says = String::from_utf8_lossy(&second.stderr);
    assert!(
        says.contains("another harmonylite runs on") && says.contains("app.db"),
        "{says}"
    );
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
}

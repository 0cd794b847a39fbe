//! The application, while the daemon works beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, params};

use crate::cluster::Cluster;
use crate::node::{Node, pause};

/// Writes as fast as it can, and panics if the database is ever busy. Returns the number of rows
/// and the longest wait for one.
fn write(app: &Connection, n: usize, stop: &AtomicBool) -> (i64, Duration) {
    let (mut written, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let id = (written % 2000) * 2 + n as i64;
        let began = Instant::now();
        let change = "REPLACE INTO item VALUES (?1, ?2, ?3)";
        match app.execute(change, params![id, written, n]) {
            Ok(_) => written += 1,
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                panic!("busy after {written} rows")
            }
            Err(e) => panic!("{e}"),
        }
        longest = longest.max(began.elapsed());
    }
    (written, longest)
}

/// One writer for each database: two writers would refuse each other even without HarmonyLite.
#[test]
fn an_application_at_full_speed_is_never_turned_away() {
    let cluster = Cluster::start(2, |_| {});
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = |(n, node): (usize, &Node)| {
            let (app, stop) = (node.open(), &stop);
            scope.spawn(move || write(&app, n, stop))
        };
        let writers: Vec<_> = cluster.nodes.iter().enumerate().map(writer).collect();
        let end = Instant::now() + Duration::from_secs(8);
        while Instant::now() < end && !writers.iter().any(|w| w.is_finished()) {
            pause(50);
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            let (written, longest) = writer.join().unwrap();
            println!("{written} rows, the longest took {longest:?}");
            assert!(written > 100);
        }
    });
    cluster.converge();
}

#[test]
fn a_long_transaction_of_the_application_is_waited_for() {
    let cluster = Cluster::start(2, |_| {});
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
    let app = cluster.nodes[1].open();
    app.execute_batch("BEGIN IMMEDIATE; INSERT INTO item VALUES (2, 'mine', 1)")
        .unwrap();
    for id in 10..40 {
        cluster.nodes[0].execute(&format!("INSERT INTO item VALUES ({id}, 'b', 0)"));
    }
    // This is longer than any wait inside one step of the daemon.
    pause(3000);
    app.execute_batch("COMMIT").unwrap();
    assert_eq!(cluster.converge().len(), 32);
}

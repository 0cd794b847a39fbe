//! A broker's user who may publish, and means ill: messages of nonsense on a small box, while an
//! application works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harmonylite::model::frame::{FrameBuilder, KeyColumn, TableHeader};
use harmonylite::model::value::Value;
use harmonylite::model::version::Version;
use harmonylite::stream::client::Client;

use crate::cluster::Cluster;
use crate::health::{serve, until_health};
use crate::metrics::{scraped, value};
use crate::node::{Node, until};

/// Memory and disk of the box.
const SMALL: u64 = 64 << 20;

/// Rows of one table, by a node that nobody knows.
struct Rows {
    frame: FrameBuilder,
    header: TableHeader,
    hlc: i64,
}

impl Rows {
    fn of(table: &str, columns: &[&str]) -> Rows {
        let key = KeyColumn {
            name: "id".into(),
            affinity: "INTEGER",
            collation: "BINARY".into(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Rows {
            frame: FrameBuilder::default(),
            header: TableHeader::new(1, table, &[key], columns),
            hlc: (now.as_millis() as i64) << 16,
        }
    }

    fn version(&self, node: u64) -> Version {
        Version {
            hlc: self.hlc,
            node,
        }
    }

    fn delete(&mut self, id: i64, node: u64) {
        let version = self.version(node);
        let key = [Value::Integer(id)];
        self.frame.delete(&self.header, version, key.into_iter());
    }

    fn upsert(&mut self, exceptions: &[(usize, Version)], values: &[Value<'_>]) {
        let version = self.version(99);
        let values = values.iter().copied();
        self.frame.upsert(&self.header, version, exceptions, values);
    }

    /// Publishes them. Little is left of nonsense that is packed.
    fn publish(self, client: &Client) {
        let packed = zstd::bulk::compress(&self.frame.finish(), 1).unwrap();
        client
            .publish("harmonylite-change-log-1", None, &[], &packed)
            .unwrap();
    }
}

/// Each kind of nonsense once.
fn attack(client: &Client) {
    // A message that is 1,000 times as large once it is unpacked, and one that just may be so.
    for bytes in [64 << 20, 20 << 20] {
        let mut large = Rows::of("nowhere", &["id", "v"]);
        large.upsert(&[], &[Value::Integer(1), Value::Blob(&vec![0; bytes])]);
        large.publish(client);
    }
    // Deletes of rows that never were.
    let mut deletes = Rows::of("item", &["id"]);
    (0..20_000).for_each(|id| deletes.delete(1_000_000 + id, 99));
    deletes.publish(client);
    // Each column of each row with a version of its own, and none of them known.
    let names: Vec<String> = (1..1990).map(|n| format!("c{n}")).collect();
    let mut columns = vec!["id"];
    columns.extend(names.iter().map(String::as_str));
    let mut wide = Rows::of("item", &columns);
    let own = wide.version(98);
    let exceptions: Vec<_> = (1..columns.len()).map(|column| (column, own)).collect();
    for id in 0..100 {
        let mut values = vec![Value::Integer(id); columns.len()];
        values[0] = Value::Integer(2_000_000 + id);
        wide.upsert(&exceptions, &values);
    }
    wide.publish(client);
    // Tables that are not there.
    for table in 0..30 {
        let mut invented = Rows::of(&format!("invented_{table}"), &["id", "v"]);
        for id in 0..100 {
            invented.upsert(&[], &[Value::Integer(id), Value::Blob(&[0; 1000])]);
        }
        invented.publish(client);
    }
    // More nodes than there may be.
    let mut nodes = Rows::of("item", &["id"]);
    (0..17_000).for_each(|node| nodes.delete(3_000_000, 1000 + node));
    nodes.publish(client);
    // A row of the year 4199.
    let mut late = Rows::of("item", &["id", "value", "writer"]);
    late.hlc = 70_347_571_200_000 << 16;
    let text = Value::Text(b"late");
    late.upsert(&[], &[Value::Integer(4_000_000), text, text]);
    late.publish(client);
    // The last one makes sense.
    let mut last = Rows::of("item", &["id", "value", "writer"]);
    let text = Value::Text(b"last");
    last.upsert(&[], &[Value::Integer(5_000_000), text, text]);
    last.publish(client);
}

/// Bytes that the daemon had in memory at most.
fn most_memory(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// Writes until told to stop: no write is refused. Returns how many there were.
fn work(node: &Node, is_over: &AtomicBool) -> i64 {
    let app = node.open();
    app.busy_timeout(Duration::from_secs(2)).unwrap();
    let mut waits = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let id = waits.len() as i64;
        app.execute("INSERT INTO item VALUES (?1, 'mine', 1)", [id])
            .expect("the application is never refused");
        waits.push(began.elapsed());
        crate::node::pause(2);
    }
    waits.sort_unstable();
    let p99 = waits[waits.len() * 99 / 100];
    println!("{} writes, 99 % of them within {p99:?}", waits.len());
    waits.len() as i64
}

#[test]
fn nonsense_takes_little_and_keeps_no_application_waiting() {
    let mut cluster = Cluster::stopped(1, |node| {
        node.set("prometheus.namespace", "'h'")
            .set("max_held_bytes", "1048576");
    });
    let port = serve(&mut cluster.nodes[0]);
    cluster.nodes[0].start();
    let node = &cluster.nodes[0];
    node.execute("INSERT INTO item VALUES (-1, 'first', 1)");
    until("the node publishes", || {
        let sent = value(&scraped(node)?, "h_published_rows_total") >= 1.0;
        sent.then_some(())
    });
    let is_over = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let application = scope.spawn(|| work(node, &is_over));
        let client = cluster.broker.client();
        attack(&client);
        until("all is read", || {
            let last = "SELECT count(*) FROM item WHERE id = 5000000";
            (node.number(last) == 1).then_some(())
        });
        is_over.store(true, Ordering::Relaxed);
        application.join().unwrap()
    });
    assert_eq!(
        node.number("SELECT count(*) FROM item WHERE value = 'mine'"),
        written
    );
    let memory = most_memory(node);
    println!("at most {} MiB of memory", memory >> 20);
    assert!(memory < SMALL, "{memory}");
    let disk = std::fs::metadata(node.database()).unwrap().len();
    assert!(disk < SMALL, "{disk}");
    let text = until("the counters say what was refused", || {
        let text = scraped(node)?;
        (value(&text, "h_held_bytes") <= 1_048_576.0).then_some(text)
    });
    assert!(value(&text, "h_let_go_rows_total") > 0.0, "{text}");
    assert!(value(&text, "h_quarantined_messages") >= 2.0, "{text}");
    until_health(port, 503, &["\"versions\":", "rows of table item"]);
}

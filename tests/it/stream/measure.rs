//! Numbers, not promises: `cargo test --test it measure -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use crossbeam_channel::never;
use harmonylite::stream::{Reader, Writer};

use crate::stream::node::{Node, PATIENCE, ensure, read, streams};

#[test]
#[ignore = "a measurement"]
fn measure() {
    let node = Node::start();
    ensure(&node.client(), &streams());
    let mut writer = node.writer(&streams());
    let mut reader = node.reader(&streams());
    let mut next = 1;
    for pause_ms in [20, 1] {
        let mut micros: Vec<u128> = (0..500)
            .map(|n| {
                std::thread::sleep(Duration::from_millis(pause_ms));
                let start = Instant::now();
                writer
                    .send(1, &format!("{pause_ms}-{n}"), &[7; 200], n)
                    .unwrap();
                writer.flush();
                next = read(&mut reader, next, 1)[0].sequence + 1;
                let took = start.elapsed().as_micros();
                writer.acks().recv_timeout(PATIENCE).unwrap();
                took
            })
            .collect();
        micros.sort_unstable();
        let (p50, p95, p99) = (micros[250], micros[475], micros[495]);
        println!("publish to fetch, every {pause_ms} ms: p50 {p50} p95 {p95} p99 {p99} us");
    }
    for (size, count) in [(200, 50_000), (8 * 1024, 20_000)] {
        let start = Instant::now();
        let (mut sent, mut acknowledged) = (0u64, 0u64);
        while acknowledged < count {
            while sent < count && sent - acknowledged < 512 {
                writer
                    .send(1, &format!("{size}-{sent}"), &vec![7; size], sent)
                    .unwrap();
                sent += 1;
            }
            writer.flush();
            writer
                .acks()
                .recv_timeout(PATIENCE)
                .unwrap()
                .result
                .unwrap();
            acknowledged += 1;
            for ack in writer.acks().try_iter() {
                ack.result.unwrap();
                acknowledged += 1;
            }
        }
        let took = start.elapsed();
        let mut got = 0;
        let reading = Instant::now();
        while got < count {
            let batch = reader.fetch(next, PATIENCE, &never()).unwrap();
            got += batch.len() as u64;
            next = batch.last().unwrap().sequence + 1;
        }
        let rate = |took: Duration| count as f64 / took.as_secs_f64();
        println!(
            "{size} B: {:.0} msg/s written, {:.0} msg/s read",
            rate(took),
            rate(reading.elapsed())
        );
    }
}

/// Names of this process's threads that belong to connections, and how often all were woken.
fn threads() -> (Vec<String>, u64) {
    let (mut names, mut wakeups) = (Vec::new(), 0);
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file));
        let (Ok(name), Ok(status)) = (read("comm"), read("status")) else {
            continue;
        };
        names.push(name.trim().to_string());
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        wakeups += line.unwrap().trim().parse::<u64>().unwrap();
    }
    names.sort();
    (names, wakeups)
}

#[test]
#[ignore = "a measurement"]
fn idle_and_leftovers() {
    println!("before: {:?}", threads().0);
    for round in 0..2 {
        let node = Node::start();
        ensure(&node.client(), &streams());
        let writer = node.writer(&streams());
        let mut reader = node.reader(&streams());
        assert!(
            reader
                .fetch(1, Duration::from_secs(2), &never())
                .unwrap()
                .is_empty()
        );
        let (names, woken) = threads();
        println!("connected: {names:?}");
        assert!(
            reader
                .fetch(1, Duration::from_secs(20), &never())
                .unwrap()
                .is_empty()
        );
        println!("wake-ups in 20 s idle: {}", threads().1 - woken);
        match round {
            0 => drop((writer, reader)), // we leave
            _ => node.kill(),            // it leaves
        }
        std::thread::sleep(Duration::from_secs(1));
        println!("ended, round {round}: {:?}", threads().0);
    }
    std::thread::sleep(Duration::from_secs(3));
    println!("after: {:?}", threads().0);
}

//! Connections that are cut in the middle, and servers that go away.

use std::time::{Duration, Instant};

use harmonylite::store::Store;

use crate::bench::{Bench, Way};
use crate::conformance::{expect, expect_none, names, put};
use crate::data::{Expected, LARGE, Pattern};
use crate::proxy::Proxy;
use crate::servers::free_ports;

/// Runs the checks; the server is killed at the end.
pub fn check(bench: &mut Bench) {
    check_cuts(bench);
    end(bench);
}

pub fn check_cuts(bench: &Bench) {
    let proxy = Proxy::new(bench.port);
    let way = Way {
        port: proxy.port,
        ..bench.way("trouble")
    };
    cut_uploads(bench, &proxy, &way);
    cut_downloads(bench, &proxy, &way);
    nobody_there(bench, &proxy, &way);
}

pub fn end(bench: &mut Bench) {
    let mut store = bench.open("trouble");
    if let Some(process) = &mut bench.process {
        process.kill();
    }
    // Only OpenSSH's listener has ended; its sessions are processes of their own.
    if bench.name != "sftp sshd" {
        bench.error(store.put("late", LARGE, &mut Pattern::new(4, LARGE)));
        bench.error(store.get("kept", &mut Vec::new()));
    }
    bench.error(bench.try_open(&bench.way("trouble")));
}

fn open(bench: &Bench, way: &Way) -> Box<dyn Store> {
    bench
        .try_open(way)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Cuts uploads: there is no half object, the old one stays, and later calls work.
fn cut_uploads(bench: &Bench, proxy: &Proxy, way: &Way) {
    let mut direct = bench.open("trouble");
    put(direct.as_mut(), "kept", 1, 5000);
    for (name, after) in [("torn", 100_000), ("kept", LARGE / 2)] {
        let mut store = open(bench, way);
        proxy.cut_after(after);
        let result = store.put(name, LARGE, &mut Pattern::new(2, LARGE));
        let text = bench.error(result);
        assert!(text.contains(&format!("put {name}")), "{text}");
        drop(store);
        proxy.heal();
        expect_none(direct.as_mut(), "torn");
        expect(direct.as_mut(), "kept", 1, 5000);
    }
    let mut store = open(bench, way);
    put(store.as_mut(), "torn", 3, LARGE);
    expect(store.as_mut(), "torn", 3, LARGE);
    // Leftovers that could not be removed at once are listed, and can be removed.
    for name in names(store.as_mut()) {
        if name.contains(".part-") {
            store.remove(&name).unwrap();
        }
    }
    assert_eq!(names(store.as_mut()), ["kept", "torn"]);
}

fn cut_downloads(bench: &Bench, proxy: &Proxy, way: &Way) {
    let mut store = open(bench, way);
    proxy.cut_after(LARGE / 2);
    let text = bench.error(store.get("torn", &mut Expected::new(3, LARGE)));
    assert!(text.contains("get torn"), "{text}");
    drop(store);
    proxy.heal();
    expect(open(bench, way).as_mut(), "torn", 3, LARGE);
}

fn nobody_there(bench: &Bench, proxy: &Proxy, way: &Way) {
    let mut store = open(bench, way);
    proxy.cut_after(0);
    let began = Instant::now();
    bench.error(store.list());
    bench.error(store.remove("kept"));
    bench.error(bench.try_open(way));
    let mut unreachable = bench.way("trouble");
    unreachable.port = free_ports(1);
    let text = bench.error(bench.try_open(&unreachable));
    assert!(
        text.contains(&format!("127.0.0.1:{}", unreachable.port)),
        "{text}"
    );
    assert!(began.elapsed() < Duration::from_secs(20));
    proxy.heal();
    expect(open(bench, way).as_mut(), "kept", 1, 5000);
}

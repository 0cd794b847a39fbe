//! The behaviour of every store while nothing goes wrong but the caller's reader or writer.

use harmonylite::store::{Store, StoreError};

use crate::bench::Bench;
use crate::data::{Expected, Failing, Full, LARGE, Pattern, READ_ERROR, WRITE_ERROR};

/// Puts the bytes that `seed` stands for.
#[track_caller]
pub fn put(store: &mut dyn Store, name: &str, seed: u64, size: u64) {
    let result = store.put(name, size, &mut Pattern::new(seed, size));
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Gets the bytes back.
#[track_caller]
pub fn expect(store: &mut dyn Store, name: &str, seed: u64, size: u64) {
    let mut expected = Expected::new(seed, size);
    let result = store.get(name, &mut expected);
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(expected.is_complete(), "{name}: other bytes");
}

#[track_caller]
pub fn expect_none(store: &mut dyn Store, name: &str) {
    let result = store.get(name, &mut Vec::new());
    assert!(
        matches!(result, Err(StoreError::NotFound { .. })),
        "{result:?}"
    );
    let text = result.unwrap_err().to_string();
    assert!(text.ends_with(&format!("there is no {name}")), "{text}");
    assert!(text.starts_with(store.address()), "{text}");
}

#[track_caller]
pub fn names(store: &mut dyn Store) -> Vec<String> {
    let mut names = store.list().unwrap_or_else(|error| panic!("{error}"));
    names.sort();
    names
}

pub fn check(bench: &Bench) {
    a_reader_makes_nothing(bench);
    let mut store = bench.open("conform");
    let store = store.as_mut();
    nothing_there(store);
    sizes(store);
    replacing(store);
    failing_ends(bench, store);
    refused_names(bench, store);
    leftovers(store);
    for name in names(store) {
        store.remove(&name).unwrap();
        expect_none(store, &name);
    }
    nothing_there(store);
}

fn a_reader_makes_nothing(bench: &Bench) {
    for _ in 0..2 {
        match bench.open_existing("unmade") {
            Err(StoreError::NotFound { name, .. }) => assert!(name.starts_with("such "), "{name}"),
            Err(error) => panic!("{}: {error}", bench.name),
            Ok(_) => panic!("{}: there is one", bench.name),
        }
    }
    put(bench.open("unmade").as_mut(), "word", 1, 10);
    let found = bench.open_existing("unmade");
    let mut found = found.unwrap_or_else(|error| panic!("{}: {error}", bench.name));
    expect(found.as_mut(), "word", 1, 10);
}

fn nothing_there(store: &mut dyn Store) {
    assert_eq!(names(store), [""; 0]);
    expect_none(store, "manifest");
    store.remove("manifest").unwrap();
}

fn sizes(store: &mut dyn Store) {
    let sizes = [("empty", 0), ("one", 1), ("snapshot-1.zst", LARGE)];
    for (name, size) in sizes {
        put(store, name, size, size);
    }
    for (name, size) in sizes {
        expect(store, name, size, size);
    }
    assert_eq!(names(store), ["empty", "one", "snapshot-1.zst"]);
}

fn replacing(store: &mut dyn Store) {
    for (seed, size) in [(1, 100_000), (2, 300), (3, 0), (4, LARGE), (5, 7)] {
        put(store, "manifest", seed, size);
        expect(store, "manifest", seed, size);
    }
    assert_eq!(names(store), ["empty", "manifest", "one", "snapshot-1.zst"]);
}

/// The caller's end breaks: nothing new is seen, the old object stays, and nothing is left over.
fn failing_ends(bench: &Bench, store: &mut dyn Store) {
    for good in [0, 1000, LARGE / 2] {
        let mut from = Failing(Pattern::new(6, good));
        let text = bench.error(store.put("torn", LARGE, &mut from));
        assert!(
            text.contains("put torn") && text.contains(READ_ERROR),
            "{text}"
        );
        let mut from = Failing(Pattern::new(6, good));
        bench.error(store.put("manifest", LARGE, &mut from));
        // A broken transfer may have cost the connection.
        let mut again = bench.open("conform");
        expect_none(again.as_mut(), "torn");
        expect(again.as_mut(), "manifest", 5, 7);
        let left = names(again.as_mut());
        assert_eq!(left, ["empty", "manifest", "one", "snapshot-1.zst"]);
    }
    let short = &mut Pattern::new(6, 10);
    let text = bench.error(store.put("torn", 11, short));
    assert!(text.contains("ended after 10 of 11 bytes"), "{text}");
    let text = bench.error(store.get("snapshot-1.zst", &mut Full { room: 100_000 }));
    assert!(
        text.contains("get snapshot-1.zst") && text.contains(WRITE_ERROR),
        "{text}"
    );
    let mut again = bench.open("conform");
    expect_none(again.as_mut(), "torn");
    expect(again.as_mut(), "snapshot-1.zst", LARGE, LARGE);
}

fn refused_names(bench: &Bench, store: &mut dyn Store) {
    for name in ["", "..", "../up", "a/b", "a b", ".hidden", "a*", "ä"] {
        bench.error(store.put(name, 1, &mut &b"x"[..]));
        bench.error(store.get(name, &mut Vec::new()));
        bench.error(store.remove(name));
    }
}

/// The leftovers of a broken upload can be seen and removed.
fn leftovers(store: &mut dyn Store) {
    let name = "manifest.part-0123456789abcdef";
    put(store, name, 9, 9);
    assert!(names(store).contains(&name.to_string()));
    store.remove(name).unwrap();
    assert!(!names(store).contains(&name.to_string()));
}

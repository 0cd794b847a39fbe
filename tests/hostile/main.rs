//! Malicious bytes, on stable Rust and in seconds: seeds, the findings of fuzzing, and thousands of
//! deterministic mutations of both, through the entries that `scripts/fuzz.sh` runs for hours.
//! There must be no panic, and never more memory than a message may take.
#![allow(unreachable_pub)] // no other crate uses any of it

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use harmonylite::cluster::registry::parse_requested;
use harmonylite::config::Config;
use harmonylite::database::rows::decode_exceptions;
use harmonylite::model::cbor;
use harmonylite::model::manifest::{Manifest, SnapshotEntry};

#[path = "../fuzz/entry.rs"]
mod entry;
mod mutate;

use entry::{WAYS, Way};

/// An allocator that counts the allocated bytes and their peak.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything to the system's allocator, with the arguments it was given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Held by one input at a time, so that the count is that of this input.
static ONE: Mutex<()> = Mutex::new(());

/// Runs an entry. Returns the peak of its memory.
fn memory_of(entry: &Way, bytes: &[u8]) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = catch_unwind(AssertUnwindSafe(|| (entry.run)(bytes)));
    let most = MOST.load(Ordering::Relaxed).saturating_sub(before);
    assert!(result.is_ok(), "{} panics on {bytes:02x?}", entry.name);
    most
}

/// Inputs that fuzzing found and that are mended: `tests/fuzz/found/NAME/*`.
fn found(entry: &Way) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/found");
    let Ok(files) = std::fs::read_dir(folder.join(entry.name)) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = files.map(|f| f.unwrap().path()).collect();
    files.sort();
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

/// Mutations per entry; all entries together take a few seconds.
fn rounds(entry: &Way) -> u64 {
    match entry.name {
        "apply" => 1_000,
        "config" => 2_000,
        _ => 10_000,
    }
}

#[test]
fn seeds_and_their_mutations_do_no_harm() {
    const MOST_BYTES: usize = 12 << 20;
    let _one = ONE.lock();
    for entry in &WAYS {
        let mut inputs = (entry.seeds)();
        inputs.append(&mut found(entry));
        assert!(!inputs.is_empty());
        for input in &inputs {
            let most = memory_of(entry, input);
            assert!(most < MOST_BYTES, "{}: {most} bytes", entry.name);
        }
        for round in 0..rounds(entry) {
            let input = mutate::mutated(&inputs, round);
            let most = memory_of(entry, &input);
            assert!(
                most < MOST_BYTES,
                "{}: {most} bytes for {input:02x?}",
                entry.name
            );
        }
    }
}

/// One message may ask for the memory that it unpacks to, a few times over while it is read.
#[test]
fn the_largest_messages_take_bounded_memory() {
    const MOST_BYTES: usize = 40 << 20;
    let _one = ONE.lock();
    let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
    let [frame, apply, ..] = &WAYS;
    for (i, raw) in mutate::large().iter().enumerate() {
        let packed = zstd.compress(raw).unwrap();
        // Holding a million upserts takes ten seconds, and the deletes behind them one.
        let applied = (i != mutate::UPSERTS).then_some((apply, &packed));
        for (entry, bytes) in [(frame, raw), (frame, &packed)].into_iter().chain(applied) {
            let (most, size) = (memory_of(entry, bytes), bytes.len());
            let name = entry.name;
            assert!(most < MOST_BYTES, "{name}: {most} bytes for {size} bytes");
        }
    }
}

/// Nested input: a parser that runs out of stack would end the process.
#[test]
fn depth_is_an_error() {
    let _one = ONE.lock();
    for text in mutate::deep("config") {
        let config = Config::parse(Path::new("config.toml"), &text);
        assert!(config.is_err(), "{:.80}", text);
    }
    for text in mutate::deep("manifest") {
        let bytes = text.as_bytes();
        assert!(Manifest::parse(bytes, "c").is_err(), "{text:.80}");
        assert!(SnapshotEntry::parse(bytes).is_err(), "{text:.80}");
        assert!(parse_requested(bytes).is_empty(), "{text:.80}");
    }
}

/// A valid configuration; mutations of an invalid one would end at its first key.
#[test]
fn seeds_are_sound() {
    for seed in (WAYS[2].seeds)() {
        let text = std::str::from_utf8(&seed).unwrap();
        Config::parse(Path::new("config.toml"), text).unwrap();
    }
    let manifests = (WAYS[3].seeds)();
    for (i, seed) in manifests[..3].iter().enumerate() {
        assert_eq!(Manifest::parse(seed, "c").unwrap().snapshots.len(), i);
    }
    SnapshotEntry::parse(&manifests[3]).unwrap();
    assert_eq!(parse_requested(&manifests[4]).len(), 1);
    let mut stored = (WAYS[4].seeds)();
    assert_eq!(decode_exceptions(&stored.pop().unwrap()).unwrap().len(), 2);
    for seed in stored {
        cbor::key_values(&seed).unwrap();
    }
}

/// Writes the inputs with which `scripts/fuzz.sh` begins to the folder FUZZ_CORPUS.
#[test]
fn seeds_are_distinct_and_written_on_demand() {
    for entry in &WAYS {
        let seeds = (entry.seeds)();
        for (i, seed) in seeds.iter().enumerate() {
            assert!(!seeds[..i].contains(seed), "{} {i}", entry.name);
            if let Some(folder) = std::env::var_os("FUZZ_CORPUS") {
                let folder = PathBuf::from(folder).join(entry.name);
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join(format!("seed-{i}")), seed).unwrap();
            }
        }
    }
}

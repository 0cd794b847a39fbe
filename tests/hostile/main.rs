//! Bytes that mean ill, on stable Rust and in seconds: seeds, what fuzzing found, and thousands of
//! deterministic mutations of both, through the entries that `scripts/fuzz.sh` runs for hours. No
//! panic, and never more memory than a message may take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "../fuzz/entry.rs"]
mod entry;
mod mutate;

use entry::{WAYS, Way};

/// Counts what is allocated, and the most that was.
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

/// One at a time, so that the count is that of one input.
static ONE: Mutex<()> = Mutex::new(());

/// Runs an entry; the most memory that it had at a time.
fn memory_of(entry: &Way, bytes: &[u8]) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = catch_unwind(AssertUnwindSafe(|| (entry.run)(bytes)));
    let most = MOST.load(Ordering::Relaxed).saturating_sub(before);
    assert!(result.is_ok(), "{} panics on {bytes:02x?}", entry.name);
    most
}

/// Inputs that were found by fuzzing and are mended: `tests/fuzz/found/NAME/*`.
fn found(entry: &Way) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/found");
    let Ok(files) = std::fs::read_dir(folder.join(entry.name)) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = files.map(|f| f.unwrap().path()).collect();
    files.sort();
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

/// Mutations per entry: all in all a few seconds.
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
            assert!(memory_of(entry, input) < MOST_BYTES, "{}", entry.name);
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

/// As much as one message can ask for: what it unpacks to, and a few times that while it is read.
#[test]
fn the_largest_messages_take_bounded_memory() {
    const MOST_BYTES: usize = 40 << 20;
    let _one = ONE.lock();
    let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
    for raw in mutate::large() {
        let packed = zstd.compress(&raw).unwrap();
        for bytes in [&raw, &packed] {
            let most = memory_of(&WAYS[0], bytes);
            assert!(most < MOST_BYTES, "{most} bytes for {} bytes", bytes.len());
        }
    }
}

/// `scripts/fuzz.sh` begins with the same inputs: FUZZ_CORPUS names the folder to write them to.
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

//! A snapshot of a large database, the nodes that begin with it, and the waits of an application
//! meanwhile. Prints a table of its own.
//!
//! ```text
//! node 1   has the database; saves a snapshot with and without an application that writes
//! node 2   has no file                    the snapshot is put in its place
//! node 3   has an empty file              it is merged
//! node 4   has an application that writes it is merged meanwhile
//! node 2   again, without seq-map.cbor    it is merged where all is there already
//! ```

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;
use crate::app::App;
use crate::cluster::{directory, start_server};
use crate::node::Node;
use crate::stall::{Stalls, Writer};

/// Rows in a transaction that makes the database, letters of a row, and its bytes in the file.
const BATCH: i64 = 1000;
const LETTERS: usize = 500;
const ROW_BYTES: u64 = 514;

/// How long an undisturbed application is watched.
const CALM: Duration = Duration::from_secs(10);

pub fn measure(mb: u64, stores: &[String]) -> Result<()> {
    let dir = directory()?;
    let template = dir.path().join("template.db");
    let last = make(&template, mb)?;
    let plain = plain_copy(&template, dir.path())?;
    println!("| {mb} MB, {last} rows | result | goal | beside |");
    println!("|---|---|---|---|");
    for store in stores {
        one_store(store, &template, plain, last)?;
    }
    Ok(dir.close()?)
}

/// The application's database, before HarmonyLite. Returns its last row.
fn make(db: &Path, mb: u64) -> Result<i64> {
    let mut app = App::open(db)?;
    app.letters = LETTERS;
    let batches = ((mb << 20) / ROW_BYTES / BATCH as u64).max(1) as i64;
    for batch in 0..batches {
        app.insert(1 + batch * BATCH, BATCH)?;
    }
    Ok(batches * BATCH)
}

/// Seconds of the same by hand: `VACUUM INTO`, then zstd level 3.
fn plain_copy(db: &Path, dir: &Path) -> Result<f64> {
    let (copy, packed) = (dir.join("vacuumed"), dir.join("vacuumed.zst"));
    let app = App::open(db)?;
    let began = Instant::now();
    app.conn.execute("VACUUM INTO ?1", [copy.to_str()])?;
    let mut encoder = zstd::Encoder::new(File::create(&packed)?, 3)?;
    std::io::copy(&mut File::open(&copy)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    let seconds = began.elapsed().as_secs_f64();
    fs::remove_file(copy)?;
    fs::remove_file(packed)?;
    Ok(seconds)
}

fn one_store(store: &str, template: &Path, plain: f64, last: i64) -> Result<()> {
    let dir = directory()?;
    fs::create_dir(dir.path().join("store"))?;
    let more = format!(
        "[snapshot]\nstore = \"{store}\"\n[snapshot.file]\npath = \"{}\"\n",
        dir.path().join("store").display()
    );
    let (server, address) = start_server(dir.path())?;
    let start = |node: &mut Node| node.start(&address, &more);
    let line = |what: &str, result: String, goal: &str, beside: &str| {
        println!("| {store}: {what} | {result} | {goal} | {beside} |");
    };
    let secs = |s: f64| format!("{s:.1} s");

    let mut one = Node::new(dir.path(), 1)?;
    fs::copy(template, &one.db)?;
    let began = Instant::now();
    start(&mut one)?;
    one.wait_for(" made, because ")?;
    line(
        "a database is taken in, and its first snapshot saved",
        secs(since(began)),
        "",
        "",
    );
    let made = one.save()?;
    let (size, packed) = made.sizes;
    line(
        "snapshot saved, nobody writing",
        format!("{:.1} s, {:.2} ×", made.seconds, made.seconds / plain),
        "",
        &format!(
            "`VACUUM INTO` and zstd: {plain:.1} s; the database is {size} MB with our tables, \
             {packed} MB packed"
        ),
    );
    let calm = writing(&mut one, last + 1, |_| {
        std::thread::sleep(CALM);
        Ok(0.0)
    })?;
    line(
        "application beside an idle daemon, p99 / longest stall",
        calm.0.shown(),
        "",
        "",
    );
    let next = one.app()?.next_id()?;
    let (stalls, seconds) = writing(&mut one, next, |node| Ok(node.save()?.seconds))?;
    line(
        "the same during a snapshot",
        stalls.shown(),
        "100 ms p99",
        &secs(seconds),
    );
    line("peak RSS of the node that saves", one.peak()?, "64 MB", "");

    let mut two = Node::new(dir.path(), 2)?;
    let began = Instant::now();
    start(&mut two)?;
    two.wait_for(" it begins with snapshot")?;
    two.app()?.wait_for(last)?;
    line(
        "a node without a file has all rows after",
        secs(since(began)),
        "",
        &two.peak()?,
    );

    let mut three = Node::new(dir.path(), 3)?;
    File::create(&three.db)?;
    let began = Instant::now();
    start(&mut three)?;
    three.wait_for(" merged, ")?;
    let joined = since(began);
    three.app()?.wait_for(last)?;
    line(
        "a node with an empty file has them after",
        secs(joined),
        "",
        &format!("{:.0} rows/s", last as f64 / joined),
    );
    line("its peak RSS", three.peak()?, "64 MB", "");
    three.end()?;

    let mut four = Node::new(dir.path(), 4)?;
    let (stalls, seconds) = writing(&mut four, -1_000_000_000, |node| {
        std::thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        start(node)?;
        node.wait_for(" merged, ")?;
        Ok(since(began))
    })?;
    line(
        "application during a merging restore",
        stalls.shown(),
        "100 ms p99",
        &secs(seconds),
    );
    line("its peak RSS", four.peak()?, "64 MB", "");
    four.end()?;

    two.end()?;
    fs::remove_file(two.db.with_file_name("seq-map.cbor"))?;
    let next = two.app()?.next_id()?;
    let (stalls, seconds) = writing(&mut two, next, |node| {
        let began = Instant::now();
        start(node)?;
        node.wait_for(" merged, ")?;
        Ok(since(began))
    })?;
    line(
        "the same where all rows are there already",
        stalls.shown(),
        "100 ms p99",
        &secs(seconds),
    );
    two.end()?;
    one.end()?;
    server.stop()?;
    Ok(dir.close()?)
}

/// Runs `f` beside a writing application. Returns the application's waits, and the result of `f`.
fn writing(
    node: &mut Node,
    first: i64,
    f: impl FnOnce(&mut Node) -> Result<f64>,
) -> Result<(Stalls, f64)> {
    let writer = Writer::start(&node.db, first);
    let done = f(node);
    let stalls = writer.stop()?;
    Ok((stalls, done?))
}

fn since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}

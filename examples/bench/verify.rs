//! `verify` over a large table on three nodes, while an application writes: how long it takes, how
//! long the application waits, and what the daemons need. Prints a table of its own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;

use crate::Result;
use crate::app::App;
use crate::cluster::{binary, directory, start_server};
use crate::node::Node;
use crate::stall::{Stalls, Writer};

/// Rows in a transaction while the database is made.
const BATCH: i64 = 10_000;

/// How long an application is watched that nobody disturbs.
const CALM: Duration = Duration::from_secs(5);

/// Rows of the application that writes meanwhile have lower ids than these.
const BELOW: i64 = -1_000_000_000;

const SETTINGS: &str = "status_interval = 1000\n";

pub fn measure(rows: u64) -> Result<()> {
    let dir = directory()?;
    fs::create_dir(dir.path().join("store"))?;
    let more = format!(
        "[snapshot]\nstore = \"file\"\n[snapshot.file]\npath = \"{}\"\n",
        dir.path().join("store").display()
    );
    let (server, address) = start_server(dir.path())?;
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let mut node = Node::new(dir.path(), id)?;
        if id == 1 {
            make(&node.db, rows as i64)?;
        }
        node.start_with(&address, SETTINGS, &more)?;
        let text = if id == 1 {
            " made, because "
        } else {
            " begins with snapshot"
        };
        node.wait_for(text)?;
        nodes.push(node);
    }
    println!("| {rows} rows on three nodes | result | application, p99 / longest stall | goal |");
    println!("|---|---|---|---|");
    let line = |what: &str, result: &str, stalls: &Stalls, goal: &str| {
        println!("| {what} | {result} | {} | {goal} |", stalls.shown());
    };
    until_comparable(&nodes[0].db)?;
    let (calm, _) = beside(&nodes[1].db, BELOW, || {
        std::thread::sleep(CALM);
        Ok(String::new())
    })?;
    line("idle daemons", "", &calm, "");
    let (stalls, result) = beside(&nodes[1].db, 2 * BELOW, || verify(&nodes[0].db, true))?;
    line("all rows are the same", &result, &stalls, "100 ms p99");
    spoil(&nodes[2].db, rows as i64 / 2)?;
    let (stalls, result) = beside(&nodes[1].db, 3 * BELOW, || verify(&nodes[0].db, false))?;
    line("one byte is different", &result, &stalls, "100 ms p99");
    for (i, node) in nodes.iter_mut().enumerate() {
        println!("| peak RSS of node {} | {} | | |", i + 1, node.peak()?);
        node.end()?;
    }
    server.stop()?;
    Ok(dir.close()?)
}

fn make(db: &Path, rows: i64) -> Result<()> {
    let mut app = App::open(db)?;
    let mut first = 1;
    while first <= rows {
        let count = BATCH.min(rows - first + 1);
        app.insert(first, count)?;
        first += count;
    }
    Ok(())
}

/// Changes a row without anybody's triggers.
fn spoil(db: &Path, id: i64) -> Result<()> {
    let app = App::open(db)?;
    let triggers = DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER;
    app.conn.set_db_config(triggers, false)?;
    let sql = "UPDATE items SET data = '!' || substr(data, 2) WHERE id = ?1";
    app.conn.execute(sql, [id])?;
    Ok(())
}

/// What an application waits while something else goes on, and what came of that.
fn beside(db: &Path, first: i64, f: impl FnOnce() -> Result<String>) -> Result<(Stalls, String)> {
    let writer = Writer::start(db, first);
    let done = f();
    let stalls = writer.stop()?;
    Ok((stalls, done?))
}

/// A command of the daemon, as JSON.
fn ask(db: &Path, words: &[&str]) -> Result<serde_json::Value> {
    let mut command = Command::new(binary("harmonylite")?);
    command.args(words).args(["-json", "-config"]);
    let output = command.arg(db.with_file_name("config.toml")).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).map_err(|e| format!("{words:?}: {e}: {text}").into())
}

/// Waits until the node knows the two others, and all have walked through their tables.
fn until_comparable(db: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        let report = ask(db, &["verify"])?;
        let nodes = report["nodes"].as_array().map_or(0, Vec::len);
        if nodes == 3 && report["fine"] == true {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(900) {
            return Err(format!("the nodes are not comparable: {report}").into());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Runs `harmonylite verify`, and returns how long it took.
fn verify(db: &Path, is_same: bool) -> Result<String> {
    let began = Instant::now();
    let report = ask(db, &["verify"])?;
    let seconds = began.elapsed().as_secs_f64();
    let found = report["different_rows"].as_array().map_or(0, Vec::len);
    let is_right = found == usize::from(!is_same) && report["fine"] == is_same;
    match is_right {
        true => Ok(format!("{seconds:.1} s, {} rows compared", report["rows"])),
        false => Err(format!("verify found {found} rows: {report}").into()),
    }
}

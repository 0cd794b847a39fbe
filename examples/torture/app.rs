//! The application: it writes to its node's database as fast as the options say, and keeps a
//! record.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use crate::random::Random;
use crate::schema::{CREATE, Place, Stamp};
use crate::{Result, displaced};

pub struct Options {
    pub db: PathBuf,
    pub record: PathBuf,
    pub writer: u64,
    pub seed: u64,
    /// Most milliseconds between two transactions; 0: full speed.
    pub pause: u64,
    /// `PRAGMA synchronous`.
    pub sync: String,
    /// Whether it goes on after an error, because its disk is in trouble.
    pub endures: bool,
}

/// README recommends this: HarmonyLite must never keep a lock that long.
pub const BUSY_TIMEOUT: Duration = Duration::from_millis(5000);

/// Starts the application: creates its tables, in WAL mode.
pub fn prepare(db: &Path) -> Result<()> {
    let conn = Connection::open(db)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    conn.execute_batch(CREATE)?;
    Ok(())
}

/// Runs until it is killed or meets an error, such as SQLITE_BUSY, which must not happen.
pub fn run(options: &Options) -> Result<()> {
    let mut random = Random::new(options.seed, options.writer);
    // The number grows over all restarts.
    let mut seq = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64;
    let mut record = File::options()
        .create(true)
        .append(true)
        .open(&options.record)?;
    loop {
        match write_until_trouble(options, &mut random, &mut seq, &mut record) {
            Ok(never) => match never {},
            Err(e) if options.endures => eprintln!("application {}: {e}", options.writer),
            Err(e) => return Err(e),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

enum Never {}

fn write_until_trouble(
    options: &Options,
    random: &mut Random,
    seq: &mut u64,
    record: &mut File,
) -> Result<Never> {
    let conn = Connection::open(&options.db)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.pragma_update(None, "synchronous", &options.sync)?;
    loop {
        conn.execute_batch("BEGIN IMMEDIATE")?;
        let mut block = String::from("\n");
        let operations = match random.below(20) {
            0 => 1 + random.below(300),
            n => 1 + n,
        };
        for _ in 0..operations {
            *seq += 1;
            let stamp = (options.writer, *seq);
            if let Err(e) = operate(&conn, stamp, random, &mut block) {
                record.write_all(b"\nR\n")?;
                return Err(e);
            }
        }
        block.push_str("E\n");
        record.write_all(block.as_bytes())?;
        // An error here leaves open whether the transaction is committed, and so does the record.
        conn.execute_batch("COMMIT")?;
        record.write_all(b"C\n")?;
        if options.pause > 0 {
            std::thread::sleep(Duration::from_millis(random.below(options.pause + 1)));
        }
    }
}

fn operate(conn: &Connection, stamp: Stamp, random: &mut Random, block: &mut String) -> Result<()> {
    let place = Place::draw(random);
    let old = place.look(conn)?;
    if random.chance(20) {
        return match place.delete(conn)? {
            true => note_gone(conn, block, place.table, &place.key(), stamp, old),
            false => Ok(()),
        };
    }
    for (key, old) in place.put(conn, stamp, random)? {
        note_gone(conn, block, place.table, &key, stamp, old)?;
    }
    note(block, 'P', place.table, &place.key(), stamp, old);
    Ok(())
}

/// Notes the rows that only this row kept out of the table: they go with it.
fn note_gone(
    conn: &Connection,
    block: &mut String,
    table: &str,
    key: &str,
    stamp: Stamp,
    old: Stamp,
) -> Result<()> {
    note(block, 'D', table, key, stamp, old);
    if table == displaced::TABLE {
        for hidden in displaced::hidden_by(conn, key)? {
            note(block, 'M', table, &hidden, stamp, (0, 0));
        }
    }
    Ok(())
}

fn note(block: &mut String, what: char, table: &str, key: &str, stamp: Stamp, old: Stamp) {
    let line = format!("{what} {table} {key} {} {} {}\n", stamp.1, old.0, old.1);
    block.push_str(&line);
}

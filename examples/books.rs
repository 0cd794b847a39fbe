//! The application of `examples/run-cluster.sh`: a table of books, and nothing of HarmonyLite.
//!
//! ```text
//! books create FILE
//! books add FILE TITLE AUTHOR YEAR
//! books wait ROWS FILE...    until all files hold the same so many rows; shows them
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, params};

/// How long `wait` waits: a cluster of servers needs a few seconds to find itself.
const PATIENCE: Duration = Duration::from_secs(60);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["create", file] => create(file),
        ["add", file, title, author, year] => add(file, title, author, year),
        ["wait", rows, ref files @ ..] => wait(rows, files),
        _ => {
            Err("usage: books create FILE | add FILE TITLE AUTHOR YEAR | wait ROWS FILE...".into())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("books: {e}");
            ExitCode::FAILURE
        }
    }
}

fn open(file: &str, flags: OpenFlags) -> Result<Connection> {
    let books = Connection::open_with_flags(file, flags)?;
    books.busy_timeout(Duration::from_secs(5))?;
    Ok(books)
}

fn create(file: &str) -> Result<()> {
    let books = open(file, OpenFlags::default())?;
    books.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE Books (id INTEGER PRIMARY KEY, title TEXT NOT NULL, author TEXT NOT NULL,
                             publication_year INTEGER)",
    )?;
    Ok(())
}

fn add(file: &str, title: &str, author: &str, year: &str) -> Result<()> {
    let books = open(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let year: i64 = year.parse()?;
    books.execute(
        "INSERT INTO Books (title, author, publication_year) VALUES (?1, ?2, ?3)",
        params![title, author, year],
    )?;
    Ok(())
}

fn rows(file: &str) -> Result<Vec<String>> {
    let books = open(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut list =
        books.prepare("SELECT id, title, author, publication_year FROM Books ORDER BY id")?;
    let row = |r: &rusqlite::Row<'_>| {
        let (id, year): (i64, i64) = (r.get(0)?, r.get(3)?);
        let (title, author): (String, String) = (r.get(1)?, r.get(2)?);
        Ok(format!("{id:>3}  {title:<28}{author:<20}{year}"))
    };
    Ok(list.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
}

fn wait(count: &str, files: &[&str]) -> Result<()> {
    let count: usize = count.parse()?;
    let began = Instant::now();
    loop {
        let found = files
            .iter()
            .map(|file| rows(file))
            .collect::<Result<Vec<_>>>()?;
        let first = found.first().ok_or("no file given")?;
        if first.len() == count && found.iter().all(|rows| rows == first) {
            first.iter().for_each(|row| println!("      {row}"));
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            let counts: Vec<_> = found.iter().map(Vec::len).collect();
            return Err(format!("not the same after {PATIENCE:?}, rows: {counts:?}").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

//! The tables of the application under test, and the text form of their keys.

use rusqlite::{Connection, Row};

use crate::random::Random;

/// A value: its writer, and that writer's strictly growing number. (0, 0) means none.
pub type Stamp = (u64, u64);

pub const TABLES: [&str; 4] = ["kv", "named", "pair", "uniq"];

/// Few keys, so that nodes collide all the time.
const KEYS: u64 = 400;
const HOT: u64 = 12;
/// Number of UNIQUE values that rows take from each other. Most rows have a value of their own: if
/// all rows were evicted all the time, a lost row would look like an evicted one.
const SHARED_VALUES: u64 = 12;

pub const CREATE: &str = "
CREATE TABLE IF NOT EXISTS kv(k INTEGER PRIMARY KEY, writer INTEGER, seq INTEGER, pad TEXT);
CREATE TABLE IF NOT EXISTS named(k TEXT PRIMARY KEY, writer INTEGER, seq INTEGER, pad TEXT)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pair(a INTEGER, b TEXT, writer INTEGER, seq INTEGER, pad TEXT,
    PRIMARY KEY(a, b));
CREATE TABLE IF NOT EXISTS uniq(k INTEGER PRIMARY KEY, u TEXT UNIQUE,
    writer INTEGER, seq INTEGER, pad TEXT);
";

/// Reads all rows of a table: key as text, writer, seq, pad.
pub fn select_all(table: &str) -> String {
    match table {
        "pair" => "SELECT a || '/' || b, writer, seq, pad FROM pair ORDER BY a, b".into(),
        table => format!("SELECT CAST(k AS TEXT), writer, seq, pad FROM {table} ORDER BY k"),
    }
}

/// The padding that belongs to a stamp. It shows a row that mixes two writes.
pub fn pad(stamp: Stamp) -> String {
    format!("{}-{:x}", "x".repeat((stamp.1 % 61) as usize), stamp.1)
}

/// A row to write to.
pub struct Place {
    pub table: &'static str,
    number: u64,
}

impl Place {
    pub fn draw(random: &mut Random) -> Place {
        let table = TABLES[random.below(4) as usize];
        let keys = if random.chance(50) { HOT } else { KEYS };
        Place {
            table,
            number: random.below(keys),
        }
    }

    /// The key in the form of [`select_all`].
    pub fn key(&self) -> String {
        match self.table {
            "named" => format!("n{}", self.number),
            "pair" => format!("{}/b{}", self.number % 7, self.number / 7),
            _ => self.number.to_string(),
        }
    }

    fn condition(&self) -> String {
        match self.table {
            "named" => format!("k = 'n{}'", self.number),
            "pair" => format!("a = {} AND b = 'b{}'", self.number % 7, self.number / 7),
            _ => format!("k = {}", self.number),
        }
    }

    /// The stamp that the row has now.
    pub fn look(&self, conn: &Connection) -> rusqlite::Result<Stamp> {
        let text = format!(
            "SELECT writer, seq FROM {} WHERE {}",
            self.table,
            self.condition()
        );
        let found = conn
            .prepare_cached(&text)?
            .query_row([], |r| Ok((r.get(0)?, r.get(1)?)));
        match found {
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok((0, 0)),
            other => other,
        }
    }

    /// Writes the row, in one of several ways. Returns the keys of the rows that it evicted.
    pub fn put(
        &self,
        conn: &Connection,
        stamp: Stamp,
        random: &mut Random,
    ) -> rusqlite::Result<Vec<(String, Stamp)>> {
        let n = self.number;
        let (writer, seq, pad) = (stamp.0, stamp.1, pad(stamp));
        let exists = self.look(conn)? != (0, 0);
        if exists && random.chance(30) {
            let text = format!(
                "UPDATE {} SET writer = ?1, seq = ?2, pad = ?3 WHERE {}",
                self.table,
                self.condition()
            );
            conn.prepare_cached(&text)?.execute((writer, seq, pad))?;
            return Ok(Vec::new());
        }
        let mut evicted = Vec::new();
        let (columns, key) = match self.table {
            "named" => ("k", format!("'n{n}'")),
            "pair" => ("a, b", format!("{}, 'b{}'", n % 7, n / 7)),
            "uniq" => {
                let u = match random.chance(25) {
                    true => format!("u{}", random.below(SHARED_VALUES)),
                    false => format!("own{n}"),
                };
                let victim = |r: &Row<'_>| Ok((r.get(0)?, (r.get(1)?, r.get(2)?)));
                evicted = conn
                    .prepare_cached(
                        "SELECT CAST(k AS TEXT), writer, seq FROM uniq WHERE u = ?1 AND k <> ?2",
                    )?
                    .query_map((&u, n), victim)?
                    .collect::<rusqlite::Result<_>>()?;
                ("k, u", format!("{n}, '{u}'"))
            }
            _ => ("k", n.to_string()),
        };
        let replace = self.table == "uniq" || random.chance(40);
        let (or, conflict) = if replace {
            (" OR REPLACE", String::new())
        } else {
            let key = if columns == "a, b" { "a, b" } else { "k" };
            let set = "writer = excluded.writer, seq = excluded.seq, pad = excluded.pad";
            ("", format!(" ON CONFLICT({key}) DO UPDATE SET {set}"))
        };
        let text = format!(
            "INSERT{or} INTO {}({columns}, writer, seq, pad) VALUES ({key}, ?1, ?2, ?3){conflict}",
            self.table
        );
        conn.prepare_cached(&text)?.execute((writer, seq, pad))?;
        Ok(evicted)
    }

    /// True if there was something to delete.
    pub fn delete(&self, conn: &Connection) -> rusqlite::Result<bool> {
        let text = format!("DELETE FROM {} WHERE {}", self.table, self.condition());
        Ok(conn.prepare_cached(&text)?.execute([])? > 0)
    }
}

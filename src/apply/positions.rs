//! How far each stream has been read.
//!
//! Stored in the transaction of the rows it covers. Frames of our own change no row, so they move
//! the position in memory only, until the next write or a pause: reading them again is harmless.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use crate::database::{Database, Result};

/// A place in a stream, and what tells that the stream is still the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Sequence of the last message read; 0 before the first.
    pub seq: u64,
    /// Its message id.
    pub id: String,
    /// When the stream was created, as the broker writes it.
    pub created: String,
    /// First sequence that was missed because the broker no longer had it; none if none was.
    pub gap: Option<u64>,
}

/// Positions of all streams.
#[derive(Debug, Default)]
pub struct Positions {
    known: HashMap<String, Position>,
    unsaved: Vec<String>,
}

impl Positions {
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<Self> {
        let mut statement =
            conn.prepare("SELECT stream, seq, id, created, gap FROM __harmonylite___seq_map")?;
        let read = |r: &rusqlite::Row<'_>| {
            let gap = r.get::<_, Option<i64>>(4)?.map(|g| g as u64);
            let seq = r.get::<_, i64>(1)? as u64;
            Ok((
                r.get(0)?,
                Position {
                    seq,
                    id: r.get(2)?,
                    created: r.get(3)?,
                    gap,
                },
            ))
        };
        let known = statement
            .query_map([], read)?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Positions {
            known,
            unsaved: Vec::new(),
        })
    }
}

impl Database {
    pub fn position(&self, stream: &str) -> Position {
        self.positions
            .known
            .get(stream)
            .cloned()
            .unwrap_or_default()
    }

    /// Stream name -> last sequence read, for the mirror file.
    pub fn sequences(&self) -> Vec<(String, u64)> {
        let mut all: Vec<_> = self
            .positions
            .known
            .iter()
            .map(|(s, p)| (s.clone(), p.seq))
            .collect();
        all.sort();
        all
    }

    /// Moves a position; stored at the next write.
    pub fn move_position(&mut self, stream: &str, position: Position) {
        if self.positions.known.get(stream) != Some(&position) {
            self.positions.known.insert(stream.to_owned(), position);
            self.positions.unsaved.push(stream.to_owned());
        }
    }

    pub fn has_unsaved_positions(&self) -> bool {
        !self.positions.unsaved.is_empty()
    }

    /// Stores what moved since the last write. Inside a transaction; undoing that loads the
    /// positions as they were before.
    pub(crate) fn store_positions(&mut self) -> Result<()> {
        let mut put = self.conn.prepare_cached(
            "REPLACE INTO __harmonylite___seq_map(stream, seq, id, created, gap)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for stream in std::mem::take(&mut self.positions.unsaved) {
            let p = &self.positions.known[&stream];
            let gap = p.gap.map(|g| g as i64);
            put.execute(params![stream, p.seq as i64, p.id, p.created, gap])?;
        }
        Ok(())
    }
}

//! Rows too large for one message: their parts wait in the database until all are there.

use rusqlite::params;

use crate::capture::Frames;
use crate::database::{Database, Result};
use crate::model::frame::{Frame, MAX_ROW_BYTES, Part, unpack};

/// A part whose others never came is dropped after this long: whoever sent it sends all of it again
/// until the last is acknowledged.
const KEEP_MS: i64 = 30 * 24 * 3600 * 1000;

impl Database {
    /// Stores a part; with the last one, applies the whole.
    pub(super) fn take_part(
        &mut self,
        stream: &str,
        seq: u64,
        part: &Part<'_>,
        frames: &mut Frames,
    ) -> Result<usize> {
        if u64::from(part.count) * part.bytes.len() as u64 > 2 * MAX_ROW_BYTES as u64 {
            self.quarantine(
                stream,
                seq,
                "part of a row larger than is read here",
                part.bytes,
            )?;
            return Ok(0);
        }
        let now_ms = self.clock.now_ms();
        self.conn
            .prepare_cached("DELETE FROM __harmonylite___parts WHERE at_ms < ?1")?
            .execute([now_ms - KEEP_MS])?;
        self.conn
            .prepare_cached(
                "REPLACE INTO __harmonylite___parts(id, part, count, at_ms, bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![part.id, part.index, part.count, now_ms, part.bytes])?;
        let here: u32 = self
            .conn
            .prepare_cached(
                "SELECT count(*) FROM __harmonylite___parts WHERE id = ?1 AND count = ?2",
            )?
            .query_row(params![part.id, part.count], |r| r.get(0))?;
        if here < part.count {
            return Ok(0);
        }
        let whole = self.join_parts(part)?;
        self.conn
            .prepare_cached("DELETE FROM __harmonylite___parts WHERE id = ?1")?
            .execute([part.id])?;
        let unpacked = unpack(&whole, MAX_ROW_BYTES);
        match unpacked
            .as_deref()
            .map_err(ToString::to_string)
            .and_then(|raw| Frame::decode(raw).map_err(|e| e.to_string()))
        {
            Ok(Frame::Rows { nodes, tables }) => self.apply_rows(&nodes, &tables, frames),
            Ok(Frame::Part(_)) => self.refuse(stream, seq, "parts of a part", &whole),
            Err(reason) => self.refuse(stream, seq, &reason, &whole),
        }
    }

    fn refuse(&mut self, stream: &str, seq: u64, reason: &str, data: &[u8]) -> Result<usize> {
        self.quarantine(stream, seq, reason, data)?;
        Ok(0)
    }

    fn join_parts(&self, part: &Part<'_>) -> Result<Vec<u8>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT bytes FROM __harmonylite___parts WHERE id = ?1 AND count = ?2 ORDER BY part",
        )?;
        let mut rows = statement.query(params![part.id, part.count])?;
        let mut whole = Vec::new();
        while let Some(row) = rows.next()? {
            whole.extend_from_slice(row.get_ref(0)?.as_blob().unwrap_or_default());
        }
        Ok(whole)
    }
}

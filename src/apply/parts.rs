//! Frames too large for one message: their parts wait in the database until all are there.

use rusqlite::{OptionalExtension, params};

use crate::capture::Frames;
use crate::database::{Database, Result};
use crate::model::frame::{Frame, FrameError, FramePart, Parts};

/// Age at which the parts of an incomplete frame are removed: when another part arrives that the
/// broker stored so much later. Their sender has sent the whole frame again, as other parts. The
/// broker's time counts, because between two parts the clock here may be set, or this node may be
/// away for months.
const KEEP_MS: i64 = 30 * 24 * 3600 * 1000;

/// Bound of the parts of one frame: the largest row comes to that with messages of 4 KiB.
const MAX_PARTS: u32 = 1 << 16;

/// Bytes that a part takes on disk besides its content.
const PART_ON_DISK: u64 = 64;

impl Database {
    /// Stores a part; with the last one, applies the whole frame. Returns how many rows changed.
    pub(super) fn take_part(
        &mut self,
        stream: &str,
        (seq, time_ms): (u64, i64),
        part: &FramePart<'_>,
        frames: &mut Frames,
    ) -> Result<usize> {
        let expected = u64::from(part.count) * part.bytes.len() as u64;
        if part.count > MAX_PARTS || expected > 2 * self.limits.frame_bytes as u64 {
            self.quarantine(
                stream,
                seq,
                "part of a row that is larger than this node reads",
                part.bytes,
            )?;
            return Ok(0);
        }
        let old = "DELETE FROM __harmonylite___parts WHERE at_ms < ?1 AND id <> ?2";
        let old = self
            .conn
            .prepare_cached(old)?
            .execute(params![time_ms - KEEP_MS, part.id])?;
        if old > 0 {
            self.parts_bytes = None;
        }
        self.conn
            .prepare_cached(
                "REPLACE INTO __harmonylite___parts(id, part, count, at_ms, bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                part.id, part.index, part.count, time_ms, part.bytes
            ])?;
        self.make_room_for_parts(stream, seq, part)?;
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
        let decoded = whole
            .as_deref()
            .map_err(ToString::to_string)
            .and_then(|raw| Frame::decode(raw).map_err(|e| e.to_string()));
        let changed = match decoded {
            Ok(rows @ Frame::Rows { .. }) => {
                if let Frame::Rows { faults, .. } = &rows {
                    self.note_ahead(faults.newest, time_ms);
                }
                self.apply_frame(stream, seq, &rows, frames)?
            }
            Ok(Frame::Part(_)) => self.refuse(stream, seq, "parts of a part", part.bytes)?,
            Err(reason) => self.refuse(stream, seq, &reason, part.bytes)?,
        };
        if !self.steps.is_cut() {
            self.conn
                .prepare_cached("DELETE FROM __harmonylite___parts WHERE id = ?1")?
                .execute([part.id])?;
            self.parts_bytes = None;
        }
        Ok(changed)
    }

    /// Removes the oldest incomplete frames if all parts together take too much: their sender went
    /// away for good, or means ill.
    fn make_room_for_parts(&mut self, stream: &str, seq: u64, part: &FramePart<'_>) -> Result<()> {
        let added = part.bytes.len() as u64 + PART_ON_DISK;
        let known = self.parts_bytes.map(|bytes| bytes + added);
        let mut bytes = known.map_or_else(|| self.stored_parts_bytes(), Ok)?;
        while bytes > self.limits.parts_bytes {
            let oldest: Option<Vec<u8>> = self
                .conn
                .prepare_cached(
                    "SELECT id FROM __harmonylite___parts WHERE id <> ?1
                     GROUP BY id ORDER BY min(at_ms) LIMIT 1",
                )?
                .query_row([part.id], |r| r.get(0))
                .optional()?;
            let Some(oldest) = oldest else { break };
            self.conn
                .prepare_cached("DELETE FROM __harmonylite___parts WHERE id = ?1")?
                .execute([&oldest])?;
            self.quarantine(
                stream,
                seq,
                "parts of a row whose other parts did not come",
                &oldest,
            )?;
            bytes = self.stored_parts_bytes()?;
        }
        self.parts_bytes = Some(bytes);
        Ok(())
    }

    fn stored_parts_bytes(&self) -> Result<u64> {
        let text = "SELECT coalesce(sum(length(bytes) + ?1), 0) FROM __harmonylite___parts";
        let mut statement = self.conn.prepare_cached(text)?;
        Ok(statement.query_row([PART_ON_DISK], |r| r.get(0))?)
    }

    fn refuse(&mut self, stream: &str, seq: u64, reason: &str, data: &[u8]) -> Result<usize> {
        self.quarantine(stream, seq, reason, data)?;
        Ok(0)
    }

    /// Puts the parts together and unpacks them, one after the other.
    fn join_parts(&self, part: &FramePart<'_>) -> Result<std::result::Result<Vec<u8>, FrameError>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT bytes FROM __harmonylite___parts WHERE id = ?1 AND count = ?2 ORDER BY part",
        )?;
        let mut rows = statement.query(params![part.id, part.count])?;
        let mut whole: Option<Parts> = None;
        while let Some(row) = rows.next()? {
            let bytes = row.get_ref(0)?.as_blob().unwrap_or_default();
            let added = match whole.take() {
                Some(parts) => Ok(parts),
                None => Parts::new(bytes, self.limits.frame_bytes),
            }
            .and_then(|mut parts| parts.add(bytes).map(|()| parts));
            match added {
                Ok(parts) => whole = Some(parts),
                Err(e) => return Ok(Err(e)),
            }
        }
        Ok(whole.map_or(Ok(Vec::new()), Parts::finish))
    }
}

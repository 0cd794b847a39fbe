//! Keeps messages that cannot be read, for a person to look at; no code reads them again. It keeps
//! as many as a small machine can store, and beyond that removes and counts the oldest.

use rusqlite::params;

use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::{Database, Result};
use crate::model::text::shortened;

impl Database {
    /// Puts a message that cannot be read into the quarantine.
    pub(super) fn quarantine(
        &mut self,
        stream: &str,
        seq: u64,
        reason: &str,
        data: &[u8],
    ) -> Result<()> {
        let reason = shortened(reason, 500);
        let now = self.clock.uptime();
        match self.quarantine_alarm.rings(now) {
            Some(0) => log::error!("message {seq} of {stream} is put in quarantine: {reason}"),
            Some(more) => log::error!(
                "message {seq} of {stream} is put in quarantine, after {more} others: {reason}"
            ),
            None => {}
        }
        self.conn
            .prepare_cached(
                "REPLACE INTO __harmonylite___quarantine(stream, seq, at_ms, reason, data)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                stream,
                seq as i64,
                self.clock.now_ms(),
                reason,
                data
            ])?;
        self.make_room_in_quarantine()
    }

    /// Removes the oldest messages if there are too many, and the bytes of the oldest if these are
    /// too many.
    fn make_room_in_quarantine(&mut self) -> Result<()> {
        let (count, bytes): (u64, u64) = self
            .conn
            .prepare_cached(
                "SELECT count(*), total(length(data)) + 0 FROM __harmonylite___quarantine",
            )?
            .query_row([], |r| Ok((r.get(0)?, r.get::<_, f64>(1)? as u64)))?;
        let (most, most_bytes) = (self.limits.quarantined, self.limits.quarantined_bytes);
        if count <= most && bytes <= most_bytes {
            return Ok(());
        }
        let too_many = count.saturating_sub(most);
        let mut oldest = self.conn.prepare_cached(
            "SELECT stream, seq, coalesce(length(data), 0) FROM __harmonylite___quarantine
             ORDER BY at_ms, seq, stream",
        )?;
        let all: Vec<(String, i64, u64)> = oldest
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut left = bytes;
        for (i, (stream, seq, length)) in all.iter().enumerate() {
            let goes = (i as u64) < too_many;
            if !goes && left <= most_bytes {
                break;
            }
            left -= length;
            let text = match goes {
                true => "DELETE FROM __harmonylite___quarantine WHERE stream = ?1 AND seq = ?2",
                false => {
                    "UPDATE __harmonylite___quarantine SET data = NULL
                     WHERE stream = ?1 AND seq = ?2"
                }
            };
            self.conn
                .prepare_cached(text)?
                .execute(params![stream, seq])?;
        }
        let dropped = get_meta::<u64>(&self.conn, Meta::QuarantineDropped)?.unwrap_or_default();
        Ok(set_meta(
            &self.conn,
            Meta::QuarantineDropped,
            dropped + too_many,
        )?)
    }

    /// Number of messages that could not be read, including those that were removed.
    pub fn quarantined(&self) -> Result<u64> {
        let kept: u64 = self
            .conn
            .prepare_cached("SELECT count(*) FROM __harmonylite___quarantine")?
            .query_row([], |r| r.get(0))?;
        Ok(kept + get_meta::<u64>(&self.conn, Meta::QuarantineDropped)?.unwrap_or_default())
    }
}

//! Takes over what a snapshot has besides rows: the rows that its maker held, parts of large rows,
//! and the marks of rows that its maker had not sent.

use rusqlite::params;

use super::{Merge, MergeProgress, STEP};
use crate::apply::{Incoming, Place, shape_of_table};
use crate::capture::Frames;
use crate::database::rows::KEY_BYTES;
use crate::database::{Database, DatabaseError, Result};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};
use crate::snapshot::source::key_values;

impl Merge {
    pub(super) fn hold_some(
        &self,
        db: &mut Database,
        after: Option<Place>,
        frames: &mut Frames,
    ) -> Result<MergeProgress> {
        let places = self.source.held_places(after.as_ref())?;
        for at in &places {
            let own = at.in_lower_case();
            match self.source.held(at, db.limits.row_bytes) {
                Ok(incoming) if db.wants_held(&own, &incoming)? => {
                    db.take_held(&own, incoming, frames)?;
                }
                Ok(_) => {}
                Err(e @ DatabaseError::RowTooLarge(..)) => {
                    db.reject_rows(&at.table, 1, &e.to_string());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(match places.into_iter().next_back() {
            Some(last) => MergeProgress::Held(Some(last)),
            None => MergeProgress::Parts(None),
        })
    }

    /// Takes over parts of rows whose other parts are still to come.
    pub(super) fn take_parts(
        &self,
        db: &mut Database,
        after: Option<(Vec<u8>, i64)>,
        is_over: &dyn Fn(&Database) -> bool,
    ) -> Result<MergeProgress> {
        let mut list = self.source.conn.prepare_cached(
            "SELECT id, part, count, at_ms, bytes FROM __harmonylite___parts
             WHERE (id, part) > (?1, ?2) ORDER BY id, part",
        )?;
        let (id, part) = after.unwrap_or((Vec::new(), i64::MIN));
        let mut parts = list.query(params![id, part])?;
        let mut put = db.conn.prepare_cached(
            "INSERT OR IGNORE INTO __harmonylite___parts(id, part, count, at_ms, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        while let Some(row) = parts.next()? {
            let (id, part): (Vec<u8>, i64) = (row.get(0)?, row.get(1)?);
            let (count, at_ms): (i64, i64) = (row.get(2)?, row.get(3)?);
            let bytes = row.get_ref(4)?.as_blob().unwrap_or_default();
            put.execute(params![id, part, count, at_ms, bytes])?;
            if is_over(db) {
                return Ok(MergeProgress::Parts(Some((id, part))));
            }
        }
        Ok(MergeProgress::Marks(None))
    }

    /// Takes over marks on tables or columns that are unknown here: the snapshot's maker had not
    /// sent those rows, and this node sends them once it knows the table or column.
    pub(super) fn mark_some(
        &self,
        db: &mut Database,
        after: Option<(i64, i64, Vec<u8>)>,
    ) -> Result<MergeProgress> {
        let mut list = self.source.conn.prepare_cached(
            "SELECT at, table_id, key FROM __harmonylite___unsent
             WHERE (at, table_id, key) > (?1, ?2, ?3) ORDER BY at, table_id, key LIMIT ?4",
        )?;
        let (at, id, key) = after.unwrap_or((i64::MIN, 0, Vec::new()));
        let mut list = list.query(params![at, id, key, STEP])?;
        let (mut marks, mut bytes): (Vec<(i64, i64, Vec<u8>)>, _) = (Vec::new(), 0);
        while bytes < KEY_BYTES
            && let Some(mark) = list.next()?
        {
            let key: Vec<u8> = mark.get(2)?;
            bytes += key.len();
            marks.push((mark.get(0)?, mark.get(1)?, key));
        }
        let publishes = db.settings.publish && !mutation::is(Mutation::MarksNotCarried);
        for (local_tx, id, key_bytes) in marks.iter().filter(|_| publishes) {
            let Some(table) = self.source.tables.iter().find(|t| t.id == *id) else {
                continue;
            };
            let key = key_values(key_bytes)?;
            let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
            let aside = self.source.lives(table, key_bytes, *local_tx)?;
            for theirs in self.source.version(table, &key)?.into_iter().chain(aside) {
                let at = Place::of_life(table, key_bytes, theirs.birth);
                db.hold_mark(&at, theirs.state.version)?;
            }
        }
        Ok(match marks.into_iter().next_back() {
            Some(last) => MergeProgress::Marks(Some(last)),
            None if self.is_first == Some(true) && self.entry.dropped() == Version::NEVER => {
                MergeProgress::Done
            }
            None => MergeProgress::Lacking(0, None),
        })
    }
}

impl Database {
    /// Whether rows that another node holds belong to a table that takes part here, now or one day.
    fn wants_held(&mut self, at: &Place, incoming: &Incoming) -> Result<bool> {
        let columns: Vec<&str> = incoming.columns.keys().map(String::as_str).collect();
        Ok(!self.lets_go(&at.table, &columns)?)
    }

    fn take_held(&mut self, at: &Place, mut incoming: Incoming, frames: &mut Frames) -> Result<()> {
        let local = self.writable(&at.table).cloned();
        if let Some(table) = local.as_ref().filter(|_| at.is_of_go()) {
            incoming.unsent = incoming.unsent.max(self.republished(&incoming));
            return self.join_of_go(table, at, incoming, frames).map(drop);
        }
        match local.filter(|t| shape_of_table(t) == at.shape) {
            Some(table) => {
                let (key, key_bytes, birth) = at.life()?;
                let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
                incoming.birth = birth;
                incoming.unsent = incoming.unsent.max(self.republished(&incoming));
                self.join_with_held(&table, &key, &key_bytes, incoming, frames)?;
                Ok(())
            }
            None => match self.of_former(&at.table, &at.shape) {
                Some(table) => self.take_former(&table, at, incoming, frames).map(drop),
                None => self.hold(at, &incoming, self.why_held(&at.table)),
            },
        }
    }
}

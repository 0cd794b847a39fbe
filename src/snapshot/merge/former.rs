//! Deletes under a key that a table had before. No version that the table has now tells of them, so
//! a node that merges a snapshot for missed messages learns of them only here.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params_from_iter};

use super::{Merge, MergeProgress, STEP};
use crate::apply::{Incoming, OldKey, Place, shape_of_known, shape_of_table};
use crate::capture::Frames;
use crate::database::rows::{KEY_BYTES, Rows};
use crate::database::table::{Table, key_names, parameters};
use crate::database::{Database, Former, Result, former_table, values, was_table};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{Version, stamp};
use crate::snapshot::source::{SnapshotSource, SourceRow, key_values};

/// A former key of a table in a snapshot.
pub(super) struct SourceFormer {
    table: Arc<Table>,
    former: Former,
    /// The query for the former key of a present one, if it has that.
    was: Option<String>,
}

/// A row of the snapshot under its former key, and its tombstone if it was deleted.
struct FormerKey {
    key: Vec<OwnedValue>,
    tombstone: Option<Version>,
    /// The key, as bytes, of the row that it became.
    became: Option<Vec<u8>>,
}

impl SourceFormer {
    /// The former keys of a snapshot's tables.
    pub(super) fn all(source: &SnapshotSource) -> Result<Vec<SourceFormer>> {
        let text = "SELECT table_id, shape FROM __harmonylite___former";
        let Ok(mut list) = source.conn.prepare(text) else {
            return Ok(Vec::new()); // of an earlier release
        };
        let mut rows = list.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let shape: Vec<u8> = row.get(1).unwrap_or_default();
            let Some(table) = source.tables.iter().find(|t| t.id == id) else {
                continue;
            };
            let Ok(former) = ciborium::from_reader::<Former, _>(&shape[..]) else {
                continue;
            };
            let was = format!("SELECT was FROM {} WHERE key = ?1", was_table(id));
            let of = SourceFormer {
                table: table.clone(),
                former,
                was: source.conn.prepare(&was).is_ok().then_some(was),
            };
            // An earlier build remembers less. Former keys that a peer made up are not read.
            if of.former.is_sound() && source.conn.prepare(&of.scan(false)).is_ok() {
                all.push(of);
            }
        }
        Ok(all)
    }

    fn scan(&self, from_start: bool) -> String {
        let n = self.former.shape.key.len();
        let (names, marks) = (key_names(n).join(", "), parameters(1, n));
        let from = match from_start {
            true => String::new(),
            false => format!("WHERE ({names}) > ({marks})"),
        };
        format!(
            "SELECT hlc, site, deleted, written_ms, became, {names} FROM {} {from}
             ORDER BY {names} LIMIT {STEP}",
            former_table(self.table.id)
        )
    }

    /// The next rows after a key. `maker` is the node that made the snapshot.
    fn rows(
        &self,
        source: &SnapshotSource,
        after: Option<&[OwnedValue]>,
        maker: u64,
    ) -> Result<Vec<FormerKey>> {
        let mut next = source.conn.prepare_cached(&self.scan(after.is_none()))?;
        let mut rows = next.query(params_from_iter(after.unwrap_or_default()))?;
        let (mut all, mut bytes) = (Vec::new(), 0);
        while bytes < KEY_BYTES
            && let Some(row) = rows.next()?
        {
            let n = self.former.shape.key.len();
            let (hlc, written_ms): (i64, Option<i64>) = (row.get(0)?, row.get(3)?);
            let became = values::column(row, 4);
            let is_gone = became.is_null();
            let tombstone = match (written_ms, row.get(2)?) {
                (Some(time_ms), _) if is_gone => Some(Version {
                    hlc: stamp(time_ms, hlc),
                    node: maker,
                }),
                (_, true) => Some(Version {
                    hlc,
                    node: source.sites.node(row.get(1)?)?,
                }),
                (_, false) => None,
            };
            let key = (0..n).map(|i| values::column(row, 5 + i));
            bytes += key.clone().map(cbor::value_bytes).sum::<usize>();
            all.push(FormerKey {
                key: key.map(|value| value.to_owned()).collect(),
                tombstone: tombstone.filter(|v| v.is_valid()),
                became: match became {
                    Value::Blob(key) if !key.is_empty() => Some(key.to_vec()),
                    _ => None,
                },
            });
        }
        Ok(all)
    }

    fn place(&self, key: &[OwnedValue]) -> Place {
        Place::under(
            &self.table.name().to_ascii_lowercase(),
            &self.former.shape,
            key,
        )
    }
}

impl Merge {
    /// Applies tombstones of the n-th former key after a row's key.
    pub(super) fn take_former(
        &self,
        db: &mut Database,
        (n, after): (usize, Option<Vec<OwnedValue>>),
        frames: &mut Frames,
        is_over: &dyn Fn(&Database) -> bool,
    ) -> Result<MergeProgress> {
        let Some(of) = self.former.get(n) else {
            return Ok(MergeProgress::Held(None));
        };
        let mut last = None;
        if after.is_none() {
            db.learn_former(of)?;
        }
        if !db.lets_go(&of.table.name().to_ascii_lowercase(), &[])? {
            for row in of.rows(&self.source, after.as_deref(), self.entry.node)? {
                match (row.tombstone, &row.became) {
                    (Some(tombstone), _) => {
                        db.take_former_tombstone(of, &row.key, tombstone, frames)?;
                    }
                    (None, Some(became)) => db.take_old_key(of, &row.key, became, frames)?,
                    (None, None) => {}
                }
                last = Some(row.key);
                if is_over(db) {
                    break;
                }
            }
        }
        Ok(match last {
            Some(key) => MergeProgress::Former(n, Some(key)),
            None => MergeProgress::Former(n + 1, None),
        })
    }
}

impl Merge {
    /// The old key of a row, if its own does not tell that.
    pub(super) fn was(&self, table: &Table, row: &SourceRow) -> Result<Option<OldKey>> {
        let of = self.former.iter().find(|of| of.table.id == table.id);
        let Some((of, text)) = of.and_then(|of| Some((of, of.was.as_ref()?))) else {
            return Ok(None);
        };
        let mut was = self.source.conn.prepare_cached(text)?;
        let key = was.query_row([&row.key_bytes], |r| r.get(0)).optional()?;
        let was = key.map(|key| OldKey {
            shape: shape_of_known(&of.former.shape),
            key,
        });
        Ok(was.filter(OldKey::is_sound))
    }
}

impl Database {
    /// Remembers a former key of a table that was created here with its present one. What is held
    /// under that key is tried again: deletes under it end.
    fn learn_former(&mut self, of: &SourceFormer) -> Result<()> {
        let Some(local) = self.table_like(&of.table) else {
            return Ok(());
        };
        let is_own = shape_of_known(&of.former.shape) == shape_of_table(&local);
        if !is_own && !self.catalog.former.contains_key(&local.id) {
            self.adopt_former(&local, &of.former)?;
            self.catalog.retry_held = Some(None);
        }
        Ok(())
    }

    /// Remembers which former key a row had that is here under its present one.
    fn take_old_key(
        &mut self,
        of: &SourceFormer,
        old: &[OwnedValue],
        key_bytes: &[u8],
        frames: &Frames,
    ) -> Result<()> {
        let local = self.table_like(&of.table);
        let Some(local) = local.filter(|_| of.was.is_some()) else {
            return Ok(());
        };
        let at = of.place(old);
        let was = Some(OldKey {
            shape: at.shape,
            key: at.key,
        });
        let key = key_values(key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        if key.len() != local.key_len() || !was.as_ref().is_some_and(OldKey::is_sound) {
            return Ok(());
        }
        let stored = Rows::new(&self.conn, &local)?.version(&self.sites, &key)?;
        let Some(stored) = stored.filter(|s| !s.state.deleted) else {
            return Ok(());
        };
        if !self.catalog.former.contains_key(&local.id) {
            self.adopt_former(&local, &of.former)?;
        }
        let incoming = Incoming {
            was,
            ..Incoming::default()
        };
        let state = (stored.state.version, false);
        self.learn_was(&local, key_bytes, &incoming, state, frames.local_tx)
    }

    /// Deletes the row that has this key here, or had it before. Holds the tombstone if the table
    /// never had such a key.
    fn take_former_tombstone(
        &mut self,
        of: &SourceFormer,
        key: &[OwnedValue],
        tombstone: Version,
        frames: &mut Frames,
    ) -> Result<()> {
        let at = of.place(key);
        let incoming = Incoming {
            floor: Some(tombstone),
            ..Incoming::default()
        };
        let local = self.writable(&at.table).cloned();
        match local {
            Some(local) if shape_of_table(&local) == at.shape => {
                let key: Vec<_> = key.iter().map(OwnedValue::borrow).collect();
                let is_news = self.join_with_held(&local, &key, &at.key, incoming, frames)?;
                if is_news && self.settings.publish {
                    self.mark_republished(&local, &at.key, frames)?;
                }
            }
            Some(local) if shape_of_table(&local) == shape_of_table(&of.table) => {
                // A table that was created with its present key must remember the former one, too.
                if !self.catalog.former.contains_key(&local.id) {
                    self.adopt_former(&local, &of.former)?;
                }
                match self.of_former(&at.table, &at.shape) {
                    Some(table) => {
                        let mut formers = self.formers(table.id).into_iter();
                        let former = formers.find(|(_, f)| shape_of_known(&f.shape) == at.shape);
                        let known = former.as_ref().map(|(id, _)| self.former_by_key(*id, key));
                        let known = known.transpose()?.flatten().map(|k| k.stored.state.version);
                        self.take_former(&table, &at, incoming, frames)?;
                        // Its maker may not have sent it, and never come back.
                        if let Some((id, former)) = former.filter(|_| known < Some(tombstone)) {
                            self.send_former((id, &former), key, frames)?;
                        }
                    }
                    None => self.hold(&at, &incoming, self.why_held(&at.table))?,
                }
            }
            _ => self.hold(&at, &incoming, self.why_held(&at.table))?,
        }
        Ok(())
    }
}

//! Reads the change log, which only triggers write.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::capture::{Batch, ChangeEvidence, Touched};
use crate::database::table::Table;
use crate::database::{Database, Result, triggers, values};
use crate::mutation::{self, Mutation};

/// End of a batch in the change log: its last id, and the number of its entries.
pub(super) struct LogEnd {
    pub id: i64,
    pub entries: usize,
}

impl Database {
    /// Reads the next entries of the log, merged per key. None if the log is empty.
    pub(super) fn read_log(&mut self) -> Result<Option<(Batch, LogEnd)>> {
        let keys: Vec<String> = (1..=self.catalog.log_keys)
            .map(|i| format!("k{i}"))
            .collect();
        let text = format!(
            "SELECT id, table_id, kind, created_at, {} FROM {} ORDER BY id LIMIT {}",
            keys.join(", "),
            triggers::LOG,
            self.settings.scan_max_changes
        );
        let mut statement = self.conn.prepare_cached(&text)?;
        let mut rows = statement.query([])?;
        let mut places: HashMap<(i64, Vec<u8>), (usize, usize)> = HashMap::new();
        let mut batch: Batch = Vec::new();
        let mut end = LogEnd { id: 0, entries: 0 };
        let mut rejected: HashMap<(String, &str), u64> = HashMap::new();
        while let Some(row) = rows.next()? {
            (end.id, end.entries) = (row.get(0)?, end.entries + 1);
            let id: i64 = row.get(1).unwrap_or(0); // ours are numbers above 0
            let Some(table) = self.catalog.by_id.get(&id) else {
                let key = (0..self.catalog.log_keys).map(|i| values::column(row, 4 + i));
                let time_ms = self.stamp_entry(end.id, row.get(3).unwrap_or(0))?;
                let kind = row.get(2).unwrap_or(triggers::REAL);
                if !self.keep_entry(id, key, kind, time_ms)? {
                    *rejected
                        .entry((format!("number {id}"), "it is gone"))
                        .or_default() += 1;
                }
                continue;
            };
            let key = (0..table.key_len()).map(|i| values::column(row, 4 + i));
            if key.clone().any(|v| v.is_null()) {
                *rejected
                    .entry((table.name().to_owned(), "NULL in the key"))
                    .or_default() += 1;
                if self.catalog.displaced.contains(&id) {
                    self.catalog.resettle.insert(id);
                }
                continue;
            }
            let kind: i64 = row.get(2).unwrap_or(triggers::REAL);
            let maybe = kind == triggers::MAYBE;
            if maybe && mutation::is(Mutation::MaybeIsNothing) {
                continue;
            }
            let why = if maybe && !mutation::is(Mutation::MaybeIsReal) {
                ChangeEvidence::Maybe
            } else {
                ChangeEvidence::Real
            };
            let time_ms = self.stamp_entry(end.id, row.get(3).unwrap_or(0))?;
            let key = table.key_bytes(key);
            match places.entry((id, key)) {
                Entry::Occupied(place) => {
                    let (table, touched) = *place.get();
                    let known = &mut batch[table].1[touched];
                    known.time_ms = known.time_ms.max(time_ms);
                    known.why = known.why.max(why);
                    known.fate.add(kind);
                }
                Entry::Vacant(place) => {
                    let at = batch
                        .iter()
                        .position(|(t, _)| t.id == id)
                        .unwrap_or_else(|| {
                            batch.push((table.clone(), Vec::new()));
                            batch.len() - 1
                        });
                    let key = place.key().1.clone();
                    let mut fate = self.catalog.fates.take(place.key());
                    place.insert((at, batch[at].1.len()));
                    fate.add(kind);
                    batch[at].1.push(Touched {
                        key,
                        why,
                        time_ms,
                        fate,
                    });
                }
            }
        }
        drop(rows);
        drop(statement);
        for (table, touched) in &batch {
            self.carry_fates(table, touched);
        }
        for ((table, reason), count) in rejected {
            self.reject_rows(&table, count, reason);
        }
        if end.entries == 0 {
            self.catalog.fates.clear();
        }
        Ok((end.entries > 0).then_some((batch, end)))
    }

    /// Keeps what the rest of the log must know of these entries.
    pub(super) fn carry_fates(&mut self, table: &Table, touched: &[Touched]) {
        for t in touched.iter().filter(|_| table.has_births) {
            if let Some(fate) = t.fate.carried() {
                self.catalog.fates.carry((table.id, t.key.clone()), fate);
            }
        }
    }

    /// Deletes captured entries up to id `last`. True if the log is empty now.
    pub(super) fn drop_log(&mut self, last: i64, all: bool) -> Result<bool> {
        let delete = format!("DELETE FROM {} WHERE id <= ?1", triggers::LOG);
        self.conn.prepare_cached(&delete)?.execute([last])?;
        if all {
            self.catalog.fates.clear();
        }
        self.reservation.offline_writes.dropped(&self.conn, last)?;
        Ok(all)
    }
}

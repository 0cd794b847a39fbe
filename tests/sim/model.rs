//! The expected result: every write that any node's application made, with the version that it got,
//! and the conclusions from these alone. It shares no code with the merge.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use harmonylite::model::value::OwnedValue;
use harmonylite::model::version::{HLC_BEFORE, Version};

use crate::observe::same;
use crate::plan::{Plan, Table};

/// A value per column of the plan; none where the node has no such column.
pub type Row = Vec<Option<OwnedValue>>;

pub struct Write {
    pub version: Version,
    /// None if the row is deleted.
    pub row: Option<Row>,
    /// The place of the node that wrote it.
    pub writer: usize,
    /// The write cannot have been lost: no power cut or rollback took it back.
    pub certain: bool,
    /// Columns in which the write may count or not.
    pub loose: Vec<usize>,
}

/// A tombstone that was dropped somewhere.
struct Drop {
    version: Version,
    /// Number of writes that were recorded by then.
    recorded: usize,
    /// Some node had not sent its version of the row.
    may_return: bool,
}

/// Table and key.
pub type RowId = (usize, String);

/// Between the number and the birth of a row from before.
pub const BEFORE: &str = "~before ";

#[derive(Default)]
pub struct Model {
    rows: BTreeMap<RowId, Vec<Write>>,
    /// Per node, in order: the row of each of its writes, and the write's index there.
    by_writer: BTreeMap<usize, Vec<(RowId, usize)>>,
    /// Per row: when each of its writes was recorded.
    times: BTreeMap<RowId, Vec<i64>>,
    /// Per node: the number of its writes when its file was put back last.
    put_back: BTreeMap<usize, usize>,
    dropped: BTreeMap<RowId, Vec<Drop>>,
    pub now_ms: i64,
    /// The broker lost messages. Every node that notices republishes its rows, also a node that was
    /// away until all others had forgotten the deletes that it missed. A known limit.
    pub broker_lost: bool,
    /// A node that lacked something itself merged a snapshot: it cannot tell a delete that it
    /// forgot from a row that it never had.
    pub lacked: bool,
    /// Rows that a merge may have brought before it was cut short. Once their delete is forgotten,
    /// the next merge cannot tell them from rows that no other node has. A known limit.
    pub half_merged: BTreeSet<RowId>,
    /// Two nodes have one id. If a write of one of them changes nothing, it still gets a version;
    /// the model does not see that if the other node gave the same version to something else. Then
    /// older values count, too.
    pub duplicates: bool,
}

fn compare(a: &OwnedValue, b: &OwnedValue) -> Ordering {
    a.borrow().total_cmp(&b.borrow())
}

impl Model {
    pub fn record(&mut self, table: usize, key: &str, write: Write) {
        let at = self.named(&(table, key.to_owned()));
        self.take_in_before(&at);
        let times = self.times.entry(at.clone()).or_default();
        times.push(self.now_ms);
        let writes = self.rows.entry(at.clone()).or_default();
        self.by_writer
            .entry(write.writer)
            .or_default()
            .push((at, writes.len()));
        writes.push(write);
    }

    /// The row that this one is. A row from before is the life without a birth of its number, if
    /// there is one: a node that gives no births wrote it.
    fn named(&self, at: &RowId) -> RowId {
        let Some((number, _)) = at.1.split_once(BEFORE) else {
            return at.clone();
        };
        let plain = (at.0, number.to_owned());
        match self.rows.contains_key(&plain) {
            true => plain,
            false => at.clone(),
        }
    }

    /// The rows from before of a number are the life without a birth, which is written now.
    fn take_in_before(&mut self, at: &RowId) {
        if at.1.contains('~') {
            return;
        }
        let first = (at.0, format!("{}{BEFORE}", at.1));
        let of_number = self.rows.range(first.clone()..);
        let of_number = of_number.take_while(|(other, _)| other.1.starts_with(&first.1));
        let before: Vec<RowId> = of_number
            .map(|(other, _)| other.clone())
            .filter(|other| other.0 == at.0)
            .collect();
        for other in before {
            let writes = self.rows.remove(&other).unwrap_or_default();
            let times = self.times.remove(&other).unwrap_or_default();
            let known = self.rows.entry(at.clone()).or_default();
            let offset = known.len();
            known.extend(writes);
            self.times.entry(at.clone()).or_default().extend(times);
            let places = self.by_writer.values_mut().flatten();
            for place in places.filter(|(row, _)| *row == other) {
                *place = (at.clone(), place.1 + offset);
            }
            if let Some(dropped) = self.dropped.remove(&other) {
                self.dropped.entry(at.clone()).or_default().extend(dropped);
            }
        }
    }

    /// Whether that tombstone was made only after `time_ms`.
    pub fn is_later(&self, at: &RowId, version: Version, time_ms: i64) -> bool {
        let at = &self.named(at);
        let writes = self.rows.get(at).into_iter().flatten();
        let times = self.times.get(at).into_iter().flatten();
        let same = |w: &Write| w.version == version && w.row.is_none();
        let mut made = writes.zip(times).filter(|(w, _)| same(w)).peekable();
        made.peek().is_some() && made.all(|(_, ms)| *ms > time_ms)
    }

    /// Records that a node forgot a delete. `may_return`: some node has not sent the deleted row
    /// yet.
    pub fn drop_tombstone(&mut self, at: RowId, version: Version, may_return: bool) {
        let at = self.named(&at);
        let recorded = self.rows.get(&at).map_or(0, Vec::len);
        let drops = self.dropped.entry(at).or_default();
        match drops.iter_mut().find(|d| d.version == version) {
            Some(known) => known.may_return |= may_return,
            None => drops.push(Drop {
                version,
                recorded,
                may_return,
            }),
        }
    }

    /// Whether this node deleted the row after that version.
    pub fn has_tombstone(&self, at: &RowId, writer: usize, after: Version) -> bool {
        let at = &self.named(at);
        let mut writes = self.rows.get(at).into_iter().flatten();
        writes.any(|w| w.row.is_none() && w.writer == writer && w.version > after)
    }

    pub fn is_dropped(&self, at: &RowId) -> bool {
        let at = &self.named(at);
        self.dropped.contains_key(at)
    }

    /// Whether a dropped tombstone is above this version. A node that still knows the tombstone may
    /// have decided against the write, even if the write came after the drop.
    fn is_below_dropped(&self, at: &RowId, version: Version) -> bool {
        let at = &self.named(at);
        let drops = self.dropped.get(at).into_iter().flatten();
        drops.map(|d| d.version).any(|d| version <= d)
    }

    /// For a write that lies below a dropped tombstone and came before the drop: whether the row
    /// may lawfully be back. None for any other write.
    fn forgotten(&self, at: &RowId, index: usize) -> Option<bool> {
        let at = &self.named(at);
        let version = self.rows[at][index].version;
        let drops = self.dropped.get(at).into_iter().flatten();
        let over = drops.filter(|d| version <= d.version && index < d.recorded);
        over.map(|d| self.is_lawful(at, d)).reduce(|a, b| a & b)
    }

    /// Whether the deleted row may be back, now that this tombstone is forgotten.
    fn is_lawful(&self, at: &RowId, drop: &Drop) -> bool {
        let at = &self.named(at);
        drop.may_return || self.broker_lost || self.lacked || self.half_merged.contains(at)
    }

    /// Whether the row that this tombstone deleted may be back: the tombstone, or a later one in
    /// its place, was dropped.
    fn is_lawfully_forgotten(&self, at: &RowId, version: Version) -> bool {
        let at = &self.named(at);
        let mut drops = self.dropped.get(at).into_iter().flatten();
        drops.any(|d| version <= d.version && self.is_lawful(at, d))
    }

    pub fn knows(&self, table: usize, key: &str, version: Version, deleted: bool) -> bool {
        let writes = self.rows.get(&self.named(&(table, key.to_owned())));
        writes.is_some_and(|w| {
            w.iter()
                .any(|w| w.version == version && w.row.is_none() == deleted)
        })
    }

    /// Whether this node itself wrote that version, and cannot have lost it.
    pub fn wrote(&self, table: usize, key: &str, version: Version, writer: usize) -> bool {
        let writes = self.rows.get(&self.named(&(table, key.to_owned())));
        writes.is_some_and(|w| {
            w.iter()
                .any(|w| w.version == version && w.writer == writer && w.certain)
        })
    }

    /// Whether no power cut and no rollback took that version back.
    pub fn is_certain(&self, at: &RowId, version: Version) -> bool {
        let writes = self.rows.get(&self.named(at));
        writes.is_some_and(|w| w.iter().any(|w| w.version == version && w.certain))
    }

    /// Whether exactly this content has this version, in the columns that the node had then.
    pub fn holds(&self, table: usize, key: &str, version: Version, row: Option<&Row>) -> bool {
        let writes = self.rows.get(&self.named(&(table, key.to_owned())));
        writes.is_some_and(|w| {
            w.iter()
                .any(|w| w.version == version && same(w.row.as_ref(), row))
        })
    }

    /// Whether this content is known under this version, or a write of this version cannot have
    /// been lost. A node may give a lost version again, to different content, and a duplicate node
    /// may give it to any content.
    pub fn explains(&self, table: usize, key: &str, version: Version, row: Option<&Row>) -> bool {
        let at = (table, key.to_owned());
        self.knows(table, key, version, row.is_none())
            && (self.is_certain(&at, version) && !self.duplicates
                || self.holds(table, key, version, row)
                || row.is_some_and(|row| self.mixes(&at, version, row)))
    }

    /// Whether each column is that of some write of this version. If a version was given twice, the
    /// larger value of each column counts.
    fn mixes(&self, at: &RowId, version: Version, row: &Row) -> bool {
        let at = &self.named(at);
        let writes = self.rows.get(at).into_iter().flatten();
        let rows: Vec<&Row> = writes
            .filter(|w| w.version == version)
            .filter_map(|w| w.row.as_ref())
            .collect();
        let is_of_one = |(i, value): (usize, &Option<OwnedValue>)| {
            let is_it = |r: &&Row| matches!(r.get(i), None | Some(None)) || r[i] == *value;
            value.is_none() || rows.iter().any(is_it)
        };
        row.iter().enumerate().all(is_of_one)
    }

    /// Number of a node's writes.
    pub fn written(&self, writer: usize) -> usize {
        self.by_writer.get(&writer).map_or(0, Vec::len)
    }

    pub fn total(&self) -> usize {
        self.rows.values().map(Vec::len).sum()
    }

    /// After a power cut: the node's writes since `since` may be gone.
    pub fn doubt(&mut self, writer: usize, since: usize) {
        for (at, index) in self
            .by_writer
            .get(&writer)
            .into_iter()
            .flatten()
            .skip(since)
        {
            self.rows.get_mut(at).expect("recorded")[*index].certain = false;
        }
    }

    /// Records that a write is on the disk after a power cut.
    pub fn is_kept(&mut self, at: &RowId, writer: usize, version: Version, row: Option<&Row>) {
        let at = &self.named(at);
        let writes = self.rows.get_mut(at).into_iter().flatten();
        let is_it = |w: &&mut Write| {
            (w.writer, w.version) == (writer, version) && same(w.row.as_ref(), row)
        };
        writes.filter(is_it).for_each(|w| w.certain = true);
    }

    /// Records that an earlier file was put back: the node's versions may begin there again.
    pub fn put_back(&mut self, writer: usize) {
        self.put_back.insert(writer, self.written(writer));
    }

    pub fn is_put_back(&self, writer: usize) -> bool {
        self.put_back.contains_key(&writer)
    }

    /// The highest version that the node gave to the row. Not even a power cut makes it give a
    /// lower one: the version that it sent before the cut would win over later writes. Excepted are
    /// versions of a clock that was ahead by more than `drift_ms`: they count less once the node
    /// knows the broker's time.
    pub fn given(&self, at: &RowId, writer: usize, drift_ms: i64) -> Option<Version> {
        let at = &self.named(at);
        let writes = self.by_writer.get(&writer)?;
        let since = *self.put_back.get(&writer).unwrap_or(&0);
        let of_row = writes[since..].iter().filter(|(row, _)| row == at);
        let given = of_row.map(|(_, i)| (self.rows[at][*i].version, self.times[at][*i]));
        let in_time = given.filter(|(v, recorded_ms)| v.time_ms() <= recorded_ms + drift_ms);
        in_time.map(|(v, _)| v).max()
    }

    /// The highest version of a write with the same writer and content that may be lost.
    pub fn lost(&self, at: &RowId, write: &Write) -> Option<Version> {
        let at = &self.named(at);
        let writes = self.rows.get(at).into_iter().flatten();
        let like = |w: &&Write| w.writer == write.writer && w.row == write.row && !w.certain;
        writes.filter(like).map(|w| w.version).max()
    }

    /// Whether another node wrote the row at that time or later: the next version follows that
    /// write, and not this node's clock.
    pub fn is_surpassed(&self, at: &RowId, time_ms: i64, writer: usize) -> bool {
        let at = &self.named(at);
        let mut writes = self.rows.get(at).into_iter().flatten();
        writes.any(|w| w.writer != writer && w.version.time_ms() >= time_ms)
    }

    /// Rows that a node had before HarmonyLite, with their versions.
    pub fn written_before(&self, writer: usize, table: usize) -> Vec<(String, Version)> {
        let writes = self.rows.iter().filter(|((t, _), _)| *t == table);
        let of = |w: &&Write| w.writer == writer && w.version.hlc == HLC_BEFORE && w.certain;
        writes
            .flat_map(|((_, key), all)| all.iter().filter(of).map(|w| (key.clone(), w.version)))
            .collect()
    }

    /// Records that a row from before HarmonyLite lost against that of another node.
    pub fn demote_preexisting(&mut self, table: usize, key: &str, version: Version) {
        let at = self.named(&(table, key.to_owned()));
        let writes = self.rows.get_mut(&at);
        let same = |w: &&mut Write| w.version == version;
        let given = writes.into_iter().flatten().filter(same);
        given.for_each(|w| w.certain = false);
    }

    /// A write that is newer than the one version and loses against the other.
    pub fn written_between(&self, at: &RowId, low: Version, high: Version) -> Option<Version> {
        let at = &self.named(at);
        let writes = self.rows.get(at).into_iter().flatten();
        let versions = writes.filter(|w| w.certain).map(|w| w.version);
        versions.filter(|v| *v > low && *v < high).max()
    }

    pub fn keys(&self) -> impl Iterator<Item = &(usize, String)> {
        self.rows.keys()
    }

    /// Checks the version that a node has for one row in the end; none if it has none.
    pub fn check_version(
        &self,
        at: &(usize, String),
        found: Option<(Version, bool)>,
    ) -> Result<(), String> {
        let at = &self.named(at);
        let empty = Vec::new();
        let writes = self.rows.get(at).unwrap_or(&empty);
        let certain = writes.iter().enumerate().filter(|(_, w)| w.certain);
        let certain = certain.filter(|(_, w)| !self.is_below_dropped(at, w.version));
        let highest = certain.map(|(_, w)| (w.version, w.row.is_none())).max();
        let Some((version, deleted)) = found else {
            return match highest {
                Some((v, _)) => Err(format!("is not known at all, but was written as {v}")),
                None => Ok(()),
            };
        };
        if highest > Some((version, deleted)) {
            let (v, d) = highest.expect("greater");
            return Err(format!(
                "is {version} deleted {deleted}, but {v} deleted {d} was written"
            ));
        }
        if !writes
            .iter()
            .any(|w| w.version == version && w.row.is_none() == deleted)
        {
            return Err(format!(
                "has version {version} deleted {deleted}, which nobody wrote"
            ));
        }
        let mut same = (0..writes.len()).filter(|i| writes[*i].version == version);
        if !deleted && same.all(|i| self.forgotten(at, i) == Some(false)) {
            return Err(format!("is {version} again, which was deleted long ago"));
        }
        Ok(())
    }

    /// Checks one column of a live row.
    pub fn check_value(
        &self,
        plan: &Plan,
        at: &(usize, String),
        column: usize,
        found: &OwnedValue,
        version: Option<Version>,
    ) -> Result<(), String> {
        let table = &plan.tables[at.0];
        let accepted = self.accepted(table, at, column, version);
        if accepted.contains(found) {
            return Ok(());
        }
        Err(format!(
            "has {found:?} in {}, but expected is one of {accepted:?}",
            table.columns[column].name
        ))
    }

    /// The values that a column may have: that of the highest write that carried the column for
    /// certain, and those of all writes above it that may have.
    fn accepted(
        &self,
        table: &Table,
        at: &RowId,
        column: usize,
        version: Option<Version>,
    ) -> Vec<OwnedValue> {
        let at = &self.named(at);
        let is_late = column >= table.base;
        let writes = &self.rows[at];
        let deleted = writes.iter().filter(|w| w.certain && w.row.is_none());
        // A row that is back has the values from before a forgotten delete.
        let deleted = deleted.filter(|w| !self.is_dropped(at) || Some(w.version) < version);
        // A column that was added later has a version of its own, and may outlive such a delete.
        let deleted = deleted.filter(|w| !is_late || !self.is_lawfully_forgotten(at, w.version));
        let floor = deleted.map(|w| w.version).max().unwrap_or(Version::NEVER);
        let above = || writes.iter().filter(|w| w.version > floor);
        let mut alive: Vec<(&Write, &OwnedValue)> = above()
            .filter_map(|w| Some((w, w.row.as_ref()?[column].as_ref()?)))
            .collect();
        alive.sort_by(|(a, x), (b, y)| b.version.cmp(&a.version).then_with(|| compare(y, x)));
        let default = &table.columns[column].default;
        let mut accepted = Vec::new();
        // The delete may be lost: the row may have begun anew after it, even under its version.
        let reborn = above().filter(|w| w.row.is_none()).map(|w| w.version).max();
        // The version may be lost, and given to the row again when it had the column.
        let lacks_it = |w: &&Write| w.row.as_ref().is_some_and(|row| row[column].is_none());
        let retaken = above().filter(|w| !w.certain).filter(lacks_it);
        let retaken = retaken.map(|w| w.version).max();
        for (write, value) in alive {
            let written = Some(write.version);
            if self.is_dropped(at) && written > version {
                continue;
            }
            if is_late && (reborn >= written || retaken > written) {
                accepted.push(default.clone());
            }
            accepted.push(value.clone());
            // A default in a column that was added later proves nothing: perhaps nobody set it. If
            // the row is back, some node may still know the delete, which such a column does not
            // outlive.
            let is_sure = !is_late || value != default && !self.is_dropped(at);
            let is_sure = is_sure && !write.loose.contains(&column);
            if write.certain && !self.duplicates && is_sure {
                return accepted; // a smaller value of the same version loses
            }
        }
        if is_late {
            accepted.push(default.clone());
        }
        accepted
    }

    /// All writes of a row, for a report.
    pub fn history(&self, at: &(usize, String)) -> String {
        let at = &self.named(at);
        let mut writes: Vec<&Write> = self.rows.get(at).into_iter().flatten().collect();
        writes.sort_by_key(|w| std::cmp::Reverse(w.version));
        let line = |w: &&Write| {
            let row = w.row.as_ref().map(|r| {
                r.iter()
                    .map(|v| v.as_ref().map_or("-".into(), |v| format!("{v:?}")))
                    .collect::<Vec<String>>()
                    .join(", ")
            });
            format!(
                "    {} by node {}{}: {}",
                w.version,
                w.writer,
                if w.certain { "" } else { " (may be lost)" },
                row.unwrap_or_else(|| "deleted".into())
            )
        };
        writes
            .iter()
            .take(12)
            .map(line)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

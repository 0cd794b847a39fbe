//! One run, on the node that was asked for it: finds the rows that differ, and has them repaired.
//!
//! Nodes write on meanwhile, so digests that differ prove nothing. A row of which they speak is
//! examined twice: the second time each node has read all that any node knew the first time. A node
//! that still lacks a version then lacks it, and content that differs under one version differs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::answer::{SliceReader, unhex};
use super::message::{
    Fix, KeyRange, MAX_KEY, MAX_WANTED, RowAnswer, RowKey, TableAnswer, VerifyAnswer, Want,
};
use super::report::{Compared, RowDifference, RowOn, VERSION, VerifyReport};
use crate::model::cbor;
use crate::model::text::key_literal;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::milliseconds;
use crate::mutation::{self, Mutation};

/// Rows of a key range: so many, or a part of the rows compared so far, but not more than the
/// largest range has.
const RANGE_ROWS: u64 = 1024;
const PART: u64 = 256;
const LARGEST_RANGE: u64 = 65_536;

/// Largest number of ranges in one request.
const RANGES: usize = 256;

/// Number of rows in the ranges of the first request. It grows while all nodes answer faster than
/// within `FAST`, and shrinks when one takes longer than `SLOW`.
const FIRST_ROWS: u64 = 16 * 1024;
const MOST_ROWS: u64 = 1 << 20;
const FAST: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(4);

/// Rows are listed if there are at most so many in the ranges of one request.
const LISTED_ROWS: u64 = 2 * RANGE_ROWS;

/// Rows that are examined in one request.
const STATES: usize = 250;

/// Largest number of rows that a run lists.
const MAX_ROWS: usize = MAX_WANTED;

/// How often nodes are asked if one of them is not ready.
const TRIES: usize = 2;

/// How often a row is examined of which changes are under way.
const EXAMINED: usize = 5;

/// The nodes of the cluster, this one included.
pub trait Nodes {
    /// This node.
    fn this(&self) -> u64;
    /// Asks all nodes. A node that does not answer has `None`. An error ends the run.
    fn ask(&mut self, want: &Want) -> Result<BTreeMap<u64, Option<VerifyAnswer>>, String>;
    /// Reads the rows here.
    fn reader(&self) -> SliceReader<'_>;
    /// The most rows of a range.
    fn range_rows(&self) -> u64 {
        u64::MAX
    }
    /// Publishes the progress of the run for the person who waits.
    fn note(&mut self, report: &VerifyReport);
}

/// About how many rows these tables have here; 0: not known.
fn rows_about(nodes: &dyn Nodes, tables: &BTreeSet<String>) -> Result<u64, String> {
    let mut reader = nodes.reader();
    let each = tables.iter().map(|table| reader.rows_about(table));
    each.sum::<Result<u64, _>>().map_err(|e| e.to_string())
}

/// Divides a range by the rows here: into ranges of `rows` rows each, from its beginning, at most
/// `most` of them.
fn divide(
    nodes: &dyn Nodes,
    range: &KeyRange,
    rows: u64,
    most: usize,
) -> Result<Vec<KeyRange>, String> {
    let parts = nodes
        .reader()
        .divide(range, rows.min(nodes.range_rows()), most);
    parts.map_err(|e| e.to_string())
}

type Answers = BTreeMap<u64, VerifyAnswer>;

/// Runs to the end. With `repair`, rows that differ are made equal; with `dry_run`, they are only
/// counted.
pub fn verify(nodes: &mut dyn Nodes, repair: bool, dry_run: bool) -> VerifyReport {
    let mut run = Run {
        nodes,
        report: VerifyReport {
            version: VERSION,
            running: true,
            dry_run,
            ..VerifyReport::default()
        },
        members: BTreeSet::new(),
        suspects: BTreeSet::new(),
        fixes: Vec::new(),
    };
    let done = run.all(repair);
    let mut report = run.report;
    report.error = done.err();
    report.running = false;
    report.doing.clear();
    let is_whole = report.left_out.is_empty()
        && report.unsettled == 0
        && report.nodes.iter().all(|n| n.comparable);
    report.fine = report.error.is_none() && is_whole && report.differ.is_empty();
    report
}

struct Run<'n> {
    nodes: &'n mut dyn Nodes,
    report: VerifyReport,
    /// The nodes that are compared.
    members: BTreeSet<u64>,
    /// Rows whose digests differ.
    suspects: BTreeSet<RowKey>,
    /// Of each row that differs, how it is made equal.
    fixes: Vec<Fix>,
}

impl Run<'_> {
    fn all(&mut self, repair: bool) -> Result<(), String> {
        let tables = self.tables()?;
        self.report.tables = tables.len() as u64;
        self.report.rows_about = rows_about(self.nodes, &tables)?;
        let whole = tables.into_iter().map(|table| KeyRange {
            table,
            after: None,
            up_to: None,
        });
        let mut left: Vec<KeyRange> = whole.rev().collect();
        let mut rows = FIRST_ROWS;
        while !left.is_empty() && self.fixes.len() < MAX_ROWS {
            let ranges = self.next_ranges(&mut left, rows)?;
            let began = Instant::now();
            let differing = self.differing(&ranges, true)?;
            rows = match began.elapsed() {
                took if took < FAST => (2 * rows).min(MOST_ROWS),
                took if took > SLOW => (rows / 2).max(RANGE_ROWS),
                _ => rows,
            };
            self.suspect(differing)?;
        }
        self.examine_suspects()?;
        self.report.more |= !left.is_empty();
        if repair {
            self.repair()?;
        }
        Ok(())
    }

    fn doing(&mut self, what: &str) {
        what.clone_into(&mut self.report.doing);
        self.nodes.note(&self.report);
    }

    /// The tables that all nodes have alike, of the nodes that are ready.
    fn tables(&mut self) -> Result<BTreeSet<String>, String> {
        let mut answers = Answers::new();
        for _ in 0..TRIES {
            self.doing("comparing tables");
            answers = self.ready(&Want::Tables)?;
            if self.report.nodes.iter().all(|n| n.comparable) {
                break;
            }
        }
        self.members = answers.keys().copied().collect();
        let names = answers.values().flat_map(|a| &a.tables);
        let names: BTreeSet<&String> = names.map(|t| &t.table).collect();
        let mut alike = BTreeSet::new();
        for name in names {
            let of = |a: &'_ VerifyAnswer| a.tables.iter().find(|t| t.table == *name).cloned();
            let each: Vec<Option<TableAnswer>> = answers.values().map(of).collect();
            match unlike(&each) {
                Some(why) => self.report.left_out.push((name.clone(), why.into())),
                None => {
                    alike.insert(name.clone());
                }
            }
        }
        Ok(alike)
    }

    /// Asks all nodes, and returns the answers of those that are ready.
    fn ready(&mut self, want: &Want) -> Result<Answers, String> {
        let this = self.nodes.this();
        let answers = self.nodes.ask(want)?;
        let own = answers.get(&this).cloned().flatten().unwrap_or_default();
        if let Some(why) = own.not_ready {
            return Err(format!("not comparable yet: this node: {why}"));
        }
        self.report.nodes = answers
            .iter()
            .map(|(node, answer)| {
                let silent =
                    || Some("it did not answer: away, busy, or of an older release".into());
                let why = answer.as_ref().map_or_else(silent, |a| a.not_ready.clone());
                Compared {
                    node: node.to_string(),
                    comparable: why.is_none(),
                    why,
                }
            })
            .collect();
        let answers = answers.into_iter();
        let answers = answers.filter_map(|(node, answer)| Some((node, answer?)));
        Ok(answers.filter(|(_, a)| a.not_ready.is_none()).collect())
    }

    /// As [`Self::ready`], of the nodes that are compared. A node that is not ready for long is not
    /// compared any more.
    fn of_members(&mut self, want: &Want) -> Result<Answers, String> {
        let mut answers = Answers::new();
        for _ in 0..TRIES {
            answers = self.ready(want)?;
            if self.members.iter().all(|node| answers.contains_key(node)) {
                break;
            }
        }
        answers.retain(|node, _| self.members.contains(node));
        self.members = answers.keys().copied().collect();
        // It was left out before, or is from now on.
        for node in &mut self.report.nodes {
            let is_member = |node: u64| self.members.contains(&node);
            if !node.node.parse().is_ok_and(is_member) && node.comparable {
                node.comparable = false;
                node.why = Some("it was not ready from the beginning".into());
            }
        }
        Ok(answers)
    }

    /// Takes as many ranges off the front of `left` as have about `rows` rows.
    fn next_ranges(
        &mut self,
        left: &mut Vec<KeyRange>,
        rows: u64,
    ) -> Result<Vec<KeyRange>, String> {
        let mut ranges = Vec::new();
        let mut count = 0;
        while count < rows && ranges.len() < RANGES {
            let Some(whole) = left.pop() else { break };
            let each = (self.report.rows / PART).clamp(RANGE_ROWS, LARGEST_RANGE);
            let most = ((rows - count).div_ceil(each) as usize).min(RANGES - ranges.len());
            let parts = divide(self.nodes, &whole, each, most)?;
            let Some(last) = parts.last() else { continue };
            if last.up_to != whole.up_to {
                left.push(KeyRange {
                    after: last.up_to.clone(),
                    ..whole
                });
            }
            count += each * parts.len() as u64;
            ranges.extend(parts);
        }
        Ok(ranges)
    }

    /// Those of the ranges whose digests differ, with the largest number of rows on a node.
    fn differing(
        &mut self,
        ranges: &[KeyRange],
        counts: bool,
    ) -> Result<Vec<(KeyRange, u64)>, String> {
        self.doing("comparing rows");
        let answers = self.of_members(&Want::Sums(ranges.to_vec()))?;
        let mut differing = Vec::new();
        for (i, range) in ranges.iter().enumerate() {
            let sums: BTreeMap<u64, _> = answers
                .iter()
                .map(|(node, a)| (*node, a.sums.get(i).cloned().unwrap_or_default()))
                .collect();
            if counts {
                self.report.rows += sums.get(&self.nodes.this()).map_or(0, |sum| sum.rows);
            }
            let first = sums.values().next();
            if sums.values().any(|sum| Some(sum) != first) {
                let rows = sums.values().map(|sum| sum.rows).max().unwrap_or(0);
                differing.push((range.clone(), rows));
            }
        }
        Ok(differing)
    }

    /// Finds the rows that differ in these ranges.
    fn suspect(&mut self, ranges: Vec<(KeyRange, u64)>) -> Result<(), String> {
        let (large, mut small): (Vec<_>, Vec<_>) =
            ranges.into_iter().partition(|(_, rows)| *rows > RANGE_ROWS);
        for (range, rows) in large {
            let each = (rows / PART).max(RANGE_ROWS / 4);
            let mut rest = Some(range.clone());
            while let Some(next) = rest.take() {
                let parts = divide(self.nodes, &next, each, RANGES)?;
                if let Some(last) = parts.last().filter(|last| last.up_to != range.up_to) {
                    let after = last.up_to.clone();
                    rest = Some(KeyRange { after, ..next });
                }
                small.extend(self.differing(&parts, false)?);
            }
        }
        let (mut some, mut count) = (Vec::new(), 0);
        for (range, rows) in small {
            if count + rows > LISTED_ROWS && !some.is_empty() {
                self.list(&std::mem::take(&mut some))?;
                count = 0;
            }
            count += rows;
            some.push(range);
        }
        if !some.is_empty() {
            self.list(&some)?;
        }
        Ok(())
    }

    /// Compares the rows of these ranges one by one.
    fn list(&mut self, ranges: &[KeyRange]) -> Result<(), String> {
        self.doing("comparing single rows");
        let answers = self.of_members(&Want::Rows(ranges.to_vec()))?;
        if answers.values().any(|a| a.more) {
            // Some of them have far more rows there than the others.
            self.report.more = true;
        }
        for (i, range) in ranges.iter().enumerate() {
            let mut digests: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
            for answer in answers.values() {
                for (key, digest) in answer.rows.get(i).into_iter().flatten() {
                    digests.entry(key).or_default().push(digest);
                }
            }
            let is_different = |digests: &Vec<&String>| {
                digests.len() != answers.len() || digests.iter().any(|d| *d != digests[0])
            };
            for (key, _) in digests.into_iter().filter(|(_, d)| is_different(d)) {
                if key.len() > MAX_KEY {
                    self.report.unsettled += 1;
                    continue;
                }
                self.suspects.insert(RowKey {
                    table: range.table.clone(),
                    key: key.clone(),
                });
            }
        }
        match self.suspects.len() >= STATES {
            true => self.examine_suspects(),
            false => Ok(()),
        }
    }

    fn examine_suspects(&mut self) -> Result<(), String> {
        let suspects: Vec<RowKey> = std::mem::take(&mut self.suspects).into_iter().collect();
        for some in suspects.chunks(STATES) {
            if self.fixes.len() >= MAX_ROWS {
                self.report.more = true;
                break;
            }
            self.examine(some.to_vec())?;
        }
        Ok(())
    }

    /// Examines rows until it is known of each whether it differs.
    fn examine(&mut self, mut rows: Vec<RowKey>) -> Result<(), String> {
        let mut before = self.states(&rows, Vec::new())?;
        for _ in 0..EXAMINED {
            let now = self.states(&rows, before.read.clone())?;
            let mut open = Vec::new();
            for (i, row) in rows.iter().enumerate() {
                let (was, is) = (before.of(i), now.of(i));
                match judge(&was, &is) {
                    RowVerdict::Same => {}
                    RowVerdict::Open => open.push(i),
                    RowVerdict::Differs => self.differs(row, &is),
                }
            }
            rows = open.iter().map(|i| rows[*i].clone()).collect();
            if rows.is_empty() {
                break;
            }
            before = now.only(&open);
        }
        self.report.unsettled += rows.len() as u64;
        Ok(())
    }

    fn states(&mut self, rows: &[RowKey], read: Vec<u64>) -> Result<States, String> {
        self.doing("comparing versions");
        let rows = rows.to_vec();
        let answers = self.of_members(&Want::States { rows, read })?;
        let mut states = States::default();
        for (node, answer) in answers {
            let read = answer.read.iter().enumerate();
            for (i, seq) in read {
                match states.read.get_mut(i) {
                    Some(most) => *most = (*most).max(*seq),
                    None => states.read.push(*seq),
                }
            }
            states.by_node.insert(node, answer.states);
        }
        Ok(states)
    }

    fn differs(&mut self, row: &RowKey, here: &BTreeMap<u64, RowAnswer>) {
        if !self.report.differ.contains(&row.table) {
            self.report.differ.push(row.table.clone());
        }
        self.report.different_rows.push(difference(row, here));
        self.fixes.push(fix(row, here));
    }

    fn repair(&mut self) -> Result<(), String> {
        if self.report.dry_run || self.fixes.is_empty() {
            self.report.repaired = self.fixes.len() as u64;
            return Ok(());
        }
        self.doing("republishing rows");
        let fixes = std::mem::take(&mut self.fixes);
        for some in fixes.chunks(STATES) {
            let answers = self.nodes.ask(&Want::Repair(some.to_vec()))?;
            let repaired = answers.values().flatten().map(|a| a.repaired);
            self.report.repaired += repaired.sum::<u64>();
        }
        Ok(())
    }
}

/// States of the same rows on several nodes.
#[derive(Debug, Default)]
struct States {
    by_node: BTreeMap<u64, Vec<RowAnswer>>,
    /// Per stream, a message at or after all that these states stem from.
    read: Vec<u64>,
}

impl States {
    fn of(&self, i: usize) -> BTreeMap<u64, RowAnswer> {
        let each = self.by_node.iter();
        each.filter_map(|(node, states)| Some((*node, states.get(i)?.clone())))
            .collect()
    }

    /// The same of the rows `which` alone.
    fn only(mut self, which: &[usize]) -> States {
        for states in self.by_node.values_mut() {
            let some = which.iter().map(|i| states.get(*i).cloned());
            *states = some.map(Option::unwrap_or_default).collect();
        }
        self
    }
}

/// The verdict on a row that was examined twice.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RowVerdict {
    Same,
    Differs,
    /// Changes are under way on which it depends.
    Open,
}

/// Compares the states of a row: `now`, each node has read all from which the states `before` stem.
pub(super) fn judge(
    before: &BTreeMap<u64, RowAnswer>,
    now: &BTreeMap<u64, RowAnswer>,
) -> RowVerdict {
    let content = |s: &RowAnswer| (s.present, s.deleted, s.digest.clone());
    let first = now.values().next();
    if now.values().all(|s| !s.present)
        || now
            .values()
            .all(|s| first.is_some_and(|f| (s.version, content(s)) == (f.version, content(f))))
    {
        return RowVerdict::Same;
    }
    if now.values().any(|s| s.waits) {
        return RowVerdict::Open;
    }
    let newest = before.values().map(|s| s.version).max().flatten();
    let is_behind = |s: &RowAnswer| s.version < newest;
    if now.values().any(|s| is_behind(s) || !s.intact) {
        return RowVerdict::Differs;
    }
    let mut by_version: BTreeMap<_, Vec<&RowAnswer>> = BTreeMap::new();
    for state in now.values() {
        by_version.entry(state.version).or_default().push(state);
    }
    let is_one = |s: &Vec<&RowAnswer>| s.iter().all(|a| content(a) == content(s[0]));
    let unequal: Vec<_> = by_version.values().filter(|s| !is_one(s)).collect();
    // A row that is displaced by another depends on the changes of that.
    let is_displaced = |s: &&RowAnswer| !s.present && !s.deleted;
    match unequal.iter().any(|s| !s.iter().any(is_displaced)) {
        true => RowVerdict::Differs,
        false if unequal.is_empty() => RowVerdict::Same,
        false => RowVerdict::Open,
    }
}

/// Why a table cannot be compared; `None` if it can.
fn unlike(tables: &[Option<TableAnswer>]) -> Option<&'static str> {
    let present: Vec<&TableAnswer> = tables.iter().flatten().collect();
    if present.len() < tables.len() {
        return Some("not every node has it");
    }
    if present.iter().any(|t| t.schema != present[0].schema) {
        return Some("it is defined differently on some nodes");
    }
    let waits = present.iter().any(|t| t.waits);
    waits.then_some("changes of it wait on some node, see harmonylite held")
}

fn difference(key: &RowKey, here: &BTreeMap<u64, RowAnswer>) -> RowDifference {
    let bytes = unhex(&key.key).unwrap_or_default();
    let values = cbor::key_values(&bytes).unwrap_or_default();
    let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
    let on = |(node, state): (&u64, &RowAnswer)| RowOn {
        node: node.to_string(),
        written_ms: state.version.map(|(hlc, _)| milliseconds(hlc)),
        written_by: state.version.map(|(_, node)| node.to_string()),
        present: state.present,
        intact: state.intact,
        digest: state.digest.clone(),
    };
    RowDifference {
        table: key.table.clone(),
        key: key_literal(&values),
        nodes: here.iter().map(on).collect(),
    }
}

/// Decides who publishes a row: a node that has the newest version intact. If some have different
/// content under it, the content that most of them have is published.
fn fix(key: &RowKey, here: &BTreeMap<u64, RowAnswer>) -> Fix {
    let versions = here.values().map(|s| s.version);
    let newest = match mutation::is(Mutation::RepairPublishesOldest) {
        true => versions.min().flatten(),
        false => versions.max().flatten(),
    };
    let holders: Vec<_> = here.iter().filter(|(_, s)| s.version == newest).collect();
    let intact: Vec<_> = holders.iter().filter(|(_, s)| s.intact).collect();
    let mut by_content: BTreeMap<&String, Vec<u64>> = BTreeMap::new();
    let of_all = if intact.is_empty() || mutation::is(Mutation::RepairSpreadsDamage) {
        holders.iter().collect()
    } else {
        intact
    };
    for (node, state) in of_all {
        by_content.entry(&state.digest).or_default().push(**node);
    }
    let chosen = by_content.into_iter().max_by_key(|(_, nodes)| nodes.len());
    let (digest, nodes) = chosen.unwrap_or((&key.key, Vec::new()));
    Fix {
        row: key.clone(),
        newest: newest.unwrap_or_default(),
        from: nodes.first().copied().unwrap_or_default(),
        stamps: holders.iter().any(|(_, s)| s.digest != *digest),
    }
}

//! One run, on the node that was asked for it: finds the rows that differ step by step, and has
//! them repaired.

use std::collections::{BTreeMap, BTreeSet};

use super::answer::unhex;
use super::message::{Fix, MAX_WANTED, RowAnswer, RowKey, TablePart, Total, VerifyAnswer, Want};
use super::report::{Compared, RowDifference, RowOn, VERSION, VerifyReport};
use crate::model::cbor;
use crate::model::text::key_literal;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::milliseconds;

/// Largest number of parts whose digests are asked for at once: an answer must fit in a message.
const PARTS: usize = 24;

/// Largest number of parts whose rows are asked for at once.
const ROW_PARTS: usize = 64;

/// Largest number of rows that a run lists.
const MAX_ROWS: usize = MAX_WANTED;

/// How often nodes are asked until they stand at equal positions.
const TRIES: usize = 5;

/// The nodes of the cluster, this one included.
pub trait Nodes {
    /// This node.
    fn this(&self) -> u64;
    /// Asks all nodes. A node that does not answer has `None`. An error ends the run.
    fn ask(&mut self, want: &Want) -> Result<BTreeMap<u64, Option<VerifyAnswer>>, String>;
    /// Publishes the progress of the run for the person who waits.
    fn note(&mut self, report: &VerifyReport);
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
    };
    let done = run.all(repair);
    let mut report = run.report;
    report.error = done.err();
    report.running = false;
    report.doing.clear();
    let is_whole = report.left_out.is_empty() && report.nodes.iter().all(|n| n.comparable);
    report.fine = report.error.is_none() && is_whole && report.differ.is_empty();
    report
}

struct Run<'n> {
    nodes: &'n mut dyn Nodes,
    report: VerifyReport,
    /// The nodes that are compared.
    members: BTreeSet<u64>,
}

impl Run<'_> {
    fn all(&mut self, repair: bool) -> Result<(), String> {
        let differing = self.totals()?;
        if differing.is_empty() {
            return Ok(());
        }
        self.report.differ.clone_from(&differing);
        let whole = |table: String| TablePart {
            table,
            under: vec![],
        };
        let tables: Vec<TablePart> = differing.into_iter().map(whole).collect();
        let parts = self.differing_parts("comparing parts of tables", &tables, PARTS)?;
        let parts = self.differing_parts("comparing smaller parts", &parts, ROW_PARTS)?;
        let keys = self.differing_rows(&parts)?;
        let states = self.states(&keys)?;
        let fixes = self.name_rows(&keys, &states);
        if repair {
            self.repair(fixes)?;
        }
        Ok(())
    }

    fn doing(&mut self, what: &str) {
        what.clone_into(&mut self.report.doing);
        self.nodes.note(&self.report);
    }

    /// Compares whole tables. Returns the names of tables that differ.
    fn totals(&mut self) -> Result<Vec<String>, String> {
        let mut answers = Answers::new();
        for tries in 1..=TRIES {
            self.doing("comparing tables");
            answers = self.comparable(&Want::Totals)?;
            if self.report.nodes.iter().all(|n| n.comparable) || tries == TRIES {
                break;
            }
        }
        self.members = answers.keys().copied().collect();
        let own = &answers[&self.nodes.this()].tables;
        (self.report.tables, self.report.rows) =
            (own.len() as u64, own.iter().map(|t| t.rows).sum());
        let names = answers.values().flat_map(|a| &a.tables);
        let names: BTreeSet<&String> = names.map(|total| &total.table).collect();
        let mut differing = Vec::new();
        for name in names {
            let of = |a: &'_ VerifyAnswer| a.tables.iter().find(|t| t.table == *name).cloned();
            let totals: Vec<Option<Total>> = answers.values().map(of).collect();
            match unlike(&totals) {
                Some(why) => self.report.left_out.push((name.clone(), why.into())),
                None if totals.iter().any(|t| *t != totals[0]) => differing.push(name.clone()),
                None => {}
            }
        }
        Ok(differing)
    }

    /// Asks all nodes, and keeps the answers of those that are at this node's positions.
    fn comparable(&mut self, want: &Want) -> Result<Answers, String> {
        let this = self.nodes.this();
        let answers = self.nodes.ask(want)?;
        let own = answers.get(&this).cloned().flatten().unwrap_or_default();
        if let Some(why) = own.not_ready {
            return Err(format!("not comparable yet: this node: {why}"));
        }
        self.report.nodes = answers
            .iter()
            .map(|(node, answer)| {
                let why = match answer {
                    None => Some("it did not answer: away, busy, or of an older release".into()),
                    Some(answer) if answer.not_ready.is_some() => answer.not_ready.clone(),
                    Some(answer) if answer.at != own.at => {
                        Some("it has not read the same messages".into())
                    }
                    Some(_) => None,
                };
                Compared {
                    node: node.to_string(),
                    comparable: why.is_none(),
                    why,
                }
            })
            .collect();
        let is_same = |answer: &VerifyAnswer| answer.not_ready.is_none() && answer.at == own.at;
        let answers = answers.into_iter();
        let answers = answers.filter_map(|(node, answer)| Some((node, answer?)));
        Ok(answers.filter(|(_, answer)| is_same(answer)).collect())
    }

    /// As [`Self::comparable`], until all nodes have answered that were compared first.
    fn of_members(&mut self, want: &Want) -> Result<Answers, String> {
        for _ in 0..TRIES {
            let answers = self.comparable(want)?;
            if self.members.iter().all(|node| answers.contains_key(node)) {
                return Ok(answers);
            }
        }
        Err("tables differ; which rows is not known yet, since nodes do not read the same messages \
             for long enough: try again when less is written"
            .into())
    }

    fn differing_parts(
        &mut self,
        doing: &str,
        parts: &[TablePart],
        most: usize,
    ) -> Result<Vec<TablePart>, String> {
        let mut differing = Vec::new();
        for some in parts.chunks(PARTS) {
            if differing.len() >= most {
                break;
            }
            self.doing(doing);
            let answers = self.of_members(&Want::Parts(some.to_vec()))?;
            for (i, part) in some.iter().enumerate() {
                for byte in 0..=255_u8 {
                    let of = |a: &VerifyAnswer| a.parts.get(i)?.get(usize::from(byte)).cloned();
                    let sums: BTreeSet<_> = answers.values().map(of).collect();
                    if sums.len() > 1 {
                        let mut under = part.under.clone();
                        under.push(byte);
                        let table = part.table.clone();
                        differing.push(TablePart { table, under });
                    }
                }
            }
        }
        self.report.more |= differing.len() > most;
        differing.truncate(most);
        Ok(differing)
    }

    fn differing_rows(&mut self, parts: &[TablePart]) -> Result<Vec<RowKey>, String> {
        self.doing("comparing rows");
        let answers = self.of_members(&Want::Rows(parts.to_vec()))?;
        self.report.more |= answers.values().any(|a| a.more);
        let mut keys = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let mut digests: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
            for answer in answers.values() {
                for (key, digest) in answer.rows.get(i).into_iter().flatten() {
                    digests.entry(key).or_default().push(digest);
                }
            }
            let is_different = |digests: &Vec<&String>| {
                digests.len() != answers.len() || digests.iter().any(|d| *d != digests[0])
            };
            let different = digests.into_iter().filter(|(_, d)| is_different(d));
            keys.extend(different.map(|(key, _)| RowKey {
                table: part.table.clone(),
                key: key.clone(),
            }));
        }
        self.report.more |= keys.len() > MAX_ROWS;
        keys.truncate(MAX_ROWS);
        Ok(keys)
    }

    fn states(&mut self, keys: &[RowKey]) -> Result<BTreeMap<u64, Vec<RowAnswer>>, String> {
        self.doing("comparing versions");
        let answers = self.of_members(&Want::States(keys.to_vec()))?;
        let states = answers.into_iter();
        Ok(states.map(|(node, answer)| (node, answer.states)).collect())
    }

    /// Lists the rows that differ, and decides how each is made equal.
    fn name_rows(&mut self, keys: &[RowKey], states: &BTreeMap<u64, Vec<RowAnswer>>) -> Vec<Fix> {
        let mut fixes = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            let of =
                |(node, states): (&u64, &Vec<RowAnswer>)| Some((*node, states.get(i)?.clone()));
            let here: BTreeMap<u64, RowAnswer> = states.iter().filter_map(of).collect();
            if here.values().all(|s| Some(s) == here.values().next()) {
                continue; // it was written meanwhile
            }
            self.report.different_rows.push(row(key, &here));
            fixes.push(fix(key, &here));
        }
        fixes
    }

    fn repair(&mut self, fixes: Vec<Fix>) -> Result<(), String> {
        if self.report.dry_run || fixes.is_empty() {
            self.report.repaired = fixes.len() as u64;
            return Ok(());
        }
        self.doing("republishing rows");
        self.report.repaired = fixes.len() as u64;
        // A published version must find every version given up that it is to replace.
        let mut first = fixes.clone();
        first.iter_mut().for_each(|fix| fix.from.clear());
        self.nodes.ask(&Want::Repair(first))?;
        let mut then = fixes;
        then.iter_mut().for_each(|fix| fix.gives_up = false);
        self.nodes.ask(&Want::Repair(then)).map(drop)
    }
}

/// Why a table cannot be compared; `None` if it can.
fn unlike(totals: &[Option<Total>]) -> Option<&'static str> {
    let present: Vec<&Total> = totals.iter().flatten().collect();
    if present.len() < totals.len() {
        return Some("not every node has it");
    }
    if present.iter().any(|t| t.schema != present[0].schema) {
        return Some("it is defined differently on some nodes");
    }
    let waits = present.iter().any(|t| t.waits);
    waits.then_some("changes of it wait on some node, see harmonylite held")
}

fn row(key: &RowKey, here: &BTreeMap<u64, RowAnswer>) -> RowDifference {
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

/// Decides who publishes a row. A node that has the newest version intact publishes it. If none
/// has, one node for each content does, and the larger content wins everywhere.
fn fix(key: &RowKey, here: &BTreeMap<u64, RowAnswer>) -> Fix {
    let newest = here.values().filter_map(|s| s.version).max();
    let has_newest = |s: &&RowAnswer| s.version == newest;
    let intact = here.values().filter(has_newest).any(|s| s.intact);
    let mut from: BTreeMap<&String, u64> = BTreeMap::new();
    for (node, state) in here {
        if state.version == newest && (state.intact || !intact) {
            from.entry(&state.digest).or_insert(*node);
        }
    }
    Fix {
        row: key.clone(),
        newest: newest.unwrap_or_default(),
        from: from.into_values().collect(),
        gives_up: intact,
    }
}

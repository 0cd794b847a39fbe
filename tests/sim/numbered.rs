//! Tables whose rows SQLite numbers, in worlds where nodes give births. A row of the model is a
//! *life* there: its name is the number and the birth, and several lives of one number may live at
//! one time. The application sees numbers alone.

use std::collections::{BTreeMap, BTreeSet};

use harmonylite::model::birth::Birth;
use harmonylite::model::cbor::Cursor;
use harmonylite::model::version::Version;
use rusqlite::types::ValueRef;

use crate::model::{Model, Row, RowId};
use crate::node::{Node, Stored, owned, stored};
use crate::plan::{Plan, Table};
use crate::random::Random;

/// Which nodes give births.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Births {
    None,
    /// Every node does, from the first moment.
    All,
    /// Some nodes do, and others begin at a start.
    Some,
}

impl Births {
    /// Whether a node gives births after a start at that time; `before`: whether it did.
    pub fn after_start(self, before: bool, place: usize, time_ms: i64) -> bool {
        match self {
            Births::None => false,
            Births::All => true,
            Births::Some => {
                let mut random = Random::new(time_ms as u64 ^ (place as u64).rotate_left(48));
                before || random.percent(30)
            }
        }
    }
}

/// The name of a life.
pub fn life(number: &str, birth: Birth) -> String {
    match birth {
        Birth::None => number.to_owned(),
        Birth::Before(hash) => format!("{number}~before {hash:x}"),
        Birth::Given(hash) => format!("{number}~given {hash:x}"),
        Birth::Chosen(version) => format!("{number}~chosen {version}"),
    }
}

/// Table and number of a life; table and key of any other row.
pub fn numbered(at: &RowId) -> RowId {
    (at.0, number(&at.1).to_owned())
}

/// The number of a life; the key of any other row.
pub fn number(life: &str) -> &str {
    life.split_once('~').map_or(life, |(number, _)| number)
}

/// What the application did since everything was seen.
#[derive(Clone, Default)]
pub struct Deeds {
    /// Numbers that SQLite chose for rows that are still there. With each, the lives that were
    /// known before.
    chosen: BTreeMap<RowId, BTreeSet<String>>,
    /// Lives that the application deleted, with the version that each had.
    ended: BTreeMap<RowId, Version>,
    /// By number: the life that was shown when the application changed the row first.
    shown: BTreeMap<RowId, String>,
}

impl Deeds {
    /// Notes the outcome of a statement that named these numbers. `chosen`: the number that SQLite
    /// chose for the row that it inserted, and the lives that were known then.
    pub fn note(
        &mut self,
        named: impl IntoIterator<Item = RowId>,
        chosen: Option<(RowId, BTreeSet<String>)>,
    ) {
        for at in named {
            self.chosen.remove(&at);
        }
        self.chosen.extend(chosen);
    }

    /// The change of the row under this number is seen.
    pub fn seen(&mut self, at: &RowId) {
        self.shown.remove(at);
    }
}

impl Node {
    /// By number: the lives that have one, and are not deleted.
    pub fn shown(&self, plan: &Plan, table: usize) -> BTreeMap<String, (String, Stored)> {
        let all = self.versions(plan, table).into_iter();
        let shown = all.filter(|(_, s)| s.is_shown && !s.deleted);
        shown
            .map(|(life, s)| (number(&life).to_owned(), (life, s)))
            .collect()
    }

    /// Names of the lives of a number that are known.
    pub fn lives_of_number(&self, plan: &Plan, (table, key): &RowId) -> BTreeSet<String> {
        let all = self.versions(plan, *table).into_keys();
        all.filter(|life| number(life) == key).collect()
    }

    /// The version of the row that has this key or number.
    pub fn version(&self, plan: &Plan, (table, key): &RowId) -> Option<Stored> {
        let mut all = self.versions(plan, *table);
        if !plan.tables[*table].is_numbered {
            return all.remove(key);
        }
        all.retain(|life, s| s.is_shown && number(life) == key);
        all.into_values().next()
    }

    /// The rows in a table, each by its key or its life.
    pub fn by_life(&self, plan: &Plan, table: usize) -> BTreeMap<String, Row> {
        let rows = self.rows(plan, table);
        self.lives_of(plan, table, rows)
    }

    /// The same rows by life.
    pub fn lives_of(
        &self,
        plan: &Plan,
        table: usize,
        rows: BTreeMap<String, Row>,
    ) -> BTreeMap<String, Row> {
        if !plan.tables[table].is_numbered {
            return rows;
        }
        let mut shown = self.shown(plan, table);
        let mut life = |number: String| shown.remove(&number).map_or(number, |(life, _)| life);
        let each = rows.into_iter();
        each.map(|(number, row)| (life(number), row)).collect()
    }

    /// Adds the lives that do not have their number.
    pub(super) fn add_aside(&self, spec: &Table, found: &mut BTreeMap<String, Stored>) {
        self.each_aside(spec, |row, number| {
            let birth = row.get_ref(5).expect("birth");
            let birth = Birth::from_bytes(birth.as_blob().expect("birth")).expect("birth");
            let stored = Stored {
                birth,
                is_shown: false,
                ..stored(row, 0)
            };
            let life = life(&number, birth);
            let other = found.insert(life.clone(), stored);
            assert!(other.is_none(), "{life} has its number and is aside");
        });
    }

    /// The values of the lives that wait for their number.
    pub fn waiting(&self, plan: &Plan, table: usize) -> BTreeMap<String, Row> {
        let spec = &plan.tables[table];
        let mut found = BTreeMap::new();
        if !spec.is_numbered {
            return found;
        }
        self.each_aside(spec, |row, number| {
            let birth = row.get_ref(5).expect("birth");
            let birth = Birth::from_bytes(birth.as_blob().expect("birth")).expect("birth");
            if let Ok(bytes) = row.get_ref(7).expect("row").as_blob() {
                let here = self.shadow.columns[table].as_ref().expect("here");
                found.insert(life(&number, birth), row_of(spec, here, bytes));
            }
        });
        found
    }

    fn each_aside(&self, spec: &Table, mut each: impl FnMut(&rusqlite::Row<'_>, String)) {
        let text = "SELECT hlc, node, deleted, hash, exc, born, key, row
             FROM __harmonylite___lives JOIN __harmonylite___sites USING (site)
             JOIN __harmonylite___tables ON id = table_id WHERE name = ?1";
        let Ok(mut statement) = self.app().prepare_cached(text) else {
            return; // it has never heard of a birth
        };
        let mut rows = statement.query([&spec.name]).expect("lives");
        while let Some(row) = rows.next().expect("life") {
            let key = row.get_ref(6).expect("key").as_blob().expect("key");
            let key = harmonylite::model::cbor::key_values(key).expect("key");
            each(row, spec.key_text(&key));
        }
    }

    /// Notes which lives the application changed or deleted. `gone`: numbers that were free for a
    /// moment.
    pub fn note_deeds(
        &mut self,
        plan: &Plan,
        table: usize,
        (before, after): (&BTreeMap<String, Row>, &BTreeMap<String, Row>),
        gone: &BTreeSet<RowId>,
    ) {
        if !plan.tables[table].is_numbered {
            return;
        }
        let is_there = |at: &RowId| at.0 != table || after.contains_key(&at.1);
        self.shadow.deeds.chosen.retain(|at, _| is_there(at));
        if self.shadow.contested.contains(&table) {
            return;
        }
        let shown = self.shown(plan, table);
        for (number, row) in before {
            let at = (table, number.clone());
            let is_gone = gone.contains(&at) || !after.contains_key(number);
            if !is_gone && after.get(number) == Some(row) || self.shadow.pending.contains_key(&at) {
                continue;
            }
            if let Some((life, stored)) = shown.get(number) {
                if is_gone {
                    let ended = &mut self.shadow.deeds.ended;
                    ended.insert((table, life.clone()), stored.version);
                }
                self.shadow.deeds.shown.insert(at, life.clone());
            }
        }
    }

    /// The life that a pending change of a number made, or else the one that the number has now.
    pub fn life_of_change(
        &self,
        plan: &Plan,
        model: &Model,
        (table, key): (usize, &str),
        row: Option<&Row>,
    ) -> Option<(String, Stored)> {
        let mut all = self.versions(plan, table);
        if !plan.tables[table].is_numbered {
            return all.remove(key).map(|s| (key.to_owned(), s));
        }
        all.retain(|life, _| number(life) == key);
        let is_new = |life: &str, s: &Stored| {
            s.version.node == self.id && !model.wrote(table, life, s.version, self.place)
        };
        let was = self.shadow.deeds.shown.get(&(table, key.to_owned()));
        let Some(row) = row else {
            let dead = |(life, s): &(&String, &Stored)| s.deleted && is_new(life, s);
            let found = match was {
                Some(was) => Some(was.clone()),
                None => all.iter().find(dead).map(|(life, _)| life.clone()),
            };
            return all.remove_entry(&found?);
        };
        let values = self.by_life(plan, table).into_iter();
        let values: BTreeMap<_, _> = values.chain(self.waiting(plan, table)).collect();
        let is_it = |(life, s): &(&String, &Stored)| {
            !s.deleted && is_new(life, s) && values.get(*life) == Some(row)
        };
        let newest = all.iter().filter(is_it).max_by_key(|(_, s)| s.version);
        let found = newest.map(|(life, _)| life.clone()).or_else(|| {
            let mut shown = all.iter().filter(|(_, s)| s.is_shown);
            shown.next().map(|(life, _)| life.clone())
        });
        all.remove_entry(&found?)
    }

    /// Requires that each row which SQLite numbered is one of its own, and that each life is dead
    /// that the application deleted. Everything is seen.
    pub fn require_deeds(&mut self, plan: &Plan, model: &Model) -> Result<(), String> {
        let deeds = std::mem::take(&mut self.shadow.deeds);
        for ((table, key), before) in deeds.chosen {
            let mut all = self.versions(plan, table);
            all.retain(|life, _| number(life) == key);
            // An insert that was ignored, and gave the number, may have come before.
            let is_own = |s: &Stored| match s.birth {
                Birth::Chosen(version) => version.node == self.id,
                Birth::Given(_) => s.version.node == self.id,
                _ => false,
            };
            let is_born = all.iter().any(|(l, s)| is_own(s) && !before.contains(l));
            let is_gone = !self.rows(plan, table).contains_key(&key);
            let is_excused = !self.births || is_gone || self.shadow.contested.contains(&table);
            if !is_born && !is_excused && !model.duplicates {
                return Err(format!(
                    "node {}: SQLite chose {} [{key}] for a row, and the row was not born: {all:?}",
                    self.place, plan.tables[table].name,
                ));
            }
        }
        for ((table, life), version) in deeds.ended {
            let stored = self.versions(plan, table).remove(&life);
            let is_dead = stored.as_ref().is_none_or(|s| s.deleted);
            let birth = stored.as_ref().map_or(Birth::None, |s| s.birth);
            let at = (table, life);
            // Equal values under a given number are the same row again.
            let is_again = matches!(birth, Birth::Given(_))
                && stored.as_ref().is_some_and(|s| s.version > version);
            // Triggers of a node that gives no births do not tell a delete and an insert apart from
            // an update.
            let tells = self.births && birth != Birth::None;
            let may_be = !tells || self.shadow.contested.contains(&table);
            let was_dead = model.has_tombstone(&at, self.place, version);
            if !is_dead && !is_again && !may_be && !was_dead && !model.duplicates {
                return Err(format!(
                    "node {}: {} [{}] was deleted by the application, and lives: {stored:?}\n{}",
                    self.place,
                    plan.tables[table].name,
                    at.1,
                    model.history(&at)
                ));
            }
        }
        Ok(())
    }
}

/// A row as `___displaced` and `___lives` have it.
pub fn row_of(spec: &Table, here: &[usize], bytes: &[u8]) -> Row {
    let mut all: Row = vec![None; spec.columns.len()];
    for c in here {
        all[*c] = Some(spec.columns[*c].default.clone());
    }
    let mut cursor = Cursor::new(bytes);
    for _ in 0..cursor.array().expect("a row") / 2 {
        let name = cursor.text().expect("a name");
        let value = cursor.value().expect("a value").to_owned();
        let name = if name == "\0rowid" { "rowid" } else { name };
        let is_it = |c: &crate::plan::Column| c.name.eq_ignore_ascii_case(name);
        if let Some(c) = spec.columns.iter().position(is_it) {
            all[c] = Some(value);
        }
    }
    all
}

/// The birth beside a version; none in a file without births.
pub fn birth_beside(value: Option<ValueRef<'_>>, version: Version) -> Birth {
    let value = value.map_or(harmonylite::model::value::OwnedValue::Null, owned);
    Birth::read(value.borrow(), version).expect("a birth")
}

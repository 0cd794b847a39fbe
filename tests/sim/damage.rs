//! Rows that a tool or a bad disk changes behind the triggers' back, and `verify`, which mends
//! them. It begins once all nodes are equal, and all must be equal again in the end.

use std::collections::{BTreeMap, BTreeSet};

use crossbeam_channel::{Receiver, Sender, bounded};
use harmonylite::database::schema::quote;
use harmonylite::model::cbor;
use harmonylite::model::value::OwnedValue;
use harmonylite::model::version::Version;
use harmonylite::status::board::About;
use harmonylite::status::verify::answer::{SliceReader, answer};
use harmonylite::status::verify::message::{Fix, RowKey, VerifyAnswer, VerifyRequest, Want};
use harmonylite::status::verify::report::VerifyReport;
use harmonylite::status::verify::run::{Nodes, verify};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::model::{Row, RowId, Write};
use crate::node::{Node, owned};
use crate::observe;
use crate::plan::Table;
use crate::world::{CATCH_UP, KEEP, Step, World};

/// Steps that may happen between the damage and its repair.
const MEANWHILE: [usize; 10] = [0, 1, 2, 3, 4, 5, 6, KEEP, CATCH_UP, ARRIVE];
const ARRIVE: usize = 19;

/// Runs of verify that may be needed.
const RUNS: usize = 5;

/// A row that a run repaired.
struct Repaired {
    at: RowId,
    /// The version that it had.
    newest: Version,
    version: Version,
}

/// The nodes as verify asks them.
struct Asked<'w> {
    world: &'w mut World,
    places: Vec<usize>,
    step: u32,
    stop: (Sender<()>, Receiver<()>),
    failure: Option<String>,
    repaired: Vec<Repaired>,
}

impl World {
    /// Damages some rows and has them mended.
    pub fn damage_and_repair(&mut self) -> Step {
        if !self.are_ready() {
            return Ok(());
        }
        let (clean, _) = self.verify(false)?;
        if !clean.different_rows.is_empty() {
            return Err(format!(
                "verify finds differences where there are none: {clean:?}"
            ));
        }
        if clean.nodes.iter().any(|n| !n.comparable) || clean.nodes.len() < 2 {
            return Ok(());
        }
        let ids: Vec<u64> = self.nodes.iter().map(|n| n.id).collect();
        let left_out: BTreeSet<&String> = clean.left_out.iter().map(|(table, _)| table).collect();
        let tables = 0..self.plan.tables.len();
        let tables: Vec<usize> = tables
            .filter(|t| self.is_damageable(*t, &left_out))
            .collect();
        for _ in 0..1 + self.random.below(3) {
            if let Some(table) = tables.get(self.random.below(tables.len())).copied() {
                self.damage(table)?;
            }
        }
        for _ in 0..self.random.below(25) {
            let ms = self.random.between(0, 2000);
            self.pass(ms);
            let place = self.random.below(self.nodes.len());
            let kind = *self.random.pick(&MEANWHILE);
            if kind == ARRIVE && !self.plan.complete {
                continue; // its tables may never be those of the others
            }
            self.step(kind, place)?;
            self.after(place)?;
        }
        let away = self.write_away()?;
        self.pass(5000);
        let mut repaired = Vec::new();
        for run in 0.. {
            let (report, more) = self.verify(true)?;
            repaired.extend(more);
            for place in 0..self.nodes.len() {
                if self.random.percent(20) {
                    self.say(format!("node {place}: crash"));
                    self.nodes[place].crash();
                    self.start(place)?;
                }
                if Some(place) == away && self.nodes[place].is_cut_off {
                    self.cut_off(place);
                }
            }
            self.end_migrations()?;
            self.come_to_rest()?;
            let is_left = |(table, _): &(String, String)| !left_out.contains(table);
            // A copy that nobody has noticed, since neither writes, answers under the same id.
            let ids: BTreeSet<u64> = self.nodes.iter().map(|n| n.id).collect();
            let is_whole = !report.left_out.iter().any(is_left)
                && report.nodes.len() == ids.len()
                && report.nodes.iter().all(|n| n.comparable);
            if is_whole && report.different_rows.is_empty() {
                break;
            }
            if run > RUNS {
                return Err(format!("verify does not mend all: {report:?}"));
            }
        }
        for row in &repaired {
            if let Some(lost) = self.model.written_between(&row.at, row.newest, row.version) {
                let at = &row.at;
                return Err(format!(
                    "a repair of {at:?} takes {lost} back\n{}",
                    self.model.history(at)
                ));
            }
        }
        // A node may meet a duplicate, or its own writes from before it was put back, at any start.
        let may_change = |node: &Node| self.model.duplicates || self.model.is_put_back(node.place);
        let mut nodes = self.nodes.iter().zip(ids);
        match nodes.find(|(node, id)| node.id != *id && !may_change(node)) {
            Some((node, _)) => Err(format!("node {}: takes another id", node.place)),
            None => Ok(()),
        }
    }

    /// Whether all nodes can be compared.
    fn are_ready(&mut self) -> bool {
        let streams: Vec<String> = self.broker.streams.iter().map(|s| s.name.clone()).collect();
        self.nodes.iter().all(|node| {
            node.shared().status.introduce(About {
                name: String::new(),
                streams: streams.clone(),
            });
            let is_well = node.shared().is_joined() && node.shared().is_caught_up();
            is_well && !node.db().has_gap()
        })
    }

    /// A table that all have alike, and in which no row hides another.
    fn is_damageable(&self, table: usize, left_out: &BTreeSet<&String>) -> bool {
        let spec = &self.plan.tables[table];
        let is_here = |n: &Node| n.shadow.columns[table].is_some();
        let is_compared = !left_out.contains(&spec.name.to_ascii_lowercase());
        is_compared && spec.indexes.is_empty() && self.nodes.iter().all(is_here)
    }

    /// Changes a row on one node. Another node has it as it was.
    fn damage(&mut self, table: usize) -> Step {
        let rows = self.nodes[0].rows(&self.plan, table);
        let rows: Vec<(&String, &Row)> = rows
            .iter()
            .filter(|(key, _)| !self.damaged.contains(&(table, (*key).clone())))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let (key, row) = *self.random.pick(&rows);
        let (key, row) = (key.clone(), row.clone());
        let place = self.random.below(self.nodes.len());
        let how = self.random.below(5);
        if how == 4 {
            return self.lose_a_write(place, (table, key), &row);
        }
        if how == 3 {
            // It is deleted, and then back behind the triggers' back.
            let text =
                |spec: &Table| format!("DELETE FROM {} WHERE {}", quote(&spec.name), is_key(spec));
            self.write_one(0, table, &row, &text(&self.plan.tables[table]));
            self.come_to_rest()?;
        }
        let node = &self.nodes[place];
        let spec = &self.plan.tables[table];
        if node.rows(&self.plan, table).contains_key(&key) == (how == 3) {
            return Ok(()); // a cascade, or it waits for something
        }
        let (name, is) = (quote(&spec.name), is_key(spec));
        let text = match how {
            0 => format!("UPDATE {name} SET s = 'zz damage' WHERE {is}"),
            1 => format!("UPDATE {name} SET n = -9 WHERE {is}"),
            2 => format!("DELETE FROM {name} WHERE {is}"),
            _ => insertion(spec, node.shadow.columns[table].as_ref().expect("here")),
        };
        let values: Vec<&OwnedValue> = match how {
            3 => node.shadow.columns[table]
                .iter()
                .flatten()
                .filter_map(|c| row[*c].as_ref())
                .collect(),
            _ => row[..spec.key.len()].iter().flatten().collect(),
        };
        let done =
            node.behind_the_triggers(|app| app.execute(&text, rusqlite::params_from_iter(values)));
        self.say(format!(
            "node {place}: damage: {text} of [{key}]: {:?}",
            done.ok()
        ));
        self.damaged.insert((table, key.clone()));
        Ok(())
    }

    /// Takes a row and its version back to what they were before another node's write, as if the
    /// node had lost it.
    fn lose_a_write(&mut self, place: usize, at: RowId, row: &Row) -> Step {
        let spec = self.plan.tables[at.0].clone();
        let Some(was) = self.nodes[place].raw_version(&spec, row) else {
            return Ok(());
        };
        let (name, is) = (quote(&spec.name), is_key(&spec));
        let writer = (place + 1) % self.nodes.len();
        let text = format!("UPDATE {name} SET n = 5555 WHERE {is}");
        self.write_one(writer, at.0, row, &text);
        self.come_to_rest()?;
        let n = spec.columns.iter().position(|c| c.name == "n");
        let n = n.expect("every table has it");
        let node = &self.nodes[place];
        let now = node.rows(&self.plan, at.0).remove(&at.1);
        if writer == place || now.is_none_or(|now| now[n] != Some(OwnedValue::Integer(5555))) {
            return Ok(());
        }
        node.behind_the_triggers(|app| {
            let text = format!("UPDATE {name} SET n = ?{} WHERE {is}", spec.key.len() + 1);
            let key = row[..spec.key.len()].iter().flatten();
            let values = key.chain(&row[n]);
            app.execute(&text, rusqlite::params_from_iter(values))
                .expect("the row");
            let places: Vec<String> = (1..=was.len()).map(|i| format!("?{i}")).collect();
            let (table, places) = (versions_of(&spec), places.join(", "));
            let text = format!("REPLACE INTO {table} VALUES ({places})");
            app.execute(&text, rusqlite::params_from_iter(&was))
                .expect("the version");
        });
        self.say(format!(
            "node {place}: loses the last write of {name} [{}]",
            at.1
        ));
        self.damaged.insert(at);
        Ok(())
    }

    /// A statement of the application on one row.
    fn write_one(&mut self, place: usize, table: usize, row: &Row, text: &str) {
        let tables = self.tables(place);
        let node = &mut self.nodes[place];
        let before = node.rows_of(&self.plan, &tables);
        let key: Vec<&OwnedValue> = row[..self.plan.tables[table].key.len()]
            .iter()
            .flatten()
            .collect();
        node.transaction(|app| {
            app.execute(text, rusqlite::params_from_iter(key))
                .expect("write");
        });
        node.note_changes(&self.plan, &tables, before, &BTreeSet::new());
        self.say(format!("node {place}: writes {text}"));
    }

    /// A node that is away writes a damaged row before others repair it. Returns its place.
    fn write_away(&mut self) -> Result<Option<usize>, String> {
        let damaged: Vec<RowId> = self.damaged.iter().cloned().collect();
        let place = self.random.below(self.nodes.len());
        if damaged.is_empty() || self.nodes.len() < 3 || self.random.percent(50) {
            return Ok(None);
        }
        let (table, key) = self.random.pick(&damaged).clone();
        if self.nodes[place].shared.is_none() || self.nodes[place].is_cut_off {
            return Ok(None);
        }
        self.cut_off(place);
        if let Some(row) = self.nodes[place].rows(&self.plan, table).get(&key).cloned() {
            let spec = &self.plan.tables[table];
            let (name, is) = (quote(&spec.name), is_key(spec));
            let text = format!("UPDATE {name} SET n = 4242 WHERE {is}");
            self.write_one(place, table, &row, &text);
        }
        self.capture_all(place)?;
        Ok(Some(place))
    }

    /// One run, over all nodes that are not cut off.
    fn verify(&mut self, repair: bool) -> Result<(VerifyReport, Vec<Repaired>), String> {
        for place in 0..self.nodes.len() {
            if self.nodes[place].shared.is_none() {
                self.start(place)?;
            }
        }
        self.are_ready();
        let places = 0..self.nodes.len();
        let places = places
            .filter(|place| !self.nodes[*place].is_cut_off)
            .collect();
        let mut asked = Asked {
            world: self,
            places,
            step: 0,
            stop: bounded(0),
            failure: None,
            repaired: Vec::new(),
        };
        let report = verify(&mut asked, repair, false);
        let (failure, repaired) = (asked.failure, asked.repaired);
        let count = report.different_rows.len();
        self.say(format!("verify: {count} rows differ, {:?}", report.error));
        match failure {
            Some(e) => Err(e),
            None => Ok((report, repaired)),
        }
    }
}

impl Node {
    /// Lets a tool write that fires no trigger.
    fn behind_the_triggers<T>(&self, write: impl FnOnce(&Connection) -> T) -> T {
        let app = self.app();
        let set = |on: bool| {
            let triggers = app.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, on);
            let keys = app.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, on);
            (triggers.expect("triggers"), keys.expect("foreign keys"))
        };
        set(false);
        let done = write(app);
        set(true);
        done
    }

    /// The row's version as it is stored.
    fn raw_version(&self, spec: &Table, row: &Row) -> Option<Vec<OwnedValue>> {
        let mut key: Vec<&OwnedValue> = row[..spec.key.len()].iter().flatten().collect();
        if spec.is_turned() {
            key.reverse();
        }
        let each = (1..=key.len()).map(|i| format!("k{i} IS ?{i}"));
        let is_key = each.collect::<Vec<_>>().join(" AND ");
        let text = format!("SELECT * FROM {} WHERE {is_key}", versions_of(spec));
        let mut statement = self.app().prepare(&text).ok()?;
        let count = statement.column_count();
        let values = statement.query_row(rusqlite::params_from_iter(key), |r| {
            let each = (0..count).map(|i| r.get_ref(i).map(owned));
            each.collect::<Result<Vec<_>, _>>()
        });
        values.ok()
    }
}

fn versions_of(spec: &Table) -> String {
    quote(&format!("__harmonylite__{}_versions", spec.name))
}

fn is_key(spec: &Table) -> String {
    let each = spec.columns[..spec.key.len()].iter().enumerate();
    let each = each.map(|(i, column)| format!("{} IS ?{}", column.name, i + 1));
    each.collect::<Vec<_>>().join(" AND ")
}

fn insertion(spec: &Table, columns: &[usize]) -> String {
    let names: Vec<&str> = columns
        .iter()
        .map(|c| spec.columns[*c].name.as_str())
        .collect();
    let values: Vec<String> = (1..=columns.len()).map(|i| format!("?{i}")).collect();
    format!(
        "INSERT INTO {}({}) VALUES ({})",
        quote(&spec.name),
        names.join(", "),
        values.join(", ")
    )
}

impl Asked<'_> {
    /// Everybody has what everybody else had a moment ago.
    fn exchange(&mut self) -> Step {
        let (world, places) = (&mut *self.world, &self.places);
        for place in places {
            world.connect(*place)?;
            world.capture_all(*place)?;
            world.send_all(*place)?;
        }
        for place in places {
            world.read_to_the_end(*place)?;
            world.send_all(*place)?;
        }
        places
            .iter()
            .try_for_each(|place| world.read_to_the_end(*place).map(drop))
    }

    fn answers(&mut self, want: &Want) -> Result<BTreeMap<u64, Option<VerifyAnswer>>, String> {
        self.step += 1;
        match want {
            Want::Tables | Want::States { .. } => self.exchange()?,
            Want::Sums(_) if self.world.random.percent(30) => {
                let place = *self.world.random.pick(&self.places);
                self.world.write(place);
            }
            _ => {}
        }
        let request = VerifyRequest {
            run: "r".into(),
            step: self.step,
            by: 1,
            key: "5a".repeat(32),
            want: want.clone(),
        };
        let mut answers = BTreeMap::new();
        for place in self.places.clone() {
            let told = match want {
                Want::Repair(fixes) => self.repair(place, fixes)?,
                _ => {
                    let shared = self.world.nodes[place].shared();
                    answer(shared, &request, &self.stop.1).map_err(|e| e.to_string())?
                }
            };
            answers.insert(self.world.nodes[place].id, Some(told));
        }
        Ok(answers)
    }

    /// The application may write a row that differs after verify has judged it.
    fn write_meanwhile(&mut self, place: usize, fixes: &[Fix]) -> Step {
        let world = &mut *self.world;
        if fixes.is_empty() || world.random.percent(70) {
            return Ok(());
        }
        let fix = world.random.pick(fixes);
        let (table, key) = world.row_id(&fix.row);
        let row = world.nodes[place].rows(&world.plan, table).remove(&key);
        if let Some(row) = row {
            let spec = &world.plan.tables[table];
            let (name, is) = (quote(&spec.name), is_key(spec));
            let text = format!("UPDATE {name} SET n = 7777 WHERE {is}");
            world.write_one(place, table, &row, &text);
        }
        Ok(())
    }

    fn repair(&mut self, place: usize, fixes: &[Fix]) -> Result<VerifyAnswer, String> {
        self.write_meanwhile(place, fixes)?;
        let world = &mut *self.world;
        world.capture_all(place)?;
        let rows: Vec<(RowId, Version)> = fixes
            .iter()
            .filter(|f| f.from == world.nodes[place].id)
            .map(|f| {
                let (hlc, node) = f.newest;
                (world.row_id(&f.row), Version { hlc, node })
            })
            .collect();
        let before = rows.iter().map(|(at, newest)| {
            let stored = world.nodes[place]
                .version(&world.plan, at)
                .map(|s| s.version);
            (
                stored,
                self.places.iter().any(|p| world.is_sound(*p, at, *newest)),
            )
        });
        let before: Vec<(Option<Version>, bool)> = before.collect();
        let node = &mut world.nodes[place];
        node.name(rows.iter().map(|(at, _)| at.clone()));
        let mut locked = node.shared().lock();
        let (repaired, mut captured) = locked.database.repair(fixes).map_err(|e| e.to_string())?;
        let frames = captured.frames.clone();
        locked.hand_over(&mut captured);
        drop(locked);
        observe::frames(node, &world.plan, &mut world.model, &frames)?;
        observe::captured(node, &world.plan, &mut world.model, true)?;
        for ((at, newest), (before, is_anywhere)) in rows.into_iter().zip(before) {
            let stored = node.versions(&world.plan, at.0).get(&at.1).cloned();
            if stored.as_ref().map(|s| s.version) < before {
                return Err(format!(
                    "the repair of {at:?} takes its version {before:?} back"
                ));
            }
            // Written meanwhile, or published as it is.
            let Some(stored) = stored.filter(|s| s.version > newest && before == Some(newest))
            else {
                continue;
            };
            let row = node.rows(&world.plan, at.0).remove(&at.1);
            let is_spread = is_anywhere && !world.model.holds(at.0, &at.1, newest, row.as_ref());
            if is_spread {
                let history = world.model.history(&at);
                return Err(format!(
                    "the repair of {at:?} spreads the damage: {row:?}\n{history}"
                ));
            }
            if stored.version.node == 0
                && !world
                    .model
                    .knows(at.0, &at.1, stored.version, row.is_none())
            {
                let write = Write {
                    version: stored.version,
                    row,
                    writer: place,
                    certain: true,
                    loose: Vec::new(),
                };
                world.model.record(at.0, &at.1, write);
            }
            let version = stored.version;
            self.repaired.push(Repaired {
                at,
                newest,
                version,
            });
        }
        world.say(format!("node {place}: repairs {repaired:?} rows"));
        Ok(VerifyAnswer {
            repaired: repaired.unwrap_or(0),
            ..VerifyAnswer::default()
        })
    }
}

impl World {
    /// Whether the node has this version of the row, as it was written.
    fn is_sound(&self, place: usize, at: &RowId, version: Version) -> bool {
        let node = &self.nodes[place];
        let row = node.rows(&self.plan, at.0).remove(&at.1);
        node.version(&self.plan, at)
            .is_some_and(|s| s.version == version)
            && self.model.holds(at.0, &at.1, version, row.as_ref())
    }

    fn row_id(&self, row: &RowKey) -> RowId {
        let is_it = |t: &Table| t.name.to_ascii_lowercase() == row.table;
        let table = self
            .plan
            .tables
            .iter()
            .position(is_it)
            .expect("a table of the plan");
        let bytes = row.key.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).expect("hexadecimal");
            u8::from_str_radix(pair, 16).expect("hexadecimal")
        });
        let bytes: Vec<u8> = bytes.collect();
        let mut key = cbor::key_values(&bytes).expect("a key");
        let spec = &self.plan.tables[table];
        if spec.is_turned() {
            key.reverse();
        }
        (table, spec.key_text(&key))
    }
}

impl Nodes for Asked<'_> {
    fn this(&self) -> u64 {
        self.world.nodes[self.places[0]].id
    }

    fn ask(&mut self, want: &Want) -> Result<BTreeMap<u64, Option<VerifyAnswer>>, String> {
        let answers = self.answers(want);
        if let Err(e) = &answers {
            self.failure = Some(e.clone());
        }
        answers
    }

    fn reader(&self) -> SliceReader<'_> {
        SliceReader::new(self.world.nodes[self.places[0]].shared(), &self.stop.1)
    }

    fn range_rows(&self) -> u64 {
        3 // tables are small here
    }

    fn note(&mut self, _: &VerifyReport) {}
}

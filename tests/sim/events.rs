//! Events from outside: nodes' applications, clocks and machines.

use std::collections::BTreeSet;

use harmonylite::database::schema::quote;
use harmonylite::model::value::OwnedValue;

use crate::arrivals::MOST_NODES;
use crate::node::{Node, Shadow};
use crate::plan::Migration;
use crate::workload;
use crate::world::{Step, World};

/// A clock that is less far ahead than the drift allows.
const SLIGHTLY_AHEAD_MS: i64 = 50_000;

const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;

impl World {
    /// Runs a transaction of the application. A comparison of all rows finds the changes.
    pub fn write(&mut self, place: usize) {
        self.transaction(place, None);
    }

    pub fn tables(&self, place: usize) -> Vec<usize> {
        let here = |t: &usize| self.nodes[place].shadow.columns[*t].is_some();
        (0..self.plan.tables.len()).filter(here).collect()
    }

    /// Runs a transaction; with `rebuild` it first rebuilds that table.
    fn transaction(&mut self, place: usize, rebuild: Option<usize>) {
        let tables = self.tables(place);
        if tables.is_empty() {
            return;
        }
        let mut statements = Vec::new();
        let mut texts = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let table = rebuild.unwrap_or_else(|| *self.random.pick(&tables));
            let columns = self.nodes[place].shadow.columns[table]
                .as_ref()
                .expect("here");
            let spec = &self.plan.tables[table];
            let made = workload::statements(spec, columns, &mut self.random);
            statements.extend(made.into_iter().map(|(text, values)| (table, text, values)));
        }
        let undone = self.random.percent(5);
        let node = &mut self.nodes[place];
        let before = node.rows_of(&self.plan, &tables);
        for (table, _, values) in &statements {
            let spec = &self.plan.tables[*table];
            let named = spec.keys_in(values).into_iter().map(|key| (*table, key));
            node.name(named);
            for (other, rows) in tables.iter().zip(&before) {
                // A cascade may change a row and change it back.
                if self.plan.reaches(*table, *other) || other == table && values.is_empty() {
                    let all = rows.keys().map(|key| (*other, key.clone()));
                    node.name(all);
                }
            }
        }
        let (mut gone, mut deeds) = (BTreeSet::new(), Vec::new());
        let first = rebuild.map(|t| rebuild_text(node, &self.plan, t));
        if first.is_some() {
            node.app()
                .execute_batch("PRAGMA foreign_keys = OFF")
                .expect("pragma");
        }
        let done = node.transaction(|app| {
            if let Some(text) = &first {
                app.execute_batch(text).expect("rebuild");
                texts.push("rebuild".to_owned());
            }
            for (table, text, values) in &statements {
                if app.is_autocommit() {
                    break;
                }
                let mut statement = app
                    .prepare_cached(text)
                    .unwrap_or_else(|e| panic!("{e}: {text}"));
                let result = statement.execute(rusqlite::params_from_iter(values));
                texts.push(format!("{text} {values:?} -> {:?}", result.as_ref().ok()));
                if self.plan.tables[*table].is_numbered {
                    let inserts = values.first() == Some(&OwnedValue::Null);
                    let chosen = (inserts && result.as_ref().is_ok_and(|n| *n > 0))
                        .then(|| (*table, format!("i{}", app.last_insert_rowid())))
                        .map(|at| {
                            let known = node.lives_of_number(&self.plan, &at);
                            (at, known)
                        });
                    deeds.push((self.plan.tables[*table].keys_in(values), *table, chosen));
                }
                for (table, before) in tables.iter().zip(&before) {
                    if self.plan.tables[*table].is_numbered {
                        let now = node.rows(&self.plan, *table);
                        let left = before.keys().filter(|key| !now.contains_key(*key));
                        gone.extend(left.map(|key| (*table, key.clone())));
                    }
                }
                if let Err(e) = result {
                    let code = e.sqlite_error_code();
                    assert_eq!(
                        code,
                        Some(rusqlite::ErrorCode::ConstraintViolation),
                        "{e}: {text}"
                    );
                }
            }
            // A table that is empty after a rebuild waits for its rows, and its deletes do not
            // count. The model does not know that rule, so no such transaction commits here.
            let is_emptied = !app.is_autocommit()
                && tables.iter().zip(&before).any(|(table, rows)| {
                    let name = &self.plan.tables[*table].name;
                    (rebuild == Some(*table) || !rows.is_empty()) && is_emptied(app, name)
                });
            if (undone || is_emptied) && !app.is_autocommit() {
                app.execute_batch("ROLLBACK").expect("rollback");
            }
        });
        if first.is_some() {
            node.app()
                .execute_batch("PRAGMA foreign_keys = ON")
                .expect("pragma");
        }
        if done {
            for (named, table, chosen) in deeds {
                let named = named.into_iter().map(|key| (table, key));
                node.shadow.deeds.note(named, chosen);
            }
        } else {
            gone.clear();
        }
        node.note_changes(&self.plan, &tables, before, &gone);
        self.say(format!(
            "node {place}: writes: {}{}",
            texts.join("; "),
            if done { "" } else { " (undone)" }
        ));
    }

    pub fn migrate(&mut self, place: usize) -> Step {
        let shadow = &self.nodes[place].shadow;
        let tables = self.tables(place);
        let open: Vec<Migration> = self
            .plan
            .migrations
            .iter()
            .copied()
            .filter(|m| !shadow.done.contains(m) && is_possible(shadow, *m))
            .collect();
        if self.random.percent(15) {
            self.vacuum(place);
            return Ok(());
        }
        if open.is_empty() || self.random.percent(20) {
            // Tools that rebuild a table need not keep its rowids.
            let known: Vec<usize> = tables
                .into_iter()
                .filter(|t| !self.plan.tables[*t].is_rowid)
                .collect();
            if !known.is_empty() {
                let table = *self.random.pick(&known);
                self.transaction(place, Some(table));
            }
            return Ok(());
        }
        let migration = *self.random.pick(&open);
        self.apply_migration(place, migration, false)
    }

    /// Runs VACUUM, which may renumber rows without a key of their own.
    fn vacuum(&mut self, place: usize) {
        let tables = self.tables(place);
        let node = &mut self.nodes[place];
        let before = node.rows_of(&self.plan, &tables);
        node.app().execute_batch("VACUUM").expect("vacuum");
        node.note_changes(&self.plan, &tables, before, &BTreeSet::new());
        node.cut = None; // rows without a key are compared anew
        self.say(format!("node {place}: VACUUM"));
    }

    /// Creates a UNIQUE index. False if colliding rows prevent it.
    fn create_index(&self, place: usize, table: usize, index: usize) -> bool {
        let text = &self.plan.tables[table].indexes[index];
        self.nodes[place].app().execute_batch(text).is_ok()
    }

    /// Deletes all rows of a table. The core must have seen a table that was made anew before,
    /// because deletes that leave such a table empty do not count.
    fn empty(&mut self, place: usize, table: usize) -> Step {
        if self.try_to_empty(place, table) {
            return Ok(());
        }
        self.capture(place)?;
        match self.try_to_empty(place, table) {
            true => Ok(()),
            false => Err(format!("node {place}: table {table} was made anew unseen")),
        }
    }

    /// Deletes all rows of a table, unless that empties a table that the core has not seen since it
    /// was made anew.
    fn try_to_empty(&mut self, place: usize, table: usize) -> bool {
        let tables = self.tables(place);
        let (node, tables_of) = (&mut self.nodes[place], &self.plan.tables);
        let before = node.rows_of(&self.plan, &tables);
        let done = node.transaction(|app| {
            let text = format!("DELETE FROM {}", quote(&tables_of[table].name));
            app.execute_batch(&text).expect("delete");
            let mut filled = tables
                .iter()
                .zip(&before)
                .filter(|(_, rows)| !rows.is_empty());
            if filled.any(|(table, _)| is_emptied(app, &tables_of[*table].name)) {
                app.execute_batch("ROLLBACK").expect("rollback");
            }
        });
        if done {
            node.note_changes(&self.plan, &tables, before, &BTreeSet::new());
        }
        done
    }

    /// Runs one migration. With `forced`, the application removes what stands in its way.
    pub fn apply_migration(&mut self, place: usize, migration: Migration, forced: bool) -> Step {
        self.say(format!("node {place}: {migration:?}"));
        match migration {
            Migration::Create(table) => {
                self.create(place, table);
                return Ok(());
            }
            Migration::AddColumn(table, column) => {
                let spec = &self.plan.tables[table];
                let added = &spec.columns[column];
                let text = format!(
                    "ALTER TABLE {} ADD COLUMN {} {}",
                    quote(&spec.name),
                    added.name,
                    added.declared
                );
                let node = &mut self.nodes[place];
                node.app().execute_batch(&text).expect("add column");
                node.shadow.columns[table]
                    .as_mut()
                    .expect("here")
                    .push(column);
                for ((of, _), row) in &mut node.shadow.pending {
                    if let Some(row) = row.as_mut().filter(|_| *of == table) {
                        row[column] = Some(added.default.clone());
                    }
                }
            }
            Migration::CreateIndex(table, index) => {
                let mut is_made = self.create_index(place, table, index);
                if !is_made && forced {
                    self.empty(place, table)?;
                    is_made = self.create_index(place, table, index);
                }
                if !is_made {
                    return Ok(());
                }
            }
            Migration::DropIndex(table, index) => {
                let name = self.plan.tables[table].index_name(index);
                self.nodes[place]
                    .app()
                    .execute_batch(&format!("DROP INDEX {name}"))
                    .expect("drop index");
            }
        }
        self.nodes[place].shadow.done.push(migration);
        Ok(())
    }

    /// Runs the rest of the plan's migrations, at the end of a run.
    pub fn migrate_all(&mut self, place: usize) -> Step {
        loop {
            let shadow = &self.nodes[place].shadow;
            let open = |m: &&Migration| !shadow.done.contains(m) && is_possible(shadow, **m);
            let Some(next) = self.plan.migrations.iter().find(open).copied() else {
                return Ok(());
            };
            self.apply_migration(place, next, true)?;
        }
    }

    pub fn cut_off(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        node.is_cut_off = !node.is_cut_off;
        node.drop_link();
        (0..node.readers.len()).for_each(|s| node.drop_reader(s));
        let cut_off = node.is_cut_off;
        if let Some(snapshots) = &self.snapshots {
            snapshots.bulletin.cut_off(place, cut_off);
        }
        self.say(format!("node {place}: cut off {cut_off}"));
    }

    pub fn set_clock(&mut self, place: usize) {
        let to = match self.random.below(5) {
            0 => self.random.between(0, 100_000_000),
            1 => self.now_ms + self.random.between(-YEAR_MS, YEAR_MS),
            2 => self.now_ms + self.random.between(-100_000, 100_000),
            _ => self.now_ms,
        };
        self.nodes[place].set_clock(to);
        self.say(format!("node {place}: clock set to {to}"));
    }

    pub fn power_loss(&mut self, place: usize) {
        if self.has_synced(place) {
            self.sync(place);
        }
        let Some(image) = self.nodes[place].image.clone() else {
            return;
        };
        self.model.doubt(place, image.written);
        let latest_ms = self.now_ms + SLIGHTLY_AHEAD_MS;
        let node = &mut self.nodes[place];
        let is_right = node.clock.time_ms().max(image.clock_ms) <= latest_ms;
        node.restore(&image);
        for table in 0..self.plan.tables.len() {
            let rows = node.by_life(&self.plan, table);
            for (key, stored) in node.versions(&self.plan, table) {
                let (row, at) = (rows.get(&key), (table, key));
                if row.is_none() == stored.deleted {
                    self.model.is_kept(&at, place, stored.version, row);
                }
            }
        }
        node.clock.reboot();
        if is_right {
            node.note_cut(latest_ms, image.clock_ms);
        }
        if self.random.percent(30) {
            let boot = self.random.between(0, 60_000);
            self.nodes[place].set_clock(boot);
        }
        self.say(format!("node {place}: power loss"));
    }

    /// The power fails for a moment. The application's writes are on the disk, their capture is
    /// not.
    pub fn flicker(&mut self, place: usize) -> Step {
        for _ in 0..1 + self.random.below(4) {
            let ms = self.random.between(0, 12_000);
            self.pass(ms);
            self.start(place)?;
            self.write(place);
            self.sync(place);
            self.capture(place)?;
            self.power_loss(place);
        }
        Ok(())
    }

    /// Puts an earlier copy of the file back.
    pub fn roll_back(&mut self, place: usize) {
        if self.nodes[place].backups.is_empty() {
            return;
        }
        let which = self.random.below(self.nodes[place].backups.len());
        let image = self.nodes[place].backups[which].clone();
        self.model.doubt(place, image.written);
        self.model.put_back(place);
        let node = &mut self.nodes[place];
        node.restore(&image);
        node.reserved = node.reservation();
        node.image = Some(image);
        node.backups.truncate(which + 1);
        self.say(format!("node {place}: database rolled back"));
    }

    /// A new node begins with a copy of this one's database.
    pub fn copy(&mut self, place: usize) -> Step {
        let new = self.nodes.len();
        if new == MOST_NODES {
            return Ok(());
        }
        let image = self.nodes[place].read_image(0);
        let shards = self.options.shards;
        let mut node = Node::new(new, 1000 + new as u64, self.folder(), self.now_ms, shards);
        node.restore(&image);
        node.shadow.deeds = Default::default(); // those of a different node
        self.nodes.push(node);
        self.start(new)?;
        self.say(format!("node {new}: begins as a copy of node {place}"));
        self.after(new)
    }

    pub fn restart_broker(&mut self) {
        let wiped = self.random.percent(if self.loses_all { 50 } else { 15 });
        if wiped {
            self.broker.wipe();
            if let Some(snapshots) = &self.snapshots {
                snapshots.bulletin.wipe();
            }
        }
        for shard in 0..self.options.shards as usize {
            let most = if self.loses_all { 1 } else { 5 };
            let count = [0, 0, 1, 2, 5][self.random.below(most)];
            self.broker.forget(shard, count);
            self.model.broker_lost |= wiped || count > 0;
        }
        if self.random.percent(80) {
            self.broker.find_ids();
        }
        for node in &mut self.nodes {
            node.drop_link();
            (0..node.readers.len()).for_each(|s| node.drop_reader(s));
        }
        let left: Vec<u64> = self.broker.streams.iter().map(|s| s.last()).collect();
        self.say(format!("broker restarts, wiped {wiped}, holds {left:?}"));
        let in_midst = self.snapshots.as_ref().is_some_and(|s| s.is_in_midst());
        if wiped && self.loses_all && !in_midst {
            for place in 0..self.nodes.len() {
                if self.random.percent(70) {
                    self.roll_back(place);
                }
            }
        }
    }
}

fn is_possible(shadow: &Shadow, migration: Migration) -> bool {
    match migration {
        Migration::Create(table) => shadow.columns[table].is_none(),
        Migration::AddColumn(table, _)
        | Migration::CreateIndex(table, _)
        | Migration::DropIndex(table, _) => shadow.columns[table].is_some(),
    }
}

/// Whether a table has no rows and no triggers of ours, so that nobody saw where its rows went.
pub fn is_emptied(app: &rusqlite::Connection, table: &str) -> bool {
    let exists = |text: &str| {
        let mut statement = app.prepare_cached(text).expect("select");
        statement.exists([]).expect("select")
    };
    let trigger = format!(
        "SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = '{table}' COLLATE NOCASE
         AND name GLOB '__harmonylite__*_insert'"
    );
    !exists(&format!("SELECT 1 FROM {}", quote(table))) && !exists(&trigger)
}

/// The 12 steps of <https://www.sqlite.org/lang_altertable.html#otheralter>.
fn rebuild_text(node: &Node, plan: &crate::plan::Plan, table: usize) -> String {
    let spec = &plan.tables[table];
    let columns = node.shadow.columns[table].as_ref().expect("here");
    let names: Vec<&str> = columns
        .iter()
        .map(|c| spec.columns[*c].name.as_str())
        .collect();
    let (names, name) = (names.join(", "), quote(&spec.name));
    let mut text = format!(
        "{}; INSERT INTO rebuilt({names}) SELECT {names} FROM {name}; DROP TABLE {name};
         ALTER TABLE rebuilt RENAME TO {name};",
        spec.create("rebuilt", columns)
    );
    for (i, index) in spec.indexes.iter().enumerate() {
        if plan.has_index(&node.shadow.done, table, i) {
            text += &format!("{index};");
        }
    }
    text
}

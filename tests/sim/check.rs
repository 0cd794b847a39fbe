//! The end of a run: every node reaches every other one, comes to rest, and is checked.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::model::{BEFORE, Row};
use crate::node::{Node, Stored};
use crate::numbered::{number, row_of};
use crate::observe;
use crate::registry::LEASE_MS;
use crate::world::{Step, World};

/// More rounds than any run needs to come to rest.
const ROUNDS: usize = 400;

/// Rounds within which a node that lacks something asks for it and gets an answer.
const PATIENCE: usize = 6;

/// A node's content of one table.
struct Held {
    rows: BTreeMap<String, Row>,
    /// The rows that are displaced, or wait for their number.
    displaced: BTreeMap<String, Row>,
    versions: BTreeMap<String, Stored>,
}

impl Held {
    /// Whether a row from before has this number.
    fn has_before(&self, number: &str) -> bool {
        let before = format!("{number}{BEFORE}");
        self.versions.keys().any(|life| life.starts_with(&before))
    }
}

impl World {
    pub fn heal(&mut self) -> Step {
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.calm = true;
            snapshots.objects.heal();
        }
        self.note_owed();
        for place in 0..self.nodes.len() {
            if self.nodes[place].is_cut_off {
                self.cut_off(place);
            }
            if self.nodes[place].shared.is_none() {
                self.start(place)?;
            }
            if self.nodes[place].waits_in_vain() {
                self.nodes[place].drop_link();
            }
            self.nodes[place].clock.tick(std::time::Duration::ZERO);
        }
        if self.rekeyed.is_some() {
            self.end_work()?;
            self.come_to_rest()?;
            self.check_former()?;
        }
        self.end_migrations()?;
        self.say("healed".into());
        self.come_to_rest()
    }

    /// Each node makes the tables and migrations that it lacks.
    pub fn end_migrations(&mut self) -> Step {
        for place in 0..self.nodes.len() {
            self.end_rebuild(place)?;
            // A node that shares no table with the others waits for ever: its database seems to
            // belong to a different application.
            let shared = self.plan.tables.iter().position(|t| !t.is_late);
            for table in 0..self.plan.tables.len() {
                let absent = self.nodes[place].shadow.columns[table].is_none();
                let is_wanted = self.plan.complete || shared == Some(table);
                if absent && is_wanted && !self.plan.tables[table].is_late {
                    self.create(place, table);
                }
            }
            if self.plan.complete {
                self.migrate_all(place)?;
            }
        }
        Ok(())
    }

    pub fn come_to_rest(&mut self) -> Step {
        let mut quiet = 0;
        for _ in 0..ROUNDS {
            quiet = if self.round()? { quiet + 1 } else { 0 };
            if let Some(wait) = self.nodes.iter().filter_map(|n| n.db().next_check()).max() {
                self.pass(wait.as_millis() as i64 + 1);
                quiet = 0;
            }
            let lacks = self.nodes.iter().any(|n| n.db().has_gap());
            if quiet > if lacks { PATIENCE } else { 0 } {
                return Ok(());
            }
        }
        let streams = || self.broker.streams.iter();
        let positions = |n: &Node| {
            let all = streams().map(|s| n.db().position(&s.name));
            format!("{}: {:?}", n.id, all.collect::<Vec<_>>())
        };
        let positions: Vec<String> = self.nodes.iter().map(positions).collect();
        Err(format!("does not come to rest: {}", positions.join("\n")))
    }

    /// Every node does everything there is to do. True if there was nothing to do.
    fn round(&mut self) -> Result<bool, String> {
        let stored = |w: &World| w.broker.streams.iter().map(|s| s.last()).sum::<u64>();
        let before = (stored(self), self.model.total());
        let mut quiet = true;
        for place in 0..self.nodes.len() {
            let ms = self.snapshots.as_ref().map_or(10, |_| LEASE_MS / 2);
            self.pass_captured(ms)?;
            self.connect(place)?;
            for turn in 0.. {
                self.capture(place)?;
                if !self.nodes[place].db().has_more() {
                    break;
                }
                if turn > 10_000 {
                    return Err(format!("node {place}: capture never comes to an end"));
                }
            }
            quiet &= !self.send_all(place)?;
            // Reads on all shards: a stream may drop messages that are sent meanwhile before a
            // shard that was left out reads them.
            for reader in 0..self.nodes.len() {
                quiet &= !self.read_to_the_end(reader)?;
            }
            quiet &= self.keep_to_the_end(place)?;
            self.nodes[place].db().flush().map_err(|e| e.to_string())?;
        }
        let is_empty = |n: &crate::node::Node| n.shared().lock().outbox.is_empty();
        quiet &= self.nodes.iter().all(is_empty);
        Ok(quiet && before == (stored(self), self.model.total()))
    }

    /// Sends until the broker has acknowledged everything. True if there was something to send.
    pub fn send_all(&mut self, place: usize) -> Result<bool, String> {
        let mut found = false;
        loop {
            let sent = self.send_one(place)?;
            let carried = self.carry_one(place, false);
            let acked = self.take_ack(place);
            if !sent && !carried && !acked {
                return Ok(found);
            }
            found = true;
        }
    }

    /// Reads all streams to their end. True if there was something to read.
    pub fn read_to_the_end(&mut self, place: usize) -> Result<bool, String> {
        let mut found = false;
        for shard in 0..self.options.shards as usize {
            loop {
                self.capture_all(place)?;
                let Some(read) = self.nodes[place].read(shard, 10, &self.broker)? else {
                    break;
                };
                let node = &mut self.nodes[place];
                observe::frames(node, &self.plan, &mut self.model, &read.captured.frames)?;
                observe::given_way(node, &self.plan, &mut self.model);
                node.learn_id(&self.model)?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Runs the scheduler until it rests. True if it had nothing to do.
    fn keep_to_the_end(&mut self, place: usize) -> Result<bool, String> {
        let Some(snapshots) = self.snapshots.clone() else {
            return Ok(true);
        };
        let before = snapshots.objects.written();
        let was_done = self.is_in_order(place);
        self.capture_all(place)?;
        self.keep(place)?;
        let written = snapshots.objects.written() > before;
        Ok(was_done && self.is_in_order(place) && !written)
    }

    /// Whether the node may publish, unless it has no tables, and has no gap, unless the node that
    /// could close it is gone.
    fn is_in_order(&self, place: usize) -> bool {
        let node = &self.nodes[place];
        let db = node.db();
        let may_publish = node.shared().may_publish(&db) || db.tables().is_empty();
        may_publish && (!db.has_gap() || self.lacks_somebody())
    }

    /// Whether a node published under an id that no node has any more, because a duplicate node
    /// took a fresh one.
    fn lacks_somebody(&self) -> bool {
        let publishers = self.snapshots.as_ref().map(|s| s.bulletin.publishers());
        let is_here = |id: &u64| self.nodes.iter().any(|n| n.id == *id);
        !publishers.iter().flatten().all(is_here)
    }

    pub fn check(&mut self) -> Step {
        for place in 0..self.nodes.len() {
            let node = &self.nodes[place];
            for (what, allowed) in [
                ("__harmonylite___unsent", 0),
                ("__harmonylite___change_log_global", 0),
                ("__harmonylite___quarantine", 0),
                (
                    "__harmonylite___held",
                    if self.plan.complete { 0 } else { i64::MAX },
                ),
            ] {
                let found = node.count(what);
                if found > allowed {
                    let state = node.publisher_state(&self.broker);
                    return Err(format!(
                        "node {place}: {found} rows are left in {what}; {state}\n{}",
                        node.held_rows()
                    ));
                }
            }
            let integrity: String = node
                .app()
                .query_row("PRAGMA integrity_check", [], |r| r.get(0))
                .map_err(|e| e.to_string())?;
            if integrity != "ok" {
                return Err(format!("node {place}: {integrity}"));
            }
        }
        for table in 0..self.plan.tables.len() {
            self.check_table(table)?;
        }
        self.check_rekeyed()
    }

    fn held(&mut self, place: usize, table: usize) -> Result<Held, String> {
        let node = &self.nodes[place];
        Ok(Held {
            rows: node.by_life(&self.plan, table),
            displaced: self.displaced(node, table)?,
            versions: node.versions(&self.plan, table),
        })
    }

    fn check_table(&mut self, table: usize) -> Step {
        let name = self.plan.tables[table].name.clone();
        let mut first: Option<(usize, Held)> = None;
        for place in 0..self.nodes.len() {
            if self.nodes[place].shadow.columns[table].is_none() {
                continue;
            }
            let held = self.held(place, table)?;
            self.check_node(place, table, &held)
                .map_err(|e| format!("node {place}: {name} {e}"))?;
            let Some((other, known)) = &first else {
                first = Some((place, held));
                continue;
            };
            self.check_equal(table, &[known, &held])
                .map_err(|e| format!("nodes {other} and {place} differ: {name} {e}"))?;
        }
        Ok(())
    }

    /// Checks one node by itself: rows, versions and model fit each other.
    fn check_node(&mut self, place: usize, table: usize, held: &Held) -> Step {
        let spec = self.nodes[place]
            .db()
            .tables()
            .get(&self.plan.tables[table].name.to_ascii_lowercase())
            .cloned();
        let spec = spec.ok_or("is not known to the core")?;
        let live: BTreeMap<&String, &Row> = held.rows.iter().chain(&held.displaced).collect();
        if live.len() != held.rows.len() + held.displaced.len() {
            return Err("has a row both in the table and aside".into());
        }
        let mut keys: Vec<&String> = live.keys().copied().chain(held.versions.keys()).collect();
        let written = self
            .model
            .keys()
            .filter(|(t, _)| *t == table)
            .map(|(_, k)| k);
        keys.extend(written);
        keys.sort();
        keys.dedup();
        for key in keys {
            let at = (table, key.clone());
            let stored = held.versions.get(key);
            if stored.is_none() && held.has_before(key) {
                continue; // the life without a birth is lost, and this is checked by its own name
            }
            let report = |e: String| format!("[{key}] {e}\n{}", self.model.history(&at));
            let version = stored.map(|s| (s.version, s.deleted));
            self.model.check_version(&at, version).map_err(report)?;
            let owed = self.owed.get(&at).filter(|_| !self.model.is_dropped(&at));
            if owed.is_some_and(|owed| version.is_none_or(|(v, _)| v < *owed)) {
                return Err(report(format!(
                    "is {version:?}, but a snapshot had {owed:?}"
                )));
            }
            let lives = stored.is_some_and(|s| !s.deleted);
            if lives != live.contains_key(key) {
                return Err(report(format!(
                    "lives {lives} by version {version:?}, but {:?}",
                    live.get(key)
                )));
            }
            let Some(row) = live.get(key) else { continue };
            for (column, value) in row.iter().enumerate() {
                if let Some(value) = value {
                    self.model
                        .check_value(&self.plan, &at, column, value, version.map(|v| v.0))
                        .map_err(report)?;
                }
            }
            let hash = self.content_hash(table, &spec, row);
            if stored.is_some_and(|s| s.hash != hash) {
                return Err(report("has another hash than its content".into()));
            }
        }
        self.check_unique(place, table, held)
    }

    /// Checks that the rows in the table are those that the rule admits: by version, from the
    /// highest down.
    fn check_unique(&self, place: usize, table: usize, held: &Held) -> Step {
        let spec = &self.plan.tables[table];
        if spec.indexes.is_empty() {
            return match held.displaced.is_empty() {
                true => Ok(()),
                false if spec.is_numbered => self.check_numbers(held),
                false => Err("has displaced rows without a UNIQUE index".into()),
            };
        }
        let node = &self.nodes[place];
        let columns = node.shadow.columns[table].as_ref().expect("here");
        let judge = Connection::open_in_memory().map_err(|e| e.to_string())?;
        judge
            .execute_batch("PRAGMA foreign_keys = OFF")
            .map_err(|e| e.to_string())?;
        judge
            .execute_batch(&spec.create(&spec.name, columns))
            .map_err(|e| e.to_string())?;
        for (i, index) in spec.indexes.iter().enumerate() {
            if self.plan.has_index(&node.shadow.done, table, i) {
                judge.execute_batch(index).map_err(|e| e.to_string())?;
            }
        }
        self.check_numbers(held)?;
        let all = held.rows.iter().chain(&held.displaced);
        let mut live: Vec<(&String, &Row)> = all
            .filter(|(key, _)| held.versions[*key].is_shown)
            .collect();
        live.sort_by_key(|(key, row)| {
            let key_values: Vec<_> = row[..spec.key.len()]
                .iter()
                .flatten()
                .map(|v| v.borrow())
                .collect();
            let order = if spec.key.len() == 2 && spec.create("t", &[0, 1]).contains("(id2, id)") {
                vec![1, 0]
            } else {
                (0..key_values.len()).collect()
            };
            let collations = order.iter().map(|i| spec.key[*i]);
            let ordered: Vec<_> = order.iter().map(|i| key_values[*i]).collect();
            let bytes = harmonylite::model::key::key_bytes(ordered.into_iter(), collations);
            std::cmp::Reverse((held.versions[*key].version, bytes))
        });
        let names: Vec<&str> = columns
            .iter()
            .map(|c| spec.columns[*c].name.as_str())
            .collect();
        let places: Vec<String> = (1..=names.len()).map(|i| format!("?{i}")).collect();
        let text = format!(
            "INSERT OR IGNORE INTO {}({}) VALUES ({})",
            harmonylite::database::schema::quote(&spec.name),
            names.join(", "),
            places.join(", ")
        );
        let mut insert = judge.prepare(&text).map_err(|e| e.to_string())?;
        for (key, row) in live {
            let values = columns.iter().filter_map(|c| row[*c].as_ref());
            let admitted = insert
                .execute(rusqlite::params_from_iter(values))
                .map_err(|e| e.to_string())?
                == 1;
            if admitted != held.rows.contains_key(key) {
                return Err(format!(
                    "[{key}] {row:?} should be in the table: {admitted}"
                ));
            }
        }
        Ok(())
    }

    /// Checks that each number has its newest life, and that no other life is in the table.
    fn check_numbers(&self, held: &Held) -> Step {
        let mut newest = BTreeMap::new();
        let live = || held.versions.iter().filter(|(_, s)| !s.deleted);
        for (life, stored) in live() {
            let of = newest
                .entry(number(life))
                .or_insert((stored.version, stored.birth));
            *of = (*of).max((stored.version, stored.birth));
        }
        for (life, stored) in live() {
            let is_newest = newest[number(life)] == (stored.version, stored.birth);
            if is_newest != stored.is_shown {
                return Err(format!("[{life}] should have its number: {is_newest}"));
            }
        }
        Ok(())
    }

    /// The rows that are displaced, or wait for their number.
    pub fn displaced(&self, node: &Node, table: usize) -> Result<BTreeMap<String, Row>, String> {
        let spec = &self.plan.tables[table];
        let mut statement = node
            .app()
            .prepare(
                "SELECT row FROM __harmonylite___displaced JOIN __harmonylite___tables ON id \
                = table_id WHERE name = ?1",
            )
            .map_err(|e| e.to_string())?;
        let mut found = BTreeMap::new();
        let mut rows = statement.query([&spec.name]).map_err(|e| e.to_string())?;
        while let Some(row) = rows.next().map_err(|e| e.to_string())? {
            let bytes: Vec<u8> = row.get(0).map_err(|e| e.to_string())?;
            let here = node.shadow.columns[table].as_ref().expect("here");
            let all = row_of(spec, here, &bytes);
            let key: Vec<_> = all[..spec.key.len()].iter().flatten().cloned().collect();
            found.insert(spec.key_text(&key), all);
        }
        let mut found = node.lives_of(&self.plan, table, found);
        found.extend(node.waiting(&self.plan, table));
        Ok(found)
    }

    /// Checks that two nodes hold the same, in the columns that both have.
    fn check_equal(&self, table: usize, both: &[&Held; 2]) -> Step {
        let [a, b] = both;
        let version = |h: &Held, key: &String| h.versions.get(key).map(|s| (s.version, s.deleted));
        for key in a.versions.keys().chain(b.versions.keys()) {
            let report =
                |e: String| format!("[{key}] {e}\n{}", self.model.history(&(table, key.clone())));
            let (va, vb) = (version(a, key), version(b, key));
            // One of the nodes dropped the tombstone, and may have learned of an earlier delete
            // since.
            let lives = |v: Option<(_, bool)>| v.is_some_and(|(_, deleted)| !deleted);
            let is_gone = !lives(va) && !lives(vb);
            let is_dropped = is_gone && self.model.is_dropped(&(table, key.clone()));
            if va != vb && !is_dropped {
                return Err(report(format!("versions {va:?} and {vb:?}")));
            }
            let (ra, rb) = (a.rows.get(key), b.rows.get(key));
            let differ = match (ra, rb) {
                (Some(ra), Some(rb)) => ra
                    .iter()
                    .zip(rb)
                    .any(|(x, y)| x.is_some() && y.is_some() && x != y),
                _ => ra.is_some() != rb.is_some(),
            };
            if differ {
                return Err(report(format!("{ra:?} and {rb:?}")));
            }
        }
        Ok(())
    }
}

//! Checks every announced snapshot: each row must be as its version says. Nodes that merge a
//! snapshot trust it, and messages of a stream repair most mistakes in it before the end of a run
//! would show them.

use std::collections::BTreeMap;

use harmonylite::database::table::Table;
use harmonylite::db_file::access::FileAccess;
use harmonylite::model::frame::{self, Frame};
use harmonylite::model::manifest::SnapshotEntry;
use harmonylite::model::version::{HLC_BEFORE, Version};
use harmonylite::snapshot::transfer;
use harmonylite::snapshot::watch::Nobody;

use crate::broker::Message;
use crate::keeping::CLUSTER;
use crate::model::{Row, RowId};
use crate::node::{Node, Shadow};
use crate::numbered::{life, number};
use crate::plan::Plan;
use crate::world::{Step, World};

/// The place of the node that opens snapshots for the check.
const AUDITOR: usize = 99;

/// Of the rows in `sent`, those that the node has in that version or a later one.
fn of_those(sent: Vec<(RowId, Version)>, node: &Node, plan: &Plan) -> BTreeMap<RowId, Version> {
    let mut found = BTreeMap::new();
    for table in 0..plan.tables.len() {
        let versions = node.versions(plan, table);
        // A row from before HarmonyLite gives its version up.
        let of_table = sent
            .iter()
            .filter(|((t, _), v)| *t == table && v.hlc != HLC_BEFORE);
        for (at, version) in of_table {
            if versions.get(&at.1).is_some_and(|s| s.version >= *version) {
                let owed = found.entry(at.clone()).or_insert(*version);
                *owed = version.max(owed).to_owned();
            }
        }
    }
    found
}

impl World {
    /// Checks the newest snapshot, once.
    pub fn audit(&mut self) -> Step {
        let Some(snapshots) = &self.snapshots else {
            return Ok(());
        };
        let Some(entry) = snapshots.bulletin.announced() else {
            return Ok(());
        };
        if !self.audited.insert(entry.name.clone()) {
            return Ok(());
        }
        let shards = self.options.shards;
        let mut node = Node::new(AUDITOR, 3000, self.folder(), self.now_ms, shards);
        let brought = snapshots.objects.quietly(|store| {
            let file =
                transfer::fetch(&entry, (node.path(), &FileAccess::OURS), store, &mut Nobody)?;
            transfer::put_in_place(file, node.path(), &mut Nobody)
        });
        if brought.is_err() {
            return Ok(()); // spoilt since
        }
        let sent = self.sent_before(&entry);
        node.open_app();
        node.shadow = Shadow::read(node.app(), &self.plan);
        let seen = node
            .start(&self.options, true)
            .and_then(|()| self.look_into(&node));
        self.in_snapshots
            .insert(entry.name.clone(), of_those(sent, &node, &self.plan));
        node.crash();
        node.app = None;
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", node.path().display()));
        }
        seen.map_err(|e| format!("snapshot {CLUSTER}/{}: {e}", entry.name))
    }

    /// The rows that the streams brought up to the positions of the snapshot.
    fn sent_before(&self, entry: &SnapshotEntry) -> Vec<(RowId, Version)> {
        let mut sent = Vec::new();
        for stream in &self.broker.streams {
            let place = entry.streams.get(&stream.name);
            if let Some(place) = place.filter(|p| p.created == stream.created) {
                sent.extend(stream.stored(place.seq).flat_map(|m| self.rows_in(m)));
            }
        }
        sent
    }

    /// Records the rows of the newest snapshot that came through streams: every node must have them
    /// in the end, even if the broker lost everything and the nodes that had read them were put
    /// back.
    pub fn note_owed(&mut self) {
        let Some(snapshots) = self.snapshots.as_ref().filter(|_| !self.broker.forgot) else {
            return; // who is put back does not see that, and nobody else may have it
        };
        let manifest = snapshots
            .objects
            .quietly(|store| transfer::read_manifest(store, CLUSTER));
        let newest = manifest.ok().flatten().and_then(|m| m.newest().cloned());
        let is_sound = |entry: &SnapshotEntry| {
            let fetched = snapshots.objects.quietly(|store| {
                let path = self.folder().join("owed");
                transfer::fetch(entry, (&path, &FileAccess::OURS), store, &mut Nobody).map(drop)
            });
            fetched.is_ok()
        };
        if let Some(newest) = newest.filter(is_sound) {
            self.owed = self.in_snapshots.remove(&newest.name).unwrap_or_default();
        }
    }

    fn look_into(&self, node: &Node) -> Step {
        for table in 0..self.plan.tables.len() {
            let plan = &self.plan.tables[table];
            let name = plan.name.to_ascii_lowercase();
            let spec = node.db().tables().get(&name).cloned();
            let (Some(spec), true) = (spec, node.shadow.columns[table].is_some()) else {
                continue;
            };
            let (rows, aside) = (
                node.by_life(&self.plan, table),
                self.displaced(node, table)?,
            );
            let versions = node.versions(&self.plan, table);
            let is_damaged = |key: &String| self.damaged.contains(&(table, key.clone()));
            let lacks = |key: &&String| !versions.contains_key(*key) && !is_damaged(key);
            if let Some(key) = rows.keys().find(lacks) {
                return Err(format!("{} [{key}] has no version", plan.name));
            }
            for (key, stored) in versions {
                if self.damaged.contains(&(table, key.clone())) {
                    continue;
                }
                let row = rows.get(&key).or_else(|| aside.get(&key));
                let report = |e: &str| {
                    let history = self.model.history(&(table, key.clone()));
                    format!(
                        "{} [{key}] is {row:?}, {e}: {stored:?}\n{history}",
                        plan.name
                    )
                };
                match row {
                    Some(row) if self.content_hash(table, &spec, row) == stored.hash => {}
                    None if stored.deleted => {}
                    Some(_) => return Err(report("which is not what its version says")),
                    None => return Err(report("but lives by its version")),
                }
            }
        }
        Ok(())
    }

    pub fn content_hash(&self, table: usize, spec: &Table, row: &Row) -> i64 {
        let columns = &self.plan.tables[table].columns;
        let value = |c: &harmonylite::database::schema::Column| {
            let same = |name: &str| {
                name.eq_ignore_ascii_case(&c.lower) || c.lower == "\0rowid" && name == "rowid"
            };
            let place = columns.iter().position(|p| same(&p.name));
            let value = &row[place.expect("a column of the plan")];
            value.as_ref().expect("a column of this node").borrow()
        };
        spec.content_hash(i64::MAX, spec.schema.columns.iter().map(value))
    }
}

impl World {
    /// A node that knows of no gap must have every row that it passed in the streams.
    pub fn lacks_nothing(&self, place: usize) -> Step {
        let node = &self.nodes[place];
        // One of two nodes with one id may be taken for the other.
        if self.model.duplicates || node.db().has_gap() || node.readers.iter().any(Option::is_none)
        {
            return Ok(()); // it has not looked yet whether the streams are what they were
        }
        let tables = 0..self.plan.tables.len();
        let versions: Vec<_> = tables.map(|t| node.versions(&self.plan, t)).collect();
        for stream in &self.broker.streams {
            let position = node.db().position(&stream.name);
            if position.created != stream.created || stream.id(position.seq) != position.id {
                continue; // that of a snapshot: it will look again
            }
            for (at, version) in stream.stored(position.seq).flat_map(|m| self.rows_in(m)) {
                let (table, key) = &at;
                let known = versions[*table].get(key);
                // A row from before may be the life without a birth here.
                let known = known.or_else(|| versions[*table].get(number(key)));
                // A damaged row that came by a snapshot has the lowest version until it is mended.
                let is_here = known.is_some_and(|s| s.version >= version)
                    || !self.model.is_certain(&at, version)
                    || self.damaged.contains(&at);
                let name = self.plan.tables[*table].name.to_ascii_lowercase();
                let held = name.replace('\'', "''");
                let held = format!("__harmonylite___held WHERE table_name = '{held}'");
                let is_new = !node.db().tables().contains_key(&name);
                if !is_here && !is_new && !self.model.is_dropped(&at) && node.count(&held) == 0 {
                    return Err(format!(
                        "node {place}: {name} [{key}] is {known:?}, but {version} is in what it \
                         passed, and it lacks nothing",
                    ));
                }
            }
        }
        Ok(())
    }

    /// The versions in a message; none for a part, which tells nothing alone.
    fn rows_in(&self, message: &Message) -> Vec<(RowId, Version)> {
        let mut found = Vec::new();
        let Ok(raw) = frame::unpack(&message.data) else {
            return found;
        };
        let Ok(Frame::Rows { nodes, tables, .. }) = Frame::decode(&raw) else {
            return found;
        };
        for part in &tables {
            let same = |t: &crate::plan::Table| t.name.eq_ignore_ascii_case(part.name);
            let Some(table) = self.plan.tables.iter().position(same) else {
                continue;
            };
            let spec = &self.plan.tables[table];
            let key_names = spec.columns.iter().take(spec.key.len());
            let place = |name: &str| {
                let same =
                    |c: &&str| c.eq_ignore_ascii_case(name) || **c == *"\0rowid" && name == "rowid";
                part.columns.iter().position(same)
            };
            let key_at: Option<Vec<usize>> = key_names.map(|c| place(&c.name)).collect();
            let Some(key_at) = key_at else { continue };
            let (mut rows, mut row) = (part.rows(&nodes), frame::Row::default());
            while rows.next(&mut row).unwrap_or(false) {
                let key: Option<Vec<_>> = key_at
                    .iter()
                    .map(|i| row.values.get(*i).map(|v| (*v).to_owned()))
                    .collect();
                if let Some(key) = key {
                    let life = life(&spec.key_text(&key), row.birth);
                    found.push(((table, life), row.version));
                }
            }
        }
        found
    }
}

//! A look into every snapshot that is announced: each row is what its version says. Nodes that merge
//! it take that on trust, and what is wrong in it is mostly put right by what comes through a stream.

use std::io;
use std::time::Duration;

use harmonylite::database::table::Table;
use harmonylite::snapshot::transfer::{self, Watch};

use crate::keeping::CLUSTER;
use crate::model::Row;
use crate::node::{Node, Shadow};
use crate::world::{Step, World};

/// The auditor's place.
const AUDITOR: usize = 99;

struct Nobody;

impl Watch for Nobody {
    fn progress(&mut self, _: &'static str, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn pause(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

impl World {
    /// Looks into the newest snapshot, if that was not done before.
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
            let file = transfer::fetch(&entry, node.path(), store, &mut Nobody)?;
            transfer::put_in_place(file, node.path())
        });
        if brought.is_err() {
            return Ok(()); // spoilt since
        }
        node.open_app();
        node.shadow = Shadow::read(node.app(), &self.plan);
        let seen = node
            .start(&self.options, true)
            .and_then(|()| self.look_into(&node));
        node.crash();
        node.app = None;
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", node.path().display()));
        }
        seen.map_err(|e| format!("snapshot {CLUSTER}/{}: {e}", entry.name))
    }

    fn look_into(&self, node: &Node) -> Step {
        for table in 0..self.plan.tables.len() {
            let plan = &self.plan.tables[table];
            let name = plan.name.to_ascii_lowercase();
            let spec = node.db().tables().get(&name).cloned();
            let (Some(spec), true) = (spec, node.shadow.columns[table].is_some()) else {
                continue;
            };
            let (rows, aside) = (node.rows(&self.plan, table), self.displaced(node, table)?);
            let versions = node.versions(&self.plan, table);
            for key in rows.keys().filter(|k| !versions.contains_key(*k)) {
                return Err(format!("{} [{key}] has no version", plan.name));
            }
            for (key, stored) in versions {
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
        spec.content_hash(spec.schema.columns.iter().map(value))
    }
}

//! Nodes that are added during a run.

use harmonylite::db_file::access::FileAccess;
use harmonylite::snapshot::error::TransferError;
use harmonylite::snapshot::transfer;
use harmonylite::snapshot::watch::Nobody;
use rusqlite::Connection;

use crate::keeping::CLUSTER;
use crate::node::{Node, Shadow};
use crate::plan::{Migration, Plan};
use crate::world::{Step, World};

/// Most nodes of a run: more of them take longer and find nothing else.
pub const MOST_NODES: usize = 5;

impl World {
    /// Adds a node: without a file, with an empty one, with tables, or with rows of its own.
    pub fn arrive(&mut self) -> Step {
        let new = self.nodes.len();
        if new >= MOST_NODES {
            return Ok(());
        }
        let shards = self.options.shards;
        let mut node = Node::new(new, 2000 + new as u64, self.folder(), self.now_ms, shards);
        let how = self.random.below(4);
        if how == 0 {
            let brought = self.bring(&node);
            let words = brought
                .as_ref()
                .err()
                .map_or(String::new(), ToString::to_string);
            let brought = brought.ok();
            let text = format!("node {new}: brings a snapshot: {brought:?}");
            self.say_also(text, &words);
        }
        node.open_app();
        node.shadow = Shadow::read(node.app(), &self.plan);
        self.nodes.push(node);
        match &mut self.rekeyed {
            Some(rekeyed) => {
                let is_migrated = self.random.percent(50);
                let node = &self.nodes[new];
                rekeyed.arrive(node, (how > 1).then_some(is_migrated));
            }
            None if how > 1 => self.create_all(new),
            None => {}
        }
        if how == 3 && self.rekeyed.is_none() {
            self.write_before(new);
        }
        self.start(new)?;
        self.say(format!("node {new}: is new, way {how}"));
        self.after(new)
    }

    /// Begins with a snapshot as `daemon::snapshots` does. True if there was one.
    fn bring(&self, node: &Node) -> Result<bool, TransferError> {
        let Some(snapshots) = &self.snapshots else {
            return Ok(false);
        };
        let mut store = snapshots.objects.open()?;
        let manifest = transfer::read_manifest(&mut *store, CLUSTER)?;
        for entry in manifest.into_iter().flat_map(|m| m.snapshots) {
            let path = node.path();
            let placed =
                transfer::fetch(&entry, (path, &FileAccess::OURS), &mut *store, &mut Nobody)
                    .and_then(|file| transfer::put_in_place(file, path, &mut Nobody));
            match placed {
                Ok(_) => return Ok(true),
                Err(TransferError::Bad { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }
}

impl Node {
    /// Reads the schema anew: a snapshot may have brought tables.
    pub fn learn_schema(&mut self, plan: &Plan) {
        if self.shadow.columns.iter().any(Option::is_none) {
            let found = Shadow::read(self.app(), plan);
            (self.shadow.columns, self.shadow.done) = (found.columns, found.done);
        }
    }
}

impl Shadow {
    /// The state of the schema in a database.
    pub fn read(app: &Connection, plan: &Plan) -> Shadow {
        let mut shadow = Shadow {
            columns: vec![None; plan.tables.len()],
            ..Shadow::default()
        };
        for (number, table) in plan.tables.iter().enumerate() {
            let mut list = app
                .prepare("SELECT name FROM pragma_table_info(?1)")
                .expect("pragma");
            let names: Vec<String> = list
                .query_map([&table.name], |r| r.get(0))
                .expect("pragma")
                .collect::<rusqlite::Result<_>>()
                .expect("pragma");
            if names.is_empty() {
                continue;
            }
            let mut columns: Vec<usize> = if table.is_rowid { vec![0] } else { vec![] };
            let known = |name: &String| table.columns.iter().position(|c| c.name == *name);
            columns.extend(names.iter().filter_map(known));
            let has_index = |index: usize| {
                let text = "SELECT 1 FROM sqlite_schema WHERE type = 'index' AND sql = ?1";
                let mut found = app.prepare(text).expect("schema");
                found.exists([&table.indexes[index]]).expect("schema")
            };
            let done = |migration: &Migration| match *migration {
                Migration::Create(t) => t == number,
                Migration::AddColumn(t, column) => t == number && columns.contains(&column),
                Migration::CreateIndex(t, index) => t == number && has_index(index),
                Migration::DropIndex(t, index) => t == number && !has_index(index),
            };
            let made = plan.migrations.iter().copied().filter(done);
            shadow.done.extend(made);
            shadow.columns[number] = Some(columns);
        }
        shadow
    }
}

//! Writes of the application between a transaction of the core that is put off and its next try.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::events::is_emptied;
use crate::model::Row;
use crate::node::{connect, is_contested, rows, transact};
use crate::plan::Table;
use crate::random::Random;
use crate::workload::{self, Statement};
use crate::world::World;

/// Percentage of captured transactions for which such a write is drafted.
const PERCENT: usize = 40;

/// A write that a node's application is to do, and after it the outcome.
#[derive(Clone, Default)]
pub struct Meanwhile(Arc<Mutex<Option<Draft>>>);

pub struct Draft {
    path: PathBuf,
    time_ms: i64,
    /// Statements on the first of the tables.
    statements: Vec<Statement>,
    tables: Vec<Part>,
    is_written: bool,
}

/// A table: its number, and its rows before and after.
struct Part {
    table: usize,
    spec: Table,
    columns: Vec<usize>,
    is_contested: bool,
    before: BTreeMap<String, Row>,
    after: BTreeMap<String, Row>,
}

impl Meanwhile {
    fn draft(&self) -> MutexGuard<'_, Option<Draft>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes; only the first call does.
    pub fn run(&self) {
        if let Some(draft) = self.draft().as_mut().filter(|draft| !draft.is_written) {
            draft.write();
        }
    }
}

impl Draft {
    fn write(&mut self) {
        self.is_written = true;
        let app = connect(&self.path);
        for part in &mut self.tables {
            part.is_contested = is_contested(&app, &part.spec);
            part.before = rows(&app, &part.spec, &part.columns);
        }
        transact(&app, self.time_ms, |app| {
            for (text, values) in &self.statements {
                if app.is_autocommit() {
                    return;
                }
                let done = app.execute(text, rusqlite::params_from_iter(values));
                let code = done.err().and_then(|e| e.sqlite_error_code());
                let is_lawful = |c| c == rusqlite::ErrorCode::ConstraintViolation;
                assert!(code.is_none_or(is_lawful), "{code:?}: {text}");
            }
            // No transaction may empty a table here, as in other writes.
            let is_emptied = |p: &Part| !p.before.is_empty() && is_emptied(app, &p.spec.name);
            if !app.is_autocommit() && self.tables.iter().any(is_emptied) {
                app.execute_batch("ROLLBACK").expect("rollback");
            }
        });
        for part in &mut self.tables {
            part.after = rows(&app, &part.spec, &part.columns);
        }
    }
}

impl World {
    /// Drafts a write for the case that the node's next transaction is put off. Its random numbers
    /// are drawn apart, so that the rest of the run stays the same.
    pub fn draft(&mut self, place: usize) {
        let mut random = Random::new(self.trace.wrapping_add(place as u64));
        let tables = self.tables(place);
        if tables.is_empty() || self.rekeyed.is_some() || !random.percent(PERCENT) {
            return;
        }
        let node = &self.nodes[place];
        let part = |table: usize| Part {
            table,
            spec: self.plan.tables[table].clone(),
            columns: node.shadow.columns[table].clone().unwrap_or_default(),
            is_contested: false,
            before: BTreeMap::new(),
            after: BTreeMap::new(),
        };
        let first = *random.pick(&tables);
        let others = tables.iter().filter(|table| **table != first);
        let tables: Vec<Part> = [&first]
            .into_iter()
            .chain(others)
            .map(|t| part(*t))
            .collect();
        *node.meanwhile.draft() = Some(Draft {
            path: node.path().to_owned(),
            time_ms: node.clock.time_ms(),
            statements: workload::statements(&tables[0].spec, &tables[0].columns, &mut random),
            tables,
            is_written: false,
        });
    }

    /// Records the outcome of the draft.
    pub fn note_draft(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        let draft = node.meanwhile.draft().take();
        let Some(draft) = draft.filter(|draft| draft.is_written) else {
            return;
        };
        let first = draft.tables[0].table;
        for (_, values) in &draft.statements {
            let named = draft.tables[0].spec.keys_in(values);
            let named = || named.iter().map(|key| (first, key.clone()));
            node.shadow.deeds.note(named(), None);
            node.name(named());
            for part in &draft.tables {
                if self.plan.reaches(first, part.table) || part.table == first && values.is_empty()
                {
                    node.name(part.before.keys().map(|key| (part.table, key.clone())));
                }
            }
        }
        for part in draft.tables {
            node.note_change(part.table, part.is_contested, (part.before, part.after));
        }
        self.say(format!(
            "node {place}: wrote meanwhile: {:?}",
            draft.statements
        ));
    }
}

//! Creates the tables of the snapshot in a database without tables, and copies the rows of local
//! tables. The table that records which migrations the schema has had comes with it, in one
//! transaction.

use std::collections::HashSet;

use rusqlite::params_from_iter;

use super::Merge;
use crate::config::Choice;
use crate::database::schema::quote;
use crate::database::selection::{self, Kind};
use crate::database::{Database, Result, values};

/// An entry of the snapshot's schema. `text` is `None` if it is not UTF-8.
struct SchemaEntry {
    table: Option<String>,
    text: Option<String>,
}

impl Merge {
    /// Creates the snapshot's tables, with indexes, views and triggers, in a database without
    /// tables.
    pub(super) fn bring_schema(&self, db: &mut Database) -> Result<()> {
        if !db.is_without_tables()? {
            return Ok(());
        }
        let entries = self.schema()?;
        let (mut made, mut tables) = (0, Vec::new());
        for SchemaEntry { table, text } in &entries {
            // A table that is there already belongs to a tool that works beside the application.
            if table
                .as_ref()
                .is_some_and(|t| matches!(db.has_table(t), Ok(true)))
            {
                continue;
            }
            let done = match text {
                Some(text) => db.guarded(|db| Ok(db.conn.execute_batch(text)?))?,
                None => Err("its text is not UTF-8".into()),
            };
            match done {
                Ok(()) => {
                    made += 1;
                    tables.extend(table.clone());
                }
                Err(reason) => {
                    log::warn!("a statement of the snapshot's schema is left out: {reason}")
                }
            }
        }
        for table in &tables {
            self.bring_local_rows(db, table)?;
        }
        self.bring_pragmas(db)?;
        log::info!("took over the schema of the snapshot, {made} statement(s)");
        db.catalog.quiet.trust();
        db.refresh_catalog()
    }

    /// The entries of the snapshot's schema in an order in which they can be created. Tables that
    /// virtual tables create by themselves are left out.
    fn schema(&self) -> Result<Vec<SchemaEntry>> {
        let conn = &self.source.conn;
        let not_replicated = selection::read(conn, &selection::all, true)?.not_replicated;
        let storage = not_replicated
            .into_iter()
            .filter(|l| l.kind == Kind::Storage);
        let storage: HashSet<String> = storage.map(|left| left.table).collect();
        let mut list = conn.prepare(
            "SELECT tbl_name, type = 'table', sql FROM sqlite_schema WHERE sql IS NOT NULL
             AND name NOT GLOB '__harmonylite__*' AND name NOT GLOB 'sqlite_*'
             ORDER BY CASE WHEN type = 'table' AND rootpage > 0 THEN 0 WHEN type = 'view' THEN 1
                      WHEN type = 'table' THEN 2 WHEN type = 'index' THEN 3 ELSE 4 END, rowid",
        )?;
        let mut rows = list.query([])?;
        let mut entries = Vec::new();
        while let Some(row) = rows.next()? {
            let table = values::lossy(row, 0)?;
            if !storage.contains(&table) {
                entries.push(SchemaEntry {
                    table: row.get::<_, bool>(1)?.then_some(table),
                    text: row.get(2).ok(),
                });
            }
        }
        Ok(entries)
    }

    /// Copies the rows of a table that was created just now, if each node has that table for
    /// itself.
    fn bring_local_rows(&self, db: &mut Database, table: &str) -> Result<()> {
        let mut list = self
            .source
            .conn
            .prepare("SELECT name FROM pragma_table_xinfo(?1) WHERE hidden = 0")?;
        let columns = list.query_map([table], |r| r.get(0))?;
        let columns: Vec<String> = columns.collect::<rusqlite::Result<_>>()?;
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        if !matches!(db.settings.tables.choose(table, &names), Choice::Local(_)) {
            return Ok(());
        }
        let columns: Vec<String> = columns.iter().map(|c| quote(c)).collect();
        let (columns, places) = (columns.join(", "), vec!["?"; columns.len()].join(", "));
        let table = quote(table);
        let brought = db.guarded(|db| {
            let text = format!("INSERT INTO {table}({columns}) VALUES ({places})");
            let mut put = db.conn.prepare(&text)?;
            let text = format!("SELECT {columns} FROM {table}");
            let mut list = self.source.conn.prepare(&text)?;
            let count = list.column_count();
            let mut rows = list.query([])?;
            while let Some(row) = rows.next()? {
                put.execute(params_from_iter((0..count).map(|i| values::column(row, i))))?;
            }
            Ok(())
        })?;
        if let Err(reason) = brought {
            log::warn!("the rows of table {table}, which is local, did not come: {reason}");
        }
        Ok(())
    }

    /// Copies the pragmas by which an application knows its file, and which of its migrations have
    /// run.
    fn bring_pragmas(&self, db: &Database) -> Result<()> {
        for pragma in ["user_version", "application_id"] {
            let value = |conn: &rusqlite::Connection| -> rusqlite::Result<i32> {
                conn.pragma_query_value(Some("main"), pragma, |r| r.get(0))
            };
            if value(&db.conn)? == 0 {
                let theirs = value(&self.source.conn)?;
                db.conn.pragma_update(Some("main"), pragma, theirs)?;
            }
        }
        Ok(())
    }
}

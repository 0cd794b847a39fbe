//! Creates the tables of the snapshot in a database without tables, and copies the rows of local
//! tables. The table that records which migrations the schema has had comes with it, in one
//! transaction.

use std::collections::HashSet;

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, ErrorCode, ffi, params_from_iter};

use super::Merge;
use crate::config::Choice;
use crate::database::schema::quote;
use crate::database::selection::{self, Kind};
use crate::database::{Database, Result, sql_text, values};
use crate::model::text::printable;

/// An entry of the snapshot's schema. `text` is `None` if it is not UTF-8.
struct SchemaEntry {
    table: Option<String>,
    text: Option<String>,
    /// A trigger or a view, which runs inside the application.
    is_code: bool,
    name: String,
}

/// Longest statement of a snapshot's schema that is run, in bytes.
const MAX_STATEMENT: usize = 1 << 20;

/// Instructions of SQLite's machine that one statement may take, in thousands.
const MAX_THOUSANDS: u32 = 10_000;

/// Logs the triggers and views of a snapshot, which were `taken` over or not.
pub(crate) fn say_code(names: &[&str], taken: bool) {
    if names.is_empty() {
        return;
    }
    let shown: Vec<String> = names.iter().take(100).map(|name| printable(name)).collect();
    let shown = shown.join(", ");
    match taken {
        true => log::warn!(
            "the snapshot brought triggers and views, which run inside the application: {shown}. \
             snapshot.schema = \"tables\" leaves them out"
        ),
        false => log::warn!("triggers and views of the snapshot are left out: {shown}"),
    }
}

/// Runs one statement of a snapshot's schema. A peer wrote it, so it may create one thing, read
/// nothing and take a bounded time.
pub(in crate::snapshot) fn create(conn: &mut Connection, text: &str) -> rusqlite::Result<()> {
    let words = sql_text::words(text);
    let is_create = words.first().is_some_and(|word| word == "create");
    if !is_create || text.len() > MAX_STATEMENT {
        return Err(left_out("it is not one short CREATE statement".to_owned()));
    }
    let is_virtual = words.get(1).is_some_and(|word| word == "virtual");
    let may = move |context: AuthContext<'_>| {
        let is_schema = |table: &str| table.starts_with("sqlite_");
        let may = match context.action {
            AuthAction::CreateTable { .. }
            | AuthAction::CreateIndex { .. }
            | AuthAction::CreateView { .. }
            | AuthAction::CreateTrigger { .. }
            | AuthAction::Reindex { .. } => true,
            AuthAction::Function { function_name } => function_name != "load_extension",
            // Names in constraints, indexes and triggers; no statement reads rows.
            AuthAction::Read { .. } => true,
            AuthAction::Insert { table_name } | AuthAction::Update { table_name, .. } => {
                is_virtual || is_schema(table_name)
            }
            AuthAction::Delete { .. }
            | AuthAction::Select
            | AuthAction::Pragma { .. }
            | AuthAction::CreateVtable { .. } => is_virtual,
            _ => false,
        };
        match may {
            true => Authorization::Allow,
            false => Authorization::Deny,
        }
    };
    let mut thousands = 0;
    let is_too_long = move || {
        thousands += 1;
        thousands > MAX_THOUSANDS
    };
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.authorizer(Some(may))?;
    conn.progress_handler(1000, Some(is_too_long))?;
    // `prepare` refuses text after the first statement.
    let done = conn.prepare(text).and_then(|mut one| one.raw_execute());
    conn.progress_handler(0, None::<fn() -> bool>)?;
    conn.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
    done.map(drop).map_err(|e| match e.sqlite_error_code() {
        Some(ErrorCode::AuthorizationForStatementDenied | ErrorCode::OperationInterrupted) => {
            left_out(e.to_string())
        }
        None => left_out(e.to_string()), // more than one statement, or NUL in it
        _ => e,
    })
}

/// An error of a statement, not of the database.
fn left_out(text: String) -> rusqlite::Error {
    let error = ffi::Error::new(ffi::SQLITE_ERROR);
    rusqlite::Error::SqliteFailure(error, Some(text))
}

impl Merge {
    /// Creates the snapshot's tables, with indexes, views and triggers, in a database without
    /// tables. A migration may have dropped all tables, and be about to create them itself.
    pub(super) fn bring_schema(&self, db: &mut Database) -> Result<()> {
        if !db.is_without_tables()? || db.has_gone()? {
            return Ok(());
        }
        let entries = self.schema()?;
        let (mut made, mut tables) = (0, Vec::new());
        let mut code = Vec::new();
        for SchemaEntry {
            table,
            text,
            is_code,
            name,
        } in &entries
        {
            if *is_code {
                code.push(name.as_str());
                if !db.takes_code {
                    continue;
                }
            }
            // A table that is there already belongs to a tool that works beside the application.
            if table
                .as_ref()
                .is_some_and(|t| matches!(db.has_table(t), Ok(true)))
            {
                continue;
            }
            let done = match text {
                Some(text) => db.guarded(|db| Ok(create(&mut db.conn, text)?))?,
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
        say_code(&code, db.takes_code);
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
            "SELECT tbl_name, type = 'table', sql, type IN ('view', 'trigger'), name
             FROM sqlite_schema WHERE sql IS NOT NULL
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
                    is_code: row.get(3)?,
                    name: values::lossy(row, 4)?,
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

//! The choice of the tables that are replicated, and the reason for each other table.
//!
//! A table is not replicated by choice (`[tables]` and the list of known tools), because a module
//! keeps its data in it ([`super::storage`]), or because it cannot be replicated. Each such table
//! is reported by name, with the reason. Views and temporary tables do not count as tables here.

use rusqlite::{Connection, OptionalExtension};

use crate::apply::create_probe;
use crate::config::Choice;
use crate::database::schema::{self, Schema, TableOptions};
use crate::database::storage::{self, Virtual};
use crate::database::table::{Shape, Table};
use crate::database::{DatabaseError, triggers, values};
use crate::model::frame::ROWID;
use crate::model::key::is_known_collation;

/// Why a table is not replicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReplicated {
    /// Name of the table.
    pub table: String,
    /// Kind of the reason.
    pub kind: Kind,
    /// The reason, as the rest of a sentence about the table.
    pub reason: String,
}

/// The kind of reason for which a table is not replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Each node has rows of its own; snapshots contain them.
    Local,
    /// The configuration excludes the table, from snapshots, too.
    Excluded,
    /// It is a virtual table: a module decides what it holds.
    Virtual,
    /// A module keeps the data of a virtual table in it.
    Storage,
    /// The table has no key, or needs a function or collation that only the application has.
    Unsupported,
    /// The table had a primary key when it was replicated, and has none any more.
    Refused,
}

impl NotReplicated {
    /// A table that cannot be replicated, for this `reason`.
    pub fn unsupported(table: String, reason: String) -> Self {
        let kind = Kind::Unsupported;
        NotReplicated {
            table,
            kind,
            reason,
        }
    }

    /// A table that is replicated by its primary key, if `schema` has none any more. The rows of
    /// two copies get their rowids in the order of either copy: by rowid, different rows would take
    /// each other's place.
    pub(crate) fn refused(conn: &Connection, schema: &Schema) -> super::Result<Option<Self>> {
        let Some(key) = key_before(conn, &schema.name)?.filter(|_| schema.rowid.is_some()) else {
            return Ok(None);
        };
        Ok(Some(NotReplicated {
            table: schema.name.clone(),
            kind: Kind::Refused,
            reason: format!(
                "it had the primary key ({}) and has none any more: by rowid, different rows of \
                 two nodes would take each other's place. Its rows, and what arrives for it, wait \
                 until it has a primary key",
                key.join(", ")
            ),
        }))
    }
}

/// The columns of the primary key that a table had when its number was given or its shape stored
/// last; none if it had none.
fn key_before(conn: &Connection, table: &str) -> super::Result<Option<Vec<String>>> {
    let own = "SELECT 1 FROM sqlite_schema WHERE name = '__harmonylite___tables'";
    if !conn.prepare_cached(own)?.exists([])? {
        return Ok(None);
    }
    let mut shape = conn.prepare_cached(
        "SELECT shape FROM __harmonylite___tables WHERE name = ?1 AND shape IS NOT NULL",
    )?;
    let shape: Option<Vec<u8>> = shape.query_row([table], |r| r.get(0)).optional()?;
    let known: Option<Shape> = shape
        .map(|bytes| ciborium::from_reader(&bytes[..]))
        .transpose()
        .map_err(|e| DatabaseError::Damaged(e.to_string()))?;
    let key = known.map(|known| {
        let names = known.columns.into_iter().take(known.key.len());
        names.map(|(name, _)| name).collect::<Vec<_>>()
    });
    Ok(key.filter(|names| !names.iter().any(|name| name == ROWID)))
}

impl Kind {
    /// Whether the table is excluded by choice alone, and could be replicated.
    pub fn is_chosen(self) -> bool {
        matches!(self, Kind::Local | Kind::Excluded)
    }

    /// Whether the table was replicated, and waits for people.
    pub fn is_a_problem(self) -> bool {
        self == Kind::Refused
    }

    /// The name of the kind in logs and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Local => "local",
            Kind::Excluded => "excluded",
            Kind::Virtual => "virtual",
            Kind::Storage => "storage",
            Kind::Unsupported => "unsupported",
            Kind::Refused => "refused",
        }
    }
}

/// The tables of the application, by name.
#[derive(Debug, Default)]
pub struct Selection {
    /// Tables that are replicated.
    pub replicated: Vec<Schema>,
    /// Tables that are not, with the reasons.
    pub not_replicated: Vec<NotReplicated>,
    /// Replicated tables that may be storage of an unknown module.
    pub doubts: Vec<Doubt>,
}

/// A replicated table that may be storage of a virtual table with an unknown module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// Name of the replicated table.
    pub table: String,
    /// Name of the virtual table.
    pub virtual_table: String,
    /// Module of the virtual table.
    pub module: String,
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "table {} is replicated; if the module {} keeps data of the virtual table {} in it, \
             add it to tables.exclude",
            self.table, self.module, self.virtual_table
        )
    }
}

/// Decides by a table's name and columns how it takes part, like [`crate::config::Tables::choose`].
pub type Choose<'a> = dyn Fn(&str, &[&str]) -> Choice + 'a;

/// Chooses every table for replication, whatever the configuration says.
pub fn all(_: &str, _: &[&str]) -> Choice {
    Choice::Replicated
}

/// A table as SQLite lists it.
struct Listed {
    name: String,
    is_utf8: bool,
    kind: String,
    options: TableOptions,
}

/// Reads all tables of the application.
pub fn read(
    conn: &Connection,
    choose: &Choose<'_>,
    allow_rowid_tables: bool,
) -> rusqlite::Result<Selection> {
    let virtuals = storage::virtual_tables(conn)?;
    let mut selection = Selection::default();
    for table in list(conn)? {
        let found = match why_not_replicated(conn, &table, &virtuals, choose)? {
            Some(left) => Err(left),
            None => read_one(conn, &table, allow_rowid_tables)?
                .map_err(|reason| (Kind::Unsupported, reason)),
        };
        match found {
            Ok(schema) => {
                let may_keep = virtuals.iter().find(|v| v.may_keep(&schema.name));
                selection.doubts.extend(may_keep.map(|of| Doubt {
                    table: schema.name.clone(),
                    virtual_table: of.name.clone(),
                    module: of.module.clone(),
                }));
                selection.replicated.push(schema);
            }
            Err((kind, reason)) => selection.not_replicated.push(NotReplicated {
                table: table.name,
                kind,
                reason,
            }),
        }
    }
    Ok(selection)
}

fn list(conn: &Connection) -> rusqlite::Result<Vec<Listed>> {
    let mut list = conn.prepare(
        "SELECT name, type, strict, wr FROM pragma_table_list
         WHERE schema = 'main' AND type IN ('table', 'shadow', 'virtual')
         AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '__harmonylite__*' ORDER BY name",
    )?;
    let listed = list.query_map([], |r| {
        Ok(Listed {
            name: values::lossy(r, 0)?,
            is_utf8: r.get::<_, String>(0).is_ok(),
            kind: r.get(1)?,
            options: TableOptions {
                strict: r.get(2)?,
                without_rowid: r.get(3)?,
            },
        })
    })?;
    listed.collect()
}

/// Names of all columns of a table.
pub(crate) fn column_names(conn: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut names = conn.prepare_cached("SELECT name FROM pragma_table_xinfo(?1)")?;
    names.query_map([table], |r| values::lossy(r, 0))?.collect()
}

fn why_not_replicated(
    conn: &Connection,
    table: &Listed,
    virtuals: &[Virtual],
    choose: &Choose<'_>,
) -> rusqlite::Result<Option<(Kind, String)>> {
    if let Some(of) = virtuals.iter().find(|v| v.name == table.name) {
        let reason = format!(
            "it is a virtual table of the module {}, whose data each node keeps for itself",
            of.module
        );
        return Ok(Some((Kind::Virtual, reason)));
    }
    let columns = column_names(conn, &table.name)?;
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let is_shadow = table.kind == "shadow";
    let keeps = |v: &&Virtual| v.keeps(&table.name, &columns, is_shadow);
    if let Some(of) = virtuals.iter().find(keeps) {
        let reason = format!("the virtual table {} keeps its data in it", of.name);
        return Ok(Some((Kind::Storage, reason)));
    }
    Ok(match choose(&table.name, &columns) {
        Choice::Replicated => None,
        Choice::Local(reason) => Some((Kind::Local, reason)),
        Choice::Excluded(reason) => Some((Kind::Excluded, reason)),
    })
}

fn read_one(
    conn: &Connection,
    table: &Listed,
    allow_rowid_tables: bool,
) -> rusqlite::Result<Result<Schema, String>> {
    if !table.is_utf8 {
        return Ok(Err("its name is not UTF-8".into()));
    }
    match schema::read_table(conn, &table.name, table.options) {
        Err(rusqlite::Error::Utf8Error(..)) => Ok(Err(
            "a name, a DEFAULT or an index in it is not UTF-8".into(),
        )),
        Ok(Ok(schema)) if schema.rowid.is_some() && !allow_rowid_tables => Ok(Err(
            "it has no primary key and allow_rowid_tables is false".into(),
        )),
        read => read,
    }
}

/// The reason why a table is not usable, without the text of our statement that failed to compile.
pub(crate) fn why_unusable(e: &DatabaseError) -> String {
    match e {
        DatabaseError::Sqlite(rusqlite::Error::SqlInputError { msg, .. }) => msg.clone(),
        e => e.to_string(),
    }
}

/// Checks that this SQLite can read and write the table. An index may need a function or a
/// collation that only the application has; the error says so.
pub(crate) fn is_usable(conn: &Connection, schema: &Schema) -> crate::database::Result<()> {
    let mut key = schema.key.iter();
    if let Some(key) = key.find(|k| !is_known_collation(&k.collation)) {
        return Err(DatabaseError::Unusable(format!(
            "its key compares by {}, which is not known here",
            key.collation
        )));
    }
    let table = Table::new(0, schema.clone(), Vec::new());
    let sql = &table.sql;
    let scan = table.scan_keys(true, 1);
    for text in [&sql.get_row, &sql.upsert, &sql.delete_row, &scan] {
        conn.prepare(text)?;
    }
    // SQLite compiles a trigger's body only when the trigger fires. A body that fails to compile
    // would keep the application from writing.
    for text in triggers::trials(schema) {
        conn.prepare(&text)?;
    }
    Ok(create_probe(conn, schema)?)
}

//! The user's tables as replication sees them: their keys, columns and UNIQUE indexes.
//!
//! This module reads SQLite's own pragmas (<https://www.sqlite.org/pragma.html>: table_list,
//! table_xinfo, index_list, index_xinfo). [`super::selection`] decides which tables it reads.

use rusqlite::{Connection, OptionalExtension};

use crate::database::sql_text::{self, IndexText};
use crate::database::values;
use crate::model::frame::{KeyColumn, MAX_NAME_BYTES, ROWID};
use crate::model::value::OwnedValue;

/// Prefix of the name of every object of ours in the user's database.
pub const PREFIX: &str = "__harmonylite__";

/// A table to replicate, as SQLite describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Schema {
    /// Name as the user spells it.
    pub name: String,
    /// Spelling of the rowid in a table without a primary key, whose key it is.
    pub rowid: Option<&'static str>,
    /// Whether the key is the rowid, under its own name or as INTEGER PRIMARY KEY.
    pub key_is_rowid: bool,
    /// Spelling of the rowid where it is not the key, and the table has one: a REPLACE may evict a
    /// row by it.
    pub other_rowid: Option<&'static str>,
    /// Stored columns, the key's first. With `rowid`, the first is the rowid under the name
    /// [`ROWID`]. Generated columns are left out: every node computes them itself.
    pub columns: Vec<Column>,
    /// Names of the generated columns; an index may contain them.
    pub generated: Vec<String>,
    /// Names of the stored columns from which generated columns are computed. Filled only if a
    /// UNIQUE index is more than stored columns.
    pub generated_from: Vec<String>,
    /// Expressions of the CHECK constraints. Filled only if a UNIQUE index is more than stored
    /// columns.
    pub checks: Vec<String>,
    /// Key columns, in the order of the primary key.
    pub key: Vec<KeyColumn>,
    /// UNIQUE indexes besides the key.
    pub unique: Vec<UniqueIndex>,
    /// Whether a constraint has an ON CONFLICT clause, which decides about a row that breaks it.
    pub has_conflict_clause: bool,
    /// Whether the application has a BEFORE INSERT trigger: it may change the rows that an INSERT
    /// meets.
    pub has_before_insert: bool,
}

impl Schema {
    /// Whether SQLite may choose the key of a row: it is an INTEGER PRIMARY KEY.
    pub fn is_numbered(&self) -> bool {
        self.key_is_rowid && self.rowid.is_none()
    }
}

/// A stored column of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Name as the user spells it; [`ROWID`] for the rowid of a table without a primary key.
    pub name: String,
    /// Name in lower case: SQLite ignores the case of ASCII letters when it compares column names.
    pub lower: String,
    /// Names, in lower case, that the column had before ALTER TABLE renamed it. Records that name
    /// columns may still use them.
    pub former: Vec<String>,
    /// Type affinity of the declared type.
    pub affinity: Affinity,
    /// Value that ADD COLUMN gave to the rows that were there: NULL if the column has no constant
    /// default. It is the default from when the column was first seen, see
    /// [`super::table::Shape::defaults`].
    pub default: OwnedValue,
    /// Default of rows that are inserted now.
    pub default_now: OwnedValue,
    /// Text of a default that is computed from the time of the write.
    pub default_by_time: Option<String>,
    /// Whether the column is declared NOT NULL.
    pub not_null: bool,
}

impl Column {
    /// Whether the column has, or had, this name (lower case).
    pub fn is_or_was(&self, lower: &str) -> bool {
        self.lower == lower || self.former.iter().any(|f| f == lower)
    }

    /// Whether a row that arrives without this column gets NULL here: the column allows NULL, and
    /// its default is NULL or not constant. SQLite would compute from the latter a value that no
    /// other node knows.
    pub fn begins_as_null(&self) -> bool {
        self.default_now == OwnedValue::Null && !self.not_null
    }
}

/// A UNIQUE index besides the key.
#[derive(Debug, Clone, PartialEq)]
pub struct UniqueIndex {
    /// Name of the index.
    pub name: String,
    /// Per term: the quoted column name, or the expression in parentheses; and its collation (upper
    /// case).
    pub terms: Vec<(String, String)>,
    /// WHERE of a partial index.
    pub predicate: Option<String>,
    /// Names of the columns, if the index consists of stored columns alone and has no WHERE.
    pub columns: Option<Vec<String>>,
}

/// Type affinity: <https://www.sqlite.org/datatype3.html#determination_of_column_affinity>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// INTEGER affinity.
    Integer,
    /// TEXT affinity.
    Text,
    /// BLOB affinity, which converts nothing.
    Blob,
    /// REAL affinity.
    Real,
    /// NUMERIC affinity.
    Numeric,
}

impl Affinity {
    /// The affinity of a `declared` type. In a `strict` table, ANY converts nothing.
    pub fn of(declared: &str, strict: bool) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if strict && declared == "ANY" {
            Affinity::Blob
        } else if has("INT") {
            Affinity::Integer
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Affinity::Text
        } else if has("BLOB") || declared.is_empty() {
            Affinity::Blob
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Affinity::Real
        } else {
            Affinity::Numeric
        }
    }

    /// A type name with this affinity.
    pub fn name(self) -> &'static str {
        match self {
            Affinity::Integer => "INTEGER",
            Affinity::Text => "TEXT",
            Affinity::Blob => "BLOB",
            Affinity::Real => "REAL",
            Affinity::Numeric => "NUMERIC",
        }
    }
}

/// `name` as an SQL identifier.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Schema {
    /// Number of key columns.
    pub fn key_len(&self) -> usize {
        self.key.len()
    }

    /// Whether some UNIQUE index is more than stored columns.
    pub fn needs_probe(&self) -> bool {
        self.unique.iter().any(|u| u.columns.is_none())
    }

    /// Whether the statement alone decides if an INSERT may evict a row. No constraint has an ON
    /// CONFLICT clause then, and no trigger of the application runs before an INSERT: only OR
    /// REPLACE evicts.
    pub fn tells_replacing(&self) -> bool {
        !self.has_conflict_clause && !self.has_before_insert
    }

    /// Whether [`super::replacing`] notes the rows that an INSERT evicts.
    pub fn notes_replacing(&self) -> bool {
        let mut unique = self.unique.iter();
        let evicts = self.other_rowid.is_some() || unique.any(|u| self.is_of_columns(u));
        evicts && self.tells_replacing()
    }

    /// Whether the terms of a UNIQUE index are stored columns.
    pub fn is_of_columns(&self, index: &UniqueIndex) -> bool {
        let is_column = |term: &String| self.columns.iter().any(|c| quote(&c.name) == *term);
        index.terms.iter().all(|(term, _)| is_column(term))
    }

    /// The SQL name of a column.
    pub fn column_sql(&self, index: usize) -> String {
        match (index, self.rowid) {
            (0, Some(rowid)) => rowid.to_owned(),
            _ => quote(&self.columns[index].name),
        }
    }
}

/// Table options of CREATE TABLE.
#[derive(Clone, Copy)]
pub(super) struct TableOptions {
    pub strict: bool,
    pub without_rowid: bool,
}

struct RawColumn {
    name: String,
    declared: String,
    default: Option<String>,
    pk: usize,
    not_null: bool,
}

/// Reads one table. The inner error says why the table cannot be replicated.
pub(super) fn read_table(
    conn: &Connection,
    name: &str,
    options: TableOptions,
) -> rusqlite::Result<Result<Schema, String>> {
    let mut statement = conn.prepare_cached(
        "SELECT name, type, dflt_value, pk, \"notnull\" FROM pragma_table_xinfo(?1) WHERE hidden = \
         0",
    )?;
    let raw: Vec<RawColumn> = statement
        .query_map([name], |r| {
            Ok(RawColumn {
                name: r.get(0)?,
                declared: r.get(1)?,
                default: r.get(2)?,
                pk: r.get(3)?,
                not_null: r.get(4)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    let mut in_order: Vec<&RawColumn> = raw.iter().filter(|c| c.pk > 0).collect();
    in_order.sort_by_key(|c| c.pk);
    let collations = key_collations(conn, name)?;
    let mut names = raw.iter().map(|c| &c.name).chain(&collations);
    if name.len() > MAX_NAME_BYTES || names.any(|n| n.len() > MAX_NAME_BYTES) {
        let reason = format!("a name in it is longer than {MAX_NAME_BYTES} bytes");
        return Ok(Err(reason));
    }
    let mut columns = Vec::with_capacity(raw.len() + 1);
    let mut key = Vec::new();
    let mut rowid = None;
    let is_free = |alias: &&&str| !raw.iter().any(|c| c.name.eq_ignore_ascii_case(alias));
    let alias = ["rowid", "_rowid_", "oid"].iter().find(is_free).copied();
    if in_order.is_empty() {
        let Some(alias) = alias else {
            return Ok(Err(
                "it has no primary key and its rowid is hidden by columns".into(),
            ));
        };
        rowid = Some(alias);
        let (affinity, default) = (Affinity::Integer, OwnedValue::Null);
        columns.push(Column {
            name: ROWID.into(),
            lower: ROWID.into(),
            former: Vec::new(),
            affinity,
            default_now: default.clone(),
            default,
            default_by_time: None,
            not_null: true,
        });
        let collation = "BINARY".to_owned();
        key.push(KeyColumn {
            name: ROWID.into(),
            affinity: affinity.name(),
            collation,
        });
    }
    for (i, column) in in_order.iter().enumerate() {
        let affinity = Affinity::of(&column.declared, options.strict).name();
        let collation = collations
            .get(i)
            .cloned()
            .unwrap_or_else(|| "BINARY".into());
        key.push(KeyColumn {
            name: column.name.clone(),
            affinity,
            collation,
        });
    }
    for column in in_order.into_iter().chain(raw.iter().filter(|c| c.pk == 0)) {
        let default = default_value(column, options.strict)?;
        columns.push(Column {
            name: column.name.clone(),
            lower: column.name.to_ascii_lowercase(),
            former: Vec::new(),
            affinity: Affinity::of(&column.declared, options.strict),
            default_now: default.clone(),
            default,
            default_by_time: default_by_time(column),
            not_null: column.not_null,
        });
    }
    let mut generated =
        conn.prepare_cached("SELECT name FROM pragma_table_xinfo(?1) WHERE hidden IN (2, 3)")?;
    let generated: Vec<String> = generated
        .query_map([name], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    let every = raw.iter().map(|c| &c.name).chain(&generated).cloned();
    let every: Vec<String> = every.collect();
    let portable = |text: &String| {
        let text = sql_text::unqualified(text, name);
        sql_text::with_quoted_text(&text, &every)
    };
    let mut unique = match unique_indexes(conn, name, &portable)? {
        Ok(unique) => unique,
        Err(reason) => return Ok(Err(reason)),
    };
    for index in &mut unique {
        let stored = |names: &Vec<String>| names.iter().all(|n| !generated.contains(n));
        index.columns = index.columns.take().filter(stored);
    }
    let (mut checks, mut generated_from) = (Vec::new(), Vec::new());
    let text: String = conn
        .prepare_cached("SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ?1")?
        .query_row([name], |r| values::lossy(r, 0))?;
    if unique.iter().any(|u| u.columns.is_none()) {
        let within = |word| sql_text::in_parentheses_after(&text, word);
        checks = within("CHECK").iter().map(portable).collect();
        let words = sql_text::words(&within("AS").join(" "));
        let stored = raw.iter().map(|c| &c.name);
        let is_named = |c: &&String| words.contains(&c.to_ascii_lowercase());
        generated_from = stored.filter(is_named).cloned().collect();
    }
    let key_is_rowid = collations.is_empty(); // it has no index of its own
    let other_rowid = alias.filter(|_| !key_is_rowid && !options.without_rowid);
    Ok(Ok(Schema {
        name: name.into(),
        rowid,
        key_is_rowid,
        other_rowid,
        columns,
        generated,
        generated_from,
        checks,
        key,
        unique,
        has_conflict_clause: sql_text::words(&text).iter().any(|w| w == "conflict"),
        has_before_insert: has_before_insert(conn, name)?,
    }))
}

/// Whether the application has a BEFORE INSERT trigger on the table. A CREATE TRIGGER that names no
/// time makes a BEFORE trigger.
fn has_before_insert(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    let mut list = conn.prepare_cached(
        "SELECT sql FROM main.sqlite_schema WHERE type = 'trigger'
         AND tbl_name = ?1 COLLATE NOCASE AND name NOT GLOB '__harmonylite__*'",
    )?;
    let texts = list.query_map([table], |r| values::lossy(r, 0))?;
    let texts = texts.collect::<rusqlite::Result<Vec<String>>>()?;
    Ok(texts.iter().any(|text| {
        let words = sql_text::words(sql_text::after_trigger_name(text).unwrap_or_default());
        let event = words.iter().find(|w| *w != "before");
        event.is_none_or(|w| w == "insert")
    }))
}

/// Collations of the primary key's columns; empty if the primary key has no index of its own.
fn key_collations(conn: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare_cached(
        "SELECT upper(x.coll) FROM pragma_index_list(?1) l, pragma_index_xinfo(l.name) x
         WHERE l.origin = 'pk' AND x.key = 1 ORDER BY x.seqno",
    )?;
    statement.query_map([table], |r| r.get(0))?.collect()
}

/// Asks SQLite which value ADD COLUMN with the column's DEFAULT gives to existing rows. ADD COLUMN
/// accepts constants alone; any other default counts as NULL.
fn default_value(column: &RawColumn, strict: bool) -> rusqlite::Result<OwnedValue> {
    let Some(text) = column.default.as_deref() else {
        return Ok(OwnedValue::Null);
    };
    let memory = Connection::open_in_memory()?;
    let options = if strict { "STRICT" } else { "" };
    let table =
        format!("CREATE TABLE d(k INTEGER PRIMARY KEY) {options}; INSERT INTO d VALUES (1)");
    memory.execute_batch(&table)?;
    let add = |default: &str| {
        let text = format!(
            "ALTER TABLE d ADD COLUMN x {} DEFAULT {default}",
            column.declared
        );
        memory.execute_batch(&text).is_ok()
    };
    // A name that stands for text must not be in parentheses; all else but a single word must be.
    let is_added = add(&format!("({text})")) || (sql_text::words(text).len() == 1 && add(text));
    if !is_added {
        return Ok(OwnedValue::Null);
    }
    memory.query_row("SELECT x FROM d", [], |r| {
        Ok(values::value(r.get_ref(0)?).to_owned())
    })
}

/// Text of a default that is not constant, if every SQLite that an application may bring computes
/// the same value from it within one statement. Our triggers contain that text: a function unknown
/// to the application's SQLite would keep the application from writing.
fn default_by_time(column: &RawColumn) -> Option<String> {
    let text = column.default.as_ref();
    text.filter(|t| sql_text::is_of_time(t)).cloned()
}

/// Reads the UNIQUE indexes besides the key's. `portable` rewrites an expression so that it can
/// stand in our triggers. The inner error names an index that cannot be understood.
fn unique_indexes(
    conn: &Connection,
    table: &str,
    portable: &dyn Fn(&String) -> String,
) -> rusqlite::Result<Result<Vec<UniqueIndex>, String>> {
    let mut list = conn.prepare_cached(
        "SELECT name FROM pragma_index_list(?1) WHERE \"unique\" AND origin <> 'pk' ORDER BY name",
    )?;
    let names: Vec<String> = list
        .query_map([table], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    let mut unique = Vec::new();
    for name in names {
        let sql: Option<String> = conn
            .prepare_cached("SELECT sql FROM sqlite_schema WHERE type = 'index' AND name = ?1")?
            .query_row([&name], |r| r.get(0))
            .optional()?
            .flatten();
        let text = match sql.as_deref().map(sql_text::parse) {
            Some(None) => return Ok(Err(format!("its UNIQUE index {name} cannot be understood"))),
            Some(Some(text)) => IndexText {
                terms: text.terms.iter().map(portable).collect(),
                predicate: text.predicate.as_ref().map(portable),
            },
            None => IndexText::default(), // made by a UNIQUE constraint: columns alone
        };
        unique.push(unique_index(conn, name, text)?);
    }
    Ok(Ok(unique))
}

fn unique_index(conn: &Connection, name: String, text: IndexText) -> rusqlite::Result<UniqueIndex> {
    let mut info = conn.prepare_cached(
        "SELECT name, upper(coll) FROM pragma_index_xinfo(?1) WHERE key = 1 ORDER BY seqno",
    )?;
    let parts: Vec<(Option<String>, String)> = info
        .query_map([&name], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let plain: Option<Vec<String>> = parts.iter().map(|(name, _)| name.clone()).collect();
    let term = |(i, (column, collation)): (usize, &(Option<String>, String))| {
        let expression = || format!("({})", text.terms.get(i).map_or("NULL", String::as_str));
        (
            column.as_deref().map_or_else(expression, quote),
            collation.clone(),
        )
    };
    let terms = parts.iter().enumerate().map(term).collect();
    let columns = plain.filter(|_| text.predicate.is_none());
    Ok(UniqueIndex {
        name,
        terms,
        predicate: text.predicate,
        columns,
    })
}

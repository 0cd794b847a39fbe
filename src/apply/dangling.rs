//! Rows that refer by a foreign key to a row that does not exist.
//!
//! Foreign keys are not checked between nodes: if one node deletes a row while another writes a row
//! that refers to it, both changes are kept. Migration tools check all foreign keys and refuse to
//! go on. That is why such rows can be listed ([`dangling`]), and are logged when they arise.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use crate::apply::conflicts::{named, open, version};
use crate::database::rows::{Rows, bind, row_values};
use crate::database::schema::{Schema, quote};
use crate::database::selection;
use crate::database::sites::Sites;
use crate::database::table::{Table, versions_table};
use crate::database::{Database, Result, values};
use crate::model::frame::{Row, TableRows};
use crate::model::text::key_literal;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// A row with a foreign key that refers to no row.
#[derive(Debug, PartialEq)]
pub struct Dangling {
    /// Name of the row's table.
    pub table: String,
    /// Names and values of the row's key columns.
    pub key: Vec<(String, OwnedValue)>,
    /// The row's version; none if it has none.
    pub version: Option<Version>,
    /// The columns of the foreign key and the values that the row has there.
    pub columns: Vec<(String, OwnedValue)>,
    /// Name of the table that the foreign key refers to.
    pub parent: String,
    /// Columns of the parent that the foreign key refers to, in the order of `columns`; empty if
    /// there is no such table.
    pub parent_columns: Vec<String>,
    /// The version by which the parent's row was deleted; none if that is unknown.
    pub deleted: Option<Version>,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    child: String,
    columns: Vec<String>,
    parent: String,
    parent_columns: Vec<String>,
}

/// The foreign keys of a table.
fn references(conn: &Connection, child: &str) -> rusqlite::Result<Vec<Reference>> {
    let mut list = conn.prepare_cached(
        "SELECT id, \"table\", \"from\", \"to\" FROM pragma_foreign_key_list(?1) ORDER BY id, seq",
    )?;
    let mut rows = list.query([child])?;
    let (mut found, mut last): (Vec<Reference>, Option<i64>) = (Vec::new(), None);
    while let Some(row) = rows.next()? {
        let id = Some(row.get(0)?);
        if id != last {
            found.push(Reference {
                child: child.to_owned(),
                columns: Vec::new(),
                parent: values::lossy(row, 1)?,
                parent_columns: Vec::new(),
            });
        }
        last = id;
        if let Some(reference) = found.last_mut() {
            reference.columns.push(values::lossy(row, 2)?);
            if row.get_ref(3)? != rusqlite::types::ValueRef::Null {
                reference.parent_columns.push(values::lossy(row, 3)?);
            }
        }
    }
    for reference in found.iter_mut().filter(|r| r.parent_columns.is_empty()) {
        let mut key = conn.prepare_cached(
            "SELECT name FROM pragma_table_info(?1, 'main') WHERE pk > 0 ORDER BY pk",
        )?;
        let names = key.query_map([&reference.parent], |r| values::lossy(r, 0))?;
        reference.parent_columns = names.collect::<rusqlite::Result<_>>()?;
    }
    Ok(found)
}

impl Reference {
    /// Positions of the parent's key columns in the foreign key; none if it refers to other
    /// columns.
    fn key_order(&self, parent: &Schema) -> Option<Vec<usize>> {
        let place = |name: &str| {
            let mut columns = self.parent_columns.iter();
            columns.position(|c| c.eq_ignore_ascii_case(name))
        };
        let order: Option<Vec<usize>> = parent.key.iter().map(|k| place(&k.name)).collect();
        order.filter(|order| order.len() == self.columns.len())
    }

    /// SQL condition `c."a" IS NOT NULL AND …` for all columns of the foreign key.
    fn is_given(&self) -> String {
        let each = self
            .columns
            .iter()
            .map(|c| format!("c.{} IS NOT NULL", quote(c)));
        each.collect::<Vec<_>>().join(" AND ")
    }

    /// SQL that selects the key and the foreign key of every row that refers to no row.
    fn scan(&self, schema: &Schema) -> String {
        let key = (0..schema.key_len()).map(|i| format!("c.{}", schema.column_sql(i)));
        let own = self.columns.iter().map(|c| format!("c.{}", quote(c)));
        let pairs = self.parent_columns.iter().zip(&self.columns);
        let pairs = pairs.map(|(p, c)| format!("p.{} = c.{}", quote(p), quote(c)));
        let is_missing = match self.parent_columns.len() == self.columns.len() {
            true => format!(
                "NOT EXISTS (SELECT 1 FROM main.{} AS p WHERE {})",
                quote(&self.parent),
                pairs.collect::<Vec<_>>().join(" AND ")
            ),
            false => "1".to_owned(),
        };
        format!(
            "SELECT {} FROM main.{} AS c WHERE {} AND {is_missing}",
            key.chain(own).collect::<Vec<_>>().join(", "),
            quote(&schema.name),
            self.is_given(),
        )
    }
}

/// Gives every row of the database that refers to no row to `show`. Reads all rows of all tables
/// with foreign keys. Fails if the file cannot be opened or read.
pub fn dangling(path: &Path, show: &mut dyn FnMut(Dangling)) -> Result<()> {
    let conn = open(path)?;
    conn.execute_batch("BEGIN")?;
    let sites = Sites::load(&conn)?;
    let all = selection::read(&conn, &selection::all, true)?.replicated;
    let all = all
        .into_iter()
        .map(|schema| Table::new(0, schema, Vec::new()));
    let all: HashMap<String, Table> = all.map(|t| (t.name().to_ascii_lowercase(), t)).collect();
    let mut names: Vec<&String> = all.keys().collect();
    names.sort();
    for child in names.into_iter().map(|name| &all[name]) {
        for reference in references(&conn, child.name())? {
            let parent = all.get(&reference.parent.to_ascii_lowercase());
            dangling_of(&conn, &sites, child, parent, &reference, show)?;
        }
    }
    Ok(())
}

fn dangling_of(
    conn: &Connection,
    sites: &Sites,
    child: &Table,
    parent: Option<&Table>,
    reference: &Reference,
    show: &mut dyn FnMut(Dangling),
) -> Result<()> {
    let mut versions = versions_of(conn, child)?;
    let mut parents = match parent {
        Some(parent) => versions_of(conn, parent)?,
        None => None,
    };
    let order = parent.and_then(|parent| reference.key_order(&parent.schema));
    let mut scan = conn.prepare(&reference.scan(&child.schema))?;
    let (keys, count) = (child.key_len(), scan.column_count());
    let mut rows = scan.query([])?;
    while let Some(row) = rows.next()? {
        let all: Vec<OwnedValue> = row_values(row, count).map(Value::to_owned).collect();
        let (key, own) = all.split_at(keys);
        let own_version = match &mut versions {
            Some(rows) => version(rows, sites, key)?,
            None => None,
        };
        let deleted = match (&mut parents, &order) {
            (Some(rows), Some(order)) => {
                let key: Vec<Value<'_>> = order.iter().map(|i| own[*i].borrow()).collect();
                let stored = rows.version(sites, &key)?.filter(|s| s.state.deleted);
                stored.map(|s| s.state.version)
            }
            _ => None,
        };
        show(Dangling {
            table: child.name().to_owned(),
            key: named(child, key),
            version: own_version,
            columns: reference
                .columns
                .iter()
                .cloned()
                .zip(own.iter().cloned())
                .collect(),
            parent: reference.parent.clone(),
            parent_columns: reference.parent_columns.clone(),
            deleted,
        });
    }
    Ok(())
}

/// The versions of a table; none if it is not replicated.
fn versions_of<'c>(conn: &'c Connection, table: &'c Table) -> Result<Option<Rows<'c>>> {
    let text = format!("SELECT 1 FROM {} LIMIT 0", versions_table(table.name()));
    Ok(match conn.prepare(&text) {
        Ok(_) => Some(Rows::new(conn, table)?),
        Err(_) => None,
    })
}

/// The foreign keys by which incoming rows are checked.
#[derive(Debug, Default)]
pub(crate) struct References {
    of_child: HashMap<i64, Vec<Reference>>,
    /// By number of the parent, if an index finds the referring rows.
    to_parent: HashMap<i64, Vec<Reference>>,
}

impl References {
    fn concern(&self, table: i64) -> bool {
        self.of_child.contains_key(&table) || self.to_parent.contains_key(&table)
    }
}

impl Database {
    /// Reads the foreign keys that refer to the key of a replicated table.
    pub(crate) fn read_references(&mut self) -> Result<()> {
        let mut found = References::default();
        for child in self.catalog.by_id.values() {
            for reference in references(&self.conn, child.name())? {
                let parent = self
                    .catalog
                    .by_name
                    .get(&reference.parent.to_ascii_lowercase());
                let refers = |p: &&Arc<Table>| reference.key_order(&p.schema).is_some();
                let Some(parent) = parent.filter(refers) else {
                    continue;
                };
                if self.finds_children(&reference)? {
                    let references = found.to_parent.entry(parent.id).or_default();
                    references.push(reference.clone());
                }
                found.of_child.entry(child.id).or_default().push(reference);
            }
        }
        self.catalog.references = found;
        Ok(())
    }

    fn finds_children(&self, reference: &Reference) -> Result<bool> {
        let text = "SELECT 1 FROM pragma_index_list(?1) l, pragma_index_info(l.name) x
             WHERE x.seqno = 0 AND x.name = ?2 COLLATE NOCASE AND l.partial = 0";
        let mut index = self.conn.prepare_cached(text)?;
        for column in &reference.columns {
            if index.exists([&reference.child, column])? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Logs rows that refer to a deleted row, after `incoming` was applied.
    pub(super) fn note_dangling(
        &mut self,
        table: &Table,
        nodes: &[u64],
        incoming: &TableRows<'_>,
    ) -> Result<()> {
        if !self.catalog.references.concern(table.id) {
            return Ok(());
        }
        let (mut rows, mut row) = (incoming.rows(nodes), Row::default());
        let mut found = Vec::new();
        while rows.next(&mut row).unwrap_or(false) {
            let key = &row.values[..table.key_len()];
            let stored = Rows::new(&self.conn, table)?.version(&self.sites, key)?;
            if stored.is_none_or(|s| s.state.version != row.version) {
                continue; // it lost
            }
            match row.deleted {
                true => self.children_of(table, key, &mut found)?,
                false => self.deleted_parents_of(table, &row, &incoming.columns, &mut found)?,
            }
        }
        found.iter().for_each(|text| self.say_dangling(text));
        Ok(())
    }

    fn deleted_parents_of(
        &self,
        child: &Table,
        row: &Row<'_>,
        columns: &[&str],
        found: &mut Vec<String>,
    ) -> Result<()> {
        let references = self.catalog.references.of_child.get(&child.id);
        for reference in references.into_iter().flatten() {
            let parent = self
                .catalog
                .by_name
                .get(&reference.parent.to_ascii_lowercase());
            let order = parent.and_then(|p| reference.key_order(&p.schema));
            let (Some(parent), Some(order)) = (parent, order) else {
                continue;
            };
            let value = |i: &usize| {
                let is_it = |c: &&str| c.eq_ignore_ascii_case(&reference.columns[*i]);
                columns.iter().position(is_it).map(|at| row.values[at])
            };
            let key: Option<Vec<Value<'_>>> = order.iter().map(value).collect();
            let is_given = |key: &Vec<Value<'_>>| !key.iter().any(Value::is_null);
            let Some(key) = key.filter(is_given) else {
                continue;
            };
            let stored = Rows::new(&self.conn, parent)?.version(&self.sites, &key)?;
            if stored.is_some_and(|s| s.state.deleted) {
                let own = &row.values[..child.key_len()];
                found.push(refers(child.name(), own, parent.name(), &key));
            }
        }
        Ok(())
    }

    fn children_of(
        &self,
        parent: &Table,
        key: &[Value<'_>],
        found: &mut Vec<String>,
    ) -> Result<()> {
        let references = self.catalog.references.to_parent.get(&parent.id);
        for reference in references.into_iter().flatten() {
            let child = self
                .catalog
                .by_name
                .get(&reference.child.to_ascii_lowercase());
            let order = reference.key_order(&parent.schema);
            let (Some(child), Some(order)) = (child, order) else {
                continue;
            };
            let matches = order.iter().zip(1..);
            let matches = matches.map(|(i, n)| format!("{} = ?{n}", quote(&reference.columns[*i])));
            let own = (0..child.key_len()).map(|i| child.schema.column_sql(i));
            let text = format!(
                "SELECT {} FROM main.{} WHERE {} LIMIT 1",
                own.collect::<Vec<_>>().join(", "),
                quote(child.name()),
                matches.collect::<Vec<_>>().join(" AND ")
            );
            let mut first = self.conn.prepare_cached(&text)?;
            bind(&mut first, key)?;
            let mut rows = first.raw_query();
            if let Some(row) = rows.next()? {
                let own: Vec<Value<'_>> = row_values(row, child.key_len()).collect();
                found.push(refers(child.name(), &own, parent.name(), key));
            }
        }
        Ok(())
    }

    /// Logs the first ten, then the hundredth, the thousandth and so on.
    fn say_dangling(&mut self, text: &str) {
        self.dangling_seen += 1;
        let count = self.dangling_seen;
        if count <= 10 || 10_u64.pow(count.ilog10()) == count {
            log::warn!(
                "{text}, which was deleted ({count} such so far): see `harmonylite conflicts`"
            );
        }
    }

    /// How many rows that refer to a deleted row were found since the start, when either one
    /// arrived.
    pub fn dangling_seen(&self) -> u64 {
        self.dangling_seen
    }
}

fn refers(child: &str, key: &[Value<'_>], parent: &str, parent_key: &[Value<'_>]) -> String {
    format!(
        "row {} of table {child} refers to row {} of table {parent}",
        key_literal(key),
        key_literal(parent_key)
    )
}

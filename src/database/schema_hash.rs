//! A hash that tells whether two nodes have the same tables.
//!
//! The hash is SHA-256 over the replicated tables as SQLite understands their definitions. Upper
//! and lower case, spaces, quotes, the order of columns, names of indexes and types of the same
//! affinity make no difference. These count: names of tables and columns, key with affinity and
//! collation, NOT NULL, DEFAULT, UNIQUE with its condition. `___meta` keeps the hash and the one
//! before.

use sha2::{Digest, Sha256};

use super::meta::{Meta, get_meta, set_meta};
use super::schema::{Column, Schema, UniqueIndex};
use super::sql_text::words;
use super::table::exactly;
use super::{Database, Result};
use crate::model::text::hex;

impl Database {
    /// Stores the hash of the present tables and keeps the one before. Call it inside a
    /// transaction.
    pub(super) fn note_schema_hash(&mut self) -> Result<()> {
        let tables = self.catalog.by_name.values();
        let hash = schema_hash(tables.map(|table| &table.schema));
        let known: Option<String> = get_meta(&self.conn, Meta::SchemaSha256)?;
        if known.as_deref() != Some(&*hash) {
            if let Some(known) = known {
                set_meta(&self.conn, Meta::SchemaSha256Before, known)?;
            }
            set_meta(&self.conn, Meta::SchemaSha256, hash)?;
            self.is_news = true;
        }
        Ok(())
    }

    /// The hash of the tables, and the one from before they changed last. None if there is none
    /// yet.
    pub fn schema_hashes(&self) -> Result<(Option<String>, Option<String>)> {
        let read = |key| get_meta(&self.conn, key);
        Ok((read(Meta::SchemaSha256)?, read(Meta::SchemaSha256Before)?))
    }
}

/// The hash of the tables in hexadecimal. Their order does not matter.
pub(crate) fn schema_hash<'s>(tables: impl Iterator<Item = &'s Schema>) -> String {
    let mut texts: Vec<String> = tables.map(table_text).collect();
    texts.sort_unstable();
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hex(&hash.finalize())
}

/// A table's definition in a form of its own, one fact a line. Names are written with escapes, so
/// they contain no line break.
fn table_text(schema: &Schema) -> String {
    let mut lines = vec![format!("table {:?}", schema.name.to_lowercase())];
    for key in &schema.key {
        lines.push(format!(
            "key {:?} {} {:?}",
            key.name.to_lowercase(),
            key.affinity,
            key.collation.to_lowercase()
        ));
    }
    let mut facts: Vec<String> = schema.columns.iter().map(column_text).collect();
    let generated = schema.generated.iter();
    facts.extend(generated.map(|name| format!("generated {:?}", name.to_lowercase())));
    facts.extend(schema.unique.iter().map(unique_text));
    facts.sort_unstable();
    lines.extend(facts);
    lines.join("\n")
}

fn column_text(column: &Column) -> String {
    format!(
        "column {:?} {} not_null={} default={} {}",
        column.lower,
        column.affinity.name(),
        column.not_null,
        hex(&exactly(column.default_now.borrow())),
        words_text(column.default_by_time.as_deref())
    )
}

fn unique_text(index: &UniqueIndex) -> String {
    let term = |(term, collation): &(String, String)| (words(term), collation.to_lowercase());
    let terms: Vec<_> = index.terms.iter().map(term).collect();
    let predicate = words_text(index.predicate.as_deref());
    format!("unique {terms:?} {predicate}")
}

/// Written like `{:?}` of an `Option`, which is only `Some` in the builds of
/// `scripts/build-static.sh`: their hash would differ from that of other builds.
fn words_text(sql: Option<&str>) -> String {
    sql.map_or("None".into(), |sql| format!("Some({:?})", words(sql)))
}

#[cfg(test)]
mod tests {
    use crate::apply::tests::support::Node;

    fn hash(sql: &str) -> String {
        Node::new(1, sql).db.schema_hashes().unwrap().0.unwrap()
    }

    #[test]
    fn spelling_makes_no_difference() {
        let plain = "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT UNIQUE, n INT DEFAULT 1);
             CREATE TABLE other(k TEXT PRIMARY KEY) WITHOUT ROWID";
        let same = "create table OTHER( [K] varchar(9) primary key ) without rowid;
             CREATE TABLE \"Item\"(Id INTEGER PRIMARY KEY, n BIGINT DEFAULT (1), `NAME` CLOB);
             CREATE UNIQUE INDEX by_name ON item(name)";
        assert_eq!(hash(same), hash(plain));
        assert_eq!(hash(plain).len(), 64);
    }

    #[test]
    fn each_difference_that_counts_is_seen() {
        let mut hashes: Vec<String> = [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT)",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a INT)",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT NOT NULL)",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT DEFAULT '')",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT DEFAULT CURRENT_TIMESTAMP)",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT UNIQUE)",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT COLLATE NOCASE UNIQUE)",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT);
             CREATE UNIQUE INDEX u ON t(a) WHERE a > 'b'",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT);
             CREATE UNIQUE INDEX u ON t(lower(a))",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, b TEXT)",
            "CREATE TABLE u(id INTEGER PRIMARY KEY, a TEXT)",
            "CREATE TABLE t(id TEXT PRIMARY KEY, a TEXT)",
            "CREATE TABLE t(id TEXT COLLATE NOCASE PRIMARY KEY, a TEXT)",
            "CREATE TABLE t(id INTEGER, a TEXT, PRIMARY KEY(id, a))",
            "CREATE TABLE t(id INTEGER, a TEXT, PRIMARY KEY(a, id))",
        ]
        .iter()
        .map(|sql| hash(sql))
        .collect();
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    /// Nodes of all versions and builds compare it.
    #[test]
    fn the_hash_stays_as_it_is() {
        let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT DEFAULT 'x',
                 at TEXT DEFAULT CURRENT_TIMESTAMP);
             CREATE UNIQUE INDEX u ON t(lower(a)) WHERE a > 'b'";
        let known = "9fbcb4d1254756b9e2ef644a338647bfe84e1edb55f258cf301298634755bd0b";
        assert_eq!(hash(sql), known);
    }

    #[test]
    fn the_hash_before_is_kept() {
        let mut node = Node::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY)");
        let (first, none) = node.db.schema_hashes().unwrap();
        assert_eq!(none, None);
        node.run("ALTER TABLE t ADD COLUMN a");
        node.capture();
        let (second, before) = node.db.schema_hashes().unwrap();
        assert_ne!(second, first);
        assert_eq!(before, first);
        node.run("VACUUM");
        node.capture();
        node.restart();
        assert_eq!(node.db.schema_hashes().unwrap(), (second, before));
    }
}

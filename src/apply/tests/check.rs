//! The content of a node as text to compare, and its invariants.

use std::sync::Arc;

use rusqlite::types::ValueRef;

use super::support::Node;
use crate::database::rows::{Rows, row_values};
use crate::database::schema::{Schema, quote};
use crate::database::table::{Table, versions_table};
use crate::database::values;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

impl Node {
    /// The rows of a query, one per line: class and bits of every value.
    pub(crate) fn rows(&self, query: &str) -> String {
        let mut statement = self.app.prepare(query).unwrap();
        let count = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        let mut out = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..count).map(|i| show(row.get_ref(i).unwrap()));
            out.push(values.collect::<Vec<_>>().join(" "));
        }
        out.join("\n")
    }

    fn texts(&self, query: &str) -> Vec<String> {
        let mut statement = self.app.prepare(query).unwrap();
        let rows = statement.query_map([], |r| r.get(0)).unwrap();
        rows.collect::<rusqlite::Result<_>>().unwrap()
    }

    /// The rows of every user table, with generated columns, and with rowids where there is no key.
    pub(crate) fn dump(&self) -> String {
        let mut out = String::new();
        for table in self.texts(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table'
             AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT GLOB '__harmonylite__*'
             ORDER BY name",
        ) {
            let columns = self.texts(&format!(
                "SELECT name FROM pragma_table_xinfo('{}') ORDER BY name",
                table.replace('\'', "''")
            ));
            let columns: Vec<String> = columns.iter().map(|c| quote(c)).collect();
            let rows = self.rows(&format!(
                "SELECT {} FROM {}",
                columns.join(", "),
                quote(&table)
            ));
            let mut lines: Vec<String> = rows.lines().map(|l| format!("{table}: {l}")).collect();
            lines.sort_unstable();
            out += &format!("{table}({})\n{}\n", columns.join(", "), lines.join("\n"));
        }
        out
    }

    /// The versions of every row: nodes must agree on them, too.
    pub(crate) fn versions(&self) -> String {
        let mut out = String::new();
        for table in self.texts("SELECT name FROM __harmonylite___tables ORDER BY name") {
            let Some(known) = self.db.tables().get(&table.to_ascii_lowercase()) else {
                continue;
            };
            let mut statement = self
                .db
                .conn
                .prepare(&format!(
                    "SELECT v.*, s.node FROM {} v JOIN __harmonylite___sites s USING (site)",
                    versions_table(&table)
                ))
                .unwrap();
            let n = known.key_len();
            let read = |row: &rusqlite::Row<'_>| {
                let key = known.key_bytes((0..n).map(|i| values::column(row, i)));
                let site = n + 6 + usize::from(known.has_births);
                let rest = [n, site, n + 2].map(|i| show(row.get_ref(i).unwrap()));
                let mut rows = Rows::new(&self.db.conn, known).unwrap();
                let values: Vec<Value<'_>> = (0..n).map(|i| values::column(row, i)).collect();
                let stored = rows.version(&self.db.sites, &values).unwrap().unwrap();
                let mut own = stored.state.exceptions;
                // A column that was never written may be stored as such, or may just be younger
                // than the row.
                own.retain(|_, version| *version != Version::NEVER);
                Ok(format!("{} {rest:?} {own:?}", key.escape_ascii()))
            };
            let lines = statement.query_map([], read).unwrap();
            let mut lines: Vec<String> = lines.collect::<rusqlite::Result<_>>().unwrap();
            lines.sort_unstable();
            out += &format!("{table}\n{}\n", lines.join("\n"));
        }
        out
    }

    /// Asserts that rows and versions fit each other, and that nothing is left over.
    pub(crate) fn check(&mut self) {
        assert_eq!(self.capture(), 0, "what was applied is taken for a change");
        assert_eq!(
            self.db.unsent().unwrap(),
            0,
            "what was applied is published"
        );
        let tables: Vec<Arc<Table>> = self.db.tables().values().cloned().collect();
        for table in tables {
            self.check_table(&table);
        }
        let integrity = self.texts("PRAGMA integrity_check");
        assert_eq!(integrity, ["ok"]);
    }

    fn check_table(&self, table: &Table) {
        let schema: &Schema = &table.schema;
        let mut rows = Rows::new(&self.db.conn, table).unwrap();
        let not_null: Vec<String> = (0..table.key_len())
            .map(|i| format!("{} IS NOT NULL", schema.column_sql(i)))
            .collect();
        let columns: Vec<String> = (0..schema.columns.len())
            .map(|i| schema.column_sql(i))
            .collect();
        let text = format!(
            "SELECT {} FROM {} WHERE {}",
            columns.join(", "),
            quote(table.name()),
            not_null.join(" AND ")
        );
        let mut statement = self.db.conn.prepare(&text).unwrap();
        let mut all = statement.query([]).unwrap();
        let mut live = 0;
        while let Some(row) = all.next().unwrap() {
            live += 1;
            let key: Vec<Value<'_>> = (0..table.key_len())
                .map(|i| values::column(row, i))
                .collect();
            let stored = rows.version(&self.db.sites, &key).unwrap();
            let stored =
                stored.unwrap_or_else(|| panic!("{}: no version of {key:?}", table.name()));
            assert!(
                !stored.state.deleted,
                "{}: {key:?} is there, but deleted",
                table.name()
            );
            let hash = table.content_hash(stored.local_tx, row_values(row, columns.len()));
            assert_eq!(stored.hash, hash, "{}: hash of {key:?}", table.name());
        }
        let count = |text: &str| -> i64 {
            self.db
                .conn
                .query_row(text, [], |r| r.get(0))
                .unwrap_or_else(|e| panic!("{e}: {text}"))
        };
        let versions = count(&format!(
            "SELECT count(*) FROM {} WHERE deleted = 0",
            versions_table(table.name())
        ));
        let displaced = count(&format!(
            "SELECT count(*) FROM __harmonylite___displaced WHERE table_id = {}",
            table.id
        ));
        assert_eq!(versions, live + displaced, "{}: live rows", table.name());
    }
}

fn show(value: ValueRef<'_>) -> String {
    match values::value(value).to_owned() {
        OwnedValue::Real(r) => format!("r{:016x}({r:?})", r.to_bits()),
        OwnedValue::Null => "null".into(),
        OwnedValue::Integer(i) => format!("i{i}"),
        OwnedValue::Text(t) => format!("t'{}'", t.escape_ascii()),
        OwnedValue::Blob(b) => format!("x'{}'", b.escape_ascii()),
    }
}

/// Asserts equality; on failure shows only the lines that differ.
pub(super) fn assert_same(left: &str, right: &str) {
    let only = |a: &str, b: &str| -> Vec<String> {
        let of_b: Vec<&str> = b.lines().collect();
        a.lines()
            .filter(|l| !of_b.contains(l))
            .map(Into::into)
            .collect()
    };
    assert_eq!(only(left, right), only(right, left));
    assert_eq!(left, right);
}

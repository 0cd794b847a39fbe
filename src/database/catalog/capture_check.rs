//! Checks by reading alone whether there is anything to capture.
//!
//! Most hints of a change are false: HarmonyLite's own writes, commits to tables that are not
//! replicated, views that an application makes and drops. A write transaction for each of them
//! would block those of the application.

use rusqlite::Connection;

use crate::database::{Database, Result, triggers};

/// Hashes of the schema's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Text {
    views: u64,
    /// Tables, indexes and triggers, including HarmonyLite's own.
    others: u64,
}

/// Result of a check.
enum CaptureCheck {
    Waits,
    /// Nothing to do, at these versions of the data and of the schema.
    Nothing(i64, i64),
}

impl Database {
    /// Whether a capture would find something to do. Takes no write lock, and notes what it read in
    /// memory only.
    pub fn waits_for_capture(&mut self) -> Result<bool> {
        if self.has_more() || self.has_first_rows() {
            return Ok(true);
        }
        let check_for_capture = {
            let _snapshot = self.conn.unchecked_transaction()?;
            self.check_for_capture()?
        };
        let CaptureCheck::Nothing(data, schema) = check_for_capture else {
            return Ok(true);
        };
        self.seen_data_version = data;
        if self.catalog.schema_version != Some(schema) {
            self.catalog.schema_version = Some(schema);
            self.catalog.text = Some(self.schema_text()?);
            self.catalog.is_unnoted = true;
        }
        Ok(false)
    }

    fn check_for_capture(&self) -> Result<CaptureCheck> {
        let (data, schema) = (self.data_version()?, self.schema_version()?);
        if self.catalog.schema_version != Some(schema) {
            self.check_not_restored()?;
            if !self.is_about_views(schema)? {
                return Ok(CaptureCheck::Waits);
            }
        }
        let is_idle = is_log_empty(&self.conn)? && !self.is_asked_to_drop()?;
        Ok(match is_idle {
            true => CaptureCheck::Nothing(data, schema),
            false => CaptureCheck::Waits,
        })
    }

    /// Whether only views came or went since the catalog was read. A VACUUM does not change the
    /// text, either, and rows keyed by rowid must be compared after a VACUUM. So with such tables
    /// the answer is true only for a change by one step that the views explain.
    fn is_about_views(&self, version: i64) -> Result<bool> {
        let (Some(known), Some(text)) = (self.catalog.schema_version, self.catalog.text) else {
            return Ok(false);
        };
        let now = self.schema_text()?;
        let mut tables = self.catalog.by_id.values();
        let has_rowids = tables.any(|t| t.schema.rowid.is_some());
        let is_explained = known.wrapping_add(1) == version && now.views != text.views;
        Ok(now.others == text.others && (is_explained || !has_rowids))
    }

    pub(super) fn schema_text(&self) -> Result<Text> {
        let mut statement = self.conn.prepare_cached(
            "SELECT type = 'view', name, coalesce(sql, '') FROM sqlite_schema ORDER BY type, name",
        )?;
        let mut hashes = [
            xxhash_rust::xxh3::Xxh3::new(),
            xxhash_rust::xxh3::Xxh3::new(),
        ];
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let hash = &mut hashes[usize::from(row.get::<_, bool>(0)?)];
            for column in 1..=2 {
                hash.update(row.get_ref(column)?.as_bytes().unwrap_or_default());
                hash.update(&[0]);
            }
        }
        let [others, views] = hashes.map(|h| h.digest());
        Ok(Text { views, others })
    }
}

fn is_log_empty(conn: &Connection) -> Result<bool> {
    let text = format!("SELECT 1 FROM {} LIMIT 1", triggers::LOG);
    Ok(!conn.prepare_cached(&text)?.exists([])?)
}

#[cfg(test)]
mod tests {
    use crate::apply::tests::support::Node;

    const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    const KEYLESS: &str = "CREATE TABLE t(v)";

    fn waits(node: &mut Node) -> bool {
        node.db.is_changed().unwrap() && node.db.waits_for_capture().unwrap()
    }

    #[test]
    fn a_schema_change_beside_our_tables_writes_nothing() {
        let mut node = Node::new(1, SCHEMA);
        node.capture();
        node.run(
            "CREATE TABLE \
            __harmonylite__none(x)",
        ); // is not replicated, but a change of the schema
        node.capture();
        node.run("INSERT INTO __harmonylite__none VALUES (1)");
        node.app.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(node.db.is_changed().unwrap());
        assert!(!waits(&mut node), "which needs no lock");
        node.app.execute_batch("COMMIT").unwrap();
        assert!(!node.db.is_changed().unwrap(), "it is noted");
        node.run("INSERT INTO t VALUES (1, 'a')");
        assert!(waits(&mut node));
        assert_eq!(node.capture(), 1);
        assert!(!waits(&mut node));
    }

    #[test]
    fn views_come_and_go_without_a_write() {
        for (schema, text, is_seen) in [
            (SCHEMA, "CREATE VIEW a AS SELECT 1", false),
            (SCHEMA, "CREATE VIEW a AS SELECT 1; DROP VIEW a", false),
            (SCHEMA, "CREATE TABLE u(id INTEGER PRIMARY KEY)", true),
            (SCHEMA, "CREATE INDEX i ON t(v)", true),
            (SCHEMA, "DROP TRIGGER __harmonylite__t_on_insert", true),
            (KEYLESS, "CREATE VIEW a AS SELECT 1", false),
            (KEYLESS, "CREATE VIEW a AS SELECT 1; DROP VIEW a", true),
            (KEYLESS, "VACUUM", true),
        ] {
            let mut node = Node::new(1, schema);
            node.run("INSERT INTO t(v) VALUES ('a')");
            node.capture();
            let text = match text.strip_prefix("DROP TRIGGER") {
                Some(_) => {
                    let names = "SELECT name FROM sqlite_schema WHERE type = 'trigger' LIMIT 1";
                    let name: String = node.app.query_row(names, [], |r| r.get(0)).unwrap();
                    format!("DROP TRIGGER \"{name}\"")
                }
                None => text.to_owned(),
            };
            node.run(&text);
            assert_eq!(waits(&mut node), is_seen, "{schema}: {text}");
        }
    }

    /// A schema version that was not stored at the time is stored with the next write, and does not
    /// look like a VACUUM later.
    #[test]
    fn a_view_is_noted_with_the_next_capture() {
        let mut node = Node::new(1, KEYLESS);
        node.run("INSERT INTO t(v) VALUES ('a')");
        node.capture();
        node.run("CREATE VIEW a AS SELECT 1");
        assert!(!waits(&mut node));
        node.run("CREATE TABLE u(id INTEGER PRIMARY KEY)");
        assert!(waits(&mut node));
        node.db.capture().unwrap();
        assert!(!node.db.is_comparing(), "as if it had been a VACUUM");
        node.run("CREATE VIEW b AS SELECT 1");
        assert!(!waits(&mut node));
        node.run("INSERT INTO t(v) VALUES ('b')");
        node.capture();
        node.restart();
        assert!(!node.db.is_comparing());
    }
}

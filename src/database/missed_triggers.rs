//! Finds triggers of the application that fill a table which is not replicated (a full-text index,
//! a table of `[tables] exclude`) and do not run for arriving changes. On other nodes that table
//! lacks the rows that these triggers would write. That may be intended; if not, the triggers
//! belong into `apply_triggers`.

use std::collections::{BTreeMap, HashSet};

use crate::database::{Database, Result, sql_text, values};

impl Database {
    /// Finds such triggers, and logs those that are new. Inside a transaction, with the catalog up
    /// to date.
    pub(super) fn find_missed_triggers(&mut self) -> Result<()> {
        let not_here = self.not_replicated().iter();
        let not_here: HashSet<String> = not_here.map(|l| l.table.to_ascii_lowercase()).collect();
        let mut found = BTreeMap::new();
        if !not_here.is_empty() {
            let mut list = self.conn.prepare_cached(
                "SELECT name, lower(tbl_name), sql FROM sqlite_schema
                 WHERE type = 'trigger' AND name NOT GLOB '__harmonylite__*'",
            )?;
            let mut rows = list.query([])?;
            while let Some(row) = rows.next()? {
                let (name, table) = (values::lossy(row, 0)?, values::lossy(row, 1)?);
                let chosen = &self.settings.apply_triggers;
                let is_chosen = chosen.iter().any(|c| c.eq_ignore_ascii_case(&name));
                let is_watched = self.catalog.by_name.contains_key(&table);
                let words = sql_text::words(&values::lossy(row, 2)?);
                if let (true, false, Some(to)) = (is_watched, is_chosen, written(&words, &not_here))
                {
                    found.insert(name, to);
                }
            }
        }
        for (name, table) in &found {
            if self.missed_triggers.get(name) != Some(table) {
                log::warn!(
                    "trigger {name} writes to {table}, which is not replicated, and does not run \
                     for changes that arrive: if it should, add it to apply_triggers"
                );
            }
        }
        self.missed_triggers = found;
        Ok(())
    }

    /// Triggers of the application that write to a table that is not replicated and are not in
    /// `apply_triggers`, by name, each with one such table.
    pub fn missed_triggers(&self) -> &BTreeMap<String, String> {
        &self.missed_triggers
    }
}

/// The first of the tables to which the statements of a trigger write.
fn written(words: &[String], tables: &HashSet<String>) -> Option<String> {
    // The words before `begin` are the trigger's own event: DELETE ON, UPDATE OF.
    let begin = words.iter().position(|w| w == "begin")?;
    let mut rest = &words[begin..];
    while let Some((word, after)) = rest.split_first() {
        let after_verb = match (word.as_str(), after) {
            ("insert" | "replace", [into, name, ..]) if into == "into" => Some(name),
            ("insert", [or, _, into, name, ..]) if or == "or" && into == "into" => Some(name),
            ("delete", [from, name, ..]) if from == "from" => Some(name),
            ("update", [or, _, name, ..]) if or == "or" => Some(name),
            ("update", [name, ..]) => Some(name),
            _ => None,
        };
        if let Some(name) = after_verb.filter(|name| tables.contains(*name)) {
            return Some(name.clone());
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::apply::tests::support::Node;

    #[test]
    fn triggers_that_fill_an_index_are_named() {
        let schema = "
            CREATE TABLE t(id INTEGER PRIMARY KEY, body);
            CREATE TABLE u(id INTEGER PRIMARY KEY);
            CREATE VIRTUAL TABLE docs USING fts5(body, content='t', content_rowid='id');
            CREATE TRIGGER fill AFTER INSERT ON t BEGIN
                INSERT INTO docs(rowid, body) VALUES (NEW.id, NEW.body); END;
            CREATE TRIGGER chosen AFTER DELETE ON t BEGIN
                INSERT INTO docs(docs, rowid, body) VALUES ('delete', OLD.id, OLD.body); END;
            CREATE TRIGGER \"drops\" AFTER UPDATE OF body ON t BEGIN
                SELECT 1; DELETE FROM \"Docs\" WHERE rowid = OLD.id; END;
            CREATE TRIGGER other AFTER UPDATE ON t BEGIN INSERT INTO u SELECT max(rowid) FROM \
            docs; END";
        let mut node = Node::with(1, schema, |s| s.apply_triggers = vec!["Chosen".into()]);
        let missed = |node: &Node| -> Vec<String> {
            let all = node.db.missed_triggers().iter();
            all.map(|(trigger, table)| format!("{trigger} {table}"))
                .collect()
        };
        assert_eq!(missed(&node), ["drops docs", "fill docs"]);
        node.run("DROP TRIGGER fill");
        node.capture();
        assert_eq!(missed(&node), ["drops docs"]);
    }
}

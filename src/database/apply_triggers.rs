//! The application's triggers that run for changes that arrive, too: `apply_triggers`.

use rusqlite::OptionalExtension;

use crate::database::schema::quote;
use crate::database::{Database, DatabaseError, Result, sql_text};

impl Database {
    /// Triggers are off on our connection, but those of the temporary schema fire all the same: the
    /// ones chosen in `apply_triggers` are copied there.
    /// One that is gone by now, or does not fit its table any more, is named and left out.
    pub(crate) fn copy_apply_triggers(&self) -> Result<()> {
        for name in &self.settings.apply_triggers {
            let own = apply_trigger(name);
            let text = self.trigger_text(name)?;
            let made = match text.as_deref().and_then(sql_text::after_trigger_name) {
                Some(rest) => self
                    .conn
                    .execute_batch(&format!("CREATE TEMP TRIGGER {own} {rest}"))
                    .map_err(DatabaseError::from),
                None => Err(DatabaseError::NoSuchTrigger(name.clone())),
            };
            match made {
                Err(e) if e.is_temporary() => return Err(e),
                Err(DatabaseError::NoSuchTrigger(_)) if self.awaits_schema()? => {
                    log::warn!("apply_triggers: {name} is looked for again when the schema comes");
                }
                Err(e) => log::error!("trigger {name} does not run for what arrives: {e}"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    pub(crate) fn drop_apply_triggers(&self) -> Result<()> {
        for name in &self.settings.apply_triggers {
            let own = apply_trigger(name);
            self.conn
                .execute_batch(&format!("DROP TRIGGER IF EXISTS temp.{own}"))?;
        }
        Ok(())
    }

    /// At the start every trigger in `apply_triggers` must be there: a name may be misspelled. Where
    /// the schema is still to come, from the application or with a snapshot, they come with it.
    pub(crate) fn require_apply_triggers(&self) -> Result<()> {
        if self.awaits_schema()? {
            return Ok(());
        }
        for name in &self.settings.apply_triggers {
            if self.trigger_text(name)?.is_none() {
                return Err(DatabaseError::NoSuchTrigger(name.clone()));
            }
        }
        Ok(())
    }

    /// Whether there is no table of the application yet, or a snapshot may bring some.
    fn awaits_schema(&self) -> Result<bool> {
        if self.settings.joins_by_snapshot && !self.joined {
            return Ok(true);
        }
        let text = "SELECT NOT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table'
            AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '__harmonylite__*')";
        Ok(self
            .conn
            .prepare_cached(text)?
            .query_row([], |r| r.get(0))?)
    }

    fn trigger_text(&self, name: &str) -> Result<Option<String>> {
        Ok(self
            .conn
            .prepare_cached("SELECT sql FROM main.sqlite_schema WHERE type = 'trigger' AND name = ?1 COLLATE NOCASE")?
            .query_row([name], |r| r.get(0))
            .optional()?)
    }
}

fn apply_trigger(name: &str) -> String {
    quote(&format!("apply_{name}"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use rusqlite::Connection;

    use super::*;
    use crate::apply::tests::support::{Node, exchange, settings};
    use crate::clock::SystemClock;
    use crate::database::Settings;

    const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE seen(id);
        CREATE TRIGGER note AFTER INSERT ON t BEGIN INSERT INTO seen VALUES (new.id); END";

    fn named(settings: &mut Settings) {
        settings.apply_triggers = vec!["note".into()];
    }

    #[test]
    fn they_come_with_the_schema() {
        let mut n = vec![
            Node::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)"),
            Node::with(2, "", named),
        ];
        n[1].run(SCHEMA);
        n[1].capture();
        n[0].run("INSERT INTO t VALUES (7, 'a')");
        exchange(&mut n);
        assert_eq!(n[1].rows("SELECT id FROM seen"), "i7");
    }

    #[test]
    fn a_misspelled_name_is_refused_where_tables_are() {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("a.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY)")
            .unwrap();
        let mut settings = Settings { path, ..settings() };
        named(&mut settings);
        let refused = Database::open(settings, Arc::new(SystemClock), Arc::default());
        assert!(matches!(refused, Err(DatabaseError::NoSuchTrigger(_))));
    }
}

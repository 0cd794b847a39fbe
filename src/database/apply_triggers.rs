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

    /// At the start every trigger in `apply_triggers` must be there: a name may be misspelled.
    pub(crate) fn require_apply_triggers(&self) -> Result<()> {
        for name in &self.settings.apply_triggers {
            if self.trigger_text(name)?.is_none() {
                return Err(DatabaseError::NoSuchTrigger(name.clone()));
            }
        }
        Ok(())
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

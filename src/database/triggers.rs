//! The triggers that note which rows the application touched.
//!
//! The triggers append one small row per change to the change log: table, kind, time, key. Capture
//! reads the values later, as the rows then are. Nothing here calls a function that SQLite does not
//! allow in triggers with `trusted_schema = OFF`.
//!
//! One further trigger never fires: it lists the columns. ALTER TABLE RENAME COLUMN puts the new
//! name into that list, and DROP COLUMN leaves the list alone. So the list tells a renamed column
//! from a column that was added after a different one had been dropped.

use crate::database::MissedEvents;
use crate::database::plain_condition;
use crate::database::replacing::TABLE;
use crate::database::schema::{Affinity, Column, PREFIX, Schema, UniqueIndex, quote};
use crate::database::sql_text;
use crate::model::text::sql_literal;
use crate::model::value::OwnedValue;
use crate::mutation::{self, Mutation};

/// Kind of a log entry: the application wrote or deleted the row.
pub const REAL: i64 = 0;
/// Kind of a log entry: a REPLACE may have evicted the row through one of its UNIQUE indexes, which
/// fires no delete trigger.
pub const MAYBE: i64 = 1;

/// Kind of a log entry: the application inserted the row. The kinds from here on are told apart
/// where rows get births.
pub const INSERT: i64 = 2;
/// Kind of a log entry: a statement is about to insert the row, and gives its number.
pub const GIVEN: i64 = 3;
/// Kind of a log entry: the application deleted the row.
pub const DELETE: i64 = 4;

/// Alias of the table's rows in a trigger's statement.
const ROW: &str = "__harmonylite__row";

/// Name of the change log.
pub const LOG: &str = "__harmonylite___change_log_global";

/// Unix milliseconds, exact to half a millisecond. `unixepoch('subsec')` would need SQLite 3.42,
/// and the application brings its own SQLite.
const NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000.0 + 0.5 AS INTEGER)";

/// Names and texts of the triggers that a table needs, as `sqlite_schema` stores them. With
/// `births` they tell how a row came under its number.
pub fn wanted(table: i64, schema: &Schema, births: bool) -> Vec<(String, String)> {
    let log = LogSql { table, schema };
    let tells = births && schema.is_numbered();
    let kind = |kind: i64| if tells { kind } else { REAL };
    let mut new = vec![
        log.append("NEW", REAL),
        log.append_changed_key("OLD", kind(DELETE)),
    ];
    if tells {
        new.extend([GIVEN, INSERT].map(|kind| log.append_changed_key("NEW", kind)));
    }
    let mut triggers = vec![
        log.trigger(
            "insert",
            "AFTER INSERT",
            "",
            &[log.append("NEW", kind(INSERT))],
        ),
        log.trigger(
            "update",
            "AFTER UPDATE",
            "",
            match mutation::is(Mutation::KeyUpdateKeepsOld) {
                true => &new[..1],
                false => &new[..],
            },
        ),
        log.trigger(
            "delete",
            "AFTER DELETE",
            "",
            &[log.append("OLD", kind(DELETE))],
        ),
        log.trigger(
            "columns",
            &format!("AFTER UPDATE OF {}", stored_columns(schema)),
            " WHEN 0",
            &["SELECT 1".to_owned()],
        ),
    ];
    if tells {
        // NEW's rowid is -1 unless the statement gives one.
        let given = format!(" WHEN NEW.{} IS NOT -1", schema.column_sql(0));
        let append = [log.append("NEW", GIVEN)];
        triggers.push(log.trigger("given", "BEFORE INSERT", &given, &append));
    }
    if !schema.unique.is_empty() {
        let by_insert = |u: &UniqueIndex| match log.exactly_shares(u) {
            Some(shares) => log.replaced(&shares),
            None => log.evicted(u, false),
        };
        let inserts: Vec<String> = schema.unique.iter().map(by_insert).collect();
        let updates: Vec<String> = schema.unique.iter().map(|u| log.evicted(u, true)).collect();
        triggers.push(log.trigger("insert_before", "BEFORE INSERT", "", &inserts));
        let event = format!("BEFORE UPDATE{}", of_columns(schema));
        triggers.push(log.trigger("update_before", &event, "", &updates));
    }
    if let Some(rowid) = schema.other_rowid {
        // NEW's rowid is -1 unless the statement gives one.
        let (given, moved) = (
            format!(" WHEN NEW.{rowid} IS NOT -1"),
            format!(" WHEN NEW.{rowid} IS NOT OLD.{rowid}"),
        );
        let same = format!("{ROW}.{rowid} = NEW.{rowid}");
        let evicted = [log.append_maybe(&same)];
        let by_insert = match schema.tells_replacing() {
            true => [log.replaced(&same)],
            false => evicted.clone(),
        };
        triggers.push(log.trigger("insert_rowid", "BEFORE INSERT", &given, &by_insert));
        triggers.push(log.trigger("update_rowid", "BEFORE UPDATE", &moved, &evicted));
    }
    triggers
}

/// Statements for a trial compilation. If SQLite can compile them, it can compile the triggers
/// whose conditions use more than columns.
pub fn trials(schema: &Schema) -> Vec<String> {
    let (log, table) = (LogSql { table: 0, schema }, quote(&schema.name));
    let trial = |index| {
        let shares = log.shares(index, true);
        format!(
            "SELECT EXISTS (SELECT 1 FROM {table} AS {ROW} WHERE {shares})
             FROM {table} AS NEW, {table} AS OLD"
        )
    };
    schema.unique.iter().map(trial).collect()
}

/// The events that went unnoted while the trigger with this name was missing.
pub fn missing_without(name: &str) -> MissedEvents {
    let ends = |with: &[&str]| with.iter().any(|end| name.ends_with(end));
    if ends(&["_columns"]) {
        MissedEvents::None
    } else if ends(&["_before", "_rowid"]) {
        MissedEvents::OfEvictions
    } else {
        MissedEvents::OfWrites
    }
}

/// Name of the trigger that lists the columns of the table.
pub fn list_name(table: &str) -> String {
    format!("{PREFIX}{table}_columns")
}

/// The columns in the text of the trigger that lists them, in lower case.
pub fn listed(text: &str) -> Vec<String> {
    let after_name = sql_text::after_trigger_name(text).unwrap_or_default();
    let mut words = sql_text::words(after_name).into_iter();
    let mut columns = Vec::new();
    // AFTER UPDATE OF, then a comma before every further column.
    let mut before = words.nth(2);
    while before.is_some_and(|word| columns.is_empty() || word == ",") {
        columns.extend(words.next());
        before = words.next();
    }
    columns
}

fn stored_columns(schema: &Schema) -> String {
    let rowid = usize::from(schema.rowid.is_some());
    let columns = schema.columns.iter().skip(rowid);
    let columns: Vec<String> = columns.map(|c| quote(&c.name)).collect();
    columns.join(", ")
}

/// The OF clause of the BEFORE UPDATE trigger: an UPDATE that names no column of a UNIQUE index
/// cannot evict. The columns stand in the table's order, which a renamed column keeps. The clause
/// is empty if an index is more than stored columns.
fn of_columns(schema: &Schema) -> String {
    let names = schema.unique.iter().map(|u| u.columns.as_ref());
    let Some(names) = names.collect::<Option<Vec<_>>>() else {
        return String::new();
    };
    let named = |c: &&Column| names.iter().any(|all| all.contains(&c.name));
    let columns = schema.columns.iter().filter(named);
    let columns: Vec<String> = columns.map(|c| quote(&c.name)).collect();
    format!(" OF {}", columns.join(", "))
}

struct LogSql<'a> {
    table: i64,
    schema: &'a Schema,
}

impl LogSql<'_> {
    fn trigger(
        &self,
        suffix: &str,
        event: &str,
        when: &str,
        statements: &[String],
    ) -> (String, String) {
        let name = format!("{PREFIX}{}_{suffix}", self.schema.name);
        let body: String = statements.iter().map(|s| format!(" {s};")).collect();
        let on = quote(&self.schema.name);
        let text = format!(
            "CREATE TRIGGER {} {event} ON {on}{when} BEGIN{body} END",
            quote(&name)
        );
        (name, text)
    }

    fn into(&self) -> String {
        let keys: Vec<String> = (1..=self.schema.key_len())
            .map(|i| format!("k{i}"))
            .collect();
        format!(
            "INSERT INTO {LOG}(table_id, kind, created_at, {})",
            keys.join(", ")
        )
    }

    fn key_of(&self, row: &str) -> String {
        let key =
            (0..self.schema.key_len()).map(|i| format!("{row}.{}", self.schema.column_sql(i)));
        key.collect::<Vec<_>>().join(", ")
    }

    fn append(&self, row: &str, kind: i64) -> String {
        format!(
            "{} VALUES ({}, {kind}, {NOW}, {})",
            self.into(),
            self.table,
            self.key_of(row)
        )
    }

    /// The condition that a key column of `row` equals OLD's, compared as the key's own index
    /// compares.
    fn same_key_column(&self, i: usize, row: &str) -> String {
        let column = self.schema.column_sql(i);
        let collation = quote(&self.schema.key[i].collation);
        format!("({row}.{column} IS OLD.{column} COLLATE {collation})")
    }

    /// Notes the key of `row`, OLD or NEW, if an UPDATE changed it: that UPDATE deletes the row
    /// under the old key.
    fn append_changed_key(&self, row: &str, kind: i64) -> String {
        let changed: Vec<String> = (0..self.schema.key_len())
            .map(|i| format!("NOT {}", self.same_key_column(i, "NEW")))
            .collect();
        let (into, key) = (self.into(), self.key_of(row));
        format!(
            "{into} SELECT {}, {kind}, {NOW}, {key} WHERE {}",
            self.table,
            changed.join(" OR ")
        )
    }

    /// Expressions for the value that a term of an index has in the new row. Each evaluates the
    /// term over a row with the columns that the term names, and no others: SQLite refuses to drop
    /// a column that we name.
    ///
    /// The columns of such a row have no affinity, so a comparison inside the expression may have a
    /// different result than in the table. A CAST gives them the affinity, but alters a value that
    /// is not of the column's class. So both ways are tried; blobs get no CAST, because affinity
    /// leaves them as they are. Rows that a partial index or a CHECK leaves out are not evaluated:
    /// the expression may fail on them.
    fn of_new(&self, term: &str, predicate: Option<&str>) -> Vec<String> {
        let rowid = usize::from(self.schema.rowid.is_some());
        let stored = self.schema.columns.iter().skip(rowid).map(|c| &c.name);
        let all: Vec<&String> = stored.chain(&self.schema.generated).collect();
        if let Some(column) = all.iter().find(|c| quote(c) == term) {
            return vec![self.new_value(column)];
        }
        let named_in = |text: &str| {
            let words = sql_text::words(text);
            let is_named = |c: &&&String| words.contains(&c.to_ascii_lowercase());
            all.iter().filter(is_named).copied().collect::<Vec<_>>()
        };
        let named = named_in(&format!("{term} {}", predicate.unwrap_or_default()));
        let is_known = |check: &&String| named_in(check).iter().all(|c| named.contains(c));
        let checks = self.schema.checks.iter().filter(is_known);
        let conditions = checks.map(|check| format!("ifnull(({check}), 1)"));
        let conditions = conditions.chain(predicate.map(|p| format!("({p})")));
        let conditions: Vec<String> = conditions.collect();
        if named.is_empty() {
            return vec![term.to_owned()];
        }
        let of_row = |value: &dyn Fn(&String) -> String, conditions: &[String]| {
            let row = named
                .iter()
                .map(|c| format!("{} AS {}", value(c), quote(c)));
            let row: Vec<String> = row.collect();
            let only = match conditions {
                [] => String::new(),
                all => format!(" WHERE {}", all.join(" AND ")),
            };
            format!("(SELECT {term} FROM (SELECT {}){only})", row.join(", "))
        };
        let plain = |column: &String| self.new_value(column);
        let cast = |column: &String| match self.cast_to(column) {
            Some(class) => format!("CAST({} AS {class})", plain(column)),
            None => plain(column),
        };
        let is_cast = |c: &&&String| self.cast_to(c).is_some();
        let not_blobs = named.iter().filter(is_cast);
        let not_blobs = not_blobs.map(|c| format!("typeof({}) <> 'blob'", plain(c)));
        let not_blobs: Vec<String> = not_blobs.chain(conditions.iter().cloned()).collect();
        let mut ways = vec![of_row(&plain, &conditions)];
        // The default that replaces a NULL has no collation, and a condition may depend on that.
        let given = |column: &String| format!("NEW.{}", quote(column));
        if named.iter().any(|c| plain(c) != given(c)) {
            ways.push(of_row(&given, &conditions));
        }
        if not_blobs.len() > conditions.len() {
            ways.push(of_row(&cast, &not_blobs));
        }
        ways
    }

    /// The value that the column will hold. A REPLACE puts the default in the place of a NULL that
    /// is not allowed, but only after BEFORE triggers have run.
    fn new_value(&self, column: &str) -> String {
        let new = format!("NEW.{}", quote(column));
        let mut columns = self.schema.columns.iter();
        let Some(found) = columns.find(|c| c.name == *column && c.not_null) else {
            return new;
        };
        let default = match (&found.default_now, &found.default_by_time) {
            (OwnedValue::Null, Some(text)) => format!("({text})"),
            (OwnedValue::Null, None) => return new,
            (OwnedValue::Real(r), _) if !r.is_finite() => return new,
            (default, _) => sql_literal(default.borrow()),
        };
        format!("coalesce({new}, {default})")
    }

    /// The type to CAST to: the CAST gives values the column's affinity, and leaves stored values
    /// as they are. None if the column needs no CAST.
    fn cast_to(&self, column: &str) -> Option<&'static str> {
        let found = self.schema.columns.iter().find(|c| c.name == *column)?;
        match found.affinity {
            Affinity::Blob => None,
            Affinity::Text => Some("TEXT"),
            Affinity::Real => Some("REAL"),
            Affinity::Integer | Affinity::Numeric => Some("NUMERIC"),
        }
    }

    /// The statement that notes the rows which share the new row's values in a UNIQUE index.
    fn evicted(&self, index: &UniqueIndex, update: bool) -> String {
        self.append_maybe(&self.shares(index, update))
    }

    /// The condition that [`ROW`] conflicts with an INSERT of the new row. None if no exact
    /// condition can be written.
    fn exactly_shares(&self, index: &UniqueIndex) -> Option<String> {
        if !self.schema.tells_replacing() || !self.schema.is_of_columns(index) {
            return None;
        }
        let shares = self.shares(index, false);
        match &index.predicate {
            None => Some(shares),
            Some(predicate) => {
                let is_in = plain_condition::of_new(predicate, self.schema)?;
                Some(format!("{shares} AND {is_in}"))
            }
        }
    }

    /// The condition that [`ROW`] shares the new row's values in a UNIQUE index.
    fn shares(&self, index: &UniqueIndex, update: bool) -> String {
        let predicate = index.predicate.as_deref();
        // The condition does not test whether the new row is in a partial index: a superfluous log
        // entry does no harm.
        let mut conditions: Vec<String> = predicate.map(|p| format!("({p})")).into_iter().collect();
        for (term, collation) in &index.terms {
            let collation = quote(collation);
            conditions.push(match &self.of_new(term, predicate)[..] {
                [new] => format!("{term} = {new} COLLATE {collation}"),
                ways => format!("{term} COLLATE {collation} IN ({})", ways.join(", ")),
            });
        }
        if update {
            let same: Vec<String> = (0..self.schema.key_len())
                .map(|i| self.same_key_column(i, ROW))
                .collect();
            conditions.push(format!("NOT ({})", same.join(" AND ")));
        }
        if update && index.columns.is_none() && !self.schema.generated_from.is_empty() {
            // Before an UPDATE, SQLite computes generated columns of NEW only from columns that the
            // trigger names.
            let from = self.schema.generated_from.iter();
            let named: Vec<String> = from.map(|c| format!("NEW.{} IS NULL", quote(c))).collect();
            conditions.push(format!("({} OR 1)", named.join(" OR ")));
        }
        conditions.join(" AND ")
    }

    /// As [`LogSql::append_maybe`], but takes effect only if the statement says OR REPLACE: see
    /// [`super::replacing`].
    fn replaced(&self, condition: &str) -> String {
        let keys = (1..=self.schema.key_len()).map(|i| format!(", k{i}"));
        format!(
            "INSERT OR IGNORE INTO {TABLE}(id, table_id, created_at{}) \
             SELECT 1, {}, {NOW}, {} FROM {} AS {ROW} WHERE {condition}",
            keys.collect::<String>(),
            self.table,
            self.key_of(ROW),
            quote(&self.schema.name),
        )
    }

    fn append_maybe(&self, condition: &str) -> String {
        format!(
            "{} SELECT {}, {MAYBE}, {NOW}, {} FROM {} AS {ROW} WHERE {condition}",
            self.into(),
            self.table,
            self.key_of(ROW),
            quote(&self.schema.name),
        )
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::database::selection::{all, read};

    #[test]
    fn listed_columns_are_read_whatever_they_are_called() {
        let conn = Connection::open_in_memory().unwrap();
        for table in [
            "CREATE TABLE \"of\"(\"on\" INTEGER PRIMARY KEY, [,] , \"a\"\"b\" UNIQUE, g AS \
             (1), \"\", É)",
            "CREATE TABLE [update of]([c d], \"when\", `e`)",
        ] {
            conn.execute_batch(table).unwrap();
        }
        for schema in read(&conn, &all, true).unwrap().replicated {
            let name = list_name(&schema.name);
            let mut all = wanted(1, &schema, true).into_iter();
            let (_, text) = all.find(|(n, _)| *n == name).unwrap();
            conn.execute_batch(&text).unwrap();
            let columns = schema.columns.iter().map(|c| c.lower.clone());
            let stored: Vec<String> = columns.skip(usize::from(schema.rowid.is_some())).collect();
            assert_eq!(listed(&text), stored);
        }
        assert_eq!(listed("CREATE TRIGGER t"), [""; 0]);
    }

    #[test]
    fn a_condition_that_does_not_hold_here_is_found_before_a_write() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(
            "CREATE TABLE t(a, b, c AS (a || b));
             CREATE UNIQUE INDEX i ON t(lower(c), b COLLATE NOCASE) WHERE t.a > 0",
        )
        .unwrap();
        let mut schema = read(&conn, &all, true).unwrap().replicated.remove(0);
        let compile = |schema: &Schema| {
            let mut texts = trials(schema).into_iter();
            texts.try_for_each(|text| conn.prepare(&text).map(drop))
        };
        compile(&schema).unwrap();
        schema.unique[0].predicate = Some("other.a > 0".into());
        compile(&schema).unwrap_err();
    }
}

//! How each table of a database takes part, and which dangers it has: for `harmonylite inspect`,
//! `-check` and the log of a start. Changes nothing.

use log::Level;
use rusqlite::Connection;

use crate::config::{Config, Tables};
use crate::database::schema::{Schema, quote};
use crate::database::selection::{self, Kind, NotReplicated};
use crate::database::{Database, Result, storage};

mod fed;

pub(crate) use fed::Feeding;

/// The part of the configuration that concerns tables.
pub struct Chosen<'a> {
    /// The rules by which tables are replicated, local or excluded.
    pub tables: &'a Tables,
    /// Names of the application's triggers that run for changes that arrive.
    pub apply_triggers: &'a [String],
    /// Whether tables without a primary key are replicated, by rowid.
    pub allow_rowid_tables: bool,
}

impl<'a> From<&'a Config> for Chosen<'a> {
    fn from(config: &'a Config) -> Self {
        Chosen {
            tables: &config.tables,
            apply_triggers: &config.apply_triggers,
            allow_rowid_tables: config.allow_rowid_tables,
        }
    }
}

/// See the module's head.
pub struct InspectReport {
    /// All tables by name, replicated ones first.
    pub tables: Vec<TableReport>,
    pub(crate) feeding: Vec<Feeding>,
    pub(crate) dangers: Vec<Danger>,
    /// Lines that the configuration should have.
    pub lines: Vec<String>,
}

/// How a table takes part.
pub struct TableReport {
    /// The table's name, as the schema has it.
    pub name: String,
    /// Why the table is not replicated; `None` if it is.
    pub not_replicated: Option<NotReplicated>,
    /// Columns of the primary key. Empty if the table is not replicated, or has no primary key.
    pub key: Vec<String>,
    /// NOT NULL columns of a UNIQUE index, besides the key.
    pub natural_key: Option<Vec<String>>,
    /// Whether SQLite chooses the key of a row that is inserted without one.
    pub numbers_itself: bool,
    /// Features of the table that not every SQLite has.
    pub needs: Vec<Need>,
}

/// A feature of the schema that not every SQLite has.
pub struct Need {
    /// Name of the feature in SQL.
    pub feature: &'static str,
    /// The first SQLite that has it, such as 3.37.0.
    pub version: &'static str,
}

/// Something that can make nodes differ or lose rows.
pub(crate) struct Danger {
    pub text: String,
    /// Whether a daemon logs it when it reads the catalog.
    pub is_in_catalog: bool,
    /// Level of the daemon's log line: a danger that most schemas have is no warning at each start.
    pub level: Level,
}

/// If one number of a table is as large as this, the application numbers its rows itself.
const OWN_NUMBERS: i64 = 1 << 40;

impl InspectReport {
    /// Reads the schema and builds the report. Fails if the database cannot be read.
    pub fn read(conn: &Connection, chosen: &Chosen<'_>) -> Result<InspectReport> {
        let choose = |table: &str, columns: &[&str]| chosen.tables.choose(table, columns);
        let selection = selection::read(conn, &choose, chosen.allow_rowid_tables)?;
        let (mut tables, mut not_replicated) = (Vec::new(), selection.not_replicated);
        for schema in selection.replicated {
            if let Some(refused) = NotReplicated::refused(conn, &schema)? {
                not_replicated.push(refused);
                continue;
            }
            match selection::is_usable(conn, &schema) {
                Ok(()) => tables.push(TableReport::replicated(conn, &schema)?),
                Err(e) if e.is_temporary() => return Err(e),
                Err(e) => not_replicated.push(NotReplicated::unsupported(
                    schema.name,
                    selection::why_unusable(&e),
                )),
            }
        }
        tables.extend(not_replicated.into_iter().map(TableReport::not_replicated));
        let feeding = fed::feeding(conn, &tables, chosen.apply_triggers)?;
        let missing = fed::missing(conn, chosen.apply_triggers)?;
        let mut report = InspectReport {
            lines: lines(conn, &feeding, chosen)?,
            dangers: Vec::new(),
            tables,
            feeding,
        };
        report.find_dangers(&missing);
        let doubts = selection
            .doubts
            .iter()
            .map(|doubt| Danger::said(doubt.to_string()));
        report.dangers.extend(doubts);
        Ok(report)
    }

    fn find_dangers(&mut self, missing: &[String]) {
        let named = |which: &dyn Fn(&TableReport) -> bool| {
            let tables = self.tables.iter().filter(|table| which(table));
            let names: Vec<&str> = tables.map(|table| table.name.as_str()).collect();
            (!names.is_empty()).then(|| names.join(", "))
        };
        let mut dangers = Vec::new();
        if let Some(names) = named(&|t| t.not_replicated.is_none() && t.key.is_empty()) {
            dangers.push(Danger::said(format!(
                "without a primary key, rows go by rowid: two rows that two nodes insert before \
                 they hear of each other replace each other: {names}"
            )));
        }
        if let Some(names) = named(&|table| table.numbers_itself) {
            let text = format!(
                "SQLite numbers the rows: two nodes that insert before they hear of each other \
                 may give two rows one number, and one row is lost; use keys that differ by node \
                 (UUIDs, random numbers, ranges): {names}"
            );
            dangers.push(Danger {
                level: Level::Info,
                ..Danger::new(text)
            });
        }
        for table in &self.tables {
            if let Some(left) = table
                .not_replicated
                .as_ref()
                .filter(|l| matches!(l.kind, Kind::Unsupported | Kind::Refused))
            {
                let text = format!("table {} cannot be replicated: {}", left.table, left.reason);
                dangers.push(Danger::said(text));
            }
        }
        let is_virtual = |name: &String| {
            let mut tables = self.tables.iter();
            tables.any(|table| table.name == *name && table.is_virtual())
        };
        for trigger in self.feeding.iter().filter(|t| !t.is_applied) {
            let fed = trigger.feeds.iter().filter(|name| is_virtual(name));
            let fed: Vec<&str> = fed.map(String::as_str).collect();
            if !fed.is_empty() {
                dangers.push(Danger::new(format!(
                    "trigger {} of table {} feeds {}, and does not run for changes that arrive: \
                     name it in apply_triggers",
                    trigger.name,
                    trigger.table,
                    fed.join(", ")
                )));
            }
        }
        for name in missing {
            dangers.push(Danger::said(format!(
                "apply_triggers names {name}, and there is no such trigger"
            )));
        }
        self.dangers = dangers;
    }
}

impl Danger {
    fn new(text: String) -> Danger {
        Danger {
            text,
            is_in_catalog: false,
            level: Level::Warn,
        }
    }

    fn said(text: String) -> Danger {
        Danger {
            is_in_catalog: true,
            ..Danger::new(text)
        }
    }
}

impl TableReport {
    fn not_replicated(left: NotReplicated) -> TableReport {
        TableReport {
            name: left.table.clone(),
            not_replicated: Some(left),
            key: Vec::new(),
            natural_key: None,
            numbers_itself: false,
            needs: Vec::new(),
        }
    }

    fn replicated(conn: &Connection, schema: &Schema) -> Result<TableReport> {
        let key: Vec<String> = match schema.rowid {
            Some(_) => Vec::new(),
            None => schema.key.iter().map(|k| k.name.clone()).collect(),
        };
        let is_rowid = schema.key_is_rowid && !key.is_empty();
        Ok(TableReport {
            natural_key: natural_key(schema),
            numbers_itself: is_rowid && !has_own_numbers(conn, schema)?,
            needs: needs(conn, schema)?,
            not_replicated: None,
            name: schema.name.clone(),
            key,
        })
    }

    /// Name of the way in which the table takes part, in JSON and as the heading of a list.
    pub fn part(&self) -> &'static str {
        let left = self.not_replicated.as_ref();
        left.map_or("replicated", |left| left.kind.name())
    }

    /// How rows are identified: by "rowid" or "primary key"; `None` if the table is not replicated.
    pub fn goes_by(&self) -> Option<&'static str> {
        match (&self.not_replicated, self.key.is_empty()) {
            (Some(_), _) => None,
            (None, true) => Some("rowid"),
            (None, false) => Some("primary key"),
        }
    }

    fn is_virtual(&self) -> bool {
        let left = self.not_replicated.as_ref();
        left.is_some_and(|left| left.kind == Kind::Virtual)
    }
}

/// The columns of the first UNIQUE index that has only NOT NULL columns.
fn natural_key(schema: &Schema) -> Option<Vec<String>> {
    let is_not_null = |name: &String| {
        let mut columns = schema.columns.iter();
        columns.any(|c| c.name.eq_ignore_ascii_case(name) && c.not_null)
    };
    let columns = schema
        .unique
        .iter()
        .filter_map(|index| index.columns.as_ref());
    let mut natural = columns.filter(|columns| columns.iter().all(is_not_null));
    natural.next().cloned()
}

fn has_own_numbers(conn: &Connection, schema: &Schema) -> Result<bool> {
    let text = format!(
        "SELECT max({}) FROM {}",
        schema.column_sql(0),
        quote(&schema.name)
    );
    let max: Option<i64> = conn.query_row(&text, [], |r| r.get(0))?;
    Ok(max.is_some_and(|max| max >= OWN_NUMBERS))
}

fn needs(conn: &Connection, schema: &Schema) -> Result<Vec<Need>> {
    let text = "SELECT strict, wr FROM pragma_table_list(?1) WHERE schema = 'main'";
    let mut list = conn.prepare_cached(text)?;
    let (strict, without_rowid): (bool, bool) =
        list.query_row([&schema.name], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let mut indexes = conn.prepare_cached(
        "SELECT ifnull(max(l.partial), 0), ifnull(max(x.cid = -2), 0)
         FROM pragma_index_list(?1) l, pragma_index_xinfo(l.name) x WHERE x.key",
    )?;
    let (partial, expression): (bool, bool) =
        indexes.query_row([&schema.name], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let all = [
        (strict, "STRICT", "3.37.0"),
        (!schema.generated.is_empty(), "generated columns", "3.31.0"),
        (expression, "an index over an expression", "3.9.0"),
        (without_rowid, "WITHOUT ROWID", "3.8.2"),
        (partial, "a partial index", "3.8.0"),
    ];
    let has = all.into_iter().filter(|(has, ..)| *has);
    Ok(has
        .map(|(_, feature, version)| Need { feature, version })
        .collect())
}

/// The numbers of a version, for comparing.
pub(crate) fn order(version: &str) -> Vec<u32> {
    version.split('.').filter_map(|n| n.parse().ok()).collect()
}

/// Lines for the configuration: triggers that write to virtual tables whose module is known here.
fn lines(
    conn: &Connection,
    feeding: &[Feeding],
    chosen: &Chosen<'_>,
) -> rusqlite::Result<Vec<String>> {
    let virtuals = storage::virtual_tables(conn)?;
    let is_known = |name: &String| {
        let of = virtuals.iter().find(|v| v.name == *name);
        of.is_some_and(|v| v.is_known)
    };
    let missing: Vec<String> = feeding
        .iter()
        .filter(|trigger| !trigger.is_applied && trigger.feeds.iter().any(is_known))
        .map(|trigger| trigger.name.clone())
        .collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let all: Vec<&String> = chosen.apply_triggers.iter().chain(&missing).collect();
    Ok(vec![format!("apply_triggers = {all:?}")])
}

/// Logs the dangers of the database at a daemon's start, except those that the catalog logged.
pub fn warn(database: &Database) {
    let settings = &database.settings;
    let chosen = Chosen {
        tables: &settings.tables,
        apply_triggers: &settings.apply_triggers,
        allow_rowid_tables: settings.allow_rowid_tables,
    };
    match InspectReport::read(&database.conn, &chosen) {
        Ok(report) => {
            let unsaid = report.dangers.iter().filter(|danger| !danger.is_in_catalog);
            unsaid.for_each(|danger| log::log!(danger.level, "{}", danger.text));
        }
        Err(e) => log::debug!("the schema could not be read: {e}"),
    }
}

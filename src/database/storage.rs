//! Tables in which the modules of virtual tables keep their data.
//!
//! SQLite calls a table *shadow* for its name alone, and only if it knows the module
//! (<https://www.sqlite.org/vtab.html#xshadowname>). Here a table counts as storage only if the
//! module makes a table of that name: an application may call its own table `docs_content`, and
//! index it by an FTS5 table `docs` with `content='docs_content'`.

use rusqlite::Connection;

use crate::database::{sql_text, values};

/// A virtual table.
pub(crate) struct Virtual {
    pub name: String,
    /// Name of the module in lower case.
    pub module: String,
    arguments: Vec<String>,
    /// Whether this SQLite has the module.
    pub is_known: bool,
}

/// A table that a module makes for each virtual table, or for some.
struct Made {
    module: &'static str,
    /// The name after the virtual table's name and `_`; `##` at its end stands for two digits.
    suffix: &'static str,
    /// Some of its columns.
    columns: &'static [&'static str],
    /// Whether every virtual table of the module has it, so that no other table can have its name.
    always: bool,
}

const fn always(
    module: &'static str,
    suffix: &'static str,
    columns: &'static [&'static str],
) -> Made {
    let always = true;
    Made {
        module,
        suffix,
        columns,
        always,
    }
}

const fn some(
    module: &'static str,
    suffix: &'static str,
    columns: &'static [&'static str],
) -> Made {
    let always = false;
    Made {
        module,
        suffix,
        columns,
        always,
    }
}

/// Tables that modules make. FTS3, 4 and 5 are not looked up here, because their arguments decide
/// which tables they have; the entries of fts5 help to recognise the tables of unknown modules.
#[rustfmt::skip]
const MADE: &[Made] = &[
    always("rtree", "node", &["nodeno", "data"]),
    always("rtree", "rowid", &["rowid", "nodeno"]),
    always("rtree", "parent", &["nodeno", "parentnode"]),
    always("vec0", "chunks", &["chunk_id", "size", "validity", "rowids"]),
    always("vec0", "rowids", &["rowid", "id", "chunk_id", "chunk_offset"]),
    some("vec0", "vector_chunks##", &["rowid", "vectors"]),
    some("vec0", "metadatachunks##", &["rowid", "data"]),
    some("vec0", "metadatatext##", &["rowid", "data"]),
    some("vec0", "info", &["key", "value"]),
    some("vec0", "auxiliary", &["rowid", "value00"]),
    always("vss0", "index", &["rowid", "idx"]),
    always("vss0", "data", &["rowid", "x"]),
    always("spellfix1", "vocab", &["id", "rank", "langid", "word", "k1", "k2"]),
    always("fts2", "content", &["c0"]),
    always("fts2", "segments", &["block"]),
    always("fts2", "segdir", &["level", "idx", "root"]),
    some("fts5", "data", &["id", "block"]),
    some("fts5", "idx", &["segid", "term", "pgno"]),
    some("fts5", "content", &["id", "c0"]),
    some("fts5", "docsize", &["id", "sz"]),
    some("fts5", "config", &["k", "v"]),
];

/// Reads the virtual tables of the database.
pub(crate) fn virtual_tables(conn: &Connection) -> rusqlite::Result<Vec<Virtual>> {
    let mut list = conn.prepare(
        "SELECT name, sql FROM main.sqlite_schema WHERE type = 'table' AND rootpage = 0",
    )?;
    let found: Vec<(String, String)> = list
        .query_map([], |r| Ok((values::lossy(r, 0)?, values::lossy(r, 1)?)))?
        .collect::<Result<_, _>>()?;
    let mut known =
        conn.prepare("SELECT 1 FROM pragma_module_list WHERE name = ?1 COLLATE NOCASE")?;
    let mut tables = Vec::with_capacity(found.len());
    for (name, sql) in found {
        let module = sql_text::virtual_module(&sql).unwrap_or_default();
        let module = module.to_ascii_lowercase();
        tables.push(Virtual {
            is_known: known.exists([&module])?,
            arguments: sql_text::virtual_arguments(&sql),
            name,
            module,
        });
    }
    Ok(tables)
}

impl Virtual {
    /// Whether the module keeps its data in a table of this name and these columns. `is_shadow`:
    /// whether SQLite calls the table shadow.
    pub(crate) fn keeps(&self, table: &str, columns: &[&str], is_shadow: bool) -> bool {
        let Some(suffix) = self.suffix(table) else {
            return false;
        };
        match self.module.as_str() {
            "fts5" => self.fts5_keeps(&suffix),
            "fts3" | "fts4" => self.fts4_keeps(&suffix, columns),
            module => {
                let module = match module {
                    "rtree_i32" | "geopoly" => "rtree",
                    "fts1" => "fts2",
                    module => module,
                };
                let mut own = MADE.iter().filter(|made| made.module == module).peekable();
                match own.peek().is_some() {
                    true => own.any(|made| {
                        made.fits(&suffix) && (made.always || made.has_columns(columns))
                    }),
                    false if self.is_known => is_shadow,
                    // Neither SQLite nor the list knows the module: a table just like that of a
                    // listed module counts.
                    false => {
                        let is_like = |made: &Made| made.fits(&suffix) && made.has_columns(columns);
                        MADE.iter().any(is_like)
                    }
                }
            }
        }
    }

    /// Whether a table may be storage by its name, if neither SQLite nor the list knows the module.
    pub(crate) fn may_keep(&self, table: &str) -> bool {
        let is_listed = |module: &str| MADE.iter().any(|made| made.module == module);
        let is_fts = ["fts3", "fts4", "geopoly", "rtree_i32"].contains(&self.module.as_str());
        !self.is_known && !is_listed(&self.module) && !is_fts && self.suffix(table).is_some()
    }

    /// The table or view that an FTS index covers without a copy of its rows.
    pub(crate) fn content(&self) -> Option<String> {
        let content = match self.module.as_str() {
            "fts5" => self.fts5_option("content"),
            "fts4" => self.fts4_option("content"),
            _ => None,
        };
        content.filter(|name| !name.is_empty())
    }

    /// The part of a table's name after the virtual table's name and `_`, in lower case.
    fn suffix(&self, table: &str) -> Option<String> {
        let (table, name) = (table.to_ascii_lowercase(), self.name.to_ascii_lowercase());
        let suffix = table.strip_prefix(&name)?.strip_prefix('_')?;
        Some(suffix.to_owned())
    }

    /// <https://www.sqlite.org/fts5.html#fts5_data_structures>
    fn fts5_keeps(&self, suffix: &str) -> bool {
        let is_on = |option: &str, default: bool| {
            self.fts5_option(option)
                .map_or(default, |value| value.trim() != "0")
        };
        match suffix {
            "data" | "idx" | "config" => true,
            "docsize" => is_on("columnsize", true),
            "content" => match self.fts5_option("content").as_deref() {
                None => true,
                Some("") => is_on("contentless_unindexed", false),
                Some(_) => false,
            },
            _ => false,
        }
    }

    /// <https://www.sqlite.org/fts3.html#shadow_tables>
    fn fts4_keeps(&self, suffix: &str, columns: &[&str]) -> bool {
        let is_4 = self.module == "fts4";
        match suffix {
            "segments" | "segdir" => true,
            "content" => !is_4 || self.fts4_option("content").is_none(),
            "docsize" => {
                let matchinfo = self.fts4_option("matchinfo");
                is_4 && !matchinfo.is_some_and(|m| m.eq_ignore_ascii_case("fts3"))
            }
            // FTS3 makes it when it is first told to merge by itself.
            "stat" => is_4 || same_columns(columns, &["id", "value"]),
            _ => false,
        }
    }

    /// The value of an option. FTS5 accepts the first letters of an option's name for the whole.
    fn fts5_option(&self, name: &str) -> Option<String> {
        const OPTIONS: [&str; 10] = [
            "prefix",
            "tokenize",
            "content",
            "contentless_delete",
            "contentless_unindexed",
            "content_rowid",
            "columnsize",
            "locale",
            "detail",
            "tokendata",
        ];
        let is_it = |given: &str| {
            let given = given.to_ascii_lowercase();
            let meant = OPTIONS.iter().find(|option| option.starts_with(&given));
            !given.is_empty() && meant == Some(&name)
        };
        self.option(is_it)
    }

    fn fts4_option(&self, name: &str) -> Option<String> {
        self.option(|given| given.eq_ignore_ascii_case(name))
    }

    fn option(&self, is_it: impl Fn(&str) -> bool) -> Option<String> {
        let mut options = self.arguments.iter().filter_map(|a| a.split_once('='));
        let (_, value) = options.find(|(given, _)| is_it(given.trim()))?;
        Some(sql_text::unquoted(value.trim()))
    }
}

impl Made {
    fn fits(&self, suffix: &str) -> bool {
        match self.suffix.strip_suffix("##") {
            Some(start) => suffix
                .strip_prefix(start)
                .is_some_and(|end| end.len() == 2 && end.bytes().all(|b| b.is_ascii_digit())),
            None => self.suffix == suffix,
        }
    }

    fn has_columns(&self, columns: &[&str]) -> bool {
        let has = |column: &&str| columns.iter().any(|c| c.eq_ignore_ascii_case(column));
        self.columns.iter().all(has)
    }
}

fn same_columns(one: &[&str], other: &[&str]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(a, b)| a.eq_ignore_ascii_case(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the tables that count as storage, of those that SQLite calls tables or shadow.
    fn storage(schema: &str) -> Vec<String> {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(schema).unwrap();
        let virtuals = virtual_tables(&conn).unwrap();
        let mut list = conn
            .prepare(
                "SELECT name, type = 'shadow',
                        (SELECT group_concat(c.name) FROM pragma_table_xinfo(t.name) c)
                 FROM pragma_table_list t WHERE schema = 'main' AND name NOT GLOB 'sqlite_*'
                 AND type IN ('table', 'shadow') ORDER BY 1",
            )
            .unwrap();
        let mut rows = list.query([]).unwrap();
        let mut found = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let (name, columns): (String, String) = (row.get(0).unwrap(), row.get(2).unwrap());
            let columns: Vec<&str> = columns.split(',').collect();
            let is_shadow = row.get(1).unwrap();
            if virtuals.iter().any(|v| v.keeps(&name, &columns, is_shadow)) {
                found.push(name);
            }
        }
        found
    }

    /// Every table that a module makes counts, and no other table.
    #[test]
    fn tables_that_modules_make_and_no_others() {
        for (create, applications) in [
            ("fts5(x)", ""),
            ("fts5(x, content='')", "content"),
            ("fts5(x, content='', contentless_delete=1)", "content"),
            (
                "fts5(x, y UNINDEXED, content='', contentless_unindexed=1)",
                "",
            ),
            (
                "fts5(x, content='v_content', content_rowid='id')",
                "content",
            ),
            ("fts5(x, CONTENT = \"v_content\")", "content"),
            ("fts5(x, con=v_content)", "content"),
            ("fts5(x, columnsize=0)", "docsize"),
            ("fts5(x, columnsize=1)", ""),
            ("fts5(x, content_rowid=id, content='other')", "content"),
            ("fts4(x)", ""),
            ("fts4(x, content=\"\")", "content"),
            ("fts4(x, content='v_content')", "content"),
            ("fts4(x, matchinfo=fts3)", "docsize"),
            ("fts3(x)", "docsize stat"),
            ("rtree(id, a, b)", "content"),
            ("rtree(id, a, b, +c)", "stat"),
        ] {
            let create = format!("CREATE VIRTUAL TABLE v USING {create}");
            let made = {
                let conn = Connection::open_in_memory().unwrap();
                conn.execute_batch(&create).unwrap();
                let text = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0
                            ORDER BY 1";
                let mut list = conn.prepare(text).unwrap();
                let names = list.query_map([], |r| r.get::<_, String>(0)).unwrap();
                names.map(Result::unwrap).collect::<Vec<_>>()
            };
            let own = applications.split_whitespace();
            let own = own.map(|s| format!("CREATE TABLE v_{s}(id INTEGER PRIMARY KEY, body);"));
            let own: String = own.collect();
            assert_eq!(storage(&format!("{own} {create}")), made, "{create}");
            assert_eq!(storage(&format!("{create}; {own}")), made, "{create}");
        }
    }

    #[test]
    fn fts3_makes_a_table_later() {
        let schema =
            "CREATE VIRTUAL TABLE v USING fts3(x); INSERT INTO v(v) VALUES ('automerge=2')";
        let made = storage(schema);
        assert_eq!(made, ["v_content", "v_segdir", "v_segments", "v_stat"]);
    }

    #[test]
    fn modules_that_sqlite_does_not_know() {
        let by_hand = |module: &str| {
            format!(
                "PRAGMA writable_schema = 1;
                 INSERT INTO sqlite_master VALUES
                     ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING {module}');
                 CREATE TABLE v_chunks(chunk_id INTEGER PRIMARY KEY, size, validity, rowids);
                 CREATE TABLE v_rowids(rowid INTEGER PRIMARY KEY, id, chunk_id, chunk_offset);
                 CREATE TABLE v_vector_chunks00(rowid PRIMARY KEY, vectors);
                 CREATE TABLE v_info(id INTEGER PRIMARY KEY, text);
                 CREATE TABLE v_notes(id INTEGER PRIMARY KEY, text);
                 CREATE TABLE v_vocab(id INTEGER PRIMARY KEY, text);
                 CREATE TABLE v2024(id INTEGER PRIMARY KEY);
                 CREATE TABLE v_24(rowid INTEGER PRIMARY KEY, vectors)"
            )
        };
        let own = ["v_chunks", "v_rowids", "v_vector_chunks00"];
        assert_eq!(storage(&by_hand("vec0(emb float[4])")), own);
        assert_eq!(storage(&by_hand("hnsw")), own);
        assert_eq!(storage(&by_hand("spellfix1")), ["v_vocab"]);
    }
}

//! The schemas of one run: the tables, and the migrations during the run.

use harmonylite::database::schema::quote;
use harmonylite::model::value::OwnedValue;

use crate::random::Random;

#[derive(Clone)]
pub struct Table {
    pub name: String,
    /// The columns at the beginning, those of the key first, then the columns that migrations add.
    pub columns: Vec<Column>,
    pub base: usize,
    /// Collation of each key column.
    pub key: Vec<&'static str>,
    pub is_rowid: bool,
    /// SQLite may choose the key, and nodes give births to the rows.
    pub is_numbered: bool,
    /// Text of CREATE TABLE after the columns: a composite key, WITHOUT ROWID.
    tail: String,
    suffix: &'static str,
    pub indexes: Vec<String>,
    /// Each node creates the table during the run, at its own time.
    pub is_late: bool,
    /// The table that column `p` references, with cascades.
    pub parent: Option<usize>,
}

#[derive(Clone)]
pub struct Column {
    pub name: String,
    pub declared: String,
    pub default: OwnedValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    Create(usize),
    AddColumn(usize, usize),
    CreateIndex(usize, usize),
    DropIndex(usize, usize),
}

#[derive(Default)]
pub struct Plan {
    pub tables: Vec<Table>,
    pub migrations: Vec<Migration>,
    /// Every node runs every migration before the end.
    pub complete: bool,
}

fn column(name: &str, declared: &str) -> Column {
    Column {
        name: name.into(),
        declared: declared.into(),
        default: OwnedValue::Null,
    }
}

impl Plan {
    /// `births`: nodes give births to rows that SQLite numbers.
    pub fn new(random: &mut Random, births: bool) -> Self {
        let complete = random.percent(70);
        let count = 1 + random.below(3);
        let mut plan = Plan {
            tables: Vec::new(),
            migrations: Vec::new(),
            complete,
        };
        for i in 0..count {
            plan.add(i, births, random);
        }
        plan
    }

    /// Whether a statement on the first table may change rows of the second.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        let parent = self.tables[to].parent;
        parent.is_some_and(|parent| parent == from || self.reaches(from, parent))
    }

    /// Whether a node that ran these migrations has the index.
    pub fn has_index(&self, done: &[Migration], table: usize, index: usize) -> bool {
        let create = Migration::CreateIndex(table, index);
        !done.contains(&Migration::DropIndex(table, index))
            && (!self.migrations.contains(&create) || done.contains(&create))
    }

    fn add(&mut self, i: usize, births: bool, random: &mut Random) {
        let parent = (i > 0 && random.percent(40)).then(|| random.below(i));
        // A reference to an untyped key is untyped: its declaration has no type to copy.
        let parent = parent.filter(|p| {
            let parent = &self.tables[*p];
            parent.key.len() == 1
                && !parent.is_rowid
                && !parent.is_late
                && !parent.columns[0].declared.starts_with("NOT")
        });
        let mut table = key_of(births, random);
        table.name = (*random.pick(&["Tab", "or der", "x\"y", "ta_b"])).to_owned() + &i.to_string();
        for (name, declared) in [
            ("s", "TEXT"),
            ("n", "INTEGER"),
            ("r", "REAL"),
            ("x", ""),
            ("m", "NUMERIC"),
            ("q", "TEXT NOT NULL"),
        ] {
            if random.percent(if name == "s" || name == "n" { 100 } else { 30 }) {
                table.columns.push(column(name, declared));
            }
        }
        if let Some(parent) = parent {
            let parent = &self.tables[parent];
            let action = random.pick(&["CASCADE", "SET NULL"]);
            let declared = format!(
                "{} REFERENCES {}({}) ON DELETE {action} ON UPDATE CASCADE",
                parent.columns[0]
                    .declared
                    .split(' ')
                    .next()
                    .unwrap_or_default(),
                quote(&parent.name),
                parent.columns[0].name
            );
            table.columns.push(column("p", &declared));
        }
        table.base = table.columns.len();
        table.parent = parent;
        table.is_late = parent.is_none() && random.percent(15);
        if table.is_late {
            self.migrations.push(Migration::Create(i));
        }
        if random.percent(40) {
            add_late(&mut table, i, &mut self.migrations, random);
        }
        if random.percent(50) {
            add_indexes(&mut table, random);
            if self.complete && random.percent(30) {
                let which = random.below(table.indexes.len());
                self.migrations.push(match random.percent(50) {
                    true => Migration::DropIndex(i, which),
                    false => Migration::CreateIndex(i, which),
                });
            }
        }
        self.tables.push(table);
    }
}

/// Key columns with their types, their collations, and the table's text before and after.
type KeyKind = (
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
    &'static str,
    &'static str,
);

fn key_of(births: bool, random: &mut Random) -> Table {
    let kinds: [KeyKind; 9] = [
        (&[("id", "INTEGER PRIMARY KEY")], &["BINARY"], "", ""),
        (&[("id", "TEXT NOT NULL PRIMARY KEY")], &["BINARY"], "", ""),
        (
            &[("id", "TEXT COLLATE NOCASE NOT NULL PRIMARY KEY")],
            &["NOCASE"],
            "",
            "",
        ),
        (
            &[("id", "TEXT COLLATE RTRIM NOT NULL PRIMARY KEY")],
            &["RTRIM"],
            "",
            "",
        ),
        (
            &[
                ("id", "INTEGER NOT NULL"),
                ("id2", "TEXT COLLATE NOCASE NOT NULL"),
            ],
            &["BINARY", "NOCASE"],
            ", PRIMARY KEY(id2, id)",
            "",
        ),
        (&[("id", "NOT NULL PRIMARY KEY")], &["BINARY"], "", ""),
        (
            &[("id", "INTEGER NOT NULL"), ("id2", "NOT NULL")],
            &["BINARY", "BINARY"],
            ", PRIMARY KEY(id, id2)",
            " WITHOUT ROWID",
        ),
        (&[("rowid", "")], &["BINARY"], "", ""),
        (
            &[("id", "INTEGER PRIMARY KEY AUTOINCREMENT")],
            &["BINARY"],
            "",
            "",
        ),
    ];
    let kind = match births && random.percent(60) {
        true => *random.pick(&[0, 8]),
        false => random.below(8),
    };
    let (columns, key, tail, suffix) = kinds[kind];
    Table {
        name: String::new(),
        columns: columns.iter().map(|(n, d)| column(n, d)).collect(),
        base: 0,
        key: key.to_vec(),
        is_rowid: kind == 7,
        is_numbered: births && matches!(kind, 0 | 8),
        tail: tail.into(),
        suffix,
        indexes: Vec::new(),
        is_late: false,
        parent: None,
    }
}

fn add_late(table: &mut Table, i: usize, migrations: &mut Vec<Migration>, random: &mut Random) {
    let text = |t: &str| OwnedValue::Text(t.as_bytes().to_vec());
    let late = [
        ("l1", "TEXT DEFAULT 'd'", text("d")),
        ("L2", "INTEGER", OwnedValue::Null),
        ("l3", "INTEGER NOT NULL DEFAULT 7", OwnedValue::Integer(7)),
    ];
    for (name, declared, default) in late {
        if random.percent(50) {
            migrations.push(Migration::AddColumn(i, table.columns.len()));
            table.columns.push(Column {
                default,
                ..column(name, declared)
            });
        }
    }
}

fn add_indexes(table: &mut Table, random: &mut Random) {
    const ON: [&str; 9] = [
        "(s)",
        "(n)",
        "(s COLLATE NOCASE)",
        "(n, s)",
        "(lower(s))",
        "(n % 3)",
        "(s) WHERE n > 1",
        "(n) WHERE s IS NOT NULL",
        "(s, n % 2)",
    ];
    for k in 0..1 + random.below(3) {
        let name = quote(&format!("u{k} {}", table.name));
        let on = random.pick(&ON);
        table.indexes.push(format!(
            "CREATE UNIQUE INDEX {name} ON {}{on}",
            quote(&table.name)
        ));
    }
}

impl Table {
    /// The CREATE TABLE of this table, under a name and with these columns.
    pub fn create(&self, name: &str, columns: &[usize]) -> String {
        let skip = usize::from(self.is_rowid);
        let texts: Vec<String> = columns[skip..]
            .iter()
            .map(|c| format!("{} {}", self.columns[*c].name, self.columns[*c].declared))
            .collect();
        format!(
            "CREATE TABLE {}({}{}){}",
            quote(name),
            texts.join(", "),
            self.tail,
            self.suffix
        )
    }

    /// Whether the versions table has the key's columns in a different order.
    pub fn is_turned(&self) -> bool {
        self.tail.contains("(id2, id)")
    }

    pub fn index_name(&self, index: usize) -> String {
        quote(&format!("u{index} {}", self.name))
    }

    /// The keys that a statement's parameters may name: its key is first, and a new one second.
    pub fn keys_in(&self, values: &[OwnedValue]) -> Vec<String> {
        let keys = values.chunks_exact(self.key.len()).take(2);
        keys.map(|key| self.key_text(key)).collect()
    }

    /// One spelling for keys that SQLite holds equal.
    pub fn key_text(&self, key: &[OwnedValue]) -> String {
        let each = key
            .iter()
            .zip(&self.key)
            .map(|(value, collation)| match value {
                OwnedValue::Text(t) => match *collation {
                    "NOCASE" => format!("t{}", t.to_ascii_lowercase().escape_ascii()),
                    "RTRIM" => format!("t{}", String::from_utf8_lossy(t).trim_end_matches(' ')),
                    _ => format!("t{}", t.escape_ascii()),
                },
                OwnedValue::Real(r) if r.fract() == 0.0 && r.abs() < 1e15 => {
                    format!("i{}", *r as i64)
                }
                OwnedValue::Integer(i) => format!("i{i}"),
                other => format!("{other:?}"),
            });
        each.collect::<Vec<_>>().join("|")
    }
}

//! The ways in which a table gets a different key, and the steps in which tools do that.

use rusqlite::types::Value;

/// The value of a column, by the number of the row.
type ValueOf = fn(usize) -> Value;

/// A rebuild of the table.
pub struct Kind {
    /// Columns by which the application names a row.
    pub key: &'static [&'static str],
    pub before: &'static str,
    pub after: &'static str,
    /// The values of these columns, per row.
    pub values: fn(usize) -> Vec<Value>,
    /// A column of the old key that the table has no more.
    pub gone: Option<(&'static str, ValueOf)>,
    /// A column of the new key, and how the migration works it out.
    pub made: Option<(&'static str, ValueOf, &'static str)>,
}

impl Kind {
    /// Whether the new key has a column that the old rows lack.
    pub fn adds_to_key(&self) -> bool {
        self.after.contains("tenant")
    }

    /// Whether the table keeps its key.
    pub fn is_same(&self) -> bool {
        self.after.contains("w DEFAULT")
    }
}

/// A word per row; no two of them are equal under NOCASE.
fn word(i: usize) -> Vec<Value> {
    vec![Value::Text(
        ["a", "B", "cc", "D", "e", "Ff", "g"][i].to_owned(),
    )]
}

fn first_letter(i: usize) -> Value {
    match &word(i)[0] {
        Value::Text(word) => Value::Integer(word.as_bytes()[0].into()),
        other => other.clone(),
    }
}

fn number(i: usize) -> Vec<Value> {
    vec![Value::Integer(i as i64 * 7)]
}

fn pair(i: usize) -> Vec<Value> {
    vec![
        Value::Integer(i as i64 % 3),
        Value::Text((i / 3).to_string()),
    ]
}

pub const KINDS: [Kind; 9] = [
    Kind {
        key: &["id"],
        before: "id TEXT NOT NULL PRIMARY KEY, v, n",
        after: "id TEXT COLLATE NOCASE NOT NULL PRIMARY KEY, v, n",
        values: word,
        gone: None,
        made: None,
    },
    Kind {
        key: &["id"],
        before: "id TEXT COLLATE NOCASE NOT NULL PRIMARY KEY, v, n",
        after: "id TEXT NOT NULL PRIMARY KEY, v, n",
        values: word,
        gone: None,
        made: None,
    },
    Kind {
        key: &["a", "b"],
        before: "a INTEGER NOT NULL, b TEXT NOT NULL, v, n, PRIMARY KEY(a, b)",
        after: "a INTEGER NOT NULL, b TEXT NOT NULL, v, n, PRIMARY KEY(b, a)",
        values: pair,
        gone: None,
        made: None,
    },
    Kind {
        key: &["id"],
        before: "id INTEGER PRIMARY KEY, v, n",
        after: "id TEXT NOT NULL PRIMARY KEY, v, n",
        values: number,
        gone: None,
        made: None,
    },
    Kind {
        key: &["id"],
        before: "id INTEGER PRIMARY KEY, v, n",
        after: "id INTEGER NOT NULL, v, n, tenant TEXT NOT NULL DEFAULT 'x',
                PRIMARY KEY(tenant, id)",
        values: number,
        gone: None,
        made: None,
    },
    Kind {
        key: &["id"],
        before: "id TEXT NOT NULL PRIMARY KEY, v, n",
        after: "tenant INTEGER NOT NULL DEFAULT 1, id TEXT NOT NULL, v, n, PRIMARY KEY(id, tenant)",
        values: word,
        gone: None,
        made: None,
    },
    Kind {
        key: &["id"],
        before: "id INTEGER PRIMARY KEY, v, n",
        after: "id INTEGER PRIMARY KEY, v, n, w DEFAULT 7",
        values: number,
        gone: None,
        made: None,
    },
    Kind {
        key: &["a"],
        before: "id INTEGER PRIMARY KEY, a TEXT NOT NULL, v, n",
        after: "a TEXT NOT NULL PRIMARY KEY, v, n",
        values: word,
        gone: Some(("id", |i| Value::Integer(i as i64 * 7))),
        made: None,
    },
    Kind {
        key: &["a"],
        before: "g TEXT NOT NULL PRIMARY KEY, a TEXT NOT NULL, v, n",
        after: "k INTEGER PRIMARY KEY, a TEXT NOT NULL, v, n",
        values: word,
        gone: Some(("g", |i| Value::Text(format!("g{i}")))),
        made: Some(("k", first_letter, "unicode(a)")),
    },
];

/// The statements of a tool, a transaction each. `{after}` stands for the new columns, `{names}`
/// for the columns that are filled, `{copied}` for the expressions that fill them, `{where}` for
/// the rows that are copied.
pub const WAYS: [&[&str]; 5] = [
    &[
        "BEGIN; CREATE TABLE neu({after}); INSERT INTO neu({names}) SELECT {copied} FROM t{where};
       DROP TABLE t; ALTER TABLE neu RENAME TO t; COMMIT",
    ],
    &[
        "CREATE TABLE new_t({after})", // Prisma
        "INSERT INTO new_t({names}) SELECT {copied} FROM t{where}",
        "DROP TABLE t",
        "ALTER TABLE new_t RENAME TO t",
    ],
    &[
        "CREATE TABLE t_backup({after})", // Sequelize
        "INSERT INTO t_backup({names}) SELECT {copied} FROM t{where}",
        "DROP TABLE t",
        "CREATE TABLE t({after})",
        "INSERT INTO t SELECT * FROM t_backup",
        "DROP TABLE t_backup",
    ],
    &[
        "ALTER TABLE t RENAME TO __old_push_t", // Drizzle
        "CREATE TABLE t({after})",
        "INSERT INTO t({names}) SELECT {copied} FROM __old_push_t{where}",
        "DROP TABLE __old_push_t",
    ],
    &[
        // Nobody sees the copy. What arrives between it and the DROP would not be in it.
        "CREATE TEMP TABLE saved AS SELECT * FROM t{where}; DROP TABLE t",
        "CREATE TABLE t({after})",
        "INSERT INTO t({names}) SELECT {copied} FROM saved",
        "DROP TABLE saved",
    ],
];

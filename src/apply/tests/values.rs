//! Every value arrives with its class and its bits.

use super::support::{cluster, converge};

const VALUES: [&str; 24] = [
    "NULL",
    "0",
    "1",
    "-1",
    "9223372036854775807",
    "-9223372036854775808",
    "0.0",
    "-0.0",
    "1.5",
    "1e300",
    "9e999",
    "-9e999",
    "4.9e-324",
    "9007199254740993.0",
    "''",
    "'12'",
    "'1e3'",
    "' 7 '",
    "'é€😀'",
    "CAST(x'610062' AS TEXT)",
    "CAST(x'ff00fe' AS TEXT)",
    "x''",
    "zeroblob(5)",
    "x'00ff80'",
];

const TYPES: [&str; 14] = [
    "INTEGER",
    "INT",
    "TEXT",
    "VARCHAR(3)",
    "BLOB",
    "",
    "REAL",
    "DOUBLE PRECISION",
    "NUMERIC",
    "DECIMAL(10,2)",
    "BOOLEAN",
    "DATE",
    "DATETIME",
    "TIMESTAMP",
];

fn insert_all(columns: usize) -> String {
    let row = |(i, v): (usize, &&str)| format!("({i}{})", format!(", {v}").repeat(columns));
    let rows: Vec<String> = VALUES.iter().enumerate().map(row).collect();
    format!("INSERT INTO v VALUES {};", rows.join(", "))
}

fn columns(defaults: bool) -> String {
    let each = TYPES.iter().enumerate().map(|(i, t)| {
        let default = if defaults { "DEFAULT 'x'" } else { "" };
        format!("c{i} {t} {default}")
    });
    each.collect::<Vec<_>>().join(", ")
}

fn every_value_in_every_affinity(encoding: &str, suffix: &str) {
    let schema = format!(
        "{encoding}; CREATE TABLE v(id INTEGER PRIMARY KEY, {}){suffix}",
        columns(true)
    );
    let mut n = cluster(2, &schema);
    n[0].run(&insert_all(TYPES.len()));
    let all = converge(&mut n);
    assert_eq!(all.lines().count(), VALUES.len() + 1);
    let set: Vec<String> = (0..TYPES.len())
        .map(|i| format!("c{i} = (SELECT c{i} FROM v w WHERE w.id = ({} - v.id))", 23))
        .collect();
    n[1].run(&format!("UPDATE v SET {}", set.join(", ")));
    assert_ne!(converge(&mut n), all);
}

#[test]
fn every_value_in_every_affinity_arrives() {
    every_value_in_every_affinity("", "");
    every_value_in_every_affinity("", " WITHOUT ROWID");
}

#[test]
fn utf_16_databases_are_the_same_too() {
    every_value_in_every_affinity("PRAGMA encoding = 'UTF-16le'", "");
    every_value_in_every_affinity("PRAGMA encoding = 'UTF-16be'", "");
}

#[test]
fn every_value_as_a_key() {
    for declared in TYPES {
        for suffix in ["", " WITHOUT ROWID"] {
            let column = match declared {
                "INTEGER" if suffix.is_empty() => continue, // that is the rowid
                _ => format!("k {declared} PRIMARY KEY"),
            };
            let mut n = cluster(
                2,
                &format!("CREATE TABLE v({column}, x NOT NULL DEFAULT 0){suffix}"),
            );
            // Some values are the same key: 0, 0.0 and -0.0, or '12' and 12.
            let rows = VALUES[1..].iter();
            for (i, row) in rows.enumerate() {
                n[i % 2].run(&format!("INSERT OR REPLACE INTO v VALUES ({row}, {i})"));
            }
            converge(&mut n);
            n[1].run("UPDATE v SET x = x + 100");
            converge(&mut n);
            n[0].run("DELETE FROM v WHERE x % 2");
            converge(&mut n);
        }
    }
}

#[test]
fn strict_tables_with_any() {
    let mut n = cluster(
        2,
        "CREATE TABLE v(id INTEGER PRIMARY KEY, a ANY, i INT, r REAL, t TEXT, b BLOB) STRICT;
         CREATE TABLE k(a ANY PRIMARY KEY, n INT) STRICT",
    );
    for (i, value) in VALUES.iter().enumerate() {
        n[0].run(&format!(
            "INSERT INTO v VALUES ({i}, {value}, {i}, {i}, 't{i}', x'0{}')",
            i % 10
        ));
        n[0].run(&format!("INSERT OR REPLACE INTO k VALUES ({value}, {i})").replace("NULL", "'n'"));
    }
    converge(&mut n);
    n[1].run("UPDATE v SET a = CAST(id AS TEXT), r = -0.0; DELETE FROM k WHERE typeof(a) = 'real'");
    converge(&mut n);
}

#[test]
fn dates_and_booleans_are_not_touched() {
    let mut n = cluster(
        2,
        "CREATE TABLE v(id INTEGER PRIMARY KEY, d DATETIME, b BOOLEAN, n DECIMAL(10, 5), t \
         TIMESTAMP DEFAULT CURRENT_TIMESTAMP)",
    );
    n[0].run(
        "INSERT INTO v(d, b, n) VALUES ('2024-01-02 03:04:05', 2, '1.10'), (1704164645, TRUE, \
         1e400),
         ('2024-01-02T03:04:05Z', 'true', '12345678901234567890'), (1.5, 0.0, x'00')",
    );
    let all = converge(&mut n);
    assert!(all.contains("t'2024-01-02T03:04:05Z'") && all.contains("i2 "));
}

#[test]
fn a_row_of_300_columns_and_a_large_blob() {
    let columns: Vec<String> = (0..300).map(|i| format!("c{i}")).collect();
    let mut n = cluster(
        2,
        &format!(
            "CREATE TABLE v(id INTEGER PRIMARY KEY, {})",
            columns.join(", ")
        ),
    );
    n[0].run(
        "INSERT INTO v(id, c0, c299) VALUES (1, 'first', 'last'), (2, zeroblob(3000000), NULL)",
    );
    converge(&mut n);
    n[1].run("UPDATE v SET c150 = 'middle'");
    assert!(converge(&mut n).contains("middle"));
}

#[test]
fn columns_named_like_words_of_sql() {
    let names = [
        "order",
        "group",
        "a b",
        "c-d",
        "quo\"te",
        "quo'te",
        "täble",
        "[x]",
        "select",
        "rowid",
        "semi;colon",
        "hlc",
        "k1",
        "NEW",
        "__harmonylite__row",
        "new\nline",
        "?1",
    ];
    let quote = |n: &str| format!("\"{}\"", n.replace('"', "\"\""));
    let columns: Vec<String> = names.iter().map(|n| quote(n)).collect();
    let mut schema = String::new();
    for name in names.iter().filter(|n| !n.starts_with("__")) {
        // The name of a table, a key and a column, also in a UNIQUE index.
        let (table, columns) = (quote(name), columns.join(", "));
        schema += &format!(
            "CREATE TABLE {table}({columns}, PRIMARY KEY({table}, \"group\" ));
             CREATE UNIQUE INDEX {} ON {table}(\"c-d\", lower({}));",
            quote(&format!("on ({name}")),
            quote(names[4]),
        )
        .replace("(\"group\", \"group\" )", "(\"group\")");
    }
    let mut n = cluster(2, &schema);
    for name in names.iter().filter(|n| !n.starts_with("__")) {
        let values: Vec<String> = (0..names.len()).map(|i| format!("'{i}'")).collect();
        let table = quote(name);
        n[0].run(&format!(
            "INSERT INTO {table} VALUES ({})",
            values.join(", ")
        ));
        n[1].run(
            &format!("INSERT INTO {table}(\"group\", {table}) VALUES ('x', 2)").replace(
                "(\"group\", \"group\") VALUES ('x', 2)",
                "(\"group\") VALUES ('x')",
            ),
        );
    }
    converge(&mut n);
    for name in names.iter().filter(|n| !n.starts_with("__")) {
        let table = quote(name);
        n[1].run(&format!(
            "UPDATE {table} SET \"select\" = 'x', \"quo'te\" = coalesce(\"c-d\", 'n');
             REPLACE INTO {table} SELECT * FROM {table}; UPDATE {table} SET {table} = {table} || \
             'y'"
        ));
    }
    converge(&mut n);
}

//! Real SQLite: triggers tell how a row came under its number.

use rusqlite::Connection;

use crate::capture::{Verdict, judge};
use crate::node::Kind;

/// The triggers of a table whose key is the rowid. NEW's rowid is -1 before an insert if SQLite
/// chooses it. An UPDATE of the key is a delete and an insert under a given number.
const TRIGGERS: &str = "
    CREATE TABLE log(id INTEGER PRIMARY KEY, kind, k1);
    CREATE TRIGGER given BEFORE INSERT ON t WHEN NEW.id IS NOT -1 BEGIN
        INSERT INTO log(kind, k1) VALUES ('X', NEW.id); END;
    CREATE TRIGGER inserted AFTER INSERT ON t BEGIN
        INSERT INTO log(kind, k1) VALUES ('I', NEW.id); END;
    CREATE TRIGGER deleted AFTER DELETE ON t BEGIN
        INSERT INTO log(kind, k1) VALUES ('D', OLD.id); END;
    CREATE TRIGGER updated AFTER UPDATE ON t BEGIN
        INSERT INTO log(kind, k1) VALUES ('U', NEW.id); END;";

fn table(options: &str) -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    let create = format!("CREATE TABLE t(id INTEGER PRIMARY KEY {options}, v UNIQUE);");
    conn.execute_batch(&create).unwrap();
    conn.execute_batch(TRIGGERS).unwrap();
    conn.execute_batch("INSERT INTO t VALUES (6, 'six'), (7, 'seven'); DELETE FROM log")
        .unwrap();
    conn
}

/// The kinds that the statement leaves in the log for number `number`.
fn kinds(conn: &Connection, statement: &str, number: i64) -> String {
    conn.execute_batch("SAVEPOINT s").unwrap();
    conn.execute_batch(statement).unwrap();
    let text = "SELECT coalesce(group_concat(kind, ''), '') FROM
                (SELECT kind FROM log WHERE k1 = ?1 ORDER BY id)";
    let found = conn.query_row(text, [number], |r| r.get(0)).unwrap();
    conn.execute_batch("ROLLBACK TO s; RELEASE s").unwrap();
    found
}

#[test]
fn triggers_tell_the_kinds() {
    for options in ["", "AUTOINCREMENT"] {
        let conn = table(options);
        for (statement, number, expected) in [
            ("INSERT INTO t(v) VALUES ('a')", 8, "I"),
            ("INSERT INTO t(id, v) VALUES (NULL, 'a')", 8, "I"),
            ("INSERT INTO t SELECT NULL, 'a'", 8, "I"),
            ("INSERT INTO t DEFAULT VALUES", 8, "I"),
            ("INSERT INTO t(id, v) VALUES (9, 'a')", 9, "XI"),
            ("INSERT INTO t(rowid, v) VALUES (9, 'a')", 9, "XI"),
            ("REPLACE INTO t(id, v) VALUES (7, 'a')", 7, "XI"),
            ("REPLACE INTO t(v) VALUES ('a')", 8, "I"),
            // An insert that is left out leaves no I, and a row that is updated instead has a U.
            ("INSERT OR IGNORE INTO t(id, v) VALUES (7, 'a')", 7, "X"),
            (
                "INSERT INTO t(id, v) VALUES (7, 'a') ON CONFLICT(id) DO UPDATE SET v = 'b'",
                7,
                "XU",
            ),
            (
                "DELETE FROM t WHERE id = 7; INSERT INTO t(v) VALUES ('a')",
                7,
                "D",
            ),
            (
                "DELETE FROM t WHERE id = 7; INSERT INTO t VALUES (7, 'a')",
                7,
                "DXI",
            ),
            ("UPDATE t SET v = 'b' WHERE id = 7", 7, "U"),
        ] {
            // Without AUTOINCREMENT SQLite gives the number of the last row again.
            let again = options.is_empty() && statement.ends_with("INTO t(v) VALUES ('a')");
            let expected = match (expected, again) {
                ("D", true) => "DI",
                (expected, _) => expected,
            };
            assert_eq!(kinds(&conn, statement, number), expected, "{statement}");
        }
        conn.execute_batch("PRAGMA recursive_triggers = ON")
            .unwrap();
        let replace = "REPLACE INTO t(id, v) VALUES (7, 'a')";
        assert_eq!(kinds(&conn, replace, 7), "XDI");
        // An insert that is ignored leaves its X. So no X before a D is part of a REPLACE for sure,
        // where SQLite gives the number again.
        let ignored = "INSERT OR IGNORE INTO t(id, v) VALUES (7, 'b'); DELETE FROM t;
                       INSERT INTO t(id, v) VALUES (6, 'c'); INSERT INTO t(v) VALUES ('d')";
        let expected = if options.is_empty() { "XDI" } else { "XD" };
        assert_eq!(kinds(&conn, ignored, 7), expected);
    }
}

/// A number that SQLite chose costs no entry of its own.
#[test]
fn a_given_number_is_one_more_entry() {
    let conn = table("");
    let entries = |statement: &str| kinds(&conn, statement, 8).len();
    assert_eq!(entries("INSERT INTO t(v) VALUES ('a')"), 1);
    assert_eq!(entries("INSERT INTO t(id, v) VALUES (8, 'a')"), 2);
}

/// Here a kind `Given` stands for X and I.
#[test]
fn kinds_of_changes_tell_their_fate() {
    use Kind::{Delete, Given, Insert, Maybe, Update};
    let born = Verdict::IsBorn { given: false };
    let given = Verdict::IsBorn { given: true };
    let dies = Verdict::Dies;
    for (log, has_row, is_shown, expected) in [
        (&[Insert][..], true, false, born),
        (&[Given], true, false, given),
        (&[Given], true, true, Verdict::Changes),
        (&[Update], true, true, Verdict::Changes),
        (&[Delete], false, true, dies),
        (&[Insert, Delete], false, false, Verdict::Nothing),
        (&[Delete, Insert], true, true, born),
        (&[Delete, Given, Update], true, true, given),
        // SQLite chooses a number only if nothing has it.
        (&[Insert], true, true, born),
        (&[Maybe], true, true, Verdict::Nothing),
        (&[Maybe, Given], true, true, given),
        (&[Maybe], false, true, dies),
        // The log was cut between the delete and the insert.
        (&[Delete], true, true, dies),
        (&[Delete], true, false, Verdict::Nothing),
    ] {
        let verdict = judge(log, has_row, is_shown, None);
        assert_eq!(verdict, expected, "{log:?} {has_row} {is_shown}");
    }
}

//! Reports about schemas as they occur.

use rusqlite::Connection;

use super::*;

fn report(schema: &str, apply_triggers: &[&str]) -> InspectReport {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(schema).unwrap();
    let apply_triggers: Vec<String> = apply_triggers.iter().map(|t| (*t).to_owned()).collect();
    let chosen = Chosen {
        tables: &Tables::default(),
        apply_triggers: &apply_triggers,
        allow_rowid_tables: true,
    };
    InspectReport::read(&conn, &chosen).unwrap()
}

fn said(schema: &str, apply_triggers: &[&str]) -> String {
    text::text(Path::new("a.db"), &report(schema, apply_triggers))
}

#[test]
fn how_tables_take_part() {
    let said = said(
        "CREATE TABLE author(name TEXT PRIMARY KEY) WITHOUT ROWID;
         CREATE TABLE book(id INTEGER PRIMARY KEY, isbn TEXT NOT NULL UNIQUE, note UNIQUE,
                           lower AS (lower(isbn)));
         CREATE INDEX some ON book(lower(isbn)) WHERE note IS NULL;
         CREATE TABLE event(at, what);
         CREATE TABLE snow(id INTEGER PRIMARY KEY); INSERT INTO snow VALUES (1796067403978000000);
         CREATE TABLE strict(a INT, b TEXT, PRIMARY KEY(b, a)) STRICT;
         CREATE TABLE alembic_version(version_num);
         CREATE VIRTUAL TABLE place USING rtree(id, a, b)",
        &[],
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[..13],
        [
            "a.db: 10 table(s)",
            "replicated",
            "  author           key name; WITHOUT ROWID (SQLite 3.8.2)",
            "  book             key id; numbers itself; unique by isbn; generated columns \
             (SQLite 3.31.0); an index over an expression (SQLite 3.9.0); a partial index (SQLite \
             3.8.0)",
            "  event            by rowid",
            "  snow             key id",
            "  strict           key b, a; STRICT (SQLite 3.37.0)",
            "local: each node has its own; they are in snapshots",
            "  alembic_version  Alembic keeps its books in it, on each node its own",
            "virtual: each node's module keeps its own",
            "  place            it is a virtual table of the module rtree, whose data each node \
             keeps for itself",
            "storage of virtual tables",
            "  place_node       the virtual table place keeps its data in it",
        ]
    );
    let dangers: Vec<&&str> = lines.iter().filter(|l| l.starts_with("danger: ")).collect();
    assert_eq!(dangers.len(), 2, "{said}");
    assert!(dangers[0].ends_with(": event"), "{said}");
    assert!(dangers[1].ends_with(": book"), "{said}");
}

#[test]
fn harmless_tables_are_no_danger() {
    let schema = "CREATE TABLE author(id TEXT PRIMARY KEY NOT NULL);
                  CREATE TABLE book(id BLOB PRIMARY KEY, a REFERENCES author ON DELETE CASCADE);
                  CREATE TABLE django_migrations(id INTEGER PRIMARY KEY, app, name, applied)";
    assert!(report(schema, &[]).dangers.is_empty());
}

const FED: &str = "
    CREATE TABLE note(id TEXT PRIMARY KEY, body);
    CREATE VIRTUAL TABLE search USING fts5(body);
    CREATE TABLE log(id TEXT PRIMARY KEY);
    CREATE TRIGGER ai AFTER INSERT ON note BEGIN
        INSERT INTO search(rowid, body) VALUES (new.rowid, new.body); END;
    CREATE TRIGGER ad AFTER DELETE ON note BEGIN
        INSERT OR REPLACE INTO \"search\"(search, rowid) VALUES ('delete', old.rowid); END;
    CREATE TRIGGER au AFTER UPDATE OF body ON note WHEN new.body IS NOT NULL BEGIN
        UPDATE search SET body = new.body WHERE rowid = new.rowid; END;
    CREATE TRIGGER logged AFTER INSERT ON note BEGIN INSERT INTO log VALUES (new.id); END";

#[test]
fn triggers_that_feed_an_index() {
    let report = report(FED, &["AI"]);
    let named: Vec<&str> = report.feeding.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(named, ["ad", "ai", "au"]);
    let applied: Vec<bool> = report.feeding.iter().map(|t| t.is_applied).collect();
    assert_eq!(applied, [false, true, false]);
    assert_eq!(report.dangers.len(), 2);
    assert_eq!(report.lines, ["apply_triggers = [\"AI\", \"ad\", \"au\"]"]);
}

#[test]
fn functions_that_only_the_application_has() {
    let said = said(
        "CREATE TABLE t(id TEXT PRIMARY KEY, a);
         PRAGMA writable_schema = 1;
         INSERT INTO sqlite_master VALUES
             ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING vec9(a)');
         CREATE TABLE v_notes(id TEXT PRIMARY KEY);
         CREATE TABLE c(id TEXT PRIMARY KEY, a);
         INSERT INTO sqlite_master VALUES
             ('index', 'i', 'c', (SELECT rootpage FROM sqlite_master WHERE name = 'v_notes'),
              'CREATE INDEX i ON c(own_function(a))');
         PRAGMA writable_schema = RESET",
        &["gone"],
    );
    for part in [
        "danger: table v_notes is replicated; if the module vec9 keeps data",
        "danger: apply_triggers names gone, and there is no such trigger",
        "danger: table c cannot be replicated: ",
        "unknown function: own_function()\n",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

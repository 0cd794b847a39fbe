//! Changes of the schema or the configuration that must leave versions as they are.

use super::support::{cluster, converge, exchange};

const T: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v DEFAULT 'a')";

/// The 12 steps of <https://www.sqlite.org/lang_altertable.html#otheralter>.
const REBUILD: &str = "BEGIN; CREATE TABLE new(id INTEGER PRIMARY KEY, v DEFAULT 'b');
    INSERT INTO new SELECT * FROM t; DROP TABLE t; ALTER TABLE new RENAME TO t; COMMIT";

#[test]
fn another_default_stamps_no_row() {
    let mut n = cluster(2, T);
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')");
    converge(&mut n);
    n[1].clock.advance(std::time::Duration::from_secs(1));
    n[1].run("UPDATE t SET v = 'newer' WHERE id = 2");
    let newer = n[1].publish();
    let before = n[0].versions();
    n[0].clock.advance(std::time::Duration::from_secs(3600));
    n[0].run(REBUILD);
    n[0].capture();
    assert_eq!(n[0].versions(), before);
    n[0].restart();
    n[0].capture();
    assert_eq!(n[0].versions(), before);
    n[0].apply(&newer);
    assert_eq!(n[0].rows("SELECT v FROM t WHERE id = 2"), "t'newer'");
    n[0].run("INSERT INTO t(id) VALUES (4)");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM t WHERE id = 4"), "t'b'");
    // The triggers are missing once more: only rows that changed meanwhile get a new version.
    n[0].run("DROP TRIGGER __harmonylite__t_update; UPDATE t SET v = 'a' WHERE id = 3");
    assert_eq!(n[0].capture(), 1);
    converge(&mut n);
}

#[test]
fn a_table_included_later_is_older_than_what_others_wrote() {
    let mut n = cluster(2, T);
    n[1].restart_with(|s| s.tables.exclude = vec!["late".into()]);
    for node in &n {
        node.run("CREATE TABLE late(id INTEGER PRIMARY KEY, v)");
    }
    n[1].capture();
    n[1].run("INSERT INTO late VALUES (1, 'excluded'), (2, 'here alone')");
    n[0].run("INSERT INTO late VALUES (1, 'replicated')");
    let passed_over = n[0].publish();
    exchange(&mut n);
    n[1].apply(&passed_over);
    n[1].clock.advance(std::time::Duration::from_secs(3600));
    assert!(n[1].db.position("s").seq > 0);
    n[1].restart();
    assert_eq!(n[1].db.position("s").seq, 0, "all is read again");
    n[1].apply(&passed_over);
    exchange(&mut n);
    let all = converge(&mut n);
    assert!(
        all.contains("t'replicated'") && all.contains("t'here alone'"),
        "{all}"
    );
    // A new table counts as written now.
    n[1].run("CREATE TABLE fresh(id INTEGER PRIMARY KEY); INSERT INTO fresh VALUES (1)");
    n[1].capture();
    let stamped = "SELECT hlc > 1 FROM __harmonylite__fresh_versions";
    assert_eq!(n[1].rows(stamped), "i1");
}

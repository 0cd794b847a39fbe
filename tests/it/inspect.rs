//! `harmonylite inspect`: beside a daemon, beside an application and alone.

use std::fs;
use std::process::Command;

use crate::command_line::{contents, text};
use crate::node::Node;

fn inspect(words: &[&str]) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_harmonylite");
    let output = Command::new(program)
        .arg("inspect")
        .args(words)
        .output()
        .unwrap();
    (output.status.code(), text(&output))
}

#[test]
fn it_says_what_there_is_and_changes_nothing() {
    let node = Node::new(1);
    let path = node.database();
    let path = path.to_str().unwrap();
    node.execute(
        "CREATE TABLE good(id TEXT PRIMARY KEY NOT NULL, v);
         CREATE TABLE django_migrations(id INTEGER PRIMARY KEY, app, name, applied)",
    );
    let before = contents(node.folder.path());
    let (code, said) = inspect(&[path]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("  good               key id\n"), "{said}");
    assert!(
        said.contains("  django_migrations  Django keeps its books in it"),
        "{said}"
    );
    assert!(
        before == contents(node.folder.path()),
        "something was changed"
    );

    node.execute("CREATE TABLE numbered(id INTEGER PRIMARY KEY)");
    let (code, said) = inspect(&[path]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("danger: SQLite numbers the rows"), "{said}");
    assert!(said.contains("1 danger(s), see above"), "{said}");
    let output = node.run(&["-json", "inspect"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &json["version"]),
        (Some(1), &1.into())
    );
    assert_eq!(json["tables"][1]["numbers_itself"], true);
    assert_eq!(json["tables"][2]["part"], "local");
}

#[test]
fn beside_a_daemon_and_beside_an_application() {
    let mut node = Node::new(1);
    node.execute("CREATE TABLE numbered(id INTEGER PRIMARY KEY)");
    node.start();
    node.until_log("SQLite numbers the rows");
    let running = node.run(&["inspect"]);
    assert_eq!(running.status.code(), Some(1), "{}", text(&running));
    let checked = node.run(&["-check"]);
    assert_eq!(checked.status.code(), Some(0));
    let said =
        "the configuration is valid\n".to_owned() + &String::from_utf8_lossy(&running.stdout);
    assert_eq!(text(&checked), said);
    node.stop();
    let app = node.open();
    app.execute_batch("BEGIN IMMEDIATE; CREATE TABLE later(id TEXT PRIMARY KEY)")
        .unwrap();
    assert_eq!(node.run(&["inspect"]).stdout, running.stdout);
    app.execute_batch("COMMIT").unwrap();
    assert!(text(&node.run(&["inspect"])).contains("  later     key id\n"));
}

#[test]
fn files_that_cannot_be_inspected() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(
        path("text"),
        "this is a text of more than a hundred bytes; ".repeat(30),
    )
    .unwrap();
    let (code, said) = inspect(&[&path("none")]);
    assert!(
        said.contains("none") && said.contains("unable to open"),
        "{said}"
    );
    assert_eq!(code, Some(1));
    let (code, said) = inspect(&[&path("text")]);
    assert!(
        said.contains("text") && said.contains("not a database"),
        "{said}"
    );
    assert_eq!(code, Some(1));
    assert_eq!(inspect(&["-o", "x"]).0, Some(2));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

//! The database file, handled by others: mounted, linked, removed, copied over.

use std::fs;
use std::process::Command;

use crate::node::Node;

/// Refused at the start and by `-check`, with nothing changed.
fn assert_refused(node: &Node, command: impl Fn(&[&str]) -> Command, why: &str) {
    let before = fs::read(node.database()).unwrap();
    for words in [&["-check"][..], &[]] {
        let done = command(words).output().unwrap();
        let says = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{says}");
        assert!(says.contains("db_path is ") && says.contains(why), "{says}");
        assert!(says.contains("line "), "{says}");
    }
    assert_eq!(fs::read(node.database()).unwrap(), before);
}

#[test]
fn a_file_with_two_names_is_refused() {
    let node = Node::new(1);
    fs::hard_link(node.database(), node.file("second.db")).unwrap();
    assert_refused(&node, |words| node.command(words), "hard link");
    fs::remove_file(node.file("second.db")).unwrap();
    assert_eq!(node.run(&["-check"]).status.code(), Some(0));
}

/// As Docker mounts it by `-v /srv/app/app.db:/db/app.db`.
#[test]
fn a_file_that_is_mounted_alone_is_refused() {
    let mut node = Node::new(1);
    let mounts = Command::new("unshare").args(["-m", "true"]).status();
    if !mounts.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a file needs root");
        return;
    }
    fs::create_dir(node.file("container")).unwrap();
    let inner = node.file("container/app.db");
    fs::write(&inner, "").unwrap();
    node.set("db_path", &format!("'{}'", inner.display()));
    let mounted = |words: &[&str]| {
        let daemon = node.command(words);
        let mut command = Command::new("unshare");
        command
            .args([
                "-m",
                "sh",
                "-ec",
                "mount --bind \"$0\" \"$1\"; shift; exec \"$@\"",
            ])
            .args([node.database(), inner.clone()])
            .arg(daemon.get_program())
            .args(daemon.get_args());
        command
    };
    assert_refused(
        &node,
        mounted,
        "is mounted as a single file: mount its folder",
    );
}

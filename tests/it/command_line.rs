//! Arguments, exit codes and output of the program; a refused call changes nothing on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::node::Node;

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn run(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_harmonylite"))
        .args(words)
        .output()
        .unwrap()
}

/// Every file of a folder with its content.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    files
        .map(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            (name, fs::read(file.path()).unwrap_or_default())
        })
        .collect()
}

#[test]
fn version_and_help() {
    for words in [["-version"], ["--version"]] {
        let output = run(&words);
        assert!(output.status.success());
        assert_eq!(
            text(&output),
            format!("harmonylite {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
    for words in [["-help"], ["--help"], ["-h"]] {
        let output = run(&words);
        assert!(output.status.success());
        for flag in [
            "-config",
            "-node-id",
            "-cleanup",
            "-cluster-addr",
            "-cluster-peers",
            "-leaf-servers",
            "-check",
        ] {
            assert!(text(&output).contains(flag), "{flag}");
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_a_reader_who_left_is_none() {
    let into = |stdout: std::process::Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_harmonylite"));
        let child = command.arg("-help").stdout(stdout);
        child.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = into(full.into()).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("writing to standard output: "));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = into(writer.into()).wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output)),
        (Some(0), String::new())
    );
}

#[test]
fn a_wrong_call_ends_with_2() {
    for (words, says) in [
        (&["-cleanupp"][..], "did you mean -cleanup?"),
        (&["-nonsense"], "unknown flag -nonsense"),
        (&["-node-id", "0"], "-node-id"),
        (&["-node-id=x"], "-node-id"),
        (&["-config"], "-config needs a value"),
        (&["start"], "unexpected argument"),
        (&["-check", "-cleanup"], "do not go together"),
        (&["-cluster-peers", "http://a:1"], "-cluster-peers"),
        (&["-cluster-addr", "nonsense"], "-cluster-addr"),
    ] {
        let output = run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(text(&output).contains(says), "{words:?}: {}", text(&output));
        assert!(output.stdout.is_empty());
    }
    let hidden = run(&["-cluster-peers", "nats://user:hidden@host"]);
    assert!(!text(&hidden).contains("hidden"), "{}", text(&hidden));
}

#[test]
fn a_sound_configuration() {
    let node = Node::new(1);
    let before = contents(node.folder.path());
    let output = node.run(&["-check"]);
    assert!(output.status.success(), "{}", text(&output));
    let nothing = format!("{}: no tables\n", node.database().display());
    let expected = format!("the configuration is valid\n{nothing}");
    assert_eq!(text(&output), expected);
    assert!(
        before == contents(node.folder.path()),
        "something was changed"
    );
}

/// Without `-check`, each mistake would show only when the daemon starts or a snapshot is due.
#[test]
fn a_check_finds_what_a_start_would_meet() {
    let check = |change: &dyn Fn(&mut Node), home: Option<&str>| {
        let mut node = Node::new(1);
        change(&mut node);
        let mut command = node.command(&["-check"]);
        match home {
            Some(home) => command.env("HOME", home),
            None => command.env_remove("HOME"),
        };
        let output = command.output().unwrap();
        (output.status.code(), text(&output))
    };
    let sftp = |node: &mut Node| {
        node.set("snapshot.store", "'sftp'")
            .set("snapshot.sftp.url", "'sftp://u:p@h/x'");
    };
    for (home, says) in [
        (None, "there is no HOME"),
        (Some("/nowhere"), "/nowhere/.ssh/known_hosts"),
    ] {
        let (code, said) = check(&sftp, home);
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("warning: snapshot.sftp: ") && said.contains(says),
            "{said}"
        );
    }
    let (_, said) = check(
        &|node| {
            sftp(node);
            node.set("snapshot.sftp.insecure_ignore_host_key", "true");
        },
        None,
    );
    assert!(!said.contains("warning"), "{said}");
    let long = format!("'/tmp/{}'", "x".repeat(110));
    for (key, value, says) in [
        (
            "nats.server_binary",
            "'/etc/passwd'",
            "no nats-server found",
        ),
        (
            "health_check.bind",
            "'192.0.2.1:80'",
            "health_check.bind: listen on 192.0.2.1:80",
        ),
        ("control_socket", &*long, "control_socket: /tmp/xxx"),
    ] {
        let (code, said) = check(
            &|node| {
                node.unset("nats.urls");
                node.set("health_check.enable", "true").set(key, value);
            },
            Some("/nowhere"),
        );
        assert_eq!(code, Some(1), "{key}: {said}");
        assert!(
            said.contains("a start would fail") && said.contains(says),
            "{said}"
        );
    }
}

#[test]
fn mistakes_are_named() {
    for (key, value, says) in [
        ("node_id", "0", "node_id"),
        ("node_id", "'one'", "node_id"),
        ("colour", "1", "colour"),
        ("nats.colour", "1", "nats.colour"),
        ("replication_log.shard", "4", "shards"),
        ("replication_log.shards", "0", "replication_log.shards"),
        ("replication_log.shards", "257", "256"),
        ("replication_log.replicas", "9", "replication_log.replicas"),
        (
            "replication_log.max_transaction_bytes",
            "8388608",
            "4194304",
        ),
        (
            "replication_log.compress",
            "'yes'",
            "replication_log.compress",
        ),
        ("scan_max_changes", "0", "scan_max_changes"),
        ("polling_interval", "1", "polling_interval"),
        ("cleanup_interval", "-5", "cleanup_interval"),
        ("nats.urls", "['http://a']", "nats.urls"),
        ("nats.urls", "['nats://u:hidden@']", "nats.urls"),
        ("nats.subject_prefix", "'a b'", "nats.subject_prefix"),
        ("nats.cert_file", "'/c.pem'", "key_file"),
        ("nats.bind_address", "'nonsense'", "nats.bind_address"),
        (
            "nats.server_binary",
            "'/no/such/program'",
            "/no/such/program",
        ),
        ("snapshot.store", "'tape'", "tape"),
        ("logging.format", "'xml'", "xml"),
        ("db_path", "'/no/such/folder/x.db'", "/no/such/folder"),
    ] {
        let mut node = Node::new(1);
        node.set(key, value);
        let before = contents(node.folder.path());
        for words in [&["-check"][..], &[]] {
            let output = node.run(words);
            assert_eq!(
                output.status.code(),
                Some(1),
                "{key} = {value}: {}",
                text(&output)
            );
            assert!(
                text(&output).contains(says),
                "{key} = {value}: {}",
                text(&output)
            );
            assert!(!text(&output).contains("hidden"), "{}", text(&output));
        }
        assert!(
            before == contents(node.folder.path()),
            "{key}: something was changed"
        );
    }
}

#[test]
fn files_that_are_no_configuration() {
    let node = Node::new(1);
    fs::write(
        node.file("config.toml"),
        "db_path = \"unfinished\nnode_id = 1",
    )
    .unwrap();
    let output = node.run(&["-check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("config.toml"), "{}", text(&output));
    let missing = run(&["-config", "/no/such.toml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing).contains("/no/such.toml"));
    let example = include_str!("../../config.toml");
    let example = example.replace("# urls = []", "urls = ['nats://127.0.0.1:4222']");
    fs::write(node.file("config.toml"), example).unwrap();
    let output = node.run(&["-check"]);
    assert!(output.status.success(), "{}", text(&output));
}

/// A database that cannot be opened: exit code 1, and the file stays as it was.
#[test]
fn no_database() {
    let node = Node::new(1);
    let words = b"this is not a database, but somebody's only copy of a letter".repeat(100);
    fs::write(node.database(), &words).unwrap();
    let output = node.run(&[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("app.db"), "{}", text(&output));
    assert!(fs::read(node.database()).unwrap() == words);
}

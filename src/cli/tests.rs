use super::*;

fn read(line: &str) -> Result<Command, CliError> {
    parse(line.split_whitespace().map(OsString::from))
}

#[track_caller]
fn check_error(line: &str, expected: &[&str]) {
    let text = read(line).unwrap_err().to_string();
    for part in expected.iter().chain(&["; harmonylite -help"]) {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

#[test]
fn release_takes_two_flags() {
    let command = |config: Option<&str>, dry_run| {
        let config = config.map(Into::into);
        Ok(Command::Release { config, dry_run })
    };
    assert_eq!(read("release"), command(None, false));
    assert_eq!(read("-config=a release -dry-run"), command(Some("a"), true));
    check_error("release -json", &["release takes"]);
}

#[test]
fn nothing_means_run() {
    assert_eq!(read(""), Ok(Command::Run(Flags::default())));
}

#[test]
fn every_form_of_a_flag() {
    let expected = || Flags {
        config: Some("a=b.toml".into()),
        ..Flags::default()
    };
    for line in [
        "-config a=b.toml",
        "-config=a=b.toml",
        "--config a=b.toml",
        "--config=a=b.toml",
    ] {
        assert_eq!(read(line), Ok(Command::Run(expected())), "{line}");
    }
    assert_eq!(
        read("-check -config a=b.toml"),
        Ok(Command::Check(expected()))
    );
    assert_eq!(
        read("--config a=b.toml -cleanup"),
        Ok(Command::Cleanup(expected()))
    );
}

#[test]
fn help_and_version_win() {
    for line in ["-h", "-help", "--help", "-nonsense -help", "-version -help"] {
        assert_eq!(read(line), Ok(Command::Help), "{line}");
    }
    assert_eq!(read("-cleanup -version"), Ok(Command::Version));
}

#[test]
fn help_names_every_flag() {
    for flag in FLAGS
        .map(shown)
        .iter()
        .filter(|&&flag| flag != "-leaf-server")
    {
        assert!(HELP.contains(&format!("\n  {flag}")), "{flag}");
    }
    assert!(HELP.lines().all(|line| line.len() <= 100));
}

#[test]
fn values() {
    let line = "-node-id 18446744073709551615 -cluster-addr [::1]:-1 \
                -cluster-peers nats://ann:secret@a:4221/,dns://b:4222/?min=3&interval_ms=50, \
                -leaf-server dns://c:7422/";
    let Ok(Command::Run(options)) = read(line) else {
        panic!("{line}")
    };
    assert_eq!(options.node_id, Some(u64::MAX));
    assert_eq!(
        options.cluster_addr,
        Some(ListenAddress {
            host: "::1".into(),
            port: None
        })
    );
    assert!(matches!(&options.cluster_peers[0],
        Peer::Direct(url) if url.reveal() == "nats://ann:secret@a:4221/"));
    let dns = |host: &str, port, min, interval_ms| Peer::Dns {
        host: host.into(),
        port,
        min,
        interval: Duration::from_millis(interval_ms),
    };
    assert_eq!(options.cluster_peers[1..], [dns("b", 4222, 3, 50)]);
    assert_eq!(options.leaf_servers, [dns("c", 7422, 2, 1000)]);
    assert!(!format!("{options:?}").contains("secret"));
}

#[test]
fn values_that_do_not_fit() {
    check_error("-node-id 0", &["-node-id is \"0\"", "an integer from 1"]);
    check_error("-node-id x", &["-node-id is \"x\""]);
    check_error(
        "-cluster-addr host",
        &["-cluster-addr is \"host\"", "HOST:PORT"],
    );
    check_error(
        "-cluster-peers ws://a:1/",
        &["-cluster-peers", "entry 1", "nats, tls, nats-route, dns"],
    );
    check_error("-cluster-peers nats://a/", &["with a port"]);
    check_error(
        "-cluster-peers nats-leaf://a:1",
        &["one of nats, tls, nats-route, dns"],
    );
    check_error(
        "-leaf-servers dns://a:1/?min=few",
        &["-leaf-servers", "min is a whole number"],
    );
}

#[test]
fn passwords_are_not_repeated() {
    let list = "nats://ann:secret@a:1/,ws://ben:not,secret@b:2";
    let text = read(&format!("-cluster-peers {list}"))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("\"nats://***@b:2\", but must be a list whose entry 2 is"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn missing_values() {
    for line in ["-config", "-config=", "-config -cleanup"] {
        check_error(line, &["-config needs a value"]);
    }
}

#[test]
fn the_file_to_restore_to_is_a_flag_like_others() {
    for line in [
        "restore -o r.db",
        "restore -o=r.db",
        "restore --o r.db",
        "--o=r.db restore",
        "-o r.db restore",
    ] {
        let Ok(Command::Restore { to, .. }) = read(line) else {
            panic!("{line}")
        };
        assert_eq!(to, Some("r.db".into()), "{line}");
    }
    // A file may have the name of a command.
    let Ok(Command::Restore { to, .. }) = read("restore -o snapshots") else {
        panic!("a file that is called snapshots")
    };
    assert_eq!(to, Some("snapshots".into()));
    check_error("restore -o a -o b", &["-o is given twice"]);
    for line in ["restore -o", "restore -o=", "restore -o -config a"] {
        check_error(line, &["-o needs a value"]);
    }
    for line in ["-o r.db", "snapshots -o r.db", "conflicts -o r.db"] {
        check_error(line, &["-o does not go here"]);
    }
}

#[test]
fn words_that_nobody_knows() {
    check_error("-confg x", &["unknown flag -confg, did you mean -config?"]);
    check_error("--zzz=secret", &["unknown flag --zzz;"]);
    check_error("-x", &["unknown flag -x;"]);
    check_error("backup", &["unexpected argument \"backup\""]);
    check_error("-check later", &["unexpected argument \"later\""]);
    check_error("-config a -config b", &["-config is given twice"]);
    check_error("-check -cleanup", &["do not go together"]);
    check_error("-json", &["-json does not go here"]);
    check_error("conflicts -check", &["-check does not go here"]);
    check_error("inspect -check", &["-check does not go here"]);
    check_error("inspect a.db b.db", &["unexpected argument \"b.db\""]);
    check_error("conflicts later", &["unexpected argument \"later\""]);
    check_error("conflicts conflicts", &["unexpected argument"]);
    check_error("conflicts -json -json", &["-json is given twice"]);
    check_error("conflicts -jsn", &["did you mean -json?"]);
    check_error("-drop jobs", &["-drop does not go here"]);
    check_error("conflicts -drop jobs", &["-drop does not go here"]);
    check_error("held -drop", &["-drop needs a value"]);
    check_error("held -o x", &["-o does not go here"]);
    let held = |json, drop: Option<&str>| {
        let drop = drop.map(str::to_owned);
        Ok(Command::Held {
            config: None,
            json,
            drop,
        })
    };
    assert_eq!(read("held"), held(false, None));
    assert_eq!(read("held -json -drop jobs"), held(true, Some("jobs")));
    assert_eq!(read("-drop held held"), held(false, Some("held")));
}

#[test]
fn a_subcommand_stands_anywhere_among_the_flags() {
    let expected = |json| {
        Ok(Command::Conflicts {
            config: Some("a.toml".into()),
            json,
        })
    };
    for (line, json) in [
        ("conflicts -config a.toml", false),
        ("-config a.toml conflicts", false),
        ("-config=a.toml --json conflicts", true),
        ("conflicts -json --config=a.toml", true),
    ] {
        assert_eq!(read(line), expected(json), "{line}");
    }
    assert_eq!(read("conflicts -help"), Ok(Command::Help));
    // The value of a flag is never a subcommand.
    let Ok(Command::Run(options)) = read("-config conflicts") else {
        panic!("a file that is called conflicts")
    };
    assert_eq!(options.config, Some("conflicts".into()));
}

#[test]
fn flags_of_the_go_version_are_named() {
    for words in ["-pprof host:6060", "--pprof=x"] {
        check_error(
            words,
            &["a flag of the Go version that does not exist here"],
        );
    }
}

#[test]
fn inspect_takes_a_database() {
    for (line, config, json, database) in [
        ("inspect", None, false, None),
        ("inspect -json a.db", None, true, Some("a.db")),
        (
            "inspect a.db --json -config c.toml",
            Some("c.toml"),
            true,
            Some("a.db"),
        ),
        (
            "-config inspect inspect inspect",
            Some("inspect"),
            false,
            Some("inspect"),
        ),
    ] {
        let expected = Command::Inspect {
            config: config.map(Into::into),
            json,
            database: database.map(Into::into),
        };
        assert_eq!(read(line), Ok(expected), "{line}");
    }
}

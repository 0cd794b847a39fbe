//! `harmonylite status`, `schema status`, `verify`, `forget` and `diag` beside real daemons.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::config::DbConfig;
use serde_json::{Value as Json, json};

use crate::cluster::Cluster;
use crate::node::{Node, until};

fn cluster(count: u64) -> Cluster {
    let cluster = Cluster::start(count, |node| {
        node.set("status_interval", "1000");
    });
    cluster.converge();
    cluster
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(all).unwrap()
}

fn json(node: &Node, words: &[&str]) -> (Option<i32>, Json) {
    let output = node.run(&[words, &["-json"]].concat());
    let json = serde_json::from_slice(&output.stdout);
    let json = json.unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    (output.status.code(), json)
}

/// Waits until every node knows all others.
fn until_all_are_listed(cluster: &Cluster) {
    let count = cluster.nodes.len() - 1;
    for node in &cluster.nodes {
        until("all nodes are listed", || {
            let (_, status) = json(node, &["status"]);
            let others = status["others"].as_array()?;
            let told = others.iter().filter(|n| n["known_by"] == "entry");
            (told.count() == count).then_some(())
        });
    }
}

#[test]
fn every_node_is_listed_until_it_is_forgotten() {
    let mut cluster = Cluster::stopped(3, |node| {
        node.set("status_interval", "1000");
    });
    cluster.nodes[0].set("node_name", "'cellar'");
    cluster.nodes[2].set("status_interval", "0");
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 1)");
    cluster.converge();
    let (second, third) = (&cluster.nodes[1], &cluster.nodes[2]);
    let status = until("the others are listed, and all is well", || {
        let (code, status) = json(second, &["status"]);
        let cellar = &status["others"][0];
        let is_there = cellar["name"] == "cellar" && status["others"][1]["node"] == "3";
        (code == Some(0) && is_there).then_some(status)
    });
    assert_eq!(status["version"], 1);
    assert_eq!(status["this"]["node"], "2");
    let cellar = &status["others"][0];
    assert_eq!(cellar["release"], env!("CARGO_PKG_VERSION"));
    assert_eq!(cellar["schema"]["hash"], status["this"]["schema"]["hash"]);
    assert_eq!(cellar["streams"], status["this"]["streams"]);
    assert_eq!(status["this"]["streams"][0]["behind"], 0);
    assert_eq!(status["others"][1]["known_by"], "messages");
    assert_eq!(status["lag"][0]["seconds"], 0.0);
    let shown = text(&second.run(&["status"]));
    let verdict = "every node that tells of itself has everything\n"; // the third tells nothing
    assert!(shown.starts_with(verdict), "{shown}");
    assert!(shown.contains("node 1 (cellar): release"), "{shown}");
    // The third node tells nothing of itself and asks for no other.
    let alone = text(&third.run(&["status"]));
    assert!(
        alone.contains("other nodes: not known: status_interval = 0"),
        "{alone}"
    );

    for (node, says) in [
        ("1", "stop it first"),
        ("2", "is this node"),
        ("9", "no node 9"),
    ] {
        let refused = second.run(&["forget", node]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused).contains(says), "{}", text(&refused));
    }
    cluster.nodes[2].stop();
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let dry = second.run(&["forget", "3", "-dry-run"]);
    assert_eq!(text(&dry), "node 3 would be forgotten\n");
    assert_eq!(json(second, &["status"]).1["others"][1]["node"], "3");
    let done = second.run(&["forget", "3"]);
    assert_eq!(text(&done), "node 3 is forgotten\n");
    until("it is gone everywhere", || {
        let count = |node| json(node, &["status"]).1["others"].as_array().map(Vec::len);
        (count(first) == Some(1) && count(second) == Some(1)).then_some(())
    });
}

#[test]
fn without_a_daemon_the_file_is_read() {
    let mut cluster = cluster(1);
    let node = &mut cluster.nodes[0];
    node.execute("INSERT INTO item VALUES (1, 'a', 1)");
    until("it is sent", || node.is_quiet().then_some(()));
    node.stop();
    node.execute("INSERT INTO item VALUES (2, 'b', 1)");
    let (code, status) = json(node, &["status"]);
    assert_eq!((code, &status["running"]), (Some(3), &json!(false)));
    assert_eq!(status["this"]["unsent"], 1);
    assert_eq!(status["this"]["node"], "1");
    for words in [&["verify"][..], &["forget", "7"]] {
        let output = node.run(words);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(text(&output).contains("no daemon answers"));
    }
}

/// The others name a node that cannot be reached, and the rows that it lacks.
#[test]
fn a_node_that_holds_rows_is_named_by_the_others() {
    let cluster = cluster(2);
    until_all_are_listed(&cluster);
    cluster.nodes[0].execute("CREATE TABLE later (id INTEGER PRIMARY KEY)");
    until("the tables differ", || {
        let (code, schema) = json(&cluster.nodes[1], &["schema", "status", "-cluster"]);
        (code == Some(1) && schema["others"][0]["same"] == false).then_some(())
    });
    let shown = text(&cluster.nodes[1].run(&["-schema-status-cluster"]));
    assert!(shown.contains("DIFFERENT tables: node 1"), "{shown}");
    cluster.nodes[0].execute("INSERT INTO later VALUES (1)");
    until("the first knows what the second lacks", || {
        let (code, status) = json(&cluster.nodes[0], &["status"]);
        let other = &status["others"][0];
        let is_dated = other["lacks_since_ms"].as_i64() <= status["time_ms"].as_i64();
        let is_told = other["held"] == 1 && other["lacks_since_ms"].is_i64() && is_dated;
        (code == Some(1) && is_told).then_some(())
    });
    let shown = text(&cluster.nodes[0].run(&["status"]));
    assert!(shown.contains("\n  since 20"), "{shown}");
    cluster.nodes[1].execute("CREATE TABLE LATER (\"ID\" INTEGER PRIMARY KEY)");
    until("the tables are the same", || {
        let (code, schema) = json(&cluster.nodes[1], &["schema", "status", "-cluster"]);
        let previous = &schema["this"]["previous"];
        (code == Some(0) && previous.is_string()).then_some(())
    });
    until("all is well again", || {
        (json(&cluster.nodes[0], &["status"]).0 == Some(0)).then_some(())
    });
}

/// Exit codes and JSON of every command, as the guide has them: 0 all is well, 1 something is not,
/// 2 the call is wrong, 3 no daemon runs.
#[test]
fn every_command_ends_as_the_guide_says() {
    let mut cluster = cluster(1);
    let node = &mut cluster.nodes[0];
    node.execute("INSERT INTO item VALUES (1, 'a', 1)");
    until("all is well", || {
        (json(node, &["status"]).0 == Some(0)).then_some(())
    });
    let by_daemon: [(&[&str], i32); 10] = [
        (&["status"], 0),
        (&["schema", "status"], 0),
        (&["schema", "status", "-cluster"], 0),
        (&["-schema-status"], 0),
        (&["-schema-status-cluster"], 0),
        (&["verify"], 0),
        (&["verify", "-repair", "-dry-run"], 0),
        (&["forget", "9"], 1),
        (&["forget", "9", "-dry-run"], 1),
        (&["resume"], 0),
    ];
    let by_file: [&[&str]; 3] = [&["conflicts"], &["held"], &["inspect"]];
    let check = |node: &Node, words: &[&str], code: i32| {
        let output = node.run(words);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{words:?}: {}",
            text(&output)
        );
        assert!(!text(&output).is_empty(), "{words:?}");
        let output = node.run(&[words, &["-json"]].concat());
        assert_eq!(
            output.status.code(),
            Some(code),
            "{words:?}: {}",
            text(&output)
        );
        let is_json = serde_json::from_slice::<Json>(&output.stdout).is_ok();
        // A command that fails says so on standard error.
        assert!(is_json || code == 1, "{words:?}: {}", text(&output));
    };
    let check_files = |node: &Node| {
        for words in by_file {
            let ends = node.run(words).status.code();
            let is_inspect = words == ["inspect"]; // SQLite numbers the rows, which is a danger
            check(node, words, i32::from(is_inspect && ends == Some(1)));
        }
    };
    by_daemon
        .iter()
        .for_each(|(words, code)| check(node, words, *code));
    check(node, &["snapshots"], 0);
    check_files(node);
    check(node, &["pause"], 0);
    check(node, &["status"], 0); // being offline on purpose is no problem
    check(node, &["resume"], 0);
    let (_, status) = json(node, &["status"]);
    assert!(
        status["warnings"].is_array() && status["progress"].is_array(),
        "{status}"
    );
    assert!(
        status["newest_snapshot"]["age_seconds"].is_u64(),
        "{status}"
    );
    for words in [
        &["status", "-repair"][..],
        &["status", "now"],
        &["schema"],
        &["schema", "status", "-dry-run"],
        &["verify", "-dry-run"],
        &["verify", "item"],
        &["forget"],
        &["forget", "me"],
        &["forget", "9", "-repair"],
        &["pause", "now"],
        &["resume", "-dry-run"],
        &["conflicts", "-repair"],
        &["held", "-repair"],
        &["snapshots", "-repair"],
        &["diag", "-json"],
        &["diagnose"],
    ] {
        let output = node.run(words);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{words:?}: {}",
            text(&output)
        );
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{words:?}"
        );
    }
    node.stop();
    by_daemon
        .iter()
        .for_each(|(words, _)| check(node, words, 3));
    check(node, &["pause"], 3);
    check_files(node);
}

#[test]
fn one_changed_byte_is_found_and_mended() {
    let cluster = cluster(3);
    for (i, node) in cluster.nodes.iter().enumerate() {
        node.execute(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
             INSERT INTO item SELECT i * 3 + {i}, 'value ' || i, {i} FROM n"
        ));
    }
    cluster.converge();
    until_all_are_listed(&cluster);
    let verify = |words: &[&str]| json(&cluster.nodes[0], &[&["verify"], words].concat());
    let (code, report) = verify(&[]);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["rows"], 6000);

    let app = cluster.nodes[1].open();
    app.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)
        .unwrap();
    let spoil = "UPDATE item SET value = 'value 8' WHERE id = 21";
    app.execute_batch(spoil).unwrap();
    // An application writes meanwhile: changes that are under way are no difference.
    let is_done = AtomicBool::new(false);
    let ((code, report), written) = std::thread::scope(|scope| {
        let application = scope.spawn(|| {
            let (app, mut written) = (cluster.nodes[2].open(), 0);
            while !is_done.load(Ordering::Relaxed) {
                written += 1;
                let sql = "UPDATE item SET writer = ?1 WHERE id % 500 = ?1 % 500 AND id <> 21";
                app.execute(sql, [written]).unwrap();
            }
            written
        });
        let verified = verify(&[]);
        is_done.store(true, Ordering::Relaxed);
        (verified, application.join().unwrap())
    });
    assert!(written > 10, "{written} writes");
    assert_eq!(code, Some(1), "{report}");
    let rows = report["different_rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{report}");
    assert_eq!(
        (&rows[0]["table"], &rows[0]["key"]),
        (&json!("item"), &json!("(21)"))
    );
    assert_eq!(rows[0]["nodes"][1]["intact"], false);

    let (_, report) = verify(&["-repair", "-dry-run"]);
    assert_eq!(
        (&report["repaired"], &report["dry_run"]),
        (&json!(1), &json!(true))
    );
    let (_, report) = verify(&["-repair"]);
    assert_eq!(report["repaired"], 1, "{report}");
    until("it is mended", || {
        let value: String = app
            .query_row("SELECT value FROM item WHERE id = 21", [], |r| r.get(0))
            .ok()?;
        (value == "value 7").then_some(())
    });
    cluster.converge();
    let (code, report) = verify(&[]);
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn a_bundle_holds_no_secret() {
    let secret = |n: u32| format!("5ecret-{n}-with \"quotes\" & per%cent");
    let toml = |n: u32| serde_json::to_string(&secret(n)).unwrap();
    let stores = [
        format!(
            "store = \"s3\"\n[snapshot.s3]\nendpoint = \"127.0.0.1:1\"\nbucket = \"b\"\n\
             access_key = {}\nsecret = {}\nsession_token = {}\n",
            toml(1),
            toml(2),
            toml(3)
        ),
        "store = \"webdav\"\n[snapshot.webdav]\nurl \
         = \"https://127.0.0.1:1/?dir=/d&login=u&secret=5ecret-4\"\n"
            .to_owned(),
        format!(
            "store = \"sftp\"\n[snapshot.sftp]\nendpoint = \"127.0.0.1:1\"\npath = \"/d\"\n\
             username = \"u\"\npassword = {}\npassphrase = {}\n\
             insecure_ignore_host_key = true\n",
            toml(5),
            toml(6)
        ),
        "store = \"sftp\"\n[snapshot.sftp]\nurl = \"sftp://u:5ecret-7@127.0.0.1:1/d\"\n\
         insecure_ignore_host_key = true\n"
            .to_owned(),
    ];
    for (i, store) in stores.iter().enumerate() {
        let node = Node::new(1);
        let (log, file) = (node.file("daemon.log"), node.file("config.toml"));
        let password = node.file("password");
        let config = format!(
            "db_path = '{}'\nnode_id = 1\n[logging]\nfile = '{}'\n\
             [nats]\nurls = [\"nats://5ecret-8@127.0.0.1:1\", \"nats://u:5ecret-9@127.0.0.1:1\"]\n\
             user_name = \"u\"\nuser_password = {}\n\
             [nats.cluster]\npassword = {}\n[nats.leaf]\npassword_file = \"{}\"\n\
             [health_check]\nheartbeat_url = \"https://u:5ecret-11@127.0.0.1:1/5ecret-12\"\n\
             [snapshot]\n{store}",
            node.database().display(),
            log.display(),
            toml(10),
            toml(13),
            password.display()
        );
        fs::write(&password, secret(14)).unwrap();
        fs::write(&file, config).unwrap();
        // A careless server may repeat the secrets in its messages.
        let said: Vec<String> = (1..=14).map(secret).collect();
        fs::write(
            &log,
            format!(
                "{}\nhttp://x:5ecret-9@h/5ecret-12 5ecret-11\n",
                said.join("\n")
            ),
        )
        .unwrap();
        let to = node.file("bundle.txt");
        let output = node.run(&["diag", "-o", to.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert_eq!(
            fs::metadata(&to).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let bundle = fs::read_to_string(&to).unwrap();
        let of_store: &[u32] = [&[1, 2, 3][..], &[4], &[5, 6], &[7]][i];
        for n in of_store.iter().chain(&[8, 9, 10, 11, 12, 13, 14]) {
            assert!(!bundle.contains(&format!("5ecret-{n}")), "{n}: {bundle}");
        }
        let configuration = bundle.split("== /health").next().unwrap();
        assert!(!configuration.contains("5ecret"), "{configuration}");
        for says in ["harmonylite ", "sqlite ", "user_password", "== own tables"] {
            assert!(bundle.contains(says), "{says}: {bundle}");
        }
        let again = node.run(&["diag", "-o", to.to_str().unwrap()]);
        assert_eq!(again.status.code(), Some(1), "nothing is written over");
    }
}

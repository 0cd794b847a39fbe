//! The configuration as operators see it: the defaults, `config.toml`, and the text of every kind
//! of error.

use std::collections::BTreeSet;
use std::time::Duration;

use log::LevelFilter;

use super::snapshot::check::is_built_in;
use super::snapshot::{FileStore, StoreSettings};
use super::*;

mod go_version;
mod stores;

const DOCUMENTED: &str = include_str!("../../config.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("box.toml"), text)
}

/// The configuration of a file that has a database and `rest`.
#[track_caller]
fn sound(rest: &str) -> Config {
    parse(&format!("db_path = \"/tmp/a.db\"\n{rest}")).unwrap_or_else(|error| panic!("{error}"))
}

/// Asserts that a file with a database and `rest` is refused by one line that has all of `parts`.
#[track_caller]
fn check_refused(rest: &str, parts: &[&str]) {
    let error = parse(&format!("db_path = \"/tmp/a.db\"\n{rest}"))
        .unwrap_err()
        .to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    for part in parts.iter().chain(&["box.toml"]) {
        assert!(error.contains(part), "no {part:?} in {error:?}");
    }
}

#[test]
fn defaults() {
    let config = sound("");
    assert_eq!((config.common.shards, config.common.compress), (1, true));
    assert_eq!(config.common.stream_prefix, "harmonylite-changes");
    assert_eq!(config.seq_map_path, Path::new("/tmp/seq-map.cbor"));
    let socket = Some(Path::new("/tmp/a.db-harmonylite.sock"));
    assert_eq!(config.control_socket.as_deref(), socket);
    assert_eq!(sound("control_socket = \"\"").control_socket, None);
    assert_eq!(config.prometheus.bind.to_string(), "127.0.0.1:3010");
    let all = sound("[prometheus]\nbind = \":3010\"").prometheus.bind;
    assert_eq!(all.to_string(), "[::]:3010");
    assert_eq!(
        (
            config.node_id,
            config.sleep_timeout,
            config.polling_interval
        ),
        (None, None, None)
    );
    assert_eq!(config.cleanup_interval, Duration::from_secs(5));
    assert_eq!(
        config.tombstone_retention,
        Duration::from_secs(30 * 24 * 3600)
    );
    assert_eq!(config.replication_log.max_transaction_bytes, 1 << 20);
    assert_eq!(config.nats.bind_address.to_string(), "127.0.0.1:-1");
    assert_eq!(
        (config.nats.connect_retries, &config.nats.client_cert),
        (None, &None)
    );
    assert_eq!(config.logging.level, LevelFilter::Info);
    assert!(matches!(config.snapshot.store, StoreSettings::Nats(_)));
    assert_eq!(config.tables, Tables::default());
}

/// `config.toml` with its documented defaults uncommented.
fn uncommented() -> String {
    let is_key = |line: &&str| {
        let name = line
            .strip_prefix("# ")
            .and_then(|line| line.split_once(" = "));
        name.is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    let plain = |line| if is_key(&line) { &line[2..] } else { line };
    DOCUMENTED.lines().map(plain).collect::<Vec<_>>().join("\n")
}

#[test]
fn config_toml_documents_the_defaults() {
    let defaults = parse("db_path = \"data.db\"").unwrap();
    assert_eq!(parse(DOCUMENTED).unwrap(), defaults);
    assert_eq!(parse(&uncommented()).unwrap(), defaults);
}

#[test]
fn config_toml_documents_every_key() {
    let mut section = String::new();
    let mut documented = BTreeSet::from(["node_id", "control_socket"].map(str::to_owned));
    for line in uncommented().lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name.into();
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            documented.insert(raw::dotted(&section, key));
        }
    }
    let document = raw::Document::parse("").ok().unwrap();
    Config::read(&document);
    let mut known = document.asked();
    known.retain(|name| !name.starts_with("nats.tls_"));
    let differences: Vec<&String> = documented.symmetric_difference(&known).collect();
    assert!(
        differences.is_empty(),
        "in config.toml or in the code alone: {differences:?}"
    );
    assert!(DOCUMENTED.contains("#   node_id = 1\n"));
    assert!(DOCUMENTED.contains("#   control_socket = \""));
    assert!(DOCUMENTED.lines().all(|line| line.chars().count() <= 100));
}

#[test]
fn without_a_file() {
    let missing = Config::load(Path::new("/nowhere/box.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("cannot read /nowhere/box.toml, the configuration: "),
        "{missing}"
    );
    assert_eq!(
        Config::find(Some("x.toml".into())).unwrap(),
        Path::new("x.toml")
    );
    let advice = ConfigError::Missing.to_string();
    assert!(
        advice.contains("-config FILE") && advice.contains("db_path = "),
        "{advice}"
    );
}

#[test]
fn bounds() {
    check_refused(
        "[replication_log]\nshards = 300",
        &["box.toml line 3: replication_log.shards is 300, but must be an integer from 1 to 256"],
    );
    check_refused(
        "node_id = 0",
        &["line 2: node_id is 0", "from 1 to 9223372036854775807"],
    );
    check_refused(
        "node_id = 99999999999999999999",
        &["node_id is 99999999999999999999"],
    );
    check_refused(
        "[replication_log]\nmax_entries = -1",
        &["is -1", "would fill the disk"],
    );
    check_refused(
        "polling_interval = 5",
        &["is 5, but must be 0 (off) or at least 10"],
    );
    check_refused(
        "cleanup_interval = 0x10",
        &["is 0x10", "from 100", "milliseconds"],
    );
    check_refused(
        "[nats]\nbind_address = \"here\"",
        &["nats.bind_address is \"here\"", "HOST:"],
    );
    check_refused(
        "[nats]\nstream_prefix = \"a.b\"",
        &["is \"a.b\"", "ASCII letters"],
    );
    check_refused(
        "[nats]\nsubject_prefix = \"a..b\"",
        &["is \"a..b\"", "with a . between"],
    );
    check_refused(
        "[logging]\nlevel = \"loud\"",
        &["error, warn, info, debug or trace"],
    );
    check_refused(
        "[snapshot]\nstore = \"ftp\"",
        &["\"ftp\"", "nats, s3, webdav, sftp, file"],
    );
    check_refused("[tables]\ninclude = []", &["tables.include is empty"]);
    check_refused(
        "[tables]\ninclude = [\"*\", \"Log\"]\nlocal = [\"log\"]",
        &["tables.local has \"Log\", and so has tables.include: remove it from one"],
    );
}

#[test]
fn wrong_types() {
    check_refused(
        "publish = \"yes\"",
        &["publish is the string \"yes\"", "true or false"],
    );
    check_refused("publish = \"\"", &["publish is the string \"\""]);
    check_refused("scan_max_changes = 1.5", &["is 1.5", "an integer"]);
    check_refused(
        "apply_triggers = \"one\"",
        &["is of type string", "a list of strings"],
    );
    check_refused(
        "apply_triggers = [\"one\", 2]",
        &[
            "has an entry, number 2, of type integer",
            "a list of strings",
        ],
    );
    check_refused("nats = 4", &["nats is of type integer", "a section"]);
    check_refused(
        "seq_map_path = 1",
        &["seq_map_path is of type integer", "a path"],
    );
}

#[test]
fn unknown_keys() {
    check_refused(
        "pulbish = true",
        &["line 2: unknown key pulbish; did you mean publish?"],
    );
    check_refused(
        "[nats]\nurl = []",
        &["unknown key nats.url; did you mean nats.urls?"],
    );
    check_refused(
        "[snapshots.s3]\npath = \"\"",
        &["unknown key snapshots; did you mean snapshot?"],
    );
    check_refused("shards = 2", &["did you mean replication_log.shards?"]);
    check_refused("colour = 1", &["unknown key colour; correct or remove it"]);
    check_refused(
        "[snapshot]\nmin_changes = 1",
        &["the Go version ignores it too"],
    );
}

#[test]
fn all_problems_at_once_in_order() {
    let error = parse("publish = 1\n[nats]\nurl = 2\n[replication_log]\nshards = 0").unwrap_err();
    let ConfigError::Invalid { problems, .. } = &error else {
        panic!("{error}")
    };
    let lines: Vec<_> = problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [None, Some(1), Some(3), Some(5)]);
    assert!(
        error
            .to_string()
            .starts_with("box.toml: db_path is missing: add db_path = ")
    );
}

#[test]
fn syntax() {
    let error = parse("publish = true\nuser_password = \"hunter2\nx = 1")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("box.toml line 2: not valid TOML: "),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
    let twice = "[nats]\nuser_password = \"hunter2\"\nuser_password = \"hunter3\"";
    assert_eq!(
        parse(twice).unwrap_err().to_string(),
        "box.toml line 3: not valid TOML: duplicate key user_password"
    );
}

#[test]
fn paths() {
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().display();
    let refused = |text: String| parse(&text).unwrap_err().to_string();
    let error = refused(format!("db_path = \"{shown}/none/a.db\""));
    assert!(
        error.contains(&format!("no directory {shown}/none: create it")),
        "{error}"
    );
    assert!(refused(format!("db_path = \"{shown}\"")).contains("a directory, but must be the"));
    assert!(refused("db_path = \"/dev/null\"".into()).contains("is no file, but must be a file"));
    assert!(refused("db_path = \":memory:\"".into()).contains("plain path"));
    assert!(parse("db_path = \"a.db\"").is_ok());
    assert_eq!(
        parse("db_path = \"a.db\"").unwrap().seq_map_path,
        Path::new("seq-map.cbor")
    );

    check_refused(
        "[nats]\nseed_file = \"/none/x\"",
        &["nats.seed_file is /none/x", "No such"],
    );
    check_refused(
        &format!("[nats]\nca_file = \"{shown}\""),
        &["a file that can be read: it is a directory"],
    );
    check_refused(
        "[logging]\nfile = \"/none/x.log\"",
        &["logging.file", "no directory /none"],
    );
}

#[test]
fn client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.pem");
    std::fs::write(&file, "").unwrap();
    let shown = file.display();

    let both = format!("[nats]\ntls_cert_file = \"{shown}\"\nkey_file = \"{shown}\"");
    assert_eq!(
        sound(&both).nats.client_cert,
        Some((file.clone(), file.clone()))
    );
    check_refused(
        &format!("[nats]\ntls_cert_file = \"{shown}\""),
        &["key_file must be set too"],
    );
    let twice = format!("[nats]\nca_file = \"{shown}\"\ntls_ca_file = \"{shown}\"");
    check_refused(&twice, &["nats.tls_ca_file is a different name of ca_file"]);
    assert_eq!(
        sound(&twice.replace("\nca_file", "\n# ca_file"))
            .nats
            .ca_file,
        Some(file.clone())
    );
}

#[test]
fn keys_that_a_store_needs() {
    for (store, key) in [("file", "path"), ("sftp", "endpoint")] {
        if is_built_in(store) {
            let part = format!("snapshot.{store}.{key} is missing");
            check_refused(&format!("[snapshot]\nstore = \"{store}\""), &[&part]);
        }
    }
    check_refused(
        "[snapshot.webdav]\nurl = \"x\"\nendpoint = \"y\"",
        &["keep one of the two"],
    );
    check_refused(
        "[snapshot.webdav]\nendpoint = \"https://a:b@c\"",
        &["holds a login"],
    );
    if is_built_in("file") {
        let config = sound("[snapshot]\nstore = \"file\"\nfile.path = \"/mnt/x\"");
        let store = FileStore {
            path: "/mnt/x".into(),
            database: "/tmp/a.db".into(),
        };
        assert_eq!(config.snapshot.store, StoreSettings::File(store));
    }
    sound("[snapshot]\nstore = \"s3\"\nenabled = false");
}

#[test]
fn a_slow_or_rare_connection() {
    for (rest, says) in [
        (
            "heartbeat = 500",
            "edge.heartbeat is 500, but must be 0 or an integer from 1000 to 300000",
        ),
        (
            "max_bandwidth = 1000",
            "must be 0 (no limit) or at least 32768",
        ),
        (
            "sync_window = \"2-5\"",
            "edge.sync_window is \"2-5\", but must be two different times",
        ),
        (
            "sync_window = \"02:00-05:00\"",
            "so nats.urls must be set too",
        ),
    ] {
        check_refused(&format!("[edge]\n{rest}"), &[says]);
    }
    let urls = "[nats]\nurls = [\"nats://a\"]\n";
    let config = sound(&format!(
        "{urls}reconnect_max_wait_seconds = 60\n[edge]\nmax_bandwidth = 32768\nsync_window = \
         \"02:00-05:00\""
    ));
    assert_eq!(config.nats.reconnect_max_wait.as_secs(), 60);
    assert_eq!(config.edge.max_bandwidth, Some(32_768));
    assert!(config.edge.sync_window.is_some());
    check_refused(
        "[nats]\nreconnect_max_wait_seconds = 0",
        &["an integer from 1 to 86400: longest time between two attempts"],
    );
}

#[test]
fn values_with_a_meaning_of_their_own() {
    assert_eq!(
        sound("[nats]\nreconnect_wait_seconds = 0")
            .nats
            .reconnect_wait
            .as_secs(),
        2
    );
    assert_eq!(
        sound("[nats]\nconnect_retries = 7").nats.connect_retries,
        Some(7)
    );
    assert_eq!(
        sound("[logging]\nverbose = true").logging.level,
        LevelFilter::Debug
    );
    let trace = sound("[logging]\nverbose = true\nlevel = \"trace\"");
    assert_eq!(trace.logging.level, LevelFilter::Trace);
    assert_eq!(
        sound("[nats]\nsubject_prefix = \"a.b\"")
            .common
            .subject_prefix,
        "a.b"
    );
}

/// A secret in any place, well-formed or not, appears in no error and not in `Debug`.
#[test]
fn secrets_are_not_shown() {
    let store = ["nats", "s3"][usize::from(is_built_in("s3"))];
    let kept = "[nats]\nurls = [\"nats://ann:hunter2@host:4222\"]\n\
                user_name = \"ann\"\nuser_password = \"hunter2\"\n\
                [snapshot]\nstore = \"STORE\"\n[snapshot.s3]\nendpoint = \"e\"\nbucket = \"b\"\n\
                access_key = \"hunter2\"\nsecret = \"hunter2\"\nsession_token = \"hunter2\"";
    let config = sound(&kept.replace("STORE", store));
    assert_eq!(config.nats.urls[0].reveal(), "nats://ann:hunter2@host:4222");
    assert!(!format!("{config:?}").contains("hunter2"));

    for (text, part) in [
        (
            "[nats]\nurls = \"nats://ann:hunter2@host\"",
            "nats.urls is of type string",
        ),
        (
            "[nats]\nurls = [\"ann:hunter2@host\"]",
            "nats.urls has an entry, number 1, that must be a URL such as",
        ),
        ("[nats]\nbind_address = \"ann:hunter2@host\"", "***@host"),
        (
            "[nats]\nuser_password = [\"hunter2\"]",
            "nats.user_password is a list",
        ),
        (
            "[nats]\nuser_password = \"hunter2\"",
            "user_name must be set too",
        ),
        (
            "[nats]\npassword = \"hunter2\"",
            "unknown key nats.password",
        ),
        (
            "[nats]\nseed_file = \"hunter2_hunter2_hunter2_hunter2_hunter2_hunter2\"",
            "not shown",
        ),
        (
            "[snapshot.sftp]\nkey_file = \"\"\"\n-----BEGIN\nhunter2\n\"\"\"",
            "not shown",
        ),
        (
            "[snapshot.sftp]\npassphrase = [\"hunter2\"]",
            "passphrase is a list",
        ),
    ] {
        let error = parse(&format!("db_path = \"/tmp/a.db\"\n{text}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "no {part:?} in {error:?}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// Without its keys a node would neither seal nor refuse anything.
#[test]
fn a_key_file_that_cannot_be_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cluster.key");
    let given = format!("cluster_key_file = \"{}\"", file.display());
    let refused = |why| check_refused(&given, &["line 2", "cluster_key_file is", why]);
    refused("No such file");
    std::fs::create_dir(&file).unwrap();
    refused("directory");
    std::fs::remove_dir(&file).unwrap();
    let key = crate::seal::key::make(1).unwrap();
    for (bytes, why) in [(&b"\xff\xfe"[..], "line 1"), (b"", "no key")] {
        std::fs::write(&file, bytes).unwrap();
        refused(why);
    }
    // Words of the operator in a different encoding.
    std::fs::write(&file, [b"# Schl\xfcssel\n", key.as_bytes()].concat()).unwrap();
    let config = sound(&given);
    assert_eq!(config.seal.keys().len(), 1);
    assert!(config.secrets().contains(&key.trim().to_owned()));
}

//! `-check` reports settings of stores that cannot work, and accepts those that are documented.

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ";

/// Asserts that the section is refused, whether its store is in use or not, and quotes no login.
#[track_caller]
fn check_bad(store: &str, keys: &str, parts: &[&str]) {
    for chosen in ["nats", store].into_iter().filter(|s| is_built_in(s)) {
        let text = format!("[snapshot]\nstore = \"{chosen}\"\n[snapshot.{store}]\n{keys}");
        check_refused(&text, parts);
        let error = parse(&format!("db_path = \"/tmp/a.db\"\n{text}")).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[track_caller]
fn check_good(store: &str, keys: &str) {
    let text = format!("[snapshot]\nstore = \"{store}\"\n[snapshot.{store}]\n{keys}");
    match is_built_in(store) {
        true => drop(sound(&text)),
        false => check_refused(&text, &["snapshot.store", "built without it"]),
    }
}

#[test]
fn documented_settings_are_sound() {
    check_good(
        "s3",
        "endpoint = \"s3.eu-central-1.amazonaws.com\"\nbucket = \"b\"\n\
         path = \"harmonylite/snapshots\"\naccess_key = \"a\"\nsecret = \"s/@\"",
    );
    check_good("s3", "endpoint = \"http://[::1]:9000/\"\nbucket = \"b\"");
    for style in ["true", "false", "\"auto\""] {
        let keys = format!("endpoint = \"h\"\nbucket = \"b\"\npath_style = {style}");
        check_good("s3", &keys);
    }
    check_good(
        "webdav",
        "url = \"https://host/root?dir=/snapshots&login=NAME&secret=PASS@WORD/?x\"",
    );
    check_good("webdav", "url = \"https://me:p%2Fw@host/root/?dir=/a/b\"");
    check_good(
        "webdav",
        "endpoint = \"https://webdav.example.com\"\npath = \"/a\"\nusername = \"u\"\npassword \
         = \"p\"",
    );
    check_good(
        "webdav",
        "url = \"https://host/\"\npath = \"a\"\nusername = \"u\"",
    );
    check_good("sftp", "url = \"sftp://NAME:PASSWORD@host:22/snapshots\"");
    check_good(
        "sftp",
        "url = \"sftp://NAME@host\"\npassword = \"p/?@\"\npath = \"s\"",
    );
    check_good(
        "sftp",
        &format!(
            "endpoint = \"sftp.example.com:22\"\npath = \"snapshots\"\nusername = \"u\"\n\
             password = \"p\"\nhost_key = \"{KEY} me@home\""
        ),
    );
    check_good("file", "path = \"/none/yet\"");
}

#[test]
fn s3() {
    let with = |endpoint: &str| format!("endpoint = \"{endpoint}\"\nbucket = \"b\"");
    let bad = |endpoint: &str, parts: &[&str]| {
        check_bad(
            "s3",
            &with(endpoint),
            &[&["snapshot.s3.endpoint"], parts].concat(),
        );
    };
    bad(
        "AK:hunter2/x@host",
        &["holds a login", "access_key and secret"],
    );
    bad("AK:hunter2@host", &["holds a login"]);
    let odd = format!("{}\npath_style = \"maybe\"", with("host"));
    check_bad("s3", &odd, &["snapshot.s3.path_style", "\"auto\""]);
    bad("host:99999", &["from 1 to 65535", "https://host"]);
    bad("host/bucket", &["behind the host", "path"]);
    bad("host?hunter2", &["behind the host"]);
    bad("ftp://host", &["a different scheme than https or http"]);
    bad("hello world", &["no host name"]);
    let more = |keys: &str| with("host") + "\n" + keys;
    check_bad(
        "s3",
        &more("access_key = \"hunter2\""),
        &["access_key is set, so secret"],
    );
    check_bad(
        "s3",
        &more("secret = \"hunter2\""),
        &["secret is set, so access_key"],
    );
    check_bad(
        "s3",
        &more("path = \"../x\""),
        &["snapshot.s3.path leads upwards"],
    );
}

#[test]
fn webdav() {
    for (url, part) in [
        ("ftp://x", "a different scheme than https or http"),
        ("hello hunter2 world", "no host name"),
        ("https://me:hunter2/x@host/", "/ as %2F"),
        ("https://me:hunter2?x@host/", "? as %3F"),
        ("https://me:12?hunter2@host/", "none of dir, login, secret"),
        ("https://host/?dri=/a", "none of dir, login, secret"),
        ("https://host/?logn=a", "(logn; did you mean login?)"),
        ("https://host/?dir=/../a", "leads upwards"),
        ("https://host/?dir=%zz", "the value of dir"),
        ("https://host:0/", "from 1 to 65535"),
    ] {
        check_bad(
            "webdav",
            &format!("url = \"{url}\""),
            &["snapshot.webdav.url", part],
        );
    }
    let url = "url = \"https://host/?dir=a&login=u&secret=hunter2\"\n";
    for key in ["path", "username", "password"] {
        let keys = format!("{url}{key} = \"hunter2\"");
        check_bad(
            "webdav",
            &keys,
            &[&format!("webdav.{key} is set, and url says it")],
        );
    }
    check_bad(
        "webdav",
        "endpoint = \"https://host\"\npassword = \"hunter2\"",
        &["password is set, so username"],
    );
    check_bad(
        "webdav",
        "url = \"https://host?secret=hunter2\"",
        &["so username"],
    );
    check_bad(
        "webdav",
        "endpoint = \"host?secret=hunter2\"",
        &["endpoint has a ?"],
    );
}

#[test]
fn sftp() {
    let login = "username = \"u\"\npassword = \"hunter2\"\n";
    for (keys, part) in [
        (
            "endpoint = \"h:99999\"",
            "endpoint must be like sftp://host:22",
        ),
        (
            "endpoint = \"h\"\nhost_key = \"garbage\"",
            "host_key is not a public key",
        ),
        ("url = \"http://h\"", "a different scheme than sftp"),
        ("url = \"sftp://h/a?b\"", "write it as %3F"),
        ("url = \"sftp://h/../a\"", "url leads upwards"),
        (
            "url = \"sftp://h/a\"\npath = \"b\"",
            "path is set, and url says it",
        ),
        (
            "url = \"sftp://me@h/a\"",
            "username is set, and url says it",
        ),
    ] {
        check_bad("sftp", &format!("{login}{keys}"), &[part]);
    }
    check_bad(
        "sftp",
        "url = \"sftp://me:hunter2/Ab3@127.0.0.1:47350/snap\"",
        &["snapshot.sftp.url", "/ as %2F"],
    );
    let used = |keys: &str, part| {
        let text = format!("[snapshot]\nstore = \"sftp\"\n[snapshot.sftp]\n{keys}");
        if is_built_in("sftp") {
            check_refused(&text, &[part]);
        }
    };
    used("url = \"sftp://u@h\"", "password is missing");
    used(
        "endpoint = \"h\"\nkey_file = \"/dev/null\"",
        "username is missing",
    );
}

#[test]
fn files_that_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().display();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    check_bad(
        "file",
        &format!("path = \"{shown}/file\""),
        &["file, a file, but must be"],
    );
    let refused = |keys: &str, part: &str| {
        let text = format!("db_path = \"{shown}/a.db\"\n{keys}");
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(part), "no {part:?} in {error:?}");
    };
    let other = "but must not be db_path, which would be lost";
    refused(&format!("seq_map_path = \"{shown}/./a.db\""), other);
    refused(&format!("[logging]\nfile = \"{shown}/a.db\""), other);
    refused(
        &format!("[logging]\nfile = \"{shown}/seq-map.cbor\""),
        "but must not be seq_map_path, which would be lost",
    );
    std::fs::write(folder.path().join("a.db"), "").unwrap();
    std::fs::hard_link(folder.path().join("a.db"), folder.path().join("log")).unwrap();
    refused(&format!("[logging]\nfile = \"{shown}/log\""), other);
}

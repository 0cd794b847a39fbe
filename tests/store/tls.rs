//! Stores behind TLS, with an authority that only the operator's system knows.

use std::fs;
use std::process::Command;

use crate::certificates;
use crate::data::SECRET;
use crate::servers::process::Process;
use crate::servers::s3::{KEY, SECRET_KEY, rclone_command};
use crate::servers::{USER, find, free_ports};

/// Lists the snapshots by the program itself: its environment names the authority that it trusts.
fn check(protocol: &str, login: &[String], settings: impl FnOnce(u16) -> String) {
    let Some(program) = find("rclone") else {
        return;
    };
    let (folder, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates::make(folder.path());
    let ca = mine.path().join("ca.pem");
    fs::copy(folder.path().join("ca.pem"), &ca).unwrap();
    let port = free_ports(1);
    let mut command = rclone_command(&program, &folder);
    command
        .current_dir(folder.path())
        .args([
            "serve",
            protocol,
            "--cert",
            "server.pem",
            "--key",
            "server.key",
        ])
        .args(["--addr", &format!("127.0.0.1:{port}")])
        .args(login)
        .arg(folder.path());
    // The commands make the folder and the bucket here, because a reader creates neither.
    for name in ["a", "snapshots"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let _server = Process::start(command, folder, port);

    let config = mine.path().join("config.toml");
    let text = format!("db_path = 'a.db'\n{}", settings(port));
    fs::write(&config, text).unwrap();
    let list = |trusted: Option<&std::path::Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_harmonylite"));
        command
            .args(["snapshots", "-config"])
            .arg(&config)
            .current_dir(mine.path())
            .env_remove("SSL_CERT_FILE");
        if let Some(file) = trusted {
            command.env("SSL_CERT_FILE", file);
        }
        let done = command.output().unwrap();
        let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        (done.status.code(), said)
    };
    let (code, said) = list(None);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("ertificate"), "{said}");
    let (code, said) = list(Some(&ca));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn webdav() {
    let login = ["--user", USER, "--pass", SECRET].map(String::from);
    check("webdav", &login, |port| {
        format!(
            "[snapshot]\nstore = 'webdav'\n[snapshot.webdav]\nendpoint = \
             'https://127.0.0.1:{port}'\n\
             path = 'a'\nusername = '{USER}'\npassword = '{SECRET}'"
        )
    });
}

#[test]
fn s3() {
    let login = ["--auth-key".into(), format!("{KEY},{SECRET_KEY}")];
    check("s3", &login, |port| {
        format!(
            "[snapshot]\nstore = 's3'\n[snapshot.s3]\nendpoint = '127.0.0.1:{port}'\nbucket = \
             'snapshots'\n\
             use_ssl = true\naccess_key = '{KEY}'\nsecret = '{SECRET_KEY}'"
        )
    });
}

//! OpenSSH with a key, and rclone with a password.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use harmonylite::address::secret::Secret;
use harmonylite::config::snapshot::{SftpStore, StoreSettings};

use super::process::Process;
use super::s3::rclone_command;
use super::{USER, find, free_ports, is_root, run};
use crate::bench::Bench;
use crate::data::SECRET;

/// Settings without a key of the server and without a login.
pub fn empty(port: u16) -> SftpStore {
    SftpStore {
        url: None,
        endpoint: Some(format!("127.0.0.1:{port}")),
        path: None,
        username: Some(USER.into()),
        password: None,
        key_file: None,
        passphrase: None,
        known_hosts: None,
        host_key: None,
        insecure_ignore_host_key: false,
    }
}

fn make_key(file: &Path, kind: &str, passphrase: &str) {
    let file = file.display().to_string();
    let words = [
        "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", &file,
    ];
    run("ssh-keygen", &words);
}

fn public(file: &Path) -> String {
    fs::read_to_string(file.with_extension("pub")).unwrap()
}

/// Starts sshd; the password locks the client's key. `data` is the folder to store in, if it is not
/// the server's own.
pub fn sshd(data: Option<&Path>) -> Option<Bench> {
    let program = find("sshd")?;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let port = free_ports(1);
    for kind in ["ed25519", "ecdsa", "rsa"] {
        make_key(&path(kind), kind, "");
    }
    make_key(&path("client"), "ed25519", SECRET);
    let authorized = path("authorized_keys");
    fs::write(&authorized, public(&path("client"))).unwrap();
    fs::set_permissions(&authorized, fs::Permissions::from_mode(0o600)).unwrap();
    // The server's key is not of the kind that the client would choose otherwise, and its line is
    // not the only one.
    let known = format!(
        "# hosts\n@cert-authority *.example ssh-ed25519 AAAA\nodd line\nother {}[127.0.0.1]:{port} \
         {}",
        public(&path("ed25519")),
        public(&path("rsa"))
    );
    fs::write(path("known_hosts"), known).unwrap();
    if is_root() {
        fs::create_dir_all("/run/sshd").unwrap();
    }
    let data = data.map_or(path("data"), Path::to_path_buf);
    fs::create_dir_all(&data).unwrap();
    let text = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {0}/ed25519\nHostKey {0}/ecdsa\nHostKey {0}/rsa\n\
         PidFile none\nAuthorizedKeysFile {0}/authorized_keys\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUseDNS no\n\
         PermitRootLogin prohibit-password\nMaxStartups 100\n\
         Subsystem sftp internal-sftp -d {1}\n",
        folder.path().display(),
        data.display()
    );
    fs::write(path("sshd_config"), text).unwrap();
    let mut command = Command::new(program);
    command.args(["-D", "-e", "-f"]).arg(path("sshd_config"));
    let (key, known, pin) = (path("client"), path("known_hosts"), public(&path("ecdsa")));
    let user = run("id", &["-un"]);
    let settings = move |way: &crate::bench::Way| {
        let mut settings = SftpStore {
            path: Some(format!("one/{}", way.place)),
            username: Some(user.clone()),
            key_file: Some(key.clone()),
            passphrase: Some(Secret::new(&way.password)),
            ..empty(way.port)
        };
        // `known_hosts` knows the server under its own port; through a proxy the pinned key does.
        match way.port == port {
            true => settings.known_hosts = Some(known.clone()),
            false => settings.host_key = Some(pin.clone()),
        }
        StoreSettings::Sftp(settings)
    };
    Some(Bench {
        name: "sftp sshd",
        kind: "sftp",
        port,
        settings: Box::new(settings),
        process: Some(Process::start(command, folder, port)),
    })
}

pub fn rclone() -> Option<Bench> {
    let program = find("rclone")?;
    let folder = tempfile::tempdir().unwrap();
    let port = free_ports(1);
    let key = folder.path().join("host");
    make_key(&key, "ed25519", "");
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let mut command = rclone_command(&program, &folder);
    command
        .args(["serve", "sftp", "--vfs-cache-mode", "writes"])
        .args(["--vfs-write-back", "0s", "--dir-cache-time", "0s"])
        .args(["--addr", &format!("127.0.0.1:{port}")])
        .args(["--user", USER, "--pass", SECRET])
        .arg("--key")
        .arg(&key)
        .arg(&data);
    let pin = public(&key);
    let settings = move |way: &crate::bench::Way| {
        StoreSettings::Sftp(SftpStore {
            path: Some(format!("/{}", way.place)),
            password: Some(Secret::new(&way.password)),
            host_key: Some(pin.clone()),
            ..empty(way.port)
        })
    };
    Some(Bench {
        name: "sftp rclone",
        kind: "sftp",
        port,
        settings: Box::new(settings),
        process: Some(Process::start(command, folder, port)),
    })
}

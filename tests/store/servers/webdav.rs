//! Apache with mod_dav.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use digest_auth::{Algorithm, AlgorithmType};
use harmonylite::address::secret::Secret;
use harmonylite::config::snapshot::{StoreSettings, WebDavStore};

use super::process::Process;
use super::{USER, fetched, find, free_ports, is_root, open_to_all, run};
use crate::bench::{Bench, Way};
use crate::data::SECRET;

#[derive(Clone, Copy, PartialEq)]
pub enum Login {
    Basic,
    Digest,
}

pub fn settings(way: &Way) -> WebDavStore {
    WebDavStore {
        url: None,
        endpoint: Some(format!("http://127.0.0.1:{}/dav", way.port)),
        path: Some(format!("/{}/two words/", way.place)),
        username: Some(USER.into()),
        password: Some(Secret::new(&way.password)),
    }
}

/// Starts Apache; `data` is the folder to store in, if it is not the server's own.
pub fn apache(login: Login, data: Option<&Path>) -> Option<Bench> {
    start(login, data, "")
}

/// Starts a server on which nobody may move a file.
pub fn apache_without_move() -> Option<Bench> {
    start(
        Login::Basic,
        None,
        "<Limit MOVE>\nRequire all denied\n</Limit>",
    )
}

fn start(login: Login, data: Option<&Path>, more: &str) -> Option<Bench> {
    let program = find("apache2")?;
    let folder = tempfile::tempdir().unwrap();
    open_to_all(folder.path());
    let data = data.map_or(folder.path().join("data"), Path::to_path_buf);
    let served = data.join("dav");
    fs::create_dir_all(&served).unwrap();
    let (kind, users, name) = match login {
        Login::Basic => {
            let hash = run("openssl", &["passwd", "-apr1", SECRET]);
            ("Basic", format!("{USER}:{hash}\n"), "webdav basic")
        }
        Login::Digest => {
            let text = format!("{USER}:dav:{SECRET}");
            let hash = Algorithm::new(AlgorithmType::MD5, false).hash_str(&text);
            ("Digest", format!("{USER}:dav:{hash}\n"), "webdav digest")
        }
    };
    fs::write(folder.path().join("users"), users).unwrap();
    let mut identity = String::new();
    if is_root() {
        identity = "User www-data\nGroup www-data".into();
        let folders = [folder.path(), &data].map(|folder| folder.display().to_string());
        run(
            "chown",
            &["-R", "www-data:www-data", &folders[0], &folders[1]],
        );
    }
    let port = free_ports(1);
    let config = config(
        folder.path(),
        &data,
        &modules(),
        port,
        kind,
        &identity,
        more,
    );
    let file = folder.path().join("apache.conf");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command.arg("-f").arg(file).arg("-DFOREGROUND");
    Some(Bench {
        name,
        kind: "webdav",
        port,
        settings: Box::new(|way| StoreSettings::WebDav(settings(way))),
        process: Some(Process::start(command, folder, port)),
    })
}

fn modules() -> PathBuf {
    let fetched = fetched().map(|folder| folder.join("modules"));
    let fetched = fetched.filter(|folder| folder.is_dir());
    fetched.unwrap_or("/usr/lib/apache2/modules".into())
}

fn config(
    folder: &Path,
    data: &Path,
    modules: &Path,
    port: u16,
    kind: &str,
    identity: &str,
    more: &str,
) -> String {
    let (folder, data) = (folder.display(), data.display());
    let names = "mpm_event authn_core authn_file authz_core authz_user auth_basic auth_digest dav \
                 dav_fs dir";
    let load = |name: &str| {
        let modules = modules.display();
        format!("LoadModule {name}_module {modules}/mod_{name}.so\n")
    };
    let modules: String = names.split_whitespace().map(load).collect();
    format!(
        "ServerRoot {folder}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/pid
DefaultRuntimeDir {folder}
Mutex file:{folder}
ErrorLog /dev/stderr
{identity}
{modules}
StartServers 1
DavLockDB {folder}/davlock
DocumentRoot {data}
DirectorySlash Off
<Directory {data}>
  Dav On
  AllowOverride None
  AuthType {kind}
  AuthName dav
  AuthUserFile {folder}/users
  Require valid-user
  {more}
</Directory>
"
    )
}

//! Finds, without a start, the things that a valid configuration needs and this machine lacks.

use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{Access, access};

use crate::config::Config;
use crate::config::snapshot::{SftpStore, StoreSettings};
use crate::http;
use crate::lock;
use crate::stream::server::find_binary;

/// Most bytes of a Unix socket's path (`sun_path` of unix(7), and the byte that ends it).
const SOCKET_PATH_BYTES: usize = 107;

/// Reasons why a start would fail, each with the key of the configuration.
pub(super) fn obstacles(config: &Config) -> Vec<String> {
    let folder_of = |path: &Path| match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => ".".into(),
    };
    let mut found = Vec::new();
    let mut must_write = |key: &str, path: &Path| {
        if let Err(e) = access(path, Access::WRITE_OK) {
            let path = path.display();
            found.push(format!("{key}: {path} cannot be written by this user: {e}"));
        }
    };
    must_write("db_path", &folder_of(&config.db_path));
    for (key, file) in [
        ("db_path", Some(&config.db_path)),
        ("logging.file", config.logging.file.as_ref()),
    ] {
        let Some(file) = file else { continue };
        match file.exists() {
            true => must_write(key, file),
            false if key == "db_path" => {} // its folder is named already
            false => must_write(key, &folder_of(file)),
        }
    }
    if let Some(folder) = &config.snapshot.scratch {
        must_write("snapshot.scratch", folder);
    }
    if config.nats.urls.is_empty()
        && let Err(e) = find_binary(config.nats.server_binary.as_deref())
    {
        found.push(format!("nats.urls is empty, and {e}"));
    }
    if let Some(path) = &config.control_socket
        && *path != lock::socket_of_database(&config.db_path)
        && path.as_os_str().len() > SOCKET_PATH_BYTES
    {
        let path = path.display();
        found.push(format!(
            "control_socket: {path} is longer than the {SOCKET_PATH_BYTES} bytes that a socket's \
             path may have"
        ));
    }
    let doors = [
        (
            "prometheus.bind",
            config.prometheus.enable,
            &config.prometheus.bind,
        ),
        (
            "health_check.bind",
            config.health_check.enable,
            &config.health_check.bind,
        ),
    ];
    for (key, _, address) in doors.into_iter().filter(|(_, is_served, _)| *is_served) {
        match http::listen_tcp(address, &[]) {
            // Perhaps by the daemon that runs with this configuration.
            Err(e) if e.kind() == ErrorKind::AddrInUse => {}
            Err(e) => found.push(format!("{key}: listen on {address}: {e}")),
            Ok(_) => {}
        }
    }
    found
}

/// Faults that a start survives and that show later.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut found = config.exposed.clone();
    if let (true, StoreSettings::Sftp(sftp)) = (config.snapshot.enabled, &config.snapshot.store) {
        found.extend(unknown_server(sftp));
    }
    found
}

/// Why the SFTP server cannot be known; none if it can.
fn unknown_server(sftp: &SftpStore) -> Option<String> {
    let is_named = sftp.host_key.is_some() || sftp.known_hosts.is_some();
    if is_named || sftp.insecure_ignore_host_key {
        return None;
    }
    let cause = match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        None => "there is no HOME to find .ssh/known_hosts in, as under most supervisors".into(),
        Some(home) => {
            let file = Path::new(&home).join(".ssh/known_hosts");
            let e = std::fs::File::open(&file).err()?;
            format!("{}: {e}", file.display())
        }
    };
    Some(format!(
        "snapshot.sftp: the server's key is not known, so no snapshot can be saved or fetched: \
         set host_key or known_hosts ({cause})"
    ))
}

//! Two servers that speak S3: seaweedfs, which is strict, and rclone, for a second opinion.

use std::fs;
use std::path::Path;
use std::process::Command;

use harmonylite::address::secret::Secret;
use harmonylite::config::snapshot::{S3Store, StoreSettings};
use tempfile::TempDir;

use super::process::{Process, until};
use super::{find, free_ports};
use crate::bench::{Bench, Way};

pub const KEY: &str = "AKTESTKEY";
pub const PART: u64 = 5 << 20;
/// A secret key that both servers accept; the password of the other servers is not one.
pub const SECRET_KEY: &str = "s3cr3t+key/1234567890";

pub fn settings(way: &Way) -> S3Store {
    let secret = if way.password == crate::data::SECRET {
        SECRET_KEY
    } else {
        &way.password
    };
    S3Store {
        endpoint: format!("127.0.0.1:{}", way.port),
        bucket: way.place.clone(),
        path: Some("some/folder".into()),
        use_ssl: false,
        path_style: None,
        access_key: Some(Secret::new(KEY)),
        secret: Some(Secret::new(secret)),
        session_token: None,
        region: None,
        part_size: PART,
    }
}

fn bench(name: &'static str, port: u16, process: Process) -> Bench {
    Bench {
        name,
        kind: "s3",
        port,
        settings: Box::new(|way| StoreSettings::S3(settings(way))),
        process: Some(process),
    }
}

pub fn weed() -> Option<Bench> {
    let program = find("weed")?;
    let folder = tempfile::tempdir().unwrap();
    let port = free_ports(8);
    let config = folder.path().join("s3.json");
    let text = format!(
        r#"{{"identities": [{{"name": "t", "actions": ["Admin", "Read", "Write", "List"],
            "credentials": [{{"accessKey": "{KEY}", "secretKey": "{SECRET_KEY}"}}]}}]}}"#
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(program);
    command.arg("server").current_dir(folder.path());
    let fixed = "-ip=127.0.0.1 -ip.bind=127.0.0.1 -filer -s3 -s3.port.iceberg=0 -s3.port.lance=0 \
                 -s3.iam=false -volume.max=100 -master.volumeSizeLimitMB=64 \
                 -master.volumePreallocate=false -volume.minFreeSpace=1";
    command.args(fixed.split_whitespace());
    let names = [
        "s3.port",
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "s3.port.grpc",
    ];
    for (name, port) in names.iter().zip(port..) {
        command.arg(format!("-{name}={port}"));
    }
    let path = |file: &str| folder.path().join(file).display().to_string();
    command
        .arg(format!("-dir={}", path("")))
        .arg(format!("-filer.localSocket={}", path("filer.sock")))
        .arg(format!("-s3.config={}", path("s3.json")));
    let bench = bench("s3 seaweedfs", port, Process::start(command, folder, port));
    // seaweedfs listens before its parts have found each other.
    until("seaweedfs stores", || {
        let mut store = bench.try_open(&bench.way("first")).ok()?;
        store.put("probe", 1, &mut &b"x"[..]).ok()
    });
    Some(bench)
}

/// Starts rclone; `data` is the folder to store in, if it is not the server's own.
pub fn rclone(data: Option<&Path>) -> Option<Bench> {
    let program = find("rclone")?;
    let folder = tempfile::tempdir().unwrap();
    let port = free_ports(1);
    let mut command = rclone_command(&program, &folder);
    command
        .args(["serve", "s3", "--vfs-cache-mode", "off"])
        .args(["--addr", &format!("127.0.0.1:{port}")])
        .args(["--auth-key", &format!("{KEY},{SECRET_KEY}")])
        .arg(data.unwrap_or(folder.path()));
    Some(bench(
        "s3 rclone",
        port,
        Process::start(command, folder, port),
    ))
}

/// rclone without the configuration of the user who runs the tests.
pub fn rclone_command(program: &Path, folder: &TempDir) -> Command {
    let mut command = Command::new(program);
    command
        .env("RCLONE_CONFIG", folder.path().join("none.conf"))
        .env("XDG_CACHE_HOME", folder.path().join("cache"));
    command
}

//! Real servers, each with its data in a folder of its own, on ports of 127.0.0.1.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::{env, fs};

pub mod nats;
pub mod process;
pub mod s3;
pub mod sftp;
pub mod webdav;

pub const USER: &str = "tester";

/// The folder with programs that were fetched for these tests.
pub fn fetched() -> Option<PathBuf> {
    env::var_os("HARMONYLITE_STORE_SERVERS").map(PathBuf::from)
}

/// The path of a program. If it is not here, says so, or fails where every program must be here.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = fetched().into_iter().chain(env::split_paths(&path));
    let found = folders
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        skip(&format!(
            "no {name} is installed (scripts/store-servers.sh gets it)"
        ));
    }
    found
}

/// Says loudly that a test is skipped; fails where no test may be.
pub fn skip(why: &str) {
    let must = env::var_os("HARMONYLITE_REQUIRE_STORES").is_some_and(|value| !value.is_empty());
    assert!(!must, "HARMONYLITE_REQUIRE_STORES is set, but {why}");
    eprintln!("\n*** SKIPPED, NOTHING PROVED: {why} ***\n");
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `count` ports in a row on which nobody listens, and which the system gives to no process by
/// itself.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 21_000 + (std::process::id() % 90) as u16 * 100;
    loop {
        let first = base + NEXT.fetch_add(count, Ordering::Relaxed) % 1000;
        let mut ports = first..first + count;
        if ports.all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
}

/// Opens the folder to servers that change their user.
pub fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a command, which must succeed. Returns its output.
pub fn run(command: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(command)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(
        output.status.success(),
        "{command} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

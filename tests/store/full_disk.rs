//! The server's disk is full: the store gives an error and leaves nothing over, and a small object
//! still fits.

use std::path::Path;
use std::process::Command;

use harmonylite::config::snapshot::{FileStore, StoreSettings as Settings};
use tempfile::TempDir;

use crate::bench::Bench;
use crate::conformance::{expect, expect_none, names, put};
use crate::data::{LARGE, Pattern};
use crate::servers::process::until;
use crate::servers::webdav::{Login, apache};
use crate::servers::{is_root, nats, s3, sftp};

/// A file system of 8 MB, which ends with this value.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Option<SmallDisk> {
        let why = "a small disk takes root and the right to mount";
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "harmonylite-test"]);
        let mounted = is_root() && mount.arg(folder.path()).status().is_ok_and(|s| s.success());
        if !mounted {
            eprintln!("\n*** SKIPPED, NOTHING PROVED: {why} ***\n");
            return None;
        }
        Some(SmallDisk(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn check(bench: &Bench) {
    let mut store = bench.open("full");
    put(store.as_mut(), "kept", 1, 5000);
    for name in ["large", "kept"] {
        let text = bench.error(store.put(name, LARGE, &mut Pattern::new(2, LARGE)));
        assert!(text.contains(&format!("put {name}")), "{text}");
        store = bench.open("full");
        expect_none(store.as_mut(), "large");
        expect(store.as_mut(), "kept", 1, 5000);
        assert_eq!(names(store.as_mut()), ["kept"]);
    }
    // A process that another test begins at this moment holds all our files until its exec, removed
    // ones too.
    until("there is space again", || {
        store
            .put("fits", 3_000_000, &mut Pattern::new(3, 3_000_000))
            .ok()
    });
    expect(store.as_mut(), "fits", 3, 3_000_000);
}

#[test]
fn file() {
    let Some(disk) = SmallDisk::new() else { return };
    let folder = disk.path().to_path_buf();
    let bench = Bench {
        name: "full file",
        kind: "file",
        port: 0,
        settings: Box::new(move |way| {
            Settings::File(FileStore {
                path: folder.join(&way.place),
                database: folder.join("none.db"),
            })
        }),
        process: None,
    };
    check(&bench);
}

#[test]
fn nats_server() {
    check(&nats::start("8MB"));
}

#[test]
fn s3_rclone() {
    let Some(disk) = SmallDisk::new() else { return };
    if let Some(bench) = s3::rclone(Some(disk.path())) {
        check(&bench);
    }
}

#[test]
fn sftp_openssh() {
    let Some(disk) = SmallDisk::new() else { return };
    if let Some(bench) = sftp::sshd(Some(disk.path())) {
        check(&bench);
    }
}

#[test]
fn webdav() {
    let Some(disk) = SmallDisk::new() else { return };
    if let Some(bench) = apache(Login::Basic, Some(disk.path())) {
        check(&bench);
    }
}

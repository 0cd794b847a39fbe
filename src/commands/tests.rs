//! Snapshots in a store, shown and restored: in a folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crossbeam_channel::unbounded;

use super::restore::{restore, restore_first};
use super::snapshots::list;
#[cfg(feature = "store-sftp")]
use super::store_access::warning;
use crate::cli::Flags;
use crate::config::Config;
use crate::config::snapshot::{FileStore, StoreSettings as Kind};
use crate::db_file::access::FileAccess;
use crate::model::manifest::{Manifest, SnapshotEntry, fresh_name};
use crate::snapshot::pack::pack;
use crate::store;
use crate::stream::StreamError;

/// A configuration whose store is a folder that does not exist: looking at it fails.
fn configured(folder: &Path) -> Config {
    let folder = folder.display();
    let text = format!(
        "db_path = \"{folder}/a.db\"\n[snapshot]\nstore = \"file\"\n\
         [snapshot.file]\npath = \"{folder}/none/store\""
    );
    Config::parse(Path::new("box.toml"), &text).unwrap()
}

#[test]
fn nothing_is_restored_beside_what_another_database_left() {
    let folder = tempfile::tempdir().unwrap();
    let config = configured(folder.path());
    let to = folder.path().join("r.db");
    for end in ["-wal", "-shm", "-journal"] {
        let leftover = folder.path().join(format!("r.db{end}"));
        fs::write(&leftover, "old").unwrap();
        let text = restore(
            &config,
            &Flags::default(),
            (Some(&to), false),
            &mut Vec::new(),
        )
        .unwrap_err();
        assert!(
            text.contains(&format!("r.db{end} is left over")) && text.contains("move it away"),
            "{text}"
        );
        assert_eq!(fs::read(&leftover).unwrap(), b"old");
        fs::remove_file(&leftover).unwrap();
    }
    assert!(!to.exists());
}

#[test]
fn a_reader_makes_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let config = configured(folder.path());
    let store = folder.path().join("none/store");
    let to = folder.path().join("r.db");
    let missing = |is: &str| {
        let listed = list(&config, &Flags::default(), false, &mut Vec::new()).unwrap_err();
        let restored = restore(
            &config,
            &Flags::default(),
            (Some(&to), false),
            &mut Vec::new(),
        )
        .unwrap_err();
        for text in [listed, restored] {
            assert!(text.contains(is), "no {is:?} in {text:?}");
        }
    };
    missing("there is no such folder: no snapshot was saved there yet, or snapshot.file.path is");
    fs::create_dir(folder.path().join("none")).unwrap();
    missing("there is no such folder");
    assert!(!store.exists());
    fs::create_dir(&store).unwrap();
    assert_eq!(
        list(&config, &Flags::default(), false, &mut Vec::new()),
        Ok(())
    );
}

/// A manifest that names one snapshot, which lies in `store` and is no database.
fn one_snapshot(store: &Path) -> Manifest {
    let name = fresh_name(1, 1, 1);
    let plain = store.with_file_name("plain");
    fs::write(&plain, vec![7; 100_000]).unwrap();
    let files = [fs::File::open(&plain), fs::File::create(store.join(&name))];
    let [from, into] = files.map(Result::unwrap);
    let packed = pack(from, into, &mut |_| Ok(())).unwrap();
    let entry = SnapshotEntry {
        name,
        size: packed.size,
        sha256: packed.sha256,
        database_size: 100_000,
        node: 1,
        time_ms: 1,
        schema: 0,
        streams: BTreeMap::new(),
        dropped: None,
        lacks: vec![],
    };
    Manifest::default().with("c", entry)
}

#[test]
fn a_signal_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("store");
    fs::create_dir(&place).unwrap();
    let manifest = one_snapshot(&place);
    let nowhere = || Err(StreamError::Disconnected("no broker".into()));
    let kind = Kind::File(FileStore {
        path: place,
        database: folder.path().join("a.db"),
    });
    let mut store = store::open_existing(&kind, "c", &nowhere).unwrap();
    let before = names(folder.path());
    let to = folder.path().join("r.db");
    let (signal, stop) = unbounded();
    signal.send(()).unwrap();
    let mut refusal = || {
        restore_first(
            &manifest,
            (&to, &FileAccess::OURS),
            &mut *store,
            &stop,
            &mut Vec::new(),
        )
        .unwrap_err()
    };
    let text = refusal();
    assert!(text.starts_with("stopped: "), "{text}");
    assert_eq!(names(folder.path()), before);
    // Without a signal, a file that is no database is not put into place either.
    let text = refusal();
    assert!(text.contains("quick_check"), "{text}");
    assert_eq!(names(folder.path()), before);
}

#[cfg(feature = "store-sftp")]
#[test]
fn trusting_any_server_is_reported() {
    let told = |keys: &str| {
        let text = format!(
            "db_path = \"/tmp/a.db\"\n[snapshot]\nstore = \"sftp\"\n[snapshot.sftp]\n\
             url = \"sftp://u:p@h\"\n{keys}"
        );
        let config = Config::parse(Path::new("box.toml"), &text).unwrap();
        warning(&config.snapshot.store).is_some()
    };
    let anybody = "insecure_ignore_host_key = true";
    assert!(told(anybody) && !told(""));
    let pinned = "host_key = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ\"";
    assert!(!told(&format!("{anybody}\n{pinned}")));
}

fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    let files = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    names.sort();
    names
}

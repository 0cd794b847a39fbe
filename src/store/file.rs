//! A folder: a mounted disk, a USB stick, a network file system.
//!
//! An object is written under a temporary name and synced, then renamed. A file system does a
//! rename completely or not at all. It is for those who may read the database.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::part::part_name;
use super::{IfAbsent, Result, Store, StoreError};
use crate::config::snapshot::FileStore;
use crate::db_file::access::{FileAccess, open_regular};

/// Bytes between two syncs. An application with its database on the same disk waits in its own
/// syncs for all bytes that are on their way to the disk. This keeps them to a small part of the
/// snapshot.
const SYNC_EVERY: u64 = 4 << 20;

struct Folder {
    path: PathBuf,
    database: PathBuf,
    address: String,
}

/// Kind and path of the store.
pub(super) fn address(settings: &FileStore) -> String {
    format!("file {}", settings.path.display())
}

pub(super) fn open(settings: &FileStore, missing: IfAbsent) -> Result<impl Store + use<>> {
    let FileStore { path, database } = settings.clone();
    let address = address(settings);
    if missing == IfAbsent::Refuse && is_missing(&path) {
        return Err(StoreError::no_place(
            &address,
            "folder",
            "snapshot.file.path",
        ));
    }
    ensure(&path).map_err(|cause| StoreError::failed(&address, "open the folder", cause))?;
    Ok(Folder {
        path,
        database,
        address,
    })
}

fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Creates the folder, but not the mount point of a disk that is absent. Asking a person once is
/// better than filling the disk below with snapshots that nobody sees.
fn ensure(path: &Path) -> std::result::Result<(), String> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err("it is not a folder".into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.to_string()),
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    if !parent.is_dir() {
        let parent = parent.display();
        return Err(format!("there is no {parent}: is its disk mounted?"));
    }
    if is_empty(parent) && !is_mount_point(parent) {
        let parent = parent.display();
        return Err(format!(
            "there is none, and {parent} is empty: if no disk is to be mounted there, make the \
             folder"
        ));
    }
    fs::create_dir(path).map_err(|error| format!("it is missing and cannot be made: {error}"))?;
    log::info!("made the folder {} for snapshots", path.display());
    Ok(())
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn is_mount_point(folder: &Path) -> bool {
    let device = |path: PathBuf| fs::metadata(path).map(|found| found.dev()).ok();
    device(folder.to_path_buf()) != device(folder.join(".."))
}

impl Folder {
    fn write(&self, name: &str, part: &Path, from: &mut dyn Read) -> io::Result<()> {
        let mut file = FileAccess::of_database(&self.database).create(part)?;
        while io::copy(&mut from.take(SYNC_EVERY), &mut file)? > 0 {
            file.sync_data()?;
        }
        file.sync_all()?;
        drop(file);
        fs::rename(part, self.path.join(name))?;
        sync_folder(&self.path)
    }
}

/// Syncs a folder. Some file systems cannot; they protect names in other ways or not at all.
fn sync_folder(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
        _ => Ok(()),
    }
}

impl Store for Folder {
    fn address(&self) -> &str {
        &self.address
    }

    fn put(&mut self, name: &str, _size: u64, from: &mut dyn Read) -> Result<()> {
        let part = self.path.join(part_name(name));
        self.write(name, &part, from).map_err(|cause| {
            let _ = fs::remove_file(&part);
            StoreError::failed(&self.address, format_args!("put {name}"), cause)
        })
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()> {
        let path = self.path.join(name);
        let copied = open_regular(&path, File::options().read(true)).and_then(|mut file| {
            io::copy(&mut file, into)?;
            into.flush()
        });
        copied.map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound if self.path.is_dir() => {
                StoreError::not_found(&self.address, name)
            }
            _ => StoreError::failed(&self.address, format_args!("get {name}"), cause),
        })
    }

    fn list(&mut self) -> Result<Vec<String>> {
        let names = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    names.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
            Ok(names)
        };
        names().map_err(|cause| StoreError::failed(&self.address, "list", cause))
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && self.path.is_dir() => Ok(()),
            Err(cause) => Err(StoreError::failed(
                &self.address,
                format_args!("remove {name}"),
                cause,
            )),
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_folder_may_be_a_missing_disk() {
        let top = tempfile::tempdir().unwrap();
        let mount = top.path().join("mount");
        let settings = |path: &Path| FileStore {
            path: path.to_owned(),
            database: top.path().join("a.db"),
        };
        let make = |path: &Path| open(&settings(path), IfAbsent::Make);
        let cause = |path: &Path| make(path).err().unwrap().to_string();
        assert!(cause(&mount.join("snapshots")).contains("is its disk mounted?"));
        fs::create_dir(&mount).unwrap();
        assert!(cause(&mount.join("snapshots")).contains("make the folder"));
        fs::write(mount.join("something"), "").unwrap();
        assert!(make(&mount.join("snapshots")).is_ok());
        assert!(cause(&mount.join("something")).contains("not a folder"));
    }
}

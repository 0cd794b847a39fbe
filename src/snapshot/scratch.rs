//! Files beside the database: scratch files, files that a lost database left, and room on the disk.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Seek};
use std::ops::RangeInclusive;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::db_file::access::{FileAccess, without_links};
use crate::db_file::with_end;
use crate::snapshot::error::{TransferError, disk};

/// A file beside a missing database belongs to nobody when it is this old.
const LEFTOVER_AGE: Duration = Duration::from_secs(10);

/// Bytes of the disk that are left to others, beyond the need of a snapshot: a quarter of that, so
/// that a small database finds a place on a small disk, and within these bounds.
const SPARE_BYTES: RangeInclusive<u64> = 1 << 20..=16 << 20;

fn spare(bytes: u64) -> u64 {
    (bytes / 4).clamp(*SPARE_BYTES.start(), *SPARE_BYTES.end())
}

/// A scratch file and its companions, which are removed when the value is dropped.
pub struct Scratch {
    path: PathBuf,
    /// The file as it was made. Its name may lead to a different file meanwhile.
    file: File,
}

/// The path with which the names of a database's scratch files begin: that of the database, or one
/// in `folder`. There the names of databases from several folders must differ.
pub fn base(database: &Path, folder: Option<&Path>) -> PathBuf {
    let Some(folder) = folder else {
        return database.to_owned();
    };
    let mut hash = DefaultHasher::new(); // the same in every process of a release
    path::absolute(database)
        .unwrap_or_else(|_| database.to_owned())
        .hash(&mut hash);
    let mut name = database.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{:016x}", hash.finish()));
    folder.join(name)
}

impl Scratch {
    /// An empty file whose name begins with `base`: the database's path, so that the file can be
    /// put into its place, or see [`base`]. It takes the place of a file or link of that name.
    pub fn beside(base: &Path, what: &str, access: &FileAccess) -> Result<Scratch, TransferError> {
        let path = name(base, what);
        remove(&path); // of a process that was killed
        let file = access.replace(&path).map_err(|e| disk(&path, e))?;
        Ok(Scratch { path, file })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be read or written from its beginning. Uses of it share one position.
    pub(super) fn file(&self) -> Result<File, TransferError> {
        let rewound = self.file.try_clone().and_then(|mut file| {
            file.rewind()?;
            Ok(file)
        });
        rewound.map_err(|e| disk(&self.path, e))
    }
}

fn name(base: &Path, what: &str) -> PathBuf {
    with_end(base, &format!(".harmonylite-{what}"))
}

fn remove(scratch: &Path) {
    for file in companions(scratch).chain([scratch.to_owned()]) {
        let _ = fs::remove_file(file);
    }
}

/// Opens a scratch file as a database. Fails if a link took its place.
pub(crate) fn connect(scratch: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NOFOLLOW | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(without_links(scratch), flags)
}

/// Removes the files that a killed process left beside the database and in `folder`. They may be as
/// large as the database. The caller must have the database's lock, because a live process may be
/// working on them.
pub fn remove_stale(database: &Path, folder: Option<&Path>) {
    let places = [base(database, None), base(database, folder)];
    let names = ["copy", "packed", "fetched"];
    for (place, what) in places.iter().flat_map(|p| names.map(|what| (p, what))) {
        let left = name(place, what);
        if left.symlink_metadata().is_ok() {
            log::info!("removing {}, left by a broken snapshot", left.display());
        }
        remove(&left);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Gives a file its name, durably. Fails with `AlreadyExists` if the name is taken.
pub fn place(file: &Path, name: &Path) -> io::Result<()> {
    fs::File::open(file)?.sync_all()?;
    fs::hard_link(file, name).or_else(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Err(e),
        // The file system has no hard links, like that of an SD card made elsewhere.
        _ => rename_into(file, name),
    })?;
    sync_folder(name)
}

/// Suffixes of the files that SQLite keeps beside a database while it works on it.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

fn companions(database: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    COMPANIONS.iter().map(|end| {
        let mut name = database.to_owned().into_os_string();
        name.push(end);
        name.into()
    })
}

/// A file that a missing database left beside it. It may belong to somebody, so it is not removed,
/// and no database may be put beside it.
pub(crate) fn leftover(database: &Path) -> Option<PathBuf> {
    companions(database).find(|file| fs::symlink_metadata(file).is_ok())
}

/// Removes the files that a missing database left beside it: SQLite would take them for files of
/// the new one. Fails if such a file is not old, because then somebody is about to make a database.
pub(super) fn remove_leftovers(database: &Path) -> io::Result<()> {
    for name in companions(database) {
        let Ok(found) = fs::metadata(&name) else {
            continue;
        };
        let age = found.modified()?.elapsed().unwrap_or_default();
        if age < LEFTOVER_AGE || database.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::remove_file(&name)?;
    }
    Ok(())
}

/// Renames a file; fails as a link does if the name is taken.
fn rename_into(file: &Path, database: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(
        CWD,
        file,
        CWD,
        database,
        RenameFlags::NOREPLACE,
    )?)
}

fn sync_folder(file: &Path) -> io::Result<()> {
    fs::File::open(folder_of(file))?.sync_all()
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Fails if the disk has too little room for `bytes`.
pub(super) fn require_space(path: &Path, bytes: u64) -> Result<(), TransferError> {
    let folder = folder_of(path);
    let disk_state = rustix::fs::statvfs(folder).map_err(|e| disk(folder, e))?;
    let free = disk_state.f_bavail.saturating_mul(disk_state.f_frsize);
    if free < bytes.saturating_add(spare(bytes)) {
        let cause = too_little(bytes, free);
        return Err(disk(folder, cause));
    }
    Ok(())
}

fn too_little(bytes: u64, free: u64) -> String {
    const MB: u64 = 1 << 20;
    let (needed, spare) = (bytes.div_ceil(MB), spare(bytes).div_ceil(MB));
    format!(
        "a snapshot needs {} MB here for a while ({needed} for itself, {spare} left to others), \
         and {} MB are free",
        needed + spare,
        free / MB
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_left_to_others_is_part_of_what_is_needed() {
        let text = too_little(4096, 1 << 20);
        assert!(text.starts_with("a snapshot needs 2 MB here"), "{text}");
        assert!(text.ends_with("and 1 MB are free"), "{text}");
        assert_eq!(spare(20 << 20), 5 << 20);
        assert_eq!(spare(1 << 40), 16 << 20);
    }

    #[test]
    fn databases_of_one_name_share_a_folder_for_scratch_files() {
        let folder = Some(Path::new("/var/scratch"));
        let (one, other) = (Path::new("/srv/a/data.db"), Path::new("/srv/b/data.db"));
        assert_eq!(base(one, None), one);
        assert_ne!(base(one, folder), base(other, folder));
        assert_eq!(base(one, folder).parent(), folder);
    }

    #[test]
    fn files_of_a_killed_process_are_removed_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let ours = [
            "a.db.harmonylite-copy",
            "a.db.harmonylite-copy-wal",
            "a.db.harmonylite-packed",
            "a.db.harmonylite-fetched",
        ];
        let others = ["a.db", "a.db-wal", "b.db.harmonylite-copy"];
        for name in ours.iter().chain(&others) {
            fs::write(file(name), "").unwrap();
        }
        let scratch = folder.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        let there = name(&base(&file("a.db"), Some(&scratch)), "copy");
        fs::write(&there, "").unwrap();
        remove_stale(&file("a.db"), Some(&scratch));
        assert!(!there.exists());
        assert!(ours.iter().all(|name| !file(name).exists()));
        assert!(others.iter().all(|name| file(name).exists()));
    }
}

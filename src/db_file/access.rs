//! Owner and mode of the files that this program makes, and files that others may have planted.
//!
//! Copies of rows are for those who may read the database, and for nobody else. The folder may
//! belong to a different user, or to everybody: so a new file takes a name that nothing had, and
//! no link is followed. A file is made for this user alone and opened to others afterwards.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid};

/// Owner and mode of new files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileAccess {
    mode: u32,
    /// User and group; none: those of this process.
    owner: Option<(u32, u32)>,
}

impl FileAccess {
    /// For this user alone.
    pub const OURS: FileAccess = FileAccess {
        mode: 0o600,
        owner: None,
    };

    /// Those of the database at `path`. A database that is missing is for the owner of its folder
    /// alone.
    pub fn of_database(path: &Path) -> FileAccess {
        let owner = |data: &Metadata| (data.uid(), data.gid());
        match fs::metadata(path) {
            Ok(data) => FileAccess {
                mode: data.mode() & 0o666,
                owner: Some(owner(&data)),
            },
            Err(_) => FileAccess {
                mode: 0o600,
                owner: fs::metadata(folder_of(path)).ok().as_ref().map(owner),
            },
        }
    }

    /// For the owner alone.
    #[must_use]
    pub fn for_owner(self) -> FileAccess {
        FileAccess {
            mode: 0o600,
            ..self
        }
    }

    /// For those alone who may write: a user who may read a file may lock it, too.
    #[must_use]
    pub fn for_writers(self) -> FileAccess {
        let of_class = |shift: u32| match self.mode >> shift & 0o2 {
            0 => 0,
            _ => self.mode & 0o7 << shift,
        };
        FileAccess {
            mode: 0o600 | of_class(3) | of_class(0),
            ..self
        }
    }

    /// Makes a file for reading and writing. Fails with `AlreadyExists` if anything has the name.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        self.give(&file)?;
        Ok(file)
    }

    /// Makes a file in place of what has the name, unless that cannot be removed.
    pub fn replace(&self, path: &Path) -> io::Result<File> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(in_the_way(path, &e)),
            _ => self.create(path),
        }
    }

    /// Gives a new file its owner and mode, as far as this user may and the file system can. What
    /// cannot be given stays with this user.
    fn give(&self, file: &File) -> io::Result<()> {
        let made = file.metadata()?;
        let mut mode = self.mode;
        if let Some((user, group)) = self.owner.filter(|o| *o != (made.uid(), made.gid()))
            && fchown(file, Some(user), Some(group)).is_err()
            && group != made.gid()
            && fchown(file, None, Some(group)).is_err()
        {
            mode &= !0o060; // of a different group
        }
        if mode != 0o600 {
            let _ = file.set_permissions(Permissions::from_mode(mode | 0o600));
        }
        Ok(())
    }

    /// Whether a file of this user can be believed: ours, root's, or the database's owner's.
    pub fn trusts(&self, user: u32) -> bool {
        let is_owner = self.owner.is_some_and(|(owner, _)| owner == user);
        user == 0 || user == geteuid().as_raw() || is_owner
    }
}

fn in_the_way(path: &Path, e: &io::Error) -> io::Error {
    let text = format!(
        "{} is in the way and cannot be removed: {e}",
        path.display()
    );
    io::Error::new(e.kind(), text)
}

/// Opens a regular file that exists. Neither follows a link nor waits for the other end of a pipe.
pub fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => io::Error::other("it is a symbolic link; remove it"),
            _ => e,
        })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file; remove it")),
    }
}

/// The path with the links of its folders followed, and not a link in its last part.
pub fn without_links(path: &Path) -> PathBuf {
    let folder = fs::canonicalize(folder_of(path));
    match (folder, path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// The users besides this one and root that can change the file, or replace the files of the
/// folder, at `path`. In words that follow the path; none if there are none.
pub fn exposure(path: &Path) -> Option<String> {
    let data = fs::metadata(path).ok()?;
    let (mode, user, group) = (data.mode(), data.uid(), data.gid());
    let is_shared = data.is_dir() && mode & 0o1000 != 0; // each user removes its own files only
    if user != 0 && user != geteuid().as_raw() {
        return Some(format!("belongs to a different user (number {user})"));
    }
    if mode & 0o002 != 0 && !is_shared {
        return Some(format!(
            "can be written by every user (mode {:03o})",
            mode & 0o777
        ));
    }
    let is_foreign = group != 0 && group != getegid().as_raw();
    (mode & 0o020 != 0 && is_foreign && !is_shared).then(|| {
        let mode = mode & 0o777;
        format!("can be written by a different group (number {group}, mode {mode:03o})")
    })
}

/// Says that every user can read the file at `path`, in words that follow the path; none if not.
pub fn legibility(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.mode() & 0o777;
    (mode & 0o004 != 0).then(|| format!("can be read by every user (mode {mode:03o})"))
}

/// Whether every user can make files in the folder of `path`.
pub fn is_in_open_folder(path: &Path) -> bool {
    fs::metadata(folder_of(path)).is_ok_and(|data| data.mode() & 0o002 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_copy_is_for_those_who_may_read_the_database() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a.db"), "").unwrap();
        for (of_database, copy, lockable) in [
            (0o600, 0o600, 0o600),
            (0o644, 0o644, 0o600),
            (0o664, 0o664, 0o660),
            (0o666, 0o666, 0o666),
            (0o400, 0o600, 0o600),
            (0o4755, 0o644, 0o600),
        ] {
            chmod(&path("a.db"), of_database);
            let access = FileAccess::of_database(&path("a.db"));
            for (access, expected) in [
                (access, copy),
                (access.for_writers(), lockable),
                (access.for_owner(), 0o600),
            ] {
                access.replace(&path("new")).unwrap();
                assert_eq!(mode(&path("new")), expected, "{of_database:o}");
            }
        }
        FileAccess::of_database(&path("none.db"))
            .create(&path("none.db"))
            .unwrap();
        assert_eq!(mode(&path("none.db")), 0o600);
    }

    #[test]
    fn no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("precious"), "kept").unwrap();
        for target in ["precious", "absent"] {
            symlink(path(target), path("link")).unwrap();
            let exists = FileAccess::OURS.create(&path("link")).unwrap_err();
            assert_eq!(exists.kind(), io::ErrorKind::AlreadyExists);
            let link = open_regular(&path("link"), File::options().read(true)).unwrap_err();
            assert!(link.to_string().contains("symbolic link"), "{link}");
            FileAccess::OURS.replace(&path("link")).unwrap();
            assert!(!fs::symlink_metadata(path("link")).unwrap().is_symlink());
            fs::remove_file(path("link")).unwrap();
        }
        assert_eq!(fs::read_to_string(path("precious")).unwrap(), "kept");
        assert!(!path("absent").exists());
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), 0o600.into()).unwrap();
        let pipe = open_regular(&path("pipe"), File::options().read(true)).unwrap_err();
        assert!(pipe.to_string().contains("no regular file"), "{pipe}");
    }

    #[test]
    fn who_can_change_a_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        fs::write(&file, "").unwrap();
        for (mode, is_exposed) in [(0o600, false), (0o644, false), (0o666, true), (0o602, true)] {
            chmod(&file, mode);
            assert_eq!(exposure(&file).is_some(), is_exposed, "{mode:o}");
        }
        for (mode, is_exposed, is_open) in [
            (0o700, false, false),
            (0o755, false, false),
            (0o777, true, true),
            (0o1777, false, true),
        ] {
            chmod(folder.path(), mode);
            assert_eq!(exposure(folder.path()).is_some(), is_exposed, "{mode:o}");
            assert_eq!(is_in_open_folder(&file), is_open, "{mode:o}");
        }
        assert_eq!(exposure(Path::new("/none/such")), None);
    }
}

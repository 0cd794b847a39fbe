//! Whether SQLite can safely work on the database file where it lies.
//!
//! SQLite keeps `-wal`, `-shm` and `-journal` beside the *name* by which a file is opened. A file
//! with two names, by a mount of the single file or by a hard link, has two of each, and the writes
//! of one process damage those of another. (<https://www.sqlite.org/howtocorrupt.html>, 2.5.)

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub mod access;

/// All mounts that this process sees, one a line; see proc_pid_mountinfo(5).
const MOUNTS: &str = "/proc/self/mountinfo";

/// The file beside `path` whose name has `end` behind that of `path`.
pub fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(end);
    path.with_file_name(name)
}

/// Device and inode, which a file keeps under any name.
pub type Number = (u64, u64);

/// Device and inode in a file's metadata.
pub fn number(data: &Metadata) -> Number {
    (data.dev(), data.ino())
}

/// Device and inode of the file at `path`, links followed; none if there is no file.
pub fn number_at(path: &Path) -> Option<Number> {
    std::fs::metadata(path).ok().map(|data| number(&data))
}

/// Why SQLite must not work on the file at `path`, in words that continue the key's name. None if
/// it may, or if there is no file.
pub fn unfit(path: &Path) -> Option<String> {
    let data = std::fs::metadata(path).ok()?;
    let shown = path.display();
    if is_mount_point(path) {
        return Some(format!(
            "is {shown}, which is mounted as a single file: mount its folder. SQLite's -wal and \
             -shm files lie in the folder, and two programs that do not see the same ones damage \
             the database"
        ));
    }
    (names(path, &data) > 1).then(|| {
        format!(
            "is {shown}, which has a second name (a hard link): remove one of the two. SQLite \
             keeps a -wal file for each name, and two programs that use one each damage the \
             database; `find DIR -samefile {shown}` finds it"
        )
    })
}

/// The number of the file's names, without those that a killed process of ours left.
fn names(path: &Path, data: &Metadata) -> u64 {
    if data.nlink() < 2 {
        return 1;
    }
    let mut prefix = path.file_name().unwrap_or_default().to_owned();
    prefix.push(".harmonylite-");
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let entries = std::fs::read_dir(folder.unwrap_or(Path::new("."))).ok();
    let ours = entries.into_iter().flatten().flatten().filter(|entry| {
        let is_same = |other: Metadata| number(&other) == number(data);
        entry.file_name().as_bytes().starts_with(prefix.as_bytes())
            && entry.metadata().is_ok_and(is_same)
    });
    data.nlink().saturating_sub(ours.count() as u64)
}

fn is_mount_point(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    // If the list of mounts cannot be read, the file counts as safe.
    let mounts = std::fs::read(MOUNTS).unwrap_or_default();
    let mut points = mounts.split(|byte| *byte == b'\n').filter_map(mount_point);
    points.any(|point| point == path)
}

/// The mount point, the line's fifth field, with its octal escapes decoded.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let mut rest = line.split(|byte| *byte == b' ').nth(4)?;
    let mut name = Vec::new();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let number = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                name.push(byte);
                rest = &tail[3..];
            }
            None => name.push(*first),
        }
    }
    Some(OsString::from_vec(name).into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn mount_points_are_read() {
        let line =
            b"36 35 98:0 /a.db /mnt/a\\040b\\134c.db rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some("/mnt/a b\\c.db".into()));
        assert_eq!(mount_point(b""), None);
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
    }

    #[test]
    fn a_second_name_is_refused_but_for_one_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(unfit(&path("a.db")), None, "it may come later");
        fs::write(path("a.db"), "").unwrap();
        fs::hard_link(path("a.db"), path("a.db.harmonylite-fetched")).unwrap();
        std::os::unix::fs::symlink("a.db", path("link.db")).unwrap();
        assert_eq!(unfit(&path("a.db")), None);
        fs::hard_link(path("a.db"), path("b.db")).unwrap();
        for name in ["a.db", "link.db", "b.db"] {
            let text = unfit(&path(name)).unwrap();
            assert!(text.contains("hard link") && text.contains(name), "{text}");
        }
        fs::remove_file(path("b.db")).unwrap();
        assert_eq!(unfit(&path("a.db")), None);
    }
}

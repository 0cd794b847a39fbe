//! The log file, which logrotate or another program may rename, compress or remove at any time.
//!
//! Before each line the file is compared with the one at its path, by device and inode: one
//! `stat` a line. If they differ, or no file is there, the path is opened anew. So a rotation needs
//! no signal. Where no other program rotates, a limit in bytes does: the file gets the end `.1` in
//! place of the one before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::db_file::{Number, number};

/// The file behind `logging.file`. Clones share it.
#[derive(Clone)]
pub struct LogFile(Arc<Mutex<OpenedFile>>);

struct OpenedFile {
    path: PathBuf,
    file: File,
    /// Device and inode of `file`.
    number: Number,
    /// Bytes of the file when it was last looked at.
    length: u64,
    /// Most bytes; none: no limit.
    limit: Option<u64>,
}

impl LogFile {
    /// Opens the file at `path` for appending, and creates it if it is missing. A line beyond
    /// `limit` bytes goes into a new one.
    pub fn open(path: &Path, limit: Option<u64>) -> io::Result<LogFile> {
        Ok(LogFile(Arc::new(Mutex::new(OpenedFile::open(
            path, limit,
        )?))))
    }

    /// Sets the limit in bytes.
    pub fn limit(&self, limit: Option<u64>) {
        self.opened().limit = limit;
    }

    /// Opens the path anew if a different file, or none, is there; then true.
    pub fn follow(&self) -> io::Result<bool> {
        self.opened().follow()
    }

    fn opened(&self) -> MutexGuard<'_, OpenedFile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenedFile {
    fn open(path: &Path, limit: Option<u64>) -> io::Result<OpenedFile> {
        // The log names tables, keys and addresses: a new file is for its owner.
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o600).open(path)?;
        let found = file.metadata()?;
        Ok(OpenedFile {
            path: path.to_owned(),
            file,
            number: number(&found),
            length: found.len(),
            limit,
        })
    }

    fn follow(&mut self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(there) if number(&there) == self.number => {
                self.length = there.len();
                return Ok(false);
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        *self = OpenedFile::open(&self.path, self.limit)?;
        Ok(true)
    }

    /// Renames the file if `more` bytes would exceed the limit.
    fn rotate_for(&mut self, more: usize) -> io::Result<()> {
        let is_full = |limit| self.length > 0 && self.length + more as u64 > limit;
        if !self.limit.is_some_and(is_full) {
            return Ok(());
        }
        let path = fs::canonicalize(&self.path)?; // the file, and not a link to it
        let mut aside = path.clone().into_os_string();
        aside.push(".1");
        fs::rename(&path, aside)?;
        self.follow().map(drop)
    }
}

impl Write for LogFile {
    /// Writes the whole line, so that no line is spread over two files.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut opened = self.opened();
        // If the path cannot be opened, the line is better in the old file than nowhere.
        let _ = opened.follow();
        let _ = opened.rotate_for(bytes.len());
        opened.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.opened().file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn lines_go_where_the_path_leads() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let read = |name: &str| fs::read_to_string(path(name)).unwrap();
        let mut log = LogFile::open(&path("log"), None).unwrap();
        log.write_all(b"1\n").unwrap();
        fs::rename(path("log"), path("log.1")).unwrap();
        log.write_all(b"2\n").unwrap();
        fs::remove_file(path("log")).unwrap();
        log.write_all(b"3\n").unwrap();
        assert_eq!((read("log.1"), read("log")), ("1\n".into(), "3\n".into()));
        fs::rename(path("log"), path("log.1")).unwrap();
        fs::write(path("log"), "made by logrotate\n").unwrap();
        assert!(log.clone().follow().unwrap());
        assert!(!log.follow().unwrap(), "it is the same file by now");
        log.write_all(b"4\n").unwrap();
        assert_eq!(read("log"), "made by logrotate\n4\n");
        // `copytruncate` empties the file in place.
        File::create(path("log")).unwrap();
        log.write_all(b"5\n").unwrap();
        assert_eq!(read("log"), "5\n");
    }

    #[test]
    fn the_old_file_goes_on_while_the_path_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, moved) = (folder.path().join("log"), folder.path().join("moved"));
        fs::create_dir(&inner).unwrap();
        let mut log = LogFile::open(&inner.join("a"), None).unwrap();
        fs::rename(&inner, &moved).unwrap();
        assert!(log.follow().is_err());
        log.write_all(b"1\n").unwrap();
        assert_eq!(fs::read_to_string(moved.join("a")).unwrap(), "1\n");
        fs::create_dir(&inner).unwrap();
        log.write_all(b"2\n").unwrap();
        assert_eq!(fs::read_to_string(inner.join("a")).unwrap(), "2\n");
    }

    #[test]
    fn a_limit_keeps_two_files_of_that_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let read = |name: &str| fs::read_to_string(path(name)).unwrap();
        symlink(path("log"), path("link")).unwrap();
        let mut log = LogFile::open(&path("link"), Some(10)).unwrap();
        for line in ["1234\n", "5678\n", "abcd\n", "efgh\n", "ij\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(
            (read("log.1"), read("log")),
            ("abcd\nefgh\n".into(), "ij\n".into())
        );
        let link = fs::symlink_metadata(path("link")).unwrap();
        assert!(link.is_symlink(), "the link stays");
        log.write_all(&[b'x'; 100]).unwrap();
        assert_eq!((read("log.1"), read("log").len()), ("ij\n".into(), 100));
        log.limit(None);
        log.write_all(b"more\n").unwrap();
        assert_eq!(read("log").len(), 105);
        let mode = fs::metadata(path("log")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

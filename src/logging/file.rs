//! The log file, which logrotate or another program may rename, compress or remove at any time.
//!
//! Before each line the file is compared with the one at its path, by device and inode: one
//! `stat` a line. If they differ, or no file is there, the path is opened anew. So a rotation needs
//! no signal.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
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
}

impl LogFile {
    /// Opens the file at `path` for appending, and creates it if it is missing.
    pub fn open(path: &Path) -> io::Result<LogFile> {
        Ok(LogFile(Arc::new(Mutex::new(OpenedFile::open(path)?))))
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
    fn open(path: &Path) -> io::Result<OpenedFile> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let number = number(&file.metadata()?);
        let path = path.to_owned();
        Ok(OpenedFile { path, file, number })
    }

    fn follow(&mut self) -> io::Result<bool> {
        match std::fs::metadata(&self.path) {
            Ok(there) if number(&there) == self.number => return Ok(false),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        *self = OpenedFile::open(&self.path)?;
        Ok(true)
    }
}

impl Write for LogFile {
    /// Writes the whole line, so that no line is spread over two files.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut opened = self.opened();
        // If the path cannot be opened, the line is better in the old file than nowhere.
        let _ = opened.follow();
        opened.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.opened().file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_go_where_the_path_leads() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let read = |name: &str| fs::read_to_string(path(name)).unwrap();
        let mut log = LogFile::open(&path("log")).unwrap();
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
    fn where_the_path_cannot_be_opened_the_old_file_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, moved) = (folder.path().join("log"), folder.path().join("moved"));
        fs::create_dir(&inner).unwrap();
        let mut log = LogFile::open(&inner.join("a")).unwrap();
        fs::rename(&inner, &moved).unwrap();
        assert!(log.follow().is_err());
        log.write_all(b"1\n").unwrap();
        assert_eq!(fs::read_to_string(moved.join("a")).unwrap(), "1\n");
        fs::create_dir(&inner).unwrap();
        log.write_all(b"2\n").unwrap();
        assert_eq!(fs::read_to_string(inner.join("a")).unwrap(), "2\n");
    }
}

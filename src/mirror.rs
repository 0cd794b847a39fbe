//! `seq-map.cbor`: how far each stream was read, for operators and tools.
//!
//! The file mirrors a table of the database, and the table counts: after a power cut the file can
//! be ahead of a database that lost its last moments.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::db_file::access::{FileAccess, open_regular};
use crate::db_file::with_end;
use crate::logging::Lasting;

/// The file's default name, beside the database.
pub const NAME: &str = "seq-map.cbor";

/// A map without entries.
const EMPTY: [u8; 1] = [0xa0];

/// The file for a database whose configuration names `wanted`. With the default name, a database
/// gets `<database>-seq-map.cbor` if that file exists, or if another running daemon uses `wanted`.
/// With a configured name, use by another daemon is an error, in a user's words.
pub fn place(wanted: &Path, database: &Path) -> Result<PathBuf, String> {
    let own = own_place(database);
    let is_default = wanted == database.with_file_name(NAME);
    if is_default && own.exists() {
        return Ok(own);
    }
    if !is_taken(wanted, database) {
        return Ok(wanted.to_owned());
    }
    if !is_default {
        return Err(format!(
            "seq_map_path: another harmonylite keeps the positions of its database in {}: give \
             each database a file of its own",
            wanted.display()
        ));
    }
    log::info!(
        "{} belongs to a different database: the positions are written to {}",
        wanted.display(),
        own.display()
    );
    // If the file were missing, it would count as removed by an operator.
    let made = access(database).replace(&own);
    made.and_then(|mut file| file.write_all(&EMPTY))
        .map_err(|e| format!("seq_map_path: {}: {e}", own.display()))?;
    Ok(own)
}

/// `<database>-seq-map.cbor`.
fn own_place(database: &Path) -> PathBuf {
    with_end(database, &format!("-{NAME}"))
}

/// A user that may read the file may lock it, so only users that may write to the database read it.
fn access(database: &Path) -> FileAccess {
    FileAccess::of_database(database).for_writers()
}

/// Whether a running process of a user who may write to the database keeps its positions there.
fn is_taken(path: &Path, database: &Path) -> bool {
    let Ok(file) = open_regular(path, File::options().read(true)) else {
        return false;
    };
    let owner = file.metadata().map(|data| data.uid());
    let is_trusted = owner.is_ok_and(|user| access(database).trusts(user));
    is_trusted && matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Writes the file when its content changed.
#[derive(Debug)]
pub struct Mirror {
    path: PathBuf,
    database: PathBuf,
    written: Option<Vec<(String, u64)>>,
    /// The file written last. It stays locked, to show other processes that it is in use.
    held: Option<File>,
    /// Why the file cannot be written.
    failure: Lasting,
}

impl Mirror {
    /// A mirror at `path` of what `database` holds; writes nothing yet.
    pub fn new(path: &Path, database: &Path) -> Self {
        Mirror {
            path: path.to_owned(),
            database: database.to_owned(),
            written: None,
            held: None,
            failure: Lasting::default(),
        }
    }

    /// Writes the last sequence read by stream name, as a CBOR map, and replaces the whole file.
    /// False if nothing changed. A failure is only logged: replication does not need the file.
    pub fn write(&mut self, sequences: &[(String, u64)]) -> bool {
        if self.written.as_deref() == Some(sequences) {
            return false;
        }
        match self.replace(sequences) {
            Ok(()) => {
                self.written = Some(sequences.to_vec());
                self.failure.ends();
            }
            // Logged only when it is new: one line at every clean-up would fill a disk.
            Err(e) if self.failure.is_news(&e.to_string()) => log::warn!(
                "writing {}: {e}; replication goes on, and it is tried again",
                self.path.display()
            ),
            Err(e) => log::debug!("writing {}: {e}", self.path.display()),
        }
        true
    }

    fn replace(&mut self, sequences: &[(String, u64)]) -> std::io::Result<()> {
        if self.held.is_none() && is_taken(&self.path, &self.database) {
            let cause = "another harmonylite writes it: set seq_map_path for each database";
            return Err(std::io::Error::other(cause));
        }
        let map: std::collections::BTreeMap<&str, u64> = sequences
            .iter()
            .map(|(stream, seq)| (stream.as_str(), *seq))
            .collect();
        let mut bytes = Vec::new();
        ciborium::into_writer(&map, &mut bytes).map_err(std::io::Error::other)?;
        let new = with_end(&self.path, ".new");
        let mut file = access(&self.database).replace(&new)?;
        file.write_all(&bytes)?;
        let _ = file.try_lock(); // not every file system can
        fs::rename(new, &self.path)?;
        self.held = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_a_map_of_streams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seq-map.cbor");
        Mirror::new(&path, &dir.path().join("a.db"))
            .write(&[("harmonylite-changes-1".into(), 1042)]);
        let map: std::collections::BTreeMap<String, u64> =
            ciborium::from_reader(fs::File::open(path).unwrap()).unwrap();
        assert_eq!(map["harmonylite-changes-1"], 1042);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no file is left behind"
        );
    }

    #[test]
    fn a_failure_is_said_once_and_again_after_a_success() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("later");
        let mut mirror = Mirror::new(&folder.join("seq-map.cbor"), &dir.path().join("a.db"));
        mirror.write(&[("s".into(), 1)]);
        assert!(mirror.failure.ends());
        fs::create_dir(folder).unwrap();
        mirror.write(&[("s".into(), 1)]);
        assert!(!mirror.failure.ends());
    }

    #[test]
    fn two_databases_in_one_folder_have_a_file_each() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a.db", "b.db"].map(|name| dir.path().join(name));
        let default = dir.path().join(NAME);
        assert_eq!(place(&default, &a), Ok(default.clone()));
        let mut of_a = Mirror::new(&default, &a);
        of_a.write(&[("s".into(), 1)]);
        of_a.write(&[("s".into(), 2)]);
        let own = dir.path().join("b.db-seq-map.cbor");
        assert_eq!(place(&default, &b), Ok(own.clone()));
        let read = |path: &Path| -> std::collections::BTreeMap<String, u64> {
            ciborium::from_reader(File::open(path).unwrap()).unwrap()
        };
        assert!(read(&own).is_empty());
        let chosen = dir.path().join("chosen");
        assert_eq!(place(&chosen, &b), Ok(chosen.clone()));
        let mut of_b = Mirror::new(&chosen, &b);
        of_b.write(&[("s".into(), 1)]);
        let refused = place(&chosen, &a).unwrap_err();
        assert!(
            refused.starts_with("seq_map_path: another harmonylite"),
            "{refused}"
        );
        // The order of the starts after a boot no longer matters.
        drop(of_a);
        assert_eq!(place(&default, &b), Ok(own));
        assert_eq!(place(&default, &a), Ok(default.clone()));
        // Both daemons start at the same moment.
        let mut of_a = Mirror::new(&default, &a);
        of_a.write(&[("s".into(), 3)]);
        Mirror::new(&default, &b).write(&[("s".into(), 4)]);
        assert_eq!(read(&default)["s"], 3);
    }
}

//! `seq-map.cbor`: how far each stream was read, for operators and tools to see.
//!
//! A mirror of the table in the database, which is the truth: a file can be ahead of a database
//! that lost its last moments to a power cut.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::logging::Lasting;

/// Its name beside the database.
pub const NAME: &str = "seq-map.cbor";

/// A map without entries.
const EMPTY: [u8; 1] = [0xa0];

/// Where the mirror of a database is whose configuration says `wanted`. Another daemon that runs
/// may keep that of its own database there: where nobody chose the name, this one gets another;
/// else that is an error, in a user's words.
pub fn place(wanted: &Path, database: &Path) -> Result<PathBuf, String> {
    let own = own_place(database);
    let is_default = wanted == database.with_file_name(NAME);
    if is_default && own.exists() {
        return Ok(own);
    }
    if !is_taken(wanted) {
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
        "{} is that of another database: the positions are shown in {}",
        wanted.display(),
        own.display()
    );
    // That it is missing would mean that an operator removed it.
    fs::write(&own, EMPTY).map_err(|e| format!("seq_map_path: {}: {e}", own.display()))?;
    Ok(own)
}

/// `<database>-seq-map.cbor`.
fn own_place(database: &Path) -> PathBuf {
    let mut name = database.file_name().unwrap_or_default().to_owned();
    name.push("-");
    name.push(NAME);
    database.with_file_name(name)
}

/// Whether a process that runs keeps its positions there.
fn is_taken(path: &Path) -> bool {
    let locked = File::open(path).map(|file| file.try_lock());
    matches!(locked, Ok(Err(TryLockError::WouldBlock)))
}

/// Writes the file when something in it changed.
#[derive(Debug)]
pub struct Mirror {
    path: PathBuf,
    written: Option<Vec<(String, u64)>>,
    /// The file that was written last: it stays locked, to tell others that it is in use.
    held: Option<File>,
    /// Why it cannot be written.
    failure: Lasting,
}

impl Mirror {
    pub fn new(path: PathBuf) -> Self {
        Mirror {
            path,
            written: None,
            held: None,
            failure: Lasting::default(),
        }
    }

    /// Stream name -> last sequence read, as a CBOR map; replaced as a whole. A failure is logged:
    /// replication does not need the file. True if there was something new.
    pub fn write(&mut self, sequences: &[(String, u64)]) -> bool {
        if self.written.as_deref() == Some(sequences) {
            return false;
        }
        match self.replace(sequences) {
            Ok(()) => {
                self.written = Some(sequences.to_vec());
                self.failure.ends();
            }
            // Said with every clean-up it would fill a disk.
            Err(e) if self.failure.is_news(&e.to_string()) => log::warn!(
                "writing {}: {e}; replication goes on, and it is tried again",
                self.path.display()
            ),
            Err(e) => log::debug!("writing {}: {e}", self.path.display()),
        }
        true
    }

    fn replace(&mut self, sequences: &[(String, u64)]) -> std::io::Result<()> {
        if self.held.is_none() && is_taken(&self.path) {
            let cause = "another harmonylite writes it: set seq_map_path for each database";
            return Err(std::io::Error::other(cause));
        }
        let map: std::collections::BTreeMap<&str, u64> = sequences
            .iter()
            .map(|(stream, seq)| (stream.as_str(), *seq))
            .collect();
        let mut bytes = Vec::new();
        ciborium::into_writer(&map, &mut bytes).map_err(std::io::Error::other)?;
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = self.path.with_file_name(name);
        let mut file = File::create(&new)?;
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
        Mirror::new(path.clone()).write(&[("harmonylite-changes-1".into(), 1042)]);
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
        let mut mirror = Mirror::new(folder.join("seq-map.cbor"));
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
        let mut of_a = Mirror::new(default.clone());
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
        let mut of_b = Mirror::new(chosen.clone());
        of_b.write(&[("s".into(), 1)]);
        let refused = place(&chosen, &a).unwrap_err();
        assert!(
            refused.starts_with("seq_map_path: another harmonylite"),
            "{refused}"
        );
        // Who comes first after a boot does not matter any more.
        drop(of_a);
        assert_eq!(place(&default, &b), Ok(own));
        assert_eq!(place(&default, &a), Ok(default.clone()));
        // They began at the same moment.
        let mut of_a = Mirror::new(default.clone());
        of_a.write(&[("s".into(), 3)]);
        Mirror::new(default.clone()).write(&[("s".into(), 4)]);
        assert_eq!(read(&default)["s"], 3);
    }
}

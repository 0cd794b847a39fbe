//! `seq-map.cbor`: how far each stream was read, for operators and tools to see.
//!
//! A mirror of the table in the database, which is the truth: a file can be ahead of a database
//! that lost its last moments to a power cut.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// Writes the file when something in it changed.
#[derive(Debug)]
pub struct Mirror {
    path: PathBuf,
    written: Option<Vec<(String, u64)>>,
    /// Why it cannot be written, as the log was told.
    said: Option<String>,
}

impl Mirror {
    pub fn new(path: PathBuf) -> Self {
        Mirror {
            path,
            written: None,
            said: None,
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
                self.said = None;
            }
            Err(e) if self.is_news(&e) => log::warn!(
                "writing {}: {e}; replication goes on, and it is tried again",
                self.path.display()
            ),
            Err(e) => log::debug!("writing {}: {e}", self.path.display()),
        }
        true
    }

    /// It is tried with every clean-up: said each time, it would fill a disk.
    fn is_news(&mut self, e: &std::io::Error) -> bool {
        let text = Some(e.to_string());
        std::mem::replace(&mut self.said, text.clone()) != text
    }

    fn replace(&self, sequences: &[(String, u64)]) -> std::io::Result<()> {
        let map: std::collections::BTreeMap<&str, u64> = sequences
            .iter()
            .map(|(stream, seq)| (stream.as_str(), *seq))
            .collect();
        let mut bytes = Vec::new();
        ciborium::into_writer(&map, &mut bytes).map_err(std::io::Error::other)?;
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = self.path.with_file_name(name);
        fs::File::create(&new)?.write_all(&bytes)?;
        fs::rename(new, &self.path)
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
        let error = || std::io::Error::other("denied");
        assert!(mirror.is_news(&error()) && !mirror.is_news(&error()));
        mirror.write(&[("s".into(), 1)]);
        assert!(mirror.said.as_ref().is_some_and(|text| text != "denied"));
        fs::create_dir(folder).unwrap();
        mirror.write(&[("s".into(), 1)]);
        assert!(mirror.is_news(&error()));
    }
}

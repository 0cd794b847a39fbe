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
}

impl Mirror {
    pub fn new(path: PathBuf) -> Self {
        Mirror {
            path,
            written: None,
        }
    }

    /// Stream name -> last sequence read, as a CBOR map; replaced as a whole. A failure is logged:
    /// replication does not need the file. True if there was something new.
    pub fn write(&mut self, sequences: &[(String, u64)]) -> bool {
        if self.written.as_deref() == Some(sequences) {
            return false;
        }
        match self.replace(sequences) {
            Ok(()) => self.written = Some(sequences.to_vec()),
            Err(e) => log::warn!("writing {}: {e}", self.path.display()),
        }
        true
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
}

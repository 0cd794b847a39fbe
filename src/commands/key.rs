//! `harmonylite key new`: makes a cluster key.

use std::io::Write;
use std::path::Path;

use crate::clock::Clock;
use crate::db_file::access::FileAccess;
use crate::model::timestamp::rfc3339;
use crate::{output, seal};

/// No key is older, in unix milliseconds (2025-01-01).
const FIRST_MS: i64 = 1_735_689_600_000;

/// Writes a new key to `file`, which must not exist, for this user alone. Of two keys the one that
/// was made later is the newer one, so a clock that was never set makes none.
pub fn make(clock: &dyn Clock, file: &Path, out: &mut dyn Write) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("key new: {}: {e}", file.display());
    let now_ms = clock.now_ms();
    if now_ms < FIRST_MS {
        let now = rfc3339(now_ms);
        return Err(format!(
            "key new: the clock says {now}, and a key has its time in it: set the clock first"
        ));
    }
    let text = seal::key::make(now_ms as u64 / 1000).map_err(failed)?;
    let mut made = FileAccess::OURS.create(file).map_err(failed)?;
    made.write_all(text.as_bytes()).map_err(failed)?;
    made.sync_all().map_err(failed)?;
    let key = seal::key::parse(&text).map_err(|e| format!("key new: {e}"))?;
    let (path, id) = (file.display(), key[0].id_text());
    writeln!(
        out,
        "{path} holds cluster key {id}: copy it to every node, and set cluster_key_file there"
    )
    .map_err(output::failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::clock::{ManualClock, SystemClock};

    #[test]
    fn a_clock_that_was_never_set_makes_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.key");
        let clock = ManualClock::at(7_000);
        let refused = make(&clock, &file, &mut Vec::new()).unwrap_err();
        assert!(refused.contains("1970-01-01T00:00:07Z"), "{refused}");
        assert!(!file.exists());
    }

    #[test]
    fn a_key_is_for_its_owner_and_replaces_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.key");
        let mut said = Vec::new();
        make(&SystemClock, &file, &mut said).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(seal::key::parse(&text).unwrap().len(), 1);
        let said = String::from_utf8(said).unwrap();
        assert!(!said.contains(text.trim()), "{said}");
        let refused = make(&SystemClock, &file, &mut Vec::new()).unwrap_err();
        assert!(refused.contains("cluster.key"), "{refused}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}

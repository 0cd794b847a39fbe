//! A node's id when `node_id` is not configured: derived from the machine's own id.
//!
//! The recipe is that of the Go version, so that a machine that changes over keeps its id: FNV-1
//! (not FNV-1a), 64 bits, of the trimmed text. A machine without a machine id (OpenWrt) has no such
//! node id; the daemon then draws one and keeps it in the database.

use std::path::Path;

/// Files in which Linux keeps the machine id; the first that holds one counts.
pub const MACHINE_ID_FILES: [&str; 2] = ["/var/lib/dbus/machine-id", "/etc/machine-id"];

/// The id derived from the first of `files` that holds a machine id; never 0.
///
/// An empty file, or systemd's `uninitialized` in an image that was never booted, holds no machine
/// id: all machines made from that image would share the node id.
pub fn derive(files: &[impl AsRef<Path>]) -> Option<u64> {
    files.iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        let id = text.trim();
        (!id.is_empty() && id != "uninitialized")
            .then(|| fnv1(id.as_bytes()))
            .filter(|&id| id != 0)
    })
}

fn fnv1(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, &byte| {
        hash.wrapping_mul(PRIME) ^ u64::from(byte)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1_known_values() {
        assert_eq!(fnv1(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1(b"a"), 0xaf63_bd4c_8601_b7be);
        assert_eq!(fnv1(b"foobar"), 0x340d_8765_a4dd_a9c2);
    }

    #[test]
    fn first_file_with_an_id_counts_and_is_trimmed() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (empty, fresh) = (file("empty", "\n"), file("fresh", "uninitialized\n"));
        let (one, two) = (file("one", "foobar\n"), file("two", "a"));
        let absent = folder.path().join("absent");

        assert_eq!(
            derive(&[&absent, &empty, &fresh, &one, &two]),
            Some(0x340d_8765_a4dd_a9c2)
        );
        assert_eq!(derive(&[&two, &one]), Some(0xaf63_bd4c_8601_b7be));
        assert_eq!(derive(&[&absent, &empty, &fresh]), None);
    }
}

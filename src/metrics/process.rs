//! Facts of the system about this process.

/// The number behind `name` in a file of /proc/self, such as `VmRSS:   1234 kB`.
fn number(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().split(' ').next()?.parse().ok()
}

/// Bytes written to disks by this process, with its ended threads.
pub(super) fn written_bytes() -> Option<u64> {
    number("/proc/self/io", "write_bytes:")
}

/// Resident memory in bytes.
pub(super) fn resident_bytes() -> Option<u64> {
    number("/proc/self/status", "VmRSS:").map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(number("/proc/self/status", "NoSuchLine:"), None);
    }
}

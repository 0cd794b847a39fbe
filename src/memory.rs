//! The heap: small, and given back to the system when it was needed for a moment. And a limit of
//! address space that would end the daemon sooner or later is an error at its start.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Address space that the daemon needs beside its code: stacks of threads, heap, pages of SQLite.
const NEEDED: u64 = 10 << 20;

/// Returns an error if the limit of address space (`ulimit -v`) leaves too little of it. The kernel
/// would end the process without a word when a stack cannot grow.
pub fn require_room() -> Result<(), String> {
    let Some(limit) = getrlimit(Resource::As).current else {
        return Ok(());
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |line: &str| {
        line.strip_prefix("VmSize:")?
            .trim_end_matches("kB")
            .trim()
            .parse()
            .ok()
    };
    let used = status.lines().find_map(kib).unwrap_or(0_u64) << 10;
    match limit.saturating_sub(used) < NEEDED {
        true => Err(format!(
            "the limit of address space (ulimit -v, LimitAS of systemd) is {} KiB, but at least \
             {} KiB are needed: raise it",
            limit >> 10,
            (used + NEEDED) >> 10
        )),
        false => Ok(()),
    }
}

/// Lets all threads share one heap. By default, glibc gives every thread its own, and each stays as
/// large as it ever was. Our threads take turns, so one heap serves them all: at full speed it is
/// 33 MB after an hour, not 49 after minutes. Larger pieces are mapped one by one, always from the
/// same size on (by default it grows), so that they go back when they are freed.
#[cfg(target_env = "gnu")]
pub fn keep_small() {
    const MAPPED_FROM: i32 = 128 << 10;
    // SAFETY: these change settings of malloc, before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, MAPPED_FROM);
    }
}

/// musl has only one heap, and maps larger pieces one by one.
#[cfg(not(target_env = "gnu"))]
pub fn keep_small() {}

/// Gives free memory back to the system. It takes a millisecond or two.
#[cfg(target_env = "gnu")]
pub fn release() {
    // SAFETY: it takes no pointer, and malloc locks what it works on.
    unsafe { libc::malloc_trim(0) };
}

/// musl gives back what is free by itself.
#[cfg(not(target_env = "gnu"))]
pub fn release() {}

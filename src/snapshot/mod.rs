//! Copies of the whole database, for new nodes and for those that were away longer than the streams
//! reach back.
//!
//! ```text
//! making    copy (a consistent view) ─▶ pack (zstd, SHA-256) ─▶ transfer ─▶ store ─▶ manifest
//! merging   manifest ─▶ transfer (checked) ─▶ source (row by row) ─▶ merge (short transactions)
//! keeper    what is to be done next, and who does it: registry (the broker's bucket, the lease)
//! ```
//!
//! A snapshot is merged like any other bundle of changes, by version, so that nothing local is lost
//! and nothing depends on which snapshot it was. It says how far each stream is in it: that is
//! where reading goes on.

mod ages;
pub mod beside;
pub mod commands;
mod copy;
pub mod gap;
pub mod keeper;
mod lost;
pub mod manifest;
mod merge;
mod pack;
pub mod registry;
mod source;
pub mod thread;
mod tombstones;
pub mod transfer;
pub mod watch;

pub use ages::Ages;
pub use copy::{CopyError, View};
pub use manifest::{Entry, Manifest, Place};
pub use merge::Merge;
pub use tombstones::Sweep;

#[cfg(test)]
mod tests;

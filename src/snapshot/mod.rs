//! Copies of the whole database, for new nodes and for nodes that were away longer than the streams
//! reach back.
//!
//! ```text
//! making    copy (a consistent view) ─▶ pack (zstd, SHA-256) ─▶ transfer ─▶ store ─▶ manifest
//! merging   manifest ─▶ transfer (checked) ─▶ source (row by row) ─▶ merge (short transactions)
//! scheduler decides what to do next, and which node does it (the lease of cluster::registry)
//! ```
//!
//! A snapshot is merged by version, like any other bundle of changes, so that no local write is
//! lost and nothing depends on which snapshot it was. Its manifest entry says how far each stream
//! is in it: reading goes on from there.

mod copy;
mod damaged;
pub mod error;
mod lost_streams;
mod merge;
pub(crate) mod pack;
pub mod scheduler;
pub mod scratch;
mod source;
pub mod thread;
mod tombstones;
pub mod transfer;
pub mod watch;

pub use copy::View;
pub use merge::Merge;
pub(crate) use merge::say_code;
pub use tombstones::Sweep;

#[cfg(test)]
mod tests;

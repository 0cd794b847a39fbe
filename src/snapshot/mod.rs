//! Copies of the whole database, for new nodes and for those that were away longer than the streams
//! reach back.
//!
//! ```text
//! making    copy (a consistent view) ─▶ pack (zstd, SHA-256) ─▶ transfer ─▶ store ─▶ manifest
//! merging   manifest ─▶ transfer (checked) ─▶ source (row by row) ─▶ merge (short transactions)
//! scheduler what is to be done next, and which node does it (the lease of cluster::registry)
//! ```
//!
//! A snapshot is merged like any other bundle of changes, by version, so that nothing local is lost
//! and nothing depends on which snapshot it was. It says how far each stream is in it: that is
//! where reading goes on.

mod copy;
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
pub use tombstones::Sweep;

#[cfg(test)]
mod tests;

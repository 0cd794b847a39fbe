//! The parts of a change, independent of SQLite and of NATS: values, versions, the merge, frames.
//!
//! Nothing in this room does input or output or reads a clock, so a simulation can run all of it.

pub mod backoff;
pub(crate) mod base64;
pub mod birth;
pub mod cbor;
pub mod content;
pub mod frame;
pub mod gap;
pub mod go_event;
pub mod key;
pub mod manifest;
pub mod merge;
pub mod shard;
pub mod text;
pub mod timestamp;
pub mod value;
pub mod version;

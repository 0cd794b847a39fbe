//! What a change is, independent of SQLite and of NATS: values, versions, the merge, frames.
//!
//! Nothing in here does input or output or reads a clock; everything can be run by a simulation.

pub mod backoff;
pub(crate) mod base64;
pub mod cbor;
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

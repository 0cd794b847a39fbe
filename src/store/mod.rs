//! Where snapshots are kept: a flat folder of objects, on one of five kinds of server.
//!
//! An object is written once, under a fresh name, and then named by the manifest, the one small
//! object that is replaced. So a store needs no more than four verbs, and no locks.

use std::io::{Read, Write};

/// Why a store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{store}: there is no {name}")]
    NotFound { store: String, name: String },
    /// `store` is its kind and address, `doing` what was tried, `cause` what came of it and, where
    /// that is known, what to do. Never a secret.
    #[error("{store}: {doing}: {cause}")]
    Failed {
        store: String,
        doing: String,
        cause: String,
    },
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// A connection to a store. What breaks is not mended: the owner drops it and opens another.
///
/// Names are of letters, digits, `-`, `_` and `.`, and begin with a letter. An error of the reader
/// or writer that is handed in ends the transfer (that is how a stop or a limit of bytes gets in).
pub trait Store: Send {
    /// Kind and address for people, never a secret: `s3 http://127.0.0.1:9000/bucket/path`.
    fn address(&self) -> &str;

    /// Writes the object, or replaces it, with exactly `size` bytes of `from`, in memory that does
    /// not depend on `size`. Only after Ok does `get` find it whole; after an error `get` finds
    /// what was there before, or nothing, or (where a server cannot do better) something torn, and
    /// what was begun is cleaned up as far as the server can be reached.
    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()>;

    /// Writes the object's bytes to `into`.
    fn get(&mut self, name: &str, into: &mut dyn Write) -> Result<()>;

    /// Names of all objects, in any order; of other things in the same place as well.
    fn list(&mut self) -> Result<Vec<String>>;

    /// Removes the object; it is no error if there is none.
    fn remove(&mut self, name: &str) -> Result<()>;
}

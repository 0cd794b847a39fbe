//! Why a snapshot was not made, not fetched or not merged.

use std::io;
use std::path::{Path, PathBuf};

use crate::database::DatabaseError;
use crate::model::manifest;
use crate::store::{Store, StoreError};
use crate::stream::StreamError;

/// Why the database was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{0}")]
    /// SQLite failed, here or on the copy.
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    /// The disk failed, or the watch ended the work.
    Io(#[from] io::Error),
}

/// Why a snapshot was not made or not fetched.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    /// The store failed or could not be reached.
    Store(#[from] StoreError),
    #[error("database: {0}")]
    /// The database here failed.
    Database(#[from] DatabaseError),
    /// The object in the store is of no use.
    #[error("{store}: {name}: {cause}")]
    Bad {
        /// Address of the store, without secrets.
        store: String,
        /// Name of the object.
        name: String,
        /// Why it is of no use.
        cause: String,
    },
    /// The store belongs to a different cluster, or to a later release.
    #[error("{store}: {}: {cause}", manifest::NAME)]
    NotOurs { store: String, cause: String },
    /// The database here is damaged, and so would be copies of it.
    #[error(
        "{} is damaged, and no snapshot is made of it: {cause}. Move it away while HarmonyLite is \
         stopped: it begins anew with the newest snapshot; or put a backup in its place",
        path.display()
    )]
    Damaged { path: PathBuf, cause: String },
    /// The disk here failed, or has too little room.
    #[error("{}: {cause}", path.display())]
    Disk { path: PathBuf, cause: String },
    #[error("stopped")]
    /// The process ends.
    Stopped,
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    #[error(transparent)]
    /// The broker failed or could not be reached.
    Stream(#[from] StreamError),
    #[error(transparent)]
    /// The snapshot was not made or not fetched.
    Transfer(#[from] TransferError),
    #[error("database: {0}")]
    /// The database here failed.
    Database(#[from] DatabaseError),
    #[error("another node took over the lease: the snapshot is given up")]
    /// A different node took over the lease meanwhile.
    LeaseLost,
    #[error("{0}")]
    /// This node may not make snapshots; the text says why.
    Refused(String),
    #[error("stopped")]
    /// The process ends.
    Stopped,
}

impl From<StoreError> for RoundError {
    fn from(e: StoreError) -> Self {
        RoundError::Transfer(e.into())
    }
}

/// An error of the disk here at `path`.
pub(crate) fn disk(path: &Path, cause: impl ToString) -> TransferError {
    TransferError::Disk {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

/// The object `name` of the store is of no use, because of `cause`.
pub(super) fn bad(store: &dyn Store, name: &str, cause: impl Into<String>) -> TransferError {
    TransferError::Bad {
        store: store.address().to_owned(),
        name: name.to_owned(),
        cause: cause.into(),
    }
}

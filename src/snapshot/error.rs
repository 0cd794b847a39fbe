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
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Why a snapshot was not made or not fetched.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("database: {0}")]
    Database(#[from] DatabaseError),
    /// What the store holds is no use.
    #[error("{store}: {name}: {cause}")]
    Bad {
        store: String,
        name: String,
        cause: String,
    },
    /// The store is somebody else's, or of a later release.
    #[error("{store}: {}: {cause}", manifest::NAME)]
    NotOurs { store: String, cause: String },
    /// The database here is no use: neither are copies of it.
    #[error(
        "{} is damaged, and no snapshot is made of it: {cause}. Move it away while HarmonyLite is \
         stopped: it begins anew with the newest snapshot; or put a backup in its place",
        path.display()
    )]
    Damaged { path: PathBuf, cause: String },
    /// The disk here.
    #[error("{}: {cause}", path.display())]
    Disk { path: PathBuf, cause: String },
    #[error("stopped")]
    Stopped,
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("database: {0}")]
    Database(#[from] DatabaseError),
    #[error("another node took over the lease: the snapshot is given up")]
    LeaseLost,
    #[error("{0}")]
    Refused(String),
    #[error("stopped")]
    Stopped,
}

impl From<StoreError> for RoundError {
    fn from(e: StoreError) -> Self {
        RoundError::Transfer(e.into())
    }
}

/// Why the disk here did not do.
pub(crate) fn disk(path: &Path, cause: impl ToString) -> TransferError {
    TransferError::Disk {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

/// Why what the store holds under `name` is no use.
pub(super) fn bad(store: &dyn Store, name: &str, cause: impl Into<String>) -> TransferError {
    TransferError::Bad {
        store: store.address().to_owned(),
        name: name.to_owned(),
        cause: cause.into(),
    }
}

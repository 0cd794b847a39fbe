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
    /// SQLite failed, here or on the copy.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The disk failed, or the watch ended the work.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Why a snapshot was not made or not fetched.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The store failed or could not be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database here failed.
    #[error("database: {0}")]
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
    NotOurs {
        /// The store, as the configuration names it.
        store: String,
        /// The owner of the place.
        cause: String,
    },
    /// The database here is damaged, and so would be copies of it.
    #[error(
        "{} is damaged, and no snapshot is made of it: {cause}. Move it away while HarmonyLite is \
         stopped: it begins anew with the newest snapshot; or put a backup in its place",
        path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// SQLite's description of the damage.
        cause: String,
    },
    /// The disk here failed, or has too little room.
    #[error("{}: {cause}", path.display())]
    Disk {
        /// The file or folder that was read or written.
        path: PathBuf,
        /// The system's reason.
        cause: String,
    },
    /// The process ends.
    #[error("stopped")]
    Stopped,
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The broker failed or could not be reached.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The snapshot was not made or not fetched.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The database here failed.
    #[error("database: {0}")]
    Database(#[from] DatabaseError),
    /// A different node took over the lease meanwhile.
    #[error("another node took over the lease: the snapshot is given up")]
    LeaseLost,
    /// This node may not make snapshots; the text says why.
    #[error("{0}")]
    Refused(String),
    /// The process ends.
    #[error("stopped")]
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

//! Why something did not work with the database, and whether waiting or leaving out may help.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::database::own_tables;
use crate::model::cbor::CborError;

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("{0}")]
    Sqlite(#[source] rusqlite::Error),
    #[error("opening {path}: {source}")]
    Open {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("our tables in the database are damaged: {0}")]
    Damaged(String),
    #[error("{0} was written by a later release of HarmonyLite (format {1}): use that one")]
    LaterFormat(PathBuf, i64),
    #[error(
        "{0} has a table {1} with rows that are not HarmonyLite's, though it has the name of one \
         of its tables; nothing was changed. If nobody needs it, remove it: harmonylite -cleanup \
         takes everything whose name begins with __harmonylite__ out of a database"
    )]
    ForeignTable(PathBuf, String),
    #[error("apply_triggers names {0}, but the database has no such trigger")]
    NoSuchTrigger(String),
    #[error("{0}")]
    Unusable(String),
    #[error(
        "db_path: {0} is not the file any more that was opened: it was removed or replaced while \
         harmonylite ran; start harmonylite again, and what is there now is taken as put back"
    )]
    Replaced(PathBuf),
    #[error(
        "db_path: another file was copied over {0} while harmonylite ran; start harmonylite again, \
         and what is there now is taken as put back"
    )]
    Overwritten(PathBuf),
    #[error(
        "{0} was removed or replaced while harmonylite had the database open; what was in it alone \
         is gone. Start harmonylite again, and it goes on from what is there"
    )]
    Removed(PathBuf),
    #[error(
        "db_path: the content of {0} was put back from a backup while harmonylite ran; start \
         harmonylite again, and it goes on from there"
    )]
    RestoredInPlace(PathBuf),
    /// See [`super::Database::make_tables_again`].
    #[error(
        "tables of HarmonyLite in the database were dropped by another program: they are made again"
    )]
    Dropped,
    #[error("sync {0}: {1}")]
    Sync(PathBuf, std::io::Error),
    #[error("the row takes {0} bytes, but no more than {1} can be sent")]
    RowTooLarge(usize, usize),
    #[error("stopped")]
    Stopped,
    /// Inside only: the transaction is begun anew once this time is reserved.
    #[error("time {0} is not reserved")]
    NotReserved(i64),
}

/// Whether it is a table of ours that is not there, other than the versions of a table.
fn is_without_ours(e: &rusqlite::Error) -> bool {
    let text = e.to_string();
    let name = text
        .split_once("no such table: ")
        .map_or("", |(_, name)| name);
    let name = name.trim_start_matches("main.");
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
    own_tables::names().contains(&&name[..end.unwrap_or(name.len())])
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(e: rusqlite::Error) -> Self {
        match is_without_ours(&e) {
            true => DatabaseError::Dropped,
            false => DatabaseError::Sqlite(e),
        }
    }
}

impl From<CborError> for DatabaseError {
    fn from(e: CborError) -> Self {
        DatabaseError::Damaged(e.to_string())
    }
}

impl DatabaseError {
    /// Names the file to which it happened, before anybody has heard of that.
    pub fn of_file(self, path: &Path) -> Self {
        match self {
            DatabaseError::Sqlite(source) => DatabaseError::Open {
                path: path.to_owned(),
                source,
            },
            other => other,
        }
    }

    /// Whether waiting may help: a full disk, an error of the device, somebody else's lock.
    pub fn is_temporary(&self) -> bool {
        let code = match self {
            DatabaseError::Sync(..) => return true,
            DatabaseError::Sqlite(e) | DatabaseError::Open { source: e, .. } => {
                e.sqlite_error_code()
            }
            DatabaseError::Dropped => return true, // the publisher makes them again
            _ => None,
        };
        use ErrorCode::*;
        matches!(
            code,
            Some(
                DiskFull
                    | SystemIoFailure
                    | DatabaseBusy
                    | DatabaseLocked
                    | CannotOpen
                    | OutOfMemory
            )
        )
    }
}

pub type Result<T> = std::result::Result<T, DatabaseError>;

/// Whether one row or one table is at fault, not the database: a constraint, the class of a STRICT
/// column, a function that fails or is not known here, an index of the application's that is
/// damaged.
pub(crate) fn is_unfit(e: &rusqlite::Error) -> bool {
    use ErrorCode::*;
    let code = match e {
        rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        e => e.sqlite_error_code(),
    };
    let is_damaged_index = |f: &rusqlite::ffi::Error| f.extended_code == CORRUPT_VTAB;
    matches!(
        code,
        Some(ConstraintViolation | TypeMismatch | TooBig | Unknown)
    ) || e.sqlite_error().is_some_and(is_damaged_index)
}

/// Whether two rows would have the same values under a UNIQUE index.
pub(crate) fn is_unique_violation(e: &rusqlite::Error) -> bool {
    matches!(e, rusqlite::Error::SqliteFailure(f, _) if f.extended_code == UNIQUE_VIOLATION)
}

/// SQLITE_CONSTRAINT_UNIQUE, <https://www.sqlite.org/rescode.html>.
const UNIQUE_VIOLATION: i32 = 2067;

/// SQLITE_CORRUPT_VTAB: the content of a virtual table does not fit together.
const CORRUPT_VTAB: i32 = 267;

pub(super) fn is_busy(e: &rusqlite::Error) -> bool {
    matches!(
        e.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

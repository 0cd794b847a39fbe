//! Errors of the database, and whether waiting or leaving a row out may help.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::database::own_tables;
use crate::model::cbor::CborError;

/// Reason why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("{0}")]
    /// SQLite returned an error.
    Sqlite(#[source] rusqlite::Error),
    #[error("opening {path}: {source}")]
    /// SQLite returned an error for the file named here.
    Open {
        /// The file that SQLite was to open or use.
        path: PathBuf,
        /// The error that SQLite returned.
        source: rusqlite::Error,
    },
    #[error("our tables in the database are damaged: {0}")]
    /// HarmonyLite's own tables hold something that they cannot hold.
    Damaged(String),
    #[error("{0} was written by a later release of HarmonyLite (format {1}): use that one")]
    /// A later release wrote the file: its path, and the number of its format.
    LaterFormat(PathBuf, i64),
    #[error(
        "{0} has a table {1} with rows that are not HarmonyLite's and with the name of one of its \
         tables; nothing was changed. If nobody needs the table, remove it: harmonylite -cleanup \
         takes everything whose name begins with __harmonylite__ out of a database"
    )]
    /// The file (its path) has a table of the application with the name of an own table.
    ForeignTable(PathBuf, String),
    #[error("apply_triggers names {0}, but the database has no such trigger")]
    /// `apply_triggers` names this trigger, which the database does not have.
    NoSuchTrigger(String),
    #[error("{0}")]
    /// The configuration or the schema asks for something that cannot be done; the text says why.
    Unusable(String),
    #[error(
        "db_path: {0} was removed or replaced while harmonylite ran; start harmonylite again: it \
         takes the file that is there now as a restored backup"
    )]
    /// The file at this path was removed or replaced while it was open here.
    Replaced(PathBuf),
    #[error(
        "db_path: a different file was copied over {0} while harmonylite ran; start harmonylite \
         again: it takes that file as a restored backup"
    )]
    /// Another file was copied over the file at this path while it was open here.
    Overwritten(PathBuf),
    #[error(
        "{0} was removed or replaced while harmonylite had the database open; changes that were \
         in it alone are lost. Start harmonylite again: it goes on from the files that are there"
    )]
    /// The file at this path, a `-wal` or `-shm`, was removed or replaced while it was open here.
    Removed(PathBuf),
    #[error(
        "db_path: the content of {0} was restored from a backup while harmonylite ran; start \
         harmonylite again: it goes on from there"
    )]
    /// A backup was restored into the file at this path while it was open here.
    RestoredInPlace(PathBuf),
    /// Another program dropped own tables, see [`super::Database::make_tables_again`].
    #[error(
        "another program dropped tables of HarmonyLite from the database: they are created again"
    )]
    Dropped,
    #[error("sync {0}: {1}")]
    /// Syncing the file at this path to the disk failed.
    Sync(PathBuf, std::io::Error),
    #[error("the row takes {0} bytes, but no more than {1} can be sent")]
    /// A row is too large to be sent: its bytes, and the most that can be sent.
    RowTooLarge(usize, usize),
    #[error("stopped")]
    /// The daemon is being stopped, so the work was given up.
    Stopped,
    /// Used inside this crate only: the transaction begins anew once this time, in unix
    /// milliseconds, is reserved.
    #[error("time {0} is not reserved")]
    NotReserved(i64),
}

/// Whether SQLite misses an own table, other than the versions of a replicated table.
fn is_without_ours(e: &rusqlite::Error) -> bool {
    let text = e.to_string();
    let name = text
        .split_once("no such table: ")
        .map_or("", |(_, name)| name);
    let name = name.trim_start_matches("main.");
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
    let name = &name[..end.unwrap_or(name.len())];
    name == own_tables::LIVES || own_tables::names().contains(&name)
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
    /// Names the file in an error of SQLite; for use before the error is reported.
    pub fn of_file(self, path: &Path) -> Self {
        match self {
            DatabaseError::Sqlite(source) => DatabaseError::Open {
                path: path.to_owned(),
                source,
            },
            other => other,
        }
    }

    /// Whether waiting may help: after a full disk, an error of the device, or a lock that another
    /// connection holds.
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

    /// Whether the disk or the memory here failed. Waiting may help, but a person has to know.
    pub fn is_of_machine(&self) -> bool {
        match self {
            DatabaseError::Dropped => false,
            DatabaseError::Sqlite(e) | DatabaseError::Open { source: e, .. } if is_busy(e) => false,
            other => other.is_temporary(),
        }
    }
}

/// Result of an operation on the database.
pub type Result<T> = std::result::Result<T, DatabaseError>;

/// Whether one row or one table is at fault, not the database: a constraint, the class of a STRICT
/// column, a function that fails or is not known here, a damaged index of the application.
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

/// SQLITE_CORRUPT_VTAB: the content of a virtual table is inconsistent.
const CORRUPT_VTAB: i32 = 267;

pub(super) fn is_busy(e: &rusqlite::Error) -> bool {
    matches!(
        e.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

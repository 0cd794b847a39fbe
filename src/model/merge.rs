//! The merge: how two states of one row become one.
//!
//! A row's state is the newest tombstone it has seen (the *floor*) and, per column, a version and
//! a value. Joining takes the larger floor and, column by column, the larger version; columns at
//! or below the floor are dead. Each is a maximum, so the join is commutative, associative and
//! idempotent (a join-semilattice, Shapiro et al., "Conflict-free Replicated Data Types", 2011):
//! any order and any repetition of changes gives the same state.
//!
//! Nodes store the compact form [`RowState`]: one version for the row, and exceptions for columns
//! that differ.
//!
//! Two writes may carry one version: after a power cut, or on a cloned SD card. No clock tells
//! which one is newer, so the content decides, the same on all nodes: a tombstone wins against a
//! row, because a column must be above the floor, and of two values of a column the larger wins.

use std::collections::BTreeMap;

use crate::model::value::Value;
use crate::model::version::{HLC_BEFORE, Version};
use crate::mutation::{self, Mutation};

/// Key of the floor among the exceptions. It has a NUL, which SQLite's names cannot contain.
pub const FLOOR: &str = "\0floor";

/// Versions of the columns, by name in lower case, that differ from the row's version.
pub type Exceptions = BTreeMap<String, Version>;

/// The versions of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowState {
    /// The highest version in the row: the tombstone's if it is deleted.
    pub version: Version,
    /// Whether the row is deleted, so that `version` is its tombstone.
    pub deleted: bool,
    /// Versions of columns that differ from the row's, and the floor under [`FLOOR`].
    pub exceptions: Exceptions,
}

impl RowState {
    /// The newest tombstone this state knows of.
    pub fn floor(&self) -> Version {
        if self.deleted {
            return self.version;
        }
        self.exceptions
            .get(FLOOR)
            .copied()
            .unwrap_or(Version::NEVER)
    }

    /// A version above the tombstone of a live row, and not above any write of its columns.
    pub fn lowest(&self) -> Version {
        let floor = self.floor();
        let above = Version {
            node: floor.node.saturating_add(1),
            ..floor
        };
        // Node 0 is that of demoted rows.
        above.max(Version {
            hlc: HLC_BEFORE,
            node: 1,
        })
    }

    /// The state of a live row whose content is not what was written: any version that arrives is
    /// above it.
    pub fn lowered(&self) -> RowState {
        let floor = self.exceptions.get(FLOOR);
        RowState {
            version: self.lowest(),
            deleted: false,
            exceptions: floor.map(|v| (FLOOR.to_owned(), *v)).into_iter().collect(),
        }
    }

    /// Version of a column of a live row, named in lower case.
    pub fn column(&self, name: &str) -> Version {
        self.exceptions.get(name).copied().unwrap_or(self.version)
    }
}

/// One column of the table here, with the values on both sides.
#[derive(Debug, Clone, Copy)]
pub struct MergeColumn<'a> {
    /// Name in lower case.
    pub name: &'a str,
    /// The value of the row here. None if there is no row, or if the column was added after the
    /// row's version was learnt and still has its default.
    pub local: Option<Value<'a>>,
    /// The value that arrives; none if the change does not carry the column.
    pub incoming: Option<Value<'a>>,
}

/// The action that brings the row here to the joined state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The state has not changed.
    Nothing,
    /// Only the versions change.
    VersionOnly,
    /// Delete the row.
    Delete,
    /// Write these columns (indexes) with their incoming values. A row that is missing begins with
    /// the defaults of its columns.
    Write(Vec<usize>),
    /// Like `Write`, but the other columns begin again from their defaults, except those in `keep`.
    Rebuild {
        /// Columns (indexes) that get their incoming values.
        write: Vec<usize>,
        /// Columns (indexes) that keep their values.
        keep: Vec<usize>,
    },
}

/// Joins the state `incoming` into the `local` one, if there is one. Returns the joined state, and
/// the action that brings the row here to it.
pub fn join(
    local: Option<&RowState>,
    incoming: &RowState,
    columns: &[MergeColumn<'_>],
) -> (RowState, Action) {
    let floor = incoming
        .floor()
        .max(local.map_or(Version::NEVER, RowState::floor));
    let lives = |s: &&RowState| {
        let tied = s.version == floor && mutation::is(Mutation::TombstoneLosesTies);
        !s.deleted && (s.version > floor || tied)
    };
    let (here, there) = (local.filter(lives), Some(incoming).filter(lives));
    let row_is_here = local.is_some_and(|s| !s.deleted);
    let Some(version) = here.map(|s| s.version).max(there.map(|s| s.version)) else {
        let state = RowState {
            version: floor,
            deleted: true,
            exceptions: Exceptions::new(),
        };
        let action = match (row_is_here, local == Some(&state)) {
            (true, _) => Action::Delete,
            (false, true) => Action::Nothing,
            (false, false) => Action::VersionOnly,
        };
        return (state, action);
    };
    let mut exceptions = Exceptions::new();
    let (mut write, mut keep, mut reset) = (Vec::new(), Vec::new(), false);
    for (i, column) in columns.iter().enumerate() {
        let alive = |s: Option<&RowState>, value: Option<Value<'_>>| {
            s.filter(|_| value.is_some())
                .map(|s| s.column(column.name))
                .filter(|v| *v > floor)
        };
        let mine = alive(here, column.local);
        let theirs = alive(there, column.incoming);
        let larger = || match (column.local, column.incoming) {
            (Some(mine), Some(theirs)) => {
                theirs.total_cmp(&mine).is_gt() && !mutation::is(Mutation::NoTieBreak)
            }
            _ => false,
        };
        let taken = theirs.is_some() && mutation::is(Mutation::NoVersionCompare);
        if taken || theirs > mine || (theirs.is_some() && theirs == mine && larger()) {
            write.push(i);
        } else if mine.is_some() {
            keep.push(i);
        } else {
            reset |= column.local.is_some();
        }
        let newest = mine.max(theirs).unwrap_or(Version::NEVER);
        if newest != version {
            exceptions.insert(column.name.to_owned(), newest);
        }
    }
    if floor != Version::NEVER {
        exceptions.insert(FLOOR.to_owned(), floor);
    }
    let state = RowState {
        version,
        deleted: false,
        exceptions,
    };
    let action = if row_is_here && (here.is_none() || reset) {
        Action::Rebuild { write, keep }
    } else if !write.is_empty() || !row_is_here {
        Action::Write(write)
    } else if local == Some(&state) {
        Action::Nothing
    } else {
        Action::VersionOnly
    };
    (state, action)
}

#[cfg(test)]
mod tests;

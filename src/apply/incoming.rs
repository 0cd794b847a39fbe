//! A row on its way into the merge.

use std::collections::BTreeMap;

use crate::apply::was::OldKey;
use crate::model::birth::Birth;
use crate::model::frame::{Row, WAS};
use crate::model::merge::{Exceptions, FLOOR, RowState};
use crate::model::value::OwnedValue;
use crate::model::version::Version;

/// A row from another node as the merge sees it: from a frame, from held entries, or both.
#[derive(Debug, Clone, Default)]
pub(crate) struct Incoming {
    /// Birth of the row.
    pub birth: Birth,
    /// It came as a row from before, and is the life without a birth here.
    pub is_taken_in: bool,
    /// Version of the newest tombstone.
    pub floor: Option<Version>,
    /// Version of the row itself; none if only columns are held.
    pub row: Option<Version>,
    /// A held row is unsent, or must be published again, up to this version. This node publishes it
    /// once it fits.
    pub unsent: Option<Version>,
    /// The key that the row had before, if its own does not tell that.
    pub was: Option<OldKey>,
    /// Version and value by column name (lower case).
    pub columns: BTreeMap<String, (Version, OwnedValue)>,
}

impl Incoming {
    pub(crate) fn from_frame(row: &Row<'_>, columns: &[&str]) -> Self {
        let mut incoming = Incoming {
            birth: row.birth,
            ..Incoming::default()
        };
        if row.deleted {
            incoming.floor = Some(row.version);
            return incoming;
        }
        incoming.row = Some(row.version);
        // By column, or a row of many columns with many versions would take their product.
        let mut own = vec![None; columns.len() + 1];
        for (column, version) in row.exceptions.iter().rev() {
            own[*column] = Some(*version);
        }
        incoming.floor = own[columns.len()];
        for (i, (column, value)) in columns.iter().zip(&row.values).enumerate() {
            let version = own[i].unwrap_or(row.version);
            if version == Version::NEVER && *column == WAS {
                incoming.was = OldKey::decode(*value);
            }
            if version != Version::NEVER {
                incoming.add_column(column.to_ascii_lowercase(), version, (*value).to_owned());
            }
        }
        incoming
    }

    /// Whether it contains anything.
    pub(crate) fn is_some(&self) -> bool {
        self.row.is_some() || self.floor.is_some() || !self.columns.is_empty()
    }

    /// The highest version in it.
    pub(crate) fn newest(&self) -> Option<Version> {
        let columns = self.columns.values().map(|(version, _)| Some(*version));
        columns.chain([self.row, self.floor]).max().flatten()
    }

    /// Whether `version` is one of the versions in it that this node must publish.
    pub(crate) fn is_to_be_sent(&self, version: Version) -> bool {
        let is_carried = || self.columns.values().any(|(v, _)| *v == version);
        self.unsent == Some(version) || self.unsent > Some(version) && is_carried()
    }

    /// Adds a column, unless a newer version of it is there; of one version the larger value wins.
    pub(crate) fn add_column(&mut self, lower: String, version: Version, value: OwnedValue) {
        let newer = |known: &(Version, OwnedValue)| {
            let order = version.cmp(&known.0);
            order
                .then_with(|| value.borrow().total_cmp(&known.1.borrow()))
                .is_gt()
        };
        if self.columns.get(&lower).is_none_or(newer) {
            self.columns.insert(lower, (version, value));
        }
    }

    /// Merges another incoming form of the same row into this one.
    pub(crate) fn absorb(&mut self, other: Incoming) {
        self.floor = self.floor.max(other.floor);
        self.row = self.row.max(other.row);
        self.unsent = self.unsent.max(other.unsent);
        self.was = self.was.take().or(other.was);
        for (column, (version, value)) in other.columns {
            self.add_column(column, version, value);
        }
    }

    /// The same in the compact form that the merge takes.
    pub(crate) fn state(&self) -> RowState {
        let newest = self.columns.values().map(|(v, _)| *v).max();
        let floor = self.floor.unwrap_or(Version::NEVER);
        let Some(version) = self.row.max(newest).filter(|v| *v > floor) else {
            return RowState {
                version: floor,
                deleted: true,
                exceptions: Exceptions::new(),
            };
        };
        let own = self.columns.iter().filter(|(_, (v, _))| *v != version);
        let mut exceptions: Exceptions = own.map(|(c, (v, _))| (c.clone(), *v)).collect();
        exceptions.extend(self.floor.map(|f| (FLOOR.to_owned(), f)));
        RowState {
            version,
            deleted: false,
            exceptions,
        }
    }
}

//! A row on its way into the merge.

use std::collections::BTreeMap;

use crate::model::frame::Row;
use crate::model::merge::{Exceptions, FLOOR, State};
use crate::model::value::OwnedValue;
use crate::model::version::Version;

/// A row from elsewhere: from a frame, from what is held, or both; as the merge sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Incoming {
    /// Newest tombstone.
    pub floor: Option<Version>,
    /// Version of the row itself; none for columns that are held alone.
    pub row: Option<Version>,
    /// Held: up to this version it is not sent, or to be sent again. It is ours to send once it
    /// fits.
    pub unsent: Option<Version>,
    /// By lower-case name.
    pub columns: BTreeMap<String, (Version, OwnedValue)>,
}

impl Incoming {
    pub(crate) fn from_frame(row: &Row<'_>, columns: &[&str]) -> Self {
        let mut incoming = Incoming::default();
        if row.deleted {
            incoming.floor = Some(row.version);
            return incoming;
        }
        incoming.row = Some(row.version);
        let own = |i: usize| {
            row.exceptions
                .iter()
                .find(|(c, _)| *c == i)
                .map(|(_, v)| *v)
        };
        incoming.floor = own(columns.len());
        for (i, (column, value)) in columns.iter().zip(&row.values).enumerate() {
            let version = own(i).unwrap_or(row.version);
            if version != Version::NEVER {
                incoming.add_column(column.to_ascii_lowercase(), version, (*value).to_owned());
            }
        }
        incoming
    }

    /// Whether it says anything.
    pub(crate) fn is_some(&self) -> bool {
        self.row.is_some() || self.floor.is_some() || !self.columns.is_empty()
    }

    /// The highest version in it.
    pub(crate) fn newest(&self) -> Option<Version> {
        let columns = self.columns.values().map(|(version, _)| Some(*version));
        columns.chain([self.row, self.floor]).max().flatten()
    }

    /// Whether that version is one of those in it that are to be sent.
    pub(crate) fn is_to_be_sent(&self, version: Version) -> bool {
        let is_carried = || self.columns.values().any(|(v, _)| *v == version);
        self.unsent == Some(version) || self.unsent > Some(version) && is_carried()
    }

    /// The larger of two values of a column wins, as everywhere.
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

    /// Takes in what else is known of the row.
    pub(crate) fn absorb(&mut self, other: Incoming) {
        self.floor = self.floor.max(other.floor);
        self.row = self.row.max(other.row);
        self.unsent = self.unsent.max(other.unsent);
        for (column, (version, value)) in other.columns {
            self.add_column(column, version, value);
        }
    }

    /// In the compact form.
    pub(crate) fn state(&self) -> State {
        let newest = self.columns.values().map(|(v, _)| *v).max();
        let floor = self.floor.unwrap_or(Version::NEVER);
        let Some(version) = self.row.max(newest).filter(|v| *v > floor) else {
            return State {
                version: floor,
                deleted: true,
                exceptions: Exceptions::new(),
            };
        };
        let own = self.columns.iter().filter(|(_, (v, _))| *v != version);
        let mut exceptions: Exceptions = own.map(|(c, (v, _))| (c.clone(), *v)).collect();
        exceptions.extend(self.floor.map(|f| (FLOOR.to_owned(), f)));
        State {
            version,
            deleted: false,
            exceptions,
        }
    }
}

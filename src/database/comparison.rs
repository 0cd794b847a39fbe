//! Notes that a table is to be compared with its versions, why, and how far that has come.
//! [`crate::capture`] does the comparison itself.

use serde::{Deserialize, Serialize};

use crate::database::table::Shape;

/// Progress of the comparison of a table with its versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    pub phase: Phase,
    pub cause: CompareReason,
    /// Key (as [`crate::model::key::key_bytes`]) up to which the phase is done.
    pub after: Option<Vec<u8>>,
    /// The table was renamed. Nothing of it was ever sent under its new name, not even deletes.
    #[serde(default)]
    pub is_renamed: bool,
}

/// Reasons for comparing a table, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CompareReason {
    /// Columns were removed, so the hashes of the contents are different.
    Dropped,
    /// Columns were added. The content of a renamed column was never sent under its new name; it is
    /// sent with the versions that the rows have.
    Added,
    /// The rows are older than HarmonyLite in this database: they get the lowest version.
    Before,
    /// The same, and columns came or went before the comparison was over: a row that has a version
    /// and differs was not necessarily written.
    BeforeRebuilt,
    /// Triggers were not in place.
    Unwatched,
    /// Triggers were not in place, and columns came or went: a row that differs was not necessarily
    /// written.
    Rebuilt,
    /// The key changed, so the versions are gone. None of them had an hlc above this.
    Rekeyed(i64),
    /// The key changed, and the new rows lack the old key: they are matched by content. The value
    /// is the time, in unix milliseconds, of the last write that was not captured, if there was
    /// one.
    Matched(Option<i64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Computing the rests by which rows are matched with former rows.
    Former,
    /// Checking for each row whether its version is right.
    Rows,
    /// Checking for each live version whether its row exists.
    Versions,
    /// Checking for each live former row whether it became a row.
    LeftOut,
}

impl Compare {
    pub fn start(cause: CompareReason) -> Self {
        Compare {
            phase: Phase::Rows,
            cause,
            after: None,
            is_renamed: false,
        }
    }

    /// The comparison of a table whose rows are matched by content: its first phase computes the
    /// rests.
    pub fn matched(written_ms: Option<i64>) -> Self {
        Compare {
            phase: Phase::Former,
            ..Compare::start(CompareReason::Matched(written_ms))
        }
    }

    /// Starts again for a different cause.
    fn anew(under_way: Option<&Compare>, cause: CompareReason) -> Self {
        let is_renamed = under_way.is_some_and(|c| c.is_renamed);
        match under_way {
            Some(under_way) if under_way.phase == Phase::Former => Compare {
                cause,
                ..under_way.clone()
            },
            _ => Compare {
                is_renamed,
                ..Compare::start(cause)
            },
        }
    }

    /// The same comparison, of a table that was renamed.
    pub fn renamed(under_way: Option<Compare>) -> Self {
        let cause = under_way.map_or(CompareReason::Dropped, |c| c.cause);
        Compare {
            is_renamed: true,
            ..Compare::start(cause)
        }
    }
}

impl Shape {
    /// Starts a comparison, or the one under way again, if columns came or went.
    pub fn compare_anew(&self, known: &Shape, under_way: Option<Compare>) -> Option<Compare> {
        let lacks = |shape: &Shape, name: &str| !shape.columns.iter().any(|(c, _)| c == name);
        let added = self.columns.iter().any(|(c, _)| lacks(known, c));
        let dropped = known.columns.iter().any(|(c, _)| lacks(self, c));
        let cause = match (added, dropped) {
            (false, false) => return under_way,
            (true, _) => CompareReason::Added,
            (false, true) => CompareReason::Dropped,
        };
        let cause = match under_way.as_ref().map(|c| c.cause) {
            Some(CompareReason::Unwatched) => CompareReason::Rebuilt,
            Some(CompareReason::Before) => CompareReason::BeforeRebuilt,
            under_way => cause.max(under_way.unwrap_or(cause)),
        };
        Some(Compare::anew(under_way.as_ref(), cause))
    }
}

impl Compare {
    /// The same comparison, after triggers were found missing.
    pub fn after(under_way: Option<Compare>, missing: MissedEvents) -> Option<Compare> {
        let cause = under_way.as_ref().map(|c| c.cause);
        match missing {
            MissedEvents::None => under_way,
            // Every write was seen, but rows may have been evicted unseen: they are missing.
            MissedEvents::OfEvictions => match under_way {
                Some(compare) if compare.phase != Phase::Versions => Some(compare),
                under_way => Some(Compare {
                    phase: Phase::Versions,
                    ..Compare::anew(
                        under_way.as_ref(),
                        cause.unwrap_or(CompareReason::Unwatched),
                    )
                }),
            },
            MissedEvents::OfWrites => {
                let cause = match cause {
                    Some(
                        CompareReason::Added | CompareReason::Dropped | CompareReason::Rebuilt,
                    ) => CompareReason::Rebuilt,
                    Some(
                        cause @ (CompareReason::Before
                        | CompareReason::BeforeRebuilt
                        | CompareReason::Rekeyed(_)
                        | CompareReason::Matched(_)),
                    ) => cause,
                    Some(CompareReason::Unwatched) | None => CompareReason::Unwatched,
                };
                Some(Compare::anew(under_way.as_ref(), cause))
            }
        }
    }
}

/// Kind of triggers that were not in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MissedEvents {
    None,
    OfEvictions,
    OfWrites,
}

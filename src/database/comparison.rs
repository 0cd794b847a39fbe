//! That a table is to be compared with its versions, why, and how far that has come. The comparing
//! itself is done by [`crate::capture`].

use serde::{Deserialize, Serialize};

use crate::database::table::Shape;

/// How far the comparison of a table with its versions has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    pub phase: Phase,
    pub cause: CompareReason,
    /// Key (as [`crate::model::key::key_bytes`]) up to which the phase is done.
    pub after: Option<Vec<u8>>,
    /// The table has another name, under which nothing of it was ever sent, deletes included.
    #[serde(default)]
    pub is_renamed: bool,
}

/// Why a table is compared, the weakest cause first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CompareReason {
    /// Columns are gone: the contents' hashes are others.
    Dropped,
    /// Columns are new. What a renamed one holds was never sent under its new name; it is sent with
    /// the versions that the rows have.
    Added,
    /// The rows were there before HarmonyLite was: they are given the lowest version.
    Before,
    /// Triggers were not in place.
    Unwatched,
    /// The same, and columns came or went: a row that differs need not have been written.
    Rebuilt,
    /// The key is of another kind, so the versions are gone. None of them had an hlc above this.
    Rekeyed(i64),
    /// The same, and the old key is not in the new rows: they are matched by content. Unix
    /// milliseconds when some were written last that were not captured, if there were such.
    Matched(Option<i64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Working out by what the rows are to be matched with what they were.
    Former,
    /// Looking at rows: are their versions right?
    Rows,
    /// Looking at live versions: are their rows there?
    Versions,
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

    /// Of a table whose rows are matched by content, once it is known by what.
    pub fn matched(written_ms: Option<i64>) -> Self {
        Compare {
            phase: Phase::Former,
            ..Compare::start(CompareReason::Matched(written_ms))
        }
    }

    /// From the start again, for another cause.
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

    /// The same comparison, of a table that has another name.
    pub fn renamed(under_way: Option<Compare>) -> Self {
        let cause = under_way.map_or(CompareReason::Dropped, |c| c.cause);
        Compare {
            is_renamed: true,
            ..Compare::start(cause)
        }
    }
}

impl Shape {
    /// A comparison under way begins anew when columns came or went.
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
            under_way => cause.max(under_way.unwrap_or(cause)),
        };
        Some(Compare::anew(under_way.as_ref(), cause))
    }
}

impl Compare {
    /// The same comparison, now that triggers were found that were not in place.
    pub fn after(under_way: Option<Compare>, missing: Missing) -> Option<Compare> {
        let cause = under_way.as_ref().map(|c| c.cause);
        match missing {
            Missing::None => under_way,
            // Every write was seen, but evictions may not have been: rows that are gone.
            Missing::OfEvictions => match under_way {
                Some(compare) if compare.phase != Phase::Versions => Some(compare),
                under_way => Some(Compare {
                    phase: Phase::Versions,
                    ..Compare::anew(
                        under_way.as_ref(),
                        cause.unwrap_or(CompareReason::Unwatched),
                    )
                }),
            },
            Missing::OfWrites => {
                let cause = match cause {
                    Some(
                        CompareReason::Added | CompareReason::Dropped | CompareReason::Rebuilt,
                    ) => CompareReason::Rebuilt,
                    Some(
                        cause @ (CompareReason::Before
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

/// Triggers that were not in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missing {
    None,
    OfEvictions,
    OfWrites,
}

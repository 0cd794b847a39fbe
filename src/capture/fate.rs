//! What the change log says about one row, where SQLite may choose the key: whether the row that is
//! there now is the same as before.

use std::collections::HashMap;

use crate::capture::ChangeEvidence;
use crate::database::triggers::{DELETE, GIVEN, INSERT, MAYBE};
use crate::mutation::{self, Mutation};

/// The kinds of a row's entries in the change log, taken in their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    /// An insert under a given number is about to come.
    is_given: bool,
    /// The row was deleted, or may have been evicted, and nothing was inserted since.
    has_ended: bool,
    /// The last insert brought a row that is not the one from before.
    is_new: bool,
    last: Last,
    /// A REPLACE may have evicted the row.
    is_evicted: bool,
    /// Only a row that the application deleted kept the row out of the table.
    is_hidden: bool,
}

/// The last insert or delete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Last {
    #[default]
    None,
    Inserted {
        given: bool,
    },
    Deleted,
}

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Became {
    Nothing,
    /// The row that was shown is dead.
    Dies,
    /// It has new values, or none that differ.
    Changes,
    /// It is dead if there was one, and a new row is there.
    IsBorn {
        given: bool,
    },
}

impl Fate {
    /// The row was deleted with the one that kept it out of the table.
    pub(crate) fn hidden() -> Self {
        Fate {
            is_hidden: true,
            ..Fate::default()
        }
    }

    /// Takes the next entry of the row.
    pub(crate) fn add(&mut self, kind: i64) {
        match kind {
            GIVEN => self.is_given = true,
            // The insert that gave the number was ignored, as OR IGNORE does. A REPLACE under
            // `recursive_triggers` leaves the same entries, and counts as a delete and an insert.
            DELETE => {
                (self.is_given, self.has_ended) = (false, true);
                self.last = Last::Deleted;
            }
            MAYBE => (self.has_ended, self.is_evicted) = (true, true),
            INSERT => {
                let given = self.is_given;
                // SQLite chooses a number only if no row has it.
                self.is_new |= self.has_ended || !given;
                self.last = Last::Inserted { given };
                (self.is_given, self.has_ended) = (false, false);
            }
            _ => self.is_given = false,
        }
    }

    /// What a later part of the log must know of this one, if anything.
    pub(crate) fn carried(self) -> Option<Fate> {
        let is_evicted = self.is_evicted;
        (self.is_given || is_evicted).then_some(Fate {
            is_given: self.is_given,
            has_ended: is_evicted,
            is_evicted,
            ..Fate::default()
        })
    }

    /// What became of the row, if one was shown, or now that one is there.
    pub(crate) fn verdict(self, why: ChangeEvidence, has_row: bool, is_shown: bool) -> Became {
        let ended = match is_shown || self.is_hidden {
            true => Became::Dies,
            false => Became::Nothing,
        };
        match (has_row, self.last) {
            (false, _) => ended,
            (true, _) if why == ChangeEvidence::Maybe => Became::Nothing,
            // The log was cut: the insert follows.
            (true, Last::Deleted) => ended,
            (true, Last::Inserted { given })
                if !is_shown || self.is_new && !mutation::is(Mutation::DeleteAndInsertIsUpdate) =>
            {
                Became::IsBorn { given }
            }
            (true, _) if is_shown => Became::Changes,
            // Found by comparison, or noted by triggers that tell no kinds.
            (true, _) => Became::IsBorn { given: true },
        }
    }
}

/// What the captured part of the change log says about the rest of it, until the log is empty.
#[derive(Debug, Default)]
pub(crate) struct Fates {
    now: Carried,
    /// The same before the transaction under way.
    committed: Carried,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Carried {
    /// By table id and key.
    rows: HashMap<(i64, Vec<u8>), Fate>,
    /// Whether the log was empty since the start. Until then nobody knows what was captured of it:
    /// any row may have been evicted, so each insert is that of a new row.
    is_all: bool,
}

impl Fates {
    pub(super) fn take(&mut self, row: &(i64, Vec<u8>)) -> Fate {
        let carried = self.now.rows.remove(row).unwrap_or_default();
        Fate {
            has_ended: carried.has_ended || !self.now.is_all,
            ..carried
        }
    }

    pub(super) fn carry(&mut self, row: (i64, Vec<u8>), fate: Fate) {
        self.now.rows.insert(row, fate);
    }

    /// The log is empty.
    pub(super) fn clear(&mut self) {
        self.now.rows.clear();
        self.now.is_all = true;
    }

    /// The transaction is committed.
    pub(crate) fn keep(&mut self) {
        if self.now != self.committed {
            self.committed.clone_from(&self.now);
        }
    }

    /// The transaction is undone.
    pub(crate) fn roll_back(&mut self) {
        self.now.clone_from(&self.committed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::triggers::REAL;

    fn fate(kinds: &[i64]) -> Fate {
        let mut fate = Fate::default();
        kinds.iter().for_each(|kind| fate.add(*kind));
        fate
    }

    #[test]
    fn a_transaction_that_is_undone_takes_nothing() {
        let (mut fates, row) = (Fates::default(), (1, vec![1]));
        assert!(fates.take(&row).has_ended);
        fates.clear();
        fates.carry(row.clone(), fate(&[GIVEN]));
        fates.keep();
        assert_eq!(fates.take(&row), fate(&[GIVEN]));
        fates.roll_back();
        assert_eq!(fates.take(&row), fate(&[GIVEN]));
        fates.keep();
        fates.roll_back();
        assert_eq!(fates.take(&row), Fate::default());
    }

    #[test]
    fn kinds_of_changes_tell_their_fate() {
        let born = |given| Became::IsBorn { given };
        let same = Became::Changes;
        for (kinds, has_row, is_shown, expected) in [
            (&[INSERT][..], true, false, born(false)),
            (&[GIVEN, INSERT], true, false, born(true)),
            (&[GIVEN, INSERT], true, true, same),
            (&[GIVEN, DELETE, INSERT], true, true, born(false)),
            (&[GIVEN, DELETE, GIVEN, INSERT], true, true, born(true)),
            (&[GIVEN, REAL], true, true, same),
            (&[GIVEN], true, true, same),
            (&[REAL], true, true, same),
            (&[REAL], true, false, born(true)),
            (&[DELETE], false, true, Became::Dies),
            (&[INSERT, DELETE], false, false, Became::Nothing),
            (&[DELETE, INSERT], true, true, born(false)),
            (&[DELETE, GIVEN, INSERT, REAL], true, true, born(true)),
            (&[DELETE, INSERT, GIVEN, INSERT], true, true, born(true)),
            (
                &[GIVEN, REAL, DELETE, GIVEN, INSERT],
                true,
                true,
                born(true),
            ),
            (&[INSERT], true, true, born(false)),
            (&[MAYBE, GIVEN, INSERT], true, true, born(true)),
            // The log was cut between the delete and the insert.
            (&[DELETE], true, true, Became::Dies),
            (&[DELETE], true, false, Became::Nothing),
        ] {
            let verdict = fate(kinds).verdict(ChangeEvidence::Real, has_row, is_shown);
            assert_eq!(verdict, expected, "{kinds:?} {has_row} {is_shown}");
        }
        // The log is cut elsewhere: what came before counts.
        let rest = |kinds: &[i64]| {
            let mut rest = fate(kinds).carried().unwrap_or_default();
            rest.add(INSERT);
            rest.verdict(ChangeEvidence::Real, true, true)
        };
        assert_eq!(rest(&[GIVEN]), same);
        assert_eq!(rest(&[MAYBE, GIVEN]), born(true));
        assert_eq!(rest(&[REAL]), born(false));
        let maybe = fate(&[MAYBE]);
        let verdict = |has_row, is_shown| maybe.verdict(ChangeEvidence::Maybe, has_row, is_shown);
        assert_eq!(verdict(true, true), Became::Nothing);
        assert_eq!(verdict(false, true), Became::Dies);
    }
}

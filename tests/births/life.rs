//! Lives: the rows that a number of a table stands for, and the join of two states of one life.

use std::collections::BTreeMap;

/// hlc and node.
pub type Version = (u64, u32);

/// Below every version: a number that was never moved.
pub const NEVER: Version = (0, 0);

/// An acknowledged insert of some application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Insert {
    /// In the file before the node was: equal on all nodes, or of one node alone.
    Before(u32, Option<usize>),
    /// A row that every application inserts with the same values: by number, and which of two.
    Seed(u32, usize),
    /// Any other, by its count.
    Own(u32),
}

/// The values of a row of the numbered table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub insert: Insert,
    pub edit: u32,
    /// Value in a UNIQUE column.
    pub unique: Option<char>,
}

/// Tells the lives of one number apart; it never changes. The values stand for their hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Birth {
    /// The node assigned no births then.
    None,
    /// In the file before the node was.
    Before(Row),
    /// The same, told apart by its node: a mistake.
    BeforeOf(usize),
    /// Inserted under a number that the statement gave.
    Given(Row),
    /// Inserted under a number that SQLite chose: hlc, node, and bits of the content's hash.
    Chosen(u64, u32, u16),
}

impl Birth {
    /// The hlc in it, 0 if there is none.
    pub fn hlc(self) -> u64 {
        match self {
            Birth::Chosen(hlc, ..) => hlc,
            _ => 0,
        }
    }

    /// The node that bore the life, if its number may be moved without a person.
    pub fn mover(self) -> Option<u32> {
        match self {
            Birth::Chosen(_, node, _) => Some(node),
            _ => None,
        }
    }
}

/// A life: the number under which it was born, and its birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LifeId {
    pub home: u32,
    pub birth: Birth,
}

/// The state of a life: a register of values, and a register of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub version: Version,
    /// None: dead.
    pub row: Option<Row>,
    /// Version of the number; [`NEVER`] while it is the home number.
    pub moved: Version,
    pub number: u32,
}

impl Life {
    pub fn joined(self, other: Life) -> Life {
        let (version, row) = (self.version, self.row).max((other.version, other.row));
        let (moved, number) = (self.moved, self.number).max((other.moved, other.number));
        Life {
            version,
            row,
            moved,
            number,
        }
    }
}

/// All lives that a node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lives(pub BTreeMap<LifeId, Life>);

impl Lives {
    pub fn get(&self, id: LifeId) -> Option<&Life> {
        self.0.get(&self.known_as(id))
    }

    pub fn is_live(&self, id: LifeId) -> bool {
        self.get(id).is_some_and(|life| life.row.is_some())
    }

    /// A row from before is the life without a birth of its number, if there is one: a node that
    /// begins with a copy of the file has the rows that the others had when births began.
    pub fn known_as(&self, id: LifeId) -> LifeId {
        let none = LifeId {
            birth: Birth::None,
            ..id
        };
        match id.birth {
            Birth::Before(_) if self.0.contains_key(&none) => none,
            _ => id,
        }
    }

    /// Joins a state of a life into the known one.
    pub fn join(&mut self, id: LifeId, life: Life, folds: bool) {
        let id = if folds { self.known_as(id) } else { id };
        let known = self.0.get(&id).copied();
        let mut joined = known.map_or(life, |known| known.joined(life));
        if folds && id.birth == Birth::None && known.is_none() {
            let is_before =
                |other: &LifeId| other.home == id.home && matches!(other.birth, Birth::Before(_));
            let before: Vec<LifeId> = self.0.keys().copied().filter(is_before).collect();
            for other in before {
                joined = joined.joined(self.0.remove(&other).expect("just seen"));
            }
        }
        self.0.insert(id, joined);
    }
}

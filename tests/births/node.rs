//! One node: its application's tables, its books, and what it has heard and told.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::life::{Life, LifeId, Lives, NEVER, Version};
use crate::mistake::Mistake;

/// Kind of an entry of the change log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Inserted, and SQLite chose the number.
    Insert,
    /// Inserted under a given number.
    Given,
    Delete,
    Update,
    /// An update that changed a foreign key.
    Refer,
    /// A REPLACE may have evicted the row.
    Maybe,
}

/// The row that an entry of the change log names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Numbered(u32),
    Child(u32),
    Junction(u32, char),
}

/// The state of a child. `row` is the number in the foreign key, and a word that the application
/// wrote with it; `parent` is the life that the number meant to the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    pub version: Version,
    pub row: Option<(u32, u32)>,
    pub parent: Option<LifeId>,
}

impl Child {
    /// The number is no part of the content where the parent is known: nodes that know a move and
    /// nodes that do not have different ones.
    fn content(&self) -> (bool, Option<LifeId>, Option<(u32, u32)>) {
        let known = |(_, word): (u32, u32)| (0, word);
        let row = match self.parent {
            Some(_) => self.row.map(known),
            None => self.row,
        };
        (self.parent.is_some(), self.parent, row)
    }

    fn joined(self, other: Child) -> Child {
        let order = |child: &Child| (child.version, child.content());
        match order(&other) > order(&self) {
            true => other,
            false => self,
        }
    }
}

/// A row of the junction table: the life that it refers to stands in the place of the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId {
    pub parent: Option<LifeId>,
    pub number: u32,
    pub tag: char,
}

/// Version and word; none if it is deleted.
pub type Link = (Version, Option<u32>);

/// A row as frames and snapshots carry it.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    Numbered(LifeId, Life),
    Child(u32, Child),
    Junction(LinkId, Link),
}

/// A row that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    Numbered(LifeId),
    Child(u32),
    Junction(LinkId),
}

/// The content of a copy of the file.
#[derive(Clone, Default)]
pub struct File {
    /// The application's tables.
    pub rows: BTreeMap<u32, crate::life::Row>,
    pub children: BTreeMap<u32, (u32, u32)>,
    pub junction: BTreeMap<(u32, char), u32>,
    /// The last number of the numbered table, as `sqlite_sequence` has it.
    pub sequence: u32,
    pub log: Vec<(Kind, Place)>,
    pub lives: Lives,
    pub children_known: BTreeMap<u32, Child>,
    pub links: BTreeMap<LinkId, Link>,
    pub marks: BTreeSet<Mark>,
    /// Frames that were read.
    pub seen: BTreeSet<usize>,
    /// The life in the table, by number; as of the last capture or settling.
    pub shown: BTreeMap<u32, LifeId>,
    pub links_shown: BTreeMap<(u32, char), LinkId>,
    /// Lives whose number another life has.
    pub waiting: BTreeSet<LifeId>,
    /// Lives whose UNIQUE value another life has.
    pub displaced: BTreeSet<LifeId>,
    /// Children whose parent may follow in the log, with the number.
    pub unparented: BTreeMap<u32, u32>,
    /// Numbers with a maybe in the part of the log that was captured.
    pub maybe: BTreeSet<u32>,
}

pub struct Node {
    pub place: usize,
    pub id: u32,
    pub skew: i64,
    pub online: bool,
    /// Inserts get births.
    pub assigns: bool,
    pub file: File,
    pub inbox: Vec<usize>,
    /// A copy of the file, with the number of inserts made by then.
    pub backup: Option<(File, usize)>,
}

/// The state that all nodes share: the stream, the time, and the mistake that is made.
#[derive(Default)]
pub struct Network {
    pub frames: Vec<Rc<Vec<Item>>>,
    pub tick: i64,
    /// Clocks stand still but for the ticks.
    pub is_slow: bool,
    pub mistake: Option<Mistake>,
    /// A write was not in the table any more after its own capture.
    pub undone: usize,
    /// Logs are captured in parts.
    pub in_parts: bool,
    pub moves: BTreeMap<LifeId, usize>,
}

impl Network {
    pub fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }
}

impl Node {
    pub fn new(place: usize, skew: i64) -> Self {
        Node {
            place,
            id: place as u32,
            skew,
            online: true,
            assigns: true,
            file: File::default(),
            inbox: Vec::new(),
            backup: None,
        }
    }

    /// An hlc above `previous`. Two nodes never derive one hlc from the same previous one.
    pub fn stamp(&self, net: &mut Network, previous: u64) -> u64 {
        let place = self.place as u64;
        let above = match previous {
            0 => 0,
            previous => (previous | 7) + place,
        };
        net.tick += 1;
        let ahead = if net.is_slow { 0 } else { 300 };
        let time = (net.tick + self.skew + ahead).max(0) as u64 + 10;
        (time * 64 + place * 8).max(above + 1)
    }

    /// Ends a life.
    pub fn kill(&mut self, net: &mut Network, id: LifeId) {
        let id = self.file.lives.known_as(id);
        let life = self.file.lives.0[&id];
        let version = (self.stamp(net, life.version.0), self.id);
        let dead = Life {
            version,
            row: None,
            ..life
        };
        self.file.lives.0.insert(id, dead);
        self.file.marks.insert(Mark::Numbered(id));
    }

    pub fn publish(&mut self, net: &mut Network) -> Option<usize> {
        if !self.online || self.file.marks.is_empty() {
            return None;
        }
        let file = &mut self.file;
        let mut frame = Vec::new();
        for mark in std::mem::take(&mut file.marks) {
            frame.extend(match mark {
                Mark::Numbered(id) => {
                    let id = file.lives.known_as(id);
                    file.lives.0.get(&id).map(|l| Item::Numbered(id, *l))
                }
                Mark::Child(k) => file.children_known.get(&k).map(|c| Item::Child(k, *c)),
                Mark::Junction(k) => file.links.get(&k).map(|l| Item::Junction(k, *l)),
            });
        }
        let number = net.frames.len();
        net.frames.push(Rc::new(frame));
        self.file.seen.insert(number);
        Some(number)
    }

    pub fn merge(&mut self, net: &mut Network, items: &[Item]) {
        self.capture(net, None);
        let folds = !net.makes(Mistake::CopyBesideOriginal);
        for item in items {
            match *item {
                Item::Numbered(id, life) => self.file.lives.join(id, life, folds),
                Item::Child(k, child) => {
                    let known = self.file.children_known.get(&k);
                    let joined = known.map_or(child, |known| known.joined(child));
                    self.file.children_known.insert(k, joined);
                }
                Item::Junction(k, link) => {
                    let known = self.file.links.get(&k).copied();
                    let joined = known.map_or(link, |known| known.max(link));
                    self.file.links.insert(k, joined);
                }
            }
        }
        self.settle(net);
    }

    /// Everything that the node knows, as its snapshot has it.
    pub fn snapshot(&self) -> Vec<Item> {
        let file = &self.file;
        let lives = file.lives.0.iter().map(|(k, v)| Item::Numbered(*k, *v));
        let children = file.children_known.iter();
        let links = file.links.iter().map(|(k, v)| Item::Junction(*k, *v));
        let children = children.map(|(k, v)| Item::Child(*k, *v));
        lives.chain(children).chain(links).collect()
    }

    /// Moves the numbers of waiting lives to free ones: of its own lives, of all that were born
    /// under a chosen number, or of the first that waits. Returns how many.
    pub fn renumber(&mut self, net: &mut Network, who: Renumber) -> usize {
        self.capture(net, None);
        if !self.online || !self.inbox.is_empty() {
            return 0;
        }
        let mut moved = 0;
        for id in self.file.waiting.clone() {
            let life = self.file.lives.0[&id];
            let may = match who {
                Renumber::Own => id.birth.mover() == Some(self.id),
                Renumber::Chosen => id.birth.mover().is_some(),
                Renumber::One => true,
            };
            if !may {
                continue;
            }
            let numbers = self.file.lives.0.values().map(|l| l.number);
            let number = numbers.max().unwrap_or(0).max(self.file.sequence) + 1;
            *net.moves.entry(id).or_default() += 1;
            self.move_life(net, id, life, number);
            self.file.sequence = number;
            moved += 1;
            if who == Renumber::One {
                break;
            }
        }
        self.settle(net);
        moved
    }

    fn move_life(&mut self, net: &mut Network, id: LifeId, life: Life, number: u32) {
        let mut now_as = id;
        if net.makes(Mistake::MovedByInsertAndDelete) {
            self.kill(net, id);
            let version = self.file.lives.0[&id].version;
            now_as = LifeId {
                home: number,
                birth: crate::life::Birth::Chosen(version.0, version.1, 0),
            };
            let born = Life {
                version,
                row: life.row,
                moved: NEVER,
                number,
            };
            self.file.lives.0.insert(now_as, born);
        } else {
            let moved = (self.stamp(net, life.moved.0), self.id);
            let life = Life {
                moved,
                number,
                ..life
            };
            self.file.lives.0.insert(id, life);
        }
        self.file.marks.insert(Mark::Numbered(now_as));
        if net.makes(Mistake::MovedByInsertAndDelete) || net.makes(Mistake::ChildrenByMover) {
            self.rewrite_children(net, id, now_as, number);
        }
    }

    /// A mistake: the mover rewrites the children that it wrote.
    fn rewrite_children(&mut self, net: &mut Network, id: LifeId, now_as: LifeId, number: u32) {
        let children = self.file.children_known.clone();
        let own = |c: &Child| c.parent == Some(id) && c.version.1 == self.id;
        for (k, child) in children.into_iter().filter(|(_, c)| own(c)) {
            if let Some((_, word)) = child.row {
                let rewritten = Child {
                    version: (self.stamp(net, child.version.0), self.id),
                    row: Some((number, word)),
                    parent: Some(now_as),
                };
                self.file.children_known.insert(k, rewritten);
                self.file.marks.insert(Mark::Child(k));
            }
        }
    }
}

/// The waiting lives that get a new number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Renumber {
    Own,
    Chosen,
    One,
}

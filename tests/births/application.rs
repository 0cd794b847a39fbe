//! Applications: their writes, and the intent of each.

use std::collections::{BTreeMap, BTreeSet};

use crate::life::{Insert, Row};
use crate::node::{Kind, Network, Node, Place};
use crate::random::Random;

/// The operations of the applications, and those that were taken back.
#[derive(Default)]
pub struct Record {
    /// Every acknowledged insert; true if it must not be lost.
    pub inserts: BTreeMap<Insert, bool>,
    /// By node, in order.
    pub by_node: BTreeMap<usize, Vec<Insert>>,
    /// Inserts whose row was deleted, or replaced, by somebody who saw it.
    pub ended: BTreeSet<Insert>,
    /// Inserts that no disk has any more: the node was put back before it told anybody.
    pub gone: BTreeSet<Insert>,
    /// The row that a child or junction row was written for, by the word in it.
    pub meant: BTreeMap<u32, Option<Insert>>,
    /// Inserts under a number that the statement gave, with it.
    pub given: BTreeMap<Insert, u32>,
    /// Inserts whose row a person moved.
    pub by_hand: BTreeSet<Insert>,
    words: u32,
    edits: u32,
    children: u32,
}

/// How the applications of one history write.
pub struct Style {
    pub has_unique: bool,
    pub autoincrement: bool,
    /// Children are updated without a change of their parent.
    pub edits_children: bool,
}

/// One statement of one node's application.
pub struct Statement<'a> {
    pub node: &'a mut Node,
    pub random: &'a mut Random,
    pub record: &'a mut Record,
    pub style: &'a Style,
}

impl Statement<'_> {
    pub fn run(mut self, _net: &Network) {
        match self
            .random
            .weighted(&[26, 4, 3, 12, 2, 10, 5, 16, 4, 3, 3, 7, 5])
        {
            0 => self.insert(),
            1 => self.insert_given(),
            2 => self.replace(),
            3 => self.update(),
            4 => self.update_key(),
            5 => self.delete(),
            6 => self.delete_and_insert(),
            7 => self.insert_child(),
            8 => self.move_child(),
            9 => self.edit_child(),
            10 => self.delete_child(),
            11 => self.insert_link(),
            _ => self.delete_link(),
        }
    }

    fn log(&mut self, kind: Kind, place: Place) {
        self.node.file.log.push((kind, place));
    }

    fn numbers(&self) -> Vec<u32> {
        self.node.file.rows.keys().copied().collect()
    }

    /// A number of a row, or the highest.
    fn some_number(&mut self, percent: usize) -> Option<u32> {
        let numbers = self.numbers();
        let last = *numbers.last()?;
        Some(match self.random.percent(percent) {
            true => *self.random.pick(&numbers),
            false => last,
        })
    }

    fn new_insert(&mut self, is_promised: bool) -> Insert {
        let insert = Insert::Own(self.record.inserts.len() as u32);
        self.note(insert, is_promised);
        insert
    }

    fn note(&mut self, insert: Insert, is_promised: bool) {
        let is_promised = is_promised && self.node.assigns;
        let known = self.record.inserts.entry(insert).or_insert(is_promised);
        *known &= is_promised;
        let of_node = self.record.by_node.entry(self.node.place);
        of_node.or_default().push(insert);
    }

    fn new_row(&mut self, is_promised: bool, unique: Option<char>) -> Row {
        Row {
            insert: self.new_insert(is_promised),
            edit: 0,
            unique,
        }
    }

    fn unique(&mut self) -> Option<char> {
        let has = self.style.has_unique && self.random.percent(40);
        has.then(|| *self.random.pick(&['a', 'b', 'c']))
    }

    fn is_used(&self, unique: Option<char>) -> bool {
        unique.is_some() && self.node.file.rows.values().any(|row| row.unique == unique)
    }

    fn insert(&mut self) {
        let unique = self.unique();
        if self.is_used(unique) {
            return;
        }
        let last = self.numbers().last().copied().unwrap_or(0);
        let number = match self.style.autoincrement {
            true => self.node.file.sequence.max(last) + 1,
            false => last + 1,
        };
        if self.style.autoincrement {
            self.node.file.sequence = number;
        }
        let row = self.new_row(true, unique);
        self.put(number, row, Kind::Insert);
    }

    fn put(&mut self, number: u32, row: Row, kind: Kind) {
        self.node.file.rows.insert(number, row);
        self.log(kind, Place::Numbered(number));
        if kind == Kind::Given {
            self.node.file.sequence = self.node.file.sequence.max(number);
        }
    }

    fn insert_given(&mut self) {
        let number = self.random.between(1, 5) as u32;
        if self.node.file.rows.contains_key(&number) {
            return;
        }
        let insert = match self.random.percent(40) {
            true => {
                let insert = Insert::Seed(number, self.random.below(2));
                self.note(insert, true);
                insert
            }
            false => {
                let insert = self.new_insert(true);
                self.record.given.insert(insert, number);
                insert
            }
        };
        let row = Row {
            insert,
            edit: 0,
            unique: None,
        };
        self.put(number, row, Kind::Given);
    }

    fn replace(&mut self) {
        let number = self.random.between(1, 5) as u32;
        let unique = self.unique();
        let rows = self.node.file.rows.clone();
        let shares = |(k, row): &(u32, Row)| *k != number && row.unique == unique;
        for (k, row) in rows.into_iter().filter(shares) {
            if unique.is_some() {
                self.record.ended.insert(row.insert);
                self.node.file.rows.remove(&k);
                self.log(Kind::Maybe, Place::Numbered(k));
            }
        }
        let old = self.node.file.rows.get(&number).copied();
        self.record.ended.extend(old.map(|row| row.insert));
        let row = self.new_row(old.is_none(), unique);
        self.put(number, row, Kind::Given);
    }

    fn update(&mut self) {
        let numbers = self.numbers();
        if numbers.is_empty() {
            return;
        }
        let number = *self.random.pick(&numbers);
        let mut row = self.node.file.rows[&number];
        if self.style.has_unique && self.random.percent(30) {
            let unique = self.unique();
            if !self.is_used(unique) {
                row.unique = unique;
            }
        }
        self.record.edits += 1;
        row.edit = self.record.edits;
        self.put(number, row, Kind::Update);
    }

    fn update_key(&mut self) {
        let Some(number) = self.some_number(100) else {
            return;
        };
        let to = self.random.between(1, 8) as u32;
        if self.node.file.rows.contains_key(&to) {
            return;
        }
        let old = self.remove(number);
        let insert = self.new_insert(true);
        self.put(to, Row { insert, ..old }, Kind::Given);
    }

    fn remove(&mut self, number: u32) -> Row {
        let row = self.node.file.rows.remove(&number).expect("there");
        self.record.ended.insert(row.insert);
        self.log(Kind::Delete, Place::Numbered(number));
        row
    }

    fn delete(&mut self) {
        if let Some(number) = self.some_number(60) {
            self.remove(number);
        }
    }

    fn delete_and_insert(&mut self) {
        let Some(number) = self.some_number(0) else {
            return;
        };
        self.remove(number);
        let kind = match self.style.autoincrement {
            true => Kind::Given,
            false => Kind::Insert,
        };
        let row = self.new_row(true, None);
        self.put(number, row, kind);
    }

    fn new_word(&mut self, number: u32) -> u32 {
        self.record.words += 1;
        let parent = self.node.file.rows.get(&number).map(|row| row.insert);
        self.record.meant.insert(self.record.words, parent);
        self.record.words
    }

    fn insert_child(&mut self) {
        let Some(number) = self.some_number(50) else {
            return;
        };
        self.record.children += 1;
        let (k, word) = (self.record.children, self.new_word(number));
        self.node.file.children.insert(k, (number, word));
        self.log(Kind::Insert, Place::Child(k));
    }

    fn some_child(&mut self) -> Option<u32> {
        let children: Vec<u32> = self.node.file.children.keys().copied().collect();
        (!children.is_empty()).then(|| *self.random.pick(&children))
    }

    fn move_child(&mut self) {
        let (Some(k), Some(number)) = (self.some_child(), self.some_number(100)) else {
            return;
        };
        if self.node.file.children[&k].0 == number {
            return;
        }
        let word = self.new_word(number);
        self.node.file.children.insert(k, (number, word));
        self.log(Kind::Refer, Place::Child(k));
    }

    fn edit_child(&mut self) {
        let Some(k) = self.some_child().filter(|_| self.style.edits_children) else {
            return;
        };
        let (number, old) = self.node.file.children[&k];
        let meant = self.record.meant[&old];
        let word = self.new_word(number);
        self.record.meant.insert(word, meant);
        self.node.file.children.insert(k, (number, word));
        self.log(Kind::Update, Place::Child(k));
    }

    fn delete_child(&mut self) {
        if let Some(k) = self.some_child() {
            self.node.file.children.remove(&k);
            self.log(Kind::Delete, Place::Child(k));
        }
    }

    fn insert_link(&mut self) {
        let Some(number) = self.some_number(50) else {
            return;
        };
        let key = (number, *self.random.pick(&['x', 'y']));
        if self.node.file.junction.contains_key(&key) {
            return;
        }
        let word = self.new_word(number);
        self.node.file.junction.insert(key, word);
        self.log(Kind::Insert, Place::Junction(key.0, key.1));
    }

    fn delete_link(&mut self) {
        let links: Vec<(u32, char)> = self.node.file.junction.keys().copied().collect();
        if !links.is_empty() {
            let key = *self.random.pick(&links);
            self.node.file.junction.remove(&key);
            self.log(Kind::Delete, Place::Junction(key.0, key.1));
        }
    }
}

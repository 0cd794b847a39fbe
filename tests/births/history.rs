//! One history, decided by its seed: nodes that write, capture, send, read, are away, are put back
//! and cloned; and in the end all hear everything.

use std::collections::{BTreeMap, BTreeSet};

use crate::application::{Record, Statement, Style};
use crate::life::{Birth, Insert, Life, LifeId, NEVER, Row};
use crate::mistake::Mistake;
use crate::node::{File, Item, Mark, Network, Node, Renumber};
use crate::random::Random;

/// The options of a history, and its state.
pub struct History {
    pub net: Network,
    pub nodes: Vec<Node>,
    pub record: Record,
    pub style: Style,
    pub random: Random,
    /// Waiting lives get new numbers.
    pub renumbers: bool,
    /// Files are put back and cloned.
    is_hostile: bool,
    /// Nodes begin without births, and assign them from different times on.
    pub is_upgrade: bool,
    /// Tombstones were dropped.
    pub has_dropped: bool,
    pub rounds: usize,
}

/// Rounds of renumbering after which it counts as endless.
const MANY_ROUNDS: usize = 60;

impl History {
    pub fn new(seed: u64, mistake: Option<Mistake>) -> Self {
        let mut random = Random::new(seed);
        let style = Style {
            has_unique: random.percent(30),
            autoincrement: random.percent(40),
            edits_children: random.percent(50),
        };
        let net = Network {
            is_slow: random.percent(30),
            in_parts: random.percent(40),
            mistake,
            ..Network::default()
        };
        let count = random.between(2, 4) as usize;
        let skews = [0, 0, 0, 5, -40, 200];
        let nodes = (0..count).map(|i| Node::new(i, *random.pick(&skews)));
        let nodes = nodes.collect();
        let mut history = History {
            renumbers: random.percent(67),
            is_hostile: random.percent(35),
            is_upgrade: random.percent(20),
            net,
            nodes,
            record: Record::default(),
            style,
            random,
            has_dropped: false,
            rounds: 0,
        };
        history.install();
        history
    }

    /// Nodes get the rows that their files had before.
    fn install(&mut self) {
        if self.is_upgrade {
            for node in &mut self.nodes {
                node.assigns = self.random.percent(30);
            }
        }
        let has_rows = self.random.percent(if self.is_upgrade { 80 } else { 30 });
        let common = self.random.between(1, 2) as u32;
        for place in 0..self.nodes.len() {
            if has_rows && self.random.percent(70) {
                self.install_rows(place, common);
            }
            self.nodes[place].settle(&self.net);
        }
    }

    fn install_rows(&mut self, place: usize, common: u32) {
        let mut rows: BTreeMap<u32, Insert> = (1..=common)
            .map(|number| (number, Insert::Before(number, None)))
            .collect();
        if self.random.percent(50) {
            let number = self.random.between(1, 4) as u32;
            rows.insert(number, Insert::Before(number, Some(place)));
        }
        let node = &mut self.nodes[place];
        for (number, insert) in rows {
            let row = Row {
                insert,
                edit: 0,
                unique: None,
            };
            let birth = match node.assigns {
                true if self.net.makes(Mistake::BeforeByNode) => Birth::BeforeOf(place),
                true => Birth::Before(row),
                false => Birth::None,
            };
            let id = LifeId {
                home: number,
                birth,
            };
            let life = Life {
                version: (1, node.id),
                row: Some(row),
                moved: NEVER,
                number,
            };
            node.file.lives.0.insert(id, life);
            node.file.marks.insert(Mark::Numbered(id));
            // Of two rows without birth under one number the higher version stays, as ever.
            self.record.inserts.insert(insert, !self.is_upgrade);
            self.record.by_node.entry(place).or_default().push(insert);
        }
    }

    pub fn run(&mut self) {
        let steps = *self.random.pick(&[8, 15, 30, 60, 120]);
        let away = *self.random.pick(&[10, 30, 60]);
        for _ in 0..steps {
            let place = self.random.below(self.nodes.len());
            let hostile = if self.is_hostile { 20 } else { 0 };
            let weights = [
                500,
                120,
                100,
                140,
                away,
                60,
                15,
                5,
                5,
                hostile,
                hostile,
                hostile / 2,
            ];
            match self.random.weighted(&weights) {
                0 => self.write(place),
                1 => self.capture_some(place),
                2 => self.publish(place),
                3 => {
                    let repeats = self.random.percent(15);
                    self.deliver(place, repeats);
                }
                4 => self.nodes[place].online ^= true,
                5 if self.renumbers => {
                    self.renumber(place, Renumber::Own);
                }
                6 => self.merge_snapshot(place),
                7 if self.renumbers => self.renumber_by_hand(place),
                8 => self.drop_tombstones(place),
                9 => self.back_up(place),
                10 => self.put_back(place),
                11 => self.clone_node(place),
                _ => {}
            }
            if self.is_upgrade && self.random.percent(5) {
                self.nodes[place].assigns = true;
            }
        }
    }

    fn write(&mut self, place: usize) {
        for _ in 0..*self.random.pick(&[1, 1, 2, 4]) {
            let statement = Statement {
                node: &mut self.nodes[place],
                random: &mut self.random,
                record: &mut self.record,
                style: &self.style,
            };
            statement.run(&self.net);
        }
    }

    fn capture_some(&mut self, place: usize) {
        let most = *self.random.pick(&[None, None, Some(1), Some(2), Some(3)]);
        let most = most.filter(|_| self.net.in_parts);
        self.nodes[place].capture(&mut self.net, most);
    }

    fn publish(&mut self, place: usize) {
        self.nodes[place].capture(&mut self.net, None);
        if let Some(frame) = self.nodes[place].publish(&mut self.net) {
            let others = self.nodes.iter_mut().filter(|node| node.place != place);
            others.for_each(|node| node.inbox.push(frame));
        }
    }

    /// A node reads one frame, mostly the oldest that it has not read.
    fn deliver(&mut self, place: usize, repeats: bool) {
        let node = &mut self.nodes[place];
        if !node.online || node.inbox.is_empty() {
            return;
        }
        let at = match self.random.percent(50) {
            true => self.random.below(node.inbox.len()),
            false => 0,
        };
        let frame = node.inbox[at];
        if !repeats {
            node.inbox.remove(at);
            node.file.seen.insert(frame);
        }
        let items = self.net.frames[frame].clone();
        node.merge(&mut self.net, &items);
    }

    fn renumber(&mut self, place: usize, who: Renumber) -> usize {
        self.nodes[place].renumber(&mut self.net, who)
    }

    fn renumber_by_hand(&mut self, place: usize) {
        let node = &self.nodes[place];
        if !node.online || !node.inbox.is_empty() || node.file.waiting.is_empty() {
            return;
        }
        let who = *self.random.pick(&[Renumber::Chosen, Renumber::One]);
        let before = self.nodes[place].file.lives.clone();
        self.renumber(place, who);
        let lives = &self.nodes[place].file.lives.0;
        let moved = lives.iter().filter(|(id, life)| {
            before
                .0
                .get(id)
                .is_some_and(|known| known.number != life.number)
        });
        let inserts = moved.filter_map(|(_, life)| life.row.map(|row| row.insert));
        self.record.by_hand.extend(inserts);
    }

    fn merge_snapshot(&mut self, place: usize) {
        let maker = self.random.below(self.nodes.len());
        if maker == place || !self.nodes[place].online {
            return;
        }
        self.nodes[maker].capture(&mut self.net, None);
        let items = self.nodes[maker].snapshot();
        let (seen, marks) = (
            self.nodes[maker].file.seen.clone(),
            self.nodes[maker].file.marks.clone(),
        );
        let node = &mut self.nodes[place];
        node.merge(&mut self.net, &items);
        node.file.seen.extend(seen);
        let seen = &node.file.seen;
        node.inbox.retain(|frame| !seen.contains(frame));
        node.file.marks.extend(marks);
    }

    /// A node drops the tombstones that everybody has and nothing else is under way for.
    fn drop_tombstones(&mut self, place: usize) {
        let keeps_moved = !self.net.makes(Mistake::MovedTombstoneDropped);
        let lives = self.nodes[place].file.lives.clone();
        for (id, life) in &lives.0 {
            let is_kept = life.row.is_some() || (keeps_moved && life.moved != NEVER);
            if is_kept || !self.is_settled(*id, life) {
                continue;
            }
            self.nodes[place].file.lives.0.remove(id);
            self.has_dropped = true;
            self.nodes.iter_mut().for_each(|node| node.backup = None);
        }
    }

    /// Whether all nodes have a life as it is, and nobody shows it or will hear of it.
    fn is_settled(&self, id: LifeId, life: &Life) -> bool {
        self.nodes.iter().all(|node| {
            let file = &node.file;
            let names = |frame: &usize| {
                let items = self.net.frames[*frame].iter();
                items
                    .clone()
                    .any(|item| matches!(item, Item::Numbered(of, _) if *of == id))
            };
            file.lives.0.get(&id).is_none_or(|known| known == life)
                && !file.shown.values().any(|shown| *shown == id)
                && !file.marks.contains(&Mark::Numbered(id))
                && !node.inbox.iter().any(names)
        })
    }

    fn back_up(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        node.capture(&mut self.net, None);
        let made = self.record.by_node.get(&place).map_or(0, Vec::len);
        node.backup = Some((node.file.clone(), made));
    }

    fn put_back(&mut self, place: usize) {
        if let Some((file, _)) = self.nodes[place].backup.clone() {
            self.take_file(place, file);
            self.note_gone();
        }
    }

    fn take_file(&mut self, place: usize, file: File) {
        let node = &mut self.nodes[place];
        node.inbox = (0..self.net.frames.len())
            .filter(|frame| !file.seen.contains(frame))
            .collect();
        node.file = file;
        node.file.waiting.clear();
        if node.file.log.is_empty() {
            node.settle(&self.net);
        }
    }

    /// A node gets a copy of another one's file, and at times its id too, until that is noticed.
    fn clone_node(&mut self, place: usize) {
        let other = self.random.below(self.nodes.len());
        if other == place {
            if self.nodes[place].id != place as u32 {
                self.nodes[place].id = place as u32 + 10;
            }
            return;
        }
        if self.has_dropped {
            return;
        }
        self.nodes[other].capture(&mut self.net, None);
        let file = self.nodes[other].file.clone();
        self.take_file(place, file);
        self.nodes[place].backup = None;
        if self.random.percent(50) {
            self.nodes[place].id = self.nodes[other].id;
        }
        self.note_gone();
    }

    /// Finds the inserts that no file and no frame has any more.
    fn note_gone(&mut self) {
        let mut known = BTreeSet::new();
        for node in &self.nodes {
            let lives = node.file.lives.0.values();
            known.extend(lives.filter_map(|life| life.row.map(|row| row.insert)));
            known.extend(node.file.rows.values().map(|row| row.insert));
        }
        for item in self.net.frames.iter().flat_map(|frame| frame.iter()) {
            if let Item::Numbered(_, Life { row: Some(row), .. }) = item {
                known.insert(row.insert);
            }
        }
        let made = self.record.by_node.values().flatten();
        let gone = made.filter(|insert| !known.contains(*insert));
        self.record.gone.extend(gone.copied());
    }

    /// Lets every node hear everything. Fails if that does not come to an end.
    pub fn heal(&mut self) -> Result<(), String> {
        for node in &mut self.nodes {
            (node.online, node.assigns) = (true, true);
        }
        for _ in 0..5000 {
            let mut is_busy = false;
            let first = self.random.below(self.nodes.len());
            for turn in 0..self.nodes.len() {
                let place = (first + turn) % self.nodes.len();
                self.publish(place);
                for _ in 0..self.random.below(4) {
                    is_busy |= !self.nodes[place].inbox.is_empty();
                    self.deliver(place, false);
                }
            }
            let is_at_rest = |node: &Node| {
                node.inbox.is_empty() && node.file.log.is_empty() && node.file.marks.is_empty()
            };
            is_busy |= !self.nodes.iter().all(is_at_rest);
            if !is_busy && !self.renumber_once()? {
                return Ok(());
            }
        }
        Err("does not come to rest".into())
    }

    /// One round of renumbering, by some nodes or by all. False if there is nothing to do.
    fn renumber_once(&mut self) -> Result<bool, String> {
        if !self.renumbers {
            return Ok(false);
        }
        let some = self.random.between(1, self.nodes.len() as i64) as usize;
        for most in [some, self.nodes.len()] {
            let moved: usize = (0..most)
                .map(|place| self.renumber(place, Renumber::Own))
                .sum();
            if moved > 0 {
                self.rounds += 1;
                return match self.rounds > MANY_ROUNDS {
                    true => Err("renumbers without an end".into()),
                    false => Ok(true),
                };
            }
        }
        Ok(false)
    }
}

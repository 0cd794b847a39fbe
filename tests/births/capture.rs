//! Capture: the evidence of the log and of the present rows about lives.

use std::collections::{BTreeMap, BTreeSet};

use crate::life::{Birth, Life, LifeId, NEVER, Row};
use crate::mistake::Mistake;
use crate::node::{Child, Kind, LinkId, Mark, Network, Node, Place};

/// The fate of the life under one number, by the log and the present row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    /// The shown life ended.
    Dies,
    /// The shown life has new values.
    Changes,
    /// The shown life, if there is one, ended, and a new one is there.
    IsBorn {
        given: bool,
    },
}

/// Decides the fate of a number. `log` has the kinds of its entries, beginning with a maybe if an
/// earlier part of the log had one.
pub fn judge(log: &[Kind], has_row: bool, is_shown: bool, mistake: Option<Mistake>) -> Verdict {
    let makes = |m: Mistake| mistake == Some(m);
    if !has_row {
        return match is_shown {
            true => Verdict::Dies,
            false => Verdict::Nothing,
        };
    }
    if log.iter().all(|kind| *kind == Kind::Maybe) {
        return Verdict::Nothing;
    }
    let is_insert = |kind: &Kind| matches!(kind, Kind::Insert | Kind::Given);
    let last = log.iter().rposition(is_insert);
    let ended = log.iter().rposition(|kind| *kind == Kind::Delete);
    if ended > last && !makes(Mistake::CutDeleteIgnored) {
        // The log was cut: the insert follows.
        return match is_shown {
            true => Verdict::Dies,
            false => Verdict::Nothing,
        };
    }
    let Some(last) = last else {
        return match is_shown {
            true => Verdict::Changes,
            false => Verdict::Nothing,
        };
    };
    let before = &log[..last];
    let is_new = before.contains(&Kind::Delete)
        || !makes(Mistake::EvictionIgnored)
            && (before.contains(&Kind::Maybe) || log.contains(&Kind::Insert));
    match is_shown && (!is_new || makes(Mistake::ReplacedIsUpdated)) {
        true => Verdict::Changes,
        false => Verdict::IsBorn {
            given: log[last] == Kind::Given,
        },
    }
}

impl Node {
    /// Captures the log, or its first entries.
    pub fn capture(&mut self, net: &mut Network, most: Option<usize>) {
        if self.file.log.is_empty() {
            return;
        }
        let mut log = std::mem::take(&mut self.file.log);
        if let Some(most) = most.filter(|most| *most < log.len()) {
            self.file.log = log.split_off(most);
        }
        let later = self.file.log.iter().map(|(_, place)| *place);
        let later: BTreeSet<Place> = later.collect();
        let mut places = Vec::new();
        let mut kinds: BTreeMap<Place, Vec<Kind>> = BTreeMap::new();
        for (kind, place) in log {
            let of_place = kinds.entry(place).or_insert_with(|| {
                places.push(place);
                Vec::new()
            });
            of_place.push(kind);
        }
        let above = self.hidden_versions();
        let maybe = self.file.maybe.clone();
        let mut written = Vec::new();
        for place in &places {
            if let Place::Numbered(number) = place {
                let mut log = kinds[place].clone();
                if maybe.contains(number) && !net.makes(Mistake::MaybeOfFormerPart) {
                    log.insert(0, Kind::Maybe);
                }
                if log.contains(&Kind::Maybe) && !self.file.log.is_empty() {
                    self.file.maybe.insert(*number);
                }
                written.extend(self.capture_number(net, *number, &log, &above));
            }
        }
        for place in &places {
            match *place {
                Place::Child(k) => self.capture_child(net, k, &kinds[place], &later),
                Place::Junction(number, tag) if self.file.log.is_empty() => {
                    self.capture_link(net, (number, tag), &kinds[place]);
                }
                Place::Junction(..) => {
                    let again = kinds[place].iter().map(|kind| (*kind, *place));
                    self.file.log.splice(0..0, again.collect::<Vec<_>>());
                }
                Place::Numbered(_) => {}
            }
        }
        if !self.file.log.is_empty() {
            return;
        }
        self.file.maybe.clear();
        self.name_parents(net);
        self.settle(net);
        let is_there = |(number, row): &(u32, Row)| self.file.rows.get(number) == Some(row);
        if !net.in_parts {
            net.undone += written.iter().filter(|w| !is_there(w)).count();
        }
    }

    /// The highest hlc among the lives that wait or are displaced, by number and by UNIQUE value.
    fn hidden_versions(&self) -> (BTreeMap<u32, u64>, BTreeMap<char, u64>) {
        let (mut numbers, mut tuples) = (BTreeMap::new(), BTreeMap::new());
        for id in self.file.waiting.union(&self.file.displaced) {
            let life = self.file.lives.0[id];
            let hlc = life.version.0;
            let highest: &mut u64 = numbers.entry(life.number).or_default();
            *highest = hlc.max(*highest);
            if let Some(unique) = life.row.and_then(|row| row.unique) {
                let highest: &mut u64 = tuples.entry(unique).or_default();
                *highest = hlc.max(*highest);
            }
        }
        (numbers, tuples)
    }

    /// Captures one number. Returns the row if it got a version.
    fn capture_number(
        &mut self,
        net: &mut Network,
        number: u32,
        log: &[Kind],
        (numbers, tuples): &(BTreeMap<u32, u64>, BTreeMap<char, u64>),
    ) -> Option<(u32, Row)> {
        let row = self.file.rows.get(&number).copied();
        let shown = self.file.shown.get(&number).copied();
        let shown = shown.filter(|id| self.file.lives.is_live(*id));
        let verdict = judge(log, row.is_some(), shown.is_some(), net.mistake);
        if verdict == Verdict::Nothing {
            return None;
        }
        if let (Verdict::Dies | Verdict::IsBorn { .. }, Some(id)) = (verdict, shown) {
            self.kill(net, id);
            self.file.shown.remove(&number);
        }
        if verdict == Verdict::Dies {
            if net.makes(Mistake::WaitingDeletedToo) {
                let waits = |id: &LifeId| self.file.lives.0[id].number == number;
                let behind: Vec<LifeId> = self.file.waiting.iter().copied().filter(waits).collect();
                behind.into_iter().for_each(|id| self.kill(net, id));
            }
            return None;
        }
        let row = row?;
        let hidden = numbers.get(&number).copied().unwrap_or(0);
        let hidden = hidden.max(
            row.unique
                .map_or(0, |u| tuples.get(&u).copied().unwrap_or(0)),
        );
        let id = match (verdict, shown) {
            (Verdict::Changes, Some(id)) => {
                let life = self.file.lives.0[&id];
                let version = (self.stamp(net, life.version.0.max(hidden)), self.id);
                let changed = Life {
                    version,
                    row: Some(row),
                    ..life
                };
                self.file.lives.0.insert(id, changed);
                id
            }
            (Verdict::IsBorn { given }, _) => self.bear(net, number, row, given, hidden),
            _ => return None,
        };
        self.file.marks.insert(Mark::Numbered(id));
        self.file.shown.insert(number, id);
        Some((number, row))
    }

    fn bear(
        &mut self,
        net: &mut Network,
        number: u32,
        row: Row,
        given: bool,
        hidden: u64,
    ) -> LifeId {
        let mut above = hidden;
        if !net.makes(Mistake::BornBelow) {
            let lives = self.file.lives.0.iter();
            let of_number = lives.filter(|(id, life)| id.home == number || life.number == number);
            let highest = of_number.map(|(id, life)| life.version.0.max(id.birth.hlc()));
            above = above.max(highest.max().unwrap_or(0));
        }
        let mut hlc = self.stamp(net, above);
        let salt = match net.makes(Mistake::BirthWithoutContent) {
            true => 0,
            false => (hash(&row) & 0xffff) as u16,
        };
        let mut birth = Birth::Chosen(hlc, self.id, salt);
        let by_content = match (self.assigns, given) {
            (false, _) => Some(Birth::None),
            (true, true) if !net.makes(Mistake::GivenByNode) => Some(Birth::Given(row)),
            _ => None,
        };
        if let Some(by_content) = by_content {
            let id = LifeId {
                home: number,
                birth: by_content,
            };
            match self.file.lives.0.get(&id).copied() {
                Some(known) if known.number != number => {
                    birth = Birth::Chosen(hlc, self.id, 0);
                }
                Some(known) => {
                    hlc = hlc.max(self.stamp(net, known.version.0));
                    birth = by_content;
                }
                None => birth = by_content,
            }
        }
        let id = LifeId {
            home: number,
            birth,
        };
        let born = Life {
            version: (hlc, self.id),
            row: Some(row),
            moved: NEVER,
            number,
        };
        let folds = !net.makes(Mistake::CopyBesideOriginal);
        self.file.lives.join(id, born, folds);
        id
    }

    /// The life that is shown under a number, if its row is there.
    fn shown(&self, number: u32) -> Option<LifeId> {
        let is_there = self.file.rows.contains_key(&number);
        self.file.shown.get(&number).copied().filter(|_| is_there)
    }

    fn capture_child(&mut self, net: &mut Network, k: u32, log: &[Kind], later: &BTreeSet<Place>) {
        let known = self.file.children_known.get(&k).copied();
        let row = self.file.children.get(&k).copied();
        let is_live = known.is_some_and(|child| child.row.is_some());
        let previous = known.map_or(0, |child| child.version.0);
        let mut child = Child {
            version: NEVER,
            row,
            parent: None,
        };
        if let Some((number, _)) = row {
            let refers = log.contains(&Kind::Insert) || log.contains(&Kind::Refer);
            let guessed = net.makes(Mistake::ReferenceGuessed);
            let keeps = match guessed {
                true => {
                    is_live && self.number_of(known) == Some(number) && !log.contains(&Kind::Insert)
                }
                false => is_live && !refers,
            };
            child.parent = match keeps {
                true => known.and_then(|child| child.parent),
                false => self.shown(number),
            };
            if keeps {
                if self.file.unparented.get(&k).is_some_and(|n| *n != number) {
                    self.file.unparented.remove(&k);
                }
            } else if !self.file.log.is_empty()
                && (later.contains(&Place::Numbered(number)) || child.parent.is_none())
            {
                self.file.unparented.insert(k, number);
            }
        } else if !is_live {
            return;
        }
        child.version = (self.stamp(net, previous), self.id);
        self.file.children_known.insert(k, child);
        self.file.marks.insert(Mark::Child(k));
    }

    /// The number that the child showed at its last capture.
    fn number_of(&self, child: Option<Child>) -> Option<u32> {
        let child = child?;
        let moved = child.parent.and_then(|id| self.file.lives.get(id));
        let moved = moved.filter(|life| life.moved != NEVER);
        Some(moved.map_or(child.row?.0, |life| life.number))
    }

    fn capture_link(&mut self, net: &mut Network, key: (u32, char), log: &[Kind]) {
        let row = self.file.junction.get(&key).copied();
        let mut id = self.file.links_shown.get(&key).copied();
        let is_new = log.contains(&Kind::Delete) && log.contains(&Kind::Insert);
        if row.is_none() || is_new {
            if let Some(link) = id
                && let Some((version, Some(_))) = self.file.links.get(&link).copied()
            {
                let version = (self.stamp(net, version.0), self.id);
                self.file.links.insert(link, (version, None));
                self.file.marks.insert(Mark::Junction(link));
            }
            id = None;
        }
        if row.is_none() {
            return;
        }
        let (number, tag) = key;
        let id = id.unwrap_or_else(|| {
            let by_number = [
                Mistake::JunctionByNumber,
                Mistake::MovedByInsertAndDelete,
                Mistake::ChildrenByMover,
            ];
            let is_by_number = by_number.iter().any(|mistake| net.makes(*mistake));
            let parent = self.shown(number).filter(|_| !is_by_number);
            LinkId {
                parent,
                number: parent.map_or(number, |life| life.home),
                tag,
            }
        });
        let previous = self.file.links.get(&id).map_or(0, |(version, _)| version.0);
        let version = (self.stamp(net, previous), self.id);
        self.file.links.insert(id, (version, row));
        self.file.marks.insert(Mark::Junction(id));
    }

    /// Gives children whose parents were captured after them the life that they mean.
    fn name_parents(&mut self, net: &mut Network) {
        for (k, number) in std::mem::take(&mut self.file.unparented) {
            let known = self.file.children_known.get(&k).copied();
            let own = |c: &Child| c.row.is_some_and(|(n, _)| n == number) && c.version.1 == self.id;
            if let (Some(child), Some(life)) =
                (known.filter(own), self.file.shown.get(&number).copied())
            {
                let named = Child {
                    version: (self.stamp(net, child.version.0), self.id),
                    parent: Some(life),
                    ..child
                };
                self.file.children_known.insert(k, named);
                self.file.marks.insert(Mark::Child(k));
            }
        }
    }
}

/// The hash of a row's values.
fn hash(row: &Row) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    format!("{row:?}").hash(&mut hasher);
    hasher.finish()
}

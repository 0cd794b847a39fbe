//! Rows that SQLite numbers, on nodes that insert apart: none is lost, and all nodes agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{merge, snapshot};
use crate::apply::Conflict;
use crate::apply::tests::support::{Node, assert_equal};
use crate::capture::{Frames, Outgoing};
use crate::database::table::versions_table;
use crate::model::birth::Birth;
use crate::model::value::Value;

const NOTES: &str = "CREATE TABLE note(id INTEGER PRIMARY KEY, text, edit, tag UNIQUE)";
const ALL: &str = "SELECT id, text FROM note ORDER BY 1";
/// Lives that wait for their number.
const WAITING: &str = "SELECT count(*) FROM __harmonylite___lives WHERE deleted = 0";

fn node(id: u64, schema: &str) -> Node {
    Node::with(id, schema, |s| s.births = true)
}

fn two() -> [Node; 2] {
    [1, 2].map(|id| node(id, NOTES))
}

/// Every node reads what every node has to say, until nobody has.
fn meet(nodes: &mut [Node]) {
    for _ in 0..10 {
        let all: Vec<Vec<Outgoing>> = nodes.iter_mut().map(Node::publish).collect();
        if all.iter().all(Vec::is_empty) {
            return;
        }
        for node in nodes.iter_mut() {
            all.iter().for_each(|frames| node.apply(frames));
        }
    }
    panic!("there is always more to say");
}

fn conflicts(node: &Node) -> Vec<Conflict> {
    let mut all = Vec::new();
    let path = node.dir.path().join("app.db");
    crate::apply::conflicts(&path, &mut |conflict| all.push(conflict)).unwrap();
    all
}

#[test]
fn a_row_whose_number_is_taken_waits_and_comes_back() {
    let mut n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    n[1].clock.advance(Duration::from_secs(1));
    n[1].run("INSERT INTO note(text) VALUES ('b')");
    meet(&mut n);
    assert_eq!(assert_equal(&n, ALL), "i1 t'b'");
    assert_eq!(assert_equal(&n, WAITING), "i1");
    for node in &n {
        assert_eq!(node.db.displaced().unwrap(), 1);
        let all = conflicts(node);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].collisions[0].winner_key, all[0].key());
    }
    // An update of the row that is shown concerns it alone, and so does its delete.
    n[0].run("UPDATE note SET edit = 1");
    meet(&mut n);
    n[0].run("DELETE FROM note");
    meet(&mut n);
    assert_eq!(assert_equal(&n, ALL), "i1 t'a'");
    assert_eq!(assert_equal(&n, WAITING), "i0");
    n[1].run("DELETE FROM note");
    meet(&mut n);
    assert_eq!(assert_equal(&n, ALL), "");
}

#[test]
fn a_row_that_was_deleted_and_inserted_again_is_another_row() {
    let mut n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    meet(&mut n);
    n.iter()
        .for_each(|node| node.clock.advance(Duration::from_secs(1)));
    n[0].run("DELETE FROM note; INSERT INTO note(text) VALUES ('b')");
    n[1].clock.advance(Duration::from_secs(1));
    n[1].run("UPDATE note SET edit = 1");
    meet(&mut n);
    // The update is newer than the delete, so the old row lives on beside the new one.
    assert_eq!(assert_equal(&n, ALL), "i1 t'a'");
    assert_eq!(assert_equal(&n, WAITING), "i1");
}

/// A migration makes the table anew in two steps, and the core sees what is between them.
fn rebuild(node: &mut Node) {
    let copy = NOTES.replace("note", "new");
    node.run(&format!(
        "{copy}; INSERT INTO new SELECT * FROM note; DROP TABLE note"
    ));
    node.capture();
    node.run("ALTER TABLE new RENAME TO note");
    node.capture();
}

#[test]
fn rows_that_wait_are_sent_although_their_table_was_gone_for_a_moment() {
    let mut n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    n[0].capture();
    n[1].clock.advance(Duration::from_secs(1));
    n[1].run("INSERT INTO note(text) VALUES ('b')");
    let theirs = n[1].publish();
    n[0].apply(&theirs);
    n[0].run("DELETE FROM note; INSERT INTO note(text) VALUES ('c')");
    n[0].capture();
    assert_eq!(n[0].rows(ALL), "i1 t'c'");
    rebuild(&mut n[0]);
    meet(&mut n);
    assert_eq!(assert_equal(&n, ALL), "i1 t'c'");
    assert_eq!(lives(&n[0]), lives(&n[1]));
    assert_eq!(assert_equal(&n, WAITING), "i1", "'a', which nobody deleted");
    n[1].run("DELETE FROM note");
    meet(&mut n);
    assert_eq!(assert_equal(&n, ALL), "i1 t'a'");
}

#[test]
fn a_row_is_another_row_although_its_table_was_gone_for_a_moment() {
    let mut n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    meet(&mut n);
    let clocks = n.iter();
    clocks.for_each(|node| node.clock.advance(Duration::from_secs(1)));
    n[0].run("DELETE FROM note; INSERT INTO note(text) VALUES ('b')");
    rebuild(&mut n[0]);
    n[1].clock.advance(Duration::from_secs(1));
    n[1].run("UPDATE note SET edit = 1");
    meet(&mut n);
    assert_eq!(assert_equal(&n, ALL), "i1 t'a'");
    assert_eq!(assert_equal(&n, WAITING), "i1");
}

/// A join learns a row again, and takes the row's mark to its own transaction.
#[test]
fn a_mark_that_moves_on_stays_for_the_other_row_of_its_number() {
    let mut n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    meet(&mut n);
    n[0].run("DELETE FROM note; INSERT INTO note(text) VALUES ('b')");
    n[0].capture();
    let at = n[0].rows("SELECT at FROM __harmonylite___unsent");
    let at = at.strip_prefix('i').unwrap().parse().unwrap();
    let table = n[0].db.catalog.by_id.values().next().unwrap().clone();
    let key = table.key_bytes([Value::Integer(1)].into_iter());
    let moved = n[0].db.write(|db| {
        let mut frames = Frames::new(db);
        db.mark_onwards(&table, &key, at, &mut frames)
    });
    moved.unwrap();
    let sent = n[0].publish();
    n[1].apply(&sent);
    assert_eq!(lives(&n[0]), lives(&n[1]));
}

/// Each step takes up one life of the number at a time, however many wait.
#[test]
fn ten_thousand_rows_wait_for_one_number() {
    let mut n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    n[1].clock.advance(Duration::from_secs(1));
    n[1].run("INSERT INTO note(text) VALUES ('z')");
    meet(&mut n);
    n[0].run(
        "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
         INSERT INTO __harmonylite___lives
             SELECT table_id, key, unhex(printf('03%016x%016x', hlc - i * 65536, 1)),
                    hlc - i * 65536, site, deleted, at, hash, exc, row
             FROM __harmonylite___lives, n",
    );
    n[0].db.republish_all().unwrap();
    meet(&mut n);
    assert_eq!(assert_equal(&n, WAITING), "i10000");
    let mut late = node(3, NOTES);
    let taken = snapshot(&mut n[0]);
    merge(&mut late, &taken);
    assert_eq!(late.rows(WAITING), "i10000");
    assert_eq!(conflicts(&late).len(), 10_000);
    // It lacks one of them, which is old enough to have been deleted, or is new.
    late.run("DELETE FROM note");
    late.capture();
    assert_eq!(late.rows(ALL), "i1 t'a'");
    merge(&mut late, &taken);
    let [a, b] = n;
    let mut n = [a, b, late];
    n[1].run("UPDATE note SET edit = 1");
    meet(&mut n);
    assert_eq!(lives(&n[0]), lives(&n[2]));
}

#[test]
fn equal_rows_under_given_numbers_are_one() {
    let mut n = two();
    for node in &n {
        node.run(
            "INSERT INTO note(id, text) VALUES (1, 'seed'), (2, 'x' || (SELECT count(*) + 1))",
        );
    }
    n[1].run("INSERT INTO note(id, text) VALUES (3, 'other')");
    meet(&mut n);
    assert_eq!(assert_equal(&n, WAITING), "i0");
}

#[test]
fn a_file_has_no_births_until_one_comes() {
    let has = |node: &Node| {
        let text = "SELECT 1 FROM pragma_table_info(?1) WHERE name = 'born'";
        let mut has = node.app.prepare(text).unwrap();
        has.exists(["__harmonylite__note_versions"]).unwrap()
    };
    let mut n = [1, 2, 3].map(|id| Node::new(id, NOTES));
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    meet(&mut n);
    assert!(!n.iter().any(has));
    let [a, b, c] = n;
    let mut n = [a, b, c, node(4, NOTES)];
    n[1].run("INSERT INTO note(id, text) VALUES (2, 'b')");
    n[3].clock.advance(Duration::from_secs(1));
    n[3].run("INSERT INTO note(id, text) VALUES (2, 'c')");
    let taken = snapshot(&mut n[0]);
    merge(&mut n[3], &taken);
    let taken = snapshot(&mut n[3]);
    merge(&mut n[0], &taken);
    meet(&mut n);
    assert!(n.iter().all(has));
    assert_eq!(assert_equal(&n, ALL), "i1 t'a'\ni2 t'c'");
    assert_eq!(assert_equal(&n, WAITING), "i1");
    n[2].restart();
    n[2].run("DELETE FROM note WHERE id = 2");
    meet(&mut n);
    assert_eq!(assert_equal(&n, ALL), "i1 t'a'\ni2 t'b'");
}

#[test]
fn a_copy_of_a_file_has_the_rows_of_the_others() {
    let schema = format!("{NOTES}; INSERT INTO note(text) VALUES ('a'), ('b')");
    let mut n = [Node::new(1, &schema), node(2, &schema), node(3, &schema)];
    n[0].run("UPDATE note SET edit = 1 WHERE id = 1");
    meet(&mut n);
    assert_eq!(
        assert_equal(&n, "SELECT id, edit FROM note"),
        "i1 i1\ni2 null"
    );
    assert_eq!(assert_equal(&n, WAITING), "i0");
}

#[test]
fn a_restart_and_a_snapshot_keep_waiting_rows() {
    let mut n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    n[1].clock.advance(Duration::from_secs(1));
    n[1].run("INSERT INTO note(text) VALUES ('b')");
    meet(&mut n);
    let mut late = node(3, NOTES);
    merge(&mut late, &snapshot(&mut n[0]));
    late.restart_with(|s| s.births = true);
    assert_eq!(
        (late.rows(ALL), late.rows(WAITING)),
        ("i1 t'b'".into(), "i1".into())
    );
    late.run("DELETE FROM note");
    late.capture();
    assert_eq!(late.rows(ALL), "i1 t'a'");
    let [a, b] = n;
    let mut n = [a, b, late];
    meet(&mut n);
    assert_eq!(assert_equal(&n, ALL), "i1 t'a'");
}

#[test]
fn a_snapshot_brings_waiting_rows_with_their_versions() {
    let mut n = [1, 2, 3].map(|id| node(id, NOTES));
    for (node, (seconds, text)) in n.iter_mut().zip([(1, "a"), (2, "b"), (3, "c")]) {
        node.clock.advance(Duration::from_secs(seconds));
        node.run(&format!("INSERT INTO note(text) VALUES ('{text}')"));
    }
    meet(&mut n);
    let mut late = node(4, NOTES);
    merge(&mut late, &snapshot(&mut n[0]));
    assert_eq!(lives(&late), lives(&n[0]));
}

#[test]
fn rows_of_one_number_wait_for_their_table() {
    let n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    n[1].clock.advance(Duration::from_secs(1));
    n[1].run("INSERT INTO note(text) VALUES ('b')");
    let [a, b] = n;
    let mut n = [a, b, node(3, "")];
    meet(&mut n);
    assert_eq!(n[2].db.held().unwrap(), 2);
    n[2].run(NOTES);
    n[2].capture();
    assert_eq!(n[2].db.held().unwrap(), 0);
    assert_eq!(assert_equal(&n, ALL), "i1 t'b'");
    assert_eq!(assert_equal(&n, WAITING), "i1");
}

#[test]
fn tombstones_of_rows_without_their_number_are_forgotten_in_time() {
    let mut n = two();
    for text in ["a", "b", "c"] {
        n[0].run(&format!(
            "INSERT INTO note(text) VALUES ('{text}'); DELETE FROM note"
        ));
        n[0].run(&format!("INSERT INTO note(text) VALUES ('{text}')"));
        n[0].capture();
        n[0].run("DELETE FROM note");
        n[0].capture();
    }
    meet(&mut n);
    let dead = "SELECT count(*) FROM __harmonylite___lives WHERE deleted = 1";
    assert_eq!(assert_equal(&n, dead), "i2");
    for node in &mut n {
        super::note(node);
        node.clock.advance(Duration::from_secs(31 * 24 * 3600));
        super::note(node);
        super::sweep(node);
    }
    assert_eq!(assert_equal(&n, dead), "i0");
}

/// Numbers from one seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A history of some nodes, and what their applications did in it.
struct Notes {
    nodes: Vec<Node>,
    assigns: Vec<bool>,
    has_tags: bool,
    /// Entries of the change log that are captured at a time.
    parts: usize,
    chance: Chance,
    frames: Vec<Outgoing>,
    /// By node, the frames that it has read.
    read: Vec<BTreeSet<usize>>,
    /// Texts of rows that must not be lost.
    promised: BTreeSet<String>,
    /// Texts of rows that somebody ended who saw them.
    ended: BTreeSet<String>,
    texts: usize,
}

impl Notes {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let count = 2 + chance.below(2);
        let autoincrement = ["", " AUTOINCREMENT"][chance.below(2)];
        let schema = NOTES.replace(" KEY,", &format!(" KEY{autoincrement},"));
        let all_assign = chance.below(3) > 0;
        let assigns: Vec<bool> = (0..count)
            .map(|_| all_assign || chance.below(2) == 0)
            .collect();
        let parts = [1, 2, 3, 512][chance.below(4)];
        let nodes = (0..count).map(|i| {
            let node = Node::with(i as u64 + 1, &schema, |s| {
                s.births = assigns[i];
                s.scan_max_changes = parts;
            });
            node.clock
                .advance(Duration::from_secs([0, 0, 3][chance.below(3)]));
            node
        });
        Notes {
            nodes: nodes.collect(),
            assigns: assigns.clone(),
            parts,
            has_tags: chance.below(2) == 0,
            frames: Vec::new(),
            read: vec![BTreeSet::new(); count],
            promised: BTreeSet::new(),
            ended: BTreeSet::new(),
            texts: 0,
            chance,
        }
    }

    /// Id, text and tag of the rows of a node.
    fn rows(&self, place: usize) -> Vec<(i64, String, Option<String>)> {
        let app = &self.nodes[place].app;
        let mut list = app
            .prepare("SELECT id, text, tag FROM note ORDER BY 1")
            .unwrap();
        let rows = list.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }

    fn text(&mut self, place: usize) -> String {
        self.texts += 1;
        let text = format!("t{}", self.texts);
        if self.assigns[place] {
            self.promised.insert(text.clone());
        }
        text
    }

    fn tag(&mut self) -> Option<&'static str> {
        if !self.has_tags {
            return None;
        }
        [None, None, None, Some("x"), Some("y")][self.chance.below(5)]
    }

    fn write(&mut self, place: usize) {
        let rows = self.rows(place);
        let some = (!rows.is_empty()).then(|| match self.chance.below(2) {
            0 => rows[rows.len() - 1].clone(),
            _ => rows[self.chance.below(rows.len())].clone(),
        });
        let free = |id: i64| !rows.iter().any(|(other, ..)| *other == id);
        let tag = self.tag();
        let is_used = tag.is_some() && rows.iter().any(|(.., other)| other.as_deref() == tag);
        let quoted = tag.map_or("NULL".to_owned(), |tag| format!("'{tag}'"));
        let id = 1 + self.chance.below(4) as i64;
        let run = |notes: &Self, sql: String| notes.nodes[place].run(&sql);
        match (self.chance.below(12), some) {
            (0..=3, _) if !is_used => {
                let text = self.text(place);
                run(
                    self,
                    format!("INSERT INTO note(text, tag) VALUES ('{text}', {quoted})"),
                );
            }
            (4, _) if free(id) => {
                let text = match self.chance.below(2) {
                    0 => format!("seed {id}"),
                    _ => self.text(place),
                };
                if self.assigns[place] {
                    self.promised.insert(text.clone());
                }
                run(
                    self,
                    format!("INSERT INTO note(id, text) VALUES ({id}, '{text}')"),
                );
            }
            (5, _) => {
                let shares = |(other, _, t): &&(i64, String, Option<String>)| {
                    *other == id || tag.is_some() && t.as_deref() == tag
                };
                let gone: Vec<_> = rows.iter().filter(shares).map(|r| r.1.clone()).collect();
                self.ended.extend(gone);
                let text = self.text(place);
                // A REPLACE of a row is an update of it, which may lose like any other.
                if !free(id) {
                    self.promised.remove(&text);
                }
                run(
                    self,
                    format!("REPLACE INTO note(id, text, tag) VALUES ({id}, '{text}', {quoted})"),
                );
            }
            (6 | 7, Some((id, ..))) => {
                let edit = self.chance.below(1000);
                run(
                    self,
                    format!("UPDATE note SET edit = {edit} WHERE id = {id}"),
                );
            }
            (8, Some((old, text, _))) if free(id) => {
                self.ended.insert(text);
                let text = self.text(place);
                run(
                    self,
                    format!("UPDATE note SET id = {id}, text = '{text}' WHERE id = {old}"),
                );
            }
            (9 | 10, Some((id, text, _))) => {
                self.ended.insert(text);
                run(self, format!("DELETE FROM note WHERE id = {id}"));
            }
            (11, Some((id, text, _))) => {
                self.ended.insert(text);
                let text = self.text(place);
                run(
                    self,
                    format!(
                        "DELETE FROM note WHERE id = {id};
                         INSERT INTO note(text) VALUES ('{text}')"
                    ),
                );
            }
            _ => {}
        }
    }

    fn send(&mut self, place: usize) {
        let frames = self.nodes[place].publish();
        for frame in frames {
            self.read[place].insert(self.frames.len());
            self.frames.push(frame);
        }
    }

    /// Sends changes as they are captured.
    fn send_live(&mut self, place: usize) {
        self.send(place);
        while !self.nodes[place].db.is_live() {
            let frames = self.nodes[place].db.backlog(1 << 20).unwrap();
            assert!(frames.is_empty());
        }
        for _ in 0..2 {
            self.write(place);
            let captured = self.nodes[place].db.capture().unwrap();
            for frame in captured.frames {
                self.nodes[place].db.acknowledged(frame.local_tx);
                self.read[place].insert(self.frames.len());
                self.frames.push(frame);
            }
        }
        self.nodes[place].db.stop_live();
    }

    fn read(&mut self, place: usize, at: usize) {
        self.read[place].insert(at);
        let frame = self.frames[at].clone();
        self.nodes[place].apply(&[frame]);
    }

    /// A DELETE also deletes the rows that only the deleted one kept out by a UNIQUE value.
    fn end_hidden(&mut self, place: usize) {
        let hidden = "SELECT CAST(row AS TEXT) FROM __harmonylite___displaced";
        let hidden = self.nodes[place].rows(hidden);
        let is_hidden = |text: &&String| names(&hidden, text);
        let gone: Vec<String> = self.promised.iter().filter(is_hidden).cloned().collect();
        self.ended.extend(gone);
    }

    fn step(&mut self) {
        let place = self.chance.below(self.nodes.len());
        (0..self.nodes.len()).for_each(|place| self.end_hidden(place));
        match self.chance.below(17) {
            0..=7 => self.write(place),
            16 => self.send_live(place),
            8 => {
                self.nodes[place].capture();
            }
            9 | 10 => self.send(place),
            11..=13 if !self.frames.is_empty() => {
                let at = self.chance.below(self.frames.len());
                self.read(place, at);
            }
            14 => {
                let (births, parts) = (self.assigns[place], self.parts);
                self.nodes[place].restart_with(|s| {
                    s.births = births;
                    s.scan_max_changes = parts;
                });
            }
            15 => {
                let maker = self.chance.below(self.nodes.len());
                if maker != place {
                    let made = snapshot(&mut self.nodes[maker]);
                    merge(&mut self.nodes[place], &made);
                }
            }
            _ => {}
        }
        let pause = Duration::from_millis([0, 0, 1, 5][self.chance.below(4)]);
        self.nodes[place].clock.advance(pause);
    }

    fn finish(&mut self) {
        for _ in 0..6 {
            for place in 0..self.nodes.len() {
                self.send(place);
                for at in 0..self.frames.len() {
                    if !self.read[place].contains(&at) {
                        self.read(place, at);
                    }
                }
            }
        }
    }
}

/// Whether rows, as text, have this text in them.
fn names(rows: &str, text: &str) -> bool {
    rows.match_indices(text).any(|(at, _)| {
        let next = rows[at + text.len()..].chars().next();
        !next.is_some_and(|c| c.is_ascii_digit())
    })
}

/// By number and birth: hlc, node and whether it is dead.
fn lives(node: &Node) -> BTreeMap<(i64, Birth), (i64, u64, bool)> {
    let table = node.db.tables()["note"].clone();
    let mut all = BTreeMap::new();
    let text = format!("SELECT k1 FROM {}", versions_table("note"));
    let mut keys = node.app.prepare(&text).unwrap();
    let keys = keys.query_map([], |r| r.get::<_, i64>(0)).unwrap();
    for key in keys.map(Result::unwrap) {
        let value = [crate::model::value::Value::Integer(key)];
        let mut rows = crate::database::rows::Rows::new(&node.db.conn, &table).unwrap();
        let shown = rows.version(&node.db.sites, &value).unwrap().unwrap();
        let key_bytes = table.key_bytes(value.into_iter());
        let aside = match table.has_births {
            true => node.db.lives(&table).of_key(&node.db.sites, &key_bytes),
            false => Ok(Vec::new()),
        };
        let aside = aside.unwrap();
        for stored in aside.into_iter().map(|life| life.stored).chain([shown]) {
            let state = &stored.state;
            let seen = (state.version.hlc, state.version.node, state.deleted);
            let twice = all.insert((key, stored.birth), seen);
            assert_eq!(twice, None, "{key} {:?}", stored.birth);
        }
    }
    all
}

#[test]
fn no_insert_is_lost_in_any_order() {
    let most = std::env::var("BIRTHS").ok().and_then(|n| n.parse().ok());
    let first = std::env::var("BIRTHS_FROM")
        .ok()
        .and_then(|n| n.parse().ok());
    let first: u64 = first.unwrap_or(0);
    for seed in first..first + most.unwrap_or(60) {
        let mut notes = Notes::new(seed);
        let steps = [20, 40, 80][notes.chance.below(3)];
        for _ in 0..steps {
            notes.step();
        }
        notes.finish();
        let first = &notes.nodes[0];
        for node in &notes.nodes[1..] {
            assert_eq!(lives(node), lives(first), "seed {seed}");
            assert_eq!(node.dump(), first.dump(), "seed {seed}");
        }
        notes.nodes.iter_mut().for_each(Node::check);
        let mut known = notes.nodes[0].rows(
            "SELECT text FROM note
             UNION SELECT CAST(row AS TEXT) FROM __harmonylite___displaced",
        );
        if notes.nodes[0].db.catalog.births {
            known += &notes.nodes[0].rows("SELECT CAST(row AS TEXT) FROM __harmonylite___lives");
        }
        for text in notes.promised.difference(&notes.ended) {
            let assigns = &notes.assigns;
            assert!(
                names(&known, text),
                "seed {seed}: {text} is lost, births {assigns:?}"
            );
        }
    }
}

#[test]
fn a_captured_row_that_waits_is_no_sign_of_a_restored_backup() {
    let mut n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    n[1].clock.advance(Duration::from_secs(1));
    n[1].run("INSERT INTO note(text) VALUES ('b')");
    let newer = n[1].publish();
    let older = n[0].publish();
    n[1].apply(&older);
    n[0].apply(&newer);
    n[0].run("CREATE TABLE other(id INTEGER PRIMARY KEY)");
    meet(&mut n);
    assert_eq!(assert_equal(&n, WAITING), "i1");
}

#[test]
fn a_row_after_an_ignored_insert_is_a_row_of_its_own() {
    let mut n = two();
    n[0].run("INSERT INTO note(text) VALUES ('a')");
    meet(&mut n);
    n[1].clock.advance(Duration::from_secs(1));
    n[1].run("UPDATE note SET edit = 1");
    n[0].run("INSERT OR IGNORE INTO note(id, text) VALUES (1, 'x'); DELETE FROM note");
    n[0].run("INSERT INTO note(text) VALUES ('b')");
    meet(&mut n);
    // The update is newer than the delete: both rows live.
    assert_eq!(assert_equal(&n, ALL), "i1 t'a'");
    assert_eq!(assert_equal(&n, WAITING), "i1");
}

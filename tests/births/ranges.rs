//! Real SQLite: nodes that insert own blocks of numbers, and only the highest block can be used.
//!
//! SQLite takes the larger of the last number of `sqlite_sequence` and the highest rowid, plus one.
//! So a node that has a row above its own block would give numbers of somebody else's.

use std::collections::BTreeSet;

use rusqlite::Connection;

use crate::random::Random;

const NODES: usize = 3;
const STEPS: usize = 1500;
const BLOCK: i64 = 1000;

/// When a node claims a block.
#[derive(Clone, Copy, PartialEq)]
enum Claims {
    /// When its own block is nearly used up.
    AsUsed,
    /// As well, together with every change that has a number above its own block.
    Highest,
}

struct Node {
    conn: Connection,
    block: i64,
    used: i64,
    online: bool,
    sent: Vec<i64>,
    inbox: Vec<i64>,
}

impl Node {
    fn new() -> Self {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v);
             INSERT INTO sqlite_sequence VALUES ('t', 0)",
        )
        .unwrap();
        Node {
            conn,
            block: 0,
            used: 0,
            online: true,
            sent: Vec::new(),
            inbox: Vec::new(),
        }
    }

    fn claim(&mut self, next: &mut i64) {
        (self.block, self.used) = (*next, *next - 1);
        *next += BLOCK;
        self.lead();
    }

    /// Makes SQLite go on after the last number used.
    fn lead(&self) {
        let text = "UPDATE sqlite_sequence SET seq = ?1 WHERE name = 't'";
        self.conn.execute(text, [self.used]).unwrap();
    }

    fn insert(&mut self) -> i64 {
        let text = "INSERT INTO t(v) VALUES (1) RETURNING id";
        let id: i64 = self.conn.query_row(text, [], |r| r.get(0)).unwrap();
        self.sent.push(id);
        self.used = self.used.max(id);
        id
    }

    fn apply(&mut self, claims: Claims, next: &mut i64) {
        let top = self.inbox.iter().max().copied().unwrap_or(0);
        if claims == Claims::Highest && top >= self.used && top >= self.block {
            self.claim(next);
        }
        for id in std::mem::take(&mut self.inbox) {
            let text = "INSERT OR IGNORE INTO t(id, v) VALUES (?1, 2)";
            self.conn.execute(text, [id]).unwrap();
        }
        self.lead();
    }
}

/// Numbers that two nodes gave, and numbers given in all.
fn run(seed: u64, claims: Claims) -> (usize, usize) {
    let mut random = Random::new(seed);
    let mut next = 1;
    let mut nodes: Vec<Node> = (0..NODES).map(|_| Node::new()).collect();
    nodes.iter_mut().for_each(|node| node.claim(&mut next));
    let (mut given, mut twice) = (BTreeSet::new(), 0);
    for _ in 0..STEPS {
        let place = random.below(NODES);
        match random.weighted(&[50, 10, 20, 20]) {
            0 => {
                for _ in 0..*random.pick(&[1, 1, 3]) {
                    twice += usize::from(!given.insert(nodes[place].insert()));
                }
            }
            1 => nodes[place].online = random.percent(90),
            2 if nodes[place].online => {
                let sent = std::mem::take(&mut nodes[place].sent);
                let others = (0..NODES).filter(|other| *other != place);
                others.for_each(|other| nodes[other].inbox.extend(&sent));
            }
            3 if nodes[place].online && !nodes[place].inbox.is_empty() => {
                nodes[place].apply(claims, &mut next);
            }
            _ => {}
        }
        let node = &mut nodes[place];
        if claims == Claims::AsUsed && node.used >= node.block + BLOCK * 9 / 10 {
            node.claim(&mut next);
        }
    }
    (twice, given.len() + twice)
}

#[test]
fn the_highest_block_is_never_shared() {
    for seed in 0..3 {
        let (twice, given) = run(seed, Claims::Highest);
        assert!(given > 1000);
        assert_eq!(twice, 0, "seed {seed}");
    }
}

#[test]
fn a_block_below_other_rows_is_of_no_use() {
    let (twice, given) = run(0, Claims::AsUsed);
    assert!(twice > given / 20, "{twice} of {given}");
}

//! The record of an application's operations, which it keeps outside of the database: it survives
//! kill -9 of the application, and lies on a disk that never loses power.
//!
//! ```text
//! P kv 17 812 2 801    about to be committed: key 17 of kv := number 812; it replaced (2, 801)
//! D kv 3 813 1 700     key 3 of kv is deleted
//! M uniq 5 813 0 0     key 5 of uniq may be deleted with it: the row deleted hid it
//! E                    the block is complete: now COMMIT
//! C | R                it is committed | it was rolled back
//! ```
//!
//! A block without an end may be committed or not. Each block is written by one write(2).

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::Result;
use crate::schema::Stamp;

/// Table and key.
pub type Key = (String, String);

#[derive(Clone, Debug)]
pub struct Op {
    /// The writer's number; 0 for a delete.
    pub seq: u64,
    pub delete: bool,
    pub certain: bool,
}

/// The operations of one node's applications since the record began.
#[derive(Default)]
pub struct Record {
    pub writer: u64,
    pub ops: HashMap<Key, Vec<Op>>,
    /// Values that a certainly committed write replaced: no node may hold them in the end.
    pub replaced: HashSet<(Key, Stamp)>,
    pub transactions: usize,
    pub uncertain: usize,
}

/// Key, operation and the value that it replaced.
type Line = (Key, Op, Stamp);

impl Record {
    pub fn read(writer: u64, file: &Path) -> Result<Record> {
        let mut record = Record {
            writer,
            ..Record::default()
        };
        let text = match std::fs::read_to_string(file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(record),
            other => other?,
        };
        let mut block: Vec<Line> = Vec::new();
        let mut complete = false;
        for line in text.lines() {
            match line {
                "C" => record.take(std::mem::take(&mut block), true),
                "E" => complete = true,
                "" => {}
                _ => {
                    // The block before was left open: this line belongs to the next one.
                    if complete {
                        record.take(std::mem::take(&mut block), false);
                    }
                    complete = false;
                    match line {
                        "R" => block.clear(),
                        line => block.extend(parse(line)),
                    }
                }
            }
        }
        if complete {
            record.take(block, false);
        }
        Ok(record)
    }

    fn take(&mut self, block: Vec<Line>, certain: bool) {
        if block.is_empty() {
            return;
        }
        self.transactions += 1;
        self.uncertain += usize::from(!certain);
        for (key, mut op, replaced) in block {
            op.certain &= certain;
            if certain && replaced != (0, 0) {
                self.replaced.insert((key.clone(), replaced));
            }
            self.ops.entry(key).or_default().push(op);
        }
    }

    /// Makes every write uncertain: a power cut with synchronous=NORMAL may take unsynced commits.
    pub fn doubt_all(&mut self) {
        self.replaced.clear();
        let ops = self.ops.values_mut().flatten();
        ops.for_each(|op| op.certain = false);
    }
}

fn parse(line: &str) -> Option<Line> {
    let mut words = line.split(' ');
    let (delete, certain) = match words.next()? {
        "P" => (false, true),
        "D" => (true, true),
        "M" => (true, false),
        _ => return None,
    };
    let (table, key) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut number = || words.next()?.parse::<u64>().ok();
    let (seq, writer, replaced) = (number()?, number()?, number()?);
    let op = Op {
        seq,
        delete,
        certain,
    };
    Some(((table, key), op, (writer, replaced)))
}

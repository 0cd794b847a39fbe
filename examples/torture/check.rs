//! The conditions that must hold after healing: see [`check`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::cluster::Cluster;
use crate::record::{Key, Record};
use crate::schema::{self, Stamp, TABLES};
use crate::{Result, displaced};

/// All rows of all tables, and whether each is displaced.
pub type Content = BTreeMap<Key, (Stamp, bool)>;

fn stamp(content: &Content, key: &Key) -> Option<Stamp> {
    content.get(key).map(|(stamp, _)| *stamp)
}

/// Rows that a node which kept its power had: for each key the newest number of each writer.
pub type Seen = HashMap<Key, HashMap<u64, u64>>;

pub fn open(db: &Path) -> Result<Connection> {
    let conn = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    Ok(conn)
}

/// All rows; an error if one of them mixes two writes.
pub fn content(db: &Path) -> Result<Content> {
    let conn = open(db)?;
    let mut content = Content::new();
    let mut add = |table: &str, (key, stamp, pad): (String, Stamp, String), is_displaced| {
        if pad != schema::pad(stamp) {
            return Err(format!(
                "{table} {key}: a row of two writes: {stamp:?}, {pad}"
            ));
        }
        // A displaced row that the application wrote anew is void, and soon gone.
        let row = content.entry((table.to_owned(), key));
        row.or_insert((stamp, is_displaced));
        Ok(())
    };
    let transaction = conn.unchecked_transaction()?;
    for table in TABLES {
        let mut statement = transaction.prepare(&schema::select_all(table))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let stamp = (row.get(1)?, row.get(2)?);
            add(table, (row.get(0)?, stamp, row.get(3)?), false)?;
        }
    }
    for row in displaced::all(&transaction)? {
        add(displaced::TABLE, row, true)?;
    }
    Ok(content)
}

/// Number of changes that this node has not sent or stored yet: change log, marks, held columns,
/// tables under comparison.
pub fn pending(db: &Path) -> Result<u64> {
    let conn = open(db)?;
    let text = "SELECT (SELECT count(*) FROM __harmonylite___change_log_global)
        + (SELECT count(*) FROM __harmonylite___unsent)
        + (SELECT count(*) FROM __harmonylite___held)
        + (SELECT count(*) FROM __harmonylite___parts)
        + (SELECT count(*) FROM __harmonylite___tables WHERE compare IS NOT NULL)";
    Ok(conn.query_row(text, [], |r| r.get(0))?)
}

/// Waits until all nodes hold the same rows and have nothing left to send. Returns the rows.
pub fn converged(cluster: &mut Cluster, patience: Duration) -> Result<Content> {
    let began = Instant::now();
    let mut times = 0;
    loop {
        cluster.all_alive()?;
        let (state, content) = compare(cluster)?;
        times = if state.is_none() { times + 1 } else { 0 };
        if times == 3 {
            return Ok(content);
        }
        if let (Some(difference), true) = (state, began.elapsed() > patience) {
            let waited = patience.as_secs();
            return Err(format!("not equal after {waited} s: {difference}").into());
        }
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// The first difference between the nodes, if there is one.
fn compare(cluster: &Cluster) -> Result<(Option<String>, Content)> {
    let mut first: Option<Content> = None;
    for node in &cluster.nodes {
        let left = pending(&node.db())?;
        let content = content(&node.db())?;
        if left > 0 {
            let text = format!("node {} has {left} changes to send", node.id);
            return Ok((Some(text), content));
        }
        let Some(other) = &first else {
            first = Some(content);
            continue;
        };
        let one_sided = |a: &Content, b: &Content| -> Option<Key> {
            let mut differing = a.iter().filter(|(k, v)| b.get(*k) != Some(v));
            differing.next().map(|(k, _)| k.clone())
        };
        let differing = one_sided(other, &content).or_else(|| one_sided(&content, other));
        if let Some(key) = differing {
            let (first, here) = (other.get(&key), content.get(&key));
            let text = format!(
                "{key:?} is {first:?} on node {} and {here:?} on node {}",
                cluster.nodes[0].id, node.id
            );
            return Ok((Some(text), content));
        }
    }
    Ok((None, first.unwrap_or_default()))
}

/// Adds the rows of a database to the rows that were seen.
pub fn look(db: &Path, seen: &mut Seen) -> Result<()> {
    for (key, ((writer, seq), _)) in content(db)? {
        let newest = seen.entry(key).or_default().entry(writer).or_default();
        *newest = seq.max(*newest);
    }
    Ok(())
}

/// The end of a round that passed.
pub struct Healed {
    pub transactions: usize,
    uncertain: usize,
    rows: usize,
    took: Duration,
}

impl fmt::Display for Healed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} transactions ({} cut off), {} rows, equal after {:.1} s",
            self.transactions,
            self.uncertain,
            self.rows,
            self.took.as_secs_f64()
        )
    }
}

/// Ends the applications. All nodes must become equal, and right. `base` is the content of all
/// nodes before the round, and then the content after it.
pub fn healed(cluster: &mut Cluster, base: &mut Content, patience: Duration) -> Result<Healed> {
    cluster.kill_apps()?;
    let began = Instant::now();
    let content = converged(cluster, patience)?;
    let took = began.elapsed();
    let records = cluster.nodes.iter().map(|n| n.records());
    let records = records.collect::<Result<Vec<_>>>()?;
    check(cluster, base, &records, &Seen::new(), &content)?;
    *base = content;
    Ok(Healed {
        transactions: records.iter().map(|r| r.transactions).sum(),
        uncertain: records.iter().map(|r| r.uncertain).sum(),
        rows: base.len(),
        took,
    })
}

/// Judges the common `content`. `base` is the content of all nodes before, `records` the operations
/// of the applications since, `seen` the rows that nodes which kept their power had read.
///
/// Every key must hold some application's last write to it, and no write that a later committed
/// write replaced. A key that nobody deleted must be there. Databases must be sound.
pub fn check(
    cluster: &Cluster,
    base: &Content,
    records: &[Record],
    seen: &Seen,
    content: &Content,
) -> Result<()> {
    let mut wrong = Vec::new();
    let idle = records.iter().filter(|r| r.transactions == 0);
    wrong.extend(idle.map(|r| format!("application {} wrote nothing", r.writer)));
    let written = records.iter().flat_map(|r| r.ops.keys());
    let keys: HashSet<&Key> = written.chain(base.keys()).chain(content.keys()).collect();
    for key in keys {
        let allowed = allowed(key, base, records, seen);
        let found = stamp(content, key);
        if !allowed.contains(&found) {
            wrong.push(format!("{key:?} is {found:?}, allowed is {allowed:?}"));
        }
    }
    for node in &cluster.nodes {
        let conn = open(&node.db())?;
        let sound: String = conn.query_row("PRAGMA integrity_check(3)", [], |r| r.get(0))?;
        if sound != "ok" {
            wrong.push(format!("node {}: integrity_check: {sound}", node.id));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let count = wrong.len();
    wrong.truncate(10);
    Err(format!("{count} wrong:\n  {}", wrong.join("\n  ")).into())
}

/// The rows that a key may hold in the end; None stands for no row.
fn allowed(key: &Key, base: &Content, records: &[Record], seen: &Seen) -> Vec<Option<Stamp>> {
    let seen = seen.get(key);
    let mut allowed = Vec::new();
    let mut superseded = seen.is_some_and(|s| {
        let old = stamp(base, key).unwrap_or_default();
        s.iter().any(|(writer, seq)| (*writer, *seq) != old)
    });
    for record in records {
        let ops = record.ops.get(key).map_or(&[][..], Vec::as_slice);
        let certain = ops.iter().rposition(|op| op.certain);
        superseded |= certain.is_some();
        let floor = seen.and_then(|s| s.get(&record.writer)).copied();
        for op in &ops[certain.unwrap_or(0)..] {
            if floor.is_none_or(|floor| op.seq >= floor) {
                allowed.push((!op.delete).then_some((record.writer, op.seq)));
            }
        }
    }
    if !superseded {
        allowed.push(stamp(base, key));
    }
    let replaced = |stamp: Stamp| {
        let what = (key.clone(), stamp);
        records.iter().any(|r| r.replaced.contains(&what))
    };
    allowed.retain(|value| value.is_none_or(|stamp| !replaced(stamp)));
    allowed
}

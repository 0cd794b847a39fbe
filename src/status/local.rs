//! The facts of this node, as of one moment.

use std::collections::BTreeMap;

use super::board::About;
use super::entry::NodeEntry;
use super::report::NewestSnapshot;
use crate::database::{Database, Result};
use crate::health;
use crate::shared::{Locked, Shared};

/// Rows are counted up to this number, so that neither the caller nor the node has to wait.
pub const COUNTED: u64 = 10_000;

/// Everything that a node knows of itself.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// The node's id.
    pub node: u64,
    /// The state of this node that the others get.
    pub entry: NodeEntry,
    /// Per origin, by how many milliseconds this node is behind its changes.
    pub lag_ms: BTreeMap<u64, u64>,
    /// Per other node, when the broker stored the newest of its messages that is applied here, in
    /// unix milliseconds.
    pub heard_ms: BTreeMap<u64, i64>,
    /// Failing subjects and their texts, as `/health` has them.
    pub problems: BTreeMap<String, String>,
    /// Why this node is offline on purpose.
    pub offline: Option<String>,
    /// The broker's clock in unix milliseconds; `None` before this node heard of it.
    pub now_ms: Option<i64>,
    /// The newest snapshot that this node knows of.
    pub snapshot: Option<NewestSnapshot>,
}

impl NodeFacts {
    /// Reads the facts; `locked` is that of `shared`. Fails if the database does.
    pub fn gather(shared: &Shared, locked: &Locked) -> Result<NodeFacts> {
        let db = &locked.database;
        let heard_ms: BTreeMap<u64, i64> = db.newest_by_origin().collect();
        let now_ms = db.broker_time_ms();
        let lag_ms = lag(&heard_ms, now_ms, shared.is_caught_up() || !shared.reads());
        let problems = problems(shared, db)?;
        let mut entry = stored(&shared.status.about(), db)?;
        entry.unsent = db.unsent_up_to(COUNTED)?;
        entry.rejected = db.rejected();
        entry.problems = problems.len() as u64;
        entry.lag_ms = lag_ms.values().copied().max().unwrap_or(0);
        entry.time_ms = now_ms.unwrap_or(0);
        let is_in_trouble =
            entry.unsent + entry.held + entry.problems > 0 || !entry.gaps.is_empty();
        entry.trouble_ms = shared.status.trouble_since(is_in_trouble, now_ms);
        let measures = &shared.measures;
        let age_ms = measures.snapshot_age_ms(db.clock().now_ms());
        let newest = measures.newest_snapshot().zip(age_ms);
        let snapshot = newest.map(|((made_ms, size), age_ms)| NewestSnapshot {
            made_ms,
            age_seconds: age_ms / 1000,
            size,
        });
        Ok(NodeFacts {
            node: db.node(),
            entry,
            lag_ms,
            heard_ms,
            problems,
            offline: shared.health.offline(),
            now_ms,
            snapshot,
        })
    }
}

/// The facts that the database alone has.
fn stored(about: &About, db: &Database) -> Result<NodeEntry> {
    let positions = about.streams.iter().map(|stream| db.position(stream));
    let (positions, gaps): (Vec<u64>, Vec<bool>) =
        positions.map(|p| (p.seq, p.gap.is_some())).unzip();
    let (schema, previous) = db.schema_hashes()?;
    Ok(NodeEntry {
        name: about.name.clone(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        schema: schema.unwrap_or_default(),
        previous: previous.unwrap_or_default(),
        gaps: match gaps.contains(&true) {
            true => gaps,
            false => Vec::new(),
        },
        positions,
        held: db.held_up_to(COUNTED)?,
        displaced: db.displaced_up_to(COUNTED)?,
        quarantined: db.quarantined()?,
        snapshot: db.merged_snapshot()?,
        births: true,
        ..NodeEntry::default()
    })
}

fn problems(shared: &Shared, db: &Database) -> Result<BTreeMap<String, String>> {
    let report = health::report(&shared.health, Some(db))?;
    let problems = report["problems"].as_object().into_iter().flatten();
    let text = |text: &serde_json::Value| text.as_str().unwrap_or_default().to_owned();
    Ok(problems.map(|(k, v)| (k.clone(), text(v))).collect())
}

/// The lag behind each origin in milliseconds: 0 at the end of all streams, else the age of its
/// newest message that is applied here. Only the broker's clock counts, because an origin's may be
/// wrong.
pub fn lag(
    heard_ms: &BTreeMap<u64, i64>,
    now_ms: Option<i64>,
    is_at_end: bool,
) -> BTreeMap<u64, u64> {
    let age = |heard: i64| match (is_at_end, now_ms) {
        (false, Some(now)) => now.saturating_sub(heard).max(0) as u64,
        _ => 0,
    };
    heard_ms
        .iter()
        .map(|(node, ms)| (*node, age(*ms)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::support::Node;

    #[test]
    fn lag_is_by_the_brokers_clock_and_nothing_at_the_end() {
        let heard = BTreeMap::from([(2, 1_000), (3, 9_000)]);
        let behind = lag(&heard, Some(10_000), false);
        assert_eq!(behind, BTreeMap::from([(2, 9_000), (3, 1_000)]));
        let none = BTreeMap::from([(2, 0), (3, 0)]);
        assert_eq!(lag(&heard, Some(10_000), true), none);
        assert_eq!(lag(&heard, None, false), none, "its clock was never heard");
        assert_eq!(lag(&heard, Some(500), false), none);
    }

    #[test]
    fn the_entry_of_a_node() {
        let mut node = Node::new(7, "CREATE TABLE t(id INTEGER PRIMARY KEY)");
        node.run("INSERT INTO t VALUES (1), (2)");
        node.capture();
        node.db.read_up_to("s-1", 5, "a");
        let shared = Shared::new(node.db, 1).0;
        shared.status.introduce(About {
            name: "box".into(),
            streams: vec!["s-1".into(), "s-2".into()],
        });
        shared.health.report_failing("connecting", "no route");
        let facts = NodeFacts::gather(&shared, &shared.lock()).unwrap();
        assert_eq!((facts.node, &*facts.entry.name), (7, "box"));
        assert_eq!(facts.entry.positions, [5, 0]);
        assert_eq!((facts.entry.unsent, facts.entry.problems), (2, 1));
        assert_eq!(facts.problems["connecting"], "no route");
        assert_eq!(facts.entry.schema.len(), 64);
        assert_eq!(NodeEntry::parse(&facts.entry.to_bytes()), Some(facts.entry));
    }
}

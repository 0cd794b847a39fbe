//! Compares the tables that the nodes replicate, as each tells the others. That shows whether two
//! applications use the same streams by mistake, and which held rows belong to tables that no node
//! has any more.

use std::collections::{BTreeMap, BTreeSet};

use super::{Round, RoundError, Scheduler};
use crate::cluster::registry::Told;

/// Name of this fault in [`crate::health`].
const SUBJECT: &str = "another application";

/// Number of tables that are named of each side.
const NAMED: usize = 3;

/// Nodes that have no table in common with this one, not even by way of a third.
#[derive(Debug, PartialEq, Eq)]
struct Strangers {
    /// One such node and some of its tables.
    named: (u64, String),
    /// Whether most nodes are on this node's side, or as many and the founder.
    are_few: bool,
}

impl Scheduler {
    /// Tells the others which tables are here, and compares them with the tables that the others
    /// told. Returns true if this node must wait with joining, because it seems to belong to a
    /// different application.
    pub(super) fn compare_tables(&mut self, round: &mut Round<'_>) -> Result<bool, RoundError> {
        let locked = round.shared.lock();
        let db = &locked.database;
        let (node, schema) = (db.node(), db.catalog_version());
        let own: BTreeSet<String> = db.tables().keys().cloned().collect();
        let now = db.clock.uptime();
        drop(locked);
        let is_told = self.told.as_ref() == Some(&(node, own.clone()));
        // Each comparison asks the broker once per node.
        let is_new = |at| now - at < self.options.leader_ttl;
        if is_told && round.shared.is_joined() && self.compared.is_some_and(is_new) {
            self.told_schema = schema;
            return Ok(false);
        }
        if !is_told {
            round.registry.tell_tables(node, &own)?;
            self.told = Some((node, own.clone()));
        }
        self.compared = Some(now);
        let mut told = round.registry.tables()?;
        self.told_schema = schema;
        let publishers = round.registry.publishers()?;
        let all_told = publishers.keys().all(|p| told.contains_key(p));
        if all_told {
            self.end_forgotten(round, &told)?;
        }
        // A copied node that does not know yet that it is a duplicate tells its tables under the
        // same id.
        let here = told.remove(&node).flatten();
        if here.is_some_and(|tables| !own.is_subset(&tables)) {
            round.registry.tell_tables(node, &own)?;
        }
        let founder = round.registry.founder()?;
        let strangers = strangers((node, &own), &told, founder);
        self.say_strangers(round, &own, strangers.as_ref());
        Ok(all_told && strangers.is_some_and(|s| !s.are_few))
    }

    /// Ends holding rows of tables that no node has had for long.
    fn end_forgotten(
        &self,
        round: &mut Round<'_>,
        told: &BTreeMap<u64, Told>,
    ) -> Result<(), RoundError> {
        if !round.shared.all_at_end() {
            return Ok(());
        }
        let has = |table: &str| {
            let mut all = told.values();
            all.any(|t| t.as_ref().is_none_or(|t| t.contains(table)))
        };
        if round.shared.lock().database.end_forgotten(&has)? {
            round.shared.wake_publisher();
        }
        Ok(())
    }

    /// The tables of each other node, as it told them.
    pub(super) fn tables_of_others(&self, round: &mut Round<'_>) -> Result<Vec<Told>, RoundError> {
        let locked = round.shared.lock();
        let (node, is_needed) = (locked.database.node(), locked.database.has_gone()?);
        drop(locked);
        if !is_needed {
            return Ok(Vec::new());
        }
        let told = round.registry.tables()?;
        let publishers = round.registry.publishers()?.into_keys();
        let others: BTreeSet<u64> = publishers.chain(told.keys().copied()).collect();
        let others = others.into_iter().filter(|other| *other != node);
        Ok(others
            .map(|other| told.get(&other).cloned().flatten())
            .collect())
    }

    fn say_strangers(
        &mut self,
        round: &Round<'_>,
        own: &BTreeSet<String>,
        strangers: Option<&Strangers>,
    ) {
        let prefixes =
            "Give each application a nats.subject_prefix and a nats.stream_prefix of its own";
        let text = match strangers {
            None => {
                if self.strangers.ends() {
                    log::info!("no node of another application is seen any more");
                }
                return round.shared.health.report_ok(SUBJECT);
            }
            Some(Strangers {
                named: (node, tables),
                are_few,
            }) => {
                let some = named(own);
                let text = format!(
                    "node {node} replicates {tables}, none of which is here; here are {some}. Two \
                     applications seem to use the same streams. {prefixes}"
                );
                match are_few {
                    true => round.shared.health.report_ok(SUBJECT),
                    false => round.shared.health.report_failing(SUBJECT, &text),
                }
                text
            }
        };
        if self.strangers.is_news(&text) {
            match strangers.is_some_and(|s| s.are_few) {
                true => log::warn!("{text}"),
                false => log::error!("{text}; until then this node does not join, if it is new"),
            }
        }
    }
}

fn named(tables: &BTreeSet<String>) -> String {
    let some: Vec<&str> = tables.iter().take(NAMED).map(String::as_str).collect();
    let more = if tables.len() > NAMED { ", …" } else { "" };
    format!("{}{more}", some.join(", "))
}

/// Nodes that have none of the tables here, nor any table of a node that has one of them, and so
/// on. `None` if there are none, or if a node's tables are not known.
fn strangers(
    (node, own): (u64, &BTreeSet<String>),
    others: &BTreeMap<u64, Told>,
    founder: Option<u64>,
) -> Option<Strangers> {
    let all: Option<Vec<_>> = others
        .iter()
        .map(|(node, tables)| Some((*node, tables.as_ref()?)))
        .collect();
    let mut rest = all?;
    rest.retain(|(_, tables)| !tables.is_empty());
    if own.is_empty() {
        return None;
    }
    let (ours, mut rest) = side(own, rest);
    let (first, tables) = *rest.first()?;
    let mut largest = 0;
    while let Some((_, tables)) = rest.first() {
        let (theirs, others) = side(tables, rest.clone());
        largest = largest.max(theirs.len());
        rest = others;
    }
    let is_founded_here = founder.is_some_and(|f| f == node || ours.contains(&f));
    let here = 1 + ours.len();
    Some(Strangers {
        named: (first, named(tables)),
        are_few: here > largest || (here == largest && is_founded_here),
    })
}

type NodeTables<'a> = (u64, &'a BTreeSet<String>);

/// The nodes that share tables with these, directly or by way of others, and the rest.
fn side<'a>(
    tables: &BTreeSet<String>,
    nodes: Vec<NodeTables<'a>>,
) -> (Vec<u64>, Vec<NodeTables<'a>>) {
    let (mut reached, mut on_it, mut rest) = (tables.clone(), Vec::new(), nodes);
    loop {
        let (near, far): (Vec<_>, Vec<_>) = rest
            .into_iter()
            .partition(|(_, t)| !t.is_disjoint(&reached));
        rest = far;
        if near.is_empty() {
            return (on_it, rest);
        }
        for (node, tables) in near {
            on_it.push(node);
            reached.extend(tables.iter().cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(tables: &[&str]) -> BTreeSet<String> {
        tables.iter().map(|t| (*t).to_owned()).collect()
    }

    fn found(own: &[&str], others: &[(u64, &[&str])], founder: u64) -> Option<bool> {
        let others = others.iter().map(|(node, t)| (*node, Some(set(t))));
        let found = strangers((1, &set(own)), &others.collect(), Some(founder));
        found.map(|s| s.are_few)
    }

    #[test]
    fn a_node_without_a_common_table_is_a_stranger() {
        assert_eq!(found(&["users"], &[], 1), None);
        assert_eq!(found(&["users"], &[(2, &["users", "more"])], 1), None);
        assert_eq!(found(&["users"], &[(2, &["jobs"])], 1), Some(true));
        assert_eq!(found(&["users"], &[(2, &["jobs"])], 2), Some(false));
        let two = (2, &["jobs"][..]);
        let three = (3, &["jobs", "queues"][..]);
        assert_eq!(
            found(&["users"], &[two, three], 1),
            Some(false),
            "more count"
        );
        let four = (4, &["users"][..]);
        assert_eq!(found(&["users"], &[two, three, four], 1), Some(true));
        // Sites with different tables, and a centre that has the tables of all.
        let centre = (5, &["users", "jobs"][..]);
        assert_eq!(found(&["users"], &[two, three, centre], 2), None);
    }

    #[test]
    fn a_node_without_tables_is_no_stranger() {
        assert_eq!(found(&[], &[(2, &["jobs"])], 2), None);
        assert_eq!(found(&["users"], &[(2, &[])], 2), None);
        let unknown = BTreeMap::from([(2, None), (3, Some(set(&["jobs"])))]);
        assert_eq!(strangers((1, &set(&["users"])), &unknown, Some(3)), None);
    }
}

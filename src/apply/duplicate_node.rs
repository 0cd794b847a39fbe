//! Detects two nodes with one id: a copied SD card that runs beside its original, or one id that is
//! configured twice.
//!
//! No write is lost by that: of two writes under one version the larger content wins everywhere.
//! But chance decides which write that is, so the first node that knows for certain takes a fresh
//! id. A row that came under this node's id is a claim, which anybody who may publish can make: it
//! is logged. Proof is a claim, and an entry of this node in the broker's bucket that a different
//! process wrote since this one started ([`crate::status`]).

use crate::apply::{Incoming, held};
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::table::Table;
use crate::database::{Database, Result};
use crate::model::frame::{Row, TableRows};
use crate::model::manifest::SnapshotEntry;
use crate::model::version::Version;
use crate::mutation::{self, Mutation};

/// Names of own snapshots that are remembered. Many may fail in the store before one replaces the
/// snapshot that is listed there.
const MADE_KEPT: usize = 64;

/// Rows of one message that are looked up: the message of somebody else may be full of rows under
/// this node's id.
const MOST_LOOKED_UP: usize = 256;

/// Signs, since the start, that a different node has this node's id.
#[derive(Debug, Default)]
pub(crate) struct IdClaim {
    /// A row came that this node did not write.
    has_row: bool,
    /// A different process wrote this node's entry in the broker's bucket.
    has_entry: bool,
}

impl Database {
    /// Logs that a row was written under this node's id since it started, and not by it. Takes a
    /// fresh id if there is proof that a different node wrote it.
    pub(super) fn detect_duplicate_node(
        &mut self,
        nodes: &[u64],
        tables: &[TableRows<'_>],
    ) -> Result<()> {
        if !nodes.contains(&self.node)
            || self.id_claim.has_row
            || !self.has_row_of_duplicate(nodes, tables)?
        {
            return Ok(());
        }
        self.id_claim.has_row = true;
        log::warn!(
            "a message under this node's id {} is not from this node: a copied disk, one node_id \
             in two configurations, or somebody who may publish pretends to be this node. This \
             node keeps its id unless a second node shows itself under it",
            self.node
        );
        self.take_proof()
    }

    /// Notes that a different process wrote the entry of this node in the broker's bucket.
    pub fn note_other_process(&mut self) -> Result<()> {
        self.id_claim.has_entry = true;
        match self.id_claim.has_row {
            true => self.write(Database::take_proof),
            false => Ok(()),
        }
    }

    /// Takes a fresh id if both signs of a duplicate are there. Inside a transaction.
    fn take_proof(&mut self) -> Result<()> {
        match self.id_claim.has_row && self.id_claim.has_entry {
            true => self.take_fresh_id("another node writes"),
            false => Ok(()),
        }
    }

    fn has_row_of_duplicate(&self, nodes: &[u64], tables: &[TableRows<'_>]) -> Result<bool> {
        let mut looked_up = 0;
        for incoming in tables {
            let name = incoming.name.to_ascii_lowercase();
            let known = self.catalog.by_name.get(&name);
            let shape = held::shape_of_frame(&incoming.key);
            let Some(table) = known.filter(|t| held::shape_of_table(t) == shape) else {
                continue;
            };
            let (mut rows, mut row) = (incoming.rows(nodes), Row::default());
            while rows.next(&mut row).unwrap_or(false) {
                let version = row.version;
                if version.node != self.node || !self.is_of_this_start(version) {
                    continue;
                }
                looked_up += 1;
                if looked_up > MOST_LOOKED_UP {
                    return Ok(false); // the next message of a duplicate shows it as well
                }
                let key = &row.values[..table.key_len()];
                let here = self.life(table, key, row.birth)?;
                let is_unknown = here.is_none_or(|s| s.state.version < version);
                if is_unknown && !self.is_known_as_former(table, incoming, &row)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether the row was written here under the former key of its table, at its version or later.
    fn is_known_as_former(
        &self,
        table: &Table,
        incoming: &TableRows<'_>,
        row: &Row<'_>,
    ) -> Result<bool> {
        let value = |name: &str| {
            let mut columns = incoming.columns.iter();
            let at = columns.position(|c| c.eq_ignore_ascii_case(name))?;
            row.values.get(at).copied()
        };
        let incoming = Incoming::from_frame(row, &incoming.columns);
        let former = match self.row_that_was(table, &incoming)? {
            Some((_, _, former)) => former,
            None => self.former_row(table, value, Some(row.version))?,
        };
        // Other nodes may publish the tombstone of a row that was deleted, or got a different key,
        // under its former key; it carries only the key that the row had with them.
        let may_be_told = row.deleted && self.catalog.former.contains_key(&table.id);
        Ok(may_be_told || former.is_some_and(|f| f.stored.state.version >= row.version))
    }

    /// Remembers a snapshot that this node made, before others hear of it. The write is synced:
    /// after a power cut the snapshot would otherwise pass for a duplicate's.
    pub(crate) fn note_made(&mut self, name: &str) -> Result<()> {
        let mut made = self.made()?;
        made.push(name.to_owned());
        let last = made.len().saturating_sub(MADE_KEPT);
        self.write_synced(|db| {
            Ok(set_meta(
                &db.conn,
                Meta::SnapshotsMade,
                made[last..].join(" "),
            )?)
        })
    }

    /// Names of the snapshots that this node made.
    pub(crate) fn made(&self) -> Result<Vec<String>> {
        let names: Option<String> = get_meta(&self.conn, Meta::SnapshotsMade)?;
        let names = names.unwrap_or_default();
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// Checks the maker of a snapshot that is about to be merged because messages were missed. A
    /// snapshot that was made under this node's id, and not by this node, is a duplicate's. The
    /// duplicate, if it lacks messages as well, takes its own snapshot for all that this id has to
    /// say.
    pub(crate) fn check_maker(&mut self, entry: &SnapshotEntry) -> Result<()> {
        if entry.node != self.node || !self.has_gap() || self.made()?.contains(&entry.name) {
            return Ok(());
        }
        self.write(|db| {
            // This node may have made it when its tables were others: then the fresh id does no
            // harm.
            db.take_fresh_id("another node, or a database that was here before, made a snapshot")?;
            Ok(set_meta(&db.conn, Meta::UnheardByDuplicate, true)?)
        })
    }

    /// Publishes all rows once nothing is lacking here any more, so that the duplicate node gets
    /// the rows that it lacks.
    pub(super) fn tell_duplicate_node(&mut self) -> Result<()> {
        if get_meta(&self.conn, Meta::UnheardByDuplicate)?.unwrap_or(false) {
            self.republish_all()?;
            self.write(|db| Ok(set_meta(&db.conn, Meta::UnheardByDuplicate, false)?))?;
        }
        Ok(())
    }

    /// Whether a version under this node's id can only be of this start. An earlier start may have
    /// published rows that are unknown here after a power cut, and a delete may be forgotten. A
    /// version that is derived from the one it replaced does not tell when it was made.
    fn is_of_this_start(&self, version: Version) -> bool {
        if mutation::is(Mutation::OwnDuplicate) {
            return version.time_ms() >= self.clock.now_ms();
        }
        version.is_by_clock()
            && version.time_ms() >= self.opened_ms
            && version.hlc > self.tombstone_age.forgotten()
    }

    /// Gives this node a fresh id from now on. Its earlier versions keep the old one.
    fn take_fresh_id(&mut self, why: &str) -> Result<()> {
        let fresh = self.fresh_id();
        log::error!(
            "{why} under this node's id {}: this node takes the id {fresh}. Give each node its \
             own node_id, or none",
            self.node
        );
        set_meta(&self.conn, Meta::NodeIdTaken, self.node as i64)?;
        set_meta(&self.conn, Meta::NodeId, fresh)?;
        self.node = fresh as u64;
        self.id_claim = IdClaim::default();
        Ok(())
    }

    /// An id derived from this machine and this moment: a duplicate that looks at the same time
    /// gets a different one.
    fn fresh_id(&self) -> i64 {
        let (boot, uptime) = (self.clock.boot_id(), self.clock.uptime().as_nanos());
        let seed = format!("{} {boot} {uptime} {}", self.node, self.clock.now_ms());
        let hash = xxhash_rust::xxh3::xxh3_64(seed.as_bytes());
        (hash >> 1 | 1) as i64
    }
}

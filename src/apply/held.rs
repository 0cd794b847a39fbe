//! Incoming rows that do not fit the schema here: they are held, merged, and applied once they fit.
//!
//! Rows are held for unknown tables and columns, for keys of a different shape, and because they
//! break a constraint. Of each row and column only the newest version is kept, and no more than
//! `max_held_bytes` in all (`held_size`). When the schema changes, every held row of a table that
//! is known now is tried again.

use std::sync::Arc;

use rusqlite::{Connection, params};

use crate::apply::Incoming;
use crate::apply::let_go::held_tables;
use crate::apply::was::OldKey;
use crate::capture::Frames;
use crate::database::rows::KEY_BYTES;
use crate::database::sites::Sites;
use crate::database::table::{Shape, Table};
use crate::database::{Database, Result, values};
use crate::model::birth::Birth;
use crate::model::cbor;
use crate::model::frame::{FrameKeyColumn, Row, TableRows};
use crate::model::key::key_bytes;
use crate::model::merge::FLOOR;
use crate::model::text::shortened;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};

/// Stands in the column `column` for the version of the row itself.
const ROW: &str = "\0row";

/// Stands in the column `column` for [`Incoming::unsent`].
const UNSENT: &str = "\0unsent";

/// Stands in the column `column` for [`Incoming::was`]. It has the version (0, 0): a release that
/// does not know it passes over it.
const WAS: &str = "\0was";

/// Reason that is stored with a held column that is unknown here.
pub(super) const FOR_COLUMN: &str = "there is no such column here";

/// Reason for holding a row until it is known what a migration did to its table.
pub(super) const WAITS: &str = "the table is new or changed here, and waits for a moment";

/// Reason for holding a row whose counterpart here cannot be read.
pub(super) const DAMAGED: &str = "the row here is damaged";

/// Each held entry stores its reason, and SQLite's message may quote the row.
const MAX_REASON_BYTES: usize = 200;

/// Deletes everything held of one row.
pub(super) const DROP_HELD: &str = "DELETE FROM __harmonylite___held
                         WHERE table_name = ?1 AND shape = ?2 AND key = ?3";

/// Rows that one transaction tries again.
pub(crate) const STEP: usize = 128;

/// The row that a held entry belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Name in lower case.
    pub table: String,
    /// The key's shape: the same key under a different shape is a different row.
    pub shape: String,
    pub key: Vec<u8>,
}

impl Place {
    pub(crate) fn of(table: &Table, key: &[u8]) -> Self {
        let name = table.name().to_ascii_lowercase();
        Place {
            table: name,
            shape: shape_of_table(table),
            key: key.to_vec(),
        }
    }

    /// The place of a life: rows of one number that differ in birth are held apart.
    pub(crate) fn of_life(table: &Table, key: &[u8], birth: Birth) -> Self {
        Place::of(table, key).with_birth(birth)
    }

    fn with_birth(mut self, birth: Birth) -> Self {
        if birth != Birth::None {
            self.key.extend(birth.to_bytes());
        }
        self
    }

    /// Splits the stored key into that of the row and its birth. Fails if it is not valid.
    pub(crate) fn life(&self) -> Result<(Vec<OwnedValue>, Vec<u8>, Birth)> {
        let (key, rest) = cbor::key_and_rest(&self.key)?;
        let birth = Birth::from_bytes(rest).unwrap_or_default();
        let bytes = self.key[..self.key.len() - rest.len()].to_vec();
        Ok((key, bytes, birth))
    }

    /// The same place under the name that this release stores: the entry may come from a different
    /// one, or from a peer's snapshot.
    pub(crate) fn in_lower_case(&self) -> Place {
        Place {
            table: self.table.to_ascii_lowercase(),
            ..self.clone()
        }
    }
}

/// A longer shape is replaced by its hash, because every held entry stores its shape.
const MAX_SHAPE_BYTES: usize = 256;

/// Unknown tables that the log names: a peer may invent any number.
const MAX_NAMED: usize = 64;

/// A key's shape as text: name, affinity and collation of each column.
fn shape<'a>(columns: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> String {
    let each = columns.map(|(name, affinity, collation)| {
        format!("{} {affinity} {collation}", name.to_ascii_lowercase())
    });
    let text = each.collect::<Vec<_>>().join(", ");
    match text.len() <= MAX_SHAPE_BYTES {
        true => text,
        false => format!("hash {:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes())),
    }
}

pub(crate) fn shape_of_frame(key: &[FrameKeyColumn<'_>]) -> String {
    shape(key.iter().map(|k| (k.name, k.affinity, k.collation)))
}

pub(crate) fn shape_of_table(table: &Table) -> String {
    let key = &table.schema.key;
    shape(
        key.iter()
            .map(|k| (k.name.as_str(), k.affinity, k.collation.as_str())),
    )
}

/// Shape of the key that a table had before.
pub(crate) fn shape_of_known(known: &Shape) -> String {
    let names = known.columns.iter().map(|(name, _)| name.as_str());
    let key = names.zip(&known.key);
    shape(key.map(|(name, (affinity, collation))| (name, affinity.as_str(), collation.as_str())))
}

impl Database {
    /// Whether rows wait for the schema. Rows that are about to be removed do not count.
    pub fn holds_rows(&self) -> Result<bool> {
        let held = held_tables(&self.conn)?;
        Ok(held
            .iter()
            .any(|table| !self.catalog.ending.contains(table)))
    }

    /// Number of rows of which something is held, counted up to `most`.
    pub fn held_up_to(&self, most: u64) -> Result<u64> {
        let text = "SELECT count(*) FROM (
                        SELECT DISTINCT table_name, shape, key FROM __harmonylite___held LIMIT ?1)";
        let mut statement = self.conn.prepare_cached(text)?;
        Ok(statement.query_row([most as i64], |r| r.get(0))?)
    }

    /// Number of rows of which something is held. Reads every held entry.
    pub fn held(&self) -> Result<u64> {
        let text = "SELECT count(*) FROM (
                        SELECT DISTINCT table_name, shape, key FROM __harmonylite___held)";
        let mut statement = self.conn.prepare_cached(text)?;
        Ok(statement.query_row([], |r| r.get(0))?)
    }

    /// Holds the rows of a frame whose table is not here, or has a key of a different shape here.
    pub(super) fn hold_rows(
        &mut self,
        nodes: &[u64],
        incoming: &TableRows<'_>,
        shape: &str,
    ) -> Result<()> {
        let (mut rows, mut row) = (incoming.rows(nodes), Row::default());
        let table = incoming.name.to_ascii_lowercase();
        if self.lets_go(&table, &incoming.columns)? {
            self.counts.let_go += incoming.len() as u64;
            return Ok(());
        }
        let reason = self.why_held(&table);
        let is_here = self.catalog.by_name.contains_key(&table);
        while !self.steps.is_cut() && rows.next(&mut row).unwrap_or(false) {
            if self.steps.passes() {
                continue;
            }
            let collations = incoming.key.iter().map(|k| k.collation);
            let key = key_bytes(row.values[..incoming.key.len()].iter().copied(), collations);
            let place = Place {
                table: table.clone(),
                shape: shape.to_owned(),
                key,
            };
            let place = place.with_birth(row.birth);
            let holds = self.counts.holds;
            self.hold(
                &place,
                &Incoming::from_frame(&row, &incoming.columns),
                reason,
            )?;
            self.counts.held += self.counts.holds - holds;
            if !is_here && self.let_go_if_too_much(&table)? {
                return Ok(());
            }
            self.steps.applied(row.values.len(), || self.clock.uptime());
        }
        Ok(())
    }

    /// The reason why rows of this table (lower case) are held.
    pub(crate) fn why_held(&self, table: &str) -> &'static str {
        let quiet = &self.catalog.quiet;
        let known = self.catalog.by_name.get(table);
        let is_matching = known.is_some_and(|t| self.catalog.is_matching(t.id));
        if quiet.waits(table) || quiet.guards(table) || is_matching {
            WAITS
        } else if self.catalog.by_name.contains_key(table) {
            "the table has a different key here"
        } else if self.refuses(table) {
            "the table lost its primary key here"
        } else {
            "there is no such table here"
        }
    }

    /// Whether the table (lower case) is here, and waits for people.
    fn refuses(&self, table: &str) -> bool {
        let mut left = self
            .not_replicated()
            .iter()
            .filter(|l| l.kind.is_a_problem());
        left.any(|left| left.table.eq_ignore_ascii_case(table))
    }

    /// Holds a whole row: its tombstone, its version and its columns.
    pub(crate) fn hold(&mut self, at: &Place, incoming: &Incoming, reason: &str) -> Result<()> {
        if self.lets_unfit_go(&at.table, incoming, reason) {
            self.counts.let_go += 1;
            return Ok(());
        }
        self.counts.holds += 1;
        self.say_held(&at.table, &shortened(reason, MAX_REASON_BYTES));
        let mut known = Incoming::default();
        self.read_held(at, &mut known)?;
        let whole = [
            (FLOOR, incoming.floor),
            (ROW, incoming.row),
            (UNSENT, incoming.unsent),
        ];
        for (column, version) in whole {
            if let Some(version) = version {
                self.hold_one(at, &known, column, version, Value::Null, reason)?;
            }
        }
        for (column, (version, value)) in &incoming.columns {
            self.hold_one(at, &known, column, *version, value.borrow(), reason)?;
        }
        if let Some(was) = incoming.was.as_ref().and_then(OldKey::to_held) {
            self.hold_one(at, &known, WAS, Version::NEVER, was.borrow(), reason)?;
        }
        if self.catalog.by_name.contains_key(&at.table) {
            self.let_go_if_too_much(&at.table)?;
        }
        Ok(())
    }

    /// Remembers that something of this table is held, and logs it once.
    fn say_held(&mut self, table: &str, reason: &str) {
        let is_here = self.catalog.by_name.contains_key(table);
        if is_here {
            self.catalog.held.insert(table.to_owned());
        }
        let said = &mut self.said_held;
        if said.contains(table) || (!is_here && said.len() >= MAX_NAMED) {
            return;
        }
        said.insert(table.to_owned());
        log::warn!("changes of table {table:?} are held: {reason}");
        if said.len() == MAX_NAMED {
            log::warn!(
                "changes of more tables may be held: the log names no further tables that are not \
                 here"
            );
        }
    }

    /// Logs the tables of which nothing is held any more. Inside a transaction.
    pub(super) fn say_held_ended(&mut self) -> Result<()> {
        if self.said_held.is_empty() {
            return Ok(());
        }
        let held = held_tables(&self.conn)?;
        self.said_held.retain(|table| {
            let is_held = held.binary_search(table).is_ok();
            if !is_held {
                log::info!("no change of table {table:?} is held any more");
            }
            is_held
        });
        Ok(())
    }

    /// Holds one column, unless the `known` one is newer.
    fn hold_one(
        &mut self,
        at: &Place,
        known: &Incoming,
        column: &str,
        version: Version,
        value: Value<'_>,
        reason: &str,
    ) -> Result<()> {
        let newest = match column {
            FLOOR => known.floor,
            ROW => known.row,
            UNSENT => known.unsent,
            name => known.columns.get(name).map(|(v, _)| *v),
        };
        let larger = || {
            known
                .columns
                .get(column)
                .is_some_and(|(_, v)| value.total_cmp(&v.borrow()).is_gt())
        };
        if newest > Some(version) || (newest == Some(version) && !larger()) {
            return Ok(());
        }
        let site = self.sites.site(&self.conn, version.node)?;
        let reason = shortened(reason, MAX_REASON_BYTES);
        let texts = at.table.len() + at.shape.len() + at.key.len() + column.len() + reason.len();
        self.note_held_entry(&at.table, texts + value.bytes());
        if !self.is_unfit(&at.table) {
            self.catalog.ending.remove(&at.table);
        }
        self.conn
            .prepare_cached(
                "REPLACE INTO __harmonylite___held(table_name, shape, key, column, hlc, site, \
                 value, reason)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                at.table,
                at.shape,
                at.key,
                column,
                version.hlc,
                site,
                value,
                reason
            ])?;
        Ok(())
    }

    /// Adds the held part of a row to the incoming row that is about to be joined. A held tombstone
    /// may have been published long ago, so it makes the ages of tombstones doubtful.
    pub(crate) fn add_held(&mut self, incoming: &mut Incoming, at: &Place) -> Result<()> {
        let mut held = Incoming::default();
        self.read_held(at, &mut held)?;
        if held.floor > incoming.floor {
            self.doubt_tombstone_age();
        }
        let republished = self.republished(&held);
        incoming.absorb(held);
        incoming.unsent = incoming.unsent.max(republished);
        Ok(())
    }

    /// The version up to which a held row is published again when it is applied; none if it need
    /// not be. It is published again if the broker lost it. It is also published again if it is so
    /// old that other nodes may have had a tombstone of the row and forgotten it, while none came
    /// here with a snapshot: then either all nodes get the row, or none does.
    pub(crate) fn republished(&self, held: &Incoming) -> Option<Version> {
        let newest = held.newest()?;
        let is_old = self.broker_time_ms().is_some() && self.is_old(newest.time_ms());
        let is_told = self.republishes_held() || is_old;
        (is_told && self.settings.publish).then_some(newest)
    }

    /// Applies a held row of a Go node; what does not fit yet is held again.
    fn retry_of_go(&mut self, table: &Arc<Table>, at: &Place, frames: &mut Frames) -> Result<()> {
        let mut incoming = Incoming::default();
        self.add_held(&mut incoming, at)?;
        self.conn
            .prepare_cached(DROP_HELD)?
            .execute(params![at.table, at.shape, at.key])?;
        self.join_of_go(table, at, incoming, frames).map(drop)
    }

    /// The version of the row that is held under a key of this shape.
    pub(crate) fn held_version(
        &self,
        table: &Table,
        shape: &Shape,
        key: &[OwnedValue],
    ) -> Result<Option<Version>> {
        let at = Place::under(&table.name().to_ascii_lowercase(), shape, key);
        let mut held = Incoming::default();
        self.read_held(&at, &mut held)?;
        Ok(held.row)
    }

    fn read_held(&self, at: &Place, into: &mut Incoming) -> Result<()> {
        read_held(&self.conn, &self.sites, at, into)
    }

    /// Stores that `version` is unsent, if something is held at this place.
    pub(crate) fn hold_mark(&mut self, at: &Place, version: Version) -> Result<()> {
        let mut known = Incoming::default();
        self.read_held(at, &mut known)?;
        match known.is_some() {
            true => self.hold_one(at, &known, UNSENT, version, Value::Null, "not sent yet"),
            false => Ok(()),
        }
    }

    /// Ends the held entries of a row that was joined. Columns that are unknown here and came with
    /// this join are held, unless the tombstone `floor` covers them. True if no column is held.
    pub(super) fn settle_held(
        &mut self,
        table: &Arc<Table>,
        at: &Place,
        incoming: &Incoming,
        floor: Version,
    ) -> Result<bool> {
        let mut is_done = true;
        let known = |name: &str| table.schema.columns.iter().any(|c| c.lower == name);
        if self.catalog.held.contains(&at.table) {
            self.conn
                .prepare_cached(DROP_HELD)?
                .execute(params![at.table, at.shape, at.key])?;
        }
        let unknown = |(name, (version, _)): &(&String, &(Version, OwnedValue))| {
            !known(name) && *version > floor
        };
        for (name, (version, value)) in incoming.columns.iter().filter(unknown) {
            if mutation::is(Mutation::HeldColumnsDropped) {
                continue;
            }
            if self.lets_unfit_go(&at.table, incoming, FOR_COLUMN) {
                self.counts.let_go += 1;
                break;
            }
            is_done = false;
            self.say_held(&at.table, &format!("there is no column {name:?} here"));
            self.hold_one(
                at,
                &Incoming::default(),
                name,
                *version,
                value.borrow(),
                FOR_COLUMN,
            )?;
        }
        if let (Some(version), false) = (incoming.unsent, is_done) {
            self.hold_mark(at, version)?;
        }
        if !is_done {
            self.let_go_if_too_much(&at.table)?;
        }
        Ok(is_done)
    }

    /// Removes what is held of a row whose tombstone is about to be forgotten: a column that is
    /// added later would otherwise bring back a part of the deleted row. False if something newer
    /// than the tombstone is held.
    pub(crate) fn drop_held(&mut self, at: &Place, tombstone: Version) -> Result<bool> {
        if !self.catalog.held.contains(&at.table) {
            return Ok(true);
        }
        let mut held = Incoming::default();
        self.read_held(at, &mut held)?;
        let columns = held.columns.values().map(|(version, _)| *version);
        if columns.chain(held.row).any(|version| version > tombstone) {
            return Ok(false);
        }
        self.conn
            .prepare_cached(DROP_HELD)?
            .execute(params![at.table, at.shape, at.key])?;
        Ok(true)
    }

    /// Tries some of the held rows again. Inside a transaction.
    pub(crate) fn retry_held(&mut self, frames: &mut Frames) -> Result<()> {
        // It stays until all are tried: what was not tried may not be let go.
        let Some(after) = self.catalog.retry_held.clone() else {
            return Ok(());
        };
        let places = held_after(&self.conn, after.as_ref())?;
        for at in &places {
            let lower = at.in_lower_case();
            if lower != *at {
                let mut incoming = Incoming::default();
                self.read_held(at, &mut incoming)?;
                let of = params![at.table, at.shape, at.key];
                self.conn.prepare_cached(DROP_HELD)?.execute(of)?;
                self.hold(&lower, &incoming, self.why_held(&lower.table))?; // and its turn comes
                continue;
            }
            let Some(table) = self.writable(&at.table).cloned() else {
                continue;
            };
            if at.is_of_go() {
                self.retry_of_go(&table, at, frames)?;
                continue;
            }
            let mut incoming = Incoming::default();
            if self.of_former(&at.table, &at.shape).is_some() {
                self.add_held(&mut incoming, at)?;
                self.join_former(&table, at, incoming, frames)?;
                continue;
            }
            if shape_of_table(&table) != at.shape {
                continue;
            }
            self.add_held(&mut incoming, at)?;
            let fits = |c: &&String| table.schema.columns.iter().any(|own| own.lower == **c);
            let whole = incoming.row.is_some() || incoming.floor.is_some();
            if whole || incoming.columns.keys().any(|c| fits(&c)) {
                let (key, key_bytes, birth) = at.life()?;
                let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
                incoming.birth = birth;
                self.join_row(&table, &key, &key_bytes, incoming, frames)?;
            }
        }
        if places.is_empty() {
            self.catalog.retry_held = None;
            self.count_held_anew();
            self.end_unfit();
            self.say_held_ended()?;
            return self.all_held_is_republished();
        }
        self.catalog.retry_held = Some(places.into_iter().next_back());
        Ok(())
    }
}

/// Adds what this database holds of a row to `into`.
pub(crate) fn read_held(
    conn: &Connection,
    sites: &Sites,
    at: &Place,
    into: &mut Incoming,
) -> Result<()> {
    let mut statement = conn.prepare_cached(
        "SELECT column, hlc, site, value FROM __harmonylite___held
         WHERE table_name = ?1 AND shape = ?2 AND key = ?3",
    )?;
    let mut rows = statement.query(params![at.table, at.shape, at.key])?;
    while let Some(row) = rows.next()? {
        let column: String = row.get(0)?;
        let version = Version {
            hlc: row.get(1)?,
            node: sites.node(row.get(2)?)?,
        };
        match column.as_str() {
            FLOOR => into.floor = into.floor.max(Some(version)),
            ROW => into.row = into.row.max(Some(version)),
            UNSENT => into.unsent = into.unsent.max(Some(version)),
            WAS => into.was = OldKey::decode(values::column(row, 3)),
            _ => into.add_column(column, version, values::column(row, 3).to_owned()),
        }
    }
    Ok(())
}

/// The next places with held entries, after `after` in the order of table, shape and key. Tables
/// have the names that are stored, see [`Place::in_lower_case`].
pub(crate) fn held_after(conn: &Connection, after: Option<&Place>) -> Result<Vec<Place>> {
    let mut statement = conn.prepare_cached(
        "SELECT DISTINCT table_name, shape, key FROM __harmonylite___held
         WHERE (table_name, shape, key) > (?1, ?2, ?3)
         ORDER BY table_name, shape, key LIMIT ?4",
    )?;
    let start = Place {
        table: String::new(),
        shape: String::new(),
        key: Vec::new(),
    };
    let after = after.unwrap_or(&start);
    let mut rows = statement.query(params![after.table, after.shape, after.key, STEP])?;
    let (mut places, mut bytes): (Vec<Place>, _) = (Vec::new(), 0);
    while bytes < KEY_BYTES
        && let Some(row) = rows.next()?
    {
        let place = Place {
            table: row.get(0)?,
            shape: row.get(1)?,
            key: row.get(2)?,
        };
        bytes += place.shape.len() + place.key.len();
        places.push(place);
    }
    Ok(places)
}

//! Incoming changes: frames become rows, and versions alone decide.
//!
//! [`Database::apply`] takes messages of one stream. In one short transaction it captures what the
//! application did so far, joins each row with the one here ([`crate::model::merge`]) and stores
//! the position. No message stops it. A row that does not fit the schema is held ([`held`]); if the
//! configuration excludes its table, it is let go (`let_go`). Bytes that are no frame go to the
//! quarantine. A row that collides in a UNIQUE index is displaced (`unique`). The parts of a row
//! too large for one message are put together (`parts`).

use std::sync::Arc;
use std::time::Duration;

use crate::capture::{Captured, Frames};
use crate::database::table::Table;
use crate::database::{Database, Result};
use crate::model::frame::{Frame, Row, TableRows};
use crate::model::go_event::GoEvent;
use crate::model::value::Value;
use crate::mutation::{self, Mutation};

mod affinity;
mod conflicts;
mod dangling;
mod demoted;
mod displaced;
mod duplicate_node;
mod fast;
mod former;
mod former_key;
mod go_events;
pub mod held;
mod held_drop;
mod held_elsewhere;
mod held_report;
mod held_size;
mod incoming;
mod join;
mod key_change;
pub(crate) mod let_go;
mod lives;
mod origins;
mod parts;
mod positions;
mod quarantine;
mod settling;
mod steps;
pub(crate) mod tombstone_age;
mod tuples;
mod unique;
mod was;

pub use conflicts::{Collision, Conflict, conflicts};
pub(crate) use dangling::References;
pub use dangling::{Dangling, dangling};
pub(crate) use demoted::Demoted;
pub(crate) use duplicate_node::IdClaim;
pub(crate) use go_events::GoNodes;
pub(crate) use held::{Place, held_after, read_held, shape_of_known, shape_of_table};
pub use held_drop::{ask_to_drop_held, drop_held, is_asked_to_drop_held};
pub use held_report::{HeldReport, HeldTable, held_report};
pub(crate) use held_size::HeldSize;
pub(crate) use incoming::Incoming;
pub(crate) use let_go::LetGo;
pub(crate) use lives::{Lives, RowLife, has_lives};
pub(crate) use origins::Origins;
pub use positions::{Position, Positions};
pub(crate) use steps::Steps;
pub(crate) use tombstone_age::TombstoneAge;
pub(crate) use tuples::create_probe;
pub(crate) use unique::{displaced_row, highest_displaced};
pub(crate) use was::OldKey;

/// Why a message is put in quarantine that names unknown nodes.
const TOO_MANY_NODES: &str = "it names more nodes than a database may know: somebody invents them";

/// A message of a stream, decoded.
#[derive(Debug)]
pub struct Arrived<'a> {
    /// Sequence number in the stream.
    pub seq: u64,
    /// `Nats-Msg-Id`.
    pub id: &'a str,
    /// When the broker stored it: unix milliseconds of the broker's clock.
    pub time_ms: i64,
    /// The decoded message.
    pub content: Content<'a>,
}

/// The content of a message of a stream.
#[derive(Debug)]
pub enum Content<'a> {
    /// A frame that this process published from this database: every row of it is here. Or a
    /// message that was refused: no row of it counts.
    Own,
    /// A frame: rows, or a part of a frame that is too large for one message.
    Frame(Frame<'a>),
    /// An event from a node of the Go version, and the message as it came.
    Go(GoEvent<'a>, &'a [u8]),
    /// Bytes that this release cannot read as a frame.
    Bad {
        /// Why they cannot be read; stored with the quarantined message.
        reason: String,
        /// The message as it came.
        data: &'a [u8],
    },
}

impl<'a> Content<'a> {
    /// Decodes a message's unpacked bytes `raw`; `data` is the message as it came.
    pub fn decode(raw: &'a [u8], data: &'a [u8]) -> Content<'a> {
        let bad = |reason: String| Content::Bad { reason, data };
        if GoEvent::is_like(raw) {
            let event = GoEvent::decode(raw);
            return event.map_or_else(
                |e| {
                    bad(format!(
                        "neither a frame nor an event of the Go version: {e}"
                    ))
                },
                |event| Content::Go(event, data),
            );
        }
        Frame::decode(raw).map_or_else(|e| bad(e.to_string()), Content::Frame)
    }
}

/// Result of one call of [`Database::apply`].
#[derive(Debug, Default)]
pub struct Applied {
    /// How many of the messages are done, counted from the first.
    pub messages: usize,
    /// Rows whose content or version changed here.
    pub rows: usize,
    /// Local changes that were captured first.
    pub captured: Captured,
}

impl Database {
    /// Applies messages of `stream`, in order: as many as fit in one short transaction, but at
    /// least one. If local changes take up the whole transaction, or the rows of the first message
    /// take longer than one may, no message is done and the caller repeats the call. An error
    /// undoes the transaction.
    pub fn apply(&mut self, stream: &str, arrived: &[Arrived<'_>]) -> Result<Applied> {
        self.bound_held()?;
        let applied = self.write_past_damage(|db| {
            let mut applied = Applied::default();
            let early = mutation::is(Mutation::NoCaptureBeforeApply);
            if !early && !db.capture_locked(&mut applied.captured)? {
                return Ok(applied);
            }
            let began = db.clock.uptime();
            let mut frames = Frames::new(db);
            for message in arrived {
                db.steps.begin(stream, message, began);
                applied.rows += db.apply_message(stream, message, &mut frames)?;
                if db.steps.is_cut() && !mutation::is(Mutation::CutMessageCounts) {
                    break;
                }
                applied.messages += 1;
                if db.clock.uptime() - began >= db.time_box() {
                    break;
                }
            }
            let covered = match mutation::is(Mutation::PositionAhead) {
                true => arrived.len(),
                false => applied.messages,
            };
            if let Some(last) = arrived.get(covered.wrapping_sub(1)) {
                db.read_up_to(stream, last.seq, last.id);
            }
            db.store_positions()?;
            db.store_held_size()?;
            db.take_captured(frames, &mut applied.captured);
            Ok(applied)
        })?;
        self.steps.committed();
        Ok(applied)
    }

    /// For tests: a transaction ends after every `rows` rows of a message that took it `longest`.
    pub fn apply_in_steps(&mut self, rows: usize, longest: Duration) {
        self.steps.set(rows, longest);
    }

    /// For tests: no more than `bytes` of rows that do not fit are held.
    pub fn hold_at_most(&mut self, bytes: u64) {
        self.limits.held_bytes = bytes;
    }

    /// Whether the rows of a message are applied in part. Then a copy of this database has more
    /// than its position says.
    pub(crate) fn is_part_way(&self) -> bool {
        self.steps.is_part_way()
    }

    /// Applies the next message from its first row, whatever was applied before: the stream may be
    /// a different one.
    pub(crate) fn begin_messages_anew(&mut self) {
        self.steps.forget();
    }

    fn apply_message(
        &mut self,
        stream: &str,
        message: &Arrived<'_>,
        frames: &mut Frames,
    ) -> Result<usize> {
        self.doubt_old(message.time_ms);
        match &message.content {
            Content::Own => Ok(0),
            Content::Frame(Frame::Part(part)) => {
                self.take_part(stream, (message.seq, message.time_ms), part, frames)
            }
            Content::Frame(rows) => {
                if let Frame::Rows { nodes, faults, .. } = rows {
                    self.origins.note(nodes, message.time_ms);
                    self.note_ahead(faults.newest, message.time_ms);
                }
                self.apply_frame(stream, message.seq, rows, frames)
            }
            Content::Go(event, data) if !self.sites.has_room_for(&[event.from]) => {
                self.quarantine(stream, message.seq, TOO_MANY_NODES, data)?;
                Ok(0)
            }
            Content::Go(event, data) => {
                self.origins.note(&[event.from], message.time_ms);
                self.apply_go_event(stream, message, (event, data), frames)
            }
            Content::Bad { reason, data } => {
                self.quarantine(stream, message.seq, reason, data)?;
                Ok(0)
            }
        }
    }

    /// Applies the rows of a frame. Rows that cannot be read go to the quarantine.
    fn apply_frame(
        &mut self,
        stream: &str,
        seq: u64,
        frame: &Frame<'_>,
        frames: &mut Frames,
    ) -> Result<usize> {
        let Frame::Rows {
            nodes,
            tables,
            faults,
        } = frame
        else {
            return Ok(0);
        };
        if faults.rows > 0 {
            let reason = format!("{} row(s) are left out; {}", faults.rows, faults.first);
            self.quarantine(stream, seq, &reason, &faults.bytes)?;
        }
        if !self.sites.has_room_for(nodes) {
            self.quarantine(stream, seq, TOO_MANY_NODES, &[])?;
            return Ok(0);
        }
        self.detect_duplicate_node(nodes, tables)?;
        self.apply_rows(nodes, tables, frames)
    }

    fn apply_rows(
        &mut self,
        nodes: &[u64],
        tables: &[TableRows<'_>],
        frames: &mut Frames,
    ) -> Result<usize> {
        if nodes == [self.node] && mutation::is(Mutation::OwnWritesSkipped) {
            return Ok(0);
        }
        if !self.catalog.births && tables.iter().any(|table| table.has_births) {
            self.learn_births()?;
        }
        let (mut changed, mut before) = (0, 0);
        for incoming in tables {
            if self.steps.is_cut() {
                break;
            }
            self.steps.enter(before);
            before += incoming.len();
            let shape = held::shape_of_frame(&incoming.key);
            let name = incoming.name.to_ascii_lowercase();
            if let Some(table) = self.of_former(&name, &shape) {
                changed += self.apply_former(&table, nodes, incoming, &shape, frames)?;
                continue;
            }
            let known = self.writable(&name).cloned();
            match known.filter(|t| held::shape_of_table(t) == shape) {
                Some(table) => changed += self.apply_table(&table, nodes, incoming, frames)?,
                None => self.hold_rows(nodes, incoming, &shape)?,
            }
        }
        Ok(changed)
    }

    fn apply_table(
        &mut self,
        table: &Arc<Table>,
        nodes: &[u64],
        incoming: &TableRows<'_>,
        frames: &mut Frames,
    ) -> Result<usize> {
        let plain = self.is_plain(table, &incoming.columns);
        let (mut rows, mut row) = (incoming.rows(nodes), Row::default());
        let mut changed = 0;
        // `Frame::decode` has read all rows once: an error here is the end of the rows.
        let mut more = rows.next(&mut row).unwrap_or(false);
        while more && !self.steps.is_cut() {
            if self.steps.passes() {
                more = rows.next(&mut row).unwrap_or(false);
                continue;
            }
            if plain && !self.has_lives(table) {
                let (done, next) = self.apply_plain(table, &mut rows, &mut row)?;
                changed += done;
                more = next;
            }
            if more {
                changed += usize::from(self.apply_joined(table, incoming, &row, frames)?);
                self.steps.applied(row.values.len(), || self.clock.uptime());
                more = rows.next(&mut row).unwrap_or(false);
            }
        }
        if changed > 0 {
            self.note_dangling(table, nodes, incoming)?;
        }
        Ok(changed)
    }

    /// Joins one row by the general way, column by column.
    fn apply_joined(
        &mut self,
        table: &Arc<Table>,
        frame: &TableRows<'_>,
        row: &Row<'_>,
        frames: &mut Frames,
    ) -> Result<bool> {
        let key = &row.values[..frame.key.len()];
        let key_bytes = table.key_bytes(key.iter().copied());
        let incoming = Incoming::from_frame(row, &frame.columns);
        self.join_with_held(table, key, &key_bytes, incoming, frames)
    }

    /// Joins one row together with what is held of it: the held part may be newer, and the join
    /// ends it.
    pub(crate) fn join_with_held(
        &mut self,
        table: &Arc<Table>,
        key: &[Value<'_>],
        key_bytes: &[u8],
        mut incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<bool> {
        let name = table.name().to_ascii_lowercase();
        if self.catalog.held.contains(&name) {
            let at = Place::of_life(table, key_bytes, incoming.birth);
            self.add_held(&mut incoming, &at)?;
        }
        let holds = self.counts.holds;
        let changed = self.join_row(table, key, key_bytes, incoming, frames)?;
        match (changed, self.counts.holds > holds) {
            (true, _) => self.counts.won += 1,
            (false, true) => self.counts.held += 1,
            (false, false) => self.counts.lost += 1,
        }
        Ok(changed)
    }
}

#[cfg(test)]
pub(crate) mod tests;

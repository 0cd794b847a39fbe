//! Positions: how far this node has read each stream.
//!
//! A position is stored in the transaction of the rows that it covers. Frames of this node change
//! no row, so they move the position in memory only; it is stored at the next write or pause.
//! Reading those frames again is harmless.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::{Connection, params};

use crate::database::{Database, Result};
use crate::model::gap::{Gap, ReadExtent, after_merge};
use crate::model::manifest::{SnapshotEntry, StreamPosition};
use crate::mutation::{self, Mutation};

/// A place in a stream, and how the node recognizes the stream again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Sequence of the last message read; 0 before the first.
    pub seq: u64,
    /// Message id (`Nats-Msg-Id`) of that message; empty if it is unknown.
    pub id: String,
    /// When the stream was created, as the broker writes it.
    pub created: String,
    /// Sequence of this node's newest message that the broker acknowledged; 0 if there is none. The
    /// broker may lose that message nevertheless.
    pub acked_seq: u64,
    /// Message id of that message.
    pub acked_id: String,
    /// Messages that the broker dropped before this node read them; none if it missed none.
    pub gap: Option<Gap>,
}

/// Positions of all streams.
#[derive(Debug, Default)]
pub struct Positions {
    known: HashMap<String, Position>,
    unsaved: BTreeSet<String>,
}

impl Positions {
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<Self> {
        let mut statement = conn.prepare(
            "SELECT stream, seq, id, created, gap, acked_seq, acked_id FROM \
                __harmonylite___seq_map",
        )?;
        let read = |r: &rusqlite::Row<'_>| {
            let gap = r.get::<_, Option<String>>(4)?;
            let gap = gap.and_then(|text| serde_json::from_str(&text).ok());
            let seq = r.get::<_, i64>(1)? as u64;
            Ok((
                r.get(0)?,
                Position {
                    seq,
                    id: r.get(2)?,
                    created: r.get(3)?,
                    gap,
                    acked_seq: r.get::<_, i64>(5)? as u64,
                    acked_id: r.get(6)?,
                },
            ))
        };
        let known = statement
            .query_map([], read)?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Positions {
            known,
            unsaved: BTreeSet::new(),
        })
    }
}

fn reach(seq: u64, gap: &Option<Gap>) -> ReadExtent<'_> {
    let gap = gap.as_ref();
    ReadExtent { seq, gap }
}

impl Database {
    /// Position of this node in a stream; the default (`seq` 0) if the stream is unknown.
    pub fn position(&self, stream: &str) -> Position {
        self.positions
            .known
            .get(stream)
            .cloned()
            .unwrap_or_default()
    }

    /// Stream name and last sequence read of every stream, sorted by name, for the mirror file.
    pub fn sequences(&self) -> Vec<(String, u64)> {
        let mut all: Vec<_> = self
            .positions
            .known
            .iter()
            .map(|(s, p)| (s.clone(), p.seq))
            .collect();
        all.sort();
        all
    }

    /// Leaves the streams that this node no longer reads, because the prefix, the compression or
    /// the number of shards changed and other streams have taken their place. As with a stream that
    /// was created anew under its name, every node publishes again the rows it has, and looks for a
    /// snapshot. False if there are no such streams.
    pub(crate) fn leave_streams(&mut self) -> Result<bool> {
        let known = self.positions.known.iter();
        let left = known.filter(|(stream, _)| !self.is_read(stream));
        let left: Vec<_> = left.map(|(s, p)| (s.clone(), p.clone())).collect();
        for (stream, position) in &left {
            log::warn!("{stream} is not read any more: this node republishes all rows");
            self.note_lost(stream, position)?;
        }
        if left.is_empty() {
            return Ok(false);
        }
        self.republish_all()?;
        self.write(|db| {
            for (stream, _) in &left {
                db.positions.known.remove(stream);
                let text = "DELETE FROM __harmonylite___seq_map WHERE stream = ?1";
                db.conn.execute(text, [stream])?;
            }
            Ok(true)
        })
    }

    fn is_read(&self, stream: &str) -> bool {
        let streams = &self.settings.streams;
        streams.is_empty() || streams.contains(stream)
    }

    /// Moves a position in memory; the next write stores it.
    pub fn move_position(&mut self, stream: &str, position: Position) {
        if self.positions.known.get(stream) != Some(&position) {
            self.positions.known.insert(stream.to_owned(), position);
            self.positions.unsaved.insert(stream.to_owned());
        }
    }

    /// Records that this message and all before it are applied. Does nothing if a snapshot has
    /// brought the position further meanwhile.
    pub fn read_up_to(&mut self, stream: &str, seq: u64, id: &str) {
        let known = self.position(stream);
        if seq > known.seq {
            let id = id.to_owned();
            self.move_position(stream, Position { seq, id, ..known });
        }
    }

    /// Records that the broker no longer has the messages before `first`. False if nothing was
    /// missed: a snapshot brought them meanwhile, or the Go version had read them before
    /// HarmonyLite took over the database. Fails if the position cannot be stored.
    pub fn miss(&mut self, stream: &str, first: u64) -> Result<bool> {
        let seq = self.position(stream).seq;
        let is_missing = seq + 1 < first;
        let was_read = is_missing && seq == 0 && self.read_by_go(stream)? + 1 >= first;
        match is_missing && !was_read {
            true => self.note_gap(stream, first),
            false => self.read_up_to(stream, first.saturating_sub(1), ""),
        }
        if is_missing {
            self.flush()?;
        }
        Ok(is_missing && !was_read)
    }

    /// Records a gap: the broker no longer has the messages before `first`, and this node did not
    /// read them.
    pub fn note_gap(&mut self, stream: &str, first: u64) {
        let known = self.position(stream);
        // Everything here was learnt before the end of this gap, also what came after an earlier
        // gap.
        let gap = Gap {
            local_tx: self.reservation.peek_number() - 1,
            acked: known.acked_seq,
            ..Gap::new(first - 1)
        };
        let gapped = Position {
            seq: first - 1,
            id: String::new(),
            gap: Some(gap),
            ..known
        };
        self.move_position(stream, gapped);
    }

    /// Records a gap that ends at this node's position in every stream: rows were let go in all
    /// that was read so far.
    pub(crate) fn note_gaps_here(&mut self) {
        let local_tx = self.reservation.peek_number() - 1;
        for (stream, seq) in self.sequences() {
            let known = self.position(&stream);
            if seq == 0 || known.created.is_empty() {
                continue;
            }
            let gap = Gap {
                local_tx,
                acked: known.acked_seq,
                ..Gap::new(seq)
            };
            let gap = Some(gap);
            self.move_position(&stream, Position { gap, ..known });
        }
    }

    /// Whether this node missed changes that only a snapshot can bring.
    pub fn has_gap(&self) -> bool {
        self.positions.known.values().any(|p| p.gap.is_some())
    }

    /// Whether a snapshot must be merged before unsent rows are published: a row that no other node
    /// has must not count as one that all others deleted. After the broker lost messages, rows are
    /// published at once. Otherwise a snapshot that is further than the streams would send every
    /// node back again and again.
    pub fn awaits_snapshot(&self) -> bool {
        self.settings.joins_by_snapshot && self.has_gap() && !self.is_republishing()
    }

    /// Position of each stream in this database, as a manifest lists it.
    pub(crate) fn places(&self) -> BTreeMap<String, StreamPosition> {
        let place = |(stream, p): (&String, &Position)| {
            let place = StreamPosition {
                seq: p.seq,
                id: p.id.clone(),
                created: p.created.clone(),
                gap: p.gap.as_ref().map(Gap::told),
            };
            (stream.clone(), place)
        };
        self.positions.known.iter().map(place).collect()
    }

    /// Whether a snapshot with these positions holds everything that this node read from the
    /// streams or wrote to them.
    pub(crate) fn is_covered(&self, places: &BTreeMap<String, StreamPosition>) -> bool {
        self.covered_up_to(places) == i64::MAX
    }

    /// The transaction up to which a snapshot with these positions holds all that this node learnt.
    /// If the snapshot is as far as this node, that is every transaction (`i64::MAX`). If this node
    /// is beyond a gap that the snapshot closes, it is the last transaction before the gap was
    /// noticed.
    pub(crate) fn covered_up_to(&self, places: &BTreeMap<String, StreamPosition>) -> i64 {
        let streams = self.positions.known.keys();
        let each = streams.map(|stream| self.covered_in(stream, places));
        each.min().unwrap_or(i64::MAX)
    }

    /// [`Self::covered_up_to`] for one stream.
    pub(crate) fn covered_in(
        &self,
        stream: &str,
        places: &BTreeMap<String, StreamPosition>,
    ) -> i64 {
        let known = self.position(stream);
        // An acknowledged message that this node has not read back may lie beyond its position.
        let seq = known.seq.max(known.acked_seq);
        let place = places.get(stream);
        let whole = place.filter(|p| p.created == known.created && p.gap.is_none());
        match (whole, &known.gap) {
            _ if seq == 0 => i64::MAX,
            (Some(place), _) if place.seq >= seq => i64::MAX,
            (Some(place), Some(gap)) if place.seq >= gap.end.max(gap.acked) => gap.local_tx,
            _ => 0,
        }
    }

    /// Whether this node has read a stream, without a gap, up to this place.
    pub(crate) fn has_read(&self, stream: &str, place: &StreamPosition) -> bool {
        let known = self.position(stream);
        known.created == place.created && known.gap.is_none() && known.seq >= place.seq
    }

    /// Whether a snapshot brings some of the changes that this node missed.
    pub(crate) fn is_helped_by(&self, entry: &SnapshotEntry) -> bool {
        let helps = |(stream, known): (&String, &Position)| {
            entry.streams.get(stream).is_some_and(|place| {
                place.created == known.created && self.lacks_after(known, place, entry) != known.gap
            })
        };
        self.positions.known.iter().any(helps)
    }

    /// Whether a snapshot lacks this node's state where that counts: at a gap of this node, or at a
    /// gap of the maker that this node has read.
    pub(crate) fn is_unheard_in(&self, entry: &SnapshotEntry) -> bool {
        let lacks = self.lacks_awaited(&entry.lacks);
        let heard = |place: &StreamPosition, end: u64| {
            let gap = place.gap.as_ref();
            let in_gap = gap.map_or(!lacks, |g| g.heard.contains(&self.node));
            place.seq >= end && (in_gap || entry.node == self.node)
        };
        let unheard = |(stream, known): (&String, &Position)| {
            let place = entry.streams.get(stream);
            let place = place.filter(|p| p.created == known.created);
            let Some(gap) = &known.gap else {
                // This node has read the messages that the snapshot's maker lacks.
                let theirs = place.and_then(|p| p.gap.as_ref());
                let is_known = theirs.is_some_and(|gap| known.seq >= gap.end);
                return is_known && !mutation::is(Mutation::OthersGapsIgnored);
            };
            !place.is_some_and(|p| heard(p, gap.end))
        };
        self.positions.known.iter().any(unheard)
    }

    fn lacks_after(
        &self,
        known: &Position,
        place: &StreamPosition,
        entry: &SnapshotEntry,
    ) -> Option<Gap> {
        // For a table whose snapshot this node awaits, the snapshot's maker has no more than this
        // node.
        let lacks = self.lacks_awaited(&entry.lacks);
        let of_maker = place.gap.clone().or(lacks.then(|| Gap::new(place.seq)));
        let (here, there) = (reach(known.seq, &known.gap), reach(place.seq, &of_maker));
        after_merge(here, there, entry.node)
    }

    /// Whether messages count as read here, once a snapshot is merged, that only its maker has
    /// read.
    pub(crate) fn is_brought_on_by(&self, entry: &SnapshotEntry) -> bool {
        let brings = |(stream, place): (&String, &StreamPosition)| {
            let known = self.position(stream);
            known.gap.is_some() || place.seq > known.seq
        };
        !self.joined || entry.streams.iter().any(brings)
    }

    /// The positions that a snapshot must reach to bring what this node missed.
    pub(crate) fn missed(&self) -> BTreeMap<String, StreamPosition> {
        let missed = |(stream, p): (&String, &Position)| {
            let place = StreamPosition {
                seq: p.gap.as_ref()?.end,
                created: p.created.clone(),
                ..StreamPosition::default()
            };
            Some((stream.clone(), place))
        };
        self.positions.known.iter().filter_map(missed).collect()
    }

    /// Moves the positions after a snapshot was merged. Messages that the snapshot covers need not
    /// be read any more; messages that it lacks are a gap here, too, unless this node has read
    /// them.
    pub(crate) fn take_places(&mut self, entry: &SnapshotEntry) {
        for (stream, place) in &entry.streams {
            let mut known = self.position(stream);
            let is_another = !known.created.is_empty() && known.created != place.created;
            if is_another || !self.is_read(stream) {
                continue;
            }
            known.gap = self.lacks_after(&known, place, entry);
            if mutation::is(Mutation::GapForgottenOnMerge) {
                known.gap = None;
            }
            if place.seq > known.seq {
                known.seq = place.seq;
                known.id.clone_from(&place.id);
                known.created.clone_from(&place.created);
            }
            self.move_position(stream, known);
        }
    }

    /// Closes the gaps for which the state of every node that ever published is here. True if there
    /// were any.
    pub(crate) fn close_gaps(&mut self, publishers: &BTreeSet<u64>) -> Result<bool> {
        let mut closed = false;
        for (stream, _) in self.sequences() {
            let mut known = self.position(&stream);
            if known
                .gap
                .as_ref()
                .is_some_and(|g| g.is_made_up(self.node, publishers))
            {
                known.gap = None;
                closed = true;
                self.move_position(&stream, known);
            }
        }
        // This comes before the closed gaps are stored: after a crash in between nobody would do
        // it.
        if !self.has_gap() {
            self.tell_duplicate_node()?;
            self.write(Database::end_awaiting)?;
        }
        self.flush()?;
        Ok(closed)
    }

    /// Upper bound of the messages that this node published to a stream, the broker acknowledged
    /// and the node has not read back.
    pub fn unread(&self, stream: &str) -> u64 {
        let known = self.positions.known.get(stream);
        known.map_or(0, |p| p.acked_seq.saturating_sub(p.seq))
    }

    /// Whether the broker had given out `seq` before it stored this node's message `id` there: then
    /// it lost messages. Must not be asked about a message that the broker recognized as a
    /// repetition.
    pub fn was_given_out(&self, stream: &str, seq: u64, id: &str) -> bool {
        let known = self.position(stream);
        // The position may be further than the acknowledgements, and this message may be the one
        // read.
        let is_another = seq == known.seq && !known.id.is_empty() && id != known.id;
        is_another || seq <= known.acked_seq
    }

    /// Records that the broker stored this node's message `id` at `seq`.
    pub fn note_acknowledged(&mut self, stream: &str, seq: u64, id: String) {
        let mut known = self.position(stream);
        if seq > known.acked_seq {
            // The message may belong to a transaction from before the gap: a snapshot must cover
            // it, too.
            if let Some(gap) = known.gap.as_mut() {
                gap.acked = seq;
            }
            self.move_position(
                stream,
                Position {
                    acked_seq: seq,
                    acked_id: id,
                    ..known
                },
            );
        }
    }

    /// Starts to read every stream from its beginning, and merges a snapshot first if there is one.
    /// This is never wrong; an operator asks for it by removing the mirror of the positions. The
    /// positions so far are kept as if they were acknowledged: a snapshot that is not as far does
    /// not hold everything that is here.
    pub fn forget_positions(&mut self) -> Result<()> {
        self.lose_all_streams()?;
        self.read_from_the_start();
        self.flush() // a transaction that is undone would bring them back
    }

    /// Sets every position to 0. The positions so far count as acknowledged.
    pub(crate) fn read_from_the_start(&mut self) {
        for (stream, _) in self.sequences() {
            let mut known = self.position(&stream);
            let (seq, id) = (known.seq, std::mem::take(&mut known.id));
            known.seq = 0;
            if seq > known.acked_seq {
                (known.acked_seq, known.acked_id) = (seq, id);
            }
            self.move_position(&stream, known);
        }
    }

    /// Whether a position has moved since positions were last stored.
    pub fn has_unsaved_positions(&self) -> bool {
        !self.positions.unsaved.is_empty()
    }

    /// Whether the file still has the positions that this process stored in it.
    pub(crate) fn has_stored_positions(&self) -> Result<bool> {
        let there = Positions::load(&self.conn)?;
        let same = |(stream, p): (&String, &Position)| {
            let stored = there.known.get(stream);
            self.positions.unsaved.contains(stream)
                || stored.is_some_and(|s| (s.seq, s.acked_seq) == (p.seq, p.acked_seq))
        };
        Ok(self.positions.known.iter().all(same))
    }

    /// Stores the positions that moved since the last write. Inside a transaction; a rollback loads
    /// the positions as they were before.
    pub(crate) fn store_positions(&mut self) -> Result<()> {
        let mut put = self.conn.prepare_cached(
            "REPLACE INTO __harmonylite___seq_map(stream, seq, id, created, gap, acked_seq, \
             acked_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        for stream in std::mem::take(&mut self.positions.unsaved) {
            let p = &self.positions.known[&stream];
            let gap = p.gap.as_ref().and_then(|g| serde_json::to_string(g).ok());
            let acked = p.acked_seq as i64;
            put.execute(params![
                stream,
                p.seq as i64,
                p.id,
                p.created,
                gap,
                acked,
                p.acked_id
            ])?;
        }
        Ok(())
    }
}

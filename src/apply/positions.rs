//! How far each stream has been read.
//!
//! Stored in the transaction of the rows it covers. Frames of our own change no row, so they move
//! the position in memory only, until the next write or a pause: reading them again is harmless.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::{Connection, params};

use crate::database::{Database, Result};
use crate::model::gap::{Gap, Reach, after_merge};
use crate::model::manifest::{Entry, StreamPosition};
use crate::mutation::{self, Mutation};

/// A place in a stream, and what tells that the stream is still the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Sequence of the last message read; 0 before the first.
    pub seq: u64,
    /// Its message id.
    pub id: String,
    /// When the stream was created, as the broker writes it.
    pub created: String,
    /// The newest message of ours that the broker acknowledged: it may forget it all the same.
    pub acked_seq: u64,
    pub acked_id: String,
    /// What was missed because the broker no longer had it; none if nothing was.
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

fn reach(seq: u64, gap: &Option<Gap>) -> Reach<'_> {
    let gap = gap.as_ref();
    Reach { seq, gap }
}

impl Database {
    pub fn position(&self, stream: &str) -> Position {
        self.positions
            .known
            .get(stream)
            .cloned()
            .unwrap_or_default()
    }

    /// Stream name -> last sequence read, for the mirror file.
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

    /// Streams that are read no more: since the prefix, the compression or the number of shards is
    /// another one, others have taken their place. As where a stream was created anew under its
    /// name, what they held is published again by whoever has it, and looked for in a snapshot.
    /// False if there are none.
    pub(crate) fn leave_streams(&mut self) -> Result<bool> {
        let known = self.positions.known.iter();
        let left = known.filter(|(stream, _)| !self.is_read(stream));
        let left: Vec<_> = left.map(|(s, p)| (s.clone(), p.clone())).collect();
        for (stream, position) in &left {
            log::warn!("{stream} is not read any more: publishing all rows again");
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

    /// Moves a position; stored at the next write.
    pub fn move_position(&mut self, stream: &str, position: Position) {
        if self.positions.known.get(stream) != Some(&position) {
            self.positions.known.insert(stream.to_owned(), position);
            self.positions.unsaved.insert(stream.to_owned());
        }
    }

    /// The message is applied, and all before it. A snapshot may have come further meanwhile.
    pub fn read_up_to(&mut self, stream: &str, seq: u64, id: &str) {
        let known = self.position(stream);
        if seq > known.seq {
            let id = id.to_owned();
            self.move_position(stream, Position { seq, id, ..known });
        }
    }

    /// Messages before `first` are gone from the broker. False: a snapshot brought them meanwhile,
    /// or the Go version had read them before the database became ours.
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

    /// Messages before `first` are gone from the broker and were not read here.
    pub fn note_gap(&mut self, stream: &str, first: u64) {
        let known = self.position(stream);
        // All that is here came from before the end of this gap, also what was read after an
        // earlier one.
        let gap = Gap {
            learnt: self.reservation.peek_number() - 1,
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

    /// Rows were passed over in all that was read so far.
    pub(crate) fn note_gaps_here(&mut self) {
        let learnt = self.reservation.peek_number() - 1;
        for (stream, seq) in self.sequences() {
            let known = self.position(&stream);
            if seq == 0 || known.created.is_empty() {
                continue;
            }
            let gap = Gap {
                learnt,
                acked: known.acked_seq,
                ..Gap::new(seq)
            };
            let gap = Some(gap);
            self.move_position(&stream, Position { gap, ..known });
        }
    }

    /// Whether changes were missed that only a snapshot can bring.
    pub fn has_gap(&self) -> bool {
        self.positions.known.values().any(|p| p.gap.is_some())
    }

    /// Whether a snapshot is to be merged before what waits here is sent: a row that nobody else
    /// has must not count as one that all others deleted. But to a broker that lost messages all is
    /// sent at once: else a snapshot that is further than its streams sends every node back again
    /// and again.
    pub fn awaits_snapshot(&self) -> bool {
        self.settings.joins_by_snapshot && self.has_gap() && !self.is_republishing()
    }

    /// How far each stream is in this database.
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

    /// Whether a snapshot that is this far holds all that was read from the streams here, or
    /// written to them.
    pub(crate) fn is_covered(&self, places: &BTreeMap<String, StreamPosition>) -> bool {
        self.covered_up_to(places) == i64::MAX
    }

    /// The transaction up to which a snapshot that is this far holds all that was learnt here:
    /// all of them if it is as far as this node; if this node is beyond a gap that the snapshot
    /// closes, those before the gap was noticed.
    pub(crate) fn covered_up_to(&self, places: &BTreeMap<String, StreamPosition>) -> i64 {
        let streams = self.positions.known.keys();
        let each = streams.map(|stream| self.covered_in(stream, places));
        each.min().unwrap_or(i64::MAX)
    }

    /// The same for what comes by one stream.
    pub(crate) fn covered_in(
        &self,
        stream: &str,
        places: &BTreeMap<String, StreamPosition>,
    ) -> i64 {
        let known = self.position(stream);
        // What was acknowledged and not read back yet may be beyond it as well.
        let seq = known.seq.max(known.acked_seq);
        let place = places.get(stream);
        let whole = place.filter(|p| p.created == known.created && p.gap.is_none());
        match (whole, &known.gap) {
            _ if seq == 0 => i64::MAX,
            (Some(place), _) if place.seq >= seq => i64::MAX,
            (Some(place), Some(gap)) if place.seq >= gap.end.max(gap.acked) => gap.learnt,
            _ => 0,
        }
    }

    /// Whether all up to a place was read here.
    pub(crate) fn has_read(&self, stream: &str, place: &StreamPosition) -> bool {
        let known = self.position(stream);
        known.created == place.created && known.gap.is_none() && known.seq >= place.seq
    }

    /// Whether a snapshot brings some of what was missed here.
    pub(crate) fn is_helped_by(&self, entry: &Entry) -> bool {
        let helps = |(stream, known): (&String, &Position)| {
            entry.streams.get(stream).is_some_and(|place| {
                place.created == known.created && self.lacks_after(known, place, entry) != known.gap
            })
        };
        self.positions.known.iter().any(helps)
    }

    /// Whether a snapshot lacks what this node could say where it lacks something itself.
    pub(crate) fn is_unheard_in(&self, entry: &Entry) -> bool {
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
                // What others lack of it was read here.
                let theirs = place.and_then(|p| p.gap.as_ref());
                let is_known = theirs.is_some_and(|gap| known.seq >= gap.end);
                return is_known && !mutation::is(Mutation::OthersGapsIgnored);
            };
            !place.is_some_and(|p| heard(p, gap.end))
        };
        self.positions.known.iter().any(unheard)
    }

    fn lacks_after(&self, known: &Position, place: &StreamPosition, entry: &Entry) -> Option<Gap> {
        // Of a table that this node waits for, its maker has no more than this node.
        let lacks = self.lacks_awaited(&entry.lacks);
        let of_maker = place.gap.clone().or(lacks.then(|| Gap::new(place.seq)));
        let (here, there) = (reach(known.seq, &known.gap), reach(place.seq, &of_maker));
        after_merge(here, there, entry.node)
    }

    /// Whether some of what was read here, once a snapshot is merged, was read by its maker alone.
    pub(crate) fn is_brought_on_by(&self, entry: &Entry) -> bool {
        let brings = |(stream, place): (&String, &StreamPosition)| {
            let known = self.position(stream);
            known.gap.is_some() || place.seq > known.seq
        };
        !self.joined || entry.streams.iter().any(brings)
    }

    /// How far a snapshot must be to bring what was missed here.
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

    /// A snapshot is merged: what it holds need not be read any more, and what it lacks is lacking
    /// here unless it was read.
    pub(crate) fn take_places(&mut self, entry: &Entry) {
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

    /// Gaps are closed for which every node that ever published was heard. True if there were any.
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
        // Before that is stored: after a crash in between nobody would come here again.
        if !self.has_gap() {
            self.tell_duplicate_node()?;
            self.write(Database::end_awaiting)?;
        }
        self.flush()?;
        Ok(closed)
    }

    /// Messages of ours that the broker has and that were not read back yet.
    pub fn unread(&self, stream: &str) -> u64 {
        let known = self.positions.known.get(stream);
        known.map_or(0, |p| p.acked_seq.saturating_sub(p.seq))
    }

    /// Whether the broker had given out `seq` before it stored our message `id` there: it lost what
    /// it had. Not to be asked of a message that it had already.
    pub fn was_given_out(&self, stream: &str, seq: u64, id: &str) -> bool {
        let known = self.position(stream);
        // What is read may be further than what is acknowledged: our message may be among it.
        let is_another = seq == known.seq && !known.id.is_empty() && id != known.id;
        is_another || seq <= known.acked_seq
    }

    /// The broker says that it stored our message `id` at `seq`.
    pub fn note_acknowledged(&mut self, stream: &str, seq: u64, id: String) {
        let mut known = self.position(stream);
        if seq > known.acked_seq {
            // It may be of a transaction from before the gap: a snapshot must have it, too.
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

    /// Reads every stream from its start again, and merges a snapshot first if there is one, which
    /// is never wrong: an operator asks for it by removing the mirror of the positions. What was
    /// read so far is kept as if it were acknowledged: a snapshot that is not as far does not have
    /// all that is here.
    pub fn forget_positions(&mut self) -> Result<()> {
        self.lose_all_streams()?;
        self.read_from_the_start();
        self.flush() // a transaction that is undone would bring them back
    }

    /// What was read so far counts as acknowledged.
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

    pub fn has_unsaved_positions(&self) -> bool {
        !self.positions.unsaved.is_empty()
    }

    /// Whether the file has the positions that were stored in it.
    pub(crate) fn has_stored_positions(&self) -> Result<bool> {
        let there = Positions::load(&self.conn)?;
        let same = |(stream, p): (&String, &Position)| {
            let stored = there.known.get(stream);
            self.positions.unsaved.contains(stream)
                || stored.is_some_and(|s| (s.seq, s.acked_seq) == (p.seq, p.acked_seq))
        };
        Ok(self.positions.known.iter().all(same))
    }

    /// Stores what moved since the last write. Inside a transaction; undoing that loads the
    /// positions as they were before.
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

//! The frames of one transaction: rows collected by shard.

use crate::database::Database;
use crate::database::table::Table;
use crate::model::birth::Birth;
use crate::model::frame::{FrameBuilder, TableHeader};
use crate::model::shard::shard;
use crate::model::value::Value;
use crate::model::version::Version;

/// Bytes of frames that wait in memory for the publisher. Beyond that, only the marks are kept, and
/// the rows are encoded later. This holds a few of the largest frames, and is small against the 64
/// MB of the machines this runs on.
pub const MAX_QUEUED_BYTES: usize = 4 << 20;

/// Bytes of one capture that are kept in memory for the publisher.
const MAX_LIVE_BYTES: usize = 2 * MAX_QUEUED_BYTES;

/// A frame to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Number of the transaction whose marks the frame covers.
    pub local_tx: i64,
    /// Number of the shard, from 1.
    pub shard: u32,
    /// Part of the message id. It differs from 0 if the frame may repeat one that the broker had
    /// and lost, or dropped: the broker must not discard it as a repetition.
    pub salt: u64,
    /// The frame, not yet compressed.
    pub raw: Vec<u8>,
}

/// Rows of one transaction that are being encoded into frames.
pub(crate) struct Frames {
    /// Number of the transaction.
    pub local_tx: i64,
    /// Whether rows are encoded at all.
    pub encode: bool,
    /// Some rows may have been published before: the broker must not discard them as a repetition.
    pub is_republished: bool,
    shards: Vec<FrameBuilder>,
    limit: usize,
    done: Vec<Outgoing>,
    /// Bytes of `done`.
    done_bytes: usize,
    /// Rows are encoded as they are captured: beyond `MAX_LIVE_BYTES` only their marks are kept.
    is_live: bool,
    overflowed: bool,
}

impl Frames {
    /// For a new transaction, which gets its number here.
    pub(crate) fn new(db: &mut Database) -> Self {
        let encode = db.marks.live && db.settings.publish;
        Frames {
            is_live: true,
            ..Frames::numbered(db, encode)
        }
    }

    pub(crate) fn numbered(db: &mut Database, encode: bool) -> Self {
        Frames {
            local_tx: db.reservation.number(),
            encode,
            is_republished: false,
            shards: (0..db.settings.shards)
                .map(|_| FrameBuilder::default())
                .collect(),
            limit: db.settings.max_transaction_bytes,
            done: Vec::new(),
            done_bytes: 0,
            is_live: false,
            overflowed: false,
        }
    }

    pub(crate) fn upsert<'v>(
        &mut self,
        table: &Table,
        (key, was): (&[u8], Option<&[u8]>),
        (version, birth): (Version, Birth),
        exceptions: &[(usize, Version)],
        values: impl ExactSizeIterator<Item = Value<'v>>,
    ) {
        let shard = self.shard(table, key);
        let builder = self.shards[shard].of_life(birth);
        match was {
            None => builder.upsert(&table.header, version, exceptions, values),
            Some(was) => {
                let last = table.schema.columns.len();
                let mut values: Vec<Value<'_>> = values.collect();
                values.push(Value::Blob(was));
                // The floor's index is one past the last column.
                let own = exceptions
                    .iter()
                    .map(|(i, v)| (i + usize::from(*i == last), *v));
                let exceptions: Vec<_> = own.chain([(last, Version::NEVER)]).collect();
                let values = values.into_iter();
                builder.upsert(&table.was_header, version, &exceptions, values);
            }
        }
        self.cut(shard);
    }

    /// The tombstone of a row under a former key of its table; `header` is that of
    /// [`crate::database::table::Shape::former_header`].
    pub(super) fn delete_former(
        &mut self,
        table: &Table,
        header: &TableHeader,
        key: &[u8],
        version: Version,
        values: &[Value<'_>],
    ) {
        let shard = self.shard(table, key);
        self.shards[shard].delete(header, version, values.iter().copied());
        self.cut(shard);
    }

    pub(crate) fn delete<'v>(
        &mut self,
        table: &Table,
        key: &[u8],
        (version, birth): (Version, Birth),
        values: impl ExactSizeIterator<Item = Value<'v>>,
    ) {
        let shard = self.shard(table, key);
        let frame = self.shards[shard].of_life(birth);
        frame.delete(&table.header, version, values);
        self.cut(shard);
    }

    /// Bytes encoded in all shards, in closed and open frames.
    pub(crate) fn bytes(&self) -> usize {
        self.done_bytes + self.shards.iter().map(FrameBuilder::len).sum::<usize>()
    }

    /// Whether no row was collected.
    pub(crate) fn is_empty(&self) -> bool {
        self.done.is_empty() && self.shards.iter().all(FrameBuilder::is_empty)
    }

    fn shard(&self, table: &Table, key: &[u8]) -> usize {
        shard(table.name(), key, self.shards.len() as u32) as usize - 1
    }

    fn cut(&mut self, shard: usize) {
        if self.shards[shard].len() >= self.limit || self.shards[shard].is_full() {
            self.close(shard);
        }
        if self.is_live && self.bytes() > MAX_LIVE_BYTES {
            self.encode = false;
            self.overflowed = true;
            self.done.clear();
            self.done_bytes = 0;
            self.shards
                .iter_mut()
                .for_each(|s| *s = FrameBuilder::default());
        }
    }

    fn close(&mut self, shard: usize) {
        let builder = std::mem::take(&mut self.shards[shard]);
        if !builder.is_empty() {
            let raw = builder.finish();
            self.done_bytes += raw.len();
            self.done.push(Outgoing {
                local_tx: self.local_tx,
                shard: shard as u32 + 1,
                salt: if self.is_republished {
                    self.local_tx as u64
                } else {
                    0
                },
                raw,
            });
        }
    }

    /// The frames; none if there were more than may be kept in memory.
    pub(crate) fn finish(mut self) -> Option<Vec<Outgoing>> {
        (0..self.shards.len()).for_each(|s| self.close(s));
        (!self.overflowed).then_some(self.done)
    }
}

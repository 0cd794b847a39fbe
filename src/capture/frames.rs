//! The frames of one transaction: rows collected by shard.

use crate::database::Database;
use crate::database::table::Table;
use crate::model::frame::FrameBuilder;
use crate::model::shard::shard;
use crate::model::value::Value;
use crate::model::version::Version;

/// Bytes of frames that wait in memory for the publisher; beyond, marks alone are kept and encoded
/// later. A few of the largest frames, and small against the 64 MB of the machines this runs on.
pub const MAX_QUEUED_BYTES: usize = 4 << 20;

/// Bytes of one capture that are kept in memory for the publisher, or one row that is larger.
const MAX_LIVE_BYTES: usize = 2 * MAX_QUEUED_BYTES;

/// A frame to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The transaction whose marks it covers.
    pub at: i64,
    /// From 1.
    pub shard: u32,
    /// Goes into the message id: other than 0 if the broker must not take the frame for a
    /// repetition of one that it had, and lost or has dropped.
    pub salt: u64,
    /// The frame, not yet compressed.
    pub raw: Vec<u8>,
}

/// Rows on their way into frames.
pub(crate) struct Frames {
    /// Number of the transaction.
    pub at: i64,
    /// Whether rows are encoded at all.
    pub encode: bool,
    /// Something of it may have been sent before: the broker must not take it for a repetition.
    pub is_republished: bool,
    shards: Vec<FrameBuilder>,
    limit: usize,
    done: Vec<Outgoing>,
    /// Bytes of `done`.
    done_bytes: usize,
    /// Encoded as it was captured: what is more than the outbox keeps is left to the marks.
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
            at: db.reservation.number(),
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
        key: &[u8],
        version: Version,
        exceptions: &[(usize, Version)],
        values: impl ExactSizeIterator<Item = Value<'v>>,
    ) {
        let shard = self.shard(table, key);
        self.shards[shard].upsert(&table.header, version, exceptions, values);
        self.cut(shard);
    }

    pub(crate) fn delete<'v>(
        &mut self,
        table: &Table,
        key: &[u8],
        version: Version,
        values: impl ExactSizeIterator<Item = Value<'v>>,
    ) {
        let shard = self.shard(table, key);
        self.shards[shard].delete(&table.header, version, values);
        self.cut(shard);
    }

    /// Bytes collected in all shards and not yet cut.
    pub(crate) fn bytes(&self) -> usize {
        self.done_bytes + self.shards.iter().map(FrameBuilder::len).sum::<usize>()
    }

    /// Whether nothing was collected at all.
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
                at: self.at,
                shard: shard as u32 + 1,
                salt: if self.is_republished {
                    self.at as u64
                } else {
                    0
                },
                raw,
            });
        }
    }

    /// None if there was more than may be kept in memory.
    pub(crate) fn finish(mut self) -> Option<Vec<Outgoing>> {
        (0..self.shards.len()).for_each(|s| self.close(s));
        (!self.overflowed).then_some(self.done)
    }
}

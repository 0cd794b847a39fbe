//! The state that all threads share: the database behind one lock, and small signals around it.
//!
//! A thread that holds the lock may write. No thread waits for the network while holding it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::apply::Position;
use crate::capture::{Captured, Outgoing};
use crate::database::{Database, DatabaseError, Fence};
use crate::health::Health;
use crate::measures::Measures;
use crate::mutation::{self, Mutation};
use crate::outbox::Outbox;
use crate::status::board::Board;
use crate::stream::{Message, StreamState};

mod sizes;
mod turns;
mod writing;

pub use sizes::Keeps;
use sizes::Sizes;
use turns::Pauses;
pub use turns::{SURE_PAUSE, Turn};
pub use writing::Writing;

/// Ids of own messages that are remembered until they are read back. That is more than can be under
/// way; a forgotten id only costs applying our own message once.
const OWN_IDS: usize = 16 * 1024;

/// The database and the outbox of frames captured from it: both change under one lock.
pub struct Locked {
    /// The application's database, with our tables.
    pub database: Database,
    /// Frames captured from `database` that are not acknowledged yet.
    pub outbox: Outbox,
}

impl Locked {
    /// Hands captured frames to the publisher. Must be called before the lock is released.
    pub fn hand_over(&mut self, captured: &mut Captured) {
        if !self.outbox.push(std::mem::take(&mut captured.frames)) {
            self.database.stop_live();
        }
    }

    /// The next frame to be sent.
    pub fn pop(&mut self) -> Option<Outgoing> {
        let frame = self.outbox.pop()?;
        if mutation::is(Mutation::MarksClearedOnSend) {
            self.is_stored(frame.local_tx);
        }
        Some(frame)
    }

    /// Whether a message sent now, beside `under_way` messages, could be pushed out of a stream
    /// before this node reads it: then this node would lack it, too.
    pub fn is_ahead<'s>(
        &self,
        streams: impl Iterator<Item = &'s str>,
        under_way: usize,
        most: u64,
    ) -> bool {
        let unread = streams.map(|s| self.database.unread(s)).max();
        unread.unwrap_or(0) + under_way as u64 >= most
    }

    /// Notes that the broker stored our message `id` at `seq`; `whole` is the transaction of its
    /// frame, if all messages of that frame are stored by now. Returns false, and notes nothing, if
    /// the broker gave that number out before and so lost messages: the earlier knowledge of the
    /// stream is the proof of that, and the next connection checks it. The mark stays, too, because
    /// no node reads again at a number that it has read.
    #[must_use]
    pub fn acknowledged(
        &mut self,
        stream: &str,
        (seq, is_duplicate): (u64, bool),
        id: String,
        whole: Option<i64>,
    ) -> bool {
        if !is_duplicate && self.database.was_given_out(stream, seq, &id) {
            return false;
        }
        if mutation::is(Mutation::AckMovesPosition) {
            let known = self.database.position(stream);
            let (seq, id) = (seq.max(known.seq), id.clone());
            let moved = Position { seq, id, ..known };
            self.database.move_position(stream, moved);
        }
        self.database.note_acknowledged(stream, seq, id);
        if let Some(local_tx) = whole {
            self.is_stored(local_tx);
        }
        true
    }

    /// Notes that a frame of transaction `local_tx` is in its stream.
    fn is_stored(&mut self, local_tx: i64) {
        if let Some(up_to) = self.outbox.acknowledged(local_tx) {
            self.database.acknowledged(up_to);
        }
    }
}

/// See the module's head.
pub struct Shared {
    locked: Mutex<Locked>,
    /// The fence of the database.
    fence: Arc<Fence>,
    /// Held by a thread that is about to write, from its wait for a gap on.
    writing: Mutex<()>,
    wake: Sender<()>,
    /// Messages that this process sent and has not read back yet: all their rows are here.
    own: Mutex<OwnIds>,
    /// Per shard, whether its stream was read to the end since connecting.
    at_end: Vec<AtomicBool>,
    /// Per shard, the number of messages that the stream holds and this node has not applied, as
    /// far as the broker told.
    behind: Vec<AtomicU64>,
    /// Whether all shards were read to their end at some time since the start.
    caught_up: AtomicBool,
    /// Whether this node has met the others, or need not: then it may publish.
    joined: AtomicBool,
    /// See [`Shared::set_begins_empty`].
    begins_empty: AtomicBool,
    /// See [`Shared::publish_beside_gaps`].
    beside_gaps: AtomicBool,
    /// Tells the scheduler of snapshots that something changed.
    scheduler: (Sender<()>, Receiver<()>),
    /// Whether the publisher waits for the consumers to read on.
    waits: AtomicBool,
    sizes: Sizes,
    /// When a row last changed, here or by an applied message.
    changed: Mutex<Instant>,
    /// See [`Shared::take_turn`].
    turn: Mutex<Pauses>,
    /// When the application was last seen to write.
    written: Mutex<Option<Instant>>,
    /// See [`Shared::hold_reading`].
    reading: Mutex<Option<Held>>,
    /// Everything that the threads report as failing.
    pub health: Health,
    /// Measurements of the threads.
    pub measures: Measures,
    /// Where the status is asked for, and its thread is told of changes.
    pub status: Board,
}

/// A channel that is closed when reading may go on.
type Held = (Sender<()>, Receiver<()>);

/// Ids of own messages, each with a hash of the message. The hash has a key that is drawn at the
/// start: a peer can send a different message under an id of ours, and none that has the hash.
#[derive(Default)]
struct OwnIds {
    key: RandomState,
    ids: HashMap<u128, u64>,
    order: VecDeque<u128>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in one thread takes the process down; until then the others may finish.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Returns the shared state and the receiver that wakes the publisher. One waiting message is
    /// enough.
    pub fn new(database: Database, shards: u32) -> (Shared, Receiver<()>) {
        let (wake, woken) = bounded(1);
        let (joined, now) = (database.is_joined(), Instant::now());
        let fence = database.fence.clone();
        let shared = Shared {
            locked: Mutex::new(Locked {
                database,
                outbox: Outbox::default(),
            }),
            fence,
            writing: Mutex::new(()),
            wake,
            own: Mutex::new(OwnIds::default()),
            at_end: (0..shards).map(|_| AtomicBool::new(false)).collect(),
            behind: (0..shards).map(|_| AtomicU64::new(0)).collect(),
            caught_up: AtomicBool::new(shards == 0),
            joined: AtomicBool::new(joined),
            begins_empty: AtomicBool::new(false),
            beside_gaps: AtomicBool::new(false),
            scheduler: bounded(1),
            waits: AtomicBool::new(false),
            sizes: Sizes::default(),
            changed: Mutex::new(now),
            turn: Mutex::new(Pauses::from(now)),
            written: Mutex::new(None),
            reading: Mutex::new(None),
            health: Health::default(),
            measures: Measures::default(),
            status: Board::default(),
        };
        (shared, woken)
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, Locked> {
        locked(&self.locked)
    }

    /// As [`Shared::lock`], but gives up after about `patience`: for callers that cannot wait for
    /// as long as an application holds the database's lock. `None` if the lock was not free by
    /// then.
    pub fn lock_within(&self, patience: Duration) -> Option<MutexGuard<'_, Locked>> {
        let deadline = Instant::now() + patience;
        loop {
            match self.locked.try_lock() {
                Ok(locked) => return Some(locked),
                Err(TryLockError::Poisoned(e)) => return Some(e.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Holds reading on a new node without tables, which is about to learn them from a snapshot. A
    /// message read before that is held row by row, which costs ten times as much as applying it to
    /// its table. The caller must call [`Shared::let_read`] later.
    pub fn hold_reading(&self) -> Result<(), DatabaseError> {
        if !self.is_joined() && self.lock().database.is_without_tables()? {
            locked(&self.reading).get_or_insert_with(|| bounded(0));
        }
        Ok(())
    }

    /// Lets reading go on after [`Shared::hold_reading`].
    pub fn let_read(&self) {
        *locked(&self.reading) = None;
    }

    /// Waits until reading may go on; false if `stop` was closed before.
    pub fn may_read(&self, stop: &Receiver<()>) -> bool {
        let held = locked(&self.reading).as_ref().map(|h| h.1.clone());
        held.is_none_or(|held| select! { recv(stop) -> _ => false, recv(held) -> _ => true })
    }

    /// Tells the publisher that there is something to do.
    pub fn wake_publisher(&self) {
        let _ = self.wake.try_send(());
    }

    /// Whether this node reads streams at all.
    pub fn reads(&self) -> bool {
        !self.at_end.is_empty()
    }

    /// Asks that the publisher is woken when something was read.
    pub fn wait_for_readers(&self) {
        self.waits.store(true, Ordering::Relaxed);
    }

    /// Notes that a consumer has read and applied these messages.
    pub fn has_read(&self, messages: &[Message]) {
        self.sizes.read(messages);
        self.status.note_change();
        if self.waits.swap(false, Ordering::Relaxed) {
            self.wake_publisher();
        }
    }

    /// Notes the state of a stream, as the broker told it.
    pub fn heard_of(&self, stream: &StreamState) {
        self.sizes.heard(stream);
    }

    /// The limits of a stream: `max_entries` messages, or fewer if the broker sets a lower limit.
    pub fn stream_keeps(&self, max_entries: u64) -> Keeps {
        self.sizes.keeps(max_entries)
    }

    /// Notes that rows changed just now.
    pub fn note_change(&self) {
        *locked(&self.changed) = Instant::now();
        self.status.note_change();
    }

    /// How long ago a row last changed.
    pub fn quiet_for(&self) -> Duration {
        locked(&self.changed).elapsed()
    }

    /// Tells the scheduler of snapshots that there may be something to do.
    pub fn notify_scheduler(&self) {
        self.status.note_change();
        let _ = self.scheduler.0.try_send(());
    }

    /// Receives a message for each [`Shared::notify_scheduler`]; several in a row may count as one.
    pub fn scheduler_notifications(&self) -> Receiver<()> {
        self.scheduler.1.clone()
    }

    /// Notes that this node may publish from now on.
    pub fn set_joined(&self) {
        self.joined.store(true, Ordering::Relaxed);
        self.wake_publisher();
    }

    /// Notes that this node has no tables, and that no snapshot is to be expected that would bring
    /// some: they will be those that its application makes.
    pub fn set_begins_empty(&self) {
        self.begins_empty.store(true, Ordering::Relaxed);
        self.status.note_change();
    }

    /// Lets this node publish in spite of its gaps (`true`): for a long time no snapshot has
    /// brought the missing changes. `false` when there is such a snapshot again, or nothing is
    /// missing.
    pub fn publish_beside_gaps(&self, does: bool) {
        if self.beside_gaps.swap(does, Ordering::Relaxed) != does {
            self.wake_publisher();
        }
    }

    /// Whether marked rows may be sent.
    pub fn may_publish(&self, database: &Database) -> bool {
        let beside_gaps = self.beside_gaps.load(Ordering::Relaxed);
        self.is_joined() && (beside_gaps || !database.awaits_snapshot())
    }

    /// Whether this node has all rows that the others have, or had them once since the start: its
    /// application can work.
    pub fn is_ready(&self) -> bool {
        self.has_begun() && self.has_caught_up()
    }

    /// Whether this node has met the others, or there is nothing for it to begin with.
    pub fn has_begun(&self) -> bool {
        self.is_joined() || self.begins_empty.load(Ordering::Relaxed)
    }

    /// Whether this node has met the others, or need not.
    pub fn is_joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }

    /// Notes that the shard's stream is read to its end, or not any more.
    pub fn set_at_end(&self, shard: u32, at_end: bool) {
        let before = self.at_end[shard as usize - 1].swap(at_end, Ordering::Relaxed);
        if at_end != before {
            self.status.note_change();
        }
        if at_end && !before {
            self.caught_up
                .fetch_or(self.all_at_end(), Ordering::Relaxed);
            self.wake_publisher();
            self.notify_scheduler();
        }
    }

    /// Whether all streams were read to their end at some time since the start.
    pub fn has_caught_up(&self) -> bool {
        self.caught_up.load(Ordering::Relaxed)
    }

    /// Whether all streams are read to their end now.
    pub fn all_at_end(&self) -> bool {
        self.at_end.iter().all(|a| a.load(Ordering::Relaxed))
    }

    /// Notes how many messages the shard's stream holds that are not applied here.
    pub fn note_behind(&self, shard: u32, messages: u64) {
        self.behind[shard as usize - 1].store(messages, Ordering::Relaxed);
    }

    /// Per shard, messages that the stream holds and that are not applied here, as far as the
    /// broker told.
    pub fn behind(&self) -> Vec<u64> {
        let each = self.behind.iter();
        each.map(|b| b.load(Ordering::Relaxed)).collect()
    }

    /// Whether every stream is read to its end, as far as the broker told.
    pub fn is_caught_up(&self) -> bool {
        self.all_at_end() && self.behind.iter().all(|b| b.load(Ordering::Relaxed) == 0)
    }

    /// Notes that the message `data` is about to be sent under this id.
    pub fn remember_own(&self, id: &[u8; 16], data: &[u8]) {
        let id = u128::from_be_bytes(*id);
        let mut own = locked(&self.own);
        let hash = own.key.hash_one(data);
        if own.ids.insert(id, hash).is_none() {
            own.order.push_back(id);
        }
        while own.order.len() > OWN_IDS {
            if let Some(oldest) = own.order.pop_front() {
                own.ids.remove(&oldest);
            }
        }
    }

    /// Forgets the ids of own messages, so that these are applied when they are read again: their
    /// rows may be gone by now, like deletes that are forgotten.
    pub fn forget_own(&self) {
        *locked(&self.own) = OwnIds::default();
    }

    /// Whether this process sent the message `data` under this id. A different message under the id
    /// is not ours.
    pub fn is_own(&self, id: &str, data: &[u8]) -> bool {
        let Ok(id) = u128::from_str_radix(id, 16) else {
            return false;
        };
        let own = locked(&self.own);
        let known = own.ids.get(&id);
        known.is_some_and(|hash| *hash == own.key.hash_one(data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::support::Node;

    #[test]
    fn own_messages_are_read_when_all_is_read_again() {
        let shared = Shared::new(Node::new(1, "").db, 1).0;
        let (id, text) = ([7; 16], format!("{:032x}", u128::from_be_bytes([7; 16])));
        shared.remember_own(&id, b"sent");
        assert!(shared.is_own(&text, b"sent"));
        assert!(!shared.is_own(&text, b"another"), "a peer sent it");
        assert!(!shared.is_own("a peer's", b"sent"));
        shared.forget_own();
        assert!(!shared.is_own(&text, b"sent"));
    }

    #[test]
    fn only_a_node_that_knows_no_table_waits_to_read() {
        let (stop, stopped) = bounded(0);
        let may_read = |shared: &Shared| shared.may_read(&stopped);
        let shared = Shared::new(Node::unmet(1, "").db, 1).0;
        assert!(may_read(&shared));
        shared.hold_reading().unwrap();
        let ends = std::thread::scope(|scope| {
            let waits = scope.spawn(|| may_read(&shared));
            shared.let_read();
            waits.join().unwrap()
        });
        assert!(ends);
        let knows = Shared::new(Node::unmet(2, "CREATE TABLE t(x)").db, 1).0;
        shared.hold_reading().unwrap();
        knows.hold_reading().unwrap();
        drop(stop);
        assert!(!may_read(&shared) && may_read(&knows));
    }
}

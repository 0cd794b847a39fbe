//! Mistakes on purpose, to prove that the simulation finds them (`scripts/sim.sh --mutations`).
//!
//! Without the feature `mutations` every question is answered `false` at compile time.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// Marks are cleared when a frame is sent, not when it is acknowledged.
    MarksClearedOnSend = 1,
    /// The acknowledged sequence counts as read.
    AckMovesPosition,
    /// The streams are taken to be what they were before a reconnect.
    NoLookUp,
    /// What arrives is taken whatever its version.
    NoVersionCompare,
    /// Of two contents with one version, the one that is here stays.
    NoTieBreak,
    /// Rows that a REPLACE may have evicted count as touched.
    MaybeIsReal,
    /// Rows that a REPLACE may have evicted are not looked at.
    MaybeIsNothing,
    /// The position covers messages that the transaction did not come to.
    PositionAhead,
    /// A captured row does not settle what it hides or frees.
    NoSettleOnCapture,
    /// A stamp is the clock's time, whatever the row's version.
    StampByClockAlone,
    /// An UPDATE of the key leaves the row under the old one.
    KeyUpdateKeepsOld,
    /// Columns unknown here are dropped.
    HeldColumnsDropped,
    /// A tombstone loses against a row of the same version.
    TombstoneLosesTies,
    /// What arrives is applied before local changes are captured.
    NoCaptureBeforeApply,
    /// Rows are published from their marks before local changes are captured.
    NoCaptureBeforeBacklog,
    /// A row that is sent from its mark carries the default of a column added since.
    LateDefaultsSent,
    /// A row that was marked is not any more when something arrives for it.
    MarkLostOnJoin,
    /// What the outbox forgot counts as acknowledged with what comes next.
    OutboxRemembers,
    /// An acknowledgement covers the transactions before it.
    AckCoversEarlier,
    /// Displaced rows are settled while local rows have no versions yet.
    SettleBeforeCapture,
    /// Displaced rows are not kept.
    DisplacedDropped,
    /// What is published again has the message id that it had before.
    MessageIdReused,
    /// After a power cut the clock goes on from where the disk says it was.
    RebootIsRestart,
    /// However far ahead time is reserved, a start reserves as much again.
    ReservationsAddUp,
    /// What the change log held at the start counts as written after it.
    NotedCountsAsNow,
    /// What the node sent before a power cut counts as a duplicate's.
    OwnTwin,
    /// The delete of a row that was never here leaves no tombstone.
    UnknownDeleteForgotten,
    /// What this node wrote itself is not read from a stream.
    OwnWritesSkipped,
    /// A snapshot is taken while local changes wait to be captured.
    SnapshotOfUncaptured,
    /// A merge moves the positions when it begins.
    PositionsBeforeMerge,
    /// What a snapshot's maker lacked is not lacking here.
    GapForgottenOnMerge,
    /// Every row that a snapshot lacks is deleted.
    LackingRowsDeleted,
    /// What a snapshot's maker had not sent stays its own matter.
    MarksNotCarried,
    /// A node publishes before it merged the snapshot.
    JoinedBeforeMerging,
    /// Tombstones that were not sent yet are dropped like others.
    MarkedTombstonesDropped,
    /// Tombstones are dropped when half of their time is over.
    TombstonesDroppedEarly,
    /// A row without a version is stamped by the clock alone.
    ForgottenStampedAgain,
    /// A tombstone that wins is not told again, however old.
    BuriedInSilence,
    /// What others lack of a stream that this node read whole is not said.
    OthersGapsIgnored,
    /// No snapshot is merged for a stream that is gone.
    LostStreamsForgotten,
    /// Rows of a table whose key is another one now count as written when it was.
    RekeyedCountsAsNow,
    /// What a migration changed in a row counts as written when it did.
    MigratedCountsAsNow,
    /// Rows are not sent again under the new key.
    RekeyedNotSent,
    /// A table that a migration is at work on is taken in at once.
    TableAtWorkTaken,
    /// What arrives is written into a table that a migration is at work on.
    TableAtWorkFilled,
    /// What arrives under the key that a table had before is held.
    FormerKeyHeld,
}

impl Mutation {
    pub const ALL: [Mutation; 46] = {
        use Mutation::*;
        [
            MarksClearedOnSend,
            AckMovesPosition,
            NoLookUp,
            NoVersionCompare,
            NoTieBreak,
            MaybeIsReal,
            MaybeIsNothing,
            PositionAhead,
            NoSettleOnCapture,
            StampByClockAlone,
            KeyUpdateKeepsOld,
            HeldColumnsDropped,
            TombstoneLosesTies,
            NoCaptureBeforeApply,
            NoCaptureBeforeBacklog,
            LateDefaultsSent,
            MarkLostOnJoin,
            OutboxRemembers,
            AckCoversEarlier,
            SettleBeforeCapture,
            DisplacedDropped,
            MessageIdReused,
            RebootIsRestart,
            ReservationsAddUp,
            NotedCountsAsNow,
            OwnTwin,
            UnknownDeleteForgotten,
            OwnWritesSkipped,
            SnapshotOfUncaptured,
            PositionsBeforeMerge,
            GapForgottenOnMerge,
            LackingRowsDeleted,
            MarksNotCarried,
            JoinedBeforeMerging,
            MarkedTombstonesDropped,
            TombstonesDroppedEarly,
            ForgottenStampedAgain,
            BuriedInSilence,
            OthersGapsIgnored,
            LostStreamsForgotten,
            RekeyedCountsAsNow,
            MigratedCountsAsNow,
            RekeyedNotSent,
            TableAtWorkTaken,
            TableAtWorkFilled,
            FormerKeyHeld,
        ]
    };
}

#[cfg(feature = "mutations")]
static CURRENT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Makes the mistake from now on; none with `None`.
#[cfg(feature = "mutations")]
pub fn set(mutation: Option<Mutation>) {
    let number = mutation.map_or(0, |m| m as u8);
    CURRENT.store(number, std::sync::atomic::Ordering::Relaxed);
}

/// Whether the mistake is to be made.
#[cfg(feature = "mutations")]
pub fn is(mutation: Mutation) -> bool {
    CURRENT.load(std::sync::atomic::Ordering::Relaxed) == mutation as u8
}

#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is(_: Mutation) -> bool {
    false
}

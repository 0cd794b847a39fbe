//! Deliberate mistakes, to prove that the simulation finds them (`scripts/sim.sh --mutations`).
//!
//! Without the feature `mutations`, [`is`] is `false` at compile time.

/// Makes the enum of all mistakes, and the list of them.
macro_rules! mistakes {
    ($($(#[$about:meta])* $name:ident,)*) => {
        /// A mistake that the code makes if told to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Mutation {
            $($(#[$about])* $name,)*
        }

        impl Mutation {
            /// All mistakes.
            pub const ALL: &[Mutation] = &[$(Mutation::$name),*];
        }
    };
}

mistakes! {
    /// Marks are cleared when a frame is sent, not when it is acknowledged.
    MarksClearedOnSend,
    /// The acknowledged sequence counts as read.
    AckMovesPosition,
    /// After a reconnect, the streams are not looked up: they count as unchanged.
    NoLookUp,
    /// An arriving row is taken whatever its version.
    NoVersionCompare,
    /// Of two contents with one version, the local one stays.
    NoTieBreak,
    /// Rows that a REPLACE may have evicted count as touched.
    MaybeIsReal,
    /// Rows that a REPLACE may have evicted are ignored.
    MaybeIsNothing,
    /// The position covers messages that the transaction did not reach.
    PositionAhead,
    /// A captured row does not settle the rows that it displaces or frees.
    NoSettleOnCapture,
    /// A stamp is the clock's time, whatever the row's version.
    StampByClockAlone,
    /// An UPDATE of the key leaves the row under the old one.
    KeyUpdateKeepsOld,
    /// Columns unknown here are dropped.
    HeldColumnsDropped,
    /// A tombstone loses against a row of the same version.
    TombstoneLosesTies,
    /// Arriving changes are applied before local changes are captured.
    NoCaptureBeforeApply,
    /// Rows are published from their marks before local changes are captured.
    NoCaptureBeforeBacklog,
    /// A row that is sent from its mark carries the default of a column that was added since.
    LateDefaultsSent,
    /// A marked row loses its mark when a change arrives for it.
    MarkLostOnJoin,
    /// Frames that the outbox forgot count as acknowledged with the next acknowledgement.
    OutboxRemembers,
    /// An acknowledgement covers the transactions before it.
    AckCoversEarlier,
    /// Displaced rows are settled before local rows have versions.
    SettleBeforeCapture,
    /// Displaced rows are not kept.
    DisplacedDropped,
    /// A republished frame has its former message id.
    MessageIdReused,
    /// After a power cut the clock continues from the time on disk.
    RebootIsRestart,
    /// A start reserves more time, however much is reserved already.
    ReservationsAddUp,
    /// Offline writes count as written after the start.
    OfflineWritesCountAsNow,
    /// Frames that the node sent before a power cut count as a duplicate node's.
    OwnDuplicate,
    /// The delete of a row that was never here leaves no tombstone.
    UnknownDeleteForgotten,
    /// Frames that this node wrote are not read from a stream.
    OwnWritesSkipped,
    /// A snapshot is taken while local changes wait to be captured.
    SnapshotOfUncaptured,
    /// A merge moves the positions when it begins.
    PositionsBeforeMerge,
    /// Gaps of a snapshot's maker are forgotten in the merge.
    GapForgottenOnMerge,
    /// Every row that is absent from a snapshot is deleted.
    LackingRowsDeleted,
    /// Marks of a snapshot's maker are not taken over.
    MarksNotCarried,
    /// A node publishes before it merged the snapshot.
    JoinedBeforeMerging,
    /// Tombstones that were not sent yet are dropped like others.
    MarkedTombstonesDropped,
    /// Tombstones are dropped when half of their time is over.
    TombstonesDroppedEarly,
    /// A row without a version is stamped by the clock alone.
    ForgottenStampedAgain,
    /// A tombstone that wins is not published again, however old.
    BuriedInSilence,
    /// Gaps of other nodes in a stream that this node read whole are not reported.
    OthersGapsIgnored,
    /// No snapshot is merged for a stream that the broker lost.
    LostStreamsForgotten,
    /// After a change of the key definition, rows count as written at that moment.
    RekeyedCountsAsNow,
    /// Changes that a migration makes to a row count as written at that moment.
    MigratedCountsAsNow,
    /// After a change of the key definition, rows are not sent under the new key.
    RekeyedNotSent,
    /// A table that a migration works on is adopted at once.
    TableAtWorkTaken,
    /// Arriving rows are written into a table that a migration works on.
    TableAtWorkFilled,
    /// Rows that arrive under a table's former key are held.
    FormerKeyHeld,
    /// Rows that a rebuild leaves out count as deleted at that moment.
    LeftOutCountsAsNow,
    /// Rows that a migration with a change of the key leaves out are not deleted.
    LeftOutComesBack,
    /// Rows do not say which key they had before.
    OldKeyNotSent,
    /// A repair publishes the row with the version that damaged copies have, too.
    RepairKeepsVersion,
    /// A row that is repaired counts as written at that moment.
    RepairCountsAsNow,
    /// A repair publishes the oldest version of a row that differs.
    RepairPublishesOldest,
    /// A damaged copy of a row is as good as any other for its repair.
    RepairSpreadsDamage,
    /// A repair does not look whether the row was written since it was compared.
    RepairOfLaterWrite,
    /// The last row of a key range is in no digest.
    LastRowNotSummed,
    /// A digest leaves a column out.
    ColumnNotSummed,
    /// The content recorded with a version counts as that in the table.
    RecordedIsTrusted,
    /// A damaged row of a snapshot counts as recorded like this where it is merged.
    DamageForgottenOnMerge,
    /// A message whose rows are applied in part counts as read.
    CutMessageCounts,
    /// A delete concerns the row that has the number, whatever row it names.
    DeleteNamesNoBirth,
    /// A row that is inserted under the number of a deleted one is that row, with new values.
    DeleteAndInsertIsUpdate,
    /// Rows that wait for a number are deleted with the row that has it.
    WaitingDeletedWithShown,
}

/// The number of the present mistake plus one; 0: none.
#[cfg(feature = "mutations")]
static CURRENT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Makes this mistake from now on, or none.
#[cfg(feature = "mutations")]
pub fn set(mutation: Option<Mutation>) {
    let number = mutation.map_or(0, |m| m as u8 + 1);
    CURRENT.store(number, std::sync::atomic::Ordering::Relaxed);
}

/// Whether to make this mistake now.
#[cfg(feature = "mutations")]
pub fn is(mutation: Mutation) -> bool {
    CURRENT.load(std::sync::atomic::Ordering::Relaxed) == mutation as u8 + 1
}

/// Always `false`: this build makes no mistakes on purpose.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is(_: Mutation) -> bool {
    false
}

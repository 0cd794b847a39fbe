//! Counts of what happened to rows since the start, for metrics. A transaction that is undone
//! counts nothing.

/// Counters that only rise.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Rows whose newest version the broker acknowledged.
    pub published: u64,
    /// Rows that arrived and changed a row here.
    pub won: u64,
    /// Rows that arrived and changed nothing, because the row here is as new, or newer.
    pub lost: u64,
    /// Rows that arrived and are held, because they do not fit the tables here.
    pub held: u64,
    /// Rows that arrived and are let go, in whole or in some columns: their table is excluded, or
    /// more is held already than `max_held_bytes`.
    pub let_go: u64,
    /// Rows that left their table, or never got into it, because a different row has their UNIQUE
    /// values.
    pub conflicts: u64,
    /// Rows that the application wrote here, while this node publishes nothing.
    pub kept_here: u64,
    /// Calls that held a row, including rows that were held already.
    pub(crate) holds: u64,
}

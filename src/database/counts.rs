//! What happened to rows since the start, for metrics. A transaction that is undone counts nothing.

/// Numbers that only rise.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Rows whose newest version the broker acknowledged.
    pub published: u64,
    /// Rows that arrived and changed what is here.
    pub won: u64,
    /// Rows that arrived and changed nothing: what is here is as new, or newer.
    pub lost: u64,
    /// Rows that arrived and wait, because they do not fit the tables here.
    pub held: u64,
    /// Rows that left their table, or never came there, because another has their UNIQUE values.
    pub conflicts: u64,
    /// Calls that hold something, also of a row that is held already.
    pub(crate) holds: u64,
}

//! The keys of `__harmonylite___meta`, one variant each. This is the only place that knows their
//! names, the type of their values, and whether a snapshot passes them on.

use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, ToSql, params};

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaType {
    /// An INTEGER.
    Integer,
    /// A TEXT.
    Text,
    /// Text: JSON.
    Json,
    /// A BLOB: CBOR.
    Cbor,
}

/// Declares the keys: the name in the database, the type, and whether a copy for other nodes keeps
/// it.
macro_rules! meta {
    ($(
        $(#[doc = $doc:literal])+
        $variant:ident = $key:literal, $kind:ident, travels: $travels:literal;
    )+) => {
        /// A key of `__harmonylite___meta`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Meta {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Meta {
            /// Every key.
            pub const ALL: &[Meta] = &[$(Meta::$variant,)+];

            /// Name of the key in the database.
            pub const fn name(self) -> &'static str {
                match self { $(Meta::$variant => $key,)+ }
            }

            /// How the value of the key is stored.
            pub const fn kind(self) -> MetaType {
                match self { $(Meta::$variant => MetaType::$kind,)+ }
            }

            /// Whether a snapshot keeps the key. A key that does not travel describes this node or
            /// this file alone, and would be wrong in a node that begins with the copy.
            pub const fn travels(self) -> bool {
                match self { $(Meta::$variant => $travels,)+ }
            }
        }
    };
}

meta! {
    /// Number of the layout of the own tables ([`super::own_tables::FORMAT`]).
    Format = "format", Integer, travels: true;
    /// Set once the first start has given versions to all rows.
    Installed = "installed", Integer, travels: true;
    /// Id of this node.
    NodeId = "node_id", Integer, travels: false;
    /// A configured id that belongs to a different node, as this node found out.
    NodeIdTaken = "node_id_taken", Integer, travels: false;
    /// Set once this node has met the others, and so publishes.
    Joined = "joined", Integer, travels: false;
    /// Key of the content hashes. It travels with the hashes.
    ContentKey = "content_key", Cbor, travels: true;
    /// Boot of the machine during which time was reserved last.
    BootId = "boot_id", Text, travels: false;
    /// Last time that was certain, unix milliseconds.
    ClockBase = "clock_base", Integer, travels: false;
    /// Upper end of the time reserved for stamps, unix milliseconds.
    ClockUntil = "clock_until", Integer, travels: false;
    /// Upper end of the reserved transaction numbers. It travels: the numbers under which rows were
    /// learnt mean something only below it.
    AtUntil = "at_until", Integer, travels: true;
    /// Bound for the stamps of offline writes, unix milliseconds.
    NotedBase = "noted_base", Integer, travels: false;
    /// `PRAGMA schema_version` when the catalog was read last.
    SchemaVersion = "schema_version", Integer, travels: false;
    /// Hash of the replicated tables' schema.
    SchemaHash = "schema_hash", Integer, travels: true;
    /// SHA-256 over the definitions of the replicated tables, in hexadecimal.
    SchemaSha256 = "schema_sha256", Text, travels: false;
    /// The same hash before the definitions changed last.
    SchemaSha256Before = "schema_sha256_before", Text, travels: false;
    /// Number of the newest replicated table. It travels with the tables that have such numbers.
    LastTable = "last_table", Integer, travels: true;
    /// Tables (lower case) that were in the database and not replicated. A copy gets its own list.
    NotReplicated = "left_out", Cbor, travels: false;
    /// Set once a release that knows the storage of virtual tables has read the catalog.
    KnowsStorage = "knows_storage", Integer, travels: true;
    /// Inode of the file while it was in WAL mode.
    WalFile = "wal_file", Integer, travels: false;
    /// Last message of each stream that the Go version had read. It travels with the rows.
    GoRead = "go_read", Json, travels: true;
    /// Name of the snapshot that was merged last, or that the file began with.
    MergedSnapshot = "merged_snapshot", Text, travels: false;
    /// Names of the snapshots that this node made last, separated by blanks.
    SnapshotsMade = "snapshots_made", Text, travels: false;
    /// Set while a duplicate node may not know that this node has something to tell.
    UnheardByDuplicate = "unheard_by_twin", Integer, travels: false;
    /// Number of messages that were removed from the quarantine.
    QuarantineDropped = "quarantine_dropped", Integer, travels: false;
    /// Tables (lower case) whose held rows an operator gave up.
    DropHeld = "drop_held", Json, travels: false;
    /// Tables of which rows were let go. It travels: the copy lacks those rows.
    LetGo = "let_go", Json, travels: true;
    /// Progress of republishing all rows.
    PublishAgain = "publish_again", Cbor, travels: false;
    /// Set while held rows are to be republished.
    PublishHeldAgain = "publish_held_again", Integer, travels: false;
    /// Tombstones learnt up to this transaction number were dropped.
    Swept = "swept", Integer, travels: false;
    /// Hlc of the newest tombstone ever dropped. It travels: the copy lacks it.
    DroppedHlc = "dropped_hlc", Integer, travels: true;
    /// Node of the newest tombstone ever dropped.
    DroppedNode = "dropped_node", Integer, travels: true;
    /// Highest hlc that this node may have given to a row that is forgotten by now.
    Forgotten = "forgotten", Integer, travels: false;
    /// No version of this node has a later time than this, unix milliseconds.
    GivenMs = "given_ms", Integer, travels: false;
    /// Set once this file may have births. It travels with the rows.
    Births = "births", Integer, travels: true;
    /// Streams that the broker lost, and how far this node had read them.
    LostStreams = "lost_streams", Json, travels: false;
}

/// Reads the value of a key; `None` if it is not set. Fails if the value has a different type.
pub fn get_meta<T: FromSql>(conn: &Connection, key: Meta) -> rusqlite::Result<Option<T>> {
    conn.prepare_cached("SELECT value FROM __harmonylite___meta WHERE key = ?1")?
        .query_row([key.name()], |r| r.get(0))
        .optional()
}

/// Sets the value of a key, in the transaction of the caller if there is one.
pub fn set_meta(conn: &Connection, key: Meta, value: impl ToSql) -> rusqlite::Result<()> {
    conn.prepare_cached("REPLACE INTO __harmonylite___meta(key, value) VALUES (?1, ?2)")?
        .execute(params![key.name(), value])?;
    Ok(())
}

/// Removes the value of a key.
pub fn delete_meta(conn: &Connection, key: Meta) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM __harmonylite___meta WHERE key = ?1")?
        .execute([key.name()])?;
    Ok(())
}

/// Removes from a copy the keys that do not travel.
pub(crate) fn strip_meta(copy: &Connection) -> rusqlite::Result<()> {
    let stays = Meta::ALL.iter().filter(|key| !key.travels());
    stays.copied().try_for_each(|key| delete_meta(copy, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_have_one_name() {
        let names: std::collections::BTreeSet<_> = Meta::ALL.iter().map(|key| key.name()).collect();
        assert_eq!(names.len(), Meta::ALL.len());
    }
}

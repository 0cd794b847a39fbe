//! Changes that nodes of the Go version published, in a stream shared with this version.
//!
//! They count like changes of this version. Their version is the time at which the broker stored
//! them and the node that sent them, so every node computes the same one and a later write wins.
//! All that the stream still holds is read. Go's own position says less than it seems to: there, a
//! node's own message moves the position past messages of other nodes. Go cannot read what this
//! version publishes, so a node that still runs Go is named in the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::apply::{Arrived, Incoming, Place};
use crate::capture::Frames;
use crate::database::table::Table;
use crate::database::{Database, Result};
use crate::model::frame::ROWID;
use crate::model::go_event::GoEvent;
use crate::model::key::key_bytes;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{Version, hlc_within};

/// A Go node that published nothing for this long may have been replaced.
const RUNS_STILL: Duration = Duration::from_secs(600);

/// Go nodes that the log names: a peer may invent any number.
const MAX_NAMED: usize = 16;

/// Stands in place of a key's shape: an event does not say which of its columns are the key. Its
/// row is held under all of its columns, and joined by its key once the table is here.
const SHAPE: &str = "as the Go version sends it";

/// Events of Go nodes that this process has read since it started.
#[derive(Debug, Default)]
pub(crate) struct GoNodes {
    events: u64,
    /// Nodes that published since this database was opened, with the uptime at their last message.
    publishing: BTreeMap<u64, Duration>,
}

impl Database {
    /// Joins the row of an event. A row that does not fit the schema here is held; one that never
    /// will fit goes to the quarantine.
    pub(super) fn apply_go_event(
        &mut self,
        stream: &str,
        message: &Arrived<'_>,
        (event, data): (&GoEvent<'_>, &[u8]),
        frames: &mut Frames,
    ) -> Result<usize> {
        self.note_go_event(stream, event.from, message.time_ms);
        let lower = event.table.to_ascii_lowercase();
        let columns: Vec<&str> = event.row.iter().map(|(name, _)| *name).collect();
        if self.lets_go(&lower, &columns)? {
            self.counts.let_go += 1;
            return Ok(0);
        }
        let incoming = incoming(event, version(message, event.from));
        let at = Place::of_go(&lower, &incoming);
        let Some(table) = self.here_or_waiting(&lower)? else {
            self.hold(&at, &incoming, self.why_held(&lower))?;
            self.let_go_if_too_much(&lower)?;
            return Ok(0);
        };
        if is_keyless(&table, &incoming) {
            let reason = format!(
                "of the Go version, of table {:?}: a column of the key that the table has here is \
                 NULL",
                event.table
            );
            self.quarantine(stream, message.seq, &reason, data)?;
            return Ok(0);
        }
        if self.writable(&lower).is_none() {
            self.hold(&at, &incoming, self.why_held(&lower))?;
            return Ok(0);
        }
        Ok(self.join_of_go(&table, &at, incoming, frames)?.into())
    }

    /// Joins a row of a Go node, or holds it if it lacks columns of the table's key.
    pub(crate) fn join_of_go(
        &mut self,
        table: &Arc<Table>,
        at: &Place,
        mut incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<bool> {
        let Some(key) = key_of(table, &incoming) else {
            self.hold(at, &incoming, "the table has a different key here")?;
            return Ok(false);
        };
        if table.schema.rowid.is_some()
            && let Some((version, value)) = incoming.columns.remove(ROWID_IN_EVENT)
        {
            incoming.add_column(ROWID.to_owned(), version, value);
        }
        // The columns of a delete serve only to find its key.
        let floor = incoming.floor.unwrap_or(Version::NEVER);
        incoming.columns.retain(|_, (version, _)| *version > floor);
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let key_bytes = table.key_bytes(key.iter().copied());
        self.join_with_held(table, &key, &key_bytes, incoming, frames)
    }

    fn note_go_event(&mut self, stream: &str, from: u64, time_ms: i64) {
        if self.go_nodes.events == 0 {
            log::warn!(
                "{stream} holds changes of the Go version, such as those of its node {from}: this \
                 node applies them. The Go version ends when it reads a frame of this version: \
                 replace it on all nodes"
            );
        }
        self.go_nodes.events += 1;
        if time_ms <= self.opened_ms || from == self.node {
            return;
        }
        let now = self.clock.uptime();
        let publishing = &mut self.go_nodes.publishing;
        if publishing.len() >= MAX_NAMED && !publishing.contains_key(&from) {
            return;
        }
        if publishing.insert(from, now).is_none() {
            log::warn!("node {from} runs the Go version, which cannot read frames of this version");
        }
    }

    /// How many changes of Go nodes were read since the start.
    pub(crate) fn go_events(&self) -> u64 {
        self.go_nodes.events
    }

    /// Nodes that run the Go version, as far as they published lately.
    pub(crate) fn nodes_with_go(&self) -> Vec<u64> {
        let now = self.clock.uptime();
        let nodes = self.go_nodes.publishing.iter();
        let lately = nodes.filter(|(_, at)| now - **at < RUNS_STILL);
        lately.map(|(node, _)| *node).collect()
    }
}

/// The version of a message's row: of two messages of one millisecond the later one is newer.
fn version(message: &Arrived<'_>, node: u64) -> Version {
    Version {
        hlc: hlc_within(message.time_ms, message.seq),
        node,
    }
}

impl Place {
    /// Where a row of a Go node is held that cannot be joined yet.
    fn of_go(table: &str, row: &Incoming) -> Place {
        let values = row
            .columns
            .iter()
            .flat_map(|(name, (_, value))| [Value::Text(name.as_bytes()), value.borrow()]);
        let values: Vec<Value<'_>> = values.collect();
        let text = key_bytes(values.iter().copied(), std::iter::repeat("BINARY"));
        // A row of different content must not get the same place, even if its values are chosen.
        let hash = Sha256::digest(&text);
        Place {
            table: table.to_owned(),
            shape: SHAPE.to_owned(),
            key: key_bytes(
                [Value::Blob(&hash[..16])].into_iter(),
                ["BINARY"].into_iter(),
            ),
        }
    }

    pub(crate) fn is_of_go(&self) -> bool {
        self.shape == SHAPE
    }
}

/// Name, in an event, of the rowid of a table without a primary key.
const ROWID_IN_EVENT: &str = "rowid";

/// The values of the table's key columns; none for a column that the row lacks.
fn key_values<'a>(
    table: &'a Table,
    row: &'a Incoming,
) -> impl Iterator<Item = Option<&'a OwnedValue>> {
    let columns = table.schema.columns.iter().take(table.key_len());
    columns.map(|column| {
        let name = match &*column.lower {
            ROWID => ROWID_IN_EVENT,
            lower => lower,
        };
        row.columns.get(name).map(|(_, value)| value)
    })
}

fn key_of(table: &Table, row: &Incoming) -> Option<Vec<OwnedValue>> {
    key_values(table, row).map(|value| value.cloned()).collect()
}

/// Whether one of the row's key columns is NULL.
fn is_keyless(table: &Table, row: &Incoming) -> bool {
    key_values(table, row)
        .flatten()
        .any(|value| value.borrow().is_null())
}

/// The row under the column names of the event. A delete has columns, too.
fn incoming(event: &GoEvent<'_>, version: Version) -> Incoming {
    let mut incoming = Incoming::default();
    match event.deleted {
        true => incoming.floor = Some(version),
        false => incoming.row = Some(version),
    }
    for (name, value) in &event.row {
        incoming.add_column(name.to_ascii_lowercase(), version, value.clone());
    }
    incoming
}

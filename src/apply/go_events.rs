//! Changes that nodes of the Go version published, in a stream that they and we share.
//!
//! They count like changes of ours: their version is the time at which the broker stored them, and
//! the node that sent them, so that every node makes the same of them and a later write wins. All
//! that the stream still holds is read, since Go's own position says less than it seems to: there a
//! message of one's own moves it past those of others. Go cannot read what we publish; a node that
//! still runs it is named.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::apply::{Arrived, Incoming, Place};
use crate::capture::Frames;
use crate::database::schema::Column;
use crate::database::table::Table;
use crate::database::{Database, Result};
use crate::model::frame::ROWID;
use crate::model::go_event::GoEvent;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{Version, hlc_within};

/// A Go node that published so long ago may be replaced by now.
const RUNS_STILL: Duration = Duration::from_secs(600);

/// Go nodes that are named: a peer may invent any number.
const MAX_NAMED: usize = 16;

/// What was seen of Go nodes since this process started.
#[derive(Debug, Default)]
pub(crate) struct GoNodes {
    events: u64,
    /// Nodes that published meanwhile, and our uptime when they did so last.
    publishing: BTreeMap<u64, Duration>,
}

impl Database {
    /// Joins the row of an event. What cannot be joined is kept in quarantine.
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
            return Ok(0);
        }
        let found = match self.here_or_waiting(&lower)? {
            Some(table) => key_of(&table, event).map(|key| (table, key)),
            None => Err("there is no such table here"),
        };
        let (table, key) = match found {
            Ok(found) => found,
            Err(why) => {
                let reason = format!("of the Go version, of table {:?}: {why}", event.table);
                self.quarantine(stream, message.seq, &reason, data)?;
                return Ok(0);
            }
        };
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let key_bytes = table.key_bytes(key.iter().copied());
        let incoming = incoming(&table, event, version(message, event.from));
        if self.writable(&lower).is_none() {
            let reason = self.why_held(&lower);
            self.hold(&Place::of(&table, &key_bytes), &incoming, reason)?;
            return Ok(0);
        }
        let changed = self.join_with_held(&table, &key, &key_bytes, incoming, frames)?;
        Ok(changed.into())
    }

    fn note_go_event(&mut self, stream: &str, from: u64, time_ms: i64) {
        if self.go_nodes.events == 0 {
            log::warn!(
                "{stream} holds changes of the Go version, such as of its node {from}: they are \
                 taken in. Go cannot read what this version publishes, and ends when it tries: \
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
            log::warn!("node {from} publishes with the Go version, which does not read what we do");
        }
    }

    /// How many changes of Go nodes were read since the start.
    pub(crate) fn go_events(&self) -> u64 {
        self.go_nodes.events
    }

    /// Nodes that still run the Go version, as far as they published lately.
    pub(crate) fn nodes_with_go(&self) -> Vec<u64> {
        let now = self.clock.uptime();
        let nodes = self.go_nodes.publishing.iter();
        let lately = nodes.filter(|(_, at)| now - **at < RUNS_STILL);
        lately.map(|(node, _)| *node).collect()
    }
}

/// Of two messages of one millisecond the later one is newer.
fn version(message: &Arrived<'_>, node: u64) -> Version {
    Version {
        hlc: hlc_within(message.time_ms, message.seq),
        node,
    }
}

/// The column's name in an event.
fn name_in_event(column: &Column) -> &str {
    match &*column.lower {
        ROWID => "rowid",
        lower => lower,
    }
}

fn key_of(
    table: &Table,
    event: &GoEvent<'_>,
) -> std::result::Result<Vec<OwnedValue>, &'static str> {
    let columns = table.schema.columns.iter().take(table.key_len());
    let value = |column: &Column| {
        let name = name_in_event(column);
        let mut row = event.row.iter();
        let found = row.find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone())
    };
    let key: Option<Vec<OwnedValue>> = columns.map(value).collect();
    let key = key.filter(|key| !key.iter().any(|v| v.borrow().is_null()));
    key.ok_or("it lacks the key that the table has here")
}

fn incoming(table: &Table, event: &GoEvent<'_>, version: Version) -> Incoming {
    let mut incoming = Incoming::default();
    if event.deleted {
        incoming.floor = Some(version);
        return incoming;
    }
    incoming.row = Some(version);
    for (name, value) in &event.row {
        let lower = name.to_ascii_lowercase();
        let is_rowid = table.schema.rowid.is_some() && lower == "rowid";
        let column = if is_rowid { ROWID.to_owned() } else { lower };
        incoming.add_column(column, version, value.clone());
    }
    incoming
}

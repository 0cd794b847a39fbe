//! The answer of one node: it opens a view at known positions and walks it in time boxes.
//!
//! The view is a read transaction on a second connection, as for a snapshot: the application writes
//! on meanwhile. Reading takes at most half of the time, in slices of a few milliseconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rusqlite::Connection;

use super::digest::{Digester, Key};
use super::message::{
    MAX_LISTED, RowAnswer, RowKey, TablePart, Total, VerifyAnswer, VerifyRequest, Want,
};
use crate::database::rows::row_values;
use crate::database::schema_hash::schema_hash;
use crate::database::table::Table;
use crate::database::{Database, DatabaseError};
use crate::model::text::hex;
use crate::model::value::Value;
use crate::shared::Shared;
use crate::snapshot::View;

/// Length of a slice of reading; the pause after it is as long as the slice took.
const SLICE: Duration = Duration::from_millis(5);

/// Number of rows read between two readings of the clock.
const STEP: usize = 64;

/// A node that is not ready within this time answers why.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Pause between two attempts to be ready.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Why a node gives no answer at all.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The process ends.
    #[error("stopped")]
    Stopped,
    /// The database failed.
    #[error("database: {0}")]
    Database(#[from] DatabaseError),
}

impl From<rusqlite::Error> for AnswerError {
    fn from(e: rusqlite::Error) -> Self {
        AnswerError::Database(e.into())
    }
}

/// Answers a request that reads; [`Want::Repair`] is for [`super::repair`]. A node that is not
/// ready says so in the answer. Fails if the database does, or when `stop` is closed.
pub fn answer(
    shared: &Shared,
    request: &VerifyRequest,
    stop: &Receiver<()>,
) -> Result<VerifyAnswer, AnswerError> {
    let mut answer = VerifyAnswer {
        run: request.run.clone(),
        step: request.step,
        ..VerifyAnswer::default()
    };
    let Some(key) = key(&request.key) else {
        answer.not_ready = Some("this release does not know the request".into());
        return Ok(answer);
    };
    let ready = match Ready::wait(shared, stop)? {
        Ok(ready) => ready,
        Err(why) => {
            answer.not_ready = Some(why);
            return Ok(answer);
        }
    };
    answer.at.clone_from(&ready.at);
    if let Want::States(rows) = &request.want {
        drop(ready);
        answer.states = states(shared, &key, rows)?;
        return Ok(answer);
    }
    let mut walk = RowScan {
        conn: ready.view.connection(),
        key,
        began: Instant::now(),
        stop,
        listed: 0,
    };
    match &request.want {
        Want::Totals => answer.tables = walk.totals(&ready)?,
        Want::Parts(parts) => {
            for part in parts {
                answer
                    .parts
                    .push(walk.part(ready.table(&part.table), part)?);
            }
        }
        Want::Rows(parts) => {
            for part in parts {
                answer.rows.push(walk.rows(ready.table(&part.table), part)?);
            }
        }
        Want::States(_) | Want::Repair(_) => {}
    }
    answer.more = walk.listed > MAX_LISTED;
    Ok(answer)
}

/// The bytes of a key that is given in hexadecimal; `None` if it is not.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(byte).collect()
}

fn key(text: &str) -> Option<Key> {
    unhex(text)?.try_into().ok().map(Key)
}

/// A view of a node with nothing under way.
struct Ready {
    view: View,
    at: Vec<(u64, String)>,
    tables: BTreeMap<String, Arc<Table>>,
    waits: Vec<String>,
}

impl Ready {
    /// Waits until the node is ready. The inner error says why it is not.
    fn wait(shared: &Shared, stop: &Receiver<()>) -> Result<Result<Ready, String>, AnswerError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let turn = shared.take_turn();
            let mut locked = shared.lock_to_write();
            let (view, mut captured) = locked.database.view()?;
            locked.hand_over(&mut captured);
            let held = locked.began.elapsed();
            let hindrance = match view.is_some() {
                true => hindrance(shared, &locked.database)?,
                false => Some("local changes wait to be captured".to_owned()),
            };
            let streams = shared.status.about().streams;
            let ready = match (view, hindrance) {
                (Some(view), None) => Ok(Ready::of(view, &locked.database, &streams)),
                (_, why) => Err(why.unwrap_or_default()),
            };
            drop(locked);
            if captured.changes > 0 {
                shared.note_written();
                shared.wake_publisher();
            }
            if ready.is_ok() || Instant::now() > deadline {
                return Ok(ready);
            }
            pause(stop, shared.rest(turn, held).max(TRY_AGAIN))?;
        }
    }

    fn of(view: View, db: &Database, streams: &[String]) -> Ready {
        let positions = streams.iter().map(|stream| db.position(stream));
        let tables = db.tables().iter();
        let waits = |(name, table): &(&String, &Arc<Table>)| db.waits_for(name, table.id);
        Ready {
            view,
            at: positions.map(|p| (p.seq, p.id)).collect(),
            waits: tables
                .clone()
                .filter(waits)
                .map(|(name, _)| name.clone())
                .collect(),
            tables: tables
                .map(|(name, table)| (name.clone(), table.clone()))
                .collect(),
        }
    }

    fn table(&self, name: &str) -> Option<&Table> {
        self.tables.get(name).map(|table| &**table)
    }
}

/// Why this node's rows may differ from those of others that have read the same messages.
fn hindrance(shared: &Shared, db: &Database) -> Result<Option<String>, DatabaseError> {
    let streams = shared.status.about().streams;
    let is_unread = streams.iter().any(|stream| db.unread(stream) > 0);
    Ok(if !shared.reads() {
        Some("replicate = false: it reads nothing of the others".into())
    } else if !db.publishes() {
        Some("publish = false: its own rows are not the others'".into())
    } else if !shared.is_joined() {
        Some("it has not met the others yet".into())
    } else if db.has_gap() {
        Some("it missed messages, and waits for a snapshot".into())
    } else if !shared.is_caught_up() {
        Some("it has not read its streams to their end".into())
    } else if db.unsent_up_to(1)? > 0 || db.is_republishing() {
        Some("rows wait to be sent".into())
    } else if is_unread {
        Some("it has not read back what it sent".into())
    } else {
        None
    })
}

fn pause(stop: &Receiver<()>, time: Duration) -> Result<(), AnswerError> {
    match stop.recv_timeout(time) {
        Err(RecvTimeoutError::Timeout) => Ok(()),
        _ => Err(AnswerError::Stopped),
    }
}

/// Reads tables from end to end, with pauses.
struct RowScan<'a> {
    conn: &'a Connection,
    key: Key,
    began: Instant,
    stop: &'a Receiver<()>,
    /// Bytes of the keys and digests listed so far.
    listed: usize,
}

impl RowScan<'_> {
    fn totals(&mut self, ready: &Ready) -> Result<Vec<Total>, AnswerError> {
        let mut totals = Vec::new();
        for (name, table) in &ready.tables {
            let (mut rows, mut sum) = (0, 0_u128);
            let mut digester = Digester::new(&self.key.clone(), table);
            self.each_row(table, &mut |key, values| {
                rows += 1;
                sum = sum.wrapping_add(digester.row(key, values));
            })?;
            totals.push(Total {
                table: name.clone(),
                schema: schema_hash(std::iter::once(&table.schema)),
                rows,
                digest: format!("{sum:x}"),
                waits: ready.waits.contains(name),
            });
        }
        Ok(totals)
    }

    fn part(
        &mut self,
        table: Option<&Table>,
        part: &TablePart,
    ) -> Result<Vec<String>, AnswerError> {
        let mut sums = vec![0_u128; 256];
        let level = part.under.len();
        if let Some(table) = table.filter(|_| level < 2) {
            let mut digester = Digester::new(&self.key.clone(), table);
            self.each_row(table, &mut |key, values| {
                let place = digester.place(key);
                if place.starts_with(&part.under) {
                    let sum = &mut sums[usize::from(place[level])];
                    *sum = sum.wrapping_add(digester.row(key, values));
                }
            })?;
        }
        Ok(sums.iter().map(|sum| format!("{sum:x}")).collect())
    }

    fn rows(
        &mut self,
        table: Option<&Table>,
        part: &TablePart,
    ) -> Result<Vec<(String, String)>, AnswerError> {
        let mut rows = Vec::new();
        let Some(table) = table else { return Ok(rows) };
        let mut digester = Digester::new(&self.key.clone(), table);
        let mut listed = self.listed;
        self.each_row(table, &mut |key, values| {
            if listed <= MAX_LISTED && digester.place(key).starts_with(&part.under) {
                let row = (hex(key), format!("{:x}", digester.row(key, values)));
                listed += row.0.len() + row.1.len();
                if listed <= MAX_LISTED {
                    rows.push(row);
                }
            }
        })?;
        self.listed = listed;
        Ok(rows)
    }

    /// Calls `each` with every row of the table. Rows with NULL in the key have no versions, and
    /// are left out.
    fn each_row(
        &mut self,
        table: &Table,
        each: &mut dyn FnMut(&[u8], &[Value<'_>]),
    ) -> Result<(), AnswerError> {
        let count = table.schema.columns.len();
        let mut statement = self.conn.prepare(&table.scan_rows())?;
        let mut found = statement.query([])?;
        let mut since = 0;
        while let Some(row) = found.next()? {
            let values: Vec<Value<'_>> = row_values(row, count).collect();
            let key = &values[..table.key_len()];
            if !key.iter().any(Value::is_null) {
                each(&table.key_bytes(key.iter().copied()), &values);
            }
            since += 1;
            if since == STEP {
                since = 0;
                let worked = self.began.elapsed();
                if worked >= SLICE {
                    pause(self.stop, worked)?;
                    self.began = Instant::now();
                }
            }
        }
        Ok(())
    }
}

/// The versions of single rows, as they are now.
fn states(shared: &Shared, key: &Key, rows: &[RowKey]) -> Result<Vec<RowAnswer>, AnswerError> {
    let mut states = Vec::new();
    for some in rows.chunks(STEP) {
        let locked = shared.lock();
        for row in some {
            let state = locked.database.verify_state(key, row)?;
            states.push(state.unwrap_or_default());
        }
    }
    Ok(states)
}

//! The answer of one node: its tables, digests of key ranges, rows, and states of single rows.
//!
//! Rows are read in slices of a few milliseconds on a second connection, each slice in a read
//! transaction of its own: neither the application nor a checkpoint waits for longer than that.
//! Between two slices rows may change, so a digest alone proves no difference: see [`super::run`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rusqlite::{Connection, params_from_iter};

use super::digest::{Digester, Key};
use super::message::{
    KeyRange, MAX_LISTED, MAX_WANTED, RowKey, Sum, TableAnswer, VerifyAnswer, VerifyRequest, Want,
};
use crate::capture::Captured;
use crate::database::rows::row_values;
use crate::database::schema::quote;
use crate::database::schema_hash::schema_hash;
use crate::database::table::Table;
use crate::database::{Database, DatabaseError};
use crate::model::cbor;
use crate::model::text::hex;
use crate::model::value::{OwnedValue, Value};
use crate::shared::Shared;

/// Length of a slice of reading; the pause after it is as long as the slice took.
const SLICE: Duration = Duration::from_millis(5);

/// The clock is read after this many rows or bytes.
const STEP_ROWS: usize = 32;
const STEP_BYTES: usize = 64 << 10;

/// Bytes that a row takes at least, with its version.
const SMALLEST_ROW: u32 = 16;

/// A node that is not ready within this time answers why.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// Pause between two attempts to be ready.
const TRY_AGAIN: Duration = Duration::from_millis(50);

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

type Result<T> = std::result::Result<T, AnswerError>;

/// Answers a request that reads; [`Want::Repair`] is for [`super::repair`]. A node that is not
/// ready says so in the answer. Fails if the database does, or when `stop` is closed.
pub fn answer(
    shared: &Shared,
    request: &VerifyRequest,
    stop: &Receiver<()>,
) -> Result<VerifyAnswer> {
    let mut answer = VerifyAnswer {
        run: request.run.clone(),
        step: request.step,
        ..VerifyAnswer::default()
    };
    let Some(key) = key(&request.key) else {
        answer.not_ready = Some("this release does not know the request".into());
        return Ok(answer);
    };
    let inquiry = Inquiry { shared, key, stop };
    answer.not_ready = match &request.want {
        Want::Tables => inquiry.tables(&mut answer)?,
        Want::Sums(ranges) => {
            let mut reader = SliceReader::new(shared, stop);
            for range in ranges.iter().take(MAX_WANTED) {
                answer.sums.push(reader.sum(&inquiry.key, range)?);
            }
            None
        }
        Want::Rows(ranges) => {
            let (mut reader, mut listed) = (SliceReader::new(shared, stop), 0);
            for range in ranges.iter().take(MAX_WANTED) {
                let rows = reader.rows(&inquiry.key, range, &mut listed)?;
                answer.rows.push(rows);
            }
            answer.more = listed > MAX_LISTED;
            None
        }
        Want::States { rows, read } => inquiry.states(rows, read, &mut answer)?,
        Want::Repair(_) => None,
    };
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

/// A request for what the database knows of its rows.
struct Inquiry<'a> {
    shared: &'a Shared,
    key: Key,
    stop: &'a Receiver<()>,
}

impl Inquiry<'_> {
    /// The tables, once this node has read its streams to their end. The inner text says why the
    /// node is not ready.
    fn tables(&self, answer: &mut VerifyAnswer) -> Result<Option<String>> {
        self.wait(|db| {
            if !self.shared.is_caught_up() {
                return Ok(Some("it has not read its streams to their end".into()));
            }
            answer.tables = tables(db)?;
            Ok(None)
        })
    }

    /// The states of rows, once this node has read up to `read`; then waits until the broker has
    /// all that these states stem from.
    fn states(
        &self,
        rows: &[RowKey],
        read: &[u64],
        answer: &mut VerifyAnswer,
    ) -> Result<Option<String>> {
        let shared = self.shared;
        let streams = shared.status.about().streams;
        let behind = |db: &Database| {
            let each = streams.iter().zip(read);
            each.into_iter().any(|(s, read)| db.position(s).seq < *read)
        };
        let not_ready = self.wait(|db| {
            let why = "it has not read the same messages";
            Ok(behind(db).then(|| why.to_owned()))
        })?;
        if not_ready.is_some() {
            return Ok(not_ready);
        }
        let mut local_tx = 0;
        for some in rows.chunks(STEP_ROWS) {
            let states = captured(shared, self.stop, |db| db.verify_states(&self.key, some))?;
            let Some((tx, states)) = states else {
                return Ok(Some("local changes wait to be captured".into()));
            };
            local_tx = tx;
            answer.states.extend(states);
        }
        self.wait(|db| {
            if !db.is_sent_up_to(local_tx)? {
                return Ok(Some("rows wait to be sent".into()));
            }
            let positions = streams.iter().map(|s| db.position(s));
            answer.read = positions.map(|p| p.seq.max(p.acked_seq)).collect();
            Ok(None)
        })
    }

    /// Calls `ask` until it returns `None` and nothing hinders the comparison, for 5 s at most.
    /// Returns the last reason.
    fn wait(
        &self,
        mut ask: impl FnMut(&Database) -> std::result::Result<Option<String>, DatabaseError>,
    ) -> Result<Option<String>> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let locked = self.shared.lock();
            let why = match hindrance(self.shared, &locked.database) {
                Some(why) => Some(why.to_owned()),
                None => ask(&locked.database)?,
            };
            drop(locked);
            if why.is_none() || Instant::now() > deadline {
                return Ok(why);
            }
            pause(self.stop, TRY_AGAIN)?;
        }
    }
}

/// Repeats `run`, which captures what the application wrote and then does its work, until it gets
/// to that; for 5 s at most. The application has its turn in between.
pub(super) fn captured<T>(
    shared: &Shared,
    stop: &Receiver<()>,
    mut run: impl FnMut(&mut Database) -> std::result::Result<(Option<T>, Captured), DatabaseError>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let turn = shared.take_turn();
        let mut locked = shared.lock_to_write();
        let (done, mut captured) = run(&mut locked.database)?;
        let is_news = captured.changes > 0 || !captured.frames.is_empty();
        locked.hand_over(&mut captured);
        let held = locked.began.elapsed();
        drop(locked);
        if is_news {
            shared.note_written();
            shared.wake_publisher();
        }
        let rest = shared.rest(turn, held);
        if done.is_some() || Instant::now() > deadline {
            return Ok(done);
        }
        pause(stop, rest)?;
    }
}

/// Why this node's rows may differ from those of others that have read the same messages.
fn hindrance(shared: &Shared, db: &Database) -> Option<&'static str> {
    if !shared.reads() {
        Some("replicate = false: it reads nothing of the others")
    } else if !db.publishes() {
        Some("publish = false: its own rows are not the others'")
    } else if !shared.is_joined() {
        Some("it has not met the others yet")
    } else if db.has_gap() {
        Some("it missed messages, and waits for a snapshot")
    } else if db.is_republishing() {
        Some("rows wait to be sent")
    } else if db.is_part_way() {
        Some("the rows of a message are applied in part")
    } else {
        None
    }
}

fn tables(db: &Database) -> std::result::Result<Vec<TableAnswer>, DatabaseError> {
    let tables = db.tables().iter();
    let each = tables.map(|(name, table)| {
        Ok(TableAnswer {
            table: name.clone(),
            schema: schema_hash(std::iter::once(&table.schema)),
            waits: db.waits_for(name, table.id)?,
        })
    });
    each.collect()
}

fn pause(stop: &Receiver<()>, time: Duration) -> Result<()> {
    match stop.recv_timeout(time) {
        Err(RecvTimeoutError::Timeout) => Ok(()),
        _ => Err(AnswerError::Stopped),
    }
}

/// Reads key ranges of tables, in slices with pauses.
pub struct SliceReader<'a> {
    shared: &'a Shared,
    stop: &'a Receiver<()>,
    /// Opened by the first slice.
    conn: Option<Connection>,
    tables: HashMap<String, Arc<Table>>,
    /// Time spent reading since the last pause.
    worked: Duration,
    /// Length of a slice, [`SLICE`].
    slice: Duration,
}

impl<'a> SliceReader<'a> {
    /// A reader of this node's tables.
    pub fn new(shared: &'a Shared, stop: &'a Receiver<()>) -> Self {
        let locked = shared.lock();
        let tables = locked.database.tables().iter();
        SliceReader {
            shared,
            stop,
            conn: None,
            tables: tables.map(|(n, t)| (n.clone(), t.clone())).collect(),
            worked: Duration::ZERO,
            slice: SLICE,
        }
    }

    fn sum(&mut self, key: &Key, range: &KeyRange) -> Result<Sum> {
        let (mut rows, mut sum) = (0, 0_u128);
        if let Some(table) = self.tables.get(&range.table).cloned() {
            let mut digester = Digester::new(key, &table);
            let columns = table.schema.columns.len();
            self.scan(&table, range, columns, &mut |values| {
                rows += 1;
                sum = sum.wrapping_add(digester.row(&key_of(&table, values), values));
                true
            })?;
        }
        let digest = format!("{sum:x}");
        Ok(Sum { rows, digest })
    }

    fn rows(
        &mut self,
        key: &Key,
        range: &KeyRange,
        listed: &mut usize,
    ) -> Result<Vec<(String, String)>> {
        let mut rows = Vec::new();
        if let Some(table) = self.tables.get(&range.table).cloned() {
            let mut digester = Digester::new(key, &table);
            let columns = table.schema.columns.len();
            self.scan(&table, range, columns, &mut |values| {
                let key = key_of(&table, values);
                let row = (hex(&key), format!("{:x}", digester.row(&key, values)));
                *listed += row.0.len() + row.1.len() + "[\"\",\"\"],".len();
                let fits = *listed <= MAX_LISTED;
                if fits {
                    rows.push(row);
                }
                fits
            })?;
        }
        Ok(rows)
    }

    /// About how many rows a table has: by the numbers that SQLite gave them, and not more than
    /// would fit in the file. 0: not known.
    pub(super) fn rows_about(&mut self, table: &str) -> Result<u64> {
        let Some(table) = self.tables.get(table).cloned() else {
            return Ok(0);
        };
        let name = quote(table.name());
        let text = format!(
            "SELECT min((SELECT max(rowid) FROM {name}) - (SELECT min(rowid) FROM {name}) + 1,
                 (SELECT page_count * page_size / {SMALLEST_ROW}
                  FROM pragma_page_count(), pragma_page_size()))"
        );
        // A table WITHOUT ROWID has no such numbers.
        let about = self.slice(|conn, _| Ok(conn.query_row(&text, [], |r| r.get::<_, i64>(0))))?;
        Ok(about.map_or(0, |about| about.max(0) as u64))
    }

    /// Divides a range into ranges of `rows` rows each, from its beginning, at most `most` of them.
    /// The last one ends where the range does, if the rest fits.
    pub fn divide(&mut self, range: &KeyRange, rows: u64, most: usize) -> Result<Vec<KeyRange>> {
        let mut parts = Vec::new();
        let mut rest = range.clone();
        while parts.len() < most {
            let up_to = self.key_after(&rest, rows)?;
            let part = KeyRange {
                up_to: up_to.clone().or(range.up_to.clone()),
                ..rest.clone()
            };
            parts.push(part);
            if up_to.is_none() {
                break;
            }
            rest.after = up_to;
        }
        Ok(parts)
    }

    /// The last of the next `rows` keys of a range, if the range has as many.
    fn key_after(&mut self, range: &KeyRange, rows: u64) -> Result<Option<String>> {
        let Some(table) = self.tables.get(&range.table).cloned() else {
            return Ok(None);
        };
        let (mut left, mut last) = (rows.max(1), None);
        self.scan(&table, range, table.key_len(), &mut |key| {
            left -= 1;
            if left == 0 {
                last = Some(hex(&key_of(&table, key)));
            }
            left > 0
        })?;
        Ok(last)
    }

    /// Calls `each` with the first `columns` values of the rows of the range, until it returns
    /// false. Rows with NULL in the key have no versions, and are passed over.
    fn scan(
        &mut self,
        table: &Table,
        range: &KeyRange,
        columns: usize,
        each: &mut dyn FnMut(&[Value<'_>]) -> bool,
    ) -> Result<()> {
        let mut ends = Ends::of(table, range)?;
        loop {
            let last = self.slice(|conn, left| {
                let began = Instant::now();
                let text = table.scan_range(columns, ends.after.is_some(), ends.up_to.is_some());
                let mut statement = conn.prepare_cached(&text)?;
                let mut found = statement.query(ends.parameters())?;
                let (mut rows, mut bytes) = (0, 0);
                while let Some(row) = found.next()? {
                    let values: Vec<Value<'_>> = row_values(row, columns).collect();
                    if !each(&values) {
                        return Ok(None);
                    }
                    rows += 1;
                    bytes += values.iter().map(|v| cbor::value_bytes(*v)).sum::<usize>();
                    if rows >= STEP_ROWS || bytes >= STEP_BYTES {
                        if began.elapsed() >= left {
                            let key = values[..table.key_len()].iter().copied();
                            return Ok(Some(key.map(Value::to_owned).collect()));
                        }
                        (rows, bytes) = (0, 0);
                    }
                }
                Ok(None)
            })?;
            match last {
                Some(key) => ends.after = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// Reads for a while, as told by the second argument of `read`; then rests as long, once a
    /// slice is full. The lock is held only to say that somebody reads.
    fn slice<T>(&mut self, read: impl FnOnce(&Connection, Duration) -> Result<T>) -> Result<T> {
        let locked = self.shared.lock();
        let reads = locked.database.begin_view();
        let began = Instant::now();
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => locked.database.open_reader()?,
        };
        drop(locked);
        let result = read(&conn, self.slice.saturating_sub(self.worked));
        self.conn = Some(conn);
        drop(reads);
        self.worked += began.elapsed();
        if self.worked >= self.slice {
            pause(self.stop, self.worked)?;
            self.worked = Duration::ZERO;
        }
        result
    }
}

impl Drop for SliceReader<'_> {
    fn drop(&mut self) {
        // Closing lets go of locks, which the fence must know of.
        let locked = self.shared.lock();
        let _reads = locked.database.begin_view();
        self.conn = None;
    }
}

/// The canonical key of a row, of which `values` is the beginning.
fn key_of(table: &Table, values: &[Value<'_>]) -> Vec<u8> {
    table.key_bytes(values[..table.key_len()].iter().copied())
}

/// The keys at the ends of a range.
struct Ends {
    after: Option<Vec<OwnedValue>>,
    up_to: Option<Vec<OwnedValue>>,
}

impl Ends {
    /// Fails if a key is not one of the table.
    fn of(table: &Table, range: &KeyRange) -> Result<Ends> {
        let key = |text: &Option<String>| {
            let Some(text) = text else { return Ok(None) };
            let bytes = unhex(text).unwrap_or_default();
            let values = cbor::key_values(&bytes).ok();
            let whole = values.filter(|values| values.len() == table.key_len());
            let why = || DatabaseError::Unusable("a key in a request is not valid".into());
            whole.ok_or_else(why).map(Some)
        };
        let (after, up_to) = (key(&range.after)?, key(&range.up_to)?);
        Ok(Ends { after, up_to })
    }

    fn parameters(&self) -> impl rusqlite::Params + '_ {
        params_from_iter(self.after.iter().chain(&self.up_to).flatten())
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::apply::tests::support::Node;

    #[test]
    fn rows_are_counted_and_read_in_slices_however_large_the_range() {
        let node = Node::new(7, "CREATE TABLE t(id INTEGER PRIMARY KEY)");
        node.run(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
             INSERT INTO t SELECT i FROM n",
        );
        let shared = Shared::new(node.db, 1).0;
        let (_go_on, stop) = bounded(0);
        let whole = KeyRange {
            table: "t".into(),
            after: None,
            up_to: None,
        };
        let key = Key([7; 32]);
        let [at_once, in_slices] = [SLICE, Duration::ZERO].map(|slice| {
            let mut reader = SliceReader::new(&shared, &stop);
            reader.slice = slice;
            let parts = reader.divide(&whole, 300, 10).unwrap();
            let sums = parts.iter().map(|part| reader.sum(&key, part).unwrap());
            (sums.collect::<Vec<_>>(), parts)
        });
        let rows: Vec<u64> = in_slices.0.iter().map(|sum| sum.rows).collect();
        assert_eq!(rows, [300, 300, 300, 100]);
        assert_eq!(in_slices, at_once);
    }
}

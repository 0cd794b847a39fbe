//! Frames: what one message of a stream holds, as bytes.
//!
//! ```text
//! [1, 0, [node, …], [table, …]]           rows; nodes are named by their index from here on
//!   table = [name, [[key column, affinity, collation], …], [column, …], [row, …]]
//!   row   = [node, hlc, 0, key value, …]                        a delete: the tombstone
//!         | [node, hlc, 1, value, …]                            an upsert, a value per column
//!         | [node, hlc, 2, [column, node, hlc, …], value, …]    the same with versions of its own
//!                                                               for some columns
//! [1, 1, id, index, count, bytes]         one part of a rows frame too large for one message
//! ```
//! Key columns come first among the columns. A table that goes by rowid has the key column
//! [`ROWID`]. In a row of kind 2 the column index one past the last stands for the *floor*: the
//! newest tombstone that the row has outlived (see [`crate::model::merge`]); a column with version
//! (0, 0) is not carried. A message is this CBOR as it is, or in a zstd frame.

use crate::model::cbor::{self, CborError, Cursor};
use crate::model::value::Value;
use crate::model::version::Version;

mod faults;
mod pack;

pub use faults::Faults;
pub use pack::{
    MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, MAX_ROW_BYTES, Packed, Parts, id_text, message_id, pack,
    unpack,
};

/// Number of the format. Frames of another number are kept for a later release to read.
pub const FORMAT: u64 = 1;

/// Name of the key column of a table that goes by rowid. SQLite's names hold no NUL.
pub const ROWID: &str = "\0rowid";

/// Nodes, tables and columns that a frame may name: each takes more memory than bytes.
const MAX_NAMES: usize = 1 << 17;

/// A frame that names so many is complete: one more table leaves it below [`MAX_NAMES`].
const MANY_NAMES: usize = 1 << 15;

/// Longest name of a table or column. It is kept with every row that is held.
pub const MAX_NAME_BYTES: usize = 255;

const ROWS: u64 = 0;
const PART: u64 = 1;
const DELETE: u64 = 0;
const UPSERT: u64 = 1;
const UPSERT_WITH_VERSIONS: u64 = 2;

/// Why bytes from the network are not taken for a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("frame format {0} is not known here (this release knows {FORMAT})")]
    UnknownFormat(u64),
    #[error("malformed frame: {0}")]
    Malformed(#[from] CborError),
    #[error("malformed frame: {0}")]
    Zstd(String),
    #[error("frame of {0} bytes is larger than {1}")]
    TooLarge(usize, usize),
}

/// How a key column compares and stores: two nodes whose keys differ in this cannot exchange rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    pub name: String,
    /// SQLite's type affinity, by its name.
    pub affinity: &'static str,
    /// Collating sequence of the key's index, upper case.
    pub collation: String,
}

/// The part of a table's rows that repeats: encoded once, when the schema is read.
#[derive(Debug, Clone)]
pub struct TableHeader {
    /// Tells tables apart within this process.
    pub table: i64,
    bytes: Vec<u8>,
    names: usize,
}

impl TableHeader {
    pub fn new(table: i64, name: &str, key: &[KeyColumn], columns: &[&str]) -> Self {
        let mut bytes = Vec::new();
        cbor::write_array(&mut bytes, 4);
        cbor::write_text(&mut bytes, name);
        cbor::write_array(&mut bytes, key.len());
        for column in key {
            cbor::write_array(&mut bytes, 3);
            cbor::write_text(&mut bytes, &column.name);
            cbor::write_text(&mut bytes, column.affinity);
            cbor::write_text(&mut bytes, &column.collation);
        }
        cbor::write_array(&mut bytes, columns.len());
        columns.iter().for_each(|c| cbor::write_text(&mut bytes, c));
        let names = 1 + key.len() + columns.len();
        TableHeader {
            table,
            bytes,
            names,
        }
    }
}

/// Collects rows and writes them as one frame.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    nodes: Vec<u64>,
    tables: Vec<TableBuilder>,
    bytes: usize,
    /// Of tables and columns.
    names: usize,
}

#[derive(Debug)]
struct TableBuilder {
    header: TableHeader,
    rows: Vec<u8>,
    count: usize,
}

impl FrameBuilder {
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Whether it holds as much as a frame may, however small that is.
    pub fn is_full(&self) -> bool {
        self.nodes.len() + self.names >= MANY_NAMES
    }

    /// Size of the frame so far, a few bytes too high.
    pub fn len(&self) -> usize {
        self.bytes + 16 + 9 * self.nodes.len()
    }

    pub fn delete<'v>(
        &mut self,
        header: &TableHeader,
        version: Version,
        key: impl ExactSizeIterator<Item = Value<'v>>,
    ) {
        self.row(header, version, DELETE, &[], key);
    }

    /// `values`: one per column of the header. `exceptions`: (column index or their count for the
    /// floor, version).
    pub fn upsert<'v>(
        &mut self,
        header: &TableHeader,
        version: Version,
        exceptions: &[(usize, Version)],
        values: impl ExactSizeIterator<Item = Value<'v>>,
    ) {
        let kind = if exceptions.is_empty() {
            UPSERT
        } else {
            UPSERT_WITH_VERSIONS
        };
        self.row(header, version, kind, exceptions, values);
    }

    fn row<'v>(
        &mut self,
        header: &TableHeader,
        version: Version,
        kind: u64,
        exceptions: &[(usize, Version)],
        values: impl ExactSizeIterator<Item = Value<'v>>,
    ) {
        let node = self.node(version.node);
        let exception_nodes: Vec<u64> = exceptions.iter().map(|(_, v)| self.node(v.node)).collect();
        let table = self.table(header);
        let out = &mut self.tables[table].rows;
        let before = out.len();
        cbor::write_array(out, 3 + usize::from(!exceptions.is_empty()) + values.len());
        cbor::write_unsigned(out, node);
        cbor::write_integer(out, version.hlc);
        cbor::write_unsigned(out, kind);
        if !exceptions.is_empty() {
            cbor::write_array(out, 3 * exceptions.len());
            for ((column, version), node) in exceptions.iter().zip(exception_nodes) {
                cbor::write_unsigned(out, *column as u64);
                cbor::write_unsigned(out, node);
                cbor::write_integer(out, version.hlc);
            }
        }
        values.for_each(|v| cbor::write_value(out, v));
        self.bytes += out.len() - before;
        self.tables[table].count += 1;
    }

    fn node(&mut self, node: u64) -> u64 {
        let index = self
            .nodes
            .iter()
            .position(|n| *n == node)
            .unwrap_or_else(|| {
                self.nodes.push(node);
                self.nodes.len() - 1
            });
        index as u64
    }

    fn table(&mut self, header: &TableHeader) -> usize {
        // The last one first: rows of a table come in runs.
        if let Some(i) = self
            .tables
            .iter()
            .rposition(|t| t.header.table == header.table)
        {
            return i;
        }
        self.bytes += header.bytes.len() + 9;
        self.names += header.names;
        self.tables.push(TableBuilder {
            header: header.clone(),
            rows: Vec::new(),
            count: 0,
        });
        self.tables.len() - 1
    }

    /// The frame, uncompressed.
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        cbor::write_array(&mut out, 4);
        cbor::write_unsigned(&mut out, FORMAT);
        cbor::write_unsigned(&mut out, ROWS);
        cbor::write_array(&mut out, self.nodes.len());
        self.nodes
            .iter()
            .for_each(|n| cbor::write_unsigned(&mut out, *n));
        cbor::write_array(&mut out, self.tables.len());
        for table in self.tables {
            out.extend_from_slice(&table.header.bytes);
            cbor::write_array(&mut out, table.count);
            out.extend_from_slice(&table.rows);
        }
        out
    }
}

/// A frame that was checked from end to end; rows are decoded as they are asked for, so that a
/// frame costs no more memory than its bytes.
#[derive(Debug)]
pub enum Frame<'a> {
    Rows {
        nodes: Vec<u64>,
        tables: Vec<TableRows<'a>>,
        /// Rows that say what cannot be: they are passed over.
        faults: Faults,
    },
    Part(Part<'a>),
}

/// A piece of a packed rows frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<'a> {
    /// Message id of the whole.
    pub id: &'a [u8],
    pub index: u32,
    pub count: u32,
    pub bytes: &'a [u8],
}

/// Rows of one table in a frame.
#[derive(Debug)]
pub struct TableRows<'a> {
    pub name: &'a str,
    pub key: Vec<FrameKeyColumn<'a>>,
    /// Key columns first.
    pub columns: Vec<&'a str>,
    count: usize,
    body: Cursor<'a>,
}

/// A key column as a frame names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameKeyColumn<'a> {
    pub name: &'a str,
    pub affinity: &'a str,
    pub collation: &'a str,
}

/// One decoded row; reused from row to row.
#[derive(Debug)]
pub struct Row<'a> {
    pub version: Version,
    pub deleted: bool,
    /// (Column index, or the number of columns for the floor; version).
    pub exceptions: Vec<(usize, Version)>,
    /// The key's values for a delete, else one per column.
    pub values: Vec<Value<'a>>,
}

impl Default for Row<'_> {
    fn default() -> Self {
        Row {
            version: Version::NEVER,
            deleted: false,
            exceptions: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl<'a> Frame<'a> {
    /// Decodes and checks the whole of an uncompressed frame.
    pub fn decode(bytes: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        let mut cursor = Cursor::new(bytes);
        let items = cursor.array()?;
        let format = cursor.unsigned()?;
        if format != FORMAT {
            return Err(FrameError::UnknownFormat(format));
        }
        let frame = match (cursor.unsigned()?, items) {
            (ROWS, 4) => Self::decode_rows(&mut cursor)?,
            (PART, 6) => Frame::Part(Part::decode(&mut cursor)?),
            _ => return Err(CborError::Expected("a kind of frame that is known").into()),
        };
        cursor.end()?;
        Ok(frame)
    }

    fn decode_rows(cursor: &mut Cursor<'a>) -> Result<Self, FrameError> {
        let mut names = MAX_NAMES;
        let nodes = (0..bounded(cursor.array()?, &mut names)?)
            .map(|_| cursor.unsigned())
            .collect::<Result<Vec<_>, _>>()?;
        let count = bounded(cursor.array()?, &mut names)?;
        let mut tables = Vec::new();
        let mut faults = Faults::default();
        for _ in 0..count {
            let table = TableRows::decode_header(cursor, &mut names)?;
            let (mut rows, mut row) = (table.rows(&nodes), Row::default());
            rows.faults = Some(std::mem::take(&mut faults));
            while rows.next(&mut row)? {}
            *cursor = rows.cursor;
            faults = rows.faults.unwrap_or_default();
            faults.name_table(table.name);
            tables.push(table);
        }
        Ok(Frame::Rows {
            nodes,
            tables,
            faults,
        })
    }
}

impl<'a> Part<'a> {
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, FrameError> {
        let id = cursor.bytes()?;
        let index = cursor.below(MAX_FRAME_BYTES, "part index")? as u32;
        let count = cursor.below(MAX_FRAME_BYTES, "part count")? as u32;
        let bytes = cursor.bytes()?;
        if id.len() != 16 || index >= count {
            return Err(CborError::Expected("a part's id and index").into());
        }
        Ok(Part {
            id,
            index,
            count,
            bytes,
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len() + pack::PART_OVERHEAD);
        cbor::write_array(&mut out, 6);
        cbor::write_unsigned(&mut out, FORMAT);
        cbor::write_unsigned(&mut out, PART);
        cbor::write_bytes(&mut out, self.id);
        cbor::write_unsigned(&mut out, self.index.into());
        cbor::write_unsigned(&mut out, self.count.into());
        cbor::write_bytes(&mut out, self.bytes);
        out
    }
}

impl<'a> TableRows<'a> {
    /// `names`: how many more the frame may hold.
    fn decode_header(cursor: &mut Cursor<'a>, names: &mut usize) -> Result<Self, FrameError> {
        if cursor.array()? != 4 {
            return Err(CborError::Expected("a table of four items").into());
        }
        let name = short_text(cursor)?;
        let mut key = Vec::new();
        for _ in 0..bounded(cursor.array()?, names)? {
            if cursor.array()? != 3 {
                return Err(CborError::Expected("a key column of three items").into());
            }
            let name = short_text(cursor)?;
            let (affinity, collation) = (short_text(cursor)?, short_text(cursor)?);
            key.push(FrameKeyColumn {
                name,
                affinity,
                collation,
            });
        }
        let columns: Vec<&str> = (0..bounded(cursor.array()?, names)?)
            .map(|_| short_text(cursor))
            .collect::<Result<_, _>>()?;
        let key_first = key.iter().zip(&columns).all(|(k, c)| k.name == *c);
        if key.is_empty() || key.len() > columns.len() || !key_first {
            return Err(CborError::Expected("the key's columns first").into());
        }
        // NUL is in no name of SQLite's; here it marks what is not a column.
        let marked = columns.iter().filter(|c| c.contains('\0'));
        if name.contains('\0') || marked.clone().any(|c| *c != ROWID || columns[0] != ROWID) {
            return Err(CborError::Expected("names without NUL").into());
        }
        let mut sorted: Vec<String> = columns.iter().map(|c| c.to_ascii_lowercase()).collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(CborError::Expected("columns that differ in name").into());
        }
        let count = cursor.array()?;
        Ok(TableRows {
            name,
            key,
            columns,
            count,
            body: cursor.clone(),
        })
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn rows<'n>(&self, nodes: &'n [u64]) -> Rows<'a, 'n> {
        Rows {
            nodes,
            key: self.key.len(),
            columns: self.columns.len(),
            left: self.count,
            cursor: self.body.clone(),
            faults: None,
        }
    }
}

/// A count of names, of which a frame holds `left` more at most.
fn bounded(count: usize, left: &mut usize) -> Result<usize, CborError> {
    let too_many = CborError::OutOfBounds("the number of names");
    *left = left.checked_sub(count).ok_or(too_many)?;
    Ok(count)
}

fn short_text<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, CborError> {
    let text = cursor.text()?;
    match text.len() <= MAX_NAME_BYTES {
        true => Ok(text),
        false => Err(CborError::OutOfBounds("the length of a name")),
    }
}

/// Decodes the rows of a table one after the other.
#[derive(Debug)]
pub struct Rows<'a, 'n> {
    nodes: &'n [u64],
    key: usize,
    columns: usize,
    left: usize,
    cursor: Cursor<'a>,
    /// Where rows that are passed over are noted; they are once, when the frame is decoded.
    faults: Option<Faults>,
}

impl<'a> Rows<'a, '_> {
    /// Decodes the next row into `row`; false when there is none. One that says what cannot be is
    /// passed over.
    pub fn next(&mut self, row: &mut Row<'a>) -> Result<bool, FrameError> {
        while self.left > 0 {
            self.left -= 1;
            let start = self.cursor.clone();
            let Some(fault) = self.decode(row)? else {
                return Ok(true);
            };
            if let Some(faults) = &mut self.faults {
                faults.add(fault, row, start.up_to(&self.cursor));
            }
        }
        Ok(false)
    }

    /// Decodes a row; with the reason, if it must not be taken.
    fn decode(&mut self, row: &mut Row<'a>) -> Result<Option<&'static str>, FrameError> {
        let items = self.cursor.array()?;
        row.version = self.version()?;
        let mut fault = None;
        if !row.version.is_valid() {
            fault = Some("its version is out of bounds");
        }
        row.exceptions.clear();
        let kind = self.cursor.unsigned()?;
        let values = match kind {
            DELETE => self.key,
            UPSERT | UPSERT_WITH_VERSIONS => self.columns,
            _ => return Err(CborError::Expected("a kind of row that is known").into()),
        };
        row.deleted = kind == DELETE;
        if items != 3 + usize::from(kind == UPSERT_WITH_VERSIONS) + values {
            return Err(CborError::Expected("a value for each column").into());
        }
        if kind == UPSERT_WITH_VERSIONS && !self.exceptions(row)? {
            fault = Some("a column's version is out of bounds");
        }
        row.values.clear();
        for _ in 0..values {
            row.values.push(self.cursor.value()?);
        }
        if row.values[..self.key].iter().any(Value::is_null) {
            fault = Some("NULL in its key");
        }
        Ok(fault)
    }

    fn version(&mut self) -> Result<Version, FrameError> {
        let node = self.cursor.below(self.nodes.len(), "node index")?;
        Ok(Version {
            hlc: self.cursor.integer()?,
            node: self.nodes[node],
        })
    }

    /// A column's own version is below the row's: the row's is the highest among them. False if one
    /// is not.
    fn exceptions(&mut self, row: &mut Row<'a>) -> Result<bool, FrameError> {
        let items = self.cursor.array()?;
        if items / 3 > self.columns + 1 {
            return Err(CborError::OutOfBounds("the number of versions").into());
        }
        let mut are_valid = true;
        if items % 3 != 0 {
            return Err(CborError::Expected("column, node and hlc").into());
        }
        for _ in 0..items / 3 {
            let column = self.cursor.below(self.columns + 1, "column index")?;
            let mut version = self.version()?;
            if version.hlc == 0 {
                version = Version::NEVER;
            }
            are_valid &= version.hlc >= 0 && version <= row.version;
            row.exceptions.push((column, version));
        }
        Ok(are_valid)
    }
}

#[cfg(test)]
mod tests;

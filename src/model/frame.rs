//! Frames: the content of one message of a stream, as bytes.
//!
//! ```text
//! [1, 0, [node, …], [table, …]]           rows; nodes are named by their index from here on
//!   table = [name, [[key column, affinity, collation], …], [column, …], [row, …]]
//!   row   = [node, hlc, 0, key value, …]                        a delete: the tombstone
//!         | [node, hlc, 1, value, …]                            an upsert, a value per column
//!         | [node, hlc, 2, [column, node, hlc, …], value, …]    the same with versions of its own
//!                                                               for some columns
//!         | [node, hlc, kind + 3, birth, …]                     the same of a row with a birth
//! [1, 1, id, index, count, bytes]         one part of a rows frame too large for one message
//! ```
//! Key columns come first among the columns. A table that goes by rowid has the key column
//! [`ROWID`]. In a row of kind 2 the column index one past the last stands for the *floor*: the
//! newest tombstone that the row has outlived (see [`crate::model::merge`]); a column with version
//! (0, 0) is not carried. A birth has its short form ([`crate::model::birth`]). A message is this
//! CBOR as it is, or in a zstd frame.

use crate::model::cbor::{self, CborError, Cursor};

mod builder;
mod faults;
mod pack;
mod rows;

pub use builder::{FrameBuilder, TableHeader};
pub use faults::Faults;
pub use pack::{
    FRAME_BYTES, FRAME_BYTES_ALLOWED, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, MAX_ROW_BYTES, Messages,
    PackedFrame, Parts, id_text, message_id, pack, row_bytes, unpack,
};
use rows::bounded;
pub use rows::{FrameKeyColumn, FrameRows, Row, TableRows};

/// Number of the format. Frames with a different number are kept for a later release to read.
pub const FORMAT: u64 = 1;

/// Name of the key column of a table that goes by rowid. SQLite's names hold no NUL.
pub const ROWID: &str = "\0rowid";

/// Name of the column, with the version (0, 0), that says which key a row had before its table's
/// key changed: a CBOR array of the shape, as text, and the canonical bytes. A release that does
/// not know it passes over the column, like any that is not carried.
pub const WAS: &str = "__harmonylite__was";

/// Limit of the nodes, tables and columns that a frame may name: each takes more memory than bytes.
const MAX_NAMES: usize = 1 << 17;

/// A frame with this many names is complete: one more table leaves it below [`MAX_NAMES`].
const MANY_NAMES: usize = 1 << 15;

/// Limit of the columns of a table: SQLite's, as it is built here, and [`WAS`].
const MAX_COLUMNS: usize = 2001;

/// Longest name of a table or column, in bytes. Every held row is stored with its names.
pub const MAX_NAME_BYTES: usize = 255;

const ROWS: u64 = 0;
const PART: u64 = 1;
const DELETE: u64 = 0;
const UPSERT: u64 = 1;
const UPSERT_WITH_VERSIONS: u64 = 2;
/// Is added to the kind of a row that has a birth.
const WITH_BIRTH: u64 = 3;

/// The reason why bytes from the network are not accepted as a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame has a format number that this release does not know.
    #[error("frame format {0} is not known here (this release knows {FORMAT})")]
    UnknownFormat(u64),
    /// The bytes are not CBOR of ours.
    #[error("malformed frame: {0}")]
    Malformed(#[from] CborError),
    /// The zstd frame cannot be unpacked.
    #[error("malformed frame: {0}")]
    Zstd(String),
    /// Size in bytes, and the limit that it exceeds.
    #[error("frame of {0} bytes is larger than {1}")]
    TooLarge(usize, usize),
}

/// How a key column compares and stores values. Nodes whose keys differ in this cannot exchange
/// rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// Name of the column; [`ROWID`] for a table that goes by rowid.
    pub name: String,
    /// SQLite's name of the type affinity.
    pub affinity: &'static str,
    /// Collating sequence of the key's index, in upper case.
    pub collation: String,
}

/// A frame that was checked from end to end. Its rows are decoded only when they are read, so that
/// a frame takes no more memory than its bytes.
#[derive(Debug)]
pub enum Frame<'a> {
    /// Changes of rows.
    Rows {
        /// Node ids, which rows name by index.
        nodes: Vec<u64>,
        /// The tables, each with its rows.
        tables: Vec<TableRows<'a>>,
        /// Rows that are well-formed but impossible; reading passes over them.
        faults: Faults,
    },
    /// A piece of a frame that is too large for one message.
    Part(FramePart<'a>),
}

/// A piece of a packed rows frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FramePart<'a> {
    /// Message id of the whole frame, 16 bytes.
    pub id: &'a [u8],
    /// Number of this part, from 0.
    pub index: u32,
    /// Number of parts, above `index`.
    pub count: u32,
    /// The piece of the packed frame.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Decodes and checks a whole uncompressed frame. Fails if a format, a length or a count is
    /// wrong; single impossible rows are left out, see [`Faults`].
    pub fn decode(bytes: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        let mut cursor = Cursor::new(bytes);
        let items = cursor.array()?;
        let format = cursor.unsigned()?;
        if format != FORMAT {
            return Err(FrameError::UnknownFormat(format));
        }
        let frame = match (cursor.unsigned()?, items) {
            (ROWS, 4) => Self::decode_rows(&mut cursor)?,
            (PART, 6) => Frame::Part(FramePart::decode(&mut cursor)?),
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
            let mut table = TableRows::decode_header(cursor, &mut names)?;
            let (mut rows, mut row) = (table.rows(&nodes), Row::default());
            rows.faults = Some(std::mem::take(&mut faults));
            while rows.next(&mut row)? {}
            table.has_births = rows.has_births;
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

impl<'a> FramePart<'a> {
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, FrameError> {
        let id = cursor.bytes()?;
        let index = cursor.below(MAX_FRAME_BYTES, "part index")? as u32;
        let count = cursor.below(MAX_FRAME_BYTES, "part count")? as u32;
        let bytes = cursor.bytes()?;
        if id.len() != 16 || index >= count {
            return Err(CborError::Expected("a part's id and index").into());
        }
        Ok(FramePart {
            id,
            index,
            count,
            bytes,
        })
    }

    /// The uncompressed frame that carries this part.
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

#[cfg(test)]
mod tests;

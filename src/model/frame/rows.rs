//! Reads the rows of a frame. Nothing in a frame is trusted.

use super::{
    DELETE, Faults, FrameError, MAX_COLUMNS, MAX_NAME_BYTES, ROWID, UPSERT, UPSERT_WITH_VERSIONS,
    WITH_BIRTH,
};
use crate::model::birth::Birth;
use crate::model::cbor::{CborError, Cursor};
use crate::model::value::Value;
use crate::model::version::Version;

/// The rows of one table in a frame.
#[derive(Debug)]
pub struct TableRows<'a> {
    /// Name of the table.
    pub name: &'a str,
    /// The key columns, in the order of the key.
    pub key: Vec<FrameKeyColumn<'a>>,
    /// Names of all columns, the key's first.
    pub columns: Vec<&'a str>,
    /// Whether one of the rows has a birth.
    pub has_births: bool,
    count: usize,
    body: Cursor<'a>,
}

/// A key column as a frame names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameKeyColumn<'a> {
    /// Name of the column.
    pub name: &'a str,
    /// SQLite's name of the type affinity.
    pub affinity: &'a str,
    /// Collating sequence in upper case.
    pub collation: &'a str,
}

/// One decoded row. The caller reuses it from row to row.
#[derive(Debug)]
pub struct Row<'a> {
    /// Version of the row.
    pub version: Version,
    /// Birth of the row.
    pub birth: Birth,
    /// Whether the row is deleted.
    pub deleted: bool,
    /// Versions of columns: (column index, or the number of columns for the floor; version).
    pub exceptions: Vec<(usize, Version)>,
    /// For a delete one value per key column, otherwise one per column.
    pub values: Vec<Value<'a>>,
}

impl Default for Row<'_> {
    fn default() -> Self {
        Row {
            version: Version::NEVER,
            birth: Birth::None,
            deleted: false,
            exceptions: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl<'a> TableRows<'a> {
    /// Decodes a table up to its rows. `names` is how many more names the frame may hold.
    pub(super) fn decode_header(
        cursor: &mut Cursor<'a>,
        names: &mut usize,
    ) -> Result<Self, FrameError> {
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
        let count = cursor.array()?;
        if count > MAX_COLUMNS {
            return Err(CborError::OutOfBounds("the number of columns").into());
        }
        let columns: Vec<&str> = (0..bounded(count, names)?)
            .map(|_| short_text(cursor))
            .collect::<Result<_, _>>()?;
        let key_first = key.iter().zip(&columns).all(|(k, c)| k.name == *c);
        if key.is_empty() || key.len() > columns.len() || !key_first {
            return Err(CborError::Expected("the key's columns first").into());
        }
        // SQLite's names contain no NUL; a frame uses it to mark names that are no column.
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
            has_births: false,
            body: cursor.clone(),
        })
    }

    /// Number of rows, including impossible ones.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A reader of the rows. `nodes` are the node ids of the frame.
    pub fn rows<'n>(&self, nodes: &'n [u64]) -> FrameRows<'a, 'n> {
        FrameRows {
            nodes,
            key: self.key.len(),
            columns: self.columns.len(),
            left: self.count,
            cursor: self.body.clone(),
            has_births: false,
            faults: None,
        }
    }
}

/// Checks a count of names: the frame may hold at most `left` more, which is lowered.
pub(super) fn bounded(count: usize, left: &mut usize) -> Result<usize, CborError> {
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
pub struct FrameRows<'a, 'n> {
    nodes: &'n [u64],
    key: usize,
    columns: usize,
    left: usize,
    pub(super) cursor: Cursor<'a>,
    /// Whether a row so far had a birth.
    pub(super) has_births: bool,
    /// Collects the impossible rows. That happens once, when the frame is decoded.
    pub(super) faults: Option<Faults>,
}

impl<'a> FrameRows<'a, '_> {
    /// Decodes the next row into `row`; returns false when there is none. Passes over impossible
    /// rows, and fails on malformed ones.
    pub fn next(&mut self, row: &mut Row<'a>) -> Result<bool, FrameError> {
        while self.left > 0 {
            self.left -= 1;
            let start = self.cursor.clone();
            let Some(fault) = self.decode(row)? else {
                if let Some(faults) = &mut self.faults {
                    faults.newest = faults.newest.max(row.version.hlc);
                }
                return Ok(true);
            };
            if let Some(faults) = &mut self.faults {
                faults.add(fault, row, start.up_to(&self.cursor));
            }
        }
        Ok(false)
    }

    /// Decodes a row. Returns the reason if the row must not be applied.
    fn decode(&mut self, row: &mut Row<'a>) -> Result<Option<&'static str>, FrameError> {
        let items = self.cursor.array()?;
        row.version = self.version()?;
        let mut fault = None;
        if !row.version.is_valid() {
            fault = Some("its version is out of bounds");
        }
        row.exceptions.clear();
        let kind = self.cursor.unsigned()?;
        let has_birth = kind >= WITH_BIRTH;
        let kind = if has_birth { kind - WITH_BIRTH } else { kind };
        let values = match kind {
            DELETE => self.key,
            UPSERT | UPSERT_WITH_VERSIONS => self.columns,
            _ => return Err(CborError::Expected("a kind of row that is known").into()),
        };
        row.deleted = kind == DELETE;
        let more = usize::from(kind == UPSERT_WITH_VERSIONS) + usize::from(has_birth);
        if items != 3 + more + values {
            return Err(CborError::Expected("a value for each column").into());
        }
        row.birth = Birth::None;
        if has_birth {
            match Birth::read(self.cursor.value()?, row.version) {
                Some(birth) => (row.birth, self.has_births) = (birth, true),
                None => fault = Some("its birth is not valid"),
            }
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

    /// Decodes the versions of columns. The row's version is the highest among them; returns false
    /// if a column's version is above it.
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

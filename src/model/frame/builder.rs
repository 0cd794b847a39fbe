//! Writes frames: rows by table, in the order in which they came.

use super::{
    DELETE, FORMAT, KeyColumn, MANY_NAMES, ROWS, UPSERT, UPSERT_WITH_VERSIONS, WITH_BIRTH,
};
use crate::model::birth::Birth;
use crate::model::cbor;
use crate::model::value::Value;
use crate::model::version::Version;

/// The part of a table's rows that repeats, encoded once when the schema is read.
#[derive(Debug, Clone)]
pub struct TableHeader {
    /// Number that tells tables apart within this process.
    pub table: i64,
    bytes: Vec<u8>,
    names: usize,
}

impl TableHeader {
    /// Encodes the header of a table whose `columns` begin with those of the `key`.
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
    pub(super) bytes: usize,
    /// Number of the names of tables, key columns and columns.
    names: usize,
    /// Birth of the row that is added next.
    birth: Birth,
}

#[derive(Debug)]
struct TableBuilder {
    header: TableHeader,
    rows: Vec<u8>,
    count: usize,
}

impl FrameBuilder {
    /// Whether no row was added yet.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Whether the frame has as many names as it may, however few bytes it has.
    pub fn is_full(&self) -> bool {
        self.nodes.len() + self.names >= MANY_NAMES
    }

    /// Size of the uncompressed frame so far in bytes, a few too high.
    pub fn len(&self) -> usize {
        self.bytes + 16 + 9 * self.nodes.len()
    }

    /// The row that is added next has this birth.
    pub fn of_life(&mut self, birth: Birth) -> &mut Self {
        self.birth = birth;
        self
    }

    /// Adds the tombstone of a row: its version and key.
    pub fn delete<'v>(
        &mut self,
        header: &TableHeader,
        version: Version,
        key: impl ExactSizeIterator<Item = Value<'v>>,
    ) {
        self.row(header, version, DELETE, &[], key);
    }

    /// Adds a row with one value per column of the header. `exceptions` are (column index, or the
    /// number of columns for the floor; version).
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
        let birth = std::mem::take(&mut self.birth);
        let has_birth = birth != Birth::None;
        let node = self.node(version.node);
        let exception_nodes: Vec<u64> = exceptions.iter().map(|(_, v)| self.node(v.node)).collect();
        let table = self.table(header);
        let out = &mut self.tables[table].rows;
        let before = out.len();
        let more = usize::from(!exceptions.is_empty()) + usize::from(has_birth);
        cbor::write_array(out, 3 + more + values.len());
        cbor::write_unsigned(out, node);
        cbor::write_integer(out, version.hlc);
        cbor::write_unsigned(out, kind + if has_birth { WITH_BIRTH } else { 0 });
        if has_birth {
            cbor::write_value(out, birth.beside(version).borrow());
        }
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
        // Search from the end: rows of a table come in runs.
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

    /// The uncompressed frame.
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

//! Digests of rows and of sets of rows.

use sha2::{Digest, Sha256};

use crate::database::table::Table;
use crate::model::cbor;
use crate::model::value::Value;
use crate::mutation::{self, Mutation};

/// The key of one run, drawn by the node that began it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

/// Digests the rows of one table.
pub struct Digester<'t> {
    start: Sha256,
    table: &'t Table,
    /// Indexes of the columns, sorted by lower-case name: nodes may have them in a different order.
    order: Vec<usize>,
    buffer: Vec<u8>,
}

impl<'t> Digester<'t> {
    /// A digester for `table` in the run with this key.
    pub fn new(key: &Key, table: &'t Table) -> Self {
        let mut start = Sha256::new();
        start.update(key.0);
        start.update(table.name().to_ascii_lowercase());
        start.update([0]);
        let columns = &table.schema.columns;
        let mut order: Vec<usize> = (0..columns.len()).collect();
        order.sort_by(|a, b| columns[*a].lower.cmp(&columns[*b].lower));
        if mutation::is(Mutation::ColumnNotSummed) {
            order.pop();
        }
        Digester {
            start,
            table,
            order,
            buffer: Vec::new(),
        }
    }

    /// Digest of a whole row: name, class and bits of every value.
    pub fn row(&mut self, key_bytes: &[u8], values: &[Value<'_>]) -> u128 {
        self.buffer.clear();
        cbor::write_bytes(&mut self.buffer, key_bytes);
        for column in &self.order {
            cbor::write_text(&mut self.buffer, &self.table.schema.columns[*column].lower);
            cbor::write_value(&mut self.buffer, values[*column]);
        }
        let mut hash = self.start.clone();
        hash.update(&self.buffer);
        let hash = hash.finalize();
        u128::from_be_bytes(std::array::from_fn(|i| hash[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::support::Node;

    #[test]
    fn a_digest_is_of_names_classes_and_bits() {
        let one = Node::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)");
        let other = Node::new(2, "CREATE TABLE T(B, A, ID INTEGER PRIMARY KEY)");
        let (one, other) = (&one.db.tables()["t"], &other.db.tables()["t"]);
        let key = Key([7; 32]);
        let mut digest = Digester::new(&key, one);
        // Columns of the key stand first.
        let values = [Value::Integer(1), Value::Text(b"x"), Value::Null];
        let turned = [Value::Integer(1), Value::Null, Value::Text(b"x")];
        let row = digest.row(b"k", &values);
        assert_eq!(Digester::new(&key, other).row(b"k", &turned), row);
        assert_ne!(digest.row(b"k", &turned), row);
        let blob = [Value::Integer(1), Value::Blob(b"x"), Value::Null];
        assert_ne!(digest.row(b"k", &blob), row);
        assert_ne!(Digester::new(&Key([8; 32]), one).row(b"k", &values), row);
    }
}

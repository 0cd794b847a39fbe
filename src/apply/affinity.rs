//! Keys whose storage class is not the one that their column stores.
//!
//! SQLite stores '1' in an INTEGER column as 1: marks, held rows and displaced rows would then have
//! a different key than the row. No node stores such a key, so only a faulty peer sends one.

use crate::database::schema::Affinity;
use crate::database::table::Table;
use crate::model::value::Value;

/// Whether the table can store the key unchanged (1 and 1.0 are the same key).
pub(super) fn is_storable_key(table: &Table, key: &[Value<'_>]) -> bool {
    let columns = key.iter().zip(&table.schema.columns);
    columns.into_iter().all(|(value, column)| match value {
        Value::Text(text) => match column.affinity {
            Affinity::Integer | Affinity::Numeric | Affinity::Real => !is_number(text),
            Affinity::Text | Affinity::Blob => true,
        },
        Value::Integer(_) | Value::Real(_) => column.affinity != Affinity::Text,
        Value::Blob(_) => true,
        Value::Null => false,
    })
}

/// Whether SQLite converts the text to a number when it stores it in a numeric column
/// (<https://www.sqlite.org/datatype3.html>, 3.1).
fn is_number(text: &[u8]) -> bool {
    let is_space = |b: &u8| matches!(b, b' ' | b'\t'..=b'\r');
    let text = text.split(|b| *b == 0).next().unwrap_or_default(); // sic
    let from = text.iter().position(|b| !is_space(b)).unwrap_or(text.len());
    let to = text
        .iter()
        .rposition(|b| !is_space(b))
        .map_or(from, |i| i + 1);
    let text = without_sign(&text[from..to]);
    let (whole, text) = digits(text);
    let (fraction, text) = match text {
        [b'.', rest @ ..] => digits(rest),
        text => (0, text),
    };
    let (power, text) = match text {
        [b'e' | b'E', rest @ ..] => digits(without_sign(rest)),
        text => (1, text),
    };
    whole + fraction > 0 && power > 0 && text.is_empty()
}

fn without_sign(text: &[u8]) -> &[u8] {
    match text {
        [b'+' | b'-', rest @ ..] => rest,
        text => text,
    }
}

/// The number of leading digits, and the rest of the text.
fn digits(text: &[u8]) -> (usize, &[u8]) {
    let count = text.iter().take_while(|b| b.is_ascii_digit()).count();
    (count, &text[count..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SQLite itself gives the expected answers.
    #[test]
    fn numbers_are_those_that_sqlite_sees() {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE t(n NUMERIC)").unwrap();
        let words = [
            "",
            " ",
            "1",
            " 1 ",
            "\t-1\n",
            "+1",
            "+-1",
            "- 1",
            "1.",
            ".1",
            ".",
            "1.5e3",
            "1e",
            "1e+",
            "1e+2",
            "e1",
            "1x",
            "0x10",
            "2024-01-01",
            "1 2",
            "1_0",
            "inf",
            "nan",
            "1e999",
            "\u{b}7\u{c}",
            "9223372036854775808",
            "1.0.0",
            "1\0",
            "1\0x",
            "1\0\0",
            "1 \0",
            "-",
            "--1",
            "\u{a0}1",
            "-.5E-3 ",
        ];
        for word in words {
            let class: String = conn
                .query_row(
                    "INSERT INTO t VALUES (?1) RETURNING typeof(n)",
                    [word],
                    |r| r.get(0),
                )
                .unwrap();
            assert_eq!(
                is_number(word.as_bytes()),
                class != "text",
                "{word:?} is {class}"
            );
        }
    }
}

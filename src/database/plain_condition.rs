//! The WHERE of a partial index, evaluated on NEW in a trigger.
//!
//! The columns of NEW have the collations of the table's columns, but no affinity, so a comparison
//! may have a different result. A condition is accepted only if that is impossible: it compares
//! columns of one affinity with each other or with literals of its class, by operators and AND, OR,
//! NOT alone.

use crate::database::schema::{Affinity, Column, Schema, quote};
use crate::database::sql_text;

const WORDS: [&str; 11] = [
    "and", "or", "not", "is", "null", "isnull", "notnull", "in", "between", "true", "false",
];

/// The condition on NEW. It is also true if NEW lacks a value for a NOT NULL column, because the
/// row is not stored like that. None if the condition is not plain.
pub(super) fn of_new(condition: &str, schema: &Schema) -> Option<String> {
    let tokens = sql_text::tokens(condition);
    let word = |at: usize| tokens.get(at).map(|t| &condition[t.clone()]);
    let (mut text, mut kept) = (String::new(), 0);
    let (mut named, mut has_text, mut has_number): (Vec<&Column>, _, _) =
        (Vec::new(), false, false);
    for (at, span) in tokens.iter().enumerate() {
        let token = &condition[span.clone()];
        match token.as_bytes()[0] {
            b'\'' => has_text = true,
            b'0'..=b'9' => has_number = true,
            b'(' | b')' | b',' | b'=' | b'<' | b'>' | b'!' => {}
            _ if WORDS.contains(&token.to_ascii_lowercase().as_str()) => {}
            _ => {
                let name = sql_text::unquoted(token);
                let stored = schema
                    .columns
                    .iter()
                    .skip(usize::from(schema.rowid.is_some()));
                let is_it = |c: &&Column| c.name.eq_ignore_ascii_case(&name);
                let column = { stored }
                    .find(is_it)
                    .filter(|_| word(at + 1) != Some("("))?;
                text += &condition[kept..span.start];
                text += &format!("NEW.{}", quote(&column.name));
                kept = span.end;
                named.push(column);
            }
        }
    }
    text += &condition[kept..];
    let affinity = named.first()?.affinity;
    let is_fit = named.iter().all(|c| c.affinity == affinity)
        && match affinity {
            Affinity::Text => !has_number,
            Affinity::Blob => true,
            Affinity::Integer | Affinity::Real | Affinity::Numeric => !has_text,
        };
    let lacking = named.iter().filter(|c| c.not_null);
    let lacking = lacking.map(|c| format!(" OR NEW.{} IS NULL", quote(&c.name)));
    is_fit.then(|| format!("(({text}){})", lacking.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::database::selection;

    #[test]
    fn conditions_without_conversions_are_taken() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, n INT NOT NULL DEFAULT 0, m INTEGER,
                            s TEXT, \"a b\" TEXT, b, g AS (n) STORED)",
        )
        .unwrap();
        let schema = selection::read(&conn, &selection::all, true).unwrap();
        let schema = &schema.replicated[0];
        for (condition, expected) in [
            ("s IS NULL", Some("((NEW.\"s\" IS NULL))")),
            (
                "n=0 and M<=1",
                Some("((NEW.\"n\"=0 and NEW.\"m\"<=1) OR NEW.\"n\" IS NULL)"),
            ),
            (
                "\"a b\" IN ('x', s)",
                Some("((NEW.\"a b\" IN ('x', NEW.\"s\")))"),
            ),
            (
                "b = 1 OR b = 'x'",
                Some("((NEW.\"b\" = 1 OR NEW.\"b\" = 'x'))"),
            ),
            ("n = '0'", None),
            ("s = 0", None),
            ("s = n", None),
            ("b = n", None),
            ("g > 0", None),
            ("lower(s) = 'x'", None),
            ("s LIKE 'x'", None),
            ("m + 1 > 0", None),
            ("s COLLATE NOCASE = 'x'", None),
            ("1", None),
        ] {
            assert_eq!(
                of_new(condition, schema).as_deref(),
                expected,
                "{condition}"
            );
        }
    }
}

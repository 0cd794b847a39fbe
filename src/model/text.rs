//! Texts for people: values and texts from elsewhere, shortened and on one line.

use crate::model::value::Value;

/// At most `limit` bytes of a text, cut between characters; a cut text ends in "…".
pub fn shortened(text: &str, limit: usize) -> std::borrow::Cow<'_, str> {
    if text.len() <= limit {
        return text.into();
    }
    let end = (0..=limit).rev().find(|i| text.is_char_boundary(*i));
    format!("{}…", &text[..end.unwrap_or_default()]).into()
}

/// A value as SQL writes it, on one line and without control characters.
pub fn literal(value: Value<'_>) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Integer(i) => i.to_string(),
        Value::Real(r) => format!("{r:?}"),
        Value::Blob(bytes) => format!("x'{}'", hex(bytes)),
        Value::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => {
                let escaped: String = text.chars().map(escaped).collect();
                format!("'{escaped}'")
            }
            Err(_) => format!("CAST(x'{}' AS TEXT)", hex(bytes)),
        },
    }
}

/// A value as a literal for SQL that is stored, with every character as it is.
pub fn sql_literal(value: Value<'_>) -> String {
    let text = match value {
        Value::Text(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    };
    let Some(text) = text else {
        return literal(value);
    };
    let each = text.chars().map(|c| match c {
        '\'' => "''".into(),
        c if c.is_control() => format!("' || char({}) || '", u32::from(c)),
        c => c.to_string(),
    });
    format!("('{}')", each.collect::<String>())
}

fn escaped(c: char) -> String {
    match c {
        '\'' => "''".into(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.into(),
    }
}

/// The bytes in lower-case hexadecimal, two digits each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A key for a log line: `(1, 'x')`, shortened if it is large.
pub fn key_literal(key: &[Value<'_>]) -> String {
    const EACH: usize = 60;
    let short = |value: &Value<'_>| match value {
        Value::Text(bytes) | Value::Blob(bytes) if bytes.len() > EACH => {
            let start = literal(Value::Blob(&bytes[..EACH / 2]));
            format!("{start}… ({} bytes)", bytes.len())
        }
        value => literal(*value),
    };
    let each: Vec<String> = key.iter().map(short).collect();
    shortened(&format!("({})", each.join(", ")), 4 * EACH).into_owned()
}

/// Limit of the characters that [`foreign`] leaves.
const MAX_FOREIGN: usize = 200;

/// What another program said, for a message: on one line, without what would control a terminal,
/// and cut.
pub fn foreign(text: &str) -> String {
    let mut plain = text
        .chars()
        .map(|c| match c.is_control() || is_reordering(c) {
            true => ' ',
            false => c,
        });
    let mut cut: String = plain.by_ref().take(MAX_FOREIGN).collect();
    if plain.next().is_some() {
        cut.push('…');
    }
    cut
}

/// Whether the character changes the order in which others are shown, or is not shown.
fn is_reordering(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Limit of the characters that [`printable`] leaves.
pub const MAX_PRINTED: usize = 64;

/// `text` as a terminal may show it: without control characters, [`MAX_PRINTED`] characters at
/// most.
pub fn printable(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(MAX_PRINTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(shortened("äöü", 6), "äöü");
        assert_eq!(shortened("äöü", 5), "äö…");
        assert_eq!(shortened("ä", 1), "…");
    }

    #[test]
    fn words_of_others_are_cut_and_on_one_line() {
        assert_eq!(foreign("a\n\x1b[2J\u{202e}b"), "a  [2J b");
        assert_eq!(foreign(&"ä".repeat(200)), "ä".repeat(200));
        assert_eq!(foreign(&"ä".repeat(201)), "ä".repeat(200) + "…");
    }

    #[test]
    fn values_are_words_on_one_line() {
        let long = [b'x'; 1000];
        let key = [
            Value::Integer(-1),
            Value::Real(1.0),
            Value::Text(b"it's\n\x1b[2J"),
            Value::Text(b"\xff"),
            Value::Blob(b"\0a"),
            Value::Null,
        ];
        let expected = "(-1, 1.0, 'it''s\\n\\u{1b}[2J', CAST(x'ff' AS TEXT), x'0061', NULL)";
        assert_eq!(key_literal(&key), expected);
        assert!(key_literal(&[Value::Text(&long)]).len() < 200);
        assert!(key_literal(&[Value::Integer(7); 100]).len() < 260);
    }
}

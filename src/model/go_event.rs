//! A change as the Go version of HarmonyLite publishes it. We read such changes and never write
//! them.
//!
//! A message holds one row as a CBOR map, with or without a zstd frame around it:
//! ```text
//! {"FromNodeId": node, "Payload": {"Id": number, "Type": "insert" | "update" | "delete",
//!                                  "TableName": name, "Row": {column: value, …}, "sh": hash}}
//! ```
//! The value of a column that is declared as a time is tag 32 of {1: unix seconds}; that of a
//! BOOLEAN column is true or false. Nodes of the Go version store these as the text and the integer
//! that [`GoEvent::decode`] returns.

use crate::model::cbor::{CborError, Cursor};
use crate::model::frame::MAX_NAME_BYTES;
use crate::model::value::OwnedValue;

/// CBOR tag of a time.
const TIME: u64 = 32;

/// Limit of the columns of an event: SQLite allows no more.
const MAX_COLUMNS: usize = 32_767;

/// One row that a Go node wrote or deleted.
#[derive(Debug)]
pub struct GoEvent<'a> {
    /// Id of the Go node that published it.
    pub from: u64,
    /// Name of the table.
    pub table: &'a str,
    /// Whether the row was deleted.
    pub deleted: bool,
    /// Column names and values. For a table without a primary key one column is called `rowid`.
    pub row: Vec<(&'a str, OwnedValue)>,
}

impl<'a> GoEvent<'a> {
    /// Whether these unpacked bytes may be such an event: our own messages begin with an array
    /// instead.
    pub fn is_like(raw: &[u8]) -> bool {
        raw.first().is_some_and(|byte| byte >> 5 == 5)
    }

    /// Decodes an event. Fails if the bytes are malformed, or lack the node, the table or the type.
    pub fn decode(raw: &'a [u8]) -> Result<GoEvent<'a>, CborError> {
        let mut cursor = Cursor::new(raw);
        let (mut from, mut payload) = (None, None);
        for _ in 0..cursor.map()? {
            match cursor.text()? {
                "FromNodeId" => from = Some(cursor.unsigned()?),
                "Payload" => payload = Some(Payload::decode(&mut cursor)?),
                _ => value(&mut cursor).map(drop)?,
            }
        }
        cursor.end()?;
        let from = from.ok_or(CborError::Expected("FromNodeId"))?;
        let payload = payload.ok_or(CborError::Expected("Payload"))?;
        Ok(GoEvent {
            from,
            table: payload.table.ok_or(CborError::Expected("TableName"))?,
            deleted: match payload.kind {
                Some("insert" | "update") => false,
                Some("delete") => true,
                _ => return Err(CborError::Expected("insert, update or delete")),
            },
            row: payload.row,
        })
    }
}

#[derive(Default)]
struct Payload<'a> {
    kind: Option<&'a str>,
    table: Option<&'a str>,
    row: Vec<(&'a str, OwnedValue)>,
}

impl<'a> Payload<'a> {
    fn decode(cursor: &mut Cursor<'a>) -> Result<Payload<'a>, CborError> {
        let mut payload = Payload::default();
        for _ in 0..cursor.map()? {
            match cursor.text()? {
                "Type" => payload.kind = Some(cursor.text()?),
                "TableName" => payload.table = Some(name(cursor)?),
                "Row" => payload.row = row(cursor)?,
                _ => value(cursor).map(drop)?,
            }
        }
        Ok(payload)
    }
}

fn row<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<(&'a str, OwnedValue)>, CborError> {
    let columns = cursor.map()?;
    if columns > MAX_COLUMNS {
        return Err(CborError::OutOfBounds("the number of columns"));
    }
    (0..columns)
        .map(|_| Ok((name(cursor)?, value(cursor)?)))
        .collect()
}

fn name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, CborError> {
    let name = cursor.text()?;
    match name.len() <= MAX_NAME_BYTES {
        true => Ok(name),
        false => Err(CborError::OutOfBounds("the length of a name")),
    }
}

fn value(cursor: &mut Cursor<'_>) -> Result<OwnedValue, CborError> {
    if let Some(is_true) = cursor.boolean() {
        return Ok(OwnedValue::Integer(is_true.into()));
    }
    match cursor.tag() {
        Some(TIME) => time(cursor),
        Some(_) => Err(CborError::Expected("a value of the Go version")),
        None => Ok(cursor.value()?.to_owned()),
    }
}

/// The text that Go nodes store for a time. Go nodes with a time zone other than UTC write the same
/// moment in that zone.
fn time(cursor: &mut Cursor<'_>) -> Result<OwnedValue, CborError> {
    match cursor.map()? {
        0 => return Ok(OwnedValue::Null),
        1 if cursor.unsigned()? == 1 => {}
        _ => return Err(CborError::Expected("a time of the Go version")),
    }
    Ok(match cursor.value()?.to_owned() {
        OwnedValue::Integer(seconds) => OwnedValue::Text(moment(seconds).into_bytes()),
        OwnedValue::Real(seconds) => OwnedValue::Text(moment(seconds as i64).into_bytes()),
        other => other,
    })
}

/// The text of a moment. The calendar follows
/// <https://howardhinnant.github.io/date_algorithms.html>.
fn moment(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468; // from 0000-03-01
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * of_era + of_era / 4 - of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + of_era + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let second = second % 60;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}+00:00")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        [
            &b"\xa2\x6aFromNodeId\x1b\xff\x00\x00\x00\x00\x00\x00\x01\x67Payload"[..],
            b"\xa5\x62Id\x18\x2a\x64Type\x66insert\x69TableName\x65Books\x63Row\xaa",
            b"\x62id\x01\x65title\x64Dune\x61n\xf6\x61b\x42\x00\xff",
            b"\x61r\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00",
            b"\x61t\xd8\x20\xa1\x01\x1a\x65\x92\x00\x80",
            b"\x61y\xf5\x61z\xf4\x61-\x38\x63\x61e\xd8\x20\xa0",
            b"\x62sh\x62ab",
        ]
        .concat()
    }

    proptest::proptest! {
        /// With any byte changed, decoding ends, and returns no more columns than the input has
        /// bytes.
        #[test]
        fn bytes_that_mean_ill_are_refused_or_read(
            at in 0..150usize, byte: u8, cut in 0..150usize,
        ) {
            let mut raw = sample();
            let end = raw.len().saturating_sub(cut);
            raw.truncate(end.max(1));
            let at = at % raw.len();
            raw[at] = byte;
            if let Ok(event) = GoEvent::decode(&raw) {
                assert!(event.row.len() <= raw.len());
            }
        }
    }

    #[test]
    fn an_event_is_read_byte_by_byte() {
        let raw = sample();
        assert!(GoEvent::is_like(&raw));
        let event = GoEvent::decode(&raw).unwrap();
        assert_eq!(event.from, 0xff00_0000_0000_0001);
        assert_eq!((event.table, event.deleted), ("Books", false));
        use OwnedValue::*;
        let expected = [
            ("id", Integer(1)),
            ("title", Text(b"Dune".to_vec())),
            ("n", Null),
            ("b", Blob(vec![0, 0xff])),
            ("r", Real(1.5)),
            ("t", Text(b"2024-01-01 00:00:00+00:00".to_vec())),
            ("y", Integer(1)),
            ("z", Integer(0)),
            ("-", Integer(-100)),
            ("e", Null),
        ];
        assert_eq!(event.row, expected);
        for cut in 0..raw.len() {
            GoEvent::decode(&raw[..cut]).unwrap_err();
        }
    }

    #[test]
    fn an_event_that_says_too_little_or_too_much_is_refused() {
        for raw in [
            &b"\xa0"[..],
            b"\xa1\x6aFromNodeId\x01",
            b"\xa2\x6aFromNodeId\x01\x67Payload\xa2\x64Type\x66insert\x63Row\xa0",
            b"\xa2\x6aFromNodeId\x01\x67Payload\xa2\x64Type\x64drop\x69TableName\x61t",
            b"\xbf\xff",
            b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\xa2\x6aFromNodeId\x01\x67Payload\xa1\x63Row\xba\x7f\xff\xff\xff",
            b"\xa2\x6aFromNodeId\x01\x67Payload\xa1\x63Row\xa1\x61t\xd8\x21\xa0",
        ] {
            GoEvent::decode(raw).unwrap_err();
        }
    }

    #[test]
    fn moments() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00+00:00"),
            (-1, "1969-12-31 23:59:59+00:00"),
            (951_782_400, "2000-02-29 00:00:00+00:00"),
            (1_709_251_199, "2024-02-29 23:59:59+00:00"),
            (4_102_444_800, "2100-01-01 00:00:00+00:00"),
        ] {
            assert_eq!(moment(seconds), text);
        }
        moment(i64::MAX / 4);
    }
}

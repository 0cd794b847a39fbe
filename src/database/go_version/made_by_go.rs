//! Objects of the Go version in a database, for tests; the tests with real daemons include this
//! file.

/// The log and triggers that Go makes for a table with these columns (name, type), written anew;
/// `time` is the SQL expression for the time of a change.
pub(crate) fn go_log(table: &str, columns: &[(&str, &str)], time: &str) -> String {
    let log = format!("\"__harmonylite__{table}_change_log\"");
    let declared: Vec<String> = columns
        .iter()
        .map(|(c, t)| format!("\"val_{c}\" {t}"))
        .collect();
    let names: Vec<String> = columns
        .iter()
        .map(|(c, _)| format!("\"val_{c}\""))
        .collect();
    let trigger = |event: &str, row: &str| {
        let values: Vec<String> = columns
            .iter()
            .map(|(c, _)| format!("{row}.\"{c}\""))
            .collect();
        format!(
            "CREATE TRIGGER \"__harmonylite__{table}_change_log_on_{event}\"
             AFTER {event} ON \"{table}\" WHEN
             (SELECT count(*) FROM pragma_function_list WHERE name = 'harmonylite_version') < 1
             BEGIN
               INSERT INTO {log}({0}, type, created_at, state) VALUES ({1}, '{event}', {time}, 0);
               INSERT INTO __harmonylite___change_log_global(change_table_id, table_name)
               VALUES (last_insert_rowid(), '{table}');
             END;",
            names.join(", "),
            values.join(", "),
        )
    };
    // Go's triggers query the list of functions, which an application may forbid.
    format!(
        "PRAGMA trusted_schema = ON;
         CREATE TABLE IF NOT EXISTS __harmonylite___change_log_global(
           id INTEGER PRIMARY KEY AUTOINCREMENT, change_table_id INTEGER, table_name TEXT);
         CREATE TABLE IF NOT EXISTS __harmonylite__schema_version(
           id INTEGER PRIMARY KEY CHECK (id = 1), schema_hash TEXT NOT NULL,
           updated_at INTEGER NOT NULL, harmonylite_version TEXT);
         CREATE TABLE {log}(id INTEGER PRIMARY KEY AUTOINCREMENT, {}, type TEXT, created_at INTEGER,
           state INTEGER);
         CREATE INDEX \"__harmonylite__{table}_change_log_state_index\" ON {log}(state);
         {}{}{}",
        declared.join(", "),
        trigger("insert", "NEW"),
        trigger("update", "NEW"),
        trigger("delete", "OLD"),
    )
}

/// A value as Go publishes it.
pub(crate) enum Cell<'a> {
    Null,
    Integer(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Bool(bool),
    /// Unix seconds.
    Time(i64),
}

/// The message that a Go node publishes of one row, before compression: CBOR, item by item.
pub(crate) fn event(from: u64, kind: &str, table: &str, row: &[(&str, Cell<'_>)]) -> Vec<u8> {
    let mut out = vec![0xa2];
    text(&mut out, "FromNodeId");
    head(&mut out, 0, from);
    text(&mut out, "Payload");
    out.push(0xa5);
    text(&mut out, "Id");
    head(&mut out, 0, 7);
    text(&mut out, "Type");
    text(&mut out, kind);
    text(&mut out, "TableName");
    text(&mut out, table);
    text(&mut out, "Row");
    head(&mut out, 5, row.len() as u64);
    for (column, cell) in row {
        text(&mut out, column);
        match cell {
            Cell::Null => out.push(0xf6),
            Cell::Integer(n) if *n < 0 => head(&mut out, 1, !n.cast_unsigned()),
            Cell::Integer(n) => head(&mut out, 0, n.cast_unsigned()),
            Cell::Text(t) => text(&mut out, t),
            Cell::Bytes(b) => {
                head(&mut out, 2, b.len() as u64);
                out.extend_from_slice(b);
            }
            Cell::Bool(is_true) => out.push(0xf4 + u8::from(*is_true)),
            Cell::Time(seconds) => {
                out.extend([0xd8, 32, 0xa1, 1]);
                head(&mut out, 0, seconds.cast_unsigned());
            }
        }
    }
    text(&mut out, "sh");
    text(&mut out, "0123456789abcdef");
    out
}

/// Head of a CBOR item: major type and number, in the shortest form.
fn head(out: &mut Vec<u8>, major: u8, number: u64) {
    let major = major << 5;
    let bytes = number.to_be_bytes();
    match number {
        0..24 => out.push(major | bytes[7]),
        24..0x100 => out.extend([major | 24, bytes[7]]),
        0x100..0x1_0000 => out.extend([&[major | 25], &bytes[6..]].concat()),
        0x1_0000..0x1_0000_0000 => out.extend([&[major | 26], &bytes[4..]].concat()),
        _ => out.extend([&[major | 27], &bytes[..]].concat()),
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    head(out, 3, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

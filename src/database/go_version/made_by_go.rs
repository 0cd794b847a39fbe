//! What the Go version makes in a database, for tests; those with real daemons include this file.

/// What Go makes of a table with these columns (name, type), in our own words; `time` is the
/// expression of a change's time.
pub fn go_log(table: &str, columns: &[(&str, &str)], time: &str) -> String {
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
    // Go's triggers ask which functions there are, which an application may forbid.
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

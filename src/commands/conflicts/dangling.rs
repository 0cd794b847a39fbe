//! A row with a dangling reference, as text and as JSON.

use serde_json::{Value as Json, json};

use super::{object, pairs, version_json, written};
use crate::apply::Dangling;

pub(super) fn text(row: &Dangling) -> String {
    let own = match row.version {
        Some(version) => written(Some(version)),
        None => "not replicated, or written just now".to_owned(),
    };
    let why = match row.deleted {
        Some(version) => written(Some(version)).replacen("written", "deleted", 1),
        None => "which is not there".to_owned(),
    };
    let columns = row.parent_columns.join(", ");
    format!(
        "  {}, {own}\n    refers by {} to {}({columns}), {why}\n",
        pairs(&row.key),
        pairs(&row.columns),
        row.parent.escape_debug(),
    )
}

pub(super) fn json(row: &Dangling) -> Json {
    json!({
        "table": row.table,
        "key": object(&row.key),
        "version": version_json(row.version),
        "refers_to": {
            "table": row.parent,
            "columns": row.parent_columns,
            "by": object(&row.columns),
            "deleted": version_json(row.deleted),
        },
    })
}

//! `/status`: how this node and the others are.

use serde_json::json;

use super::{Context, page, unavailable};
use crate::http::Response;
use crate::status;

/// The JSON of [`crate::status::report`], and what the page says beside the nodes.
pub fn status(context: &Context) -> Response {
    let Some(gate) = context.gate() else {
        return unavailable(context.absence());
    };
    match status::now(&gate) {
        Ok(status) => {
            let mut status = json!(status);
            page::add_beside(&mut status, &gate);
            Response::json(200, &status)
        }
        Err(e) => unavailable(&format!("database: {e}")),
    }
}

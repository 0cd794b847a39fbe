//! `/status`: the state of this node and of the others. `/forget` and `/verify`, by the socket
//! alone.

use serde_json::json;

use super::{Context, unavailable};
use crate::http::{Request, Response};
use crate::status;

/// The JSON of [`crate::status::report`].
pub(super) fn status(context: &Context) -> Response {
    let Some(shared) = context.shared() else {
        return context.absent();
    };
    match status::now(&shared) {
        Ok(status) => Response::json(200, &json!(status)),
        Err(e) => unavailable(&format!("database: {e}")),
    }
}

/// Takes a node that is gone off the list. The query has `node`, and `dry_run` to learn only
/// whether that would work.
pub(crate) fn forget(context: &Context, request: &Request) -> Response {
    let Some(shared) = context.shared() else {
        return context.absent();
    };
    let node = request.query("node").and_then(|text| text.parse().ok());
    let Some(node) = node else {
        return Response::json(
            400,
            &json!({ "error": "node must be the number of a node" }),
        );
    };
    match shared
        .status
        .forget(node, request.query("dry_run").is_some())
    {
        Ok(()) => Response::json(200, &json!({ "forgotten": node.to_string() })),
        Err(why) => Response::json(409, &json!({ "error": why })),
    }
}

/// Begins to compare rows; the query has `repair` and `dry_run` as for the command.
pub(crate) fn begin_verify(context: &Context, request: &Request) -> Response {
    let Some(shared) = context.shared() else {
        return context.absent();
    };
    let is_given = |name| request.query(name).is_some();
    match shared
        .status
        .begin_verify(is_given("repair"), is_given("dry_run"))
    {
        Ok(()) => Response::json(200, &json!({})),
        Err(why) => Response::json(409, &json!({ "error": why })),
    }
}

/// The JSON of [`crate::status::verify::report`], of the run under way, else of the last one.
pub(crate) fn verify(context: &Context) -> Response {
    let Some(shared) = context.shared() else {
        return context.absent();
    };
    match shared.status.verify_report() {
        Some(report) => Response::json(200, &json!(report)),
        None => Response::json(404, &json!({ "error": "no rows were compared yet" })),
    }
}

//! `/health`: is anything wrong; `/ready`: does this node have what the others have?

use serde_json::json;

use super::{Context, PATIENCE};
use crate::health::{HEALTHY, report};
use crate::http::Response;

/// 200 if all is well and 503 if not.
pub fn health(context: &Context) -> Response {
    let Some(gate) = context.gate() else {
        return Response::json(503, &json!({ "status": context.absence() }));
    };
    let inside = gate.enter_within(PATIENCE);
    match report(&gate.health, inside.as_ref().map(|i| &i.database)) {
        Ok(report) => {
            let status = if report["status"] == HEALTHY {
                200
            } else {
                503
            };
            Response::json(status, &report)
        }
        Err(e) => Response::text(503, format!("database: {e}\n")),
    }
}

/// 200 once this node has met the others and has read what they published, from then on whatever
/// becomes of the broker: its application can work.
pub fn ready(context: &Context) -> Response {
    let Some(gate) = context.gate() else {
        let why = [context.absence()];
        return Response::json(503, &json!({ "ready": false, "waits_for": why }));
    };
    let mut waits_for = Vec::new();
    if !gate.is_joined() {
        waits_for.push("meeting the other nodes");
    }
    if !gate.has_caught_up() {
        waits_for.push("reading the streams to their end");
    }
    let (is_ready, status) = match waits_for.is_empty() {
        true => (true, 200),
        false => (false, 503),
    };
    Response::json(
        status,
        &json!({ "ready": is_ready, "waits_for": waits_for }),
    )
}

//! `/pause` and `/resume`, by the socket alone: offline on purpose, and online again.

use serde_json::json;

use super::Context;
use crate::http::Response;

/// Pauses this node (`true`), or ends the pause. 409 if that is not possible here.
pub(super) fn pause(context: &Context, pauses: bool) -> Response {
    let Some(offline) = context.offline.get() else {
        return context.absent();
    };
    if pauses && context.config.nats.urls.is_empty() {
        let why = "nats.urls is empty: the nats-server that runs beside this daemon would stay \
                   connected to those of other nodes; stop the daemon in place of a pause";
        return Response::json(409, &json!({ "error": why }));
    }
    match offline.set_paused(pauses) {
        Ok(()) => Response::json(200, &json!({ "paused": pauses })),
        Err(e) => {
            let mark = crate::lock::pause_of_database(&context.config.db_path);
            let why = format!("{}: {e}", mark.display());
            Response::json(409, &json!({ "error": why }))
        }
    }
}

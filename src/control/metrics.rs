//! `/metrics`: the text for Prometheus.

use super::{Context, PATIENCE};
use crate::http::Response;
use crate::metrics::{Exporter, MetricsOptions};
use crate::shared::Shared;

/// Content type, with the version of the format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// 503 while the daemon starts or stops: Prometheus would take zeros for a restart.
pub(super) fn metrics(context: &Context) -> Response {
    let Some(shared) = context.shared() else {
        return Response::text(503, format!("{}\n", context.absence()));
    };
    let text = match exporter(context, &shared) {
        Ok(None) => {
            let busy = "the database is busy: perhaps an application holds its write lock\n";
            return Response::text(503, busy);
        }
        Ok(Some(exporter)) => exporter.text(&shared),
        Err(e) => Err(e),
    };
    match text {
        Ok(text) => Response::new(200, TEXT, text.into_bytes()),
        Err(e) => Response::text(500, format!("metrics: {e}\n")),
    }
}

/// The exporter; none if it does not exist yet, and the id of the node cannot be read now.
fn exporter<'c>(context: &'c Context, shared: &Shared) -> prometheus::Result<Option<&'c Exporter>> {
    if context.exporter.get().is_none() {
        let Some(locked) = shared.lock_within(PATIENCE) else {
            return Ok(None);
        };
        let node = locked.database.node();
        drop(locked);
        let prometheus = &context.config.prometheus;
        let options = MetricsOptions {
            namespace: &prometheus.namespace,
            subsystem: &prometheus.subsystem,
            node,
            store: context.config.snapshot.store.kind(),
        };
        let _ = context.exporter.set(Exporter::new(&options, shared)?);
    }
    Ok(context.exporter.get())
}

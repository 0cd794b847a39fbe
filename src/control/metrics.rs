//! `/metrics`: the text for Prometheus.

use super::Context;
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
    let text = exporter(context, &shared).and_then(|exporter| exporter.text(&shared));
    match text {
        Ok(text) => Response::new(200, TEXT, text.into_bytes()),
        Err(e) => Response::text(500, format!("metrics: {e}\n")),
    }
}

fn exporter<'c>(context: &'c Context, shared: &Shared) -> prometheus::Result<&'c Exporter> {
    if context.exporter.get().is_none() {
        let prometheus = &context.config.prometheus;
        let options = MetricsOptions {
            namespace: &prometheus.namespace,
            subsystem: &prometheus.subsystem,
            node: shared.lock().database.node(),
            store: context.config.snapshot.store.kind(),
        };
        let _ = context.exporter.set(Exporter::new(&options, shared)?);
    }
    let gone = || prometheus::Error::Msg("there are none".into());
    context.exporter.get().ok_or_else(gone)
}

//! `/health`: whether anything is wrong. `/ready`: whether this node has the data of the others.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Context, PATIENCE};
use crate::database::{Database, Result};
use crate::health::{COUNTED, HEALTHY, UNHEALTHY, report};
use crate::http::Response;
use crate::model::timestamp::rfc3339;
use crate::progress;
use crate::shared::Shared;
use crate::status::local::lag;

/// 200 if all is well and 503 if not; the fields of the Go version, then ours.
pub(super) fn health(context: &Context) -> Response {
    let told = match context.shared() {
        Some(shared) => of_shared(&shared),
        None => Ok(json!({
            "status": UNHEALTHY,
            "stage": context.absence(),
            "progress": progress::as_json(),
        })),
    };
    match told {
        Ok(mut told) => {
            told["uptime_seconds"] = context.started.elapsed().as_secs().into();
            told["version"] = env!("CARGO_PKG_VERSION").into();
            let status = if told["status"] == HEALTHY { 200 } else { 503 };
            Response::json(status, &told)
        }
        Err(e) => Response::text(503, format!("database: {e}\n")),
    }
}

fn of_shared(shared: &Shared) -> Result<Value> {
    let locked = shared.lock_within(PATIENCE);
    let database = locked.as_ref().map(|locked| &locked.database);
    let mut told = report(&shared.health, database)?;
    let measures = &shared.measures;
    let is_connected = measures.is_connected();
    let offline = shared.health.offline();
    if !is_connected && offline.is_none() && told["problems"]["connecting"].is_null() {
        told["problems"]["connecting"] = "not connected to NATS".into();
        told["status"] = UNHEALTHY.into();
    }
    told["offline"] = offline.into();
    told["progress"] = progress::as_json();
    told["db_connected"] = database.is_some().into();
    told["nats_connected"] = is_connected.into();
    told["last_published_event_timestamp"] = moment(measures.last_published_ms());
    told["last_error"] = shared.health.last().map_or(Value::Null, |last| {
        let seconds = last.at.elapsed().as_secs();
        json!({ "subject": last.subject, "text": last.why, "seconds_ago": seconds })
    });
    if let Some(database) = database {
        add_database(&mut told, shared, database)?;
    }
    Ok(told)
}

/// Adds the fields that need the open database.
fn add_database(told: &mut Value, shared: &Shared, database: &Database) -> Result<()> {
    let heard_ms: BTreeMap<u64, i64> = database.newest_by_origin().collect();
    let is_at_end = shared.is_caught_up() || !shared.reads();
    let lag_ms = lag(&heard_ms, database.broker_time_ms(), is_at_end);
    let (hash, previous_hash) = database.schema_hashes()?;
    let age_ms = shared.measures.snapshot_age_ms(database.clock().now_ms());
    told["cdc_installed"] = database.is_captured_by_triggers()?.into();
    told["tables_tracked"] = database.tables().len().into();
    told["last_replicated_event_timestamp"] = moment(heard_ms.values().max().copied());
    told["schema"] = json!({
        "hash": hash,
        "previous_hash": previous_hash,
        "paused": told["holds_rows"],
    });
    told["lag_seconds"] = lag_ms
        .values()
        .max()
        .map_or(0.0, |ms| *ms as f64 / 1e3)
        .into();
    told["pending"] = database.unsent_up_to(COUNTED)?.into();
    told["snapshot_age_seconds"] = age_ms.map(|ms| ms / 1000).into();
    let ahead_ms = database.clock_ahead_ms();
    told["clock_ahead_seconds"] = ahead_ms.map(|ms| ms as f64 / 1e3).into();
    Ok(())
}

/// A time in RFC 3339; null if there is none.
fn moment(unix_ms: Option<i64>) -> Value {
    unix_ms.map_or(Value::Null, |ms| rfc3339(ms).into())
}

/// 200 once this node has met the others and has read all that they published: its application can
/// work. From then on it stays 200, even without a broker.
pub(super) fn ready(context: &Context) -> Response {
    let Some(shared) = context.shared() else {
        let why = [context.absence()];
        return Response::json(503, &json!({ "ready": false, "waits_for": why }));
    };
    let mut waits_for = Vec::new();
    if !shared.has_begun() {
        waits_for.push("meeting the other nodes");
    }
    if !shared.has_caught_up() {
        waits_for.push("reading the streams to their end");
    }
    let is_ready = shared.is_ready();
    let status = if is_ready { 200 } else { 503 };
    Response::json(
        status,
        &json!({ "ready": is_ready, "waits_for": waits_for }),
    )
}

//! Metadata of messages from JetStream: status, origin, headers.
#![allow(deprecated)]

use serde_json::Value;

use crate::model::base64;

/// Code and text of a message that consists of a status line only.
pub(super) fn status(message: &nats::Message) -> Option<(u16, String)> {
    let headers = message.headers.as_ref()?;
    let code = headers.get("Status")?;
    let description = headers.get("Description").map_or("", String::as_str);
    Some((
        code.parse().unwrap_or(0),
        format!("{code} {description}").trim_end().to_string(),
    ))
}

/// Whether the consumer named `consumer` delivered the message.
pub(super) fn is_of(consumer: &str, message: &nats::Message) -> bool {
    let origin = message.reply.as_deref().and_then(Origin::parse);
    origin.is_some_and(|o| o.consumer == consumer)
}

/// `Nats-Msg-Id` of a message that a consumer delivered.
pub(super) fn id(message: &nats::Message) -> Option<String> {
    text(message, "Nats-Msg-Id").map(str::to_owned)
}

/// A header of a message that a consumer delivered.
pub(super) fn text<'m>(message: &'m nats::Message, name: &str) -> Option<&'m str> {
    message.headers.as_ref()?.get(name).map(String::as_str)
}

/// A header of a stored message, as the API returns it.
pub(super) fn header(message: &Value, name: &str) -> Option<String> {
    let headers = base64::decode(message["hdrs"].as_str()?)?;
    let headers = String::from_utf8(headers).ok()?;
    let value = headers
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(|value| value.trim().to_string())
}

/// Origin of a delivered message, from its reply subject.
pub(super) struct Origin<'a> {
    pub(super) consumer: &'a str,
    pub(super) sequence: u64,
    pub(super) time_ms: i64,
    /// Messages that the consumer still had to deliver at that time.
    pub(super) pending: u64,
}

impl Origin<'_> {
    /// Parses `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<delivered>.<time
    /// ns>.<pending>`, or the longer form with `<domain>.<account>` before the stream and a token
    /// at the end.
    pub(super) fn parse(reply: &str) -> Option<Origin<'_>> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let stream = if tokens.len() >= 9 { 2 } else { 0 };
        let time_ns: i64 = tokens.get(stream + 5)?.parse().ok()?;
        Some(Origin {
            consumer: tokens.get(stream + 1)?,
            sequence: tokens.get(stream + 3)?.parse().ok()?,
            time_ms: time_ns / 1_000_000,
            pending: tokens
                .get(stream + 6)
                .and_then(|n| n.parse().ok())
                .unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn origins_in_both_forms() {
        for reply in [
            "$JS.ACK.changes-1.Xy12.1.77.5.1700000000123456789.3",
            "$JS.ACK.hub.hash.changes-1.Xy12.1.77.5.1700000000123456789.3.token",
        ] {
            let origin = Origin::parse(reply).unwrap();
            assert_eq!((origin.consumer, origin.sequence), ("Xy12", 77));
            assert_eq!((origin.time_ms, origin.pending), (1_700_000_000_123, 3));
        }
        assert!(Origin::parse("$JS.ACK.short").is_none());
    }

    #[test]
    fn headers_of_a_stored_message() {
        // NATS/1.0, Nats-Msg-Id: abc
        let stored = json!({ "hdrs": "TkFUUy8xLjANCk5hdHMtTXNnLUlkOiBhYmMNCg0K" });
        assert_eq!(header(&stored, "Nats-Msg-Id").as_deref(), Some("abc"));
        assert_eq!(header(&stored, "KV-Operation"), None);
    }
}

//! `/`: a page for a person, which asks `/status` every few seconds while somebody looks at it.
//!
//! The page is one file without anything from elsewhere. The browser is told to run its script and
//! its style alone (by their hashes), to load nothing, and to talk to this node alone: what other
//! nodes call themselves and what errors say is only ever text.

use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::clock::{Clock, SystemClock};
use crate::gate::Gate;
use crate::http::{Body, Response};
use crate::model::base64;
use crate::{logging, progress};

const PAGE: &str = include_str!("page.html");

static POLICY: OnceLock<String> = OnceLock::new();

/// The page itself; it is the same on every node.
pub(super) fn page() -> Response {
    let body = Body::Bytes(PAGE.as_bytes().to_vec());
    Response::new(200, "text/html; charset=utf-8", body)
        .with("Content-Security-Policy", POLICY.get_or_init(policy))
        .with("Referrer-Policy", "no-referrer")
}

fn policy() -> String {
    let (script, style) = (hash("script"), hash("style"));
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'"
    )
}

/// As the browser counts it: of all between the tags.
fn hash(tag: &str) -> String {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let inner = PAGE
        .split_once(&open)
        .and_then(|(_, rest)| rest.split_once(&close));
    let inner = inner.map_or("", |(inner, _)| inner);
    format!("'sha256-{}'", base64::encode(&Sha256::digest(inner)))
}

/// Adds to `/status` what is of this process: its last warnings, long work under way, and the
/// newest snapshot that is known here.
pub(super) fn add_beside(status: &mut Value, gate: &Gate) {
    let warnings = logging::recent().into_iter().map(|recent| {
        json!({
            "time_ms": recent.time_ms,
            "level": recent.level.as_str().to_ascii_lowercase(),
            "text": recent.text,
            "count": recent.count,
        })
    });
    let newest = gate.measures.newest_snapshot().map(|(made_ms, bytes)| {
        let age_ms = (SystemClock.now_ms() - made_ms).max(0);
        json!({ "made_ms": made_ms, "age_seconds": age_ms / 1000, "size": bytes })
    });
    status["warnings"] = warnings.collect();
    status["progress"] = progress::as_json();
    status["newest_snapshot"] = newest.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_asks_nobody_else() {
        assert!(PAGE.len() < 16 << 10, "{} bytes", PAGE.len());
        for foreign in [
            "http:",
            "https:",
            "//cdn",
            "@import",
            "url(",
            "innerHTML =",
            "eval(",
        ] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        for once in ["<script>", "<style>", "</script>", "</style>"] {
            assert_eq!(PAGE.matches(once).count(), 1, "{once}");
        }
        let policy = policy();
        assert!(
            !policy.contains("unsafe") && !policy.contains('*'),
            "{policy}"
        );
        let empty = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert!(!policy.contains(empty), "of the script and the style");
    }
}

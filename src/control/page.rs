//! `/`: a page for people, which asks `/status` every few seconds while it is visible.
//!
//! The page is one file that loads nothing. Its policy lets the browser run only the page's own
//! script and style (by their hashes) and connect only to this node. The page shows names of other
//! nodes and messages of errors as text, never as HTML.

use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::http::Response;
use crate::model::base64;

const PAGE: &str = include_str!("page.html");

static POLICY: OnceLock<String> = OnceLock::new();

/// The page; it is the same on every node.
pub(super) fn page() -> Response {
    Response::new(200, "text/html; charset=utf-8", PAGE.into())
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

/// The hash as a browser computes it: over the text between the tags.
fn hash(tag: &str) -> String {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let inner = PAGE
        .split_once(&open)
        .and_then(|(_, rest)| rest.split_once(&close));
    let inner = inner.map_or("", |(inner, _)| inner);
    format!("'sha256-{}'", base64::encode(&Sha256::digest(inner)))
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

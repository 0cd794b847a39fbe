//! Whose certificates our HTTP clients believe.

use ureq::tls::{Certificate, RootCerts};

/// Those that the system trusts (`SSL_CERT_FILE`, or where its distribution keeps them), as for
/// NATS and S3; where it knows none, as on a small router, the public authorities. `client` is
/// named in the log.
pub(crate) fn roots(client: &str, url: &str) -> RootCerts {
    if !url.starts_with("https:") {
        return RootCerts::WebPki;
    }
    let known = rustls_native_certs::load_native_certs().unwrap_or_else(|e| {
        log::warn!("{client}: the system's certificates: {e}; going by the public ones");
        Vec::new()
    });
    let known = known
        .iter()
        .map(|der| Certificate::from_der(der).to_owned());
    match known.collect::<Vec<_>>() {
        none if none.is_empty() => RootCerts::WebPki,
        known => RootCerts::new_with_certs(&known),
    }
}

//! The certificates that our HTTP clients trust.

use ureq::tls::{Certificate, RootCerts};

/// The root certificates for `url`: those of the system (`SSL_CERT_FILE`, or its distribution's
/// place), as for NATS and S3. If the system has none, as on a small router, those of the public
/// authorities. Log lines begin with `client`.
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

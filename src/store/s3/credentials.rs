//! Credentials for S3: those of the configuration, or else of the environment, or else none.

use s3::creds::Credentials;
use s3::error::S3Error;

use crate::address::secret::Secret;
use crate::config::snapshot::S3Store;

pub(super) fn find(settings: &S3Store) -> Result<Credentials, S3Error> {
    let credentials = match (&settings.access_key, &settings.secret) {
        (None, None) => match (env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY")) {
            (Some(key), Some(secret)) => {
                let token = settings.session_token.as_ref().map(Secret::reveal);
                let token = token.map(String::from).or_else(|| env("AWS_SESSION_TOKEN"));
                Credentials::new(Some(&key), Some(&secret), None, token.as_deref(), None)
            }
            _ => Credentials::anonymous(),
        },
        (key, secret) => Credentials::new(
            Some(key.as_ref().map_or("", Secret::reveal)),
            Some(secret.as_ref().map_or("", Secret::reveal)),
            None,
            settings.session_token.as_ref().map(Secret::reveal),
            None,
        ),
    };
    Ok(credentials?)
}

/// Addition to an error that may be caused by a missing login.
pub(super) fn hint(settings: &S3Store) -> &'static str {
    let configured = settings.access_key.is_some() || settings.secret.is_some();
    if configured || env("AWS_ACCESS_KEY_ID").is_some() {
        return "";
    }
    " (no login: neither access_key and secret nor AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are \
     set)"
}

/// The secrets of a login in the environment.
pub(in crate::store) fn environment_secrets() -> impl Iterator<Item = String> {
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
        .into_iter()
        .filter_map(env)
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

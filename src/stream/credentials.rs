//! Credentials of a client: login, token, NKEY or JWT.
//!
//! The file is read for each connection, so a renewed one takes effect at the next connection.
#![allow(deprecated)]

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use super::StreamError;
use super::client::ClientOptions;
use crate::address::server::Address;
use crate::model::base64;
use crate::model::timestamp;

/// Uses the URL's credentials, or else the configured user, or else the file, or else nothing.
pub(super) fn present(
    options: &ClientOptions,
    address: &Address,
) -> Result<nats::Options, StreamError> {
    let settings = match (&address.user, &address.password, &options.user) {
        (Some(user), Some(password), _) => nats::Options::with_user_pass(user, password),
        (Some(token), None, _) => nats::Options::with_token(token),
        (None, _, Some((user, password))) => nats::Options::with_user_pass(user, password),
        _ => match &options.seed_file {
            Some(file) => from_file(file)?,
            None => nats::Options::new(),
        },
    };
    Ok(settings)
}

/// Reads a seed file. A seed alone is an NKEY. If the file also has a JWT (a `.creds` file), both
/// are presented.
fn from_file(file: &Path) -> Result<nats::Options, StreamError> {
    let text = fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    let jwt = jwt_in(&text);
    let key = seed_in(&text).and_then(|seed| nkeys::KeyPair::from_seed(seed).ok());
    let Some(key) = key else {
        let lacks = match jwt {
            Some(_) => "holds a JWT, but not the nkey seed of its user, which belongs below it",
            None => "holds no nkey seed of a user",
        };
        let text = format!("nats.seed_file: {}: {lacks}", file.display());
        return Err(StreamError::Denied(text));
    };
    let public = key.public_key();
    // A key that has its seed always signs. The server would refuse an empty signature.
    let sign = move |nonce: &[u8]| key.sign(nonce).unwrap_or_default();
    Ok(match jwt.map(str::to_owned) {
        Some(jwt) => nats::Options::with_jwt(move || Ok(jwt.clone()), sign),
        None => nats::Options::with_nkey(&public, sign),
    })
}

/// Finds the seed: a plain one is alone on its line, a decorated one is between lines of dashes.
fn seed_in(text: &str) -> Option<&str> {
    text.lines()
        .map(str::trim)
        .find(|line| line.starts_with("SU"))
}

/// The first line that looks like a JWT: three parts, of which the first is a JSON object.
fn jwt_in(text: &str) -> Option<&str> {
    let is_jwt = |line: &&str| line.starts_with("eyJ") && line.split('.').count() == 3;
    text.lines().map(str::trim).find(is_jwt)
}

/// Likely cause of a refused login, as far as this node can tell: the settings to check, or an
/// expired JWT.
pub(super) fn advice(options: &ClientOptions, address: &Address) -> String {
    let file = options.seed_file.as_deref();
    let file = file.filter(|_| address.user.is_none() && options.user.is_none());
    let expiry = file.and_then(|file| Some((file, expired(&fs::read_to_string(file).ok()?)?)));
    match expiry {
        Some((file, at)) => format!(
            "the JWT in nats.seed_file, {}, expired at {at}: replace the file by a new one",
            file.display()
        ),
        None => "see nats.user_name and user_password, nats.seed_file, or the user in nats.urls"
            .to_owned(),
    }
}

/// When the JWT in `text` expired, if it has expired.
fn expired(text: &str) -> Option<String> {
    let claims = jwt_in(text)?.split('.').nth(1)?;
    let claims = base64::decode(&base64::from_url_signs(claims))?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let expires = claims["exp"].as_u64().filter(|&at| at > 0)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let millis = i64::try_from(expires).ok()?.checked_mul(1000)?;
    (expires <= now).then(|| timestamp::rfc3339(millis))
}

pub(super) fn unreadable(file: &Path, error: &io::Error) -> StreamError {
    StreamError::Denied(format!("read {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn creds(claims: &str) -> String {
        let part = |text: &str| {
            base64::to_url_signs(base64::encode(text.as_bytes()).trim_end_matches('='))
        };
        let jwt = format!("{}.{}.c2ln", part(r#"{"typ":"JWT"}"#), part(claims));
        format!(
            "-----BEGIN NATS USER JWT-----\r\n{jwt}\r\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\nSUAIO3FHUX\n------END USER NKEY SEED------\n"
        )
    }

    #[test]
    fn a_creds_file_has_both() {
        let text = creds("{}");
        assert_eq!(seed_in(&text), Some("SUAIO3FHUX"));
        assert!(jwt_in(&text).is_some_and(|jwt| jwt.ends_with(".c2ln")));
        assert_eq!(jwt_in("SUAIO3FHUX\nUABC"), None);
    }

    #[test]
    fn an_expired_jwt_is_told_from_a_good_one() {
        assert_eq!(
            expired(&creds(r#"{"exp":1700000000}"#)).as_deref(),
            Some("2023-11-14T22:13:20Z")
        );
        for good in ["{}", r#"{"exp":0}"#, r#"{"exp":99999999999}"#, "nonsense"] {
            assert_eq!(expired(&creds(good)), None, "{good}");
        }
    }
}

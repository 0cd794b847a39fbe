//! Addresses of servers, as the configuration and the command line write them.
//!
//! In `nats://user:password@host:port/?min=3`, the credentials are percent-decoded here, because
//! the `nats` crate does not decode them. `Display` and `Debug` omit them, so an address can stand
//! in any error or log line.

use std::fmt;
use std::str::FromStr;

use super::host::{self, HostError};

/// Advice for an address whose login may contain unencoded characters.
pub(crate) const ENCODE: &str =
    "in a login, write @ as %40, / as %2F, ? as %3F, # as %23, : as %3A and % as %25";

/// One server, or for `dns://` a name that stands for several.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// In lower case; `nats` if the text has none.
    pub scheme: String,
    /// User name, or a token if there is no password; decoded.
    pub user: Option<String>,
    /// Password, decoded.
    pub password: Option<String>,
    /// Name or IP address; an IPv6 address without its brackets.
    pub host: String,
    /// Port from 1 to 65535; None if the text has none.
    pub port: Option<u16>,
    query: String,
}

impl Address {
    /// The value of `?name=value` as written; None if it is absent.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// `host:port`, with the brackets that IPv6 requires. `default_port` applies if the address has
    /// no port.
    pub fn host_port(&self, default_port: u16) -> String {
        host::joined(&self.host, self.port.unwrap_or(default_port))
    }

    /// A URL with the given scheme and host, and with the encoded credentials of this address: a
    /// route.
    pub fn to_url(&self, scheme: &str, host_port: &str) -> String {
        let user = match (&self.user, &self.password) {
            (Some(user), Some(password)) => format!("{}:{}@", encode(user), encode(password)),
            (Some(user), None) => format!("{}@", encode(user)),
            _ => String::new(),
        };
        format!("{scheme}://{user}{host_port}")
    }
}

impl FromStr for Address {
    type Err = String;

    /// The error names the problem and quotes nothing: in a malformed login, any part of the text
    /// may belong to the password.
    fn from_str(text: &str) -> Result<Address, String> {
        let bad = |why: &str| match text.contains('@') {
            true => format!("the address is invalid: {why}; {ENCODE}"),
            false => format!("the address is invalid: {why}"),
        };
        let (scheme, rest) = text
            .trim()
            .split_once("://")
            .unwrap_or(("nats", text.trim()));
        let is_word = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if !scheme.chars().all(is_word) {
            return Err(bad("its scheme, before ://, is not a word"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // The last '@' ends the credentials, so an unencoded '@' in a password is accepted.
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let place = place.split('/').next().unwrap_or_default();

        const PORT: &str = "its port must be a number from 1 to 65535";
        let (host, port) = host::split(place).map_err(|e| {
            bad(match e {
                HostError::Unclosed => "it has no closing bracket",
                HostError::BehindBracket => "there is text behind its closing bracket",
                HostError::Colons => PORT,
            })
        })?;
        let port = match port {
            Some(digits) => Some(host::port(digits).ok_or_else(|| bad(PORT))?),
            None => None,
        };
        let word = |c: char| c.is_alphanumeric() || "-_.:%".contains(c);
        if host.is_empty() || !host.chars().all(word) {
            return Err(bad("it has no host name or IP address"));
        }
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, "")))
        {
            None => (None, None),
            Some((user, password)) => {
                let decoded = |part| {
                    decode(part).ok_or_else(|| bad("there is a bad % sequence before its @"))
                };
                let with_password = login.is_some_and(|login| login.contains(':'));
                (
                    Some(decoded(user)?),
                    with_password.then(|| decoded(password)).transpose()?,
                )
            }
        };
        let (scheme, host, query) = (scheme.to_lowercase(), host.to_string(), query.to_string());
        Ok(Address {
            scheme,
            user,
            password,
            host,
            port,
            query,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}://{}", self.scheme, self.host_port(port)),
            None => write!(f, "{}://{}", self.scheme, self.host),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Decodes the `%` sequences of a URL; None if one is malformed.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Encodes as `%` sequences all bytes that could have a meaning in a URL.
pub(crate) fn encode(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes()
        .map(|b| {
            if keep(b) {
                (b as char).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        let full: Address = "nats://me:p%40s%2Fs@h.example:4333/?min=3&interval_ms=5"
            .parse()
            .unwrap();
        assert_eq!(
            (full.user.as_deref(), full.password.as_deref()),
            (Some("me"), Some("p@s/s"))
        );
        assert_eq!((full.host.as_str(), full.port), ("h.example", Some(4333)));
        assert_eq!(
            (full.query("min"), full.query("interval_ms")),
            (Some("3"), Some("5"))
        );
        assert_eq!(full.query("mi"), None);
        assert_eq!(
            full.to_url("nats", "10.0.0.1:1"),
            "nats://me:p%40s%2Fs@10.0.0.1:1"
        );
        let bare: Address = "localhost".parse().unwrap();
        assert_eq!(
            (bare.scheme.as_str(), bare.port, bare.user),
            ("nats", None, None)
        );
        let v6: Address = "tls://[::1]:99".parse().unwrap();
        assert_eq!(
            (v6.host.as_str(), v6.host_port(4222).as_str()),
            ("::1", "[::1]:99")
        );
        let token: Address = "nats://s3cret@h".parse().unwrap();
        assert_eq!(
            (token.user.as_deref(), token.password),
            (Some("s3cret"), None)
        );
    }

    #[test]
    fn no_text_shows_the_user_part() {
        for text in [
            "nats://me:hidden@h:1",
            "nats://me:hidden@h:x",
            "nats://me:hidden%zz@h:1",
            "nats://me:hidden?b@h:1",
            "nats://me:hidden/b@h:x",
            "hello hidden world",
            "me:hidden",
            "me:hidden://h",
        ] {
            let shown = match text.parse::<Address>() {
                Ok(address) => format!("{address} {address:?}"),
                Err(error) => error,
            };
            assert!(!shown.contains("hidden"), "{shown}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_a_host() {
        for text in [
            "",
            "nats://",
            "nats://a b:1",
            "nats://h:99999",
            "nats://h:0",
            "nats://[::1",
            "nats://h:",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}

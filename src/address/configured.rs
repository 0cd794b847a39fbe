//! Addresses as people write them: `HOST:PORT` to listen on, and URLs of NATS servers to connect
//! to.
//!
//! Errors name the allowed forms and never quote the text, since a URL may contain a password.

use std::fmt;
use std::str::FromStr;

use super::host;
use super::secret::Secret;
use super::server::ENCODE;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    /// Name or IP address; an IPv6 address without its brackets.
    pub host: String,
    /// Port from 1 to 65535. None means any free port, written `-1`.
    pub port: Option<u16>,
}

impl FromStr for ListenAddress {
    type Err = String;

    /// Parses `HOST:PORT`. An empty host means all IPv4 interfaces. The error names the allowed
    /// form.
    fn from_str(text: &str) -> Result<ListenAddress, String> {
        let parts = host::split(text).ok().and_then(|(host, port)| match port? {
            "-1" => Some((host, None)),
            port => Some((host, Some(host::port(port)?))),
        });
        match parts {
            Some((host, port)) => Ok(ListenAddress {
                host: if host.is_empty() { "0.0.0.0" } else { host }.into(),
                port,
            }),
            None => Err(
                "HOST:PORT, such as 127.0.0.1:4222 or [::1]:4222, with a port from 1 to \
                      65535 or -1 for any that is free"
                    .into(),
            ),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&host::joined(&self.host, self.port.map_or(-1, i32::from)))
    }
}

/// The URL of a server. `Debug` and `Display` hide user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    url: Secret,
    /// As written, for example `nats`; one of the allowed schemes.
    pub scheme: String,
    /// Name or IP address; an IPv6 address without its brackets.
    pub host: String,
    /// Port from 1 to 65535; None if the URL has none.
    pub port: Option<u16>,
}

impl ServerUrl {
    /// Parses `text`, whose scheme must be one of `schemes`. The error names the allowed form and
    /// quotes nothing.
    pub fn parse(text: &str, schemes: &[&str]) -> Result<ServerUrl, String> {
        let allowed = || {
            let (example, all) = (schemes[0], schemes.join(", "));
            format!("a URL such as {example}://host:4222, its scheme one of {all}")
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(allowed)?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let address = authority
            .rsplit_once('@')
            .map_or(authority, |(_login, address)| address);
        let (host, port) = host::split(address).map_err(|_| allowed())?;
        let port = match port {
            Some(port) => Some(host::port(port).ok_or_else(allowed)?),
            None => None,
        };
        let odd = |c: char| c.is_whitespace() || c.is_control();
        if rest[authority.len()..].contains('@') {
            return Err(format!("{}; {ENCODE}", allowed()));
        }
        if !schemes.contains(&scheme) || host.is_empty() || text.contains(odd) {
            return Err(allowed());
        }
        let (scheme, host) = (scheme.into(), host.into());
        Ok(ServerUrl {
            url: Secret::new(text),
            scheme,
            host,
            port,
        })
    }

    /// The whole URL as written, including its password.
    pub fn reveal(&self) -> &str {
        self.url.reveal()
    }

    /// A value of the query part, such as that of `min` in `dns://host:4222/?min=3`, not decoded.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.reveal().split_once('?')?;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(self.reveal()))
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `url`, well-formed or not, with `***` in place of anything that may be its login.
pub fn redacted(url: &str) -> String {
    let Some((before, address)) = url.rsplit_once('@') else {
        return url.into();
    };
    match before.split_once("://") {
        Some((scheme, _login)) => format!("{scheme}://***@{address}"),
        None => format!("***@{address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        for (text, shown) in [
            ("127.0.0.1:-1", "127.0.0.1:-1"),
            (":3010", "0.0.0.0:3010"),
            ("[::1]:4222", "[::1]:4222"),
            ("localhost:1", "localhost:1"),
        ] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:-2",
            "::1:4222",
            "[::1:1",
        ] {
            assert!(bad.parse::<ListenAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn server_urls() {
        let parse = |text: &str| ServerUrl::parse(text, &["nats", "tls"]);
        let url = parse("tls://ann:se@cret@[::1]:4222/?a=1&b=2").unwrap();
        assert_eq!(
            (url.scheme.as_str(), url.host.as_str(), url.port),
            ("tls", "::1", Some(4222))
        );
        assert_eq!((url.query("b"), url.query("c")), (Some("2"), None));
        assert_eq!(parse("nats://host").unwrap().port, None);
        for bad in [
            "host:4222",
            "ws://host",
            "nats://",
            "nats://h:x",
            "nats://a b",
            "nats://:1",
        ] {
            let allowed = parse(bad).unwrap_err();
            assert_eq!(
                allowed,
                "a URL such as nats://host:4222, its scheme one of nats, tls"
            );
        }
    }

    #[test]
    fn logins_are_hidden() {
        let url = ServerUrl::parse("nats://ann:se/cret@host:4222", &["nats"]);
        assert!(url.is_err());
        let url = ServerUrl::parse("nats://ann:secret@host:4222/", &["nats"]).unwrap();
        assert_eq!(
            format!("{url} {url:?}"),
            "nats://***@host:4222/ nats://***@host:4222/"
        );
        for text in ["nats://ann:12/cret@host:4222", "nats://ann:12?cret@host"] {
            let allowed = ServerUrl::parse(text, &["nats"]).unwrap_err();
            assert!(allowed.contains("/ as %2F") && !allowed.contains("cret"));
        }
        assert_eq!(redacted("ann:se/cr@et@host"), "***@host");
        assert_eq!(redacted("nats://ann:s://e/cret@host"), "nats://***@host");
    }
}

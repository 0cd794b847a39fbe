//! Addresses of servers, as `url` and `endpoint` write them.

use crate::stream::address::Address;
#[cfg(any(feature = "store-sftp", feature = "store-webdav"))]
use crate::stream::address::decode;

/// A server, with what stands behind its name.
pub(super) struct Url {
    pub(super) server: Address,
    /// From the first `/` on, as written, without it at the end: `/root/my%20folder`.
    #[cfg(any(feature = "store-sftp", feature = "store-webdav"))]
    pub(super) path: String,
}

impl Url {
    /// `scheme` goes for a text that has none. The error never quotes a login.
    pub(super) fn parse(text: &str, scheme: &str) -> Result<Url, String> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or((scheme, text));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let server: Address = format!("{scheme}://{authority}?{query}").parse()?;
        if path.contains(|c: char| !c.is_ascii_graphic() || c == '#') {
            return Err(format!(
                "address {server}: write spaces and the like as %20"
            ));
        }
        Ok(Url {
            server,
            #[cfg(any(feature = "store-sftp", feature = "store-webdav"))]
            path: path.trim_end_matches('/').to_string(),
        })
    }

    /// The decoded value of `?name=value`. A `+` is a space, as forms write it.
    #[cfg(feature = "store-webdav")]
    pub(super) fn query(&self, name: &str) -> Result<Option<String>, String> {
        let Some(value) = self.server.query(name) else {
            return Ok(None);
        };
        let value = decode(&value.replace('+', "%20"));
        let value = value.ok_or_else(|| format!("the value of {name} has a bad % sequence"))?;
        Ok(Some(value))
    }

    /// The path without its `%` sequences.
    #[cfg(feature = "store-sftp")]
    pub(super) fn decoded_path(&self) -> Result<String, String> {
        decode(&self.path).ok_or_else(|| format!("address {}: bad % sequence", self.server))
    }
}

/// The folders that lead to `path`, each a name.
pub(super) fn folders(path: &str) -> Result<Vec<&str>, String> {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    let names: Vec<&str> = names.collect();
    if names.contains(&"..") {
        return Err(format!("path {path:?}: .. is not allowed"));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "store-webdav")]
    fn everything_in_one() {
        let text = "https://dav.example:8443/remote.php/dav/?dir=/my%20dir/a&login=me%40home&secret=p@s/s+w%2B";
        let url = Url::parse(text, "http").unwrap();
        assert_eq!(url.server.to_string(), "https://dav.example:8443");
        assert_eq!(url.path, "/remote.php/dav");
        let value = |name| url.query(name).unwrap().unwrap();
        assert_eq!(value("dir"), "/my dir/a");
        assert_eq!(value("login"), "me@home");
        assert_eq!(value("secret"), "p@s/s w+");
        assert_eq!(url.query("sec").unwrap(), None);
    }

    #[test]
    #[cfg(feature = "store-sftp")]
    fn paths_may_hold_what_ends_a_login() {
        let url = Url::parse("sftp://me:a%2Fb@host:22/up/l@st%20one/", "sftp").unwrap();
        assert_eq!(url.server.password.as_deref(), Some("a/b"));
        assert_eq!(url.server.host_port(1), "host:22");
        assert_eq!(url.decoded_path().unwrap(), "/up/l@st one");
        assert_eq!(Url::parse("host", "sftp").unwrap().path, "");
    }

    #[test]
    fn no_way_up() {
        assert_eq!(folders("/a//b/./c/").unwrap(), ["a", "b", "c"]);
        assert!(folders("a/../b").is_err());
    }
}

//! URLs of stores, as `url` and `endpoint` of the configuration contain them.

use super::server::{Address, ENCODE, decode};

/// A server with a path and a query.
pub(crate) struct Url {
    pub(crate) server: Address,
    /// From the first `/` on, as written, without a `/` at the end: `/root/my%20folder`.
    pub(crate) path: String,
    /// The text after the `?`, as written.
    query: String,
}

impl Url {
    /// Parses `text`; `scheme` applies if it has none. The error quotes nothing that may belong to
    /// a login.
    ///
    /// An `@` after the host is refused. The `/` before it is probably part of a password, and the
    /// rest of the password would be taken for the path, which is printed.
    pub(crate) fn parse(text: &str, scheme: &str) -> Result<Url, String> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or((scheme, text));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if path.contains('@') {
            return Err(format!(
                "the address has an @ behind a /: {ENCODE}; in a path, write @ as %40"
            ));
        }
        // The whole query is passed on, because an `@` in it indicates a login.
        let server: Address = format!("{scheme}://{authority}?{query}").parse()?;
        if path.contains(|c: char| !c.is_ascii_graphic() || c == '#') {
            return Err(format!(
                "address {server}: write spaces and the like as %20"
            ));
        }
        Ok(Url {
            server,
            path: path.trim_end_matches('/').to_string(),
            query: query.to_string(),
        })
    }

    /// The names in the query, as written.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name))
    }

    /// The decoded value of `?name=value`. A `+` is a space, as in HTML forms.
    pub(crate) fn query(&self, name: &str) -> Result<Option<String>, String> {
        let Some(value) = self.server.query(name) else {
            return Ok(None);
        };
        let value = decode(&value.replace('+', "%20"));
        let value = value.ok_or_else(|| format!("the value of {name} has a bad % sequence"))?;
        Ok(Some(value))
    }

    /// The path with its `%` sequences decoded.
    pub(crate) fn decoded_path(&self) -> Result<String, String> {
        decode(&self.path).ok_or_else(|| format!("address {}: bad % sequence", self.server))
    }
}

/// The names of the folders that lead to `path`. A `..` is an error.
pub(crate) fn folders(path: &str) -> Result<Vec<&str>, String> {
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
    fn everything_in_one() {
        let text = "https://dav.example:8443/remote.php/dav/\
                    ?dir=/my%20dir/a&login=me%40home&secret=p@s/s+w%2B";
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
    fn paths_may_hold_what_ends_a_login() {
        let url = Url::parse("sftp://me:a%2Fb@host:22/up/l%40st%20one/", "sftp").unwrap();
        assert_eq!(url.server.password.as_deref(), Some("a/b"));
        assert_eq!(url.server.host_port(1), "host:22");
        assert_eq!(url.decoded_path().unwrap(), "/up/l@st one");
        assert_eq!(Url::parse("host", "sftp").unwrap().path, "");
    }

    #[test]
    fn a_password_that_is_not_encoded_is_not_shown() {
        for text in [
            "sftp://backup:hidden/Ab3@127.0.0.1:47350/snap",
            "sftp://backup:12/hidden@127.0.0.1/snap",
            "sftp://backup:hidden?Ab3@127.0.0.1:47350/snap",
            "sftp://backup:12?hidden@127.0.0.1/snap",
            "https://me:p@hidden/b@host/root?dir=/a",
            "https://me:hidden/b?c@host/",
            "https://me:hidden#b@host:x/",
            "AK:hidden/x@host",
            "AK:hidden",
            "hello hidden world",
            "https://host/hidden path",
        ] {
            let shown = match Url::parse(text, "https") {
                Ok(url) => format!("{} {}", url.server, url.path),
                Err(cause) => cause,
            };
            assert!(!shown.contains("hidden"), "{shown}");
        }
        let cause = Url::parse("AK:p/x@host", "https").err().unwrap();
        assert!(cause.contains("/ as %2F"), "{cause}");
        // In these texts, an @ at the right place ends the login.
        for text in ["https://me:p@q#r@host/a", "https://me:p%3F%2F@host/a"] {
            assert_eq!(Url::parse(text, "").unwrap().server.host, "host");
        }
    }

    #[test]
    fn no_way_up() {
        assert_eq!(folders("/a//b/./c/").unwrap(), ["a", "b", "c"]);
        assert!(folders("a/../b").is_err());
    }
}

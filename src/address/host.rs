//! `HOST`, `HOST:PORT` or `[IPV6]:PORT`, the part that every address has.

/// Why a text is not a host with an optional port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostError {
    /// It has an opening bracket and no closing one.
    Unclosed,
    /// The text after the closing bracket is not `:PORT`.
    BehindBracket,
    /// It has more than one colon, and no brackets.
    Colons,
}

/// Splits a text into host (an IPv6 address without its brackets) and port. Both are as written;
/// neither is checked.
pub(crate) fn split(text: &str) -> Result<(&str, Option<&str>), HostError> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(v6) => v6.split_once(']').ok_or(HostError::Unclosed)?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    match rest.strip_prefix(':') {
        Some(port) if port.contains(':') => Err(HostError::Colons),
        Some(port) => Ok((host, Some(port))),
        None if rest.is_empty() => Ok((host, None)),
        None => Err(HostError::BehindBracket),
    }
}

/// Parses a port to connect to, from 1 to 65535.
pub(crate) fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|&port| port != 0)
}

/// Joins to `HOST:PORT`, with the brackets that IPv6 requires.
pub(crate) fn joined(host: &str, port: impl std::fmt::Display) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_ports() {
        assert_eq!(split("h"), Ok(("h", None)));
        assert_eq!(split(":1"), Ok(("", Some("1"))));
        assert_eq!(split("h:"), Ok(("h", Some(""))));
        assert_eq!(split("[::1]"), Ok(("::1", None)));
        assert_eq!(split("[::1]:4222"), Ok(("::1", Some("4222"))));
        assert_eq!(split("[::1"), Err(HostError::Unclosed));
        assert_eq!(split("[::1]4222"), Err(HostError::BehindBracket));
        assert_eq!(split("::1:4222"), Err(HostError::Colons));
        assert_eq!((port("0"), port("65536"), port("1")), (None, None, Some(1)));
        assert_eq!(joined("::1", 4222), "[::1]:4222");
    }
}

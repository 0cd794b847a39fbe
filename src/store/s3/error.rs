//! The library's errors, in a person's words.

use s3::error::S3Error;

/// What S3 says was wrong, or what became of the connection.
pub(super) fn explain(error: &S3Error) -> String {
    match error {
        S3Error::HttpFailWithBody(status, body) => {
            match (tag(body, "Code"), tag(body, "Message")) {
                (Some(code), Some(message)) if !message.is_empty() => {
                    format!("{code}: {}", plain(message))
                }
                (Some(code), _) => format!("{code} (HTTP {status})"),
                // The answer to a HEAD has no body.
                _ if *status == 403 => "HTTP 403: no access, or a wrong login".into(),
                _ => format!("HTTP {status}"),
            }
        }
        S3Error::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            "the server is silent".into()
        }
        S3Error::Io(error) => error.to_string(),
        other => {
            let text = other.to_string();
            let text = text.trim_start_matches("attohttpc: ");
            if text.contains("location header") {
                return "the server says that the bucket is elsewhere: set its region".into();
            }
            if text.contains("(os error 11)") {
                return "the server is silent".into(); // a read that timed out
            }
            text.trim_start_matches("Io Error: ").to_string()
        }
    }
}

pub(super) fn status(error: &S3Error) -> Option<u16> {
    match error {
        S3Error::HttpFailWithBody(status, _) => Some(*status),
        _ => None,
    }
}

/// S3's own name for the error.
pub(super) fn code(error: &S3Error) -> Option<&str> {
    match error {
        S3Error::HttpFailWithBody(_, body) => tag(body, "Code"),
        _ => None,
    }
}

/// The library reports failures by itself; this is for what it lets through.
pub(super) fn check_status(status: u16) -> Result<(), S3Error> {
    match status {
        200..=299 => Ok(()),
        _ => Err(S3Error::HttpFailWithBody(status, String::new())),
    }
}

/// Without the entities of XML.
fn plain(text: &str) -> String {
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&apos;", "'"),
        ("&#39;", "'"),
        ("&amp;", "&"), // last, or what it makes would be read again
    ];
    let replace = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    entities.into_iter().fold(text.to_string(), replace)
}

/// The text of the first element of this name.
pub(super) fn tag<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_server() {
        let body = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>no &amp; no\
                    </Message><AWSAccessKeyId>AK</AWSAccessKeyId></Error>";
        let error = S3Error::HttpFailWithBody(403, body.into());
        assert_eq!(explain(&error), "AccessDenied: no & no");
        assert_eq!(
            plain("&quot;a&quot; must be &gt;= 3, &amp;lt;"),
            "\"a\" must be >= 3, &lt;"
        );
        assert_eq!(
            (status(&error), code(&error)),
            (Some(403), Some("AccessDenied"))
        );
        let error = S3Error::HttpFailWithBody(502, "<html>".into());
        assert_eq!(explain(&error), "HTTP 502");
        let error = std::io::Error::other("it hung up");
        assert_eq!(explain(&error.into()), "it hung up");
    }
}

//! The library's errors, in words for people.

use s3::error::S3Error;

use crate::model::text::foreign;

/// The server's error, or the failure of the connection, with advice.
pub(super) fn explain(error: &S3Error) -> String {
    format!("{}{}", said(error), hint(error))
}

fn said(error: &S3Error) -> String {
    match error {
        S3Error::HttpFailWithBody(status, body) => {
            match (tag(body, "Code"), tag(body, "Message")) {
                (Some(code), Some(message)) if !message.is_empty() => {
                    foreign(&format!("{code}: {}", plain(message)))
                }
                (Some(code), _) => format!("{} (HTTP {status})", foreign(code)),
                // The answer to a HEAD request has no body.
                _ if *status == 403 => "HTTP 403: no access, or a wrong login".into(),
                _ => format!("HTTP {status}"),
            }
        }
        S3Error::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            "the server does not answer".into()
        }
        S3Error::Io(error) => error.to_string(),
        other => {
            let text = foreign(&other.to_string());
            let text = text.trim_start_matches("attohttpc: ");
            if text.contains("location header") {
                return "the server says that the bucket is elsewhere: set its region".into();
            }
            if text.contains("(os error 11)") {
                return "the server does not answer".into(); // a read that timed out
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

/// S3's name for the error.
pub(super) fn code(error: &S3Error) -> Option<&str> {
    match error {
        S3Error::HttpFailWithBody(_, body) => tag(body, "Code"),
        _ => None,
    }
}

/// Whether the server refuses requests that have the bucket's name in the path. `CODES` are the
/// error names of Alibaba, Tencent and Volcengine; other servers say it in words.
pub(super) fn wants_bucket_in_host(error: &S3Error) -> bool {
    const CODES: [&str; 3] = [
        "SecondLevelDomainForbidden",
        "PathStyleDomainForbidden",
        "InvalidPathAccess",
    ];
    let S3Error::HttpFailWithBody(400..500, body) = error else {
        return false;
    };
    let body = body.to_lowercase();
    let says = |words: &&str| body.contains(&words.to_lowercase());
    let words = ["virtual host", "virtual-host", "path style", "path-style"];
    CODES.iter().chain(&words).any(says)
}

/// Advice about an answer; empty if its text is sufficient.
fn hint(error: &S3Error) -> &'static str {
    match error {
        error if wants_bucket_in_host(error) => {
            "; set snapshot.s3.path_style = false: the server wants the bucket's name in the host's"
        }
        S3Error::HttpFailWithBody(413, _) => {
            "; a proxy before the server, or the server, limits the size of a request: raise that \
             (nginx: client_max_body_size) to snapshot.s3.part_size, which may be 5242880, or more"
        }
        S3Error::HttpFailWithBody(411, _) => {
            "; a proxy on the way does not pass Content-Length on: set it up to, or go round it"
        }
        _ => "",
    }
}

/// Replaces the entities of XML.
pub(super) fn plain(text: &str) -> String {
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

/// The text of the first element with this name.
pub(super) fn tag<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_for_the_bucket_in_the_host_name_is_noticed() {
        let answer = |status, body: &str| S3Error::HttpFailWithBody(status, body.into());
        for body in [
            "<Error><Code>SecondLevelDomainForbidden</Code></Error>",
            "<Error><Code>InvalidRequest</Code><Message>Use virtual hosted-style, not Path Style.\
             </Message></Error>",
        ] {
            assert!(wants_bucket_in_host(&answer(403, body)), "{body}");
            assert!(explain(&answer(403, body)).contains("snapshot.s3.path_style"));
        }
        let denied = answer(403, "<Error><Code>AccessDenied</Code></Error>");
        assert!(!wants_bucket_in_host(&denied));
        let large = explain(&answer(413, "<html>"));
        assert!(large.contains("snapshot.s3.part_size"), "{large}");
    }

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

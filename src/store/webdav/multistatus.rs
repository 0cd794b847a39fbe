//! The names in an answer to PROPFIND.
//!
//! Only the `href` elements of its XML matter, with any namespace prefix.

use crate::address::server::decode;

/// The last part of every path, except those of collections, which end with `/`.
pub(super) fn names_in(xml: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = xml;
    while let Some((_, after)) = rest.split_once('<') {
        let Some((tag, text)) = after.split_once('>') else {
            break;
        };
        rest = text;
        let element = tag.split_whitespace().next().unwrap_or_default();
        if element.rsplit(':').next() != Some("href") || element.starts_with('/') {
            continue;
        }
        let href = text.split('<').next().unwrap_or_default().trim();
        let name = href.rsplit('/').next().unwrap_or_default();
        if let Some(name) = decode(&unescape(name))
            && !name.is_empty()
        {
            names.push(name);
        }
    }
    names
}

fn unescape(text: &str) -> String {
    let signs = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ];
    let replaced = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    signs.into_iter().fold(text.to_string(), replaced)
}

#[cfg(test)]
mod tests {
    use super::names_in;

    #[test]
    fn names_of_two_servers() {
        let apache = r#"<?xml version="1.0"?><D:multistatus xmlns:D="DAV:" xmlns:ns0="DAV:">
            <D:response xmlns:lp1="DAV:"><D:href>/dav/my%20dir/</D:href><D:propstat/></D:response>
            <D:response><D:href>/dav/my%20dir/a&amp;b.part-1</D:href></D:response>
            <D:response><D:href>/dav/my%20dir/sub/</D:href></D:response></D:multistatus>"#;
        assert_eq!(names_in(apache), ["a&b.part-1"]);
        let other = "<multistatus><response><href>\n http://h/x/manifest </href></response>\
                     <response><href>/x/cut";
        assert_eq!(names_in(other), ["manifest", "cut"]);
        assert!(names_in("<html><a href='/x'>no</a>").is_empty());
    }
}

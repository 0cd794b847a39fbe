//! Finds which settings the operator's own nats-server configuration contains.
//!
//! This is no parser of the format: it only finds the keys outside all braces. The server
//! interprets the file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Names of the top-level settings in the file and its includes, in lower case as the server
/// compares them.
pub(super) fn top_level_keys(file: &Path) -> io::Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    let mut files = vec![file.to_path_buf()];
    // A file that includes itself would never end; the server refuses it later.
    for _ in 0..100 {
        let Some(file) = files.pop() else { break };
        let folder = file.parent().map(PathBuf::from).unwrap_or_default();
        let mut words = words(&fs::read_to_string(&file)?).into_iter();
        while let Some((first_on_line, word)) = words.next() {
            if word.eq_ignore_ascii_case("include") {
                files.extend(words.next().map(|(_, name)| folder.join(name)));
            } else if first_on_line {
                keys.insert(word.to_lowercase());
            }
        }
    }
    Ok(keys)
}

/// The words outside braces and comments, each with a flag: whether it begins a setting.
fn words(text: &str) -> Vec<(bool, String)> {
    let mut words = Vec::new();
    let (mut depth, mut fresh) = (0u32, true);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => {
                depth = depth.saturating_sub(1);
                fresh = depth == 0;
            }
            '\n' | ';' | ',' => fresh = depth == 0,
            '#' => while chars.next_if(|&c| c != '\n').is_some() {},
            '/' if chars.peek() == Some(&'/') => while chars.next_if(|&c| c != '\n').is_some() {},
            '"' | '\'' => {
                let word: String = chars.by_ref().take_while(|&end| end != c).collect();
                if depth == 0 {
                    words.push((std::mem::take(&mut fresh), word));
                }
            }
            c if c.is_whitespace() || c == ':' || c == '=' => {}
            c => {
                let mut word = String::from(c);
                let in_word = |c: &char| !c.is_whitespace() && !"{}[]():=,;#".contains(*c);
                while let Some(c) = chars.next_if(in_word) {
                    word.push(c);
                }
                if depth == 0 {
                    words.push((std::mem::take(&mut fresh), word));
                }
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_keys_outside_braces() {
        let folder = tempfile::tempdir().unwrap();
        let (main, more) = (
            folder.path().join("main.conf"),
            folder.path().join("more.conf"),
        );
        fs::write(&more, "Accounts: { a: { users: [] } }").unwrap();
        fs::write(
            &main,
            "# authorization {}\n// cluster\nport = 4222; http: 8222\n\
             jetstream {\n  store_dir: \"a # b\"\n}\n\
             debug true\ninclude \"more.conf\"\n'max_payload': 2MB",
        )
        .unwrap();
        let keys = top_level_keys(&main).unwrap();
        let expected = [
            "accounts",
            "debug",
            "http",
            "jetstream",
            "max_payload",
            "port",
        ];
        assert_eq!(
            keys.iter().map(String::as_str).collect::<Vec<_>>(),
            expected
        );
    }
}

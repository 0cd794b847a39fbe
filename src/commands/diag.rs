//! `harmonylite diag`: writes a text file that helps to find a fault, without secrets and without
//! rows.
//!
//! The configuration is written key by key, from a list of the keys that hold no secret. Of a key
//! that is not on the list only the name is written. Texts of the log and of the daemon may repeat
//! what a server said, so every secret that the configuration knows is removed from them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::query::{self, CommandOutcome};
use crate::config::Config;
use crate::database::read_only::ReadOnly;
use crate::output;

/// Number of bytes taken from the end of the log.
const LOG_BYTES: u64 = 256 << 10;

/// Largest answer of the daemon that is taken, in bytes.
const ANSWER_BYTES: u64 = 4 << 20;

const DEFAULT: &str = "harmonylite-diag.txt";

/// Writes the file, which must not exist yet and which only its owner may read.
pub(crate) fn write(
    config: &Config,
    to: Option<&Path>,
    out: &mut dyn Write,
) -> Result<CommandOutcome, String> {
    let path = to.unwrap_or(Path::new(DEFAULT));
    let (text, is_running) = bundle(config);
    let failed = |e: std::io::Error| format!("writing {}: {e}", path.display());
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(failed)?;
    writeln!(out, "wrote {}", path.display()).map_err(output::failed)?;
    Ok(match is_running {
        true => CommandOutcome::Fine,
        false => CommandOutcome::NoDaemon,
    })
}

/// Returns the text, and whether a daemon answered.
fn bundle(config: &Config) -> (String, bool) {
    let mut text = String::new();
    let mut section = |title: &str, body: &str| {
        text += &format!("== {title}\n{}\n\n", body.trim_end());
    };
    section("versions", &versions());
    section("configuration", &config.described());
    let mut is_running = false;
    for path in ["/health", "/status", "/verify"] {
        let answer = query::get(config, path).and_then(|answer| match answer {
            Some(answer) => answer.text(ANSWER_BYTES).map_err(|e| e.to_string()),
            None => Ok("no daemon answers".into()),
        });
        is_running |= answer.as_ref().is_ok_and(|text| text.starts_with('{'));
        section(path, &answer.unwrap_or_else(|e| e));
    }
    section("own tables", &own_tables(config).unwrap_or_else(|e| e));
    section("log", &log_tail(config).unwrap_or_else(|e| e));
    (without(&text, &config.secrets()), is_running)
}

fn versions() -> String {
    let system = rustix::system::uname();
    format!(
        "harmonylite {}\nsqlite {}\nsystem {} {} {}",
        env!("CARGO_PKG_VERSION"),
        rusqlite::version(),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
    )
}

/// The number of rows in each table of ours.
fn own_tables(config: &Config) -> Result<String, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", config.db_path.display());
    let file = ReadOnly::open(&config.db_path).map_err(|e| failed(&e))?;
    let read = || -> rusqlite::Result<String> {
        let mut names = file.conn.prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table'
             AND name GLOB '__harmonylite__*' ORDER BY name",
        )?;
        let names = names.query_map([], |r| r.get::<_, String>(0))?;
        let mut lines = Vec::new();
        for name in names {
            let name = name?;
            let quoted = crate::database::schema::quote(&name);
            let text = format!("SELECT count(*) FROM {quoted}");
            let count: i64 = file.conn.query_row(&text, [], |r| r.get(0))?;
            lines.push(format!("{count:>10} {name}"));
        }
        Ok(lines.join("\n"))
    };
    read().map_err(|e| failed(&e))
}

fn log_tail(config: &Config) -> Result<String, String> {
    let Some(path) = &config.logging.file else {
        return Ok("goes to standard output: see the supervisor's log".into());
    };
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Removes all secrets from the text, also in the forms that they have in a URL or in JSON, and the
/// login of every URL.
fn without(text: &str, secrets: &[String]) -> String {
    let mut forms: Vec<String> = Vec::new();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        forms.push(secret.clone());
        forms.push(crate::http::client::encoded(secret));
        forms.push(secret.escape_debug().to_string());
        forms.push(
            serde_json::Value::from(&**secret)
                .to_string()
                .trim_matches('"')
                .to_owned(),
        );
    }
    // The longest goes first, because one may be part of another.
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    let hidden = |text: String, form: &String| text.replace(form, "<removed>");
    without_logins(&forms.iter().fold(text.to_owned(), hidden))
}

fn without_logins(text: &str) -> String {
    let mut parts = text.split("://");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let ends = |c: char| c.is_whitespace() || "/?#\"'`,;)".contains(c);
        let (authority, rest) = part.split_at(part.find(ends).unwrap_or(part.len()));
        out += "://";
        let login = authority.rsplit_once('@');
        out += if login.is_some() { "***@" } else { "" };
        out += login.map_or(authority, |(_, host)| host);
        out += rest;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_a_secret_is_left() {
        let text = r#"a p"w b p%22w c {"x":"p\"w"} nats://u:other@h:1/x, s3://h "nats://t@h""#;
        let hidden = without(text, &["p\"w".into()]);
        assert_eq!(
            hidden,
            r#"a <removed> b <removed> c {"x":"<removed>"} nats://***@h:1/x, s3://h "nats://***@h""#
        );
    }
}

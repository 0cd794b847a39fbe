//! Verifies that the right server answers.
//!
//! The server's key must be the pinned one, or be in a `known_hosts` file. A server has several
//! keys of different kinds, so it is asked for a kind that is known.

use std::path::{Path, PathBuf};
use std::sync::Once;

use ssh2::{CheckResult, KnownHostFileKind, KnownHosts, Session};

use super::explain;
use crate::address::host_key::pinned;
use crate::config::snapshot::SftpStore;
use crate::model::base64;

pub(super) struct Identity {
    host: String,
    port: u16,
    proof: Proof,
}

enum Proof {
    /// The kind of the key, as SSH names it, and the key itself.
    Pinned(String, Vec<u8>),
    Known {
        file: PathBuf,
        lines: Vec<String>,
    },
    Ignored,
}

impl Identity {
    pub(super) fn configured(
        settings: &SftpStore,
        host: &str,
        port: u16,
    ) -> Result<Identity, String> {
        let proof = if let Some(line) = &settings.host_key {
            let (kind, key) = pinned(line).ok_or(
                "host_key: not a public key; it looks like ssh-ed25519 AAAA…, as ssh-keyscan shows",
            )?;
            Proof::Pinned(kind, key)
        } else if settings.insecure_ignore_host_key {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                log::warn!(
                    "sftp {host}:{port}: insecure_ignore_host_key is set: any server that answers \
                     gets the login and the snapshots"
                );
            });
            Proof::Ignored
        } else {
            let file = match &settings.known_hosts {
                Some(file) => file.clone(),
                None => default_file()?,
            };
            let lines = read(&file)?;
            Proof::Known { file, lines }
        };
        let host = host.to_string();
        Ok(Identity { host, port, proof })
    }

    /// The kinds of key to request from the server; None if any will do.
    pub(super) fn kinds(&self, session: &Session) -> Result<Option<String>, String> {
        let kinds = match &self.proof {
            Proof::Ignored => return Ok(None),
            Proof::Pinned(kind, _) => vec![kind.as_str()],
            Proof::Known { lines, .. } => {
                let mut kinds = Vec::new();
                for line in lines {
                    if self.is_named_in(session, line)? {
                        kinds.extend(line.split_whitespace().nth(1));
                    }
                }
                kinds
            }
        };
        let kinds: Vec<&str> = kinds.into_iter().map(with_newer_hashes).collect();
        // Without a known kind, any key will do, since the check then fails.
        Ok((!kinds.is_empty()).then(|| kinds.join(",")))
    }

    /// Whether a line names this host. The library decides that, since names can be patterns or
    /// hashes: such a line yields a mismatch for a key that is not real.
    fn is_named_in(&self, session: &Session, line: &str) -> Result<bool, String> {
        let mut one = known_hosts(session)?;
        let readable = one.read_str(line, KnownHostFileKind::OpenSSH).is_ok();
        let found = one.check_port(&self.host, self.port, b"no key");
        Ok(readable && matches!(found, CheckResult::Mismatch))
    }

    /// Verifies the server's key. Must be called before any secret is sent.
    pub(super) fn check(&self, session: &Session) -> Result<(), String> {
        let (key, _) = session.host_key().ok_or("the server shows no host key")?;
        let shown = fingerprint(session);
        match &self.proof {
            Proof::Ignored => Ok(()),
            Proof::Pinned(_, pinned) if pinned == key => Ok(()),
            Proof::Pinned(..) => Err(format!(
                "a different server answers: its key {shown} is not the one in host_key"
            )),
            Proof::Known { file, lines } => {
                let mut known = known_hosts(session)?;
                for line in lines {
                    // The library does not know some kinds of lines; they are skipped.
                    let _ = known.read_str(line, KnownHostFileKind::OpenSSH);
                }
                let file = file.display();
                match known.check_port(&self.host, self.port, key) {
                    CheckResult::Match => Ok(()),
                    CheckResult::Mismatch => Err(format!(
                        "a different server answers: its key {shown} is not the one in {file}"
                    )),
                    _ => Err(format!(
                        "unknown server: its key {shown} is not in {file}; if it is the right one, \
                         add it (ssh-keyscan), or set host_key"
                    )),
                }
            }
        }
    }
}

fn known_hosts(session: &Session) -> Result<KnownHosts, String> {
    session.known_hosts().map_err(|error| explain(&error))
}

fn default_file() -> Result<PathBuf, String> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or("no HOME to find .ssh/known_hosts in: set known_hosts or host_key")?;
    Ok(Path::new(&home).join(".ssh/known_hosts"))
}

fn read(file: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let file = file.display();
        format!("read {file}, to know the server: {error}; or set known_hosts or host_key")
    })?;
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(['#', '@']));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// An RSA key can sign with newer hashes than its kind names.
fn with_newer_hashes(kind: &str) -> &str {
    match kind {
        "ssh-rsa" => "rsa-sha2-512,rsa-sha2-256,ssh-rsa",
        other => other,
    }
}

/// The fingerprint of the server's key, in the form that `ssh` shows.
fn fingerprint(session: &Session) -> String {
    let hash = session
        .host_key_hash(ssh2::HashType::Sha256)
        .unwrap_or_default();
    format!("SHA256:{}", base64::encode(hash).trim_end_matches('='))
}

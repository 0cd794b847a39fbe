//! Is it the right server that answers?
//!
//! Its key must be the one that is pinned, or stand in a `known_hosts` file. A server has several
//! keys, of different kinds; it is asked for one of those that are known.

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
    /// Its kind, as SSH names it, and the key itself.
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
                    "sftp {host}:{port}: insecure_ignore_host_key is set: whoever answers is \
                     trusted with the login and the snapshots"
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

    /// The kinds of key to ask the server for, if that matters.
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
        // None known: any will do for the error that follows.
        Ok((!kinds.is_empty()).then(|| kinds.join(",")))
    }

    /// Asks the library, since names can be patterns or hashes: a line that speaks of this host has
    /// another key than this.
    fn is_named_in(&self, session: &Session, line: &str) -> Result<bool, String> {
        let mut one = known_hosts(session)?;
        let readable = one.read_str(line, KnownHostFileKind::OpenSSH).is_ok();
        let found = one.check_port(&self.host, self.port, b"no key");
        Ok(readable && matches!(found, CheckResult::Mismatch))
    }

    /// To be asked before anything secret is sent.
    pub(super) fn check(&self, session: &Session) -> Result<(), String> {
        let (key, _) = session.host_key().ok_or("the server shows no host key")?;
        let shown = fingerprint(session);
        match &self.proof {
            Proof::Ignored => Ok(()),
            Proof::Pinned(_, pinned) if pinned == key => Ok(()),
            Proof::Pinned(..) => Err(format!(
                "another server answers: its key {shown} is not the one in host_key"
            )),
            Proof::Known { file, lines } => {
                let mut known = known_hosts(session)?;
                for line in lines {
                    // Lines of kinds that the library does not know are for others.
                    let _ = known.read_str(line, KnownHostFileKind::OpenSSH);
                }
                let file = file.display();
                match known.check_port(&self.host, self.port, key) {
                    CheckResult::Match => Ok(()),
                    CheckResult::Mismatch => Err(format!(
                        "another server answers: its key {shown} is not the one in {file}"
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

/// An RSA key signs in newer ways than its own name says.
fn with_newer_hashes(kind: &str) -> &str {
    match kind {
        "ssh-rsa" => "rsa-sha2-512,rsa-sha2-256,ssh-rsa",
        other => other,
    }
}

/// As `ssh` shows it.
fn fingerprint(session: &Session) -> String {
    let hash = session
        .host_key_hash(ssh2::HashType::Sha256)
        .unwrap_or_default();
    format!("SHA256:{}", base64::encode(hash).trim_end_matches('='))
}

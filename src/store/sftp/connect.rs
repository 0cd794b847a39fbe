//! Connects to the server, verifies its identity and logs in.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;

use ssh2::{KeyboardInteractivePrompt, MethodType, Prompt, Session};

use super::super::{CONNECT, SILENCE};
use super::explain;
use super::host_key::Identity;
use crate::address::secret::Secret;
use crate::address::server::Address;
use crate::config::snapshot::SftpStore;

pub(super) const PORT: u16 = 22;

/// Returns a session that is logged in, at a server whose identity was verified.
pub(super) fn connect(settings: &SftpStore, server: &Address) -> Result<Session, String> {
    let port = server.port.unwrap_or(PORT);
    // Before the first packet: an error in the configuration is found without a server.
    let identity = Identity::configured(settings, &server.host, port)?;
    let mut session = Session::new().map_err(|error| explain(&error))?;
    session.set_timeout(CONNECT.as_millis() as u32);
    session.set_tcp_stream(dial(&server.host, port)?);
    if let Some(kinds) = identity.kinds(&session)? {
        session
            .method_pref(MethodType::HostKey, &kinds)
            .map_err(|error| format!("ask for the known host key: {}", explain(&error)))?;
    }
    session.handshake().map_err(|error| {
        let lost = super::lost(&error).unwrap_or("failed");
        format!("ssh handshake: {lost} ({})", explain(&error))
    })?;
    identity.check(&session)?;
    session.set_timeout(SILENCE.as_millis() as u32);
    log_in(settings, server, &session)?;
    Ok(session)
}

fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let places = (host, port).to_socket_addrs();
    let places = places.map_err(|error| format!("look up {host}: {error}"))?;
    let mut cause = format!("{host} has no address");
    for place in places {
        match TcpStream::connect_timeout(&place, CONNECT) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true); // as OpenSSH does; slower without, no more
                return Ok(stream);
            }
            Err(error) => cause = error.to_string(),
        }
    }
    Err(cause)
}

fn log_in(settings: &SftpStore, server: &Address, session: &Session) -> Result<(), String> {
    let user = server.user.as_deref().or(settings.username.as_deref());
    let user = user.ok_or("no username is configured")?;
    let password = server.password.as_deref();
    let password = password.or(settings.password.as_ref().map(Secret::reveal));
    let mut causes = Vec::new();
    if let Some(file) = &settings.key_file {
        match by_key(settings, user, file, session) {
            Ok(()) => return Ok(()),
            Err(cause) => causes.push(cause),
        }
    }
    if let Some(password) = password {
        match by_password(user, password, session) {
            Ok(()) => return Ok(()),
            Err(cause) => causes.push(format!("by password: {cause}")),
        }
    }
    if causes.is_empty() {
        return Err("neither password nor key_file is configured".into());
    }
    Err(format!("log in as {user}: {}", causes.join("; ")))
}

fn by_key(settings: &SftpStore, user: &str, file: &Path, session: &Session) -> Result<(), String> {
    let failed = |cause: String| format!("by key {}: {cause}", file.display());
    let key = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let passphrase = settings.passphrase.as_ref().map(Secret::reveal);
    session
        .userauth_pubkey_memory(user, None, &key, passphrase)
        .map_err(|error| match error.message() {
            // For a locked key, the library reports only that it cannot read the key.
            text if text.contains("extract public key") => {
                failed(format!("{text} (or a wrong passphrase)"))
            }
            _ => failed(explain(&error)),
        })
}

/// Logs in by password. Some servers accept a password only as the answer to a question.
fn by_password(user: &str, password: &str, session: &Session) -> Result<(), String> {
    let methods = session.auth_methods(user).unwrap_or("password").to_string();
    let offers = |method: &str| methods.split(',').any(|offered| offered == method);
    let result = if offers("password") || !offers("keyboard-interactive") {
        session.userauth_password(user, password)
    } else {
        session.userauth_keyboard_interactive(user, &mut PasswordPrompt(password))
    };
    result.map_err(|error| explain(&error))
}

struct PasswordPrompt<'a>(&'a str);

impl KeyboardInteractivePrompt for PasswordPrompt<'_> {
    fn prompt(&mut self, _user: &str, _text: &str, questions: &[Prompt<'_>]) -> Vec<String> {
        questions.iter().map(|_| self.0.to_string()).collect()
    }
}

//! Messages to a supervisor: to systemd by its notification socket, to init scripts by a file with
//! our process id.
//!
//! systemd (`Type=notify`) waits for `READY=1` before it starts units that come after us, and with
//! `WatchdogSec=` ends a daemon whose `WATCHDOG=1` stays away
//! (<https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>). Without
//! `NOTIFY_SOCKET` in the environment none of it costs anything.

use std::ffi::OsString;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The supervisor that started this process, if the environment names one.
pub(super) struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Time between two messages that we are alive; none if the supervisor expects none.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The supervisor that the environment names.
    pub(super) fn of_environment() -> Supervisor {
        let read = |name: &str| std::env::var_os(name);
        Supervisor::named(
            read("NOTIFY_SOCKET"),
            read("WATCHDOG_USEC"),
            read("WATCHDOG_PID"),
        )
    }

    fn named(
        socket: Option<OsString>,
        usec: Option<OsString>,
        pid: Option<OsString>,
    ) -> Supervisor {
        let number = |text: Option<OsString>| text?.to_str()?.parse::<u64>().ok();
        let is_ours = number(pid).is_none_or(|pid| pid == u64::from(std::process::id()));
        let socket = socket.and_then(|name| connect(&name));
        // Half of the supervisor's limit, as systemd's manual advises.
        let usec = number(usec).filter(|usec| *usec > 1 && is_ours && socket.is_some());
        Supervisor {
            socket,
            watchdog: usec.map(|usec| Duration::from_micros(usec / 2)),
        }
    }

    /// Time between two calls of [`Supervisor::is_alive`]; none if the supervisor expects none.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Says that the database is open and watched.
    pub(super) fn is_ready(&self) {
        self.tell("READY=1");
    }

    pub(super) fn is_alive(&self) {
        self.tell("WATCHDOG=1");
    }

    pub(super) fn is_stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, text: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(e) = socket.send_to_addr(text.as_bytes(), address)
        {
            log::debug!("the supervisor cannot be told {text}: {e}");
        }
    }
}

fn connect(name: &OsString) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        _ => SocketAddr::from_pathname(name),
    };
    Some((UnixDatagram::unbound().ok()?, address.ok()?))
}

/// The file of `-pid-file`, removed when dropped.
pub(super) struct PidFile(PathBuf);

impl PidFile {
    /// Writes our process id and a line feed to `path`. Replaces the file of an earlier process.
    pub(super) fn write(path: &Path) -> Result<PidFile, String> {
        let failed = |e| format!("-pid-file {}: {e}", path.display());
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let pid = format!("{}\n", std::process::id());
        // A new file, so that we never write through another user's link.
        let mut file = fs::File::create_new(path).map_err(failed)?;
        std::io::Write::write_all(&mut file, pid.as_bytes()).map_err(failed)?;
        Ok(PidFile(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told_on_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let abstract_name = format!("harmonylite-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (listener, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&address).unwrap(),
                format!("@{abstract_name}").into(),
            ),
        ] {
            let supervisor = Supervisor::named(Some(name), Some("4000000".into()), None);
            assert_eq!(supervisor.watchdog(), Some(Duration::from_secs(2)));
            supervisor.is_ready();
            supervisor.is_alive();
            supervisor.is_stopping();
            let mut buffer = [0; 64];
            for expected in ["READY=1", "WATCHDOG=1", "STOPPING=1"] {
                let length = listener.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], expected.as_bytes());
            }
        }
    }

    #[test]
    fn nobody_waits_where_nobody_said_so() {
        let nobody = Supervisor::named(None, Some("4000000".into()), None);
        assert_eq!(nobody.watchdog(), None);
        nobody.is_ready();
        let of_another = Some("1".into());
        let socket = Some("/nowhere/at/all".into());
        let other = Supervisor::named(socket, Some("4000000".into()), of_another);
        assert_eq!(other.watchdog(), None);
        other.is_ready();
    }

    #[test]
    fn the_pid_file_is_there_while_we_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let precious = folder.path().join("precious");
        fs::write(&precious, "kept").unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        let file = PidFile::write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
        drop(file);
        assert!(!path.exists());
        let refused = PidFile::write(&folder.path().join("no/pid"));
        assert!(refused.is_err_and(|text| text.contains("-pid-file")));
    }
}

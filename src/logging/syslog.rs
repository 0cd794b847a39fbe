//! The system's log: datagrams to the Unix socket of a syslog daemon or of systemd's journal (RFC
//! 3164, `<priority>tag[pid]: text`). The receiver adds the time, because it knows the time zone.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::Level;

/// The receiver's socket on Linux.
pub(super) const PATH: &str = "/dev/log";

/// Facility "daemon", times eight as in the priority.
const FACILITY: u8 = 3 << 3;

/// Most bytes of a text; receivers cut at 1 to 8 KiB.
const MOST_BYTES: usize = 8 << 10;

/// Longest wait for a receiver whose queue is full. After one such wait, lines go elsewhere until
/// the receiver takes a line again.
const PATIENCE: Duration = Duration::from_millis(100);

/// A socket for sending. Each line looks the receiver up, which may start later, or restart.
pub(super) struct Syslog {
    socket: UnixDatagram,
    path: PathBuf,
    /// Whether the receiver's queue was full at the last line.
    hangs: AtomicBool,
}

impl Syslog {
    /// A socket for the receiver at `path`, which need not exist yet.
    pub(super) fn open(path: PathBuf) -> io::Result<Syslog> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Syslog {
            socket,
            path,
            hangs: AtomicBool::new(false),
        })
    }

    /// Sends a line. True if the receiver took it.
    pub(super) fn send(&self, level: Level, text: &str) -> bool {
        let mut end = text.len().min(MOST_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let severity = match level {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        };
        let (priority, pid) = (FACILITY | severity, process::id());
        let datagram = format!("<{priority}>harmonylite[{pid}]: {}", &text[..end]);
        let hung = self.hangs.load(Ordering::Relaxed);
        let sent = match self.socket.set_nonblocking(hung) {
            Ok(()) => self.socket.send_to(datagram.as_bytes(), &self.path),
            Err(e) => Err(e),
        };
        let hangs = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
        self.hangs
            .store(sent.as_ref().is_err_and(hangs), Ordering::Relaxed);
        sent.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use super::*;

    fn received(receiver: &UnixDatagram) -> String {
        let mut buffer = vec![0; 64 << 10];
        let length = receiver.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn lines_reach_a_receiver_that_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let syslog = Syslog::open(path.clone()).unwrap();
        assert!(!syslog.send(Level::Info, "nobody is there"));
        let receiver = UnixDatagram::bind(&path).unwrap();
        let pid = process::id();
        for (level, priority) in [
            (Level::Error, 27),
            (Level::Warn, 28),
            (Level::Info, 30),
            (Level::Debug, 31),
        ] {
            assert!(syslog.send(level, "text"));
            let expected = format!("<{priority}>harmonylite[{pid}]: text");
            assert_eq!(received(&receiver), expected);
        }
        assert!(syslog.send(Level::Info, &"é".repeat(MOST_BYTES)));
        let cut = received(&receiver);
        assert!(cut.ends_with('é') && cut.len() < MOST_BYTES + 64);
        drop(receiver);
        assert!(!syslog.send(Level::Info, "it is started again just now"));
        fs::remove_file(&path).unwrap();
        let receiver = UnixDatagram::bind(&path).unwrap();
        assert!(syslog.send(Level::Info, "again"));
        assert!(received(&receiver).ends_with("again"));
    }

    #[test]
    fn a_receiver_that_hangs_is_waited_for_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let syslog = Syslog::open(path.clone()).unwrap();
        let receiver = UnixDatagram::bind(&path).unwrap();
        // Lines are taken until the queue is full.
        while syslog.send(Level::Info, "text") {}
        let began = Instant::now();
        for _ in 0..1000 {
            assert!(!syslog.send(Level::Info, "text"));
        }
        assert!(began.elapsed() < PATIENCE * 100);
        received(&receiver);
        assert!(syslog.send(Level::Info, "there is room again"));
    }
}

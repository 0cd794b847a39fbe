//! A connection: its deadlines, its request and its answer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Handler;
use super::message::{Method, ReadError, Request, Response};

/// Time for a client to send its whole request, and to take an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A client's connection.
pub(super) struct Connection {
    pub socket: Socket,
    /// Names under which the listener is asked; none for the Unix socket.
    hosts: Option<Arc<[String]>>,
    /// No request is being answered.
    is_waiting: AtomicBool,
}

pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    pub(super) fn new(socket: Socket, hosts: Option<Arc<[String]>>) -> Connection {
        Connection {
            socket,
            hosts,
            is_waiting: AtomicBool::new(true),
        }
    }

    /// Whether it waits for its client: for a request, or for the answer to be taken.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    /// Ends it under its thread.
    pub(super) fn end(&self) {
        let _ = match &self.socket {
            Socket::Tcp(tcp) => tcp.shutdown(Shutdown::Both),
            Socket::Unix(unix) => unix.shutdown(Shutdown::Both),
        };
    }

    fn answer(&self, handler: &Handler, request: &Request) -> Response {
        self.is_waiting.store(false, Ordering::Relaxed);
        let response = handler(request);
        self.is_waiting.store(true, Ordering::Relaxed);
        response
    }

    /// Whether it uses the Unix socket, which only this machine's administrator can open.
    pub(super) fn is_local(&self) -> bool {
        self.hosts.is_none()
    }

    /// Refuses a connection above the limit, without waiting.
    pub(super) fn turn_away(&self) {
        let text = "too many connections at a time; try again\n";
        let bytes = Response::text(503, text).bytes();
        let _ = match &self.socket {
            Socket::Tcp(tcp) => tcp
                .set_nonblocking(true)
                .and_then(|()| (&*tcp).write(&bytes)),
            Socket::Unix(unix) => unix
                .set_nonblocking(true)
                .and_then(|()| (&*unix).write(&bytes)),
        };
    }

    /// Whether the Host header names this machine. A page of another site can make a browser
    /// connect to us under that site's name (DNS rebinding) and read the answer.
    fn is_asked_by_own_name(&self, request: &Request) -> bool {
        let (Some(hosts), Socket::Tcp(tcp)) = (&self.hosts, &self.socket) else {
            return true;
        };
        let is_loopback = tcp
            .local_addr()
            .is_ok_and(|address| address.ip().to_canonical().is_loopback());
        match request.host_name() {
            Some(name) => is_own_name(name, hosts, is_loopback),
            None => true, // browsers always say it
        }
    }
}

/// Last parts of names that nobody can register: no site of the internet has such a name.
const PRIVATE: [&str; 8] = [
    "local",
    "lan",
    "internal",
    "home",
    "corp",
    "arpa",
    "svc",
    "localhost",
];

/// Whether no stranger's site can have this name. On loopback, only names of loopback and of
/// `hosts` count.
fn is_own_name(name: &str, hosts: &[String], is_loopback: bool) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_private = || {
        let is_one = |private: &str| last.eq_ignore_ascii_case(private);
        !name.is_empty() && (last == name || PRIVATE.iter().any(|private| is_one(private)))
    };
    let is_own_address = |ip: IpAddr| !is_loopback || ip.to_canonical().is_loopback();
    name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|host| name.eq_ignore_ascii_case(host))
        || bare.parse().is_ok_and(is_own_address)
        || (!is_loopback && is_private())
}

/// Reads a request and answers it. Fails if the client leaves or a deadline passes.
pub(super) fn converse(connection: &Connection, handler: &Handler) -> io::Result<()> {
    let mut timed = TimedSocket::new(&connection.socket);
    let request = match Request::read(&mut timed) {
        Ok(mut request) => {
            request.is_local = connection.is_local();
            Ok(request)
        }
        Err(ReadError::Refused(response)) => Err(response),
        Err(ReadError::Gone(e)) => return Err(e),
    };
    let (response, method) = match request {
        Err(response) => (response, Method::Get),
        Ok(request) if !connection.is_asked_by_own_name(&request) => {
            let text = "the Host header is no name of this machine: ask by its address, or add the \
                        name to http_hosts in its configuration\n";
            (Response::text(403, text), request.method)
        }
        Ok(request) => (connection.answer(handler, &request), request.method),
    };
    timed.renew();
    timed.write_all(&match method {
        Method::Head => response.head(),
        Method::Get | Method::Post => response.bytes(),
    })
}

/// A socket with one deadline for all reads and writes together.
pub(super) struct TimedSocket<'s> {
    socket: &'s Socket,
    deadline: Instant,
}

impl<'s> TimedSocket<'s> {
    pub(super) fn new(socket: &'s Socket) -> TimedSocket<'s> {
        TimedSocket {
            socket,
            deadline: Instant::now() + PATIENCE,
        }
    }

    pub(super) fn renew(&mut self) {
        self.deadline = Instant::now() + PATIENCE;
    }

    /// Time left; never zero, which would mean no limit to a socket.
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for TimedSocket<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.left()?;
            let read = match self.socket {
                Socket::Tcp(tcp) => tcp
                    .set_read_timeout(left)
                    .and_then(|()| (&*tcp).read(bytes)),
                Socket::Unix(unix) => unix
                    .set_read_timeout(left)
                    .and_then(|()| (&*unix).read(bytes)),
            };
            match read {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl Write for TimedSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        match self.socket {
            Socket::Tcp(tcp) => {
                tcp.set_write_timeout(left)?;
                (&*tcp).write(bytes)
            }
            Socket::Unix(unix) => {
                unix.set_write_timeout(left)?;
                (&*unix).write(bytes)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        let hosts = ["box.lan", "db.example.com"].map(str::to_owned);
        for name in [
            "localhost",
            "LOCALHOST",
            "127.0.0.1",
            "127.8.8.8",
            "[::1]",
            "box.lan",
            "Db.Example.com",
        ] {
            assert!(is_own_name(name, &hosts, true), "{name}");
            assert!(is_own_name(name, &hosts, false), "{name}");
        }
        for name in [
            "evil.example",
            "localhost.evil.example",
            "",
            "0x7f.1",
            "box.lan.com",
        ] {
            assert!(!is_own_name(name, &hosts, true), "{name}");
            assert!(!is_own_name(name, &hosts, false), "{name}");
        }
        for name in [
            "10.0.0.1",
            "[fd00::1]",
            "box",
            "pi.local",
            "hl.prod.svc",
            "a.INTERNAL",
        ] {
            assert!(!is_own_name(name, &hosts, true), "{name}");
            assert!(is_own_name(name, &hosts, false), "{name}");
        }
    }
}

//! A connection: its deadlines, its request and its answer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Handler;
use super::message::{Method, ReadError, Request, Response};

/// Time for a client to send its whole request, and to take an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A client's connection.
pub(super) struct Connection {
    pub socket: Socket,
    /// The host that the listener was told to bind; none for the Unix socket.
    pub host: Option<String>,
}

pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    /// Whether it uses the Unix socket, which only this machine's administrator can open.
    pub(super) fn is_local(&self) -> bool {
        self.host.is_none()
    }

    /// Refuses a connection above the limit, without waiting.
    pub(super) fn turn_away(self) {
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

    /// Whether the Host header names this machine, if that is required: on loopback. A page of
    /// another site can make a browser on this machine connect to us under that site's name (DNS
    /// rebinding) and read the answer.
    fn is_asked_by_own_name(&self, request: &Request) -> bool {
        let (Some(bound), Socket::Tcp(tcp)) = (&self.host, &self.socket) else {
            return true;
        };
        let is_loopback = tcp
            .local_addr()
            .is_ok_and(|address| address.ip().to_canonical().is_loopback());
        match request.host_name() {
            Some(name) if is_loopback => is_own_name(name, bound),
            _ => true, // browsers always say it
        }
    }
}

fn is_own_name(name: &str, bound: &str) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(bound)
        || bare
            .parse()
            .is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
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
            let text = "the Host header is no name of this machine: ask 127.0.0.1, or have the \
                        proxy in between set it\n";
            (Response::text(403, text), request.method)
        }
        Ok(request) => (handler(&request), request.method),
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
        for name in [
            "localhost",
            "LOCALHOST",
            "127.0.0.1",
            "127.8.8.8",
            "[::1]",
            "box.lan",
        ] {
            assert!(is_own_name(name, "box.lan"), "{name}");
        }
        for name in [
            "evil.example",
            "10.0.0.1",
            "localhost.evil.example",
            "",
            "0x7f.1",
        ] {
            assert!(!is_own_name(name, "127.0.0.1"), "{name}");
        }
    }
}

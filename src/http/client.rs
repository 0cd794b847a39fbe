//! The client of the daemon's Unix socket, for commands.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::listen::with_short_name;

/// Longest silence of a daemon; a longer one means that it hangs. Long work reports its progress.
const SILENCE: Duration = Duration::from_secs(30);

/// Most bytes of an answer's head.
const HEAD_BYTES: u64 = 16 << 10;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process listens at the socket, or it cannot be opened.
    #[error("no harmonylite answers at {}: {cause}", socket.display())]
    NoDaemon {
        /// The socket that was tried.
        socket: PathBuf,
        /// Why the connection failed.
        cause: io::Error,
    },
    /// The connection failed, or the answer is not HTTP.
    #[error("asking the harmonylite at {}: {cause}", socket.display())]
    Broken {
        /// The socket that was connected to.
        socket: PathBuf,
        /// The error that ended the exchange.
        cause: io::Error,
    },
}

/// The daemon's answer. Reading it reads the body as it arrives.
pub struct ClientResponse {
    /// HTTP status code.
    pub status: u16,
    body: BufReader<UnixStream>,
}

impl ClientResponse {
    /// The whole body, cut after `most` bytes. Fails if it is not UTF-8 or the connection breaks.
    pub fn text(self, most: u64) -> io::Result<String> {
        let mut text = String::new();
        self.body.take(most).read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Read for ClientResponse {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.body.read(bytes)
    }
}

/// Sends `GET` for `target`, a path with its query. Fails if the daemon is silent for 30 s.
pub fn get(socket: &Path, target: &str) -> Result<ClientResponse, ClientError> {
    ask(socket, "GET", target)
}

/// Sends `POST` for `target`, a path with its query. Fails if the daemon is silent for 30 s.
pub fn post(socket: &Path, target: &str) -> Result<ClientResponse, ClientError> {
    ask(socket, "POST", target)
}

fn ask(socket: &Path, method: &str, target: &str) -> Result<ClientResponse, ClientError> {
    let stream = with_short_name(socket, |name| UnixStream::connect(name));
    let stream = stream.map_err(|cause| ClientError::NoDaemon {
        socket: socket.to_owned(),
        cause,
    })?;
    exchange(stream, method, target).map_err(|cause| ClientError::Broken {
        socket: socket.to_owned(),
        cause,
    })
}

fn exchange(mut stream: UnixStream, method: &str, target: &str) -> io::Result<ClientResponse> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut head = BufReader::new(stream).take(HEAD_BYTES);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|text| text.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("the answer is not HTTP"))?;
    while line != "\r\n" {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    let body = head.into_inner();
    Ok(ClientResponse { status, body })
}

/// The value with every byte escaped that a query does not allow.
pub fn encoded(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    value.bytes().map(byte).collect()
}

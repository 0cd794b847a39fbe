//! A request, and the response to it.

use std::io::{self, Read};

use serde_json::Value;

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 8 << 10;
/// Most bytes of a request's body.
const BODY_BYTES: usize = 64 << 10;
const HEADERS: usize = 64;

/// A method of HTTP; other methods are refused with 405.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Asks for a resource.
    Get,
    /// Asks for the head of a `GET`'s response.
    Head,
    /// Asks for a change.
    Post,
}

/// A client's request.
#[derive(Debug)]
pub struct Request {
    /// The method of the request line.
    pub method: Method,
    /// The path without the query; begins with a slash.
    pub path: String,
    query: String,
    host: Option<String>,
    /// Whether it came by the Unix socket.
    pub is_local: bool,
}

/// Why a request cannot be read.
pub(super) enum ReadError {
    Gone(io::Error),
    /// The request is not accepted; the client gets the response.
    Refused(Response),
}

impl From<io::Error> for ReadError {
    fn from(e: io::Error) -> Self {
        ReadError::Gone(e)
    }
}

fn refused<T>(status: u16, text: &str) -> Result<T, ReadError> {
    Err(ReadError::Refused(Response::text(status, text)))
}

impl Request {
    /// A `GET` for the tests of a handler.
    #[cfg(test)]
    pub fn get(target: &str, is_local: bool) -> Request {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Request {
            method: Method::Get,
            path: path.to_owned(),
            query: query.to_owned(),
            host: None,
            is_local,
        }
    }

    /// The decoded value of `name` in the query; empty if the name has no value, none if it is
    /// absent.
    pub fn query(&self, name: &str) -> Option<String> {
        let mut pairs = self.query.split('&');
        let value = pairs.find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key) == name).then_some(value)
        });
        value.map(decoded)
    }

    /// The name in the Host header, without the port.
    pub(super) fn host_name(&self) -> Option<&str> {
        let host = self.host.as_deref()?;
        match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => Some(name),
            _ => Some(host),
        }
    }

    pub(super) fn read(from: &mut impl Read) -> Result<Request, ReadError> {
        let mut bytes = Vec::new();
        loop {
            if let Some((request, length, head)) = Request::parse(&bytes)? {
                skip_body(from, bytes.split_off(head), length)?;
                return Ok(request);
            }
            if bytes.len() >= HEAD_BYTES {
                return refused(431, "the head of a request is at most 8 KiB\n");
            }
            read_more(from, &mut bytes, HEAD_BYTES)?;
        }
    }

    /// The request, the length of its body and that of its head; none if the head is incomplete.
    fn parse(bytes: &[u8]) -> Result<Option<(Request, usize, usize)>, ReadError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let head = match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => {
                return refused(431, "a request has at most 64 headers\n");
            }
            Err(_) => return refused(400, "this is not an HTTP request\n"),
        };
        let header = |name: &str| {
            let mut found = parsed.headers.iter();
            let found = found.find(|h| h.name.eq_ignore_ascii_case(name))?;
            Some(String::from_utf8_lossy(found.value).trim().to_owned())
        };
        let method = match parsed.method {
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            Some("POST") => Method::Post,
            _ => return refused(405, "GET, HEAD and POST are known here\n"),
        };
        let target = parsed.path.unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if !path.starts_with('/') {
            return refused(400, "a path begins with a slash\n");
        }
        if header("Transfer-Encoding").is_some() {
            return refused(501, "a body needs a Content-Length\n");
        }
        let length = match header("Content-Length") {
            Some(length) if method == Method::Post => match length.parse() {
                Ok(length) if length <= BODY_BYTES => length,
                Ok(_) => return refused(413, "a body is at most 64 KiB\n"),
                Err(_) => return refused(400, "Content-Length is not a number\n"),
            },
            _ => 0,
        };
        let request = Request {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            host: header("Host"),
            is_local: false,
        };
        Ok(Some((request, length, head)))
    }
}

/// Reads the body, of which `begun` is here, to its end: no request needs one, and the system
/// resets a connection that is closed with unread bytes.
fn skip_body(from: &mut impl Read, mut begun: Vec<u8>, length: usize) -> io::Result<()> {
    while begun.len() < length {
        read_more(from, &mut begun, length)?;
    }
    Ok(())
}

/// Appends the bytes that arrive next, up to `most` bytes in all.
fn read_more(from: &mut impl Read, bytes: &mut Vec<u8>, most: usize) -> io::Result<()> {
    let mut buffer = [0; 1024];
    let room = (most - bytes.len()).min(buffer.len());
    match from.read(&mut buffer[..room])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => {
            bytes.extend_from_slice(&buffer[..read]);
            Ok(())
        }
    }
}

/// Decodes `%41` and `+`.
fn decoded(text: &str) -> String {
    let (bytes, mut at) = (text.as_bytes(), 0);
    let mut out = Vec::new();
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        at += if code.is_some() { 3 } else { 1 };
        out.push(match byte {
            b'+' => b' ',
            byte => code.unwrap_or(byte),
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The response to a request.
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// Names and values, besides those that every response has.
    pub headers: Vec<(&'static str, &'static str)>,
    /// The body; a response to `HEAD` is sent without it.
    pub body: Vec<u8>,
}

impl Response {
    /// A response with `kind` as its `Content-Type`.
    pub fn new(status: u16, kind: &'static str, body: Vec<u8>) -> Response {
        let headers = vec![("Content-Type", kind)];
        Response {
            status,
            headers,
            body,
        }
    }

    /// A response of one line of JSON.
    pub fn json(status: u16, value: &Value) -> Response {
        Response::new(status, "application/json", format!("{value}\n").into())
    }

    /// A response of plain text in UTF-8.
    pub fn text(status: u16, text: impl Into<String>) -> Response {
        Response::new(status, "text/plain; charset=utf-8", text.into().into())
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &'static str) -> Response {
        self.headers.push((name, value));
        self
    }

    /// The head with its empty line. Browsers must not store the response, nor guess its type.
    pub(super) fn head(&self) -> Vec<u8> {
        let (status, reason) = (self.status, reason(self.status));
        let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        head.push_str(
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Connection: close\r\n\r\n",
        );
        head.into_bytes()
    }

    /// Head and body.
    pub(super) fn bytes(&self) -> Vec<u8> {
        [&self.head()[..], &self.body].concat()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

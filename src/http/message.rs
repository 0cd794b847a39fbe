//! A request, and an answer to it.

use std::io::{self, Read, Write};

use serde_json::Value;

/// A request's head is no longer.
const HEAD_BYTES: usize = 8 << 10;
/// Nor is its body.
const BODY_BYTES: usize = 64 << 10;
const HEADERS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
}

/// What a client wants.
#[derive(Debug)]
pub struct Request {
    pub method: Method,
    /// Without the query; begins with a slash.
    pub path: String,
    query: String,
    host: Option<String>,
    pub body: Vec<u8>,
    /// It came by the Unix socket.
    pub is_local: bool,
}

/// Why there is no request.
pub(super) enum ReadError {
    Gone(io::Error),
    /// And what the client is told.
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
    /// A request as the tests of a handler need it.
    #[cfg(test)]
    pub fn get(target: &str, is_local: bool) -> Request {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Request {
            method: Method::Get,
            path: path.to_owned(),
            query: query.to_owned(),
            host: None,
            body: Vec::new(),
            is_local,
        }
    }

    /// The value of `name` in the query, decoded; empty for a name without a value.
    pub fn query(&self, name: &str) -> Option<String> {
        let mut pairs = self.query.split('&');
        let value = pairs.find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key) == name).then_some(value)
        });
        value.map(decoded)
    }

    /// The name in the Host header, without a port.
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
                return request.with_body(from, bytes.split_off(head), length);
            }
            if bytes.len() >= HEAD_BYTES {
                return refused(431, "the head of a request is at most 8 KiB\n");
            }
            read_more(from, &mut bytes, HEAD_BYTES)?;
        }
    }

    /// Request, bytes of its body and of its head; none if the head is not whole yet.
    fn parse(bytes: &[u8]) -> Result<Option<(Request, usize, usize)>, ReadError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let head = match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => {
                return refused(431, "a request has at most 64 headers\n");
            }
            Err(_) => return refused(400, "this is no HTTP request\n"),
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
                Err(_) => return refused(400, "Content-Length is no number\n"),
            },
            _ => 0,
        };
        let request = Request {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            host: header("Host"),
            body: Vec::new(),
            is_local: false,
        };
        Ok(Some((request, length, head)))
    }

    fn with_body(
        mut self,
        from: &mut impl Read,
        begun: Vec<u8>,
        length: usize,
    ) -> Result<Request, ReadError> {
        self.body = begun;
        while self.body.len() < length {
            read_more(from, &mut self.body, length)?;
        }
        self.body.truncate(length);
        Ok(self)
    }
}

/// Appends what comes next, up to `most` bytes in all.
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

/// `%41` and `+` as the characters they stand for.
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

/// What a client is told.
pub struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, &'static str)>,
    pub body: Body,
}

/// The body of an answer.
pub enum Body {
    Bytes(Vec<u8>),
    /// Written bit by bit, for as long as it takes and the client reads on.
    Stream(Stream),
}

/// Writes a body.
pub(super) type Stream = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

impl Response {
    /// With this `Content-Type`.
    pub fn new(status: u16, kind: &'static str, body: Body) -> Response {
        let headers = vec![("Content-Type", kind)];
        Response {
            status,
            headers,
            body,
        }
    }

    /// One line of JSON.
    pub fn json(status: u16, value: &Value) -> Response {
        let body = Body::Bytes(format!("{value}\n").into_bytes());
        Response::new(status, "application/json", body)
    }

    pub fn text(status: u16, text: impl Into<String>) -> Response {
        let body = Body::Bytes(text.into().into_bytes());
        Response::new(status, "text/plain; charset=utf-8", body)
    }

    /// The same with another header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &'static str) -> Response {
        self.headers.push((name, value));
        self
    }

    /// Up to the empty line. Nothing is kept by a browser or read as anything but what it is.
    pub(super) fn head(&self) -> Vec<u8> {
        let (status, reason) = (self.status, reason(self.status));
        let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Body::Bytes(bytes) = &self.body {
            head.push_str(&format!("Content-Length: {}\r\n", bytes.len()));
        }
        head.push_str(
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Connection: close\r\n\r\n",
        );
        head.into_bytes()
    }

    /// Head and body; an error for a body that is a stream.
    pub(super) fn head_and_bytes(&self) -> io::Result<Vec<u8>> {
        let Body::Bytes(body) = &self.body else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut bytes = self.head();
        bytes.extend_from_slice(body);
        Ok(bytes)
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

//! Opens a [`Client`]: the order of servers, the deadlines, and the meaning of a failure.
//!
//! The `nats` crate waits without limit for a connection and for the server's first line. So each
//! attempt runs on a helper thread and begins with our own connection, which has time limits and
//! only reads that first line. A listener that stays silent therefore leaves no hanging thread
//! behind.
#![allow(deprecated)]

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::StreamError;
use super::client::{Client, ClientOptions};
use super::credentials::{self, unreadable};
use super::link::Link;
use crate::address::server::Address;
use crate::thread::spawn_detached;

const DEFAULT_PORT: u16 = 4222;

/// Advice about a server that sends nothing before TLS is established: the `nats` crate reads the
/// first line before it starts TLS.
const TLS_FIRST: &str = "the server wants TLS before its first line (handshake_first: true): set \
     that to auto, or to a time such as \"300ms\", in the tls section of the server's \
     configuration; or no nats-server listens there";

/// The part of a server's first line (INFO) that matters here.
#[derive(Debug, Clone, serde::Deserialize)]
pub(super) struct Greeting {
    pub(super) max_payload: usize,
    #[serde(default)]
    pub(super) tls_required: bool,
}

pub(super) fn connect(options: &ClientOptions, timeout: Duration) -> Result<Client, StreamError> {
    let addresses = options.urls.iter().map(|url| url.parse::<Address>());
    let addresses = addresses
        .collect::<Result<Vec<_>, _>>()
        .map_err(StreamError::Fatal)?;
    if addresses.is_empty() {
        return Err(StreamError::Fatal(
            "connect to nats: no server address is configured".into(),
        ));
    }
    check_files(options)?;
    // A random start distributes many nodes over the servers.
    let start = RandomState::new().hash_one(0) as usize % addresses.len();
    let share = timeout / addresses.len() as u32;
    let (mut causes, mut fatal, mut denied) = (Vec::new(), true, false);
    for address in addresses[start..].iter().chain(&addresses[..start]) {
        match attempt(options, address, share) {
            Ok(client) => return Ok(client),
            Err(error) => {
                fatal &= matches!(error, StreamError::Fatal(_) | StreamError::Denied(_));
                denied |= matches!(error, StreamError::Denied(_));
                causes.push(error.to_string());
            }
        }
    }
    let cause = causes.join("; ");
    Err(match (fatal, denied) {
        (true, true) => StreamError::Denied(cause),
        (true, false) => StreamError::Fatal(cause),
        (false, _) => StreamError::Disconnected(cause),
    })
}

/// Tries one server, within `timeout`. A helper thread that is late finds no receiver and drops its
/// connection.
fn attempt(
    options: &ClientOptions,
    address: &Address,
    timeout: Duration,
) -> Result<Client, StreamError> {
    let (result, opened) = bounded(1);
    let (theirs, at) = (options.clone(), address.clone());
    let open = move || drop(result.send(open(&theirs, &at, timeout)));
    spawn_detached("nats-connect", open)
        .map_err(|error| StreamError::Disconnected(format!("connect to {address}: {error}")))?;
    opened.recv_timeout(timeout).unwrap_or_else(|e| {
        let text = match e {
            RecvTimeoutError::Timeout => format!("no answer within {} ms", timeout.as_millis()),
            // The `nats` crate panics if the system gives it no thread.
            RecvTimeoutError::Disconnected => "the attempt failed: perhaps a limit of memory or \
                                               of threads is too low"
                .to_owned(),
        };
        Err(StreamError::Disconnected(format!(
            "connect to {address}: {text}"
        )))
    })
}

fn open(
    options: &ClientOptions,
    address: &Address,
    timeout: Duration,
) -> Result<Client, StreamError> {
    let mut greeting =
        knock(address, timeout).map_err(|error| failure(options, address, &error))?;
    let tls = address.scheme == "tls" || options.ca_file.is_some() || options.cert_file.is_some();
    greeting.tls_required |= tls;

    let link = Link::new(address);
    let (ended, closed, complained) = (link.clone(), link.clone(), link.clone());
    let mut settings = credentials::present(options, address)?
        .with_name(&options.name)
        // The crate needs at least one reconnect to make the first connection. That reconnect never
        // happens, because the link ends first.
        .max_reconnects(Some(1))
        .reconnect_buffer_size(0)
        .reconnect_delay_callback(|_| Duration::ZERO)
        .tls_required(greeting.tls_required)
        .disconnect_callback(move || ended.end())
        .close_callback(move || closed.end())
        .error_callback(move |error| complained.complain(&error));
    if let Some(ca) = &options.ca_file {
        settings = settings.add_root_certificate(ca);
    } else if !greeting.tls_required && Path::new("/dev/null").exists() {
        // Without this, the crate reads and keeps all of the system's certificate authorities, even
        // for a connection without TLS: about 140 certificates to parse and half a megabyte each
        // time.
        settings = settings.add_root_certificate("/dev/null");
    }
    if let (Some(cert), Some(key)) = (&options.cert_file, &options.key_file) {
        settings = settings.client_cert(cert, key);
    }
    // Without credentials, which the crate would use undecoded.
    let scheme = if greeting.tls_required { "tls" } else { "nats" };
    let connection = settings
        .connect(format!("{scheme}://{}", address.host_port(DEFAULT_PORT)))
        .map_err(|error| match failure(options, address, &error) {
            // The server has begun to require TLS since `knock`: the next attempt will see that.
            StreamError::Denied(text) if !greeting.tls_required && text.contains("certificate") => {
                StreamError::Disconnected(text)
            }
            other => other,
        })?;
    Client::open(link, connection, greeting, options)
}

/// Reads the server's first line on a separate connection.
fn knock(address: &Address, timeout: Duration) -> io::Result<Greeting> {
    let mut last = io::Error::other("the name has no address");
    let port = address.port.unwrap_or(DEFAULT_PORT);
    for place in (address.host.as_str(), port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&place, timeout) {
            Ok(socket) => return greeting(&socket, place, timeout),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn greeting(socket: &TcpStream, place: SocketAddr, timeout: Duration) -> io::Result<Greeting> {
    let moment = timeout / 4;
    let mut reader = BufReader::new(socket.take(64 * 1024));
    let mut line = String::new();
    socket.set_read_timeout(Some(moment))?;
    let mut read = reader.read_line(&mut line);
    // A server that waits for TLS is as silent as a slow one. Only a slow one is worth waiting for.
    if line.is_empty() && speaks_tls_first(place, moment) {
        return Err(io::Error::other(TLS_FIRST));
    }
    if read.is_err() {
        socket.set_read_timeout(Some(timeout - moment))?;
        read = reader.read_line(&mut line);
    }
    read.map_err(|_| io::Error::other("it takes connections, but does not greet"))?;
    let info = line.strip_prefix("INFO ").ok_or_else(|| {
        io::Error::other("the program that listens there does not greet like a NATS server")
    })?;
    Ok(serde_json::from_str(info)?)
}

/// Whether the server answers a TLS handshake before any other data. The handshake stops at its
/// first answer.
fn speaks_tls_first(place: SocketAddr, timeout: Duration) -> bool {
    use nats::rustls::{ClientConfig, ClientConnection, RootCertStore};
    const HANDSHAKE: u8 = 22;
    let config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let ask = || {
        let mut session = ClientConnection::new(config.into(), place.ip().into()).ok()?;
        let mut socket = TcpStream::connect_timeout(&place, timeout).ok()?;
        socket.set_read_timeout(Some(timeout)).ok()?;
        session.write_tls(&mut socket).ok()?;
        let mut first = [0];
        socket.read_exact(&mut first).ok()?;
        Some(first[0])
    };
    ask() == Some(HANDSHAKE)
}

/// Opens each file once, because the crate's errors do not name the file.
fn check_files(options: &ClientOptions) -> Result<(), StreamError> {
    let files = [
        &options.seed_file,
        &options.ca_file,
        &options.cert_file,
        &options.key_file,
    ];
    for file in files.into_iter().flatten() {
        fs::File::open(file).map_err(|error| unreadable(file, &error))?;
    }
    if options.cert_file.is_some() != options.key_file.is_some() {
        let text = "client certificate: cert_file and key_file are needed together";
        return Err(StreamError::Fatal(text.into()));
    }
    Ok(())
}

/// Classifies a failed attempt: whether another one may succeed without a person's help.
fn failure(options: &ClientOptions, address: &Address, error: &io::Error) -> StreamError {
    let cause = error.to_string();
    // A device without a clock sees every certificate as not yet valid until it knows the time. An
    // expired certificate is renewed at the server. Neither needs a change on this node.
    let passes = cause.contains("NotValidYet") || cause.contains("Expired");
    let advice = match passes {
        true => "; is this machine's clock right?",
        false => "",
    };
    let text = format!("connect to {address}: {cause}{advice}");
    if cause.contains("Authorization Violation") {
        return StreamError::Denied(format!(
            "connect to {address}: the server refuses the login (Authorization Violation): {}",
            credentials::advice(options, address)
        ));
    }
    let refused = [
        "invalid peer certificate",
        "fatal alert",
        "could not load",
        "could not add",
    ]
    .iter()
    .any(|sign| cause.contains(sign));
    if refused && !passes {
        StreamError::Denied(text)
    } else {
        StreamError::Disconnected(text)
    }
}

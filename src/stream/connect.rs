//! Opening a [`Client`]: whom to try, what to present, how long to wait, what a failure means.
//!
//! The `nats` crate waits without limit for a connection and for the server's first line. So each
//! attempt runs on a helper thread, and begins with a connection of our own that has time limits
//! and only reads that first line: a silent listener costs no thread that hangs for ever.
#![allow(deprecated)]

use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use crossbeam_channel::bounded;

use super::StreamError;
use super::address::Address;
use super::client::{Client, ClientOptions};
use super::link::Link;

const DEFAULT_PORT: u16 = 4222;

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
    // A random start spreads many nodes over the servers.
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

/// One server, within `timeout`. A helper that is late finds nobody and drops what it opened.
fn attempt(
    options: &ClientOptions,
    address: &Address,
    timeout: Duration,
) -> Result<Client, StreamError> {
    let (result, opened) = bounded(1);
    let (theirs, at) = (options.clone(), address.clone());
    thread::Builder::new()
        .name("nats-connect".into())
        .spawn(move || {
            let _ = result.send(open(&theirs, &at, timeout));
        })
        .map_err(|error| StreamError::Disconnected(format!("connect to {address}: {error}")))?;
    opened.recv_timeout(timeout).unwrap_or_else(|_| {
        let text = format!(
            "connect to {address}: no answer within {} ms",
            timeout.as_millis()
        );
        Err(StreamError::Disconnected(text))
    })
}

fn open(
    options: &ClientOptions,
    address: &Address,
    timeout: Duration,
) -> Result<Client, StreamError> {
    let mut greeting = knock(address, timeout).map_err(|error| failure(address, &error))?;
    let tls = address.scheme == "tls" || options.ca_file.is_some() || options.cert_file.is_some();
    greeting.tls_required |= tls;

    let link = Link::new(address);
    let (ended, closed, complained) = (link.clone(), link.clone(), link.clone());
    let mut settings = credentials(options, address)?
        .with_name(&options.name)
        // One attempt to reconnect is the least that lets the first connection through; it comes to
        // nothing, because the link ends first.
        .max_reconnects(Some(1))
        .reconnect_buffer_size(0)
        .reconnect_delay_callback(|_| Duration::ZERO)
        .tls_required(greeting.tls_required)
        .disconnect_callback(move || ended.end())
        .close_callback(move || closed.end())
        .error_callback(move |error| complained.complain(&error));
    if let Some(ca) = &options.ca_file {
        settings = settings.add_root_certificate(ca);
    } else if !greeting.tls_required {
        // With none given, the crate reads and keeps all the machine's authorities, also for a
        // connection that needs none: some 140 certificates parsed, half a megabyte each time.
        settings = settings.add_root_certificate("/dev/null");
    }
    if let (Some(cert), Some(key)) = (&options.cert_file, &options.key_file) {
        settings = settings.client_cert(cert, key);
    }
    // Without the user part, which the crate would take undecoded.
    let scheme = if greeting.tls_required { "tls" } else { "nats" };
    let connection = settings
        .connect(format!("{scheme}://{}", address.host_port(DEFAULT_PORT)))
        .map_err(|error| match failure(address, &error) {
            // It has begun to demand TLS since we knocked: the next try will know.
            StreamError::Denied(text) if !greeting.tls_required && text.contains("certificate") => {
                StreamError::Disconnected(text)
            }
            other => other,
        })?;
    Client::open(link, connection, greeting)
}

/// Reads the server's first line on a connection of its own.
fn knock(address: &Address, timeout: Duration) -> io::Result<Greeting> {
    let mut last = io::Error::other("the name has no address");
    let port = address.port.unwrap_or(DEFAULT_PORT);
    for place in (address.host.as_str(), port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&place, timeout) {
            Ok(socket) => {
                socket.set_read_timeout(Some(timeout))?;
                let mut line = String::new();
                BufReader::new(socket.take(64 * 1024))
                    .read_line(&mut line)
                    .map_err(|_| io::Error::other("it takes connections, but does not greet"))?;
                let info = line.strip_prefix("INFO ").ok_or_else(|| {
                    io::Error::other("what listens there does not greet like a nats server")
                })?;
                return Ok(serde_json::from_str(info)?);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Who we are: the URL's user part, else the configured user, else the nkey, else nobody.
fn credentials(options: &ClientOptions, address: &Address) -> Result<nats::Options, StreamError> {
    let settings = match (&address.user, &address.password, &options.user) {
        (Some(user), Some(password), _) => nats::Options::with_user_pass(user, password),
        (Some(token), None, _) => nats::Options::with_token(token),
        (None, _, Some((user, password))) => nats::Options::with_user_pass(user, password),
        _ => match &options.seed_file {
            Some(file) => nkey(file)?,
            None => nats::Options::new(),
        },
    };
    Ok(settings)
}

fn nkey(file: &Path) -> Result<nats::Options, StreamError> {
    let text = fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    // A plain seed stands alone on a line; a decorated one between lines of dashes.
    let seed = text
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("SU"));
    let key = seed
        .and_then(|seed| nkeys::KeyPair::from_seed(seed).ok())
        .ok_or_else(|| {
            StreamError::Denied(format!(
                "seed file {}: holds no nkey seed of a user",
                file.display()
            ))
        })?;
    let public = key.public_key();
    // Signing with a key that has its seed cannot fail; an empty signature would be refused.
    let sign = move |nonce: &[u8]| key.sign(nonce).unwrap_or_default();
    Ok(nats::Options::with_nkey(&public, sign))
}

/// The crate's own error would not say which file it could not read.
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

fn unreadable(file: &Path, error: &io::Error) -> StreamError {
    StreamError::Denied(format!("read {}: {error}", file.display()))
}

/// Sorts a failed attempt: is it worth another without a person's help?
fn failure(address: &Address, error: &io::Error) -> StreamError {
    let cause = error.to_string();
    let text = format!("connect to {address}: {cause}");
    if cause.contains("Authorization Violation") {
        return StreamError::Denied(format!(
            "connect to {address}: the server refuses the login (Authorization Violation): see \
             nats.user_name and user_password, nats.seed_file, or the user in nats.urls"
        ));
    }
    // A box without a clock sees every certificate as not yet valid until it knows the time, and an
    // expired one is renewed at the server: both pass without us.
    let passes = cause.contains("NotValidYet") || cause.contains("Expired");
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

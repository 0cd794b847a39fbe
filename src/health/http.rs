//! Health over HTTP: `GET /health` on `prometheus.bind`, and a path of choice on
//! `health_check.bind`: 200 if all is well and 503 if not.
//!
//! One request per connection, one connection at a time, both with a deadline: a server library
//! would bring threads that wake on an idle node.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Weak;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::report;
use crate::address::configured::ListenAddress;
use crate::config::Config;
use crate::gate::Gate;
use crate::thread::{Exited, spawn};

/// Who has not asked by then, or does not take the answer, is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request's head is no longer.
const MOST_BYTES: usize = 8 << 10;

/// Where health is served, and how much is told.
pub struct Page {
    listener: TcpListener,
    path: String,
    detailed: bool,
}

/// Takes the addresses of all pages that are configured.
pub fn listen(config: &Config) -> Result<Vec<Page>, String> {
    let (prometheus, check) = (&config.prometheus, &config.health_check);
    let mut pages = Vec::new();
    if prometheus.enable {
        let listener = bind("prometheus.bind", &prometheus.bind)?;
        pages.push(Page {
            listener,
            path: "/health".to_owned(),
            detailed: true,
        });
    }
    if check.enable {
        let listener = bind("health_check.bind", &check.bind)?;
        pages.push(Page {
            listener,
            path: check.path.clone(),
            detailed: check.detailed,
        });
    }
    Ok(pages)
}

fn bind(key: &str, bind: &ListenAddress) -> Result<TcpListener, String> {
    let port = bind.port.unwrap_or(0);
    TcpListener::bind((bind.host.as_str(), port))
        .map_err(|e| format!("{key}: listen on {bind}: {e}"))
}

/// Answers until the process ends; `gate` may go before.
pub fn serve(page: Page, gate: Weak<Gate>, exits: &Sender<Exited>) {
    if let Ok(address) = page.listener.local_addr() {
        log::info!("health at http://{address}{}", page.path);
    }
    spawn("http", exits, move || {
        loop {
            match page.listener.accept() {
                Ok((connection, _)) => {
                    if let Err(e) = answer(&connection, &page, &gate) {
                        log::debug!("http: {e}");
                    }
                }
                // Of one connection, or no file descriptor is free: those come back.
                Err(e) => {
                    log::debug!("http: accept: {e}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    });
}

fn answer(connection: &TcpStream, page: &Page, gate: &Weak<Gate>) -> io::Result<()> {
    connection.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(connection)?;
    let line = head.lines().next().unwrap_or_default();
    let (status, mut body) = match line.split(' ').collect::<Vec<_>>()[..] {
        ["GET" | "HEAD", path, _] if path.split('?').next() == Some(&page.path) => health(gate),
        ["GET" | "HEAD", _, _] => ("404 Not Found", format!("there is {} here\n", page.path)),
        _ => ("400 Bad Request", format!("GET {}\n", page.path)),
    };
    if !page.detailed {
        body.clear();
    }
    let kind = match body.starts_with('{') {
        true => "application/json",
        false => "text/plain",
    };
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if !line.starts_with("HEAD ") {
        text.push_str(&body);
    }
    let mut out = connection;
    out.write_all(text.as_bytes())
}

/// Up to the empty line.
fn read_head(mut connection: &TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > MOST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        connection.set_read_timeout(Some(left))?;
        match connection.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => head.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn health(gate: &Weak<Gate>) -> (&'static str, String) {
    let unavailable = "503 Service Unavailable";
    let Some(gate) = gate.upgrade() else {
        return (unavailable, "stopping\n".to_owned());
    };
    let inside = gate.enter_within(PATIENCE);
    match report(&gate.health, inside.as_ref().map(|i| &i.database)) {
        Ok(report) => {
            let is_well = report["status"] == "ok";
            let status = if is_well { "200 OK" } else { unavailable };
            (status, format!("{report}\n"))
        }
        Err(e) => (unavailable, format!("database: {e}\n")),
    }
}

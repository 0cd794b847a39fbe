//! Passes connections on to a server, and counts their bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
    connections: AtomicU64,
}

pub struct Proxy {
    /// The address on which it listens, HOST:PORT.
    pub address: String,
    counts: Arc<Counts>,
}

impl Proxy {
    /// Starts a proxy before the server at this HOST:PORT.
    pub fn start(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let counts = Arc::new(Counts::default());
        let (server, counted) = (server.to_owned(), counts.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                counted.connections.fetch_add(1, Ordering::Relaxed);
                if let Ok(server) = TcpStream::connect(&server) {
                    pass(&client, &server, &counted, |counts| &counts.sent);
                    pass(&server, &client, &counted, |counts| &counts.received);
                }
            }
        });
        Proxy { address, counts }
    }

    /// Bytes that clients have sent and received.
    pub fn bytes(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.counts.sent), of(&self.counts.received))
    }

    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }
}

fn pass(from: &TcpStream, to: &TcpStream, counts: &Arc<Counts>, of: fn(&Counts) -> &AtomicU64) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let counts = counts.clone();
    let _ = to.set_nodelay(true);
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            of(&counts).fetch_add(count as u64, Ordering::Relaxed);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}

//! A TCP connection that the test cuts or silences at a chosen byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

#[derive(Default)]
struct State {
    /// Bytes that may still pass, in both directions together.
    left: AtomicU64,
    /// True: nothing arrives after that, and connections stay open. False: both ends see the
    /// connection end.
    silent: AtomicBool,
}

pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// A proxy to `port` of this machine, without limit.
    pub fn new(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let state = Arc::new(State::default());
        state.left.store(u64::MAX, Ordering::Relaxed);
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            state: Arc::clone(&state),
        };
        // The thread ends with the process; later connections are harmless.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if state.left.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let state = Arc::clone(&state);
                    thread::spawn(move || pass(from, to, &state));
                }
            }
        });
        proxy
    }

    /// Ends all connections after so many more bytes, and new ones as well.
    pub fn cut_after(&self, bytes: u64) {
        self.state.silent.store(false, Ordering::Relaxed);
        self.state.left.store(bytes, Ordering::Relaxed);
    }

    /// Passes nothing on after so many more bytes, and tells neither end.
    pub fn fall_silent_after(&self, bytes: u64) {
        self.state.silent.store(true, Ordering::Relaxed);
        self.state.left.store(bytes, Ordering::Relaxed);
    }

    pub fn heal(&self) {
        self.state.left.store(u64::MAX, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let spent = |left: u64| match left {
            u64::MAX => Some(left),
            left => Some(left.saturating_sub(read as u64)),
        };
        let before = state
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent)
            .unwrap();
        if before <= read as u64 {
            if state.silent.load(Ordering::Relaxed) {
                // The proxy does not even read: buffers fill up, as with a machine that hangs.
                loop {
                    thread::park();
                }
            }
            break;
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

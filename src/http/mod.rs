//! A small HTTP server and client: one request a connection, over TCP and Unix sockets.
//!
//! One thread accepts at all doors and sleeps in `poll`. Each connection gets a thread of its own
//! while it lasts, so that a slow client delays no other. There are at most [`MOST`] connections at
//! a time, and every read and write has a deadline. This module does not know the contents of
//! requests: each [`Door`] brings its [`Handler`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, poll};

use crate::thread::{Exited, spawn, spawn_brief};

pub mod client;
mod connection;
mod listen;
mod message;

pub use listen::{Listener, SocketFile, listen_tcp, listen_unix};
pub use message::{Method, Request, Response};

use connection::converse;

/// Most connections at a time.
const MOST: usize = 16;

/// Most of them that come by TCP, so that strangers cannot shut out the commands of this machine.
const MOST_TCP: usize = 12;

/// Wait after a listener failed, as when no file descriptor is free.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Answers one request.
pub type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// A listener and the handler that answers its requests.
pub struct Door {
    listener: Listener,
    handler: Handler,
}

impl Door {
    /// A door that is not open until [`serve`] gets it.
    pub fn new(listener: Listener, handler: Handler) -> Door {
        Door { listener, handler }
    }
}

/// Answers at all `doors` until the process ends. Without any, it starts no thread.
pub fn serve(doors: Vec<Door>, exits: &Sender<Exited>) {
    if doors.is_empty() {
        return;
    }
    let told = exits.clone();
    spawn("http", exits, move || {
        let places = Arc::new(Slots::default());
        loop {
            for at in ready(&doors) {
                let_in(&doors[at], &places, &told);
            }
        }
    });
}

/// Waits for connections, and returns the indexes of the doors that have some.
fn ready(doors: &[Door]) -> Vec<usize> {
    let files: Vec<BorrowedFd<'_>> = doors.iter().map(|d| d.listener.as_fd()).collect();
    let mut files: Vec<_> = files
        .iter()
        .map(|file| PollFd::from_borrowed_fd(*file, PollFlags::IN))
        .collect();
    if poll(&mut files, None).is_err() {
        return Vec::new(); // a signal
    }
    let with_event = |(at, file): (usize, &PollFd<'_>)| (!file.revents().is_empty()).then_some(at);
    files.iter().enumerate().filter_map(with_event).collect()
}

fn let_in(door: &Door, places: &Arc<Slots>, exits: &Sender<Exited>) {
    let connection = match door.listener.accept() {
        Ok(connection) => connection,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return, // it is gone again
        Err(e) => {
            log::debug!("http: accept: {e}");
            std::thread::sleep(ACCEPT_AGAIN);
            return;
        }
    };
    let Some(place) = Slots::take(places, connection.is_local()) else {
        connection.turn_away();
        return;
    };
    let handler = door.handler.clone();
    let begun = spawn_brief("http-answer", exits, move || {
        if let Err(e) = converse(&connection, &handler) {
            log::debug!("http: {e}");
        }
        drop(place);
    });
    if let Err(e) = begun {
        log::debug!("http: no thread for a connection: {e}");
    }
}

/// Numbers of connections at present.
#[derive(Default)]
struct Slots {
    all: AtomicUsize,
    tcp: AtomicUsize,
}

/// Counts one connection until it is dropped.
struct Slot {
    places: Arc<Slots>,
    is_local: bool,
}

impl Slots {
    /// None if there are too many. Only one thread calls it, so the check needs no lock.
    fn take(places: &Arc<Slots>, is_local: bool) -> Option<Slot> {
        let tcp = places.tcp.load(Ordering::Relaxed);
        if places.all.load(Ordering::Relaxed) >= MOST || (!is_local && tcp >= MOST_TCP) {
            return None;
        }
        places.all.fetch_add(1, Ordering::Relaxed);
        places
            .tcp
            .fetch_add(usize::from(!is_local), Ordering::Relaxed);
        let places = places.clone();
        Some(Slot { places, is_local })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.places.all.fetch_sub(1, Ordering::Relaxed);
        let tcp = usize::from(!self.is_local);
        self.places.tcp.fetch_sub(tcp, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

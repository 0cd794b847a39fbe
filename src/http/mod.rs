//! A small HTTP server and client: one request a connection, over TCP and Unix sockets.
//!
//! The thread of [`crate::poller`] accepts at all doors. Each connection gets a thread of its own
//! while it lasts, so that a slow client delays no other. There are at most 16 connections at a
//! time, and every read and write has a deadline. Where places are short, the TCP connection that
//! has been silent for longest gives way to a new one. This module does not know the contents of
//! requests: each [`Door`] brings its [`Handler`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::poller::{Poller, Source};
use crate::thread::{Exited, spawn_brief};

pub mod client;
mod connection;
mod listen;
mod message;
mod places;

pub use listen::{Listener, SocketFile, listen_tcp, listen_unix};
pub use message::{Method, Request, Response};

use connection::converse;
use places::Connections;

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

/// Answers at all `doors` until the process ends.
pub fn serve(doors: Vec<Door>, poller: &Poller, exits: &Sender<Exited>) {
    if !doors.is_empty() {
        poller.add(Box::new(OpenDoors {
            doors,
            places: Arc::default(),
            exits: exits.clone(),
            rests_until: None,
        }));
    }
}

/// The doors, and the connections that came by them.
struct OpenDoors {
    doors: Vec<Door>,
    places: Arc<Connections>,
    exits: Sender<Exited>,
    /// After a failure, no connection is accepted before this time.
    rests_until: Option<Instant>,
}

impl Source for OpenDoors {
    fn files(&self) -> Vec<BorrowedFd<'_>> {
        match self.rests_until {
            Some(_) => Vec::new(),
            None => self.doors.iter().map(|d| d.listener.as_fd()).collect(),
        }
    }

    fn within(&self) -> Option<Duration> {
        Some(self.rests_until?.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self) -> Result<bool, String> {
        let let_in = |door| let_in(door, &self.places, &self.exits);
        let failures = self.doors.iter().filter(|door| let_in(door).is_err());
        self.rests_until = (failures.count() > 0).then(|| Instant::now() + ACCEPT_AGAIN);
        Ok(true)
    }
}

/// Accepts one connection, if there is one.
fn let_in(door: &Door, places: &Arc<Connections>, exits: &Sender<Exited>) -> io::Result<()> {
    let connection = match door.listener.accept() {
        Ok(connection) => Arc::new(connection),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        Err(e) => {
            log::debug!("http: accept: {e}");
            return Err(e);
        }
    };
    let Some(place) = Connections::take(places, &connection) else {
        connection.turn_away();
        return Ok(());
    };
    let handler = door.handler.clone();
    let begun = spawn_brief("http-answer", exits, move || {
        if let Err(e) = converse(&connection, &handler) {
            log::debug!("http: {e}");
        }
        drop(place);
        Ok(())
    });
    if let Err(e) = begun {
        log::debug!("http: {e}");
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! One thread waits for everything that arrives at a file descriptor: signals, connections to our
//! doors, changes of the network, events of inotify. Each of these would need a thread otherwise,
//! and is handled within microseconds; longer work gets a brief thread of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::thread::{Exited, spawn};

/// Wait after a failure of `poll` itself, as when memory is short.
const POLL_AGAIN: Duration = Duration::from_millis(100);

/// Files to wait for, and the action on their events.
pub trait Source: Send {
    /// The files to wait for.
    fn files(&self) -> Vec<BorrowedFd<'_>>;
    /// Longest wait from now; none: until an event.
    fn within(&self) -> Option<Duration> {
        None
    }
    /// Called after an event, and when the wait is over. Must not block. Returns false when the
    /// source has ended. An error ends the process.
    fn handle(&mut self) -> Result<bool, String>;
}

/// Hands sources to the thread, which lives as long as the process.
#[derive(Clone)]
pub struct Poller {
    added: Sender<Box<dyn Source>>,
    wake: Arc<OwnedFd>,
}

impl Poller {
    /// Starts the thread. Fails if no file descriptor is free.
    pub fn start(exits: &Sender<Exited>) -> io::Result<Poller> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (added, sources) = unbounded();
        let woken = wake.clone();
        spawn("events", exits, move || run(&sources, &woken));
        Ok(Poller { added, wake })
    }

    /// Waits for one more source.
    pub fn add(&self, source: Box<dyn Source>) {
        let _ = self.added.send(source);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

fn run(added: &Receiver<Box<dyn Source>>, wake: &OwnedFd) -> Result<(), String> {
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    loop {
        let _ = rustix::io::read(wake, &mut [0; 8]);
        sources.extend(added.try_iter());
        for at in ready(&sources, wake).into_iter().rev() {
            if !sources[at].handle()? {
                sources.remove(at);
            }
        }
    }
}

/// Waits until there is something to handle, and returns the indexes of the sources.
fn ready(sources: &[Box<dyn Source>], wake: &OwnedFd) -> Vec<usize> {
    let mut files = vec![PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
    let mut owners = Vec::new();
    for (at, source) in sources.iter().enumerate() {
        for file in source.files() {
            files.push(PollFd::from_borrowed_fd(file, PollFlags::IN));
            owners.push(at);
        }
    }
    let within = sources.iter().filter_map(|source| source.within()).min();
    let within = within.and_then(|wait| Timespec::try_from(wait).ok());
    match poll(&mut files, within.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => {
            log::debug!("poll: {e}");
            std::thread::sleep(POLL_AGAIN);
        }
    }
    let events = files[1..].iter().map(|file| !file.revents().is_empty());
    let with_event: Vec<bool> = events.collect();
    let has_event = |at| {
        with_event
            .iter()
            .zip(&owners)
            .any(|(is, of)| *is && *of == at)
    };
    let is_due = |source: &dyn Source| source.within().is_some_and(|wait| wait.is_zero());
    let all = sources.iter().enumerate();
    all.filter(|(at, source)| has_event(*at) || is_due(&***source))
        .map(|(at, _)| at)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    struct Echo {
        socket: UnixStream,
        heard: Sender<u8>,
        due: Option<Instant>,
    }

    impl Source for Echo {
        fn files(&self) -> Vec<BorrowedFd<'_>> {
            vec![self.socket.as_fd()]
        }

        fn within(&self) -> Option<Duration> {
            Some(self.due?.saturating_duration_since(Instant::now()))
        }

        fn handle(&mut self) -> Result<bool, String> {
            let mut byte = [0];
            if self.due.take_if(|due| *due <= Instant::now()).is_some() {
                let _ = self.heard.send(b'!');
            }
            match self.socket.read(&mut byte) {
                Ok(0) => Ok(false),
                Ok(_) => Ok(self.heard.send(byte[0]).is_ok()),
                Err(_) => Ok(true),
            }
        }
    }

    #[test]
    fn each_source_is_handled_until_it_ends_and_when_its_time_is_over() {
        const SOON: Duration = Duration::from_secs(10);
        let poller = Poller::start(&unbounded().0).unwrap();
        let add = |due: Option<Duration>| {
            let (ours, socket) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            let ((heard, hears), due) = (unbounded(), due.map(|wait| Instant::now() + wait));
            poller.add(Box::new(Echo { socket, heard, due }));
            (ours, hears)
        };
        let ((mut a, hears_a), (mut b, hears_b)) = (add(None), add(Some(Duration::from_millis(5))));
        assert_eq!(hears_b.recv_timeout(SOON), Ok(b'!'));
        a.write_all(b"a").unwrap();
        b.write_all(b"b").unwrap();
        assert_eq!(hears_a.recv_timeout(SOON), Ok(b'a'));
        assert_eq!(hears_b.recv_timeout(SOON), Ok(b'b'));
        drop(a);
        assert!(
            hears_a
                .recv_timeout(SOON)
                .is_err_and(|e| e.is_disconnected())
        );
        b.write_all(b"c").unwrap();
        assert_eq!(hears_b.recv_timeout(SOON), Ok(b'c'));
    }
}

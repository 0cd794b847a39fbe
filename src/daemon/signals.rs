//! Signals as messages. No signal that a terminal, logrotate or an operator sends ends the daemon
//! unasked: SIGHUP rereads what can be ([`super::reread`]) and tries a broker that is away, and
//! SIGUSR2, SIGALRM and SIGIO mean nothing here. News of the network arrive at the same place.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGIO, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::network::Network;
use super::reread::Reread;
use crate::poller::{Poller, Source};
use crate::snapshot::thread::SnapshotRequest;

const SIGNALS: [i32; 8] = [
    SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGIO,
];

/// The recipients of signals.
pub(super) struct Heard {
    /// The action on SIGHUP.
    pub reread: Reread,
    /// Told of SIGHUP.
    pub network: Network,
    /// Receives a request for a snapshot on SIGUSR1.
    pub ask: Sender<SnapshotRequest>,
    /// True while the database is being opened. No thread reads the messages then, so a signal that
    /// asks for the end also sets `waiting_is_over`.
    pub opening: Arc<AtomicBool>,
    /// Ends the wait for an application's lock at once.
    pub waiting_is_over: Arc<AtomicBool>,
}

/// Handles signals from now on. A message arrives for each of SIGTERM, SIGINT and SIGQUIT. Fails if
/// the handlers cannot be installed.
pub(super) fn listen(heard: Heard, poller: &Poller) -> std::io::Result<Receiver<()>> {
    let (end, receiver) = unbounded();
    let (read, write) = UnixStream::pair()?;
    let signals = SignalDelivery::with_pipe(read, write, SignalOnly, SIGNALS)?;
    poller.add(Box::new(Signals {
        signals,
        heard,
        end,
    }));
    Ok(receiver)
}

struct Signals {
    signals: SignalDelivery<UnixStream, SignalOnly>,
    heard: Heard,
    end: Sender<()>,
}

impl Source for Signals {
    fn files(&self) -> Vec<BorrowedFd<'_>> {
        let signals = self.signals.get_read().as_fd();
        [signals]
            .into_iter()
            .chain(self.heard.network.file())
            .collect()
    }

    fn handle(&mut self) -> Result<bool, String> {
        let signals: Vec<i32> = self.signals.pending().collect();
        for signal in signals {
            self.heard.handle(signal, &self.end);
        }
        self.heard.network.read();
        Ok(true)
    }
}

impl Heard {
    fn handle(&mut self, signal: i32, end: &Sender<()>) {
        match signal {
            SIGHUP => {
                self.reread.again();
                self.network.try_now();
            }
            SIGUSR1 => self.ask_for_snapshot(),
            SIGUSR2 | SIGALRM | SIGIO => log::debug!("signal {signal} has no meaning here"),
            _ => {
                let _ = end.send(());
                if self.opening.load(Ordering::Relaxed) {
                    self.waiting_is_over.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    fn ask_for_snapshot(&self) {
        let (reply, only_if_new) = (bounded(1).0, false); // the log tells
        if self
            .ask
            .send(SnapshotRequest { reply, only_if_new })
            .is_err()
        {
            log::info!("SIGUSR1: no snapshot: snapshot.enabled or replicate is false");
        }
    }
}

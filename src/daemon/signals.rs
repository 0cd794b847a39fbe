//! Signals as messages. No signal that a terminal, logrotate or an operator sends ends the daemon
//! unasked: SIGHUP rereads what can be ([`super::reread`]) and tries a broker that is away, and
//! SIGUSR2 and SIGALRM mean nothing here. SIGIO comes from the kernel when the network of this
//! machine changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGIO, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::network::Network;
use super::reread::Reread;
use crate::snapshot::thread::SnapshotRequest;
use crate::thread::{Exited, spawn};

const SIGNALS: [i32; 8] = [
    SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGIO,
];

/// The recipients of signals.
pub(super) struct Heard {
    /// The action on SIGHUP.
    pub reread: Reread,
    /// Read on SIGIO.
    pub network: Network,
    /// Receives a request for a snapshot on SIGUSR1.
    pub ask: Sender<SnapshotRequest>,
    /// True while the database is being opened. No thread reads the messages then, so a signal that
    /// asks for the end also sets `waiting_is_over`.
    pub opening: Arc<AtomicBool>,
    /// Ends the wait for an application's lock at once.
    pub waiting_is_over: Arc<AtomicBool>,
}

/// Starts the thread that handles signals. A message arrives for each of SIGTERM, SIGINT and
/// SIGQUIT. Fails if the handlers cannot be installed.
pub(super) fn listen(mut heard: Heard, exits: &Sender<Exited>) -> std::io::Result<Receiver<()>> {
    let (sender, receiver) = unbounded();
    let mut signals = Signals::new(SIGNALS)?;
    heard.network.signal();
    spawn("signals", exits, move || {
        signals
            .forever()
            .for_each(|signal| heard.handle(signal, &sender));
        Ok(())
    });
    Ok(receiver)
}

impl Heard {
    fn handle(&mut self, signal: i32, end: &Sender<()>) {
        match signal {
            SIGHUP => {
                self.reread.again();
                self.network.try_now();
            }
            SIGIO => self.network.read(),
            SIGUSR1 => self.ask_for_snapshot(),
            SIGUSR2 | SIGALRM => log::debug!("signal {signal} has no meaning here"),
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

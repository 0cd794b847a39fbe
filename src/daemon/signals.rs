//! Signals as messages. None of those that a terminal, logrotate or a hand sends ends the daemon
//! unasked: SIGHUP opens the log file anew, and SIGUSR2 and SIGALRM mean nothing here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::logging::LogFile;
use crate::snapshot::thread::Ask;
use crate::thread::{Exited, spawn};

const SIGNALS: [i32; 7] = [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM];

/// What signals act upon.
pub(super) struct Heard {
    /// Opened anew on SIGHUP.
    pub log_file: Option<LogFile>,
    /// Where SIGUSR1 asks for a snapshot.
    pub ask: Sender<Ask>,
    /// The database is being opened: nobody reads the messages yet, and a signal that ends the
    /// daemon sets `waiting_is_over` instead.
    pub opening: Arc<AtomicBool>,
    /// The wait for an application's lock ends at once.
    pub waiting_is_over: Arc<AtomicBool>,
}

/// Starts the thread that hears signals. A message comes for each signal that asks for the end:
/// SIGTERM, SIGINT, SIGQUIT.
pub(super) fn listen(heard: Heard, exits: &Sender<Exited>) -> std::io::Result<Receiver<()>> {
    let (sender, receiver) = unbounded();
    let mut signals = Signals::new(SIGNALS)?;
    spawn("signals", exits, move || {
        signals
            .forever()
            .for_each(|signal| heard.handle(signal, &sender));
        Ok(())
    });
    Ok(receiver)
}

impl Heard {
    fn handle(&self, signal: i32, end: &Sender<()>) {
        match signal {
            SIGHUP => self.follow_log_file(),
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

    fn follow_log_file(&self) {
        match self.log_file.as_ref().map(LogFile::follow) {
            Some(Ok(true)) => log::info!("SIGHUP: logging.file is opened anew"),
            Some(Err(e)) => log::warn!("SIGHUP: logging.file cannot be opened anew: {e}"),
            Some(Ok(false)) | None => log::debug!("SIGHUP: there is nothing to open anew"),
        }
    }

    fn ask_for_snapshot(&self) {
        let (reply, only_if_new) = (bounded(1).0, false); // the log tells
        if self.ask.send(Ask { reply, only_if_new }).is_err() {
            log::info!("SIGUSR1: no snapshot: snapshot.enabled or replicate is false");
        }
    }
}

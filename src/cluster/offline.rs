//! Whether this node is offline on purpose: a person paused it, or `sync_window` is closed.
//!
//! It then captures, and neither connects nor counts as failing. A pause outlasts a restart: an
//! empty file beside the database stands for it.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::dialer::Dialer;
use crate::shared::Shared;

const PAUSED: &str = "paused, until harmonylite resume";

/// See the module's head.
pub struct Offline {
    dialer: Arc<Dialer>,
    /// Exists while the node is paused.
    mark: PathBuf,
    state: Mutex<OfflineState>,
    shared: OnceLock<Weak<Shared>>,
}

#[derive(Default)]
struct OfflineState {
    is_paused: bool,
    /// Why the window is closed.
    window: Option<String>,
}

impl OfflineState {
    fn reason(&self) -> Option<String> {
        let paused = self.is_paused.then(|| PAUSED.to_owned());
        paused.or_else(|| self.window.clone())
    }
}

impl Offline {
    /// The state of the last run: paused if the file `mark` exists.
    pub fn new(dialer: Arc<Dialer>, mark: PathBuf) -> Offline {
        let is_paused = mark.exists();
        let offline = Offline {
            dialer,
            mark,
            state: Mutex::new(OfflineState {
                is_paused,
                window: None,
            }),
            shared: OnceLock::new(),
        };
        offline.apply(&offline.state());
        offline
    }

    /// Notes the state that threads share, for its health. Only the first call counts.
    pub fn opened(&self, shared: Weak<Shared>) {
        let _ = self.shared.set(shared);
        self.apply(&self.state());
    }

    /// Pauses the node or ends its pause. Fails if the file for it cannot be written or removed.
    pub fn set_paused(&self, is_paused: bool) -> io::Result<()> {
        let mut state = self.state();
        match is_paused {
            true => match File::create_new(&self.mark).and_then(|file| file.sync_all()) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            },
            false => match fs::remove_file(&self.mark) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            },
        }
        state.is_paused = is_paused;
        self.apply(&state);
        Ok(())
    }

    /// Notes why the window is closed; `None` if it is open.
    pub fn set_window(&self, closed: Option<String>) {
        let mut state = self.state();
        if state.window != closed {
            state.window = closed;
            self.apply(&state);
        }
    }

    fn apply(&self, state: &OfflineState) {
        let reason = state.reason();
        if let Some(shared) = self.shared.get().and_then(Weak::upgrade) {
            // Before connections end, so that no thread reports their end as a failure.
            shared.health.set_offline(reason.clone());
            shared.status.note_change();
        }
        if self.dialer.shut(reason.clone()) {
            match reason {
                Some(why) => log::info!("offline on purpose: {why}"),
                None => log::info!("online again"),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, OfflineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

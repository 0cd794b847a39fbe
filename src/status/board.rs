//! Where threads that answer somebody meet the thread that speaks with the broker.

use std::sync::OnceLock;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::peers::Peers;

/// Who asks is answered within this time, with or without the broker.
const PATIENCE: Duration = Duration::from_secs(4);

/// What does not change while the process runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// `node_name`.
    pub name: String,
    /// The streams that are read, by shard.
    pub streams: Vec<String>,
}

/// A question to the thread.
#[derive(Debug)]
pub enum Ask {
    /// What is known of the other nodes.
    Peers(Sender<Result<Peers, String>>),
    /// Forget a node that is gone.
    Forget(u64, Sender<Result<(), String>>),
}

/// See the module's head.
#[derive(Debug)]
pub struct Board {
    about: OnceLock<About>,
    asks: OnceLock<Sender<Ask>>,
    changed: (Sender<()>, Receiver<()>),
}

impl Default for Board {
    fn default() -> Self {
        Board {
            about: OnceLock::new(),
            asks: OnceLock::new(),
            changed: bounded(1),
        }
    }
}

impl Board {
    /// What this node says of itself. Once.
    pub fn introduce(&self, about: About) {
        let _ = self.about.set(about);
    }

    /// A thread answers from now on. Once.
    pub(super) fn open(&self, asks: Sender<Ask>) {
        let _ = self.asks.set(asks);
    }

    pub fn about(&self) -> About {
        self.about.get().cloned().unwrap_or_default()
    }

    /// Something that the node tells of itself may have changed.
    pub fn note_change(&self) {
        let _ = self.changed.0.try_send(());
    }

    pub(super) fn changes(&self) -> Receiver<()> {
        self.changed.1.clone()
    }

    /// What the broker knows of the other nodes; an error: why that cannot be told.
    pub fn peers(&self) -> Result<Peers, String> {
        self.ask(Ask::Peers)
    }

    /// Takes a node off the list. An error: why not.
    pub fn forget(&self, node: u64) -> Result<(), String> {
        self.ask(|reply| Ask::Forget(node, reply))
    }

    fn ask<T>(&self, ask: impl FnOnce(Sender<Result<T, String>>) -> Ask) -> Result<T, String> {
        let off = "status_interval = 0: this node neither tells of itself nor asks for others";
        let asks = self.asks.get().ok_or(off)?;
        let (reply, answer) = bounded(1);
        let gone = |_| "the daemon is stopping".to_owned();
        asks.send(ask(reply)).map_err(|e| gone(e.to_string()))?;
        let late = |_| "the broker did not answer in time".to_owned();
        answer.recv_timeout(PATIENCE).map_err(late)?
    }
}

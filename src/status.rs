//! How this node and the others are doing: the JSON of `/status`, and what it is made from.
//!
//! Each node keeps one entry in the broker's bucket ([`entry`]); a thread of its own ([`thread`])
//! writes it when something in it changed. A request for the status ([`board`]) returns the facts
//! of this node ([`local`]) beside the entries of the others ([`peers`]), as one
//! [`report::Status`].

use std::time::Duration;

use crate::database::Result;
use crate::logging;
use crate::progress::{self, RunningWork};
use crate::shared::Shared;
use local::NodeFacts;
use report::{LongWork, RecentWarning, Status, VERSION};

mod births;
pub mod board;
pub mod entry;
pub mod local;
mod merged;
pub mod peers;
pub mod report;
pub mod text;
pub mod thread;
pub mod unattended;
pub mod verify;

/// How long a request waits for the lock: less than an application may hold the database's lock.
const PATIENCE: Duration = Duration::from_secs(2);

/// The status as of now. Asks the broker for the other nodes; if it does not answer, the status has
/// this node alone. Fails if the database does.
pub fn now(shared: &Shared) -> Result<Status> {
    let peers = shared.status.peers();
    let Some(locked) = shared.lock_within(PATIENCE) else {
        let busy = "it is busy: perhaps an application holds its write lock";
        return Ok(Status {
            version: VERSION,
            running: true,
            problems: [("database".to_owned(), busy.to_owned())].into(),
            ..Status::default()
        });
    };
    let facts = NodeFacts::gather(shared, &locked)?;
    drop(locked);
    let status = peers::status(&facts, &shared.status.about().streams, peers);
    Ok(Status {
        progress: progress::running().into_iter().map(long_work).collect(),
        warnings: logging::recent().into_iter().map(recent_warning).collect(),
        ..status
    })
}

fn long_work(work: RunningWork) -> LongWork {
    LongWork {
        percent: work.percent(),
        seconds: work.lasts.as_secs(),
        what: work.what,
        step: work.step,
    }
}

fn recent_warning(recent: logging::Recent) -> RecentWarning {
    RecentWarning {
        time_ms: recent.time_ms,
        level: recent.level.as_str().to_ascii_lowercase(),
        text: recent.text,
        count: recent.count,
    }
}

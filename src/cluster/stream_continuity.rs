//! Verifies that the stream is still the one that this node read and wrote before.
//!
//! An acknowledgement is not an fsync. A broker that lost power may have forgotten messages that it
//! acknowledged. A store may have been wiped or restored from a copy, and its sequences given to
//! other messages since. So on every connection, before anything is published, the last message
//! read and the last one acknowledged are looked up by their ids. If one is missing or has a
//! different id, the stream is read again from its start, and every row is marked to be published
//! again. Rows carry their own versions, so nodes ignore rows that they have already. Nothing is
//! lost that any node or any snapshot still has ([`crate::snapshot`], lost streams).

use crate::apply::Position;
use crate::database::DatabaseError;
use crate::model::manifest::StreamPosition;
use crate::mutation::{self, Mutation};
use crate::shared::Shared;
use crate::stream::{Reader, StreamError, StreamState};

/// Why a stream could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum ContinuityError {
    /// The broker failed or could not be reached.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Our own database failed.
    #[error("database: {0}")]
    Database(#[from] DatabaseError),
}

/// Verifies the stream and handles any difference. Returns the sequence to read next.
pub fn verify_position(
    shared: &Shared,
    stream: &str,
    reader: &mut dyn Reader,
    state: &StreamState,
) -> Result<u64, ContinuityError> {
    // The cluster's shared settings match this node's by now. Before that check, changed settings
    // might have been a typing error.
    if shared.lock().database.leave_streams()? {
        shared.forget_own();
        shared.notify_scheduler();
        shared.wake_publisher();
    }
    shared.lock().database.begin_messages_anew();
    let position = shared.lock().database.position(stream);
    if mutation::is(Mutation::NoLookUp) {
        return Ok(position.seq + 1);
    }
    let difference = difference(reader, state, &position)?;
    let mut locked = shared.lock();
    let mut position = locked.database.position(stream);
    let is_new = position.created != state.created;
    if is_new && !position.created.is_empty() {
        locked.database.note_lost(stream, &position)?;
        shared.notify_scheduler();
    }
    if let Some(why) = difference {
        log::error!("{stream}: {why}: this node reads it from its start and republishes all rows");
        locked.database.republish_all()?;
        shared.forget_own();
        position = Position {
            // A newly created stream gets all rows again, from every node.
            gap: position.gap.filter(|_| !is_new),
            ..Position::default()
        };
        shared.wake_publisher();
    }
    if is_uncertain(state, &position) {
        log::warn!(
            "{stream}: message {}, the last one read, is gone, and the broker may have replaced \
             it: this node asks for a snapshot",
            position.seq
        );
        locked.database.note_gap(stream, state.first);
        locked.database.flush()?;
        shared.notify_scheduler();
        return Ok(state.first);
    }
    position.created.clone_from(&state.created);
    let next = position.seq + 1;
    locked.database.move_position(stream, position);
    if difference.is_some() || is_new {
        // Flushed at once, because an undone transaction would bring the old position back. Then
        // the messages of the stream up to that position would never be read, and messages read
        // from now on would count for the old stream.
        locked.database.flush()?;
    }
    Ok(next)
}

/// How the stream differs from the one known before; none if it does not.
fn difference(
    reader: &mut dyn Reader,
    state: &StreamState,
    position: &Position,
) -> Result<Option<&'static str>, StreamError> {
    let known = position.seq > 0 || position.acked_seq > 0;
    if known && !position.created.is_empty() && position.created != state.created {
        return Ok(Some("the stream was created again"));
    }
    for (seq, id) in [
        (position.seq, &position.id),
        (position.acked_seq, &position.acked_id),
    ] {
        if seq > state.last {
            return Ok(Some("the stream is shorter than it was"));
        }
        if holds_another(state, seq, id, |seq| reader.message_id(seq))? {
            return Ok(Some("the stream holds different messages than before"));
        }
    }
    Ok(None)
}

/// Whether the last message read is also the last one that the stream dropped. If the broker had
/// lost it and earlier messages, and given their sequences out again, nothing would show that. If
/// the stream dropped later messages too, this node lacks them, and a snapshot brings all of them.
fn is_uncertain(state: &StreamState, position: &Position) -> bool {
    is_at_edge(state, position.seq, &position.id) && position.created == state.created
}

fn is_at_edge(state: &StreamState, seq: u64, id: &str) -> bool {
    seq + 1 == state.first && state.first <= state.last && !id.is_empty()
}

/// Whether the broker lost the message at this position of a stream, or may have lost it. A
/// snapshot that ends with the last message that the stream dropped would close a gap with a
/// message that nobody can look up any more, so that counts as lost. An earlier position closes no
/// gap and is not lost, and neither is one of a stream that was created anew.
pub fn is_lost(
    state: &StreamState,
    place: &StreamPosition,
    look_up: impl FnOnce(u64) -> Result<Option<String>, StreamError>,
) -> Result<bool, StreamError> {
    let (seq, id) = (place.seq, &place.id);
    Ok(state.created == place.created
        && (is_at_edge(state, seq, id) || holds_another(state, seq, id, look_up)?))
}

/// Whether `seq` holds a different message than `id`, or none yet. A message older than the oldest
/// one kept cannot be looked up. It need not be: other nodes had the time of a whole stream to read
/// it.
fn holds_another(
    state: &StreamState,
    seq: u64,
    id: &str,
    look_up: impl FnOnce(u64) -> Result<Option<String>, StreamError>,
) -> Result<bool, StreamError> {
    if seq > state.last {
        return Ok(true);
    }
    if seq == 0 || seq < state.first || id.is_empty() {
        return Ok(false);
    }
    Ok(look_up(seq)?.as_deref() != Some(id))
}

//! Is the stream still the one that was read and written before?
//!
//! An acknowledgement is not an fsync: a broker that lost power may have forgotten what it
//! acknowledged, a store may have been wiped or put back from a copy, and its numbers given to
//! other messages since. So the last message read and the last one acknowledged are looked up by
//! their ids on every connection, before anything is published. If one is missing or another, the
//! stream is read again from its start, and every row is marked to be published again: rows carry
//! their own versions, so what others have already is nothing new to them, and nothing is lost that
//! any node still has; or any snapshot ([`crate::snapshot`], lost streams).

use crate::apply::Position;
use crate::database::DatabaseError;
use crate::gate::Gate;
use crate::model::manifest::StreamPosition;
use crate::mutation::{self, Mutation};
use crate::stream::{Reader, StreamError, StreamState};

#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("database: {0}")]
    Database(#[from] DatabaseError),
}

/// Looks, and does what is to be done about it. Returns the sequence to read next.
pub fn look(
    gate: &Gate,
    stream: &str,
    reader: &mut dyn Reader,
    state: &StreamState,
) -> Result<u64, LookError> {
    // The broker is known to be set up like this node by now: before, it might be a slip of the
    // pen.
    if gate.enter().database.leave_streams()? {
        gate.forget_own();
        gate.notify_scheduler();
        gate.wake_publisher();
    }
    let position = gate.enter().database.position(stream);
    if mutation::is(Mutation::NoLookUp) {
        return Ok(position.seq + 1);
    }
    let difference = difference(reader, state, &position)?;
    let mut inside = gate.enter();
    let mut position = inside.database.position(stream);
    let is_new = position.created != state.created;
    if is_new && !position.created.is_empty() {
        inside.database.note_lost(stream, &position)?;
        gate.notify_scheduler();
    }
    if let Some(why) = difference {
        log::error!("{stream}: {why}: reading it from its start and publishing all rows again");
        inside.database.republish_all()?;
        gate.forget_own();
        position = Position {
            // A stream that is new gets everything again, from every node.
            gap: position.gap.filter(|_| !is_new),
            ..Position::default()
        };
        gate.wake_publisher();
    }
    if is_uncertain(state, &position) {
        log::warn!(
            "{stream}: message {} was read last, and is gone: whether it was the one that the \
             broker kept cannot be told, so a snapshot is asked for",
            position.seq
        );
        inside.database.note_gap(stream, state.first);
        inside.database.flush()?;
        gate.notify_scheduler();
        return Ok(state.first);
    }
    position.created.clone_from(&state.created);
    let next = position.seq + 1;
    inside.database.move_position(stream, position);
    if difference.is_some() || is_new {
        // At once: a transaction that is undone would bring the old position back. What the stream
        // holds up to there would never be read, and what is read from now on would count for
        // another stream.
        inside.database.flush()?;
    }
    Ok(next)
}

/// What tells that the stream is another one.
fn difference(
    reader: &mut dyn Reader,
    state: &StreamState,
    position: &Position,
) -> Result<Option<&'static str>, StreamError> {
    let known = position.seq > 0 || position.acked_seq > 0;
    if known && !position.created.is_empty() && position.created != state.created {
        return Ok(Some("the stream was created anew"));
    }
    for (seq, id) in [
        (position.seq, &position.id),
        (position.acked_seq, &position.acked_id),
    ] {
        if seq > state.last {
            return Ok(Some("the stream is shorter than it was"));
        }
        if holds_another(state, seq, id, |seq| reader.message_id(seq))? {
            return Ok(Some("the stream holds other messages than it did"));
        }
    }
    Ok(None)
}

/// Whether the last message read is the last that the stream dropped: had the broker lost it and
/// what came before, and given their numbers out again, nothing would tell. Where more was dropped,
/// that is missing here and a snapshot brings all of it.
fn is_uncertain(state: &StreamState, position: &Position) -> bool {
    is_at_edge(state, position.seq, &position.id) && position.created == state.created
}

fn is_at_edge(state: &StreamState, seq: u64, id: &str) -> bool {
    seq + 1 == state.first && state.first <= state.last && !id.is_empty()
}

/// Whether the broker lost what was at this place of a stream, or may have: a snapshot that ends
/// with the last message that the stream dropped would close a gap by what nobody can look up any
/// more. Not what is further back, which closes none, and not if the stream was created anew.
pub fn is_lost(
    state: &StreamState,
    place: &StreamPosition,
    look_up: impl FnOnce(u64) -> Result<Option<String>, StreamError>,
) -> Result<bool, StreamError> {
    let (seq, id) = (place.seq, &place.id);
    Ok(state.created == place.created
        && (is_at_edge(state, seq, id) || holds_another(state, seq, id, look_up)?))
}

/// Whether a message other than `id` is at `seq`, or none yet. What is older than the oldest
/// message kept cannot be looked up, and need not be: others had the time of a whole stream to read
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

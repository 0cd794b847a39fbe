//! Positions that move while a stream is read, and a move that is not stored yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, never, unbounded};

use super::BOOKS;
use crate::apply::Position;
use crate::apply::tests::support::Node;
use crate::cluster::broker::Broker;
use crate::cluster::stream_continuity;
use crate::consumer;
use crate::database::DatabaseError;
use crate::model::backoff::Backoff;
use crate::model::manifest::StreamPosition;
use crate::shared::Shared;
use crate::stream::{Message, Reader, Retention, StreamError, StreamState, Writer};

/// An event during a fetch. If the broker forgot this node's position, it returns the last message
/// that the broker has by then.
type Move = Box<dyn FnOnce(&Shared) -> Option<u64> + Send>;

/// A stream whose messages have their numbers as ids, and the events during each fetch.
#[derive(Clone)]
struct Stream {
    state: StreamState,
    shared: Arc<Shared>,
    happens: Arc<Mutex<VecDeque<Move>>>,
    fetched: Arc<Mutex<Vec<u64>>>,
}

impl Stream {
    fn new(shared: &Arc<Shared>, last: u64) -> Stream {
        Stream {
            state: StreamState {
                first: 1,
                last,
                created: "new".into(),
                now_ms: None,
                retention: Retention::default(),
            },
            shared: shared.clone(),
            happens: Arc::default(),
            fetched: Arc::default(),
        }
    }
}

impl Reader for Stream {
    fn state(&mut self) -> Result<StreamState, StreamError> {
        Ok(self.state.clone())
    }

    fn fetch(
        &mut self,
        from: u64,
        _: Duration,
        _: &Receiver<()>,
    ) -> Result<Vec<Message>, StreamError> {
        self.fetched.lock().unwrap().push(from);
        match self.happens.lock().unwrap().pop_front() {
            Some(happens) => match happens(&self.shared) {
                None => Ok(Vec::new()),
                Some(last) => {
                    self.state.last = last;
                    Err(StreamError::ConsumerForgotten)
                }
            },
            None => Err(StreamError::Stopped),
        }
    }

    fn message_id(&mut self, sequence: u64) -> Result<Option<String>, StreamError> {
        Ok((sequence <= self.state.last).then(|| sequence.to_string()))
    }
}

impl Broker for Stream {
    fn writer(&self) -> Result<Box<dyn Writer>, StreamError> {
        Err(StreamError::Stopped)
    }

    fn reader(&self, _: u32) -> Result<Box<dyn Reader>, StreamError> {
        Ok(Box::new(self.clone()))
    }

    fn shards(&self) -> u32 {
        1
    }

    fn stream(&self, _: u32) -> String {
        "s".into()
    }
}

fn position(seq: u64, created: &str) -> Position {
    Position {
        seq,
        id: seq.to_string(),
        created: created.into(),
        ..Position::default()
    }
}

fn shared(position: Position) -> (Arc<Shared>, tempfile::TempDir) {
    let Node { mut db, dir, .. } = Node::new(1, BOOKS);
    db.move_position("s", position);
    db.flush().unwrap();
    (Arc::new(Shared::new(db, 1).0), dir)
}

/// Runs a transaction that fails, so that changes which were not stored are forgotten.
fn fail(shared: &Shared) {
    let failed: Result<(), _> = shared
        .lock()
        .database
        .write(|_| Err(DatabaseError::Unusable("the disk is full".into())));
    assert!(failed.is_err());
}

#[test]
fn a_changed_stream_is_not_forgotten() {
    let unknown = Position {
        created: "old".into(),
        ..Position::default()
    };
    for (known, last) in [
        (position(50, "old"), 60),
        (position(80, "new"), 60),
        (unknown, 60),
    ] {
        let is_gone = known.created == "old";
        let (shared, _dir) = shared(known);
        let mut stream = Stream::new(&shared, last);
        let state = stream.state.clone();
        let next = stream_continuity::verify_position(&shared, "s", &mut stream, &state).unwrap();
        assert_eq!(next, 1);
        fail(&shared);
        assert_eq!(shared.lock().database.position("s").seq, 0);
        assert_eq!(shared.lock().database.position("s").created, "new");
        assert_eq!(shared.lock().database.seeks_snapshot().unwrap(), is_gone);
    }
}

/// Simulation, seed 1107292: the broker lost the last message that this node had read, gave the
/// numbers out again and dropped those messages as well.
#[test]
fn a_message_that_cannot_be_looked_up_counts_as_missing() {
    for (first, is_missing) in [(50, false), (51, true), (61, false)] {
        let (shared, _dir) = shared(position(50, "new"));
        let mut stream = Stream::new(&shared, 60);
        let state = StreamState {
            first,
            ..stream.state.clone()
        };
        let next = stream_continuity::verify_position(&shared, "s", &mut stream, &state).unwrap();
        assert_eq!((next, shared.lock().database.has_gap()), (51, is_missing));
        fail(&shared);
        assert_eq!(shared.lock().database.has_gap(), is_missing);
        // After a snapshot helped once, there is nothing to look up.
        let known = shared.lock().database.position("s");
        let helped = Position { gap: None, ..known };
        shared.lock().database.move_position("s", helped);
        stream_continuity::verify_position(&shared, "s", &mut stream, &state).unwrap();
        assert!(!is_missing || !shared.lock().database.has_gap());
    }
}

#[test]
fn the_order_to_read_all_again_is_not_forgotten() {
    let (shared, _dir) = shared(position(50, "new"));
    shared.lock().database.forget_positions().unwrap();
    fail(&shared);
    assert_eq!(shared.lock().database.position("s").seq, 0);
}

/// Runs a consumer from position 50 of 60. Returns the positions from which it fetched.
fn consume(happens: Vec<Move>) -> Vec<u64> {
    let (shared, _dir) = shared(position(50, "new"));
    let stream = Stream::new(&shared, 60);
    stream.happens.lock().unwrap().extend(happens);
    let (exits, exited) = unbounded();
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
    let broker = Arc::new(stream.clone());
    let thread = consumer::start(shared, broker, 1, never(), backoff, None, &exits);
    thread.join().unwrap();
    drop(exited);
    stream.fetched.lock().unwrap().clone()
}

fn moves(to: Position) -> Move {
    Box::new(move |shared| {
        shared.lock().database.move_position("s", to);
        None
    })
}

#[test]
fn a_snapshot_from_beyond_the_end_does_not_make_deaf() {
    assert_eq!(consume(vec![moves(position(55, "new"))]), [51, 56]);
    // The broker was set back: the next messages have numbers that the snapshot counts as past.
    assert_eq!(consume(vec![moves(position(500, "new"))]), [51, 1]);
}

#[test]
fn a_consumer_goes_back_with_the_position() {
    assert_eq!(consume(vec![moves(position(0, "new"))]), [51, 1]);
}

#[test]
fn a_stream_that_got_shorter_behind_a_living_connection_is_read_from_its_start() {
    let shrinks = |to: u64| Box::new(move |_: &Shared| Some(to)) as Move;
    assert_eq!(consume(vec![shrinks(40)]), [51, 1]);
    assert_eq!(consume(vec![shrinks(60)]), [51, 51], "it is as it was");
}

#[test]
fn a_number_that_is_given_out_again_is_noticed() {
    let (shared, _dir) = shared(position(50, "new"));
    let mut locked = shared.lock();
    let known = Position {
        acked_seq: 40,
        acked_id: "ours".into(),
        ..locked.database.position("s")
    };
    locked.database.move_position("s", known);
    let again = |seq, id| locked.database.was_given_out("s", seq, id);
    assert!(again(39, "x") && again(40, "x") && again(50, "x"));
    // The reader was faster than the acknowledgement.
    assert!(!again(45, "x") && !again(50, "50") && !again(51, "x"));
}

/// The broker may have lost a message that cannot be looked up any more, and given its number out
/// again.
#[test]
fn a_snapshot_that_ends_where_the_stream_begins_closes_no_gap() {
    let is_lost = |seq, first, last| {
        let created = "new".to_owned();
        let place = StreamPosition {
            seq,
            id: seq.to_string(),
            created: created.clone(),
            ..StreamPosition::default()
        };
        let state = StreamState {
            first,
            last,
            created,
            now_ms: None,
            retention: Retention::default(),
        };
        let look_up = |seq: u64| Ok(Some(seq.to_string()));
        stream_continuity::is_lost(&state, &place, look_up).unwrap()
    };
    assert!(is_lost(20, 21, 24) && is_lost(25, 21, 24));
    assert!(!is_lost(21, 21, 24) && !is_lost(15, 21, 24));
    assert!(
        !is_lost(20, 21, 20),
        "all of it was dropped, after the snapshot or before"
    );
}

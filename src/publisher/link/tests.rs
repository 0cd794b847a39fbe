use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, never};

use super::*;
use crate::apply::tests::support::Node;
use crate::stream::Ack;

/// Keeps the tokens of the messages that it is given.
struct Kept {
    window: usize,
    acks: Receiver<Ack>,
    tokens: Arc<Mutex<Vec<u64>>>,
}

impl Writer for Kept {
    fn max_message_bytes(&self, _: usize) -> usize {
        1 << 20
    }

    fn window_bytes(&self) -> usize {
        self.window
    }

    fn send(&mut self, _: u32, _: &str, _: &[u8], token: u64) -> Result<(), StreamError> {
        self.tokens.lock().unwrap().push(token);
        Ok(())
    }

    fn flush(&mut self) {}

    fn acks(&self) -> &Receiver<Ack> {
        &self.acks
    }
}

struct Sent {
    link: PublisherLink,
    shared: Shared,
    tokens: Arc<Mutex<Vec<u64>>>,
}

impl Sent {
    fn new(window: usize, now: Instant) -> Sent {
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let writer = Kept {
            window,
            acks: never(),
            tokens: tokens.clone(),
        };
        Sent {
            link: PublisherLink::new(Box::new(writer), now),
            shared: Shared::new(Node::new(1, "").db, 1).0,
            tokens,
        }
    }

    fn send(&mut self, local_tx: i64, bytes: usize, now: Instant) {
        let sending = Sending {
            local_tx,
            shard: 1,
            stream: "s",
            salt: 0,
        };
        let packed = frame::pack(vec![7; bytes], None);
        self.link.send(&self.shared, &sending, packed, now).unwrap();
    }

    /// Acknowledges a message and sends the next parts. Returns the transaction that is complete by
    /// that.
    fn acknowledge(&mut self, token: u64, now: Instant) -> Option<i64> {
        let (message, whole) = self.link.acknowledged(token, now).unwrap();
        let id = frame::id_text(&message.id);
        assert!(!self.shared.is_own(&id, b"of a peer"));
        self.link.send_rest(&self.shared, now).unwrap();
        whole
    }

    fn handed_over(&self) -> usize {
        self.tokens.lock().unwrap().len()
    }
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn parts_wait_for_those_before_them() {
    let now = Instant::now();
    // 20 parts, of which two may be in flight.
    let mut sent = Sent::new(2 << 20, now);
    sent.link.window_bytes = 2 << 20;
    sent.send(5, (19 << 20) + 1, now);
    for done in 0..20 {
        assert_eq!(sent.handed_over(), 20.min(done + 2));
        assert!(done >= 18 || !sent.link.has_room(), "another frame between");
        let whole = sent.acknowledge(done as u64, now);
        assert_eq!(whole, (done == 19).then_some(5));
        assert_eq!(sent.link.is_idle(), done == 19);
    }
    assert!(sent.link.has_room());
    assert_eq!(*sent.tokens.lock().unwrap(), Vec::from_iter(0..20));
}

#[test]
fn a_large_message_has_the_time_that_it_needs() {
    let now = Instant::now();
    let mut sent = Sent::new(8 << 20, now);
    sent.send(1, 100, now);
    assert!(sent.link.deadline().unwrap() < now + seconds(11));
    sent.send(2, 1_000_000, now); // goes into the window of the first one as a part would not
    assert_eq!(sent.handed_over(), 1);
    sent.acknowledge(0, now + seconds(3));
    let late = sent.link.deadline().unwrap();
    assert!(late > now + seconds(3 + 60) && late < now + seconds(3 + 150));
}

#[test]
fn the_deadline_moves_with_those_that_came_before() {
    let now = Instant::now();
    let mut sent = Sent::new(8 << 20, now);
    for local_tx in 0..3 {
        sent.send(local_tx, 30_000, now);
    }
    let wait = |sent: &Sent, from| sent.link.deadline().unwrap() - from;
    assert!(wait(&sent, now) > seconds(19));
    // An acknowledgement out of turn: the first message may be lost.
    assert_eq!(sent.acknowledge(1, now + seconds(4)), Some(1));
    assert!(wait(&sent, now) < seconds(17));
    assert_eq!(sent.acknowledge(0, now + seconds(8)), Some(0));
    assert!(wait(&sent, now + seconds(8)) > seconds(13));
    assert_eq!(sent.acknowledge(2, now + seconds(20)), Some(2));
    assert_eq!(sent.link.deadline(), None);
    // The time of the next message counts from its sending.
    sent.send(4, 100, now + seconds(100));
    assert!(wait(&sent, now + seconds(100)) > seconds(10));
}

#[test]
fn the_window_grows_where_acknowledgements_come_at_once() {
    let now = Instant::now();
    let mut sent = Sent::new(1 << 20, now);
    let fill = |sent: &mut Sent, now| {
        while sent.link.has_room() {
            sent.send(1, 10_000, now);
        }
        sent.link.in_flight()
    };
    let mut next = 0;
    let mut round = |sent: &mut Sent, took: u64| {
        let in_flight = fill(sent, now) as u64;
        for token in next..next + in_flight {
            sent.acknowledge(token, now + seconds(took));
        }
        next += in_flight;
        in_flight
    };
    assert_eq!(round(&mut sent, 2), 13);
    assert_eq!(round(&mut sent, 0), 13);
    assert_eq!(round(&mut sent, 0), 26);
    for _ in 0..5 {
        round(&mut sent, 0);
    }
    assert_eq!(round(&mut sent, 6), 104, "a megabyte, as the writer allows");
    assert_eq!(round(&mut sent, 2), 13);
}

/// A connection that was fast, becomes slow, and then falls silent.
#[test]
fn a_window_that_shrank_makes_no_long_deadline() {
    let now = Instant::now();
    let mut sent = Sent::new(8 << 20, now);
    sent.link.window_bytes = 8 << 20;
    for local_tx in 0..80 {
        sent.send(local_tx, 100_000, now);
    }
    for token in 0..8 {
        sent.acknowledge(token, now + seconds(6));
    }
    assert!(sent.link.deadline().unwrap() < now + seconds(6 + 30));
}

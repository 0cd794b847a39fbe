//! Writer and reader: order, duplicates, sizes, purges, streams with other settings.

use std::time::Duration;

use crossbeam_channel::{bounded, never};
use harmonylite::stream::jetstream::{StreamOptions, ensure_streams, server_time_ms, stream_name};
use harmonylite::stream::{Reader, StreamError, Writer};
use serde_json::json;

use crate::stream::node::{Node, PATIENCE, ensure, publish, read, streams};

#[test]
fn messages_arrive_in_order_and_once_per_id() {
    let node = Node::start();
    ensure(&node.client(), &streams());
    let mut writer = node.writer(&streams());
    let mut acks = publish(&mut writer, 1..1001);
    acks.sort_by_key(|ack| ack.token);
    assert!(
        acks.iter().all(|ack| ack.result == Ok(ack.token)),
        "{acks:?}"
    );
    // The server knows the message already and acknowledges it with the first sequence.
    assert_eq!(publish(&mut writer, 7..8)[0].result, Ok(7));

    let mut reader = node.reader(&streams());
    let messages = read(&mut reader, 1, 1000);
    assert_eq!(messages.len(), 1000);
    let now = server_time_ms(&node.client(), &stream_name(&streams(), 1)).unwrap();
    for (n, message) in (1..).zip(&messages) {
        assert_eq!(
            (message.sequence, message.data.as_slice()),
            (n, n.to_string().as_bytes())
        );
        assert_eq!(message.id.as_deref(), Some(format!("id-{n}").as_str()));
        assert!(
            (now - 60_000..=now + 1000).contains(&message.time_ms),
            "{now} {message:?}"
        );
    }
    // The caller chooses the position: a republishing node reads from the middle.
    assert_eq!(read(&mut reader, 500, 1)[0].sequence, 500);
    let state = reader.state().unwrap();
    assert_eq!((state.first, state.last), (1, 1000));
    assert!(state.created.ends_with('Z'));
    assert_eq!(reader.message_id(3).unwrap().as_deref(), Some("id-3"));
    assert_eq!(reader.message_id(1001).unwrap(), None);
}

/// A reader that refused such a message would stop there for ever.
#[test]
fn a_message_from_when_the_server_took_larger_ones_arrives() {
    let mut node = Node::with_config("max_payload: 8MB");
    ensure(&node.client(), &streams());
    let mut writer = node.writer(&streams());
    writer.send(1, "large", &vec![7; 6 << 20], 1).unwrap();
    writer.flush();
    let ack = writer.acks().recv_timeout(PATIENCE).unwrap();
    assert_eq!(ack.result, Ok(1));
    let config = node.options.user_config.clone().unwrap();
    std::fs::write(config, "max_payload: 1MB").unwrap();
    node.kill();
    node.start_again();
    let mut reader = node.reader(&streams());
    assert_eq!(read(&mut reader, 1, 1)[0].data.len(), 6 << 20);
}

#[test]
fn large_messages_pass_and_too_large_ones_are_refused() {
    let node = Node::start();
    ensure(&node.client(), &streams());
    let mut writer = node.writer(&streams());
    // Messages of the largest size that a node may send.
    let data = vec![7; node.client().max_payload() - 256];
    for token in 1..21 {
        writer
            .send(1, &format!("big-{token}"), &data, token)
            .unwrap();
    }
    writer
        .send(1, "huge", &vec![0; data.len() + 1024], 99)
        .unwrap();
    writer.flush();
    for _ in 0..21 {
        let ack = writer.acks().recv_timeout(PATIENCE).unwrap();
        assert_eq!(ack.result.is_ok(), ack.token != 99, "{ack:?}");
    }
    // These are more messages than one pull may bring.
    let messages = read(&mut node.reader(&streams()), 1, 20);
    assert!(messages.iter().all(|message| message.data == data));
}

#[test]
fn fetch_waits_no_longer_than_asked_and_stops_at_once() {
    let node = Node::start();
    ensure(&node.client(), &streams());
    let mut reader = node.reader(&streams());
    assert!(
        reader
            .fetch(1, Duration::from_millis(50), &never())
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        (reader.state().unwrap().first, reader.state().unwrap().last),
        (1, 0)
    );
    let (going, stop) = bounded::<()>(0);
    drop(going);
    assert!(matches!(
        reader.fetch(1, PATIENCE, &stop),
        Err(StreamError::Stopped)
    ));
}

#[test]
fn a_message_ends_a_waiting_fetch() {
    let node = Node::start();
    ensure(&node.client(), &streams());
    let mut reader = node.reader(&streams());
    let waiting = std::thread::spawn(move || read(&mut reader, 1, 1));
    publish(&mut node.writer(&streams()), 1..2);
    assert_eq!(waiting.join().unwrap()[0].data, b"1");
}

#[test]
fn a_purge_is_a_jump_and_not_a_loss() {
    let node = Node::start();
    let client = node.client();
    ensure(&client, &streams());
    let name = stream_name(&streams(), 1);
    let mut writer = node.writer(&streams());
    let mut reader = node.reader(&streams());
    publish(&mut writer, 1..11);
    assert_eq!(read(&mut reader, 1, 10).len(), 10);
    publish(&mut writer, 11..21);
    client
        .api(&format!("STREAM.PURGE.{name}"), &json!({ "seq": 18 }))
        .unwrap()
        .unwrap();
    // A new reader finds the gap; the old one may have fetched the purged messages before.
    let gap = read(&mut node.reader(&streams()), 11, 3);
    assert_eq!(
        gap.iter()
            .map(|message| message.sequence)
            .collect::<Vec<_>>(),
        [18, 19, 20]
    );
    assert_eq!(reader.state().unwrap().first, 18);
    // A hole in the middle, met by a consumer that began before it.
    client
        .api(&format!("STREAM.MSG.DELETE.{name}"), &json!({ "seq": 19 }))
        .unwrap()
        .unwrap();
    let hole = read(&mut node.reader(&streams()), 1, 2);
    assert_eq!(
        hole.iter()
            .map(|message| message.sequence)
            .collect::<Vec<_>>(),
        [18, 20]
    );
}

#[test]
fn streams_set_up_otherwise() {
    let node = Node::start();
    let client = node.client();
    ensure(&client, &streams());
    ensure_streams(&client, &streams()).unwrap();
    let max_msgs = || {
        let info = client
            .api("STREAM.INFO.changes-c-1", &json!(null))
            .unwrap()
            .unwrap();
        info["config"]["max_msgs"].as_i64().unwrap()
    };
    let mut other = streams();
    other.max_entries = 77;
    ensure_streams(&client, &other).unwrap();
    assert_eq!(max_msgs(), 100_000);
    other.update_existing = true;
    ensure_streams(&client, &other).unwrap();
    assert_eq!(max_msgs(), 77);
    other.update_existing = false;
    other.subject_prefix = "elsewhere".into();
    let error = ensure_streams(&client, &other).unwrap_err();
    assert!(matches!(error, StreamError::Fatal(_)), "{error}");
    assert!(
        error.to_string().contains("elsewhere-1") && error.to_string().contains("change-log-1")
    );
    other.subject_prefix = "a b".into();
    assert!(matches!(
        ensure_streams(&client, &other),
        Err(StreamError::Fatal(_))
    ));
    let mut three = streams();
    (three.replicas, three.stream_prefix) = (3, "three".into());
    three.subject_prefix = "three".into();
    assert!(
        ensure_streams(&client, &three).is_err(),
        "one server cannot keep three copies"
    );
}

#[test]
fn messages_that_were_discarded_meanwhile_are_a_jump() {
    let node = Node::start();
    let small = StreamOptions {
        max_entries: 100,
        ..streams()
    };
    ensure(&node.client(), &small);
    let mut reader = node.reader(&small);
    assert!(
        reader
            .fetch(1, Duration::from_millis(10), &never())
            .unwrap()
            .is_empty()
    );
    // The pull that waits takes the first of these; the stream keeps the last hundred.
    publish(&mut node.writer(&small), 1..5001);
    let (mut from, mut jumps) = (1, 0);
    while from <= 5000 {
        let messages = match reader.fetch(from, PATIENCE, &never()) {
            Err(StreamError::ConsumerForgotten) => continue,
            messages => messages.unwrap(),
        };
        for message in messages {
            assert!(message.sequence >= from);
            jumps += u32::from(message.sequence > from);
            from = message.sequence + 1;
        }
    }
    assert!(jumps > 0, "the stream kept everything");
}

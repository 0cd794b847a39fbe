//! A broker that dies, stands still, forgets, or never was there.

use std::time::Duration;

use crossbeam_channel::never;
use harmonylite::stream::client::{Client, ClientOptions};
use harmonylite::stream::jetstream::{ensure_streams, last_sequences, stream_name};
use harmonylite::stream::{Reader, StreamError, Writer};
use rustix::process::Signal;
use serde_json::json;

use crate::stream::node::{Node, PATIENCE, ensure, publish, read, streams};

#[test]
fn a_killed_server_disconnects_everyone_and_loses_nothing_acknowledged() {
    let mut node = Node::start();
    ensure(&node.client(), &streams());
    let mut writer = node.writer(&streams());
    let mut reader = node.reader(&streams());
    publish(&mut writer, 1..101);
    assert_eq!(read(&mut reader, 1, 100).len(), 100);

    let waiting = std::thread::spawn(move || reader.fetch(101, PATIENCE, &never()));
    node.kill();
    assert!(matches!(
        waiting.join().unwrap(),
        Err(StreamError::Disconnected(_))
    ));
    assert!(
        writer
            .acks()
            .recv_timeout(PATIENCE)
            .is_err_and(|error| error.is_disconnected())
    );
    let refused = writer.send(1, "late", b"", 1).unwrap_err();
    assert!(matches!(refused, StreamError::Disconnected(_)), "{refused}");

    node.start_again();
    ensure(&node.client(), &streams());
    let mut writer = node.writer(&streams());
    assert_eq!(
        publish(&mut writer, 100..101)[0].result,
        Ok(100),
        "the id is known still"
    );
    assert_eq!(publish(&mut writer, 101..102)[0].result, Ok(101));
    assert_eq!(read(&mut node.reader(&streams()), 100, 2)[1].sequence, 101);
}

#[test]
fn a_server_that_stands_still_holds_nobody_up() {
    let node = Node::start();
    ensure(&node.client(), &streams());
    let mut writer = node.writer(&streams());
    let mut reader = node.reader(&streams());
    publish(&mut writer, 1..2);
    assert_eq!(read(&mut reader, 1, 1).len(), 1);
    node.signal(Signal::STOP);
    // More than the socket's buffers hold: the writer's thread blocks, not this one.
    let data = vec![7; writer.max_message_bytes(1 << 30)];
    for token in 2..12 {
        writer
            .send(1, &format!("big-{token}"), &data, token)
            .unwrap();
        writer.flush();
    }
    assert!(
        reader
            .fetch(2, Duration::from_millis(50), &never())
            .unwrap()
            .is_empty()
    );
    let error = Client::connect(&node.client_options(), Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, StreamError::Disconnected(_)), "{error}");
    drop((writer, reader));
    node.signal(Signal::CONT);
    assert!(
        publish(&mut node.writer(&streams()), 100..101)[0]
            .result
            .is_ok()
    );
}

#[test]
fn a_consumer_that_vanished_is_made_anew() {
    let node = Node::start();
    let client = node.client();
    ensure(&client, &streams());
    let name = stream_name(&streams(), 1);
    let mut writer = node.writer(&streams());
    let mut reader = node.reader(&streams());
    publish(&mut writer, 1..3);
    assert_eq!(read(&mut reader, 1, 2).len(), 2);
    let names = client
        .api(&format!("CONSUMER.NAMES.{name}"), &json!(null))
        .unwrap()
        .unwrap();
    for consumer in names["consumers"].as_array().unwrap() {
        let call = format!("CONSUMER.DELETE.{name}.{}", consumer.as_str().unwrap());
        client.api(&call, &json!(null)).unwrap().unwrap();
    }
    publish(&mut writer, 3..4);
    let told = reader.fetch(3, PATIENCE, &never());
    assert!(
        matches!(told, Err(StreamError::ConsumerForgotten)),
        "{told:?}"
    );
    let messages = reader.fetch(3, PATIENCE, &never()).unwrap();
    assert_eq!(messages[0].data, b"3");
}

#[test]
fn a_stream_that_is_gone_is_refused() {
    let node = Node::start();
    let client = node.client();
    ensure(&client, &streams());
    let mut reader = node.reader(&streams());
    assert!(
        reader
            .fetch(1, Duration::from_millis(10), &never())
            .unwrap()
            .is_empty()
    );
    let name = stream_name(&streams(), 1);
    client
        .api(&format!("STREAM.DELETE.{name}"), &json!(null))
        .unwrap()
        .unwrap();
    let error = reader.fetch(1, PATIENCE, &never()).unwrap_err();
    assert!(matches!(error, StreamError::Refused(_)), "{error}");
    let ack = &publish(&mut node.writer(&streams()), 1..2)[0];
    assert!(ack.result.is_err(), "{ack:?}");
}

#[test]
fn without_jetstream_everything_is_refused() {
    let node = Node::with_config("jetstream: disabled");
    let error = ensure_streams(&node.client(), &streams()).unwrap_err();
    assert!(matches!(error, StreamError::Refused(_)), "{error}");
    let ack = &publish(&mut node.writer(&streams()), 1..2)[0];
    assert!(
        ack.result
            .as_ref()
            .is_err_and(|refusal| refusal.is_passing && refusal.text.contains("JetStream")),
        "{ack:?}"
    );
}

/// While a cluster elects a leader, requests reach no server.
#[test]
fn calls_without_an_answer_are_made_again_and_no_others() {
    let node = Node::start();
    let cluster = node.client();
    let asked = cluster.watch("$JS.elects.API.STREAM.INFO").unwrap();
    cluster.api("INFO", &json!(null)).unwrap().unwrap(); // the server knows of the watch
    let options = ClientOptions {
        domain: Some("elects".into()),
        ..node.client_options()
    };
    let client = Client::connect(&options, PATIENCE).unwrap();
    let told = std::thread::spawn(move || {
        let streams = ["a", "b", "c"].map(String::from);
        last_sequences(&client, &streams)
    });
    // Reads a request: the stream's name, and the subject for the answer.
    let next = || {
        let message = asked.messages.recv_timeout(PATIENCE).unwrap();
        let (_, stream) = message.subject.rsplit_once('.').unwrap();
        (stream.to_owned(), message.reply.unwrap())
    };
    let answer = |(_, reply): &(String, String)| {
        let last = br#"{"state":{"last_seq":7}}"#;
        cluster.publish(reply, None, &[], last).unwrap();
    };
    let first = [next(), next(), next()];
    answer(&first[1]);
    let again = [next(), next()];
    let streams = again.each_ref().map(|(stream, _)| stream);
    assert_eq!(streams, ["a", "c"], "b is answered");
    again.iter().for_each(answer);
    let told = told.join().unwrap().unwrap();
    assert_eq!(told.values().collect::<Vec<_>>(), [&7, &7, &7]);
}

//! A link of 256 kbit/s: slow, and not broken.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{at, never};
use harmonylite::stream::client::{Client, ClientOptions};
use harmonylite::stream::jetstream::stream_name;
use harmonylite::stream::reader::JetStreamReader;
use harmonylite::stream::{Reader, Writer};

use crate::cluster::Cluster;
use crate::node::{Node, pause};
use crate::stream::node::{Node as Broker, PATIENCE, ensure, streams};

const BYTES_PER_SECOND: usize = 32_000;

/// The time at which the wire is free again; all connections share it, per direction.
type Wire = Arc<Mutex<Instant>>;

/// Listens in place of the server at `address`, and delays bytes as a slow link does.
fn slow_link(address: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().to_string();
    let address = address.to_string();
    let wire = || Arc::new(Mutex::new(Instant::now()));
    let (up, down): (Wire, Wire) = (wire(), wire());
    // The thread ends with the process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&address) else {
                continue;
            };
            for (from, to, wire) in [(&client, &server, &up), (&server, &client, &down)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let wire = wire.clone();
                thread::spawn(move || pass(from, to, &wire));
            }
        }
    });
    here
}

fn pass(mut from: TcpStream, mut to: TcpStream, wire: &Mutex<Instant>) {
    let mut packet = [0; 1500];
    while let Ok(read @ 1..) = from.read(&mut packet) {
        let through = {
            let mut free = wire.lock().unwrap();
            let takes = Duration::from_micros((read * 1_000_000 / BYTES_PER_SECOND) as u64);
            *free = Instant::now().max(*free) + takes;
            *free
        };
        // The link delivers the packet at that time.
        at(through).recv().unwrap();
        if to.write_all(&packet[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
        (state >> 56) as u8
    };
    std::iter::repeat_with(byte).take(length).collect()
}

#[test]
fn a_message_may_take_its_time_to_arrive() {
    let broker = Broker::start();
    ensure(&broker.client(), &streams());
    let mut writer = broker.writer(&streams());
    for (token, length) in [(1, 10), (2, 600_000), (3, 10)] {
        writer
            .send(1, &format!("id-{token}"), &noise(length), token)
            .unwrap();
        writer.flush();
        writer.acks().recv_timeout(PATIENCE).unwrap();
    }
    let options = broker.client_options();
    let address = options.urls[0].trim_start_matches("nats://");
    let options = ClientOptions {
        urls: vec![format!("nats://{}", slow_link(address))],
        ..options
    };
    let client = Client::connect(&options, PATIENCE).unwrap();
    let mut reader = JetStreamReader::new(client, stream_name(&streams(), 1)).unwrap();
    let (mut from, mut lengths) = (1, Vec::new());
    while from <= 3 {
        let messages = reader.fetch(from, PATIENCE, &never()).unwrap();
        assert!(!messages.is_empty(), "nothing came after {lengths:?}");
        from += messages.len() as u64;
        lengths.extend(messages.iter().map(|m| m.data.len()));
    }
    assert_eq!(lengths, [10, 600_000, 10]);
    // A node verifies its streams at each connection.
    let began = Instant::now();
    assert_eq!(reader.message_id(2).unwrap().as_deref(), Some("id-2"));
    assert_eq!(reader.message_id(4).unwrap(), None);
    assert!(began.elapsed() < Duration::from_secs(2), "it came again");
}

#[test]
fn large_rows_pass_a_slow_link_both_ways() {
    let mut cluster = Cluster::stopped(2, |node| {
        node.set("snapshot.enabled", "false");
    });
    let slow = slow_link(&cluster.broker.options.bind_address);
    cluster.nodes[0].set("nats.urls", &format!("['nats://{slow}']"));
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, randomblob(1000000), 0)");
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, randomblob(500000), 1)");
    Node::start_all(&mut cluster.nodes);
    let has_all = |node: &Node| node.number("SELECT count(*) FROM item") == 2;
    let deadline = Instant::now() + 2 * PATIENCE;
    while Instant::now() < deadline && !cluster.nodes.iter().all(has_all) {
        pause(100);
    }
    assert_eq!(cluster.converge().len(), 2);
}

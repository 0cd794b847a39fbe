//! The key-value bucket.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use harmonylite::cluster::broker::meta_bucket;
use harmonylite::cluster::registry::{KeyValueRegistry, Registry};
use harmonylite::model::manifest::StreamPosition;
use harmonylite::stream::client::Client;
use harmonylite::stream::jetstream::stream_name;
use harmonylite::stream::key_value::KeyValue;
use harmonylite::stream::{Reader, StreamError};
use serde_json::json;

use crate::stream::node::{Node, ensure, publish, streams, until};

#[test]
fn create_update_delete() {
    let node = Node::start();
    let client = node.client();
    let kv = until("the bucket", || {
        KeyValue::ensure_bucket(&client, "settings", 1, None).ok()
    });
    assert_eq!(kv.get("founder").unwrap(), None);
    assert!(kv.create("founder", b"one").unwrap());
    assert!(!kv.create("founder", b"two").unwrap());
    let (value, revision) = kv.get("founder").unwrap().unwrap();
    assert_eq!(value, b"one");
    assert!(kv.update("founder", b"three", revision).unwrap());
    assert!(!kv.update("founder", b"four", revision).unwrap());
    let (value, newer) = kv.get("founder").unwrap().unwrap();
    assert_eq!(
        (value.as_slice(), newer > revision),
        (b"three".as_slice(), true)
    );

    kv.delete("founder").unwrap();
    kv.delete("never.there").unwrap();
    assert_eq!(kv.get("founder").unwrap(), None);
    assert!(kv.create("founder", b"five").unwrap());
    assert_eq!(
        kv.put("founder", b"").unwrap(),
        kv.get("founder").unwrap().unwrap().1
    );

    // Another node opens the bucket.
    let again = KeyValue::ensure_bucket(&client, "settings", 1, None).unwrap();
    assert_eq!(again.get("founder").unwrap().unwrap().0, b"");
    let info = client
        .api("STREAM.INFO.KV_settings", &json!(null))
        .unwrap()
        .unwrap();
    assert_eq!(info["config"]["subjects"], json!(["$KV.settings.>"]));
    assert_eq!(
        info["state"]["messages"], 2,
        "one per key, deletions included"
    );
}

/// While a server makes a stream, it refuses the stream's subjects to others and does not know its
/// name yet.
#[test]
fn a_bucket_that_several_nodes_create_at_once() {
    let node = Node::start();
    let clients: Vec<_> = (0..6).map(|_| node.client()).collect();
    let together = Barrier::new(clients.len());
    let create = |client: Client| {
        let ensure = |round| {
            together.wait();
            let bucket = format!("b{round}");
            KeyValue::ensure_bucket(&client, &bucket, 1, None).map(drop)
        };
        // Each thread takes part in every round, also after an error: the others wait for it.
        let all: Vec<_> = (0..200).map(ensure).collect();
        all.into_iter().collect::<Result<Vec<()>, StreamError>>()
    };
    thread::scope(|scope| {
        let spawn = |client| scope.spawn(|| create(client));
        let threads: Vec<_> = clients.into_iter().map(spawn).collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
    });
}

#[test]
fn values_age() {
    let node = Node::start();
    let client = node.client();
    let age = Some(Duration::from_millis(300));
    let kv = until("the bucket", || {
        KeyValue::ensure_bucket(&client, "leases", 1, age).ok()
    });
    assert!(kv.create("snapshot", b"node 1").unwrap());
    until("the lease is over", || {
        kv.get("snapshot").unwrap().is_none().then_some(())
    });
    assert!(kv.create("snapshot", b"node 2").unwrap());
}

#[test]
fn a_lease_that_another_has_by_now_is_not_given_back() {
    let node = Node::start();
    let client = node.client();
    let kv = until("the bucket", || {
        KeyValue::ensure_bucket(&client, "leases", 1, None).ok()
    });
    let ours = kv.put("leader", b"node 1").unwrap();
    let theirs = kv.put("leader", b"node 2").unwrap();
    assert!(!kv.delete_revision("leader", ours).unwrap());
    assert_eq!(
        kv.get("leader").unwrap(),
        Some((b"node 2".to_vec(), theirs))
    );
    assert!(kv.delete_revision("leader", theirs).unwrap());
    assert_eq!(kv.get("leader").unwrap(), None);
    assert!(kv.create("leader", b"node 3").unwrap());
}

#[test]
fn names_that_nats_cannot_have() {
    let node = Node::start();
    let client = node.client();
    let kv = until("the bucket", || {
        KeyValue::ensure_bucket(&client, "b", 1, None).ok()
    });
    for key in ["", "a b", "a.*", ">", "a..b", "x\r\nPUB"] {
        assert!(
            matches!(kv.put(key, b""), Err(StreamError::Fatal(_))),
            "{key:?}"
        );
    }
    assert!(KeyValue::ensure_bucket(&client, "a.b", 1, None).is_err());
    kv.put("is/all.right_here-1=", b"").unwrap();
}

/// The scheduler of snapshots asks the streams whether the messages that a snapshot covers are
/// still there.
#[test]
fn a_place_that_the_broker_lost_is_known_as_such() {
    let node = Node::start();
    let options = streams();
    ensure(&node.client(), &options);
    let mut reader = node.reader(&options);
    publish(&mut node.writer(&options), 1..11);
    let bucket = meta_bucket(&options.stream_prefix);
    KeyValue::ensure_bucket(&node.client(), &bucket, 1, None).unwrap();
    let (prefix, ttl) = (&options.stream_prefix, Duration::from_secs(30));
    let mut registry = until("the registry", || {
        KeyValueRegistry::open(node.client(), prefix, 1, ttl, ("t".into(), false)).ok()
    });
    let created = reader.state().unwrap().created;
    let stream = stream_name(&options, 1);
    let mut is_lost = |stream: &str, seq: u64, id: &str, created: &str| {
        let place = StreamPosition {
            seq,
            id: id.into(),
            created: created.into(),
            gap: None,
        };
        registry.is_lost(stream, &place).unwrap()
    };
    assert!(!is_lost(&stream, 10, "id-10", &created));
    assert!(is_lost(&stream, 10, "another", &created));
    assert!(is_lost(&stream, 11, "id-11", &created), "not stored yet");
    assert!(
        !is_lost(&stream, 11, "id-11", "another"),
        "of another stream"
    );
    for name in ["no-such-1", &format!("{prefix}-77"), "x\r\nPUB y 0"] {
        assert!(!is_lost(name, 11, "id-11", &created), "{name:?}");
    }
    let purge = format!("STREAM.PURGE.{stream}");
    let purged = node.client().api(&purge, &json!({ "seq": 6 })).unwrap();
    assert!(purged.is_ok());
    assert!(
        !is_lost(&stream, 4, "another", &created),
        "cannot be told any more, and closes no gap"
    );
    assert!(is_lost(&stream, 5, "id-5", &created), "may be another");
    assert!(is_lost(&stream, 6, "another", &created));
}

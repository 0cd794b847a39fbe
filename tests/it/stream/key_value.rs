//! The key-value bucket.

use std::time::Duration;

use harmonylite::stream::StreamError;
use harmonylite::stream::key_value::KeyValue;
use serde_json::json;

use crate::stream::node::{Node, until};

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

    // Opened again by another node.
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

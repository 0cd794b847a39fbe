use super::*;

fn key(name: &str, value: OwnedValue) -> Vec<(String, OwnedValue)> {
    vec![(name.into(), value)]
}

fn version(ms: i64, node: u64) -> Option<Version> {
    let hlc = ms << 16 | 1;
    Some(Version { hlc, node })
}

fn sample() -> Conflict {
    let email = OwnedValue::Text(b"ann@x.org".to_vec());
    Conflict {
        table: "users".into(),
        row: vec![
            ("id".into(), OwnedValue::Integer(2)),
            ("email".into(), email.clone()),
            ("photo".into(), OwnedValue::Blob(vec![0, 255])),
        ],
        key_len: 1,
        version: version(1_795_240_523_123, u64::MAX),
        collisions: vec![Collision {
            index: "by_email".into(),
            tuple: key("email", email),
            winner_key: key("id", OwnedValue::Integer(1)),
            winner_version: version(0, 7),
        }],
    }
}

#[test]
fn text_says_who_gives_way_to_whom_and_why() {
    let expected = "  id = 2, written 2026-11-21 05:55:23.123 on node 18446744073709551615
    has email = 'ann@x.org', photo = x'00ff'
    gives way to id = 1, there before HarmonyLite, on node 7
      which has email = 'ann@x.org' too
";
    assert_eq!(text(&sample()), expected);
    let alone = Conflict {
        collisions: vec![],
        ..sample()
    };
    assert!(text(&alone).contains("gives way to no row any more"));
}

#[test]
fn json_holds_every_value() {
    let json = json(&sample());
    assert_eq!(json["row"]["photo"], json!({ "blob": "00ff" }));
    assert_eq!(json["key"], json!({ "id": 2 }));
    assert_eq!(json["version"]["node"], "18446744073709551615");
    assert_eq!(json["version"]["time_ms"], 1_795_240_523_123_i64);
    assert_eq!(json["displaced_by"][0]["key"]["id"], 1);
    let odd = [
        (Value::Null, Json::Null),
        (Value::Real(f64::INFINITY), json!({ "real": "inf" })),
        (Value::Real(1.5), json!(1.5)),
        (Value::Text(b"\xff"), json!({ "text": "ff" })),
        (Value::Integer(i64::MIN), json!(i64::MIN)),
    ];
    for (value, expected) in odd {
        assert_eq!(value_json(value), expected, "{value:?}");
    }
}

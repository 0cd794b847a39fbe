//! Values that an application's user chose so that an unkeyed hash cannot tell rows apart. They
//! collide under XXH3, by which earlier releases compared contents.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::support::{Node, cluster, converge};
use crate::model::value::Value;

/// First 8 bytes of XXH3's default secret.
const SECRET: u64 = 0xbe4b_a423_396c_feb8;

/// Seed by which earlier releases hashed a column; the classes of values add 1 to 4.
fn seed(column: &str) -> u64 {
    xxh3_64(column.as_bytes())
}

/// Two values of 32 bytes with one XXH3: their first 8 bytes make a product zero, whatever the
/// next 8 bytes are.
fn colliding_bytes(seed: u64) -> [Vec<u8>; 2] {
    let zero = SECRET.wrapping_add(seed).to_le_bytes();
    [b"11111111", b"99999999"].map(|free| [&zero[..], free, &[b'x'; 16]].concat())
}

/// XXH3 of an INTEGER with this seed.
fn of_integer(i: i64, seed: u64) -> u64 {
    xxh3_64_with_seed(&i.to_le_bytes(), seed)
}

/// The INTEGER with the given XXH3: each step of its mixing is undone.
fn integer_of(hash: u64, seed: u64) -> i64 {
    const INVERSE: u64 = {
        let (odd, mut inverse, mut i) = (0x9fb2_1c65_1e98_df25u64, 1u64, 0);
        while i < 6 {
            inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
            i += 1;
        }
        inverse
    };
    let unmixed = |hash: u64| {
        let mut h = hash ^ (hash >> 28) ^ (hash >> 56);
        h = h.wrapping_mul(INVERSE);
        h ^= (h >> 35).wrapping_add(8);
        h = h.wrapping_mul(INVERSE);
        // x ^ rotl(x, 49) ^ rotl(x, 24) to the power of 64 is the identity.
        (0..63).fold(h, |h, _| h ^ h.rotate_left(49) ^ h.rotate_left(24))
    };
    let flips = unmixed(of_integer(0, seed));
    (unmixed(hash) ^ flips).rotate_left(32) as i64
}

/// Pairs of UPDATEs of `t` (payload, a, b, and a TEXT column) with one hash each.
pub(crate) struct Colliding {
    pub schema: String,
    pub pairs: Vec<[String; 2]>,
}

pub(crate) fn colliding(constraint: &str) -> Colliding {
    let hex =
        |bytes: &Vec<u8>| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let blobs = colliding_bytes(seed("payload").wrapping_add(4));
    let is_text = |name: &String| {
        let [text, _] = colliding_bytes(seed(name).wrapping_add(3));
        std::str::from_utf8(&text).is_ok()
    };
    let name = (0..).map(|i| format!("c{i}")).find(is_text).unwrap();
    let texts = colliding_bytes(seed(&name).wrapping_add(3));
    let [a, b] = ["a", "b"].map(|column| seed(column).wrapping_add(1));
    let sum = of_integer(10, a).wrapping_add(of_integer(20, b));
    let other = integer_of(sum.wrapping_sub(of_integer(99, a)), b);
    let hash = |column, value: Value<'_>| value.hash(seed(column));
    assert_eq!(
        hash("payload", Value::Blob(&blobs[0])),
        hash("payload", Value::Blob(&blobs[1]))
    );
    assert_eq!(
        hash(&name, Value::Text(&texts[0])),
        hash(&name, Value::Text(&texts[1]))
    );
    let both = |x, y| hash("a", Value::Integer(x)).wrapping_add(hash("b", Value::Integer(y)));
    assert_eq!(both(10, 20), both(99, other));
    Colliding {
        schema: format!(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, payload BLOB, a INTEGER, b INTEGER,
             {name} TEXT {constraint})"
        ),
        pairs: vec![
            blobs.map(|b| format!("UPDATE t SET payload = x'{}'", hex(&b))),
            texts.map(|t| format!("UPDATE t SET {name} = CAST(x'{}' AS TEXT)", hex(&t))),
            [(10, 20), (99, other)].map(|(a, b)| format!("UPDATE t SET a = {a}, b = {b}")),
        ],
    }
}

/// Runs the first update of each pair, then calls `next` with the second.
fn each_pair(constraint: &str, next: impl Fn(&mut [Node], &str)) {
    let Colliding { schema, pairs } = colliding(constraint);
    for [first, second] in &pairs {
        let mut n = cluster(2, &schema);
        n[0].run("INSERT INTO t(id) VALUES (1)");
        n[0].run(first);
        converge(&mut n);
        let before = n[1].rows("SELECT * FROM t");
        next(&mut n, second);
        let after = converge(&mut n);
        assert_ne!(n[1].rows("SELECT * FROM t"), before, "{second}\n{after}");
    }
}

#[test]
fn a_newer_row_is_written_whatever_its_hash() {
    for constraint in ["", "UNIQUE"] {
        each_pair(constraint, |n, second| n[0].run(second));
    }
}

#[test]
fn a_change_behind_the_triggers_is_seen_whatever_its_hash() {
    each_pair("", |n, second| {
        let all = "SELECT group_concat('DROP TRIGGER \"' || name || '\"', ';') FROM sqlite_schema
                   WHERE type = 'trigger'";
        let drop: String = n[0].app.query_row(all, [], |r| r.get(0)).unwrap();
        n[0].app.execute_batch(&drop).unwrap();
        n[0].app.execute_batch(second).unwrap();
    });
}

/// The greater content wins on both, as it does between any two rows with one version.
#[test]
fn of_two_rows_with_one_version_the_greater_wins_whatever_their_hash() {
    let Colliding { schema, pairs } = colliding("");
    for [first, second] in &pairs {
        let mut n = [Node::new(1, &schema), Node::new(1, &schema)];
        let sent = [first, second].map(String::as_str);
        let mut frames = Vec::new();
        for (node, update) in n.iter_mut().zip(sent) {
            node.run("INSERT INTO t(id) VALUES (1)");
            node.run(update);
            frames.push(node.publish());
        }
        let [one, other] = &mut n;
        one.apply(&frames[1]);
        other.apply(&frames[0]);
        let rows = one.rows("SELECT * FROM t");
        assert_eq!(rows, other.rows("SELECT * FROM t"), "{second}");
    }
}

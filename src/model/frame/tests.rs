use super::*;
use crate::model::value::Value;
use crate::model::version::Version;

const V: Version = Version {
    hlc: 1 << 20,
    node: 7,
};

fn header() -> TableHeader {
    let key = [KeyColumn {
        name: "id".into(),
        affinity: "INTEGER",
        collation: "BINARY".into(),
    }];
    TableHeader::new(1, "Books", &key, &["id", "title"])
}

fn sample() -> Vec<u8> {
    let mut b = FrameBuilder::default();
    b.upsert(
        &header(),
        V,
        &[],
        [Value::Integer(1), Value::Text(b"x")].into_iter(),
    );
    b.delete(
        &header(),
        Version {
            hlc: 9,
            node: u64::MAX,
        },
        [Value::Integer(2)].into_iter(),
    );
    let exceptions = [(1, Version { hlc: 5, node: 3 }), (2, Version::NEVER)];
    b.upsert(
        &header(),
        V,
        &exceptions,
        [Value::Integer(3), Value::Null].into_iter(),
    );
    assert!(b.len() >= b.bytes);
    b.finish()
}

#[test]
fn rows_come_back() {
    let bytes = sample();
    let Frame::Rows { nodes, tables, .. } = Frame::decode(&bytes).unwrap() else {
        panic!()
    };
    let [table] = &tables[..] else {
        panic!("{tables:?}")
    };
    assert_eq!(
        (table.name, &table.columns[..], table.len()),
        ("Books", &["id", "title"][..], 3)
    );
    let (mut rows, mut row) = (table.rows(&nodes), Row::default());
    assert!(rows.next(&mut row).unwrap());
    assert_eq!((row.version, row.deleted, row.values.len()), (V, false, 2));
    assert!(rows.next(&mut row).unwrap());
    assert_eq!(
        (row.version.node, row.deleted, row.values.len()),
        (u64::MAX, true, 1)
    );
    assert!(rows.next(&mut row).unwrap());
    assert_eq!(
        row.exceptions,
        [(1, Version { hlc: 5, node: 3 }), (2, Version::NEVER)]
    );
    assert!(!rows.next(&mut row).unwrap());
}

#[test]
fn no_cut_and_no_flipped_bit_panics() {
    let bytes = sample();
    for end in 0..bytes.len() {
        assert!(Frame::decode(&bytes[..end]).is_err(), "cut at {end}");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << bit;
            let _ = Frame::decode(&broken);
        }
    }
}

#[test]
fn another_format_is_told_from_garbage() {
    let mut bytes = sample();
    bytes[1] = 2;
    assert!(matches!(
        Frame::decode(&bytes),
        Err(FrameError::UnknownFormat(2))
    ));
}

#[test]
fn a_row_that_cannot_be_is_left_out_by_itself() {
    let mut b = FrameBuilder::default();
    let version = |hlc| Version { hlc, node: 1 };
    let key = |i| [Value::Integer(i)].into_iter();
    b.delete(&header(), version(5), key(1));
    b.delete(&header(), version(crate::model::version::HLC_LIMIT), key(2));
    b.delete(&header(), version(0), key(3));
    b.delete(&header(), version(5), [Value::Null].into_iter());
    let columns = [Value::Integer(4), Value::Null];
    b.upsert(
        &header(),
        version(5),
        &[(1, version(6))],
        columns.into_iter(),
    );
    b.upsert(
        &header(),
        version(5),
        &[(1, version(-1))],
        columns.into_iter(),
    );
    b.delete(&header(), version(7), key(5));
    let bytes = b.finish();
    let Frame::Rows {
        nodes,
        tables,
        faults,
    } = Frame::decode(&bytes).unwrap()
    else {
        panic!()
    };
    let (mut rows, mut row, mut taken) = (tables[0].rows(&nodes), Row::default(), Vec::new());
    while rows.next(&mut row).unwrap() {
        taken.push(row.version.hlc);
    }
    assert_eq!((taken, faults.rows), (vec![5, 7], 5));
    assert!(faults.first.contains("its version is out of bounds"));
    assert!(faults.first.starts_with("table \""), "{}", faults.first);
}

#[test]
fn a_frame_names_no_more_than_it_may() {
    let mut bytes = Vec::new();
    cbor::write_array(&mut bytes, 4);
    cbor::write_unsigned(&mut bytes, FORMAT);
    cbor::write_unsigned(&mut bytes, ROWS);
    let nodes = bytes.len();
    for count in [MAX_NAMES, MAX_NAMES + 1] {
        bytes.truncate(nodes);
        cbor::write_array(&mut bytes, count);
        (0..count).for_each(|n| cbor::write_unsigned(&mut bytes, n as u64 % 20));
        cbor::write_array(&mut bytes, 0);
        assert_eq!(Frame::decode(&bytes).is_ok(), count == MAX_NAMES);
    }
    let mut b = FrameBuilder::default();
    let key = [KeyColumn {
        name: "k".into(),
        affinity: "TEXT",
        collation: "BINARY".into(),
    }];
    let mut table = 0;
    while !b.is_full() {
        table += 1;
        let header = TableHeader::new(table, &format!("t{table}"), &key, &["k"]);
        let version = Version { hlc: 5, node: 1 };
        b.delete(&header, version, [Value::Integer(1)].into_iter());
    }
    Frame::decode(&b.finish()).unwrap();
}

#[test]
fn a_name_without_end_is_refused() {
    for length in [MAX_NAME_BYTES, MAX_NAME_BYTES + 1] {
        let name = "n".repeat(length);
        let key = [KeyColumn {
            name: "k".into(),
            affinity: "TEXT",
            collation: "BINARY".into(),
        }];
        let mut b = FrameBuilder::default();
        let version = Version { hlc: 5, node: 1 };
        let header = TableHeader::new(1, &name, &key, &["k"]);
        b.delete(&header, version, [Value::Integer(1)].into_iter());
        assert_eq!(Frame::decode(&b.finish()).is_ok(), length == MAX_NAME_BYTES);
    }
}

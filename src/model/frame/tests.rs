use super::*;

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
    let Frame::Rows { nodes, tables } = Frame::decode(&bytes).unwrap() else {
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
fn versions_from_out_of_bounds_are_refused() {
    let mut b = FrameBuilder::default();
    let version = Version {
        hlc: crate::model::version::HLC_LIMIT,
        node: 1,
    };
    b.delete(&header(), version, [Value::Integer(2)].into_iter());
    assert!(matches!(
        Frame::decode(&b.finish()),
        Err(FrameError::BadVersion(_))
    ));
}

#[test]
fn packing_is_undone_and_bounded() {
    let raw = vec![b'x'; 100_000];
    let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
    let packed = pack(raw.clone(), Some(&mut zstd));
    assert!(packed.len() < 1000);
    assert_eq!(unpack(&packed, 100_000).unwrap(), raw);
    assert!(matches!(
        unpack(&packed, 99_999),
        Err(FrameError::TooLarge(100_000, 99_999))
    ));
    assert_eq!(unpack(&raw, 100_000).unwrap(), raw);
}

#[test]
fn parts_fit_and_join_to_the_whole() {
    let whole: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    let id = message_id(&whole, 0);
    let mut joined = Vec::new();
    let parts = cut(&id, &whole, 4096);
    for (i, bytes) in parts.iter().enumerate() {
        assert!(bytes.len() <= 4096);
        let Frame::Part(part) = Frame::decode(bytes).unwrap() else {
            panic!()
        };
        assert_eq!((part.id, part.index as usize), (&id[..], i));
        assert_eq!(part.count as usize, parts.len());
        joined.extend_from_slice(part.bytes);
    }
    assert_eq!(joined, whole);
}

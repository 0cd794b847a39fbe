//! What opens, and everything that must not.

use std::convert::Infallible;
use std::io::{Read, Write};

use super::*;

fn key() -> ClusterKey {
    key::parse(&key::make(1).unwrap()).unwrap().remove(0)
}

fn seal(keys: &[&ClusterKey], requires: bool) -> Seal {
    Seal::new(keys.iter().map(|key| (*key).clone()).collect(), requires)
}

/// Receives a text while the cluster tells of no newer key.
fn received(seal: &Seal, text: Vec<u8>) -> Received {
    let received = seal.receive(PLACE, text, || Ok::<(), Infallible>(()));
    received.unwrap()
}

const PLACE: SealPlace<'_> = SealPlace::Message {
    stream: "changes-1",
    id: "ab",
};

#[test]
fn a_text_opens_in_its_place_alone() {
    let key = key();
    let seal = seal(&[&key], true);
    for text in [&b""[..], b"x", &[7; 100_000]] {
        let sealed = seal.seal(PLACE, text).into_owned();
        assert_eq!(sealed.len(), text.len() + seal.overhead());
        assert_eq!(seal.open(PLACE, sealed.clone()).unwrap(), text);
        for (stream, id) in [
            ("changes-2", "ab"),
            ("changes-1", "ac"),
            ("changes-1a", "b"),
        ] {
            let elsewhere = SealPlace::Message { stream, id };
            assert_eq!(seal.open(elsewhere, sealed.clone()), Err(Unopened::Forged));
        }
        let (bucket, key) = ("changes-1", "ab");
        let value = SealPlace::Value { bucket, key };
        assert_eq!(seal.open(value, sealed), Err(Unopened::Forged));
    }
}

#[test]
fn a_changed_or_cut_text_does_not_open() {
    let key = key();
    let seal = seal(&[&key], true);
    let sealed = seal.seal(PLACE, b"a text").into_owned();
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert!(seal.open(PLACE, changed).is_err(), "byte {at}");
        assert!(
            seal.open(PLACE, sealed[..at].to_vec()).is_err(),
            "cut at {at}"
        );
    }
    let mut longer = sealed;
    longer.push(0);
    assert_eq!(seal.open(PLACE, longer), Err(Unopened::Forged));
}

#[test]
fn keys_change_in_steps() {
    let (old, new) = (key(), key());
    let (of_old, of_both) = (seal(&[&old], true), seal(&[&old, &new], true));
    let (of_new, none) = (seal(&[&new, &old], true), Seal::default());
    let by_old = of_old.seal(PLACE, b"1").into_owned();
    let by_new = of_new.seal(PLACE, b"2").into_owned();
    for seal in [&of_both, &of_new] {
        assert_eq!(seal.open(PLACE, by_old.clone()).unwrap(), b"1");
        assert_eq!(seal.open(PLACE, by_new.clone()).unwrap(), b"2");
    }
    let unknown = of_old.open(PLACE, by_new.clone()).unwrap_err();
    assert_eq!(unknown, Unopened::UnknownKey(new.id));
    assert_eq!(none.open(PLACE, by_new.clone()), Err(Unopened::NoKey));
    let stale = |seal: &Seal| {
        (
            seal.is_stale(&by_old, false),
            seal.is_stale(&by_new, true),
            seal.is_stale(b"{}", true),
        )
    };
    assert_eq!(stale(&of_new), (true, false, false));
    assert_eq!(stale(&of_old), (false, false, false));
    assert_eq!(stale(&seal(&[&new, &old], false)), (true, false, true));
    assert_eq!(stale(&none), (false, false, false));
}

#[test]
fn open_texts_pass_until_the_key_is_required() {
    let key = key();
    for (seal, passes) in [
        (Seal::default(), true),
        (seal(&[&key], false), true),
        (seal(&[&key], true), false),
    ] {
        let received = received(&seal, b"open".to_vec());
        assert_eq!(received == Received::Opened(b"open".to_vec()), passes);
        assert_eq!(seal.refusals.count(), u64::from(!passes));
        assert_eq!(seal.refusals.problem().is_some(), !passes);
    }
}

#[test]
fn messages_from_before_the_key_are_read() {
    let key = key();
    let seal = seal(&[&key], true);
    seal.set_open_until([("a-1".to_owned(), (7, "2026".to_owned()))].into());
    let look = || Ok::<(), Infallible>(());
    let read = |stream, at| {
        let received = seal.receive_message((stream, "id"), at, b"1".to_vec(), look);
        received.unwrap()
    };
    assert_eq!(read("a-1", (7, "2026")), Received::Opened(b"1".to_vec()));
    assert_eq!(read("a-1", (8, "2026")), Received::Refused);
    assert_eq!(read("a-2", (1, "2026")), Received::Refused);
    // A stream that was made anew holds nothing from before.
    assert_eq!(read("a-1", (1, "2027")), Received::Refused);
}

/// A node that missed the change of a key must not pass over what was sealed with the newer one; a
/// stranger who invents keys must not hold it up.
#[test]
fn an_unknown_key_waits_if_the_cluster_tells_of_a_newer_one() {
    let (own, other) = (key(), key());
    let (here, there) = (seal(&[&own], true), seal(&[&other], true));
    let sealed = || there.seal(PLACE, b"1").into_owned();
    for _ in 0..2 {
        assert_eq!(here.receive(PLACE, sealed(), || Err("newer")), Err("newer"));
        assert_eq!(here.refusals.count(), 0);
    }
    assert_eq!(received(&here, sealed()), Received::Refused);
    assert_eq!(here.refusals.count(), 1);
    // What is certainly forged needs no look.
    let mut forged = here.seal(PLACE, b"1").into_owned();
    *forged.last_mut().unwrap() ^= 1;
    let refused = here.receive(PLACE, forged, || Err("looked"));
    assert_eq!(refused, Ok(Received::Refused));

    let unknown = Unopened::UnknownKey(other.id);
    assert!(!here.awaits_key(unknown));
    here.fall_behind();
    assert!(here.awaits_key(unknown) && !here.awaits_key(Unopened::Forged));
}

#[test]
fn ids_of_messages_tell_nothing_and_stay_the_same() {
    let (one, two) = (seal(&[&key()], true), seal(&[&key()], true));
    let of = [7; 16];
    assert_eq!(Seal::default().message_id("a-1", of), of);
    let id = one.message_id("a-1", of);
    assert_eq!(one.message_id("a-1", of), id);
    for other in [
        of,
        one.message_id("a-2", of),
        one.message_id("a-1", [8; 16]),
        two.message_id("a-1", of),
    ] {
        assert_ne!(id, other);
    }
}

const OBJECT: SealPlace<'_> = SealPlace::Object {
    cluster: "changes",
    name: "snapshot-1",
};

fn sealed_pieces(seal: &Seal, text: &[u8]) -> Vec<u8> {
    let (mut from, mut sealed) = (text, Vec::new());
    let key = seal.key().unwrap();
    let sealer = Sealer::new(key, OBJECT, text.len() as u64, &mut from);
    sealer.unwrap().read_to_end(&mut sealed).unwrap();
    assert_eq!(sealed.len() as u64, sealed_size(text.len() as u64));
    sealed
}

/// Opens a text that comes `step` bytes at a time.
fn opened(
    seal: &Seal,
    place: SealPlace<'_>,
    text: &[u8],
    step: usize,
) -> Result<Vec<u8>, Unopened> {
    let mut out = Vec::new();
    let mut opener = Opener::new(seal, place, &mut out);
    let mut steps = text.chunks(step);
    let done = steps.try_for_each(|part| opener.write_all(part));
    let done = done.and_then(|()| opener.finish());
    let refused = opener.refused();
    assert_eq!(done.is_err(), refused.is_some());
    refused.map_or(Ok(out), Err)
}

#[test]
fn objects_open_whole_or_not_at_all() {
    let key = key();
    let (seal, piece) = (seal(&[&key], true), 64 << 10);
    for size in [0, 1, piece - 1, piece, piece + 1, 3 * piece, 3 * piece + 5] {
        let text: Vec<u8> = (0..size).map(|i| (i >> 3) as u8).collect();
        let sealed = sealed_pieces(&seal, &text);
        for step in [1000, 1 << 20] {
            assert_eq!(
                opened(&seal, OBJECT, &sealed, step).unwrap(),
                text,
                "{size}"
            );
        }
        let moved = SealPlace::Object {
            cluster: "changes",
            name: "snapshot-2",
        };
        assert_eq!(opened(&seal, moved, &sealed, 1000), Err(Unopened::Forged));
        for end in [sealed.len() - 1, 31 + piece + 16, 31, 20, 3, 0] {
            let is_cut = end < sealed.len();
            let cut = is_cut.then(|| opened(&seal, OBJECT, &sealed[..end], 1000));
            assert!(cut.is_none_or(|cut| cut.is_err()), "{size}, {end}");
        }
    }
    let mut swapped = sealed_pieces(&seal, &vec![1; 3 * piece]);
    let (one, two) = swapped[31..].split_at_mut(piece + 16);
    one.swap_with_slice(&mut two[..piece + 16]);
    assert_eq!(opened(&seal, OBJECT, &swapped, 4096), Err(Unopened::Forged));
}

#[test]
fn open_objects_pass_until_the_key_is_required() {
    let key = key();
    let (of_key, rolling) = (seal(&[&key], true), seal(&[&key], false));
    for text in [&b""[..], b"HL", b"{\"format\":1}"] {
        for seal in [&Seal::default(), &rolling] {
            assert_eq!(opened(seal, OBJECT, text, 1).unwrap(), text);
        }
        assert_eq!(opened(&of_key, OBJECT, text, 1), Err(Unopened::NotSealed));
    }
    let sealed = sealed_pieces(&of_key, b"text");
    assert_eq!(opened(&rolling, OBJECT, &sealed, 3).unwrap(), b"text");
    let no_key = opened(&Seal::default(), OBJECT, &sealed, 3);
    assert_eq!(no_key, Err(Unopened::NoKey));
}

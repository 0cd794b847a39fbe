//! A cluster key, and the keys that are derived from it.

use std::fmt;
use std::io;

use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use hkdf::Hkdf;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha256;

use crate::model::text::hex;

/// Bytes of a cluster key.
const BYTES: usize = 32;

/// The start of a key's number, which tells keys apart and tells nothing of the key.
pub(super) type KeyId = [u8; 8];

/// One key of the cluster.
#[derive(Clone)]
pub struct ClusterKey {
    root: Hkdf<Sha256>,
    /// When it was made, in unix seconds: of two keys the newer one is known.
    pub(crate) made: u64,
    pub(super) cipher: XChaCha20Poly1305,
    pub(super) id: KeyId,
}

impl ClusterKey {
    fn new(made: u64, bytes: &[u8; BYTES]) -> ClusterKey {
        let root = Hkdf::<Sha256>::new(Some(&made.to_be_bytes()), bytes);
        let derive = |purpose: &[u8]| derived::<BYTES>(&root, &[purpose]);
        let cipher = XChaCha20Poly1305::new(&derive(b"seal").into());
        let id = derived(&root, &[b"id"]);
        ClusterKey {
            root,
            made,
            cipher,
            id,
        }
    }

    /// The key's number in hexadecimal, which a log may show.
    pub fn id_text(&self) -> String {
        hex(&self.id)
    }

    /// The id under which a message goes to `stream`, made of the id `of` its content. Nobody can
    /// tell the content by it, or take the id beforehand.
    pub(super) fn message_id(&self, stream: &str, of: &[u8; 16]) -> [u8; 16] {
        derived(&self.root, &[b"message id", of, stream.as_bytes()])
    }

    /// The password that our own servers present to each other.
    pub fn route_password(&self) -> String {
        hex(&derived::<BYTES>(&self.root, &[b"route login"]))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id_text())
    }
}

fn derived<const N: usize>(root: &Hkdf<Sha256>, info: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let expanded = root.expand_multi_info(info, &mut out);
    expanded.expect("that many bytes can be derived");
    out
}

/// The text of a file with a new key, made at `now`, in unix seconds.
pub fn make(now: u64) -> io::Result<String> {
    let mut bytes = [0; BYTES];
    random(&mut bytes)?;
    Ok(format!("{now}-{}\n", hex(&bytes)))
}

pub(super) fn random(bytes: &mut [u8]) -> io::Result<()> {
    match getrandom(&mut *bytes, GetRandomFlags::empty())? {
        all if all == bytes.len() => Ok(()),
        _ => Err(io::Error::other("the system gave too few random bytes")),
    }
}

/// Reads the keys of a file: one a line, the first to seal with. Lines that begin with # are
/// comments. The error says what is wrong and quotes nothing.
pub fn parse(text: &str) -> Result<Vec<ClusterKey>, String> {
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let mut keys: Vec<ClusterKey> = Vec::new();
    for (index, line) in lines {
        let wrong = |what: &str| format!("line {}: {what}", index + 1);
        let key =
            read(line).ok_or_else(|| wrong("that is no key as `harmonylite key` makes it"))?;
        if keys.iter().any(|known| known.id == key.id) {
            return Err(wrong("the same key stands there twice"));
        }
        if keys.iter().any(|known| known.made == key.made) {
            return Err(wrong(
                "made in the same second as another: neither is the newer one",
            ));
        }
        keys.push(key);
    }
    match keys.is_empty() {
        true => Err("there is no key in it".into()),
        false => Ok(keys),
    }
}

fn read(line: &str) -> Option<ClusterKey> {
    let (made, line) = line.split_once('-')?;
    if line.len() != 2 * BYTES || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut key = [0; BYTES];
    for (byte, at) in key.iter_mut().zip((0..line.len()).step_by(2)) {
        *byte = u8::from_str_radix(&line[at..at + 2], 16).ok()?;
    }
    Some(ClusterKey::new(made.parse().ok()?, &key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_keys() {
        let (one, two) = (make(1).unwrap(), make(2).unwrap());
        let keys = parse(&format!("# the cluster's\n{one}\n  {two}")).unwrap();
        assert_eq!(keys.len(), 2);
        assert_ne!(keys[0].id, keys[1].id);
        assert_eq!(parse(&one).unwrap()[0].id, keys[0].id);
        let of_later = one.replacen("1-", "7-", 1);
        assert_ne!(parse(&of_later).unwrap()[0].id, keys[0].id);
        for (text, says) in [
            ("", "no key"),
            ("# only words", "no key"),
            ("abc", "line 1: that is no key"),
            (&one[2..], "line 1: that is no key"),
            (&*format!("{one}{}", "ä".repeat(32)), "line 2"),
            (&*format!("{one}{one}"), "line 2: the same key"),
            (&*format!("{one}{}", make(1).unwrap()), "line 2: made in"),
        ] {
            let wrong = parse(text).unwrap_err();
            assert!(wrong.contains(says), "{wrong}");
            assert!(!wrong.contains(one.trim()), "{wrong}");
        }
    }

    #[test]
    fn nothing_of_the_key_is_shown() {
        let text = make(1).unwrap();
        let keys = parse(&text).unwrap();
        let shown = format!("{keys:?}");
        assert!(!shown.contains(&text[2..18]) && !text.contains(&keys[0].id_text()));
        assert_ne!(keys[0].route_password(), &text.trim()[2..]);
    }
}

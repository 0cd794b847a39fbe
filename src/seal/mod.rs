//! The cluster key: nodes that have it seal what they send and store, and open nothing else.
//!
//! ```text
//! sealed text = "HLS" 1, id of the key (8 bytes), nonce (24), XChaCha20-Poly1305 of the text
//! ```
//!
//! A seal holds in one place only: the associated data say which ([`SealPlace`]). A message that
//! is put into a different stream, or a value under a different key, does not open. The file of
//! the cluster key has one key a line. One seals, all of them open: so the key changes while the
//! cluster runs ([`crate::cluster::key_change`]). What is sealed with an unknown key waits if the
//! cluster tells of a newer key ([`crate::stream::newer_key`]). Whatever else does not open is
//! refused and counted ([`Refusals`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chacha20poly1305::{AeadInPlace, Tag, XNonce};

pub mod key;
mod pieces;
mod refusals;
#[cfg(test)]
mod tests;

pub use key::ClusterKey;
use key::{KeyId, random};
pub use pieces::{Opener, Sealer, sealed_size};
pub use refusals::Refusals;

/// Begins each sealed text. Nothing else that nodes exchange begins so.
const MAGIC: [u8; 4] = *b"HLS\x01";
/// Begins each text that is sealed in pieces.
const MAGIC_OF_PIECES: [u8; 4] = *b"HLS\x02";

const NONCE: usize = 24;
const TAG: usize = 16;
const HEAD: usize = MAGIC.len() + size_of::<KeyId>() + NONCE;

/// Bytes that a seal adds to a text.
pub const OVERHEAD: usize = HEAD + TAG;

/// The last message of each stream from before the cluster had a key, and when that stream was
/// created.
pub type OpenUntil = BTreeMap<String, (u64, String)>;

/// The place of a text, which its seal is bound to.
#[derive(Debug, Clone, Copy)]
pub enum SealPlace<'a> {
    /// A message of a stream, with its `Nats-Msg-Id`.
    Message {
        /// Name of the stream.
        stream: &'a str,
        /// Id of the message.
        id: &'a str,
    },
    /// A value in a bucket.
    Value {
        /// Name of the bucket.
        bucket: &'a str,
        /// Key in the bucket.
        key: &'a str,
    },
    /// An object in the store of snapshots.
    Object {
        /// `nats.stream_prefix`.
        cluster: &'a str,
        /// Name of the object.
        name: &'a str,
    },
}

impl SealPlace<'_> {
    /// The associated data: each part behind its length.
    fn bytes(&self) -> Vec<u8> {
        let parts = match self {
            SealPlace::Message { stream, id } => ["message", stream, id],
            SealPlace::Value { bucket, key } => ["value", bucket, key],
            SealPlace::Object { cluster, name } => ["object", cluster, name],
        };
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

impl fmt::Display for SealPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SealPlace::Message { stream, .. } => write!(f, "a message of {stream}"),
            SealPlace::Value { bucket, key } => write!(f, "key {key} of bucket {bucket}"),
            SealPlace::Object { name, .. } => write!(f, "object {name}"),
        }
    }
}

/// Why a text does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// It is sealed, and this node has no key at all.
    #[error(
        "it is sealed with a cluster key, and this node has none: set cluster_key_file to a copy \
         of the other nodes' file"
    )]
    NoKey,
    /// It is sealed with a key that is not in this node's file.
    #[error("it is sealed with a key that this node does not have")]
    UnknownKey(KeyId),
    /// It was changed, or it was sealed for a different place.
    #[error("its seal is not that of its place: it was forged, changed or moved")]
    Forged,
    /// It is not sealed, and must be.
    #[error("it is not sealed (require_key)")]
    NotSealed,
}

/// What became of a text that came from outside.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// The text without its seal.
    Opened(Vec<u8>),
    /// It is refused, and counted.
    Refused,
    /// It waits until this node has the key; the reason.
    Waits(String),
}

/// The keys of this node; without one, all is open.
#[derive(Default)]
pub struct Seal {
    keys: Vec<ClusterKey>,
    /// Which of them seals: the first, until the cluster is found to have a newer one.
    sealing: AtomicUsize,
    /// Whether texts that are not sealed are refused.
    requires: bool,
    /// What was refused.
    pub refusals: Refusals,
    /// Whether the cluster tells of a newer key.
    is_behind: AtomicBool,
    open_until: Mutex<OpenUntil>,
}

impl Seal {
    /// The keys of a file; `requires`: refuse what is not sealed.
    pub fn new(keys: Vec<ClusterKey>, requires: bool) -> Seal {
        Seal {
            requires: requires && !keys.is_empty(),
            keys,
            ..Seal::default()
        }
    }

    /// All keys.
    pub fn keys(&self) -> &[ClusterKey] {
        &self.keys
    }

    /// The key that seals; none if this node has no key.
    pub fn key(&self) -> Option<&ClusterKey> {
        self.keys.get(self.sealing.load(Ordering::Relaxed))
    }

    /// Lets the key of this number seal. False if it is not in this node's file.
    pub fn seal_with(&self, id: &str) -> bool {
        let place = self.keys.iter().position(|key| key.id_text() == id);
        if let Some(place) = place {
            self.sealing.store(place, Ordering::Relaxed);
        }
        place.is_some()
    }

    /// Whether what is not sealed is refused.
    pub fn requires(&self) -> bool {
        self.requires
    }

    /// Bytes that [`Self::seal`] adds.
    pub fn overhead(&self) -> usize {
        if self.keys.is_empty() { 0 } else { OVERHEAD }
    }

    /// The id under which a message goes to `stream`; `of` is the id of its content.
    pub fn message_id(&self, stream: &str, of: [u8; 16]) -> [u8; 16] {
        let key = self.key();
        key.map_or(of, |key| key.message_id(stream, &of))
    }

    /// Seals a text, if this node has a key.
    pub fn seal<'t>(&self, context: SealPlace<'_>, text: &'t [u8]) -> Cow<'t, [u8]> {
        let Some(key) = self.key() else {
            return Cow::Borrowed(text);
        };
        let mut nonce = [0; NONCE];
        random(&mut nonce).expect("the system has random bytes");
        let mut sealed = Vec::with_capacity(text.len() + OVERHEAD);
        sealed.extend_from_slice(&MAGIC);
        sealed.extend_from_slice(&key.id);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(text);
        let body = &mut sealed[HEAD..];
        let tag = encrypt(key, &nonce, &context.bytes(), body);
        sealed.extend_from_slice(&tag);
        Cow::Owned(sealed)
    }

    /// Opens a text.
    pub fn open(&self, context: SealPlace<'_>, mut bytes: Vec<u8>) -> Result<Vec<u8>, Unopened> {
        if !bytes.starts_with(&MAGIC) {
            return if self.requires {
                Err(Unopened::NotSealed)
            } else {
                Ok(bytes)
            };
        }
        let key = self.key_of(&bytes)?;
        if bytes.len() < OVERHEAD {
            return Err(Unopened::Forged);
        }
        let (head, rest) = bytes.split_at_mut(HEAD);
        let (body, tag) = rest.split_at_mut(rest.len() - TAG);
        let nonce = &head[HEAD - NONCE..];
        decrypt(key, nonce, &context.bytes(), body, tag)?;
        bytes.truncate(bytes.len() - TAG);
        bytes.drain(..HEAD);
        Ok(bytes)
    }

    /// Opens a text that came from outside, or counts why it does not open. `look` fails if the
    /// cluster tells of a newer key, which an unknown key may be.
    pub fn receive<E>(
        &self,
        context: SealPlace<'_>,
        bytes: Vec<u8>,
        look: impl FnOnce() -> Result<(), E>,
    ) -> Result<Received, E> {
        let fingerprint = self.refusals.fingerprint(context, &bytes);
        let why = match self.open(context, bytes) {
            Ok(text) => return Ok(Received::Opened(text)),
            Err(why @ Unopened::NoKey) => return Ok(Received::Waits(why.to_string())),
            Err(why) => why,
        };
        if let Unopened::UnknownKey(_) = why {
            look()?;
        }
        self.refusals.note(context, why, fingerprint);
        Ok(Received::Refused)
    }

    /// Opens a text that this key alone may seal, or counts why it does not open.
    pub fn receive_by(
        &self,
        key: &ClusterKey,
        context: SealPlace<'_>,
        bytes: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let fingerprint = self.refusals.fingerprint(context, &bytes);
        let opened = Seal::new(vec![key.clone()], true).open(context, bytes);
        let note = |why: &Unopened| self.refusals.note(context, *why, fingerprint);
        opened.inspect_err(note).ok()
    }

    /// Opens the message `sequence` of a stream that was created at `created`. A message from
    /// before the cluster had a key needs no seal.
    pub fn receive_message<E>(
        &self,
        (stream, id): (&str, &str),
        (sequence, created): (u64, &str),
        bytes: Vec<u8>,
        look: impl FnOnce() -> Result<(), E>,
    ) -> Result<Received, E> {
        let is_before = || {
            let places = lock(&self.open_until);
            let place = places.get(stream);
            place.is_some_and(|(last, of)| sequence <= *last && of == created)
        };
        if self.requires && !bytes.starts_with(&MAGIC) && is_before() {
            return Ok(Received::Opened(bytes));
        }
        self.receive(SealPlace::Message { stream, id }, bytes, look)
    }

    /// Learns which messages are from before the cluster had a key.
    pub fn set_open_until(&self, places: OpenUntil) {
        *lock(&self.open_until) = places;
    }

    /// Whether a stored text should be sealed anew: it opens, and not by the key that seals;
    /// `also_open`: or it is not sealed.
    pub fn is_stale(&self, bytes: &[u8], also_open: bool) -> bool {
        let Some(own) = self.key() else {
            return false;
        };
        match bytes.starts_with(&MAGIC) {
            true => self.key_of(bytes).is_ok_and(|key| key.id != own.id),
            false => also_open && !self.requires,
        }
    }

    /// Notes that the cluster tells of a key that is not in this node's file.
    pub fn fall_behind(&self) {
        self.is_behind.store(true, Ordering::Relaxed);
    }

    /// Whether a text that does not open waits until this node has more keys.
    pub fn awaits_key(&self, why: Unopened) -> bool {
        let is_behind = self.is_behind.load(Ordering::Relaxed);
        why == Unopened::NoKey || (is_behind && matches!(why, Unopened::UnknownKey(_)))
    }

    /// The key that a text is sealed with, which begins with one of the magic numbers.
    fn key_of(&self, bytes: &[u8]) -> Result<&ClusterKey, Unopened> {
        if self.keys.is_empty() {
            return Err(Unopened::NoKey);
        }
        let id = bytes.get(MAGIC.len()..).and_then(|rest| rest.first_chunk());
        let id: &KeyId = id.ok_or(Unopened::Forged)?;
        let known = self.keys.iter().find(|key| key.id == *id);
        known.ok_or(Unopened::UnknownKey(*id))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn encrypt(key: &ClusterKey, nonce: &[u8], context: &[u8], text: &mut [u8]) -> Tag {
    let nonce = XNonce::from_slice(nonce);
    let tag = key.cipher.encrypt_in_place_detached(nonce, context, text);
    tag.expect("no text has more than 2^38 bytes")
}

fn decrypt(
    key: &ClusterKey,
    nonce: &[u8],
    context: &[u8],
    text: &mut [u8],
    tag: &[u8],
) -> Result<(), Unopened> {
    let (nonce, tag) = (XNonce::from_slice(nonce), Tag::from_slice(tag));
    let opened = key
        .cipher
        .decrypt_in_place_detached(nonce, context, text, tag);
    opened.map_err(|_| Unopened::Forged)
}

/// Names the keys and shows none of them.
impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Seal");
        shown.field("keys", &self.keys);
        shown.field("requires", &self.requires).finish()
    }
}

impl PartialEq for Seal {
    fn eq(&self, other: &Seal) -> bool {
        let ids = |seal: &Seal| seal.keys.iter().map(|key| key.id).collect::<Vec<_>>();
        ids(self) == ids(other) && self.requires == other.requires
    }
}

impl Eq for Seal {}

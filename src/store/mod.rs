//! Where snapshots are kept: a flat folder of objects, on one of five kinds of server.
//!
//! An object is written once, under a fresh name, and then named by the manifest, the one small
//! object that is replaced. So a store needs no more than four verbs, and no locks.
//!
//! | kind | where, and what stands for it when it is not configured |
//! |---|---|
//! | nats | object-store bucket `bucket`, or `<stream_prefix>-snapshot-store` |
//! | s3 | folder `path` of the bucket, or its top; region from the endpoint's name or `us-east-1` |
//! | webdav | folder `path` (in `url`: `dir`) below the server's root, or that root |
//! | sftp | folder `path` (in `url`: the path), or the one that the login starts in |
//! | file | folder `path` |
//!
//! What is missing on the way is made: bucket, folders; of the file store's folder only the last
//! part, because a disk that is not mounted looks like a missing folder. Who only reads opens what
//! is there ([`open_existing`]) and makes nothing.
//!
//! [`open`] hands out every store inside a [`checked`] one, which looks at names and sizes once for
//! all of them. Nothing waits for ever: connecting ends within [`CONNECT`], and a server that is
//! silent for about [`SILENCE`] counts as gone.

use std::fmt;
use std::io::{Read, Write};
use std::time::Duration;

use crate::config::snapshot::Store as Settings;
use crate::stream::StreamError;
use crate::stream::client::Client;

mod checked;
#[cfg(feature = "store-file")]
mod file;
#[cfg(feature = "store-nats")]
mod nats;
#[cfg(any(
    feature = "store-file",
    feature = "store-sftp",
    feature = "store-webdav"
))]
mod part;
#[cfg(feature = "store-s3")]
mod s3;
#[cfg(feature = "store-sftp")]
mod sftp;
#[cfg(feature = "store-webdav")]
mod webdav;

/// How long a connection may take to come about.
pub const CONNECT: Duration = Duration::from_secs(10);
/// How long a server that should be sending or taking bytes may do neither. (Where a library counts
/// pieces that are taken in part, a broken connection shows after three times as long.)
pub const SILENCE: Duration = Duration::from_secs(15);

/// Why a store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{store}: there is no {name}")]
    NotFound { store: String, name: String },
    /// From [`Store::get`] alone: the server answers, and lost what it had of the object. Another
    /// try would find the same.
    #[error("{store}: {name} is damaged: {cause}")]
    Damaged {
        store: String,
        name: String,
        cause: String,
    },
    /// `store` is its kind and address, `doing` what was tried, `cause` what came of it and, where
    /// that is known, what to do. Never a secret.
    #[error("{store}: {doing}: {cause}")]
    Failed {
        store: String,
        doing: String,
        cause: String,
    },
}

impl StoreError {
    fn failed(store: &str, doing: impl fmt::Display, cause: impl fmt::Display) -> StoreError {
        StoreError::Failed {
            store: store.to_string(),
            doing: doing.to_string(),
            cause: cause.to_string(),
        }
    }
}

#[cfg(any(
    feature = "store-file",
    feature = "store-nats",
    feature = "store-s3",
    feature = "store-sftp",
    feature = "store-webdav"
))]
impl StoreError {
    fn not_found(store: &str, name: &str) -> StoreError {
        StoreError::NotFound {
            store: store.to_string(),
            name: name.to_string(),
        }
    }

    /// The bucket or folder is not there; `key` of the configuration names it.
    fn no_place(store: &str, what: &str, key: &str) -> StoreError {
        let name = format!("such {what}: no snapshot was saved there yet, or {key} is wrong");
        StoreError::not_found(store, &name)
    }
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// A connection to a store. What breaks is not mended: the owner drops it and opens another.
///
/// Names are of letters, digits, `-`, `_` and `.`, begin with a letter and are at most 200 bytes
/// long; others are refused, since a peer may have chosen them. An error of the reader or writer
/// that is handed in ends the transfer (that is how a stop or a limit of bytes gets in).
pub trait Store: Send {
    /// Kind and address for people, never a secret: `s3 http://127.0.0.1:9000/bucket/path`.
    fn address(&self) -> &str;

    /// Writes the object, or replaces it, with exactly `size` bytes of `from`, in memory that does
    /// not depend on `size`. Only after Ok does `get` find it whole; after an error `get` finds
    /// what was there before, or nothing, or (where a server cannot do better) something torn, and
    /// what was begun is cleaned up as far as the server can be reached.
    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()>;

    /// Writes the object's bytes to `into`. After an error, `into` may have got some of them.
    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()>;

    /// Names of all objects, in any order; of other things in the same place as well, such as what
    /// a broken `put` left behind (`<name>.part-…`), which `remove` can take away.
    fn list(&mut self) -> Result<Vec<String>>;

    /// Removes the object; it is no error if there is none.
    fn remove(&mut self, name: &str) -> Result<()>;
}

/// What becomes of a bucket or folder that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfAbsent {
    Make,
    Refuse,
}

type Connect<'a> = &'a dyn Fn() -> std::result::Result<Client, StreamError>;

/// Connects to the configured store, logs in, and makes what is missing (see the table above).
///
/// `stream_prefix` is `nats.stream_prefix`; `connect` makes a connection to the broker, for the
/// nats store alone. An error names the store and its address; the next try may fare better.
pub fn open(
    settings: &Settings,
    stream_prefix: &str,
    connect: Connect<'_>,
) -> Result<Box<dyn Store>> {
    open_as(settings, stream_prefix, connect, IfAbsent::Make)
}

/// As [`open`], for who only reads: makes nothing. A bucket or folder that is not there is
/// [`StoreError::NotFound`].
pub fn open_existing(
    settings: &Settings,
    stream_prefix: &str,
    connect: Connect<'_>,
) -> Result<Box<dyn Store>> {
    open_as(settings, stream_prefix, connect, IfAbsent::Refuse)
}

#[allow(unused_variables)] // in builds without all of them
fn open_as(
    settings: &Settings,
    stream_prefix: &str,
    connect: Connect<'_>,
    missing: IfAbsent,
) -> Result<Box<dyn Store>> {
    let store: Result<Box<dyn Store>> = match settings {
        #[cfg(feature = "store-nats")]
        Settings::Nats(settings) => Ok(Box::new(nats::open(
            settings,
            stream_prefix,
            connect,
            missing,
        )?)),
        #[cfg(feature = "store-s3")]
        Settings::S3(settings) => Ok(Box::new(s3::open(settings, missing)?)),
        #[cfg(feature = "store-webdav")]
        Settings::WebDav(settings) => Ok(Box::new(webdav::open(settings, missing)?)),
        #[cfg(feature = "store-sftp")]
        Settings::Sftp(settings) => Ok(Box::new(sftp::open(settings, missing)?)),
        #[cfg(feature = "store-file")]
        Settings::File(folder) => Ok(Box::new(file::open(folder, missing)?)),
        #[allow(unreachable_patterns)]
        other => Err(absent(other)),
    };
    Ok(Box::new(checked::Checked::new(store?)))
}

/// The error for a store that this program was built without.
fn absent(settings: &Settings) -> StoreError {
    let kind = match settings {
        Settings::Nats(_) => "nats",
        Settings::S3(_) => "s3",
        Settings::WebDav(_) => "webdav",
        Settings::Sftp(_) => "sftp",
        Settings::File(_) => "file",
    };
    let cause = format!("this harmonylite was built without it: build with feature store-{kind}");
    StoreError::failed(kind, "open", cause)
}

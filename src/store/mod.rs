//! The stores of snapshots: a flat folder of objects, on one of five kinds of server.
//!
//! An object is written once under a new name. The manifest, one small object that is replaced,
//! then names it. So a store needs only four operations and no locks.
//!
//! | kind | place, and its default |
//! |---|---|
//! | nats | object-store bucket `bucket`, or `<stream_prefix>-snapshot-store` |
//! | s3 | folder `path` of the bucket, or its top; region from the endpoint's name or `us-east-1` |
//! | webdav | folder `path` (in `url`: `dir`) below the server's root, or that root |
//! | sftp | folder `path` (in `url`: the path), or the one that the login starts in |
//! | file | folder `path` |
//!
//! A missing bucket or folder is created. Of the file store's folder only the last part is created,
//! because an unmounted disk looks like a missing folder. A caller that only reads uses
//! [`open_existing`], which creates nothing.
//!
//! [`open`] wraps every store in a [`checked`] one, which checks names and sizes for all of them.
//! Nothing waits for ever: an attempt to connect ends within [`CONNECT`], and a server that is
//! silent for about [`SILENCE`] counts as gone, as does a folder whose disk hangs.

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::config::snapshot::StoreSettings as Settings;
use crate::seal::Seal;
use crate::stream::StreamError;
use crate::stream::bandwidth::Bandwidth;
use crate::stream::client::Client;

#[cfg(feature = "store-file")]
mod aside;
mod checked;
#[cfg(feature = "store-file")]
mod file;
mod limited;
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
mod sealed;
#[cfg(feature = "store-sftp")]
mod sftp;
#[cfg(feature = "store-webdav")]
mod webdav;

/// Deadline of an attempt to connect.
pub const CONNECT: Duration = Duration::from_secs(10);
/// How long a server that should be sending or taking bytes may do neither. If a library counts
/// partly accepted pieces, it detects a broken connection after three times as long.
pub const SILENCE: Duration = Duration::from_secs(15);

/// Why a store operation failed. No text in it contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The object does not exist in the store; or, when a store is opened, the bucket or folder
    /// that `name` describes.
    #[error("{store}: there is no {name}")]
    NotFound {
        /// The store, as the configuration names it.
        store: String,
        /// The object that is not there.
        name: String,
    },
    /// Returned by [`Store::get`] only. The server answers, but lost data of the object. Another
    /// attempt would find the same.
    #[error("{store}: {name} is damaged: {cause}")]
    Damaged {
        /// Kind and address of the store.
        store: String,
        /// Name of the object.
        name: String,
        /// Result of the check that failed.
        cause: String,
    },
    /// Any other failure. Another attempt may succeed.
    #[error("{store}: {doing}: {cause}")]
    Failed {
        /// Kind and address, or only the kind if the address is not known yet.
        store: String,
        /// The operation that failed.
        doing: String,
        /// Reason of the failure and, if known, advice.
        cause: String,
    },
}

impl StoreError {
    pub(crate) fn failed(
        store: &str,
        doing: impl fmt::Display,
        cause: impl fmt::Display,
    ) -> StoreError {
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

    /// The bucket or folder does not exist; `key` of the configuration names it.
    fn no_place(store: &str, what: &str, key: &str) -> StoreError {
        let name = format!("such {what}: no snapshot was saved there yet, or {key} is wrong");
        StoreError::not_found(store, &name)
    }
}

/// Result of an operation on a store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A connection to a store. After a failure, the owner drops it and opens a new one.
///
/// Names consist of letters, digits, `-`, `_` and `.`, begin with a letter, and are at most 200
/// bytes long. All others are refused, since a peer may have chosen them. An error of the given
/// reader or writer ends the transfer: this is how the caller stops it or limits its bytes.
pub trait Store: Send {
    /// Kind and address for people, without secrets: `s3 http://127.0.0.1:9000/bucket/path`.
    fn address(&self) -> &str;

    /// Writes or replaces the object with exactly `size` bytes of `from`. The memory used does not
    /// depend on `size`.
    ///
    /// Only after `Ok` is `get` sure to find the whole object. After an error, `get` finds the
    /// previous object, or none, or a torn one if the server cannot do better. The store removes
    /// the unfinished object if it can reach the server.
    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()>;

    /// Writes the object's bytes to `into`. After an error, `into` may have received some of them.
    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()>;

    /// Names of all objects, in any order. The list also has other files in the same place, such as
    /// the remains of a broken `put` (`<name>.part-…`), which `remove` can delete.
    fn list(&mut self) -> Result<Vec<String>>;

    /// Removes the object. A missing object is no error.
    fn remove(&mut self, name: &str) -> Result<()>;
}

/// How a store treats a missing bucket or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfAbsent {
    Make,
    Refuse,
}

type Connect<'a> = &'a dyn Fn() -> std::result::Result<Client, StreamError>;

/// Connects to the configured store, logs in, and creates a missing bucket or folder (see the table
/// above).
///
/// `stream_prefix` is `nats.stream_prefix`. `connect` connects to the broker, for the nats store
/// only. An error names the store and its address; a later attempt may succeed.
pub fn open(
    settings: &Settings,
    stream_prefix: &str,
    connect: Connect<'_>,
) -> Result<Box<dyn Store>> {
    open_as(settings, stream_prefix, connect, IfAbsent::Make)
}

/// The same store, whose transfers keep to a limit.
pub fn limited(store: Box<dyn Store>, limit: Option<&Arc<Bandwidth>>) -> Box<dyn Store> {
    match limit.cloned() {
        Some(limit) => Box::new(limited::LimitedStore { store, limit }),
        None => store,
    }
}

/// The same store, whose objects are sealed with the key of the cluster `stream_prefix`.
pub fn sealed(store: Box<dyn Store>, seal: &Arc<Seal>, stream_prefix: &str) -> Box<dyn Store> {
    Box::new(sealed::SealedStore {
        store,
        seal: seal.clone(),
        cluster: stream_prefix.to_owned(),
    })
}

/// Like [`open`], for callers that only read: it creates nothing. A missing bucket or folder is
/// [`StoreError::NotFound`].
pub fn open_existing(
    settings: &Settings,
    stream_prefix: &str,
    connect: Connect<'_>,
) -> Result<Box<dyn Store>> {
    open_as(settings, stream_prefix, connect, IfAbsent::Refuse)
}

fn open_as(
    settings: &Settings,
    stream_prefix: &str,
    connect: Connect<'_>,
    missing: IfAbsent,
) -> Result<Box<dyn Store>> {
    #[cfg_attr(not(feature = "store-s3"), allow(unused_mut))]
    let mut secrets = settings.secrets();
    #[cfg(feature = "store-s3")]
    if let Settings::S3(_) = settings {
        secrets.extend(s3::environment_secrets());
    }
    match open_unchecked(settings, stream_prefix, connect, missing) {
        Ok(store) => Ok(Box::new(checked::Checked::new(store, secrets))),
        Err(error) => Err(checked::without_secrets(error, &secrets)),
    }
}

#[allow(unused_variables)] // in builds without all of them
fn open_unchecked(
    settings: &Settings,
    stream_prefix: &str,
    connect: Connect<'_>,
    missing: IfAbsent,
) -> Result<Box<dyn Store>> {
    Ok(match settings {
        #[cfg(feature = "store-nats")]
        Settings::Nats(settings) => {
            Box::new(nats::open(settings, stream_prefix, connect, missing)?)
        }
        #[cfg(feature = "store-s3")]
        Settings::S3(settings) => Box::new(s3::open(settings, missing)?),
        #[cfg(feature = "store-webdav")]
        Settings::WebDav(settings) => Box::new(webdav::open(settings, missing)?),
        #[cfg(feature = "store-sftp")]
        Settings::Sftp(settings) => Box::new(sftp::open(settings, missing)?),
        #[cfg(feature = "store-file")]
        Settings::File(folder) => {
            let (address, folder) = (file::address(folder), folder.clone());
            Box::new(aside::open(address, move || file::open(&folder, missing))?)
        }
        #[allow(unreachable_patterns)]
        other => return Err(absent(other)),
    })
}

/// The error for a kind of store that this program was built without.
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

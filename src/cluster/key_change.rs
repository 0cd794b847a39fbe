//! The change of the cluster key, while the cluster runs.
//!
//! A node whose file has a newer key in its first line tells so ([`crate::stream::newer_key`]). A
//! node that has both seals with the newer one from then on; one that has the older key alone waits
//! for its operator.

use crate::cluster::broker::SETTINGS;
use crate::cluster::registry::{ANNOUNCED, FOUNDER, NEWEST, PUBLISHER, TABLES, WANTED};
use crate::seal::{OpenUntil, Seal};
use crate::stream::StreamError;
use crate::stream::client::Client;
use crate::stream::jetstream::stream_state;
use crate::stream::key_value::KeyValue;
use crate::stream::newer_key::{NEWER, told};

/// Key of the last message of each stream from before the cluster had a key.
pub const OPEN: &str = "open.until";

/// Attempts to change a value that other nodes change as well.
const TRIES: usize = 8;

/// Tells the nodes that have an older key alone of the one that this node seals with.
pub(super) fn tell(bucket: &KeyValue<'_>, seal: &Seal) -> Result<(), StreamError> {
    let Some(own) = seal.key() else { return Ok(()) };
    for older in seal.keys().iter().filter(|key| key.made < own.made) {
        if told(bucket, older)?.is_none() {
            let key = format!("{NEWER}{}", older.id_text());
            let by_older = Seal::new(vec![older.clone()], true);
            let value = own.id_text();
            bucket.sealed_by(&by_older).put(&key, value.as_bytes())?;
        }
    }
    Ok(())
}

/// While nodes still join without a key, notes how far the streams have come. Once the key is
/// required, open messages up to there are read all the same, by nodes that were away or are new.
pub(super) fn note_open(
    bucket: &KeyValue<'_>,
    client: &Client,
    streams: &[String],
) -> Result<(), StreamError> {
    for _ in 0..TRIES {
        let stored = bucket.get(OPEN)?;
        let known: OpenUntil = stored
            .as_ref()
            .and_then(|(bytes, _)| serde_json::from_slice(bytes).ok())
            .unwrap_or_default();
        if client.seal().requires() {
            client.seal().set_open_until(known);
            return Ok(());
        }
        let mut places = OpenUntil::new();
        for stream in streams {
            let state = stream_state(client, stream)?;
            places.insert(stream.clone(), (state.last, state.created));
        }
        let bytes = serde_json::to_vec(&places).unwrap_or_default();
        let is_written = match stored {
            _ if places == known => true,
            Some((_, revision)) => bucket.update(OPEN, &bytes, revision)?,
            None => bucket.create(OPEN, &bytes)?,
        };
        if is_written {
            return Ok(());
        }
    }
    Err(StreamError::Refused(format!(
        "key {OPEN}: too many nodes write it at once"
    )))
}

/// Seals anew what lasts and was open, or sealed with an older key. What nodes that have no key yet
/// read stays open.
pub(super) fn renew(bucket: &KeyValue<'_>, seal: &Seal, node: u64) -> Result<(), StreamError> {
    if seal.requires() && seal.keys().len() == 1 {
        return Ok(());
    }
    let own = [PUBLISHER, TABLES].map(|prefix| format!("{prefix}{node}"));
    let all = [FOUNDER, NEWEST, ANNOUNCED, WANTED];
    let all = all.into_iter().chain(own.iter().map(String::as_str));
    for key in [SETTINGS, OPEN] {
        bucket.renew(key, false)?;
    }
    all.into_iter().try_for_each(|key| bucket.renew(key, true))
}

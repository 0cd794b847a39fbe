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
    let seal = client.seal();
    let mut places = OpenUntil::new();
    if !seal.requires() {
        for stream in streams {
            let state = stream_state(client, stream)?;
            places.insert(stream.clone(), (state.last, state.created));
        }
    }
    bucket.amend(OPEN, |stored| {
        let known = stored.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let known: OpenUntil = known.unwrap_or_default();
        if seal.requires() {
            seal.set_open_until(known);
            return None;
        }
        let mut places = places.clone();
        for (stream, (last, created)) in &mut places {
            // A node that looked later wrote sooner.
            if let Some((theirs, _)) = known.get(stream).filter(|(_, of)| of == created) {
                *last = (*last).max(*theirs);
            }
        }
        let bytes = serde_json::to_vec(&places).unwrap_or_default();
        (places != known).then_some(bytes)
    })
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

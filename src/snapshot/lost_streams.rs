//! Streams that are gone: the broker lost its store, or an operator has all read anew.
//!
//! Whoever has what they held publishes it again. But the last one that read a message may be gone
//! too, or be put back to what it was before, and a snapshot be all there is of it. So the newest
//! is merged, unless this node had read of those streams all that is in it.

use std::collections::BTreeMap;

use crate::apply::Position;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::{Database, Result};
use crate::model::manifest::{Entry, StreamPosition};
use crate::mutation::{self, Mutation};

type Lost = BTreeMap<String, StreamPosition>;

impl Database {
    /// The stream is gone that was read up to `position`. To be called before that is forgotten. Of
    /// several under one name the first counts: what was read later says nothing of that one.
    pub(crate) fn note_lost(&mut self, stream: &str, position: &Position) -> Result<()> {
        let place = StreamPosition {
            // All before a gap was read at best.
            seq: if position.gap.is_none() {
                position.seq
            } else {
                0
            },
            created: position.created.clone(),
            ..StreamPosition::default()
        };
        let mut lost = self.lost_streams()?;
        lost.entry(stream.to_owned()).or_insert(place);
        self.write(|db| db.set_lost(&lost))
    }

    /// A snapshot is to be merged whatever was read.
    pub(crate) fn lose_all_streams(&mut self) -> Result<()> {
        let streams = self.sequences().into_iter();
        let lost = streams.map(|(stream, _)| (stream, StreamPosition::default()));
        let lost = lost.collect();
        self.write(|db| db.set_lost(&lost))
    }

    /// Whether a snapshot may hold what nobody publishes again.
    pub fn seeks_snapshot(&self) -> Result<bool> {
        Ok(!self.lost_streams()?.is_empty() && !mutation::is(Mutation::LostStreamsForgotten))
    }

    /// Whether all that a snapshot holds of lost streams was read here, or it was made here.
    pub(crate) fn had_read(&self, entry: &Entry) -> Result<bool> {
        let had_read = |(stream, before): (&String, &StreamPosition)| {
            let place = entry.streams.get(stream);
            place.is_some_and(|p| p.created == before.created && p.seq <= before.seq)
        };
        let is_wanted = |before: &StreamPosition| before.created.is_empty();
        let lost = self.lost_streams()?;
        let is_ours = self.made()?.contains(&entry.name) && !lost.values().any(is_wanted);
        Ok(is_ours || lost.iter().all(had_read))
    }

    /// A snapshot is merged, or there is nothing to be had. Inside a transaction.
    pub(crate) fn forget_lost(&self) -> Result<()> {
        self.set_lost(&Lost::new())
    }

    fn lost_streams(&self) -> Result<Lost> {
        let text: Option<String> = get_meta(&self.conn, Meta::LostStreams)?;
        let lost = text.and_then(|text| serde_json::from_str(&text).ok());
        Ok(lost.unwrap_or_default())
    }

    fn set_lost(&self, lost: &Lost) -> Result<()> {
        let text = serde_json::to_string(lost).expect("a map of names is JSON");
        Ok(set_meta(&self.conn, Meta::LostStreams, text)?)
    }
}

//! Streams that are gone: the broker lost its store, or an operator has everything read anew.
//!
//! A node that has rows of them publishes those again. But the last node that read a message may be
//! gone too, or be put back to an earlier state, so that only a snapshot has its rows. So the
//! newest snapshot is merged, unless this node had read everything of those streams that is in it.

use std::collections::BTreeMap;

use crate::apply::Position;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::{Database, Result};
use crate::model::manifest::{SnapshotEntry, StreamPosition};
use crate::mutation::{self, Mutation};

type Lost = BTreeMap<String, StreamPosition>;

impl Database {
    /// Notes that the stream is gone which was read up to `position`. Must be called before the
    /// position is forgotten. Of several lost streams of one name the first counts: positions in a
    /// later one say nothing about it.
    pub(crate) fn note_lost(&mut self, stream: &str, position: &Position) -> Result<()> {
        let place = StreamPosition {
            // At best everything before a gap was read.
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

    /// Notes that a snapshot is to be merged whatever was read.
    pub(crate) fn lose_all_streams(&mut self) -> Result<()> {
        let streams = self.sequences().into_iter();
        let lost = streams.map(|(stream, _)| (stream, StreamPosition::default()));
        let lost = lost.collect();
        self.write(|db| db.set_lost(&lost))
    }

    /// Whether a snapshot may hold rows that no node publishes again.
    pub fn seeks_snapshot(&self) -> Result<bool> {
        Ok(!self.lost_streams()?.is_empty() && !mutation::is(Mutation::LostStreamsForgotten))
    }

    /// Whether everything that a snapshot holds of lost streams was read here, or the snapshot was
    /// made here.
    pub(crate) fn had_read(&self, entry: &SnapshotEntry) -> Result<bool> {
        let had_read = |(stream, before): (&String, &StreamPosition)| {
            let place = entry.streams.get(stream);
            place.is_some_and(|p| p.created == before.created && p.seq <= before.seq)
        };
        let is_wanted = |before: &StreamPosition| before.created.is_empty();
        let lost = self.lost_streams()?;
        let is_ours = self.made()?.contains(&entry.name) && !lost.values().any(is_wanted);
        Ok(is_ours || lost.iter().all(had_read))
    }

    /// Forgets the lost streams: a snapshot is merged, or there is none. Must be called inside a
    /// transaction.
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

//! Merges a snapshot: the newest one that can be had and is suitable.

use std::path::Path;
use std::time::Instant;

use super::{Round, RoundError, Scheduler};
use crate::database::{Database, DatabaseError};
use crate::db_file::access::FileAccess;
use crate::model::manifest::{Manifest, SnapshotEntry};
use crate::shared::Shared;
use crate::snapshot::error::TransferError;
use crate::snapshot::merge::Merge;
use crate::snapshot::{scratch, transfer};
use crate::store::Store;

/// The subject under which health names snapshots that no node announced.
const STRANGE: &str = "snapshots that nobody announced";

impl Scheduler {
    /// Merges the newest suitable snapshot. Returns false if there is none.
    pub(super) fn merge_any(
        &mut self,
        round: &mut Round<'_>,
        will_do: impl Fn(&Database, &SnapshotEntry) -> bool,
    ) -> Result<bool, RoundError> {
        let mut store = (round.open_store)()?;
        let manifest = transfer::read_manifest(&mut *store, &self.options.cluster);
        let is_missing = match &manifest {
            Ok(manifest) => manifest.as_ref().is_none_or(|m| self.is_missing(m)),
            Err(e) => transfer::is_torn(e),
        };
        if is_missing && !self.forgot {
            // An operator emptied the store, or put it back to an earlier state: a new snapshot is
            // needed. This is told once, or two nodes with different stores would keep each other
            // busy.
            self.forgot = true;
            round.registry.forget_newest()?;
        }
        let mut manifest = manifest?;
        self.forgot &= is_missing;
        if let Some(manifest) = &mut manifest {
            anchor(manifest, &round.registry.announced()?, round.shared);
        }
        let mut failure = None;
        for mut entry in manifest.into_iter().flat_map(|m| m.snapshots) {
            if let Some(newest) = &self.newest {
                entry.drop_unreliable(newest); // somebody may have found places lost
            }
            let entry = self.verify_positions(entry, round)?;
            if !will_do(&round.shared.lock().database, &entry) {
                continue;
            }
            match merge(round, &entry, &mut *store, self.options.scratch.as_deref()) {
                Ok(()) => {
                    let mut locked = round.shared.lock();
                    locked.database.note_merged_snapshot(&entry.name)?;
                    drop(locked);
                    self.merged = Some(entry.name);
                    return Ok(true);
                }
                // The snapshot before may be sound.
                Err(RoundError::Transfer(e @ TransferError::Bad { .. })) => {
                    log::error!("snapshot: {e}");
                    self.note_lost(round, entry.name, &mut *store)?;
                    failure = Some(RoundError::Transfer(e));
                }
                Err(RoundError::Database(e)) if is_of_the_file(&e) => {
                    log::error!("snapshot {}: {e}", entry.name);
                    failure = Some(RoundError::Database(e));
                }
                Err(e) => return Err(e),
            }
        }
        failure.map_or(Ok(false), Err)
    }

    /// Whether the store does not list the snapshot that the registry calls the newest.
    fn is_missing(&self, manifest: &Manifest) -> bool {
        let lists =
            |newest: &SnapshotEntry| manifest.snapshots.iter().any(|e| e.name == newest.name);
        manifest.newest().is_none() || !self.newest.as_ref().is_none_or(lists)
    }

    /// Notes that a snapshot cannot be had. The second time it is removed from the manifest,
    /// because no node would make a new one until then.
    fn note_lost(
        &mut self,
        round: &mut Round<'_>,
        name: String,
        store: &mut dyn Store,
    ) -> Result<(), RoundError> {
        if self.lost.insert(name.clone()) {
            return Ok(());
        }
        if !round.registry.lease()? {
            return Ok(());
        }
        let struck = transfer::remove_entry(&name, &self.options.cluster, store);
        let forgot = round.registry.forget_newest();
        round.registry.give_lease_back();
        struck?;
        forgot?;
        log::warn!("snapshot {name} is unusable: a new one is needed");
        self.lost.remove(&name);
        Ok(())
    }
}

/// Leaves out the snapshots that no node announced, and says so in the log and in health.
pub(super) fn anchor(manifest: &mut Manifest, announced: &[SnapshotEntry], shared: &Shared) {
    let strange = manifest.anchor(announced);
    if let Some(first) = strange.first() {
        let text = format!(
            "the store lists {} of which no node announced any, or a different one under the \
             name, as {first}: none is taken; see the log",
            strange.len()
        );
        shared.health.report_event(STRANGE, &text);
    }
    for name in strange {
        log::warn!(
            "snapshot {name} is not taken: the store lists it, and no node announced it, or a \
             different one under that name. If an operator put the store back to an earlier state \
             on purpose, delete the keys `snapshot` and `snapshots` of the cluster's meta bucket"
        );
    }
}

/// Whether an error while merging is that of the snapshot's file.
pub(super) fn is_of_the_file(e: &DatabaseError) -> bool {
    let is_ours = matches!(e, DatabaseError::Stopped | DatabaseError::NotReserved(_));
    !is_ours && !e.is_temporary()
}

/// Fetches a snapshot, into `folder` or beside the database, and merges it into the database.
fn merge(
    round: &mut Round<'_>,
    entry: &SnapshotEntry,
    store: &mut dyn Store,
    folder: Option<&Path>,
) -> Result<(), RoundError> {
    let began = Instant::now();
    let path = round.shared.lock().database.path().to_owned();
    let place = scratch::base(&path, folder);
    let access = FileAccess::of_database(&path);
    let file = transfer::fetch(entry, (&place, &access), store, round.watch)?;
    let mut merge = Merge::open(file.path(), entry)?;
    round.shared.lock().database.check_maker(entry)?;
    loop {
        let turn = round.shared.take_turn();
        let mut locked = round.shared.lock_to_write();
        let (done, mut captured) = merge.step(&mut locked.database)?;
        locked.hand_over(&mut captured);
        let held = locked.began.elapsed();
        drop(locked);
        round.shared.wake_publisher();
        if merge.has_tables() {
            round.shared.let_read();
        }
        if done {
            break;
        }
        let (seen, all) = merge.progress();
        let seen = round.watch.progress("merging", seen, all);
        seen.map_err(|_| RoundError::Stopped)?;
        let pause = round.watch.pause(round.shared.rest(turn, held));
        pause.map_err(|_| RoundError::Stopped)?;
    }
    log::info!(
        "snapshot {} merged, {} row(s) in it were new here, {} row(s) here are deleted by it{}, \
         in {} ms",
        entry.name,
        merge.rows.new,
        merge.rows.deleted,
        merge.rows.by_table(),
        began.elapsed().as_millis()
    );
    for (table, deleted, before) in merge.rows.many_deleted() {
        let text = format!(
            "snapshot {} of node {} deleted {deleted} of {before} row(s) of table {table}. If \
             nobody deleted them, somebody else wrote the snapshot: see \"Security\"",
            entry.name, entry.node
        );
        log::error!("{text}");
        let subject = format!("rows of table {table} deleted");
        round.shared.health.report_event(&subject, &text);
    }
    round.shared.set_joined();
    Ok(())
}

//! Rows that were inserted under one number: the newest of them is in the table, and the others are
//! here.
//!
//! A number whose rows have births ([`crate::model::birth`]) may have several *lives*. The newest
//! live one has the number: its version is in the versions table, and its values are in the table
//! or displaced. All other lives, waiting or dead, are in `___lives`. A waiting life comes back
//! when the one that has the number dies.

use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use crate::apply::Incoming;
use crate::apply::displaced::{decode, encode};
use crate::apply::held::Place;
use crate::apply::join::{columns, final_values};
use crate::capture::{Fates, Frames, has_mark, put_mark};
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::own_tables;
use crate::database::rows::{Rows, Stored, encode_exceptions, stored};
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{Database, DatabaseError, Result};
use crate::model::birth::Birth;
use crate::model::cbor;
use crate::model::merge::{self, Action};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};

/// A life that does not have its number.
#[derive(Debug, Clone)]
pub(crate) struct RowLife {
    pub stored: Stored,
    /// The values of all columns; empty if the life is dead.
    pub values: Vec<OwnedValue>,
}

impl RowLife {
    /// Of two live ones, the one with the larger order has the number.
    fn order(&self) -> (Version, Birth) {
        (self.stored.state.version, self.stored.birth)
    }

    fn is_live(&self) -> bool {
        !self.stored.state.deleted
    }
}

const COLUMNS: &str = "hlc, site, deleted, at, hash, exc, born, row";

/// The lives of one table in `___lives`.
pub(crate) struct Lives<'c> {
    pub conn: &'c Connection,
    pub table: &'c Table,
}

impl Lives<'_> {
    /// A life of the number `key`.
    pub(crate) fn get(&self, sites: &Sites, key: &[u8], birth: Birth) -> Result<Option<RowLife>> {
        let text = format!(
            "SELECT {COLUMNS} FROM __harmonylite___lives
             WHERE table_id = ?1 AND key = ?2 AND born = ?3"
        );
        let mut get = self.conn.prepare_cached(&text)?;
        let mut rows = get.query(params![self.table.id, key, birth.to_bytes()])?;
        rows.next()?
            .map(|row| self.read(sites, key, row))
            .transpose()
    }

    /// All lives of the number `key` that are here.
    pub(crate) fn of_key(&self, sites: &Sites, key: &[u8]) -> Result<Vec<RowLife>> {
        let text =
            format!("SELECT {COLUMNS} FROM __harmonylite___lives WHERE table_id = ?1 AND key = ?2");
        let mut get = self.conn.prepare_cached(&text)?;
        let mut rows = get.query(params![self.table.id, key])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(self.read(sites, key, row)?);
        }
        Ok(all)
    }

    /// Hands on each life of the number `key` that was learnt by transaction `local_tx`, or all for
    /// `i64::MAX`. One at a time: there may be more of one number than fit in memory.
    pub(crate) fn each_learnt_by(
        &self,
        sites: &Sites,
        (key, local_tx): (&[u8], i64),
        mut each: impl FnMut(RowLife) -> Result<()>,
    ) -> Result<()> {
        let text = format!(
            "SELECT {COLUMNS} FROM __harmonylite___lives
             WHERE table_id = ?1 AND key = ?2 AND ?3 IN (at, {})",
            i64::MAX
        );
        let mut get = self.conn.prepare_cached(&text)?;
        let mut rows = get.query(params![self.table.id, key, local_tx])?;
        while let Some(row) = rows.next()? {
            each(self.read(sites, key, row)?)?;
        }
        Ok(())
    }

    /// The waiting life of the number `key` that comes first when the number is free.
    fn next(&self, sites: &Sites, key: &[u8]) -> Result<Option<RowLife>> {
        let mut first = self.conn.prepare_cached(
            "SELECT born FROM __harmonylite___lives JOIN __harmonylite___sites USING (site)
             WHERE table_id = ?1 AND key = ?2 AND deleted = 0
             ORDER BY hlc DESC, node < 0 DESC, node DESC, born DESC LIMIT 1",
        )?;
        let mut rows = first.query(params![self.table.id, key])?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        let birth = read_birth(row.get_ref(0)?.as_blob().unwrap_or(&[0]))?;
        self.get(sites, key, birth)
    }

    fn read(&self, sites: &Sites, key: &[u8], row: &Row<'_>) -> Result<RowLife> {
        let mut stored = stored(sites, row)?;
        stored.birth = read_birth(row.get_ref(6)?.as_blob().unwrap_or(&[0]))?;
        stored.state.exceptions = self.table.named_now(stored.state.exceptions);
        let values = match row.get_ref(7)?.as_blob() {
            Ok(bytes) => decode(self.table, key, bytes)?,
            Err(_) => Vec::new(),
        };
        Ok(RowLife { stored, values })
    }

    /// Stores a life, and replaces an earlier state of it.
    pub(crate) fn put(&self, sites: &mut Sites, key: &[u8], life: &RowLife) -> Result<()> {
        let Stored {
            state,
            local_tx,
            hash,
            birth,
        } = &life.stored;
        let site = sites.site(self.conn, state.version.node)?;
        let row = life.is_live().then(|| encode(self.table, &life.values));
        self.conn
            .prepare_cached(
                "REPLACE INTO __harmonylite___lives(table_id, key, born, hlc, site, deleted, at, \
                 hash, exc, row) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                self.table.id,
                key,
                birth.to_bytes(),
                state.version.hlc,
                site,
                state.deleted,
                local_tx,
                hash,
                encode_exceptions(&state.exceptions),
                row
            ])?;
        Ok(())
    }

    /// Removes a life.
    pub(crate) fn remove(&self, key: &[u8], birth: Birth) -> Result<()> {
        self.conn
            .prepare_cached(
                "DELETE FROM __harmonylite___lives WHERE table_id = ?1 AND key = ?2 AND born = ?3",
            )?
            .execute(params![self.table.id, key, birth.to_bytes()])?;
        Ok(())
    }

    /// Whether a life of this number was learnt by transaction `local_tx`: then a mark of that
    /// transaction is that life's, too.
    pub(crate) fn shares_mark(&self, key: &[u8], local_tx: i64) -> Result<bool> {
        let mut some = self.conn.prepare_cached(
            "SELECT 1 FROM __harmonylite___lives WHERE table_id = ?1 AND key = ?2 AND at = ?3",
        )?;
        Ok(some.exists(params![self.table.id, key, local_tx])?)
    }

    /// Numbers, after the number `after`, of which a life waits.
    fn waiting(&self, after: &[u8], limit: usize) -> Result<Vec<Vec<u8>>> {
        let mut keys = self.conn.prepare_cached(
            "SELECT DISTINCT key FROM __harmonylite___lives
             WHERE table_id = ?1 AND key > ?2 AND deleted = 0 ORDER BY key LIMIT ?3",
        )?;
        let keys = keys.query_map(params![self.table.id, after, limit], |r| r.get(0))?;
        Ok(keys.collect::<rusqlite::Result<_>>()?)
    }
}

/// Whether a table (by number) has lives in `___lives`.
pub(crate) fn has_lives(conn: &Connection, table: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM __harmonylite___lives WHERE table_id = ?1 LIMIT 1")?
        .exists([table])
}

impl Database {
    pub(crate) fn lives<'c>(&'c self, table: &'c Table) -> Lives<'c> {
        Lives {
            conn: &self.conn,
            table,
        }
    }

    /// Whether this file may have births: it gives some, or has learnt some.
    pub(crate) fn has_births(&self) -> Result<bool> {
        let known = get_meta::<bool>(&self.conn, Meta::Births)?.is_some();
        if self.settings.births && !known {
            set_meta(&self.conn, Meta::Births, true)?;
        }
        let births = self.settings.births || known;
        if births {
            self.conn.execute_batch(own_tables::CREATE_LIVES)?;
        }
        Ok(births)
    }

    /// Whether rows here are to get births once all nodes know them.
    pub fn waits_for_births(&self) -> bool {
        self.settings.births_later && !self.settings.births
    }

    /// All nodes know births: rows here get them from here on, if they are to.
    pub fn begin_births(&mut self) -> Result<()> {
        match self.waits_for_births() {
            true => self.write(Database::learn_births),
            false => Ok(()),
        }
    }

    /// Some node gives births: the tables must have them from here on.
    pub(crate) fn learn_births(&mut self) -> Result<()> {
        set_meta(&self.conn, Meta::Births, true)?;
        if self.waits_for_births() {
            self.settings.births = true;
            // Entries of the change log from before do not tell how a row came under its number.
            self.catalog.fates = Fates::default();
        }
        self.catalog.forget();
        self.refresh_catalog()
    }

    /// The values of the life with this birth, if another life has its number.
    pub(crate) fn values_aside(
        &self,
        table: &Table,
        key: &[Value<'_>],
        key_bytes: &[u8],
        birth: Birth,
    ) -> Result<Option<Vec<OwnedValue>>> {
        if !self.has_lives(table) {
            return Ok(None);
        }
        let shown = Rows::new(&self.conn, table)?.version(&self.sites, key)?;
        if shown.is_some_and(|s| s.birth == birth) {
            return Ok(None);
        }
        let life = self.lives(table).get(&self.sites, key_bytes, birth)?;
        Ok(life.map(|life| life.values))
    }

    /// Whether a table may have lives in `___lives`.
    pub(crate) fn has_lives(&self, table: &Table) -> bool {
        self.catalog.lives.contains(&table.id)
    }

    /// The state of the life with this birth, wherever it is.
    pub(crate) fn life(
        &self,
        table: &Table,
        key: &[Value<'_>],
        birth: Birth,
    ) -> Result<Option<Stored>> {
        let shown = Rows::new(&self.conn, table)?.version(&self.sites, key)?;
        if !table.has_births || shown.as_ref().is_some_and(|s| s.birth == birth) {
            return Ok(shown);
        }
        let key = table.key_bytes(key.iter().copied());
        let birth = self.known_as(table, &key, shown.as_ref(), birth)?;
        if shown.as_ref().is_some_and(|s| s.birth == birth) {
            return Ok(shown);
        }
        let life = self.lives(table).get(&self.sites, &key, birth)?;
        Ok(life.map(|life| life.stored))
    }

    /// A row from before is the life without a birth of its number, if there is one: a node that
    /// begins with a copy of a file has the rows that the others had before births were assigned.
    fn known_as(
        &self,
        table: &Table,
        key: &[u8],
        shown: Option<&Stored>,
        birth: Birth,
    ) -> Result<Birth> {
        let is_before = matches!(birth, Birth::Before(_));
        let is_one = |s: &Stored| s.birth == Birth::None;
        if is_before
            && (shown.is_some_and(is_one)
                || self.has_lives(table)
                    && self
                        .lives(table)
                        .get(&self.sites, key, Birth::None)?
                        .is_some())
        {
            return Ok(Birth::None);
        }
        Ok(birth)
    }

    /// Joins a row of a life that does not have its number. None if the life has it, or if the
    /// number is free: then the row is joined in the usual way.
    pub(super) fn join_aside(
        &mut self,
        table: &Arc<Table>,
        key: &[Value<'_>],
        key_bytes: &[u8],
        incoming: &mut Incoming,
        frames: &mut Frames,
    ) -> Result<Option<bool>> {
        if !table.has_births {
            return Ok(None);
        }
        let mut shown = Rows::new(&self.conn, table)?.version(&self.sites, key)?;
        let mut birth = self.known_as(table, key_bytes, shown.as_ref(), incoming.birth)?;
        if incoming.row.is_none() && mutation::is(Mutation::DeleteNamesNoBirth) {
            birth = shown.as_ref().map_or(birth, |s| s.birth);
        }
        incoming.is_taken_in = birth != incoming.birth;
        incoming.birth = birth;
        if incoming.birth == Birth::None {
            self.fold_before(table, key, key_bytes)?;
            shown = Rows::new(&self.conn, table)?.version(&self.sites, key)?;
        }
        if shown.as_ref().is_some_and(|s| s.birth == incoming.birth) {
            return Ok(None);
        }
        let known = match self.has_lives(table) {
            true => self
                .lives(table)
                .get(&self.sites, key_bytes, incoming.birth)?,
            false => None,
        };
        if shown.is_none() && known.is_none() {
            return Ok(None);
        }
        let changed = self.join_life(table, key_bytes, known, incoming, frames)?;
        if changed {
            // The one that is shown was the first of all: only this life may come before it.
            let shown = shown.filter(|s| !s.state.deleted);
            let shown = shown.map(|s| (s.state.version, s.birth));
            let joined = self
                .lives(table)
                .get(&self.sites, key_bytes, incoming.birth)?;
            if shown.is_none() || shown < joined.map(|life| life.order()) {
                self.elect(table, key, key_bytes)?;
            }
        }
        Ok(Some(changed))
    }

    /// Gives the life without a birth what is known of the number's rows from before.
    fn fold_before(
        &mut self,
        table: &Arc<Table>,
        key: &[Value<'_>],
        key_bytes: &[u8],
    ) -> Result<()> {
        let mut rows = Rows::new(&self.conn, table)?;
        let is_before = |birth: Birth| matches!(birth, Birth::Before(_));
        let mut has_one = false;
        if let Some(mut shown) = rows.version(&self.sites, key)? {
            has_one = shown.birth == Birth::None;
            if is_before(shown.birth) {
                shown.birth = Birth::None;
                rows.put_version(&mut self.sites, key, &shown)?;
                has_one = true;
            }
        }
        drop(rows);
        if !self.has_lives(table) {
            return Ok(());
        }
        let mut all = Vec::new(); // rows from before: a few
        self.lives(table)
            .each_learnt_by(&self.sites, (key_bytes, i64::MAX), |life| {
                all.extend(Some(life).filter(|life| is_before(life.stored.birth)));
                Ok(())
            })?;
        if !all.is_empty() {
            self.restore_detector.forget(); // it knows these rows by their transactions
        }
        for mut life in all {
            let before = life.stored.birth;
            life.stored.birth = Birth::None;
            let known = self.lives(table).get(&self.sites, key_bytes, Birth::None)?;
            let is_higher = known
                .as_ref()
                .is_none_or(|known| known.order() < life.order());
            let lives = Lives {
                conn: &self.conn,
                table,
            };
            lives.remove(key_bytes, before)?;
            // Rows from before have the lowest versions: each write since is above.
            if !has_one && is_higher {
                lives.put(&mut self.sites, key_bytes, &life)?;
            }
        }
        Ok(())
    }

    fn join_life(
        &mut self,
        table: &Arc<Table>,
        key: &[u8],
        known: Option<RowLife>,
        incoming: &Incoming,
        frames: &mut Frames,
    ) -> Result<bool> {
        let stored = known.as_ref().map(|life| &life.stored);
        let local = known.as_ref().map(|life| &life.values[..]);
        let local = local.filter(|values| !values.is_empty());
        let each = columns(table, stored, local, incoming);
        let theirs = incoming.state();
        let before = stored.map(|s| &s.state);
        let (state, action) = merge::join(before, &theirs, &each);
        let in_doubt = stored
            .as_ref()
            .is_some_and(|s| s.state.deleted && self.may_be_dropped_elsewhere(s));
        let is_republished = in_doubt && theirs.deleted && before == Some(&theirs);
        let is_to_be_sent = {
            let mut versions = state.exceptions.values().chain([&state.version]);
            versions.any(|v| incoming.is_to_be_sent(*v))
        };
        let is_buried = in_doubt
            && !theirs.deleted
            && before.is_some_and(|b| theirs.floor() < b.version)
            && !mutation::is(Mutation::BuriedInSilence);
        if action == Action::Nothing && !is_republished {
            let at = Place::of_life(table, key, incoming.birth);
            let is_done = self.settle_held(table, &at, incoming, state.floor())?;
            let is_marked = self.settings.publish && (is_done && is_to_be_sent || is_buried);
            if let Some(life) = known.filter(|_| is_marked) {
                self.mark_life(table, key, &life, frames)?;
            }
            return Ok(false);
        }
        let is_tie = before.is_some_and(|b| b.version == theirs.version);
        let remains = stored.filter(|_| state != theirs || is_tie || incoming.is_taken_in);
        let remains = match remains {
            Some(s) => has_mark(&self.conn, table, key, s.local_tx)?,
            None => false,
        };
        let values = match state.deleted {
            true => Vec::new(),
            false => final_values(table, &action, &each, local),
        };
        let hash = match state.deleted {
            true => 0,
            false => table.content_hash(frames.local_tx, values.iter().map(OwnedValue::borrow)),
        };
        let changed = before != Some(&state);
        let floor = state.floor();
        let stored = Stored {
            state,
            local_tx: frames.local_tx,
            hash,
            birth: incoming.birth,
        };
        let life = RowLife { stored, values };
        self.put_aside(table, key, &life)?;
        let at = Place::of_life(table, key, incoming.birth);
        let is_done = self.settle_held(table, &at, incoming, floor)?;
        if self.settings.publish && (remains || is_done && is_to_be_sent || is_buried) {
            self.mark_life(table, key, &life, frames)?;
        }
        Ok(changed)
    }

    /// Stores a life in `___lives`.
    pub(crate) fn put_aside(&mut self, table: &Table, key: &[u8], life: &RowLife) -> Result<()> {
        self.catalog.lives.insert(table.id);
        let now = self.clock.uptime();
        if life.is_live() && self.displaced_alarm.rings(now).is_some() {
            log::warn!(
                "a row of table {} waits, because another row has its number: `harmonylite \
                 conflicts` shows it",
                table.name()
            );
        }
        let lives = Lives {
            conn: &self.conn,
            table,
        };
        lives.put(&mut self.sites, key, life)
    }

    /// Marks a life in `___lives`, which counts as learnt by the transaction of `frames`.
    pub(crate) fn mark_life(
        &mut self,
        table: &Table,
        key: &[u8],
        life: &RowLife,
        frames: &mut Frames,
    ) -> Result<()> {
        let mut life = life.clone();
        life.stored.local_tx = frames.local_tx;
        if life.is_live() {
            let values = life.values.iter().map(OwnedValue::borrow);
            life.stored.hash = table.content_hash(frames.local_tx, values);
        }
        self.put_aside(table, key, &life)?;
        let rows = Rows::new(&self.conn, table)?;
        put_mark(&rows, key, frames.local_tx)?;
        drop(rows);
        frames.is_republished = true;
        if frames.encode {
            self.encode_life(table, key, &life, frames)?;
        }
        Ok(())
    }

    /// Marks a life, wherever it is, as one to be sent again.
    pub(crate) fn mark_again(
        &mut self,
        table: &Table,
        (key, key_bytes): (&[Value<'_>], &[u8]),
        birth: Birth,
        frames: &mut Frames,
    ) -> Result<()> {
        if !self.has_lives(table) {
            return self.mark_republished(table, key_bytes, frames);
        }
        let shown = Rows::new(&self.conn, table)?.version(&self.sites, key)?;
        let birth = self.known_as(table, key_bytes, shown.as_ref(), birth)?;
        if shown.is_none_or(|s| s.birth != birth)
            && let Some(life) = self.lives(table).get(&self.sites, key_bytes, birth)?
        {
            return self.mark_life(table, key_bytes, &life, frames);
        }
        self.mark_republished(table, key_bytes, frames)
    }

    /// Forgets a life that was deleted everywhere.
    pub(crate) fn forget_life(
        &mut self,
        table: &Table,
        key: &[Value<'_>],
        key_bytes: &[u8],
        birth: Birth,
    ) -> Result<()> {
        if self.has_lives(table) {
            self.lives(table).remove(key_bytes, birth)?;
        }
        let mut rows = Rows::new(&self.conn, table)?;
        if rows
            .version(&self.sites, key)?
            .is_some_and(|s| s.birth == birth)
        {
            rows.forget_version(key)?;
        }
        Ok(())
    }

    /// Gives the number to its newest live life.
    pub(crate) fn elect(
        &mut self,
        table: &Arc<Table>,
        key: &[Value<'_>],
        key_bytes: &[u8],
    ) -> Result<()> {
        if !self.has_lives(table) {
            return Ok(());
        }
        if mutation::is(Mutation::WaitingDeletedWithShown) {
            let shown = Rows::new(&self.conn, table)?.version(&self.sites, key)?;
            if shown.is_some_and(|s| s.state.deleted) {
                let mut waiting = self.lives(table).of_key(&self.sites, key_bytes)?;
                waiting.retain(RowLife::is_live);
                let lives = self.lives(table);
                return waiting
                    .iter()
                    .try_for_each(|life| lives.remove(key_bytes, life.stored.birth));
            }
        }
        let Some(best) = self.lives(table).next(&self.sites, key_bytes)? else {
            return Ok(());
        };
        let shown = Rows::new(&self.conn, table)?.version(&self.sites, key)?;
        let shown_order = shown
            .as_ref()
            .filter(|s| !s.state.deleted)
            .map(|s| (s.state.version, s.birth));
        if shown_order >= Some(best.order()) {
            return Ok(());
        }
        let swapped = self.guarded_rows(
            table,
            |()| true,
            |db, table| db.swap(table, (key, key_bytes), shown.clone(), &best),
        )?;
        if let Err(reason) = swapped {
            log::warn!(
                "a row of table {} waits for its number: {reason}",
                table.name()
            );
        }
        Ok(())
    }

    /// Gives the number of `shown` to a waiting life.
    fn swap(
        &mut self,
        table: &Arc<Table>,
        (key, key_bytes): (&[Value<'_>], &[u8]),
        shown: Option<Stored>,
        best: &RowLife,
    ) -> Result<()> {
        let mut rows = Rows::new(&self.conn, table)?;
        let in_table = rows.owned_row(key)?;
        drop(rows);
        if let Some(stored) = shown {
            let values = match &in_table {
                Some(values) => Some(values.clone()),
                None => self.displaced_row(table, key_bytes)?,
            };
            let is_live = !stored.state.deleted;
            let values = values.filter(|_| is_live).unwrap_or_default();
            self.put_aside(table, key_bytes, &RowLife { stored, values })?;
        }
        self.lives(table).remove(key_bytes, best.stored.birth)?;
        let mut rows = Rows::new(&self.conn, table)?;
        // Columns may have got other names since.
        let values = best.values.iter().map(OwnedValue::borrow);
        let hash = table.content_hash(best.stored.local_tx, values);
        let stored = Stored {
            hash,
            ..best.stored.clone()
        };
        rows.put_version(&mut self.sites, key, &stored)?;
        drop(rows);
        self.settle_joined(table, key, key_bytes, in_table, Some(best.values.clone()))
    }

    /// Gives the numbers of a table to their newest live lives.
    pub(crate) fn elect_all(&mut self, table: &Arc<Table>) -> Result<()> {
        const STEP: usize = 128;
        let mut after = Vec::new();
        loop {
            let keys = self.lives(table).waiting(&after, STEP)?;
            for key_bytes in &keys {
                let key = cbor::key_values(key_bytes)?;
                let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
                self.elect(table, &key, key_bytes)?;
            }
            match keys.into_iter().next_back() {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    /// The highest hlc among the versions and births of a number's lives in `___lives`.
    pub(crate) fn highest_of_lives(lives: &Lives<'_>, key: &[u8]) -> Result<i64> {
        let mut highest = lives.conn.prepare_cached(
            "SELECT max(hlc), max(born) FROM __harmonylite___lives
             WHERE table_id = ?1 AND key = ?2",
        )?;
        let (hlc, born): (Option<i64>, Option<Vec<u8>>) =
            highest.query_row(params![lives.table.id, key], |r| Ok((r.get(0)?, r.get(1)?)))?;
        let born = read_birth(&born.unwrap_or_default())?; // in bytes they have their order
        Ok(hlc.unwrap_or(0).max(born.hlc()))
    }

    /// Number of waiting lives, counted up to `most`.
    pub(crate) fn waiting_up_to(&self, most: u64) -> Result<u64> {
        if !self.catalog.births {
            return Ok(0);
        }
        let text = "SELECT count(*) FROM (
                        SELECT 1 FROM __harmonylite___lives WHERE deleted = 0 LIMIT ?1)";
        let mut statement = self.conn.prepare_cached(text)?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        Ok(statement.query_row([most], |r| r.get(0))?)
    }

    /// Key and birth of the next dead lives of a table, after a place, that were learnt up to a
    /// transaction.
    pub(crate) fn dead_lives(
        &self,
        table: &Table,
        up_to: i64,
        (key, birth): &(Vec<u8>, Birth),
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Birth)>> {
        let mut get = self.conn.prepare_cached(
            "SELECT key, born FROM __harmonylite___lives WHERE table_id = ?1 AND deleted = 1
             AND at <= ?2 AND (key, born) > (?3, ?4) ORDER BY key, born LIMIT ?5",
        )?;
        let mut rows = get.query(params![table.id, up_to, key, birth.to_bytes(), limit])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let birth = row.get_ref(1)?.as_blob().unwrap_or(&[0]);
            all.push((row.get(0)?, read_birth(birth)?));
        }
        Ok(all)
    }
}

fn read_birth(bytes: &[u8]) -> Result<Birth> {
    let broken = || DatabaseError::Damaged("a birth in ___lives is not valid".to_owned());
    Birth::from_bytes(bytes).ok_or_else(broken)
}

//! A node: a database file with an application and the core on it, and the accidents of its
//! machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use harmonylite::database::rows::decode_exceptions;
use harmonylite::database::schema::quote;
use harmonylite::database::{Database, Settings};
use harmonylite::model::birth::Birth;
use harmonylite::model::merge::Exceptions;
use harmonylite::model::value::OwnedValue;
use harmonylite::model::version::Version;
use harmonylite::shared::{Locked, Shared};
use harmonylite::snapshot::Sweep;
use harmonylite::snapshot::scheduler::Scheduler;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::clock::SimClock;
use crate::meanwhile::Meanwhile;
use crate::model::{Model, Row, RowId};
use crate::numbered::{Deeds, birth_beside, life, number};
use crate::plan::{Migration, Plan, Table};
use crate::random::Random;

/// A time before that of any real clock: nodes live before it, so a time after it comes from the
/// real clock.
const REAL_TIME: i64 = 1_750_000_000_000;

pub const MAX_CLOCK_DRIFT: Duration = Duration::from_secs(60);

pub struct Options {
    pub shards: u32,
    pub scan_max_changes: usize,
    pub max_transaction_bytes: usize,
    pub max_message_bytes: usize,
    pub compress: bool,
    pub in_flight: usize,
    /// How long the schema must stay unchanged before the core takes it in.
    pub quiet: Duration,
    /// Messages that a stream keeps.
    pub max_entries: usize,
    pub tombstone_retention: Duration,
}

impl Options {
    pub fn most_ahead(&self) -> u64 {
        (self.max_entries as u64 / 2).max(1)
    }
}

/// Facts about a database that the core does not keep in it. They are put back with the file.
#[derive(Clone, Default)]
pub struct Shadow {
    /// Columns of each table in their order here; none while the table is not here.
    pub columns: Vec<Option<Vec<usize>>>,
    pub done: Vec<Migration>,
    /// Rows that the application changed and whose version was not seen yet, with their present
    /// content.
    pub pending: BTreeMap<(usize, String), Option<Row>>,
    /// Tables that the application wrote to while held rows waited for them, or may have waited
    /// before the core saw the table: its writes may lose as soon as the core sees them.
    pub contested: BTreeSet<usize>,
    /// Rows that statements named or changed since everything was seen. They alone may count as
    /// written although their content is the same.
    pub named: BTreeSet<(usize, String)>,
    /// In worlds with births.
    pub deeds: Deeds,
}

/// The file in the state in which a power cut may leave it.
#[derive(Clone)]
pub struct Image {
    database: Vec<u8>,
    wal: Vec<u8>,
    pub shadow: Shadow,
    /// Number of this node's writes that are in it.
    pub written: usize,
    /// The time on the machine's clock when the image was made.
    pub clock_ms: i64,
    /// The rows in it that were unsent, in worlds where nodes forget deletes.
    pub unsent: BTreeSet<(usize, String)>,
}

/// A power cut after which all uncaptured writes were in the change log, with usable times.
pub struct Cut {
    /// The time of the last entry.
    pub last_ms: i64,
    /// Rows that statements named since the cut.
    pub touched: BTreeSet<(usize, String)>,
}

pub struct Packet {
    pub token: u64,
    pub shard: u32,
    pub id: String,
    pub data: Vec<u8>,
}

/// The publisher's connection, and the messages under way on it.
#[derive(Default)]
pub struct Link {
    /// Per token: frame, shard and id of the message.
    pub messages: BTreeMap<u64, (u64, u32, String)>,
    pub frames: BTreeMap<u64, (i64, usize)>,
    pub next: u64,
    /// Messages that were sent and are not at the broker yet.
    pub wire: VecDeque<Packet>,
    /// Acknowledgements that are not here yet: token, sequence, and whether the broker had the
    /// message before.
    pub acks: VecDeque<(u64, u64, bool)>,
    /// One acknowledgement will never come; those of later messages may.
    pub is_in_vain: bool,
}

/// A consumer's place in a stream.
#[derive(Clone, Copy)]
pub struct Reader {
    pub from: u64,
    pub end: u64,
}

pub struct Node {
    /// Its place in the simulation.
    pub place: usize,
    /// The id that the core uses: not the configured one after it met a duplicate node.
    pub id: u64,
    configured_id: u64,
    path: PathBuf,
    pub clock: Arc<SimClock>,
    pub app: Option<Connection>,
    pub shared: Option<Arc<Shared>>,
    /// None while the scheduler is at work.
    pub scheduler: Option<Scheduler>,
    pub sweep: Option<Sweep>,
    /// Whether the scheduler's last round left nothing to do.
    pub rests: bool,
    pub link: Option<Link>,
    pub readers: Vec<Option<Reader>>,
    pub is_cut_off: bool,
    /// A second node has its configured id.
    pub has_duplicate: bool,
    /// Some of its starts apply a message in several transactions.
    pub cuts_messages: bool,
    /// It gives births to rows that SQLite numbers.
    pub births: bool,
    /// It has room for a few held rows only, and lets others go until a snapshot brings them.
    pub holds_little: bool,
    pub shadow: Shadow,
    /// Rows that statements named while the core was down: they may count as written at that time.
    pub noted: BTreeSet<(usize, String)>,
    pub cut: Option<Cut>,
    /// Whether the machine's clock was ahead once.
    is_set_back: bool,
    pub image: Option<Image>,
    /// The reservation when the image was made: a different value means that the core synced since.
    pub reserved: String,
    pub backups: Vec<Image>,
    pub meanwhile: Meanwhile,
}

/// A row of a versions table.
#[derive(Clone, Debug)]
pub struct Stored {
    pub version: Version,
    pub deleted: bool,
    pub hash: i64,
    /// Columns that have versions of their own.
    pub others: Exceptions,
    pub birth: Birth,
    /// It has its number, and is no life aside.
    pub is_shown: bool,
}

/// The database behind the lock.
pub struct Db<'g>(MutexGuard<'g, Locked>);

impl Deref for Db<'_> {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.0.database
    }
}

impl DerefMut for Db<'_> {
    fn deref_mut(&mut self) -> &mut Database {
        &mut self.0.database
    }
}

pub fn owned(value: ValueRef<'_>) -> OwnedValue {
    match value {
        ValueRef::Null => OwnedValue::Null,
        ValueRef::Integer(i) => OwnedValue::Integer(i),
        ValueRef::Real(r) => OwnedValue::Real(r),
        ValueRef::Text(t) => OwnedValue::Text(t.to_vec()),
        ValueRef::Blob(b) => OwnedValue::Blob(b.to_vec()),
    }
}

impl Node {
    pub fn new(place: usize, id: u64, folder: &Path, now_ms: i64, shards: u32) -> Self {
        Node {
            place,
            id,
            configured_id: id,
            path: folder.join(format!("{place}.db")),
            clock: Arc::new(SimClock::at(now_ms)),
            app: None,
            shared: None,
            scheduler: None,
            sweep: None,
            rests: false,
            link: None,
            readers: vec![None; shards as usize],
            is_cut_off: false,
            has_duplicate: false,
            cuts_messages: false,
            births: false,
            holds_little: false,
            shadow: Shadow::default(),
            noted: BTreeSet::new(),
            cut: None,
            is_set_back: false,
            image: None,
            reserved: String::new(),
            backups: Vec::new(),
            meanwhile: Meanwhile::default(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn app(&self) -> &Connection {
        self.app.as_ref().expect("the application is there")
    }

    pub fn shared(&self) -> &Shared {
        self.shared.as_ref().expect("the node is up")
    }

    /// The database, until the end of the statement.
    pub fn db(&self) -> Db<'_> {
        Db(self.shared().lock())
    }

    /// Reads the id anew, also after a kill. The core may have met a duplicate node, if there is
    /// one, or its own writes from before its file was put back.
    pub fn learn_id(&mut self, model: &Model) -> Result<(), String> {
        let text = "SELECT value FROM __harmonylite___meta WHERE key = 'node_id'";
        let mut statement = self.app().prepare_cached(text).expect("meta");
        let id: i64 = statement.query_row([], |r| r.get(0)).expect("node_id");
        let id = id as u64;
        drop(statement);
        if id != self.id && !model.duplicates && !model.is_put_back(self.place) {
            return Err(format!(
                "node {}: takes another id, and has no duplicate",
                self.place
            ));
        }
        self.id = id;
        Ok(())
    }

    pub fn open_app(&mut self) {
        self.app = Some(connect(&self.path));
    }

    pub fn start(&mut self, options: &Options, joins_by_snapshot: bool) -> Result<(), String> {
        let settings = Settings {
            path: self.path.clone(),
            node_id: Some(self.configured_id),
            publish: true,
            shards: options.shards,
            streams: Default::default(),
            cache_size: 2000,
            // Marks outlive their acknowledgements by this.
            cleanup_interval: Duration::from_secs(1 + 4 * (self.place as u64 % 2)),
            scan_max_changes: options.scan_max_changes,
            max_transaction_bytes: options.max_transaction_bytes,
            max_clock_drift: MAX_CLOCK_DRIFT,
            courtesy: Duration::ZERO,
            tombstone_retention: options.tombstone_retention,
            births: self.births,
            births_later: false,
            allow_rowid_tables: true,
            joins_by_snapshot,
            seq_map_path: None,
            tables: Default::default(),
            apply_triggers: vec![],
        };
        let stop = Arc::new(AtomicBool::new(true)); // a lock that never comes free fails at once
        let db = Database::open(settings, self.clock.clone(), stop);
        let mut db = db.map_err(|e| format!("node {} does not start: {e}", self.place))?;
        db.wait_for_quiet(options.quiet);
        // One write in eight is put off, as by readers that come and go; some writes are put off
        // again.
        let mut random = Random::new(self.id ^ self.clock.time_ms() as u64);
        let meanwhile = self.meanwhile.clone();
        let writes = move || meanwhile.run();
        db.fence().put_off_by(move || random.below(8) == 0, writes);
        if self.cuts_messages && Random::new(self.clock.time_ms() as u64 ^ 0x5e9).below(4) == 0 {
            db.apply_in_steps(1 + (self.place & 3), Duration::ZERO);
        }
        if joins_by_snapshot && self.holds_little {
            db.hold_at_most(0);
        }
        if self.has_duplicate {
            // As the entries in the broker's bucket tell.
            db.note_other_process().map_err(|e| e.to_string())?;
        }
        self.id = db.node();
        self.noted = self.shadow.named.clone();
        self.shared = Some(Arc::new(Shared::new(db, options.shards).0));
        Ok(())
    }

    /// Ends the process as kill -9 does: everything that was only in memory is gone.
    pub fn crash(&mut self) {
        self.shared = None;
        self.scheduler = None;
        self.sweep = None;
        self.link = None;
        self.readers.fill(None);
    }

    pub fn read_image(&self, written: usize) -> Image {
        let read = |suffix: &str| {
            std::fs::read(format!("{}{suffix}", self.path.display())).unwrap_or_default()
        };
        Image {
            database: read(""),
            wal: read("-wal"),
            shadow: self.shadow.clone(),
            written,
            clock_ms: self.clock.time_ms(),
            unsent: BTreeSet::new(),
        }
    }

    /// Puts the file back to the image. The node is down then.
    pub fn restore(&mut self, image: &Image) {
        self.crash();
        self.app = None;
        let write = |suffix: &str, bytes: &[u8]| {
            std::fs::write(format!("{}{suffix}", self.path.display()), bytes).expect("write");
        };
        write("", &image.database);
        write("-wal", &image.wal);
        let _ = std::fs::remove_file(format!("{}-shm", self.path.display()));
        self.shadow = image.shadow.clone();
        self.cut = None;
        self.open_app();
    }

    /// The reservation; it changes only together with an fsync.
    pub fn reservation(&self) -> String {
        let text = "SELECT group_concat(key || value) FROM (SELECT key, value FROM \
            __harmonylite___meta
                    WHERE key IN ('clock_until', 'at_until', 'boot_id', 'noted_base', \
                    'snapshots_made') ORDER BY key)";
        let mut statement = self.app().prepare_cached(text).expect("meta");
        statement
            .query_row([], |r| r.get::<_, Option<String>>(0))
            .expect("meta")
            .unwrap_or_default()
    }

    /// When time was reserved last. Writes from before that are captured since count as written
    /// then.
    pub fn reserved_at_ms(&self) -> i64 {
        let text = "SELECT value FROM __harmonylite___meta WHERE key = 'clock_base'";
        let base_ms = self.app().query_row(text, [], |r| r.get(0));
        base_ms.unwrap_or_default()
    }

    pub fn set_clock(&mut self, to_ms: i64) {
        self.is_set_back |= to_ms < self.clock.time_ms();
        self.clock.set(to_ms);
    }

    /// Notes a power cut. The entries of the change log were written before `now_ms`. Their times
    /// are usable if the clock was never ahead, and if they are not from long before the file was
    /// synced at `synced_ms`.
    pub fn note_cut(&mut self, now_ms: i64, synced_ms: i64) {
        let (log, meta) = ("__harmonylite___change_log_global", "__harmonylite___meta");
        let base = format!("(SELECT value FROM {meta} WHERE key = 'clock_base')");
        let bound = match self.is_set_back {
            true => base.clone(),
            false => format!("min({synced_ms}, {base})"),
        };
        let wrong = [
            "__harmonylite___tables WHERE compare IS NOT NULL".to_owned(),
            format!("{log} WHERE created_at > {now_ms} OR created_at + 120000 < {bound}"),
            // Several cuts in a row move the base this far.
            format!("{meta} WHERE key = 'clock_base' AND value > {synced_ms} + 300000"),
        ];
        let is_right = wrong.iter().all(|what| self.count(what) == 0);
        let last = format!("SELECT max(created_at) FROM {log}");
        let last = self.app().query_row(&last, [], |r| r.get(0));
        self.cut = last.ok().filter(|_| is_right).map(|last_ms| Cut {
            last_ms,
            touched: BTreeSet::new(),
        });
    }

    /// Notes the rows that statements named or changed.
    pub fn name(&mut self, rows: impl IntoIterator<Item = (usize, String)>) {
        for at in rows {
            if let Some(cut) = &mut self.cut {
                cut.touched.insert(at.clone());
            }
            self.shadow.named.insert(at);
        }
    }

    /// Runs `f` as a transaction of the application, at the time of the node's clock.
    pub fn transaction(&self, f: impl FnOnce(&Connection)) -> bool {
        transact(self.app(), self.clock.time_ms(), f)
    }

    /// Whether the publisher waits for an acknowledgement that will never come.
    pub fn waits_in_vain(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_in_vain)
    }

    /// All rows of a table.
    pub fn rows(&self, plan: &Plan, table: usize) -> BTreeMap<String, Row> {
        match &self.shadow.columns[table] {
            Some(columns) => rows(self.app(), &plan.tables[table], columns),
            None => BTreeMap::new(),
        }
    }

    pub fn rows_of(&self, plan: &Plan, tables: &[usize]) -> Vec<BTreeMap<String, Row>> {
        tables.iter().map(|t| self.rows(plan, *t)).collect()
    }

    /// Notes the changes of the application in all tables since `before`. `gone`: see
    /// [`Self::note_deeds`].
    pub fn note_changes(
        &mut self,
        plan: &Plan,
        tables: &[usize],
        before: Vec<BTreeMap<String, Row>>,
        gone: &BTreeSet<RowId>,
    ) {
        for (table, before) in tables.iter().zip(before) {
            let is_contested = is_contested(self.app(), &plan.tables[*table]);
            let after = self.rows(plan, *table);
            self.note_deeds(plan, *table, (&before, &after), gone);
            self.note_change(*table, is_contested, (before, after));
        }
    }

    /// Notes the changes in one table. `is_contested`: see [`Shadow::contested`].
    pub fn note_change(
        &mut self,
        table: usize,
        is_contested: bool,
        (before, mut after): (BTreeMap<String, Row>, BTreeMap<String, Row>),
    ) {
        if is_contested {
            self.shadow.contested.insert(table);
        }
        for (key, row) in before {
            let now = after.remove(&key);
            if now.as_ref() != Some(&row) {
                self.name([(table, key.clone())]);
                self.shadow.pending.insert((table, key), now);
            }
        }
        for (key, row) in after {
            self.name([(table, key.clone())]);
            self.shadow.pending.insert((table, key), Some(row));
        }
    }

    /// Whether a statement may have touched the row since everything was seen.
    pub fn may_have_touched(&self, at: &(usize, String)) -> bool {
        let shadow = &self.shadow;
        let named = (at.0, number(&at.1).to_owned());
        shadow.named.contains(&named) || shadow.contested.contains(&at.0)
    }

    /// The versions of a table.
    pub fn versions(&self, plan: &Plan, table: usize) -> BTreeMap<String, Stored> {
        let spec = &plan.tables[table];
        let n = spec.key.len();
        // In a table with a composite key the versions have the columns in the key's order.
        let order: Vec<usize> = match spec.create("t", &[0, 1]).contains("(id2, id)") {
            true => vec![1, 0],
            false => (0..n).collect(),
        };
        let keys: Vec<String> = order.iter().map(|i| format!("k{}", i + 1)).collect();
        let text = |born: &str| {
            format!(
                "SELECT {}, hlc, node, deleted, hash, exc{born} FROM {}
                 JOIN __harmonylite___sites USING (site)",
                keys.join(", "),
                quote(&format!("__harmonylite__{}_versions", spec.name))
            )
        };
        let mut found = BTreeMap::new();
        let born = [", born", ""]
            .into_iter()
            .skip(usize::from(!spec.is_numbered));
        let mut each = born.filter_map(|born| self.app().prepare_cached(&text(born)).ok());
        let Some(mut statement) = each.next() else {
            return found; // not seen by the core yet
        };
        let has_born = statement.column_count() > n + 5;
        let mut rows = statement.query([]).expect("versions");
        while let Some(row) = rows.next().expect("version") {
            let key: Vec<OwnedValue> = (0..n)
                .map(|i| owned(row.get_ref(i).expect("key")))
                .collect();
            let stored = stored(row, n);
            let born = has_born.then(|| row.get_ref(n + 5).expect("birth"));
            let birth = birth_beside(born, stored.version);
            let name = life(&spec.key_text(&key), birth);
            found.insert(name, Stored { birth, ..stored });
        }
        if spec.is_numbered {
            self.add_aside(spec, &mut found);
        }
        found
    }

    /// Whether the core has seen every statement of the application, even those that changed
    /// nothing.
    pub fn is_captured(&self) -> bool {
        self.shadow.pending.is_empty()
            && !self.db().has_more()
            && self.count("__harmonylite___change_log_global") == 0
    }

    /// Whether the rows told how the migration made a table's new keys: `seen` is 1 in CBOR.
    pub fn makes_keys(&self, table: &str) -> bool {
        let id = "SELECT id FROM __harmonylite___tables WHERE name = ?1";
        let id: Option<i64> = self.app().query_row(id, [table], |r| r.get(0)).ok();
        let former = format!(
            "__harmonylite___former WHERE table_id = {} AND instr(shape, x'647365656E01') > 0",
            id.unwrap_or(0)
        );
        self.count(&former) == 1
    }

    /// The held changes, for people.
    pub fn held_rows(&self) -> String {
        let text =
            "SELECT group_concat(shape || ' ' || hex(key) || ' ' || quote(column) || ' ' || \
            hlc || ' '
            || ifnull(value, 'NULL') || ' ' || reason, char(10)) FROM __harmonylite___held";
        let text = self.app().query_row(text, [], |r| r.get(0));
        text.unwrap_or_default()
    }

    pub fn count(&self, what: &str) -> i64 {
        count(self.app(), what)
    }
}

/// A version whose columns begin at `n`.
pub fn stored(row: &rusqlite::Row<'_>, n: usize) -> Stored {
    Stored {
        version: Version {
            hlc: row.get(n).expect("hlc"),
            node: row.get::<_, i64>(n + 1).expect("node") as u64,
        },
        deleted: row.get(n + 2).expect("deleted"),
        hash: row.get(n + 3).expect("hash"),
        others: match row.get_ref(n + 4).expect("exceptions") {
            ValueRef::Blob(bytes) => decode_exceptions(bytes).expect("exceptions"),
            _ => Exceptions::new(),
        },
        birth: Birth::None,
        is_shown: true,
    }
}

fn count(app: &Connection, what: &str) -> i64 {
    let text = format!("SELECT count(*) FROM {what}");
    app.query_row(&text, [], |r| r.get(0)).unwrap_or(0)
}

/// Runs `f` as a transaction of the application. False if it was rolled back.
pub fn transact(app: &Connection, time_ms: i64, f: impl FnOnce(&Connection)) -> bool {
    app.execute_batch("BEGIN IMMEDIATE").expect("begin");
    f(app);
    if app.is_autocommit() {
        return false; // OR ROLLBACK did
    }
    app.prepare_cached(
        "UPDATE __harmonylite___change_log_global SET created_at = ?1 WHERE created_at > ?2",
    )
    .expect("log")
    .execute([time_ms, REAL_TIME])
    .expect("log");
    app.execute_batch("COMMIT").expect("commit");
    true
}

/// All rows of a table that has these columns here.
pub fn rows(app: &Connection, spec: &Table, columns: &[usize]) -> BTreeMap<String, Row> {
    let names: Vec<&str> = columns
        .iter()
        .map(|c| spec.columns[*c].name.as_str())
        .collect();
    let text = format!("SELECT {} FROM {}", names.join(", "), quote(&spec.name));
    let mut statement = app.prepare_cached(&text).expect("select");
    let mut rows = statement.query([]).expect("select");
    let mut found = BTreeMap::new();
    while let Some(row) = rows.next().expect("row") {
        let mut all: Row = vec![None; spec.columns.len()];
        for (i, column) in columns.iter().enumerate() {
            all[*column] = Some(owned(row.get_ref(i).expect("column")));
        }
        let key: Vec<OwnedValue> = all[..spec.key.len()].iter().flatten().cloned().collect();
        found.insert(spec.key_text(&key), all);
    }
    found
}

/// Whether changes are held for a table, or its triggers are missing.
pub fn is_contested(app: &Connection, spec: &Table) -> bool {
    let name = spec.name.to_ascii_lowercase().replace('\'', "''");
    let held = format!("__harmonylite___held WHERE table_name = '{name}'");
    let triggers = format!(
        "sqlite_schema WHERE type = 'trigger' AND lower(tbl_name) = '{name}'
         AND name LIKE '\\_\\_harmonylite%' ESCAPE '\\'"
    );
    count(app, &held) > 0 || count(app, &triggers) == 0
}

/// An application's connection.
pub fn connect(path: &Path) -> Connection {
    let app = Connection::open(path).expect("open");
    app.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF",
    )
    .expect("pragmas");
    app.set_prepared_statement_cache_capacity(128);
    app
}

//! A table that every node's application rebuilds with a different key, each at its own time, and
//! the lawful outcomes of its rows.
//!
//! The clocks are right, and no two writes fall into one millisecond. So the last write to a row
//! counts, under whichever key it was made and sent. A write from before the core reserved time
//! that is captured after that counts as written at the reservation. A delete that is captured
//! together with an earlier write to the row counts as made with that write.
//!
//! Two kinds of writes may count or not, because the core never saw them. They never win over a
//! later write.
//!
//! - A write to the rebuilt table before it has triggers. It counts as a little newer than the row
//!   that   the rebuild copied. Nobody sees such a delete: the row of the other nodes comes back.
//! - An insert and a delete between two captures: no other node knows the row.
//!
//! A row that the migration leaves out is deleted as of the write that made it: that write never
//! counts again, and writes of others since do.
//!
//! Where the new row does not tell the old key, the writes of before are captured when the
//! migration begins.
//!
//! The application is stopped while its tool is between the first and the last step: the tool
//! itself would lose writes between the copy and the DROP.
//!
//! In half of these worlds streams forget, the broker loses what it had, and nodes get what they
//! miss from snapshots. New nodes come with the table as it is before or after the migration, or
//! with nothing but a snapshot.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use harmonylite::model::value::OwnedValue;
use rusqlite::types::Value;

use crate::node::{Node, owned};
use crate::random::Random;
use crate::rekey_kinds::{KINDS, Kind, WAYS};
use crate::world::{Step, World};

/// Name of the table.
pub const TABLE: &str = "t";

/// Number of different rows.
const ROWS: usize = 7;

/// Most time that passes at once. Within it a tool finishes before the core stops to wait for it,
/// and messages of a stream tell the broker's time.
pub const MOST_MS: i64 = 1_500;

/// A running daemon captures everything within this time.
const CAPTURE_MS: i64 = 100;

/// A write of an application to a row.
struct Write {
    /// The number that it wrote; none if it deleted the row.
    value: Option<i64>,
    /// The write may count or not.
    is_optional: bool,
    /// A migration left the row out that it made.
    is_omitted: bool,
    place: usize,
    at_ms: i64,
    /// Earliest time at which it counts as written.
    from_ms: i64,
    /// Latest time at which it counts as written, known once it is captured.
    until_ms: i64,
}

/// A node's progress in its migration.
#[derive(Default)]
struct Progress {
    /// The steps that its tool has still to do; none before it began.
    steps: Option<VecDeque<String>>,
    /// Rows that were inserted and may not be captured yet.
    fresh: BTreeSet<usize>,
    /// The application wrote while the rebuilt table had no triggers: the rows may not tell the
    /// core how old keys became new ones.
    is_blurred: bool,
    /// A snapshot is to bring the table.
    is_awaited: bool,
}

pub struct Rekeyed {
    kind: &'static Kind,
    /// The migration also changes the rows' content.
    changes: bool,
    /// The migration leaves rows out.
    omits: bool,
    nodes: Vec<Progress>,
    writes: BTreeMap<usize, Vec<Write>>,
    next: i64,
}

impl Rekeyed {
    pub fn new(random: &mut Random) -> Self {
        let kind: &Kind = random.pick(&KINDS);
        // Rows are known by what they hold where the old key is gone.
        let changes = random.percent(30) && kind.gone.is_none();
        // Of a row that one node changes and another one leaves out, either may count.
        let may_omit = kind.gone.is_none() && !(changes && kind.is_same());
        Rekeyed {
            kind,
            changes,
            omits: random.percent(30) && may_omit,
            nodes: Vec::new(),
            writes: BTreeMap::new(),
            next: 0,
        }
    }

    /// Creates the table in the form that it has at the beginning.
    pub fn create(&mut self, node: &Node) {
        let text = format!("CREATE TABLE t({})", self.kind.before);
        node.app().execute_batch(&text).expect("create");
        self.nodes.push(Progress::default());
    }

    /// A new node creates the table, migrated or not, or waits for a snapshot that brings it.
    pub fn arrive(&mut self, node: &Node, is_migrated: Option<bool>) {
        let mut progress = Progress {
            is_blurred: true,
            is_awaited: is_migrated.is_none(),
            ..Progress::default()
        };
        if let Some(is_migrated) = is_migrated {
            let (before, after) = (self.kind.before, self.kind.after);
            let text = format!(
                "CREATE TABLE t({})",
                if is_migrated { after } else { before }
            );
            node.app().execute_batch(&text).expect("create");
            progress.steps = is_migrated.then(VecDeque::new);
        }
        self.nodes.push(progress);
    }

    /// Whether the table is here. A snapshot may have brought it by now, migrated or not.
    fn is_here(&mut self, node: &Node) -> bool {
        let progress = &mut self.nodes[node.place];
        if progress.is_awaited {
            let text = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 't'";
            let text = node.app().query_row(text, [], |r| r.get::<_, String>(0));
            let Ok(text) = text else {
                return false;
            };
            progress.is_awaited = false;
            let is_migrated = text.ends_with(&format!("({})", self.kind.after));
            progress.steps = is_migrated.then(VecDeque::new);
        }
        true
    }

    fn steps(&self, way: &[&str]) -> VecDeque<String> {
        let n = match self.changes {
            true => "CASE n WHEN 'old' THEN 'moved' ELSE n END",
            false => "n",
        };
        let (made, expression) = match self.kind.made {
            Some((name, _, expression)) => (vec![name], vec![expression]),
            None => (vec![], vec![]),
        };
        let names = [self.kind.key, &["v", "n"], &made].concat().join(", ");
        let copied = [self.kind.key, &["v", n], &expression].concat().join(", ");
        let of = |step: &&str| {
            let text = step.replace("{after}", self.kind.after);
            text.replace("{names}", &names).replace("{copied}", &copied)
        };
        way.iter().map(of).collect()
    }

    fn is_at_work(&self, place: usize) -> bool {
        let steps = self.nodes[place].steps.as_ref();
        steps.is_some_and(|steps| !steps.is_empty())
    }

    fn is_key(&self, first: usize) -> String {
        let each = self.kind.key.iter().enumerate();
        let each = each.map(|(i, column)| format!("{column} = ?{}", first + i));
        each.collect::<Vec<_>>().join(" AND ")
    }

    /// Inserts, updates or deletes the row. True if there was something to do.
    fn execute(&self, app: &rusqlite::Connection, i: usize, value: Option<i64>, n: &str) -> bool {
        let mut values = (self.kind.values)(i);
        let run = |text: &str, values: &[Value]| {
            let run = app.execute(text, rusqlite::params_from_iter(values));
            run.unwrap_or_else(|e| panic!("{e}: {text}")) > 0
        };
        let Some(value) = value else {
            return run(&format!("DELETE FROM t WHERE {}", self.is_key(1)), &values);
        };
        values.extend([Value::Integer(value), Value::Text(n.to_owned())]);
        let keys = self.kind.key.len();
        let has = |column: &str| {
            let text = format!("SELECT 1 FROM pragma_table_info('t') WHERE name = '{column}'");
            app.prepare(&text)
                .and_then(|mut s| s.exists([]))
                .expect("its columns")
        };
        let made = self.kind.made.map(|(name, value, _)| (name, value));
        let others = [self.kind.gone, made].into_iter().flatten();
        let others: Vec<_> = others.filter(|(name, _)| has(name)).collect();
        let (v, n) = (keys + 1, keys + 2);
        let update = format!("UPDATE t SET v = ?{v}, n = ?{n} WHERE {}", self.is_key(1));
        if run(&update, &values) {
            return true;
        }
        let mut names = [self.kind.key, &["v", "n"]].concat();
        names.extend(others.iter().map(|(name, _)| name));
        values.extend(others.iter().map(|(_, value)| value(i)));
        let places: Vec<String> = (1..=names.len()).map(|i| format!("?{i}")).collect();
        let (names, places) = (names.join(", "), places.join(", "));
        run(
            &format!("INSERT INTO t({names}) VALUES ({places})"),
            &values,
        )
    }

    /// A node's rows by the number that was written, each with its version.
    fn rows(&self, node: &Node) -> BTreeMap<usize, Vec<OwnedValue>> {
        let mut found = BTreeMap::new();
        for i in 0..ROWS {
            let names = self.kind.key.join(", ");
            let text = format!("SELECT v, n, {names} FROM t WHERE {}", self.is_key(1));
            let mut statement = node.app().prepare_cached(&text).expect("select");
            let values = rusqlite::params_from_iter((self.kind.values)(i));
            let mut rows = statement.query(values).expect("select");
            if let Some(row) = rows.next().expect("row") {
                let count = 2 + self.kind.key.len();
                let values = (0..count).map(|c| owned(row.get_ref(c).expect("column")));
                found.insert(i, values.collect());
            }
        }
        found
    }

    /// Records that all writes of a node's application are captured.
    fn captured(&mut self, place: usize, reserved_at_ms: i64) {
        let all = self.writes.values_mut().flatten();
        let open = all.filter(|w| w.place == place && w.until_ms == i64::MAX);
        open.for_each(|w| w.until_ms = w.at_ms.max(reserved_at_ms));
    }

    /// Checks whether the found content of a row is lawful.
    fn check_row(&self, i: usize, found: Option<i64>) -> Result<(), String> {
        let empty = Vec::new();
        let writes = self.writes.get(&i).unwrap_or(&empty);
        let last = writes.iter().rposition(|w| !w.is_optional);
        let last_ms = last.map_or(0, |last| writes[last].from_ms);
        let is_unseen = |w: &Write| w.is_optional && w.value.is_none();
        let is_back = writes[last.unwrap_or(0)..].iter().any(is_unseen);
        let is_in_time = |w: &&Write| w.until_ms >= last_ms || is_back;
        let mut lawful = writes.iter().filter(is_in_time);
        let is_it = |w: &Write| match w.is_omitted {
            true => found.is_none(),
            false => w.value == found,
        };
        if last.is_none() && found.is_none() || lawful.any(is_it) {
            return Ok(());
        }
        let history: Vec<String> = writes.iter().map(Write::describe).collect();
        let history = history.join("\n");
        Err(format!("row {i} is {found:?}, but was written:\n{history}"))
    }
}

impl Write {
    fn describe(&self) -> String {
        let (value, place) = (self.value, self.place);
        let optional = match (self.is_optional, self.is_omitted) {
            (_, true) => ", left out",
            (true, _) => ", may count",
            _ => "",
        };
        let (at, until) = (self.at_ms, self.until_ms);
        format!("  {value:?} by node {place} at {at} until {until}{optional}")
    }
}

impl World {
    fn rekeyed(&mut self) -> &mut Rekeyed {
        self.rekeyed.as_mut().expect("a world with such a table")
    }

    /// Runs a transaction of the application.
    pub fn write_rekeyed(&mut self, place: usize) {
        for _ in 0..1 + self.random.below(3) {
            self.pass(1);
            self.write_row(place);
        }
    }

    fn write_row(&mut self, place: usize) {
        let rekeyed = self.rekeyed.as_mut().expect("such a table");
        let node = &self.nodes[place];
        if rekeyed.is_at_work(place) || !rekeyed.is_here(node) {
            return;
        }
        let i = self.random.below(ROWS);
        let is_delete = self.random.percent(30);
        let was_there = rekeyed.rows(node).contains_key(&i);
        let waiting = ["change_log_global", "waiting"].map(|of| {
            let of = format!("__harmonylite___{of}");
            node.count(&of)
        });
        let watched = "sqlite_schema WHERE type = 'trigger' AND tbl_name = 't'
            AND name GLOB '__harmonylite__*_insert'";
        let mut is_optional = node.count(watched) == 0;
        let kind = rekeyed.kind;
        let is_compared = node.count("__harmonylite___tables WHERE compare IS NOT NULL") > 0;
        if kind.gone.is_some() && is_compared {
            return; // the content changes by which the row was to be found
        }
        if is_optional && (kind.is_same() || kind.gone.is_some()) {
            return; // it counts as made just now, or nothing tells which row it was
        }
        // Where the old key is gone, a row is inserted once: nothing tells that another one is it.
        let is_known = rekeyed.writes.contains_key(&i);
        if kind.gone.is_some() && is_known && !was_there {
            return;
        }
        rekeyed.nodes[place].is_blurred |= is_optional;
        if waiting == [0, 0] && !is_optional {
            rekeyed.nodes[place].fresh.clear();
            rekeyed.captured(place, node.reserved_at_ms());
        }
        rekeyed.next += 1;
        let value = (!is_delete).then_some(rekeyed.next);
        let n = match rekeyed.nodes[place].steps {
            Some(_) => "new",
            None => "old",
        };
        let mut is_done = false;
        node.transaction(|app| is_done = rekeyed.execute(app, i, value, n));
        if !is_done {
            return;
        }
        let writes = rekeyed.writes.entry(i).or_default();
        let fresh = &mut rekeyed.nodes[place].fresh;
        if value.is_some() && !was_there {
            fresh.insert(i);
        }
        if value.is_none() && fresh.contains(&i) {
            is_optional = true;
            let since = writes
                .iter_mut()
                .rev()
                .take_while(|w| w.place == place && w.value.is_some());
            since.for_each(|w| w.is_optional = true);
        }
        let is_open = |w: &&Write| w.place == place && w.until_ms == i64::MAX;
        let mut open = writes.iter().filter(|_| value.is_none());
        let from_ms = open.find(is_open).map_or(self.now_ms, |w| w.from_ms);
        writes.push(Write {
            from_ms,
            value,
            is_optional,
            is_omitted: false,
            place,
            at_ms: self.now_ms,
            until_ms: i64::MAX,
        });
        self.say(format!(
            "node {place}: row {i} becomes {value:?}, may count {is_optional}"
        ));
    }

    /// Begins the node's migration, or makes its next step.
    pub fn rebuild_step(&mut self, place: usize) -> Step {
        let way = *self.random.pick(&WAYS);
        let rekeyed = self.rekeyed.as_mut().expect("such a table");
        if !rekeyed.is_here(&self.nodes[place]) {
            return Ok(());
        }
        let begins = rekeyed.nodes[place].steps.is_none();
        if begins && rekeyed.kind.gone.is_some() {
            if self.nodes[place].shared.is_none() {
                self.start(place)?;
            }
            self.capture_all(place)?;
        }
        let rekeyed = self.rekeyed();
        if begins {
            rekeyed.nodes[place].steps = Some(rekeyed.steps(way));
        }
        let steps = rekeyed.nodes[place].steps.as_mut();
        let Some(step) = steps.and_then(VecDeque::pop_front) else {
            return Ok(());
        };
        let step = match step.contains("{where}") {
            true => step.replace("{where}", self.omit(place)),
            false => step,
        };
        let app = self.nodes[place].app();
        if let Err(e) = app.execute_batch(&step) {
            panic!("node {place}: the migration fails: {e}: {step}");
        }
        self.say(format!("node {place}: {step}"));
        Ok(())
    }

    /// The condition under which a tool copies rows, and what comes of the others. A table that
    /// would be empty is another matter.
    fn omit(&mut self, place: usize) -> &'static str {
        let keeps_all = self.random.percent(40); // as a tool of a later version
        let rekeyed = self.rekeyed.as_mut().expect("such a table");
        let of = match self.nodes[place].count("sqlite_schema WHERE name = '__old_push_t'") {
            0 => "t",
            _ => "__old_push_t",
        };
        let node = &self.nodes[place];
        if !rekeyed.omits || keeps_all || node.count(&format!("{of} WHERE v % 4 <> 0")) == 0 {
            return "";
        }
        let text = format!("SELECT v FROM {of} WHERE v % 4 = 0");
        let mut list = node.app().prepare(&text).expect("select");
        let values = list.query_map([], |r| r.get::<_, i64>(0)).expect("select");
        for value in values.map(|v| v.expect("a number")) {
            let all = rekeyed.writes.values_mut().flatten();
            all.filter(|w| w.value == Some(value))
                .for_each(|w| w.is_omitted = true);
        }
        " WHERE v % 4 <> 0"
    }

    /// Captures before time passes: no running daemon captures much later than its application
    /// writes.
    pub fn capture_rekeyed(&mut self, passes_ms: i64) -> Step {
        if self.rekeyed.is_none() {
            return Ok(());
        }
        if passes_ms >= CAPTURE_MS {
            for place in 0..self.nodes.len() {
                if self.nodes[place].shared.is_some() {
                    self.capture_all(place)?;
                    let node = &self.nodes[place];
                    let rekeyed = self.rekeyed.as_mut().expect("such a table");
                    if node.count("__harmonylite___waiting") == 0 {
                        rekeyed.captured(place, node.reserved_at_ms());
                    }
                }
            }
        }
        Ok(())
    }

    /// Finishes the migrations that have begun; some nodes may not have begun.
    pub fn end_work(&mut self) -> Step {
        for place in 0..self.nodes.len() {
            while self.rekeyed().is_at_work(place) {
                self.rebuild_step(place)?;
            }
        }
        Ok(())
    }

    /// Checks, after everything was read, that migrated nodes applied the rows that others wrote
    /// under the old key, if the old key makes the new one.
    pub fn check_former(&mut self) -> Step {
        let rekeyed = self.rekeyed.as_ref().expect("such a table");
        // Where the migration changes the content, it may also spell the key differently.
        let is_told = !rekeyed.kind.adds_to_key() && rekeyed.kind.gone.is_none();
        if !is_told || rekeyed.changes || rekeyed.omits {
            return Ok(());
        }
        for (node, progress) in self.nodes.iter().zip(&rekeyed.nodes) {
            if progress.steps.is_none() || progress.is_blurred || !node.makes_keys(TABLE) {
                continue;
            }
            let held = node.count("__harmonylite___held");
            if held > 0 {
                let place = node.place;
                let held = node.held_rows();
                return Err(format!("node {place}: held under the old key: {held}"));
            }
        }
        Ok(())
    }

    /// Migrates the node, so that in the end every node has the new key.
    pub fn end_rebuild(&mut self, place: usize) -> Step {
        let node = &self.nodes[place];
        if self.rekeyed.as_mut().is_some_and(|r| !r.is_here(node)) {
            return Err(format!("node {place}: no snapshot brings the table"));
        }
        while self.rekeyed.is_some()
            && (self.rekeyed().nodes[place].steps.is_none() || self.rekeyed().is_at_work(place))
        {
            self.rebuild_step(place)?;
            if self.random.percent(50) {
                self.capture(place)?;
            }
        }
        Ok(())
    }

    /// Checks that the rows are equal everywhere, and are a lawful outcome of the writes.
    pub fn check_rekeyed(&mut self) -> Step {
        let Some(rekeyed) = &mut self.rekeyed else {
            return Ok(());
        };
        for node in &self.nodes {
            rekeyed.captured(node.place, node.reserved_at_ms());
        }
        let first = rekeyed.rows(&self.nodes[0]);
        for node in &self.nodes {
            let place = node.place;
            let rows = rekeyed.rows(node);
            if node.count(TABLE) != rows.len() as i64 {
                return Err(format!("node {place}: there are rows that nobody wrote"));
            }
            for i in 0..ROWS {
                let found = match rows.get(&i).map(|r| &r[0]) {
                    Some(OwnedValue::Integer(value)) => Some(*value),
                    Some(other) => return Err(format!("node {place}: row {i} is {other:?}")),
                    None => None,
                };
                let checked = rekeyed.check_row(i, found);
                checked.map_err(|e| format!("node {place}: {e}"))?;
                if rows.get(&i) != first.get(&i) {
                    let both = (first.get(&i), rows.get(&i));
                    return Err(format!("nodes 0 and {place} differ: row {i} is {both:?}"));
                }
            }
            let is_there = "__harmonylite___held WHERE column = 'a' AND value IN (SELECT a FROM t)";
            if rekeyed.kind.gone.is_some() && node.count(is_there) > 0 {
                let held = node.held_rows();
                return Err(format!("node {place}: held for ever: {held}"));
            }
            if node.count("__harmonylite___waiting") > 0 {
                return Err(format!("node {place}: entries wait for ever"));
            }
        }
        Ok(())
    }
}

//! A table that every node's application rebuilds with another key, each at its own time, and what
//! is lawful to come of its rows.
//!
//! The clocks are right, and no two writes fall into one millisecond. So of the writes to a row the
//! last one counts, under whatever key it was made and sent. What was written before the core
//! reserved time, and is captured after that, counts as written when it did. A delete that is
//! captured together with an earlier write to the row counts as made with that.
//!
//! Two kinds of writes may count or not: the core never saw what they were. They never win over a
//! later one.
//!
//! - What was written while the rebuilt table had no triggers yet: it counts as a little newer than
//!   the row that it was made from. A delete there is not seen at all: whatever others have of the
//!   row is back.
//! - An insert and a delete between two captures: nobody else knows the row.
//!
//! The application is stopped while its tool is between the first and the last step: what it wrote
//! between the copy and the DROP the tool itself would lose.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use harmonylite::model::value::OwnedValue;
use rusqlite::types::Value;

use crate::node::{Node, owned};
use crate::random::Random;
use crate::rekey_kinds::{KINDS, Kind, WAYS};
use crate::world::{Step, World};

/// Name of the table.
pub const TABLE: &str = "t";

/// Rows that there may be.
const ROWS: usize = 7;

/// More time than this does not pass at once: a tool is through before the core stops to wait for
/// it, and what is read of a stream tells the broker's time.
pub const MOST_MS: i64 = 1_500;

/// Whoever runs captures all before so much time passes.
const CAPTURE_MS: i64 = 100;

/// What an application did to a row.
struct Write {
    /// The number that it wrote; none: it deleted the row.
    value: Option<i64>,
    /// It may count or not.
    is_optional: bool,
    place: usize,
    at_ms: i64,
    /// It counts as written then at the earliest.
    from_ms: i64,
    /// It counts as written then at the latest. Known once it is captured.
    until_ms: i64,
}

/// How far a node is.
#[derive(Default)]
struct Progress {
    /// What its tool has still to do; none before it began.
    steps: Option<VecDeque<String>>,
    /// Rows that were inserted and may not be captured.
    fresh: BTreeSet<usize>,
    /// Something was written while the rebuilt table had no triggers: the core may not tell by its
    /// rows how keys became others.
    is_blurred: bool,
}

pub struct Rekeyed {
    kind: &'static Kind,
    /// The migration changes what the rows hold, too.
    changes: bool,
    nodes: Vec<Progress>,
    writes: BTreeMap<usize, Vec<Write>>,
    next: i64,
}

impl Rekeyed {
    pub fn new(random: &mut Random) -> Self {
        Rekeyed {
            kind: random.pick(&KINDS),
            changes: random.percent(30),
            nodes: Vec::new(),
            writes: BTreeMap::new(),
            next: 0,
        }
    }

    /// The table as it was on the first day.
    pub fn create(&mut self, node: &Node) {
        let text = format!("CREATE TABLE t({})", self.kind.before);
        node.app().execute_batch(&text).expect("create");
        self.nodes.push(Progress::default());
    }

    fn steps(&self, way: &[&str]) -> VecDeque<String> {
        let names = [self.kind.key, &["v", "n"]].concat().join(", ");
        let copied = match self.changes {
            true => {
                let changed = "CASE n WHEN 'old' THEN 'moved' ELSE n END";
                format!("{}, v, {changed}", self.kind.key.join(", "))
            }
            false => names.clone(),
        };
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
        let (v, n) = (keys + 1, keys + 2);
        let update = format!("UPDATE t SET v = ?{v}, n = ?{n} WHERE {}", self.is_key(1));
        let places: Vec<String> = (1..=n).map(|i| format!("?{i}")).collect();
        let (names, places) = (self.kind.key.join(", "), places.join(", "));
        let insert = format!("INSERT INTO t({names}, v, n) VALUES ({places})");
        run(&update, &values) || run(&insert, &values)
    }

    /// What a node has of a row, and its version, by the number that was written.
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

    /// All that a node's application wrote is captured.
    fn captured(&mut self, place: usize, reserved_at_ms: i64) {
        let all = self.writes.values_mut().flatten();
        let open = all.filter(|w| w.place == place && w.until_ms == i64::MAX);
        open.for_each(|w| w.until_ms = w.at_ms.max(reserved_at_ms));
    }

    /// Whether a row may be what it is.
    fn check_row(&self, i: usize, found: Option<i64>) -> Result<(), String> {
        let empty = Vec::new();
        let writes = self.writes.get(&i).unwrap_or(&empty);
        let last = writes.iter().rposition(|w| !w.is_optional);
        let last_ms = last.map_or(0, |last| writes[last].from_ms);
        let is_unseen = |w: &Write| w.is_optional && w.value.is_none();
        let is_back = writes[last.unwrap_or(0)..].iter().any(is_unseen);
        let is_in_time = |w: &&Write| w.until_ms >= last_ms || is_back;
        let mut lawful = writes.iter().filter(is_in_time);
        if last.is_none() && found.is_none() || lawful.any(|w| w.value == found) {
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
        let optional = if self.is_optional { ", may count" } else { "" };
        let (at, until) = (self.at_ms, self.until_ms);
        format!("  {value:?} by node {place} at {at} until {until}{optional}")
    }
}

impl World {
    fn rekeyed(&mut self) -> &mut Rekeyed {
        self.rekeyed.as_mut().expect("a world with such a table")
    }

    /// A transaction of the application.
    pub fn write_rekeyed(&mut self, place: usize) {
        for _ in 0..1 + self.random.below(3) {
            self.pass(1);
            self.write_row(place);
        }
    }

    fn write_row(&mut self, place: usize) {
        let rekeyed = self.rekeyed.as_mut().expect("such a table");
        if rekeyed.is_at_work(place) {
            return;
        }
        let node = &self.nodes[place];
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
            place,
            at_ms: self.now_ms,
            until_ms: i64::MAX,
        });
        self.say(format!(
            "node {place}: row {i} becomes {value:?}, may count {is_optional}"
        ));
    }

    /// The node's tool begins, or makes its next step.
    pub fn rebuild_step(&mut self, place: usize) {
        let way = *self.random.pick(&WAYS);
        let rekeyed = self.rekeyed();
        if rekeyed.nodes[place].steps.is_none() {
            rekeyed.nodes[place].steps = Some(rekeyed.steps(way));
        }
        let steps = rekeyed.nodes[place].steps.as_mut();
        let Some(step) = steps.and_then(VecDeque::pop_front) else {
            return;
        };
        let app = self.nodes[place].app();
        if let Err(e) = app.execute_batch(&step) {
            panic!("node {place}: the migration fails: {e}: {step}");
        }
        self.say(format!("node {place}: {step}"));
    }

    /// Before time passes: no daemon that runs captures much later than the application writes.
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

    /// No tool is at work any more; some nodes may not have begun.
    pub fn end_work(&mut self) {
        for place in 0..self.nodes.len() {
            while self.rekeyed().is_at_work(place) {
                self.rebuild_step(place);
            }
        }
    }

    /// All was read, and some nodes are migrated: what the others wrote under the old key is there,
    /// if that makes the new one.
    pub fn check_former(&mut self) -> Step {
        let rekeyed = self.rekeyed.as_ref().expect("such a table");
        // Where the content changed, another spelling of the key may be the migration's.
        if rekeyed.kind.adds_to_key() || rekeyed.changes {
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

    /// In the end every node has the new key.
    pub fn end_rebuild(&mut self, place: usize) -> Step {
        while self.rekeyed.is_some()
            && (self.rekeyed().nodes[place].steps.is_none() || self.rekeyed().is_at_work(place))
        {
            self.rebuild_step(place);
            if self.random.percent(50) {
                self.capture(place)?;
            }
        }
        Ok(())
    }

    /// The rows are equal everywhere, and what the applications made of them.
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
            if node.count("__harmonylite___waiting") > 0 {
                return Err(format!("node {place}: entries wait for ever"));
            }
        }
        Ok(())
    }
}

//! Tables that get another shape on one node and then on the other, in the ways of several tools,
//! with writes on both sides before, between and after: nothing is lost, and nothing is back. All
//! tables share one cluster, so that the daemons wait once for all of them.

use std::time::Instant;

use rusqlite::Connection;

use crate::cluster::Cluster;
use crate::node::{Node, PATIENCE, pause, texts, until};

/// What a table is before and after, and the columns by which its rows are copied.
struct Kind {
    what: &'static str,
    before: &'static str,
    /// What the new table is, or the one statement that makes it of the old one.
    after: &'static str,
    names: &'static str,
    /// The expressions that fill these columns.
    copied: &'static str,
    /// The new row tells the old key.
    is_told: bool,
}

const fn kind(what: &'static str, before: &'static str, after: &'static str) -> Kind {
    Kind {
        what,
        before,
        after,
        names: "id, a, v",
        copied: "id, a, v",
        is_told: true,
    }
}

const ID: &str = "(id INTEGER PRIMARY KEY, a TEXT, v)";
const WORD: &str = "(id INTEGER, a TEXT PRIMARY KEY, v)";
const BOTH: &str = "(id INTEGER, a TEXT, v, PRIMARY KEY(id, a))";
const NONE: &str = "(id INTEGER, a TEXT, v)";

/// The kind of a table that loses its key and gets it back.
const LOST: &str = "a key that is lost and found";

const KINDS: [Kind; 16] = [
    kind(
        "the same key",
        ID,
        "(id INTEGER PRIMARY KEY, a TEXT NOT NULL, v, w DEFAULT 7)",
    ),
    kind("a key column less", BOTH, ID),
    kind(
        "WITHOUT ROWID",
        BOTH,
        "(id INTEGER, a TEXT, v, PRIMARY KEY(id, a)) WITHOUT ROWID",
    ),
    kind(
        "another order",
        BOTH,
        "(id INTEGER, a TEXT, v, PRIMARY KEY(a, id))",
    ),
    kind(
        "another collation",
        WORD,
        "(id INTEGER, a TEXT COLLATE NOCASE PRIMARY KEY, v)",
    ),
    kind("another type", ID, "(id TEXT PRIMARY KEY, a TEXT, v)"),
    kind("another column", ID, WORD),
    kind(
        "a key column more",
        ID,
        "(id INTEGER, a TEXT, v, w TEXT NOT NULL DEFAULT 'z', PRIMARY KEY(id, w))",
    ),
    Kind {
        names: "id, a, v, w",
        copied: "id, a, v, 'c' || (id % 3)",
        ..kind(
            "a key column more that is worked out",
            ID,
            "(id INTEGER, a TEXT, v, w TEXT NOT NULL DEFAULT 'c0', PRIMARY KEY(w, id))
             WITHOUT ROWID",
        )
    },
    Kind {
        names: "a, v",
        copied: "a, v",
        is_told: false,
        ..kind(
            "the old key is gone",
            ID,
            "(a TEXT PRIMARY KEY, v, w DEFAULT 7)",
        )
    },
    Kind {
        names: "k, a, v",
        copied: "1 + substr(a, 2), a, v",
        is_told: false,
        ..kind(
            "a key that is worked out",
            "(g TEXT PRIMARY KEY, a TEXT, v)",
            "(k INTEGER PRIMARY KEY, a TEXT, v)",
        )
    },
    Kind {
        is_told: false,
        ..kind("a key where none was", NONE, WORD)
    },
    kind(LOST, WORD, NONE),
    kind("another name", ID, "ALTER TABLE {t} RENAME TO {t}_now"),
    kind(
        "a column more",
        ID,
        "ALTER TABLE {t} ADD COLUMN w DEFAULT 7",
    ),
    kind(
        "a column less",
        "(id INTEGER PRIMARY KEY, x, a TEXT, v)",
        "ALTER TABLE {t} DROP COLUMN x",
    ),
];

const TOOLS: [&str; 5] = [
    "Prisma",
    "Alembic",
    "Drizzle",
    "Drizzle's push",
    "Sequelize",
];

const ONE: &str = "one transaction";

/// Nobody but the tool sees a TEMP table: nothing but the DROP tells of the migration.
const TEMP: &str = "a TEMP copy";
const TEMP_IN_ONE: &str = "a TEMP copy in one transaction";

/// Statements, a transaction each, by which a tool rebuilds a table as `after`, and fills the
/// columns `names` with `copied`.
pub fn steps(tool: &str, table: &str, after: &str, (names, copied): (&str, &str)) -> Vec<String> {
    let create = |name: &str| format!("CREATE TABLE \"{name}\"{after}");
    let copy = |from: &str, to: &str| {
        format!("INSERT INTO \"{to}\"({names}) SELECT {copied} FROM \"{from}\"")
    };
    let drop = |name: &str| format!("DROP TABLE \"{name}\"");
    let rename = |from: &str, to: &str| format!("ALTER TABLE \"{from}\" RENAME TO \"{to}\"");
    let new_first = |new: String| {
        let steps = [
            create(&new),
            copy(table, &new),
            drop(table),
            rename(&new, table),
        ];
        steps.to_vec()
    };
    match tool {
        "Prisma" => new_first(format!("new_{table}")),
        "Alembic" => new_first(format!("_alembic_tmp_{table}")),
        "Drizzle" => new_first(format!("__new_{table}")),
        "Drizzle's push" => {
            let old = format!("__old_push_{table}");
            vec![
                rename(table, &old),
                create(table),
                copy(&old, table),
                drop(&old),
            ]
        }
        "Sequelize" => {
            let backup = format!("{table}_backup");
            let back = format!("INSERT INTO \"{table}\" SELECT * FROM \"{backup}\"");
            vec![
                create(&backup),
                copy(table, &backup),
                drop(table),
                create(table),
                back,
                drop(&backup),
            ]
        }
        TEMP => {
            let backup = format!("{table}_backup");
            vec![
                format!("CREATE TEMP TABLE \"{backup}\" AS SELECT * FROM \"{table}\""),
                drop(table),
                create(table),
                copy(&backup, table),
                drop(&backup),
            ]
        }
        ONE => in_one(new_first(format!("neu_{table}"))),
        TEMP_IN_ONE => in_one(steps(TEMP, table, after, (names, copied))),
        _ => panic!("nobody knows the tool {tool}"),
    }
}

fn in_one(steps: Vec<String>) -> Vec<String> {
    vec![format!("BEGIN; {}; COMMIT", steps.join("; "))]
}

/// One table of the cluster.
struct Rebuilt {
    kind: &'static Kind,
    tool: &'static str,
    name: String,
    /// The place of the node that migrates first.
    first: usize,
    /// Which nodes have migrated.
    is_done: [bool; 2],
}

/// Each kind in one transaction and in the steps of a tool, each with another node first. And each
/// that is rebuilt, by way of a TEMP copy.
fn all() -> Vec<Rebuilt> {
    let mut all = Vec::new();
    for (i, kind) in KINDS.iter().enumerate() {
        let temp = if i % 4 < 2 { TEMP } else { TEMP_IN_ONE };
        let temp = (!kind.is_altered()).then_some((i % 2, temp));
        let both = [(i % 2, ONE), (1 - i % 2, TOOLS[i % TOOLS.len()])];
        for (first, tool) in both.into_iter().chain(temp) {
            all.push(Rebuilt {
                kind,
                tool,
                name: format!("m{}", all.len()),
                first,
                is_done: [false; 2],
            });
        }
    }
    all
}

impl Kind {
    fn is_altered(&self) -> bool {
        self.after.starts_with("ALTER")
    }
}

impl Rebuilt {
    fn last(&self) -> usize {
        1 - self.first
    }

    fn what(&self) -> String {
        let Rebuilt {
            name, tool, first, ..
        } = self;
        format!("{name}: {}, by {tool}, node {first} first", self.kind.what)
    }

    /// Its name on a node.
    fn on(&self, place: usize) -> String {
        let is_renamed = self.kind.what == "another name" && self.is_done[place];
        format!("{}{}", self.name, if is_renamed { "_now" } else { "" })
    }

    fn steps(&self) -> Vec<String> {
        let Kind {
            after,
            names,
            copied,
            ..
        } = *self.kind;
        match self.kind.is_altered() {
            true => vec![after.replace("{t}", &self.name)],
            false => steps(self.tool, &self.name, after, (names, copied)),
        }
    }

    /// The steps by which both nodes are migrated in the end: those of the node that migrates last,
    /// or of the first one, if that lost the key.
    fn last_steps(&self) -> (usize, Vec<String>) {
        let Kind {
            what,
            before,
            names,
            ..
        } = *self.kind;
        match what == LOST {
            true => (
                self.first,
                steps(self.tool, &self.name, before, (names, names)),
            ),
            false => (self.last(), self.steps()),
        }
    }

    /// Inserts a row, whatever columns the table has.
    fn insert(&self, (place, app): (usize, &Connection), i: usize, v: &str) {
        let name = self.on(place);
        let columns = texts(
            app,
            &format!("SELECT name FROM pragma_table_info('{name}')"),
        );
        let values = [
            ("a", format!("'a{i}'")),
            ("v", format!("'{v}'")),
            ("id", i.to_string()),
            ("k", (i + 1).to_string()),
            ("g", format!("'g{i}'")),
        ];
        let is_here = |(column, _): &(&str, String)| columns.iter().any(|c| c == column);
        let (names, values): (Vec<_>, Vec<_>) = values.into_iter().filter(is_here).unzip();
        let (names, values) = (names.join(", "), values.join(", "));
        self.run(
            app,
            &format!("INSERT INTO {name}({names}) VALUES ({values})"),
        );
    }

    fn update(&self, (place, app): (usize, &Connection), i: usize, v: &str) {
        let name = self.on(place);
        self.run(
            app,
            &format!("UPDATE {name} SET v = '{v}' WHERE a = 'a{i}'"),
        );
    }

    fn delete(&self, (place, app): (usize, &Connection), i: usize) {
        self.run(
            app,
            &format!("DELETE FROM {} WHERE a = 'a{i}'", self.on(place)),
        );
    }

    fn run(&self, app: &Connection, sql: &str) {
        let done = app.execute_batch(sql);
        done.unwrap_or_else(|e| panic!("{}: {e}: {sql}", self.what()));
    }

    /// The rows of a node, as `ROW=VALUE`.
    fn rows(&self, place: usize, app: &Connection) -> String {
        let text = format!(
            "SELECT ifnull(group_concat(substr(a, 2) || '=' || v, ' '), '') FROM \
             (SELECT a, v FROM {} ORDER BY CAST(substr(a, 2) AS INTEGER))",
            self.on(place)
        );
        texts(app, &text).remove(0)
    }

    /// After which step the other node writes. What arrives between a TEMP copy and the DROP is not
    /// in the copy.
    fn written_after(&self) -> usize {
        usize::from(self.tool == TEMP)
    }

    /// The table and its rows on a node, for people.
    fn said(&self, place: usize, apps: &[Connection; 2]) -> String {
        format!(
            "{}: on node {place}: {}",
            self.what(),
            self.rows(place, &apps[place])
        )
    }
}

/// Runs the migrations of all tables beside each other, a step of each at a time. `between` is
/// called in between.
fn migrate(
    all: &mut [Rebuilt],
    apps: &[Connection; 2],
    of: impl Fn(&Rebuilt) -> (usize, Vec<String>),
    between: impl Fn(&Rebuilt),
) {
    let steps: Vec<(usize, Vec<String>)> = all.iter().map(of).collect();
    let most = steps.iter().map(|(_, steps)| steps.len()).max();
    for i in 0..most.expect("there are tables") {
        for (table, (place, steps)) in all.iter_mut().zip(&steps) {
            if let Some(step) = steps.get(i) {
                table.run(&apps[*place], step);
            }
            if i + 1 == steps.len() {
                table.is_done[*place] = true;
            }
            if i == table.written_after() {
                between(table);
            }
        }
        pause(10); // the daemons work between the steps
    }
}

#[test]
fn nothing_is_lost_or_back_whatever_is_rebuilt_where_first_and_how() {
    let mut all = all();
    let cluster = Cluster::start(2, |node| {
        all.iter()
            .for_each(|t| node.execute(&format!("CREATE TABLE {}{}", t.name, t.kind.before)));
    });
    let nodes = &cluster.nodes;
    let apps = [nodes[0].open(), nodes[1].open()];
    let on = |place: usize| (place, &apps[place]);
    apps[0].execute_batch("BEGIN").unwrap();
    for table in &all {
        [0, 1, 2, 3, 4, 5, 6, 10, 11, 9]
            .into_iter()
            .for_each(|i| table.insert(on(0), i, "old"));
    }
    apps[0].execute_batch("COMMIT").unwrap();
    cluster.converge();

    let first = |table: &Rebuilt| (table.first, table.steps());
    migrate(&mut all, &apps, first, |table| {
        table.update(on(table.last()), 10, "between");
        table.delete(on(table.last()), 11);
    });
    let is_settled = |(place, node): (usize, &Node)| {
        let waits = "SELECT count(*) FROM __harmonylite___tables t WHERE compare IS NOT NULL
            OR NOT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'trigger'
                AND name = '__harmonylite__' || t.name || '_insert')";
        let lost = all
            .iter()
            .filter(|t| t.kind.what == LOST && t.first == place);
        node.number(waits) <= lost.count() as i64
    };
    until("both nodes know their tables", || {
        let mut each = nodes.iter().enumerate();
        each.all(is_settled).then_some(())
    });
    for table in &all {
        let (first, last) = (on(table.first), on(table.last()));
        table.update(last, 1, "last");
        table.delete(last, 2);
        table.insert(last, 7, "last");
        table.update(first, 3, "first");
        table.delete(first, 4);
        table.insert(first, 8, "first");
    }
    let takes_in = |t: &&Rebuilt| ![LOST, "another name"].contains(&t.kind.what);
    until_none(|| {
        let is_wrong = |t: &&Rebuilt| {
            let rows = t.rows(t.first, &apps[t.first]);
            !rows.contains("1=last 3=first 5=old 6=old") || !rows.contains("10=between")
        };
        all.iter()
            .filter(takes_in)
            .filter(is_wrong)
            .map(|t| t.said(t.first, &apps))
            .collect()
    });

    // Where nothing tells the old key, what is written just before must be captured.
    let just_before = |is_told: bool| {
        for table in all.iter().filter(|t| t.kind.is_told == is_told) {
            table.update(on(table.last()), 5, "late");
            table.delete(on(table.last()), 6);
        }
    };
    just_before(false);
    until("it is captured", || {
        nodes.iter().all(Node::is_quiet).then_some(())
    });
    just_before(true);
    migrate(&mut all, &apps, Rebuilt::last_steps, |_| {});
    cluster.converge();

    let expected = "0=old 1=last 3=first 5=late 7=last 8=first 9=old 10=between";
    let is_wrong = |t: &&Rebuilt| t.rows(0, &apps[0]) != expected;
    until_none(|| {
        all.iter()
            .filter(is_wrong)
            .map(|t| t.said(0, &apps))
            .collect()
    });
    for app in &apps {
        // Column x is gone: what is held of it stays, with the note that its row is to be sent.
        let held = "SELECT table_name || ': ' || reason FROM __harmonylite___held AS held
            JOIN sqlite_schema ON name = table_name
            WHERE column <> 'x' AND NOT EXISTS (SELECT 1 FROM __harmonylite___held AS x
              WHERE (x.table_name, x.shape, x.key) = (held.table_name, held.shape, held.key)
              AND x.column = 'x' AND held.reason = 'not sent yet')";
        until_none(|| texts(app, held));
        until_none(|| texts(app, "SELECT hex(key) FROM __harmonylite___waiting"));
    }
    cluster.converge();
}

/// Waits until nothing is wrong any more.
fn until_none(wrong: impl Fn() -> Vec<String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = wrong();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{left:#?}");
        pause(50);
    }
}

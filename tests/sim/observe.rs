//! Checks each capture against the writes of the application, and records it in the model.

use std::collections::BTreeMap;

use harmonylite::capture::Outgoing;
use harmonylite::model::frame::Frame;
use harmonylite::model::version::Version;

use crate::model::{Model, Row, Write};
use crate::node::{MAX_CLOCK_DRIFT, Node, Stored};
use crate::numbered::{life, number, numbered};
use crate::plan::{Plan, Table};
use crate::rekeyed;

/// A row of a frame that this node captured.
struct Seen {
    at: (usize, String),
    version: Version,
    row: Option<Row>,
}

fn decode(plan: &Plan, frames: &[Outgoing]) -> Result<Vec<Seen>, String> {
    let mut seen = Vec::new();
    for out in frames {
        let Frame::Rows { nodes, tables, .. } =
            Frame::decode(&out.raw).map_err(|e| e.to_string())?
        else {
            return Err("a part leaves capture".into());
        };
        for part in &tables {
            if part.name == rekeyed::TABLE {
                continue;
            }
            let Some(table) = plan
                .tables
                .iter()
                .position(|t| t.name.eq_ignore_ascii_case(part.name))
            else {
                return Err(format!("a frame names table {}", part.name));
            };
            let spec = &plan.tables[table];
            let place = |name: &str| match name {
                "\0rowid" => Some(0),
                name => spec
                    .columns
                    .iter()
                    .position(|c| c.name.eq_ignore_ascii_case(name)),
            };
            let (mut rows, mut row) =
                (part.rows(&nodes), harmonylite::model::frame::Row::default());
            while rows.next(&mut row).map_err(|e| e.to_string())? {
                let mut all: Row = vec![None; spec.columns.len()];
                for (i, (name, value)) in part.columns.iter().zip(&row.values).enumerate() {
                    // The value is of another write, or of none.
                    let is_others = row.exceptions.iter().any(|(column, _)| *column == i);
                    let place = place(name).ok_or("a column nobody has")?;
                    all[place] = (!is_others).then(|| (*value).to_owned());
                }
                let key: Vec<_> = all[..spec.key.len()].iter().flatten().cloned().collect();
                seen.push(Seen {
                    at: (table, life(&spec.key_text(&key), row.birth)),
                    version: row.version,
                    row: (!row.deleted).then_some(all),
                });
            }
        }
    }
    Ok(seen)
}

/// Whether two rows are equal, to the bit, in the columns that both have.
pub fn same(a: Option<&Row>, b: Option<&Row>) -> bool {
    let same = |(x, y): (&Option<_>, &Option<_>)| x.is_none() || y.is_none() || x == y;
    match (a, b) {
        (Some(a), Some(b)) => a.iter().zip(b).all(same),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// Records the rows that left a capture as frames.
pub fn frames(
    node: &mut Node,
    plan: &Plan,
    model: &mut Model,
    frames: &[Outgoing],
) -> Result<(), String> {
    for seen in decode(plan, frames)? {
        if seen.version.node != node.id {
            continue;
        }
        let at = (seen.at.0, number(&seen.at.1).to_owned());
        let pending = node.shadow.pending.get(&at);
        let is_pending = pending.is_some();
        let settles = pending.is_some_and(|p| same(p.as_ref(), seen.row.as_ref()))
            && !model.wrote(seen.at.0, &seen.at.1, seen.version, node.place);
        if settles {
            node.shadow.pending.remove(&at);
            node.shadow.deeds.seen(&at);
        }
        if settles || !model.explains(seen.at.0, &seen.at.1, seen.version, seen.row.as_ref()) {
            if seen.row.is_some() && !is_pending && !model.duplicates {
                require_touched(node, plan, &seen.at, seen.version)?;
            }
            require_later(node, plan, model, &seen.at, seen.version)?;
            let write = Write {
                version: seen.version,
                row: seen.row,
                writer: node.place,
                certain: true,
                loose: Vec::new(),
            };
            require_same_again(node, plan, model, &seen.at, &write)?;
            model.record(seen.at.0, &seen.at.1, write);
        }
    }
    Ok(())
}

/// Requires that a row with unchanged content counts as written only if a statement named it.
fn require_touched(
    node: &Node,
    plan: &Plan,
    at: &(usize, String),
    version: Version,
) -> Result<(), String> {
    match node.may_have_touched(at) {
        true => Ok(()),
        false => Err(format!(
            "node {}: {} [{}] counts as written as {version}, and nobody touched it",
            node.place, plan.tables[at.0].name, at.1
        )),
    }
}

/// Requires that a later write of a node is newer, even after a power cut.
fn require_later(
    node: &Node,
    plan: &Plan,
    model: &Model,
    at: &(usize, String),
    version: Version,
) -> Result<(), String> {
    let given = model.given(at, node.place, MAX_CLOCK_DRIFT.as_millis() as i64);
    let is_excused = model.duplicates
        || node.noted.contains(&numbered(at))
        || model.is_surpassed(at, version.time_ms(), node.place);
    if given <= Some(version) || is_excused {
        return Ok(());
    }
    Err(format!(
        "node {}: {} [{}] is written as {version} after {given:?}",
        node.place, plan.tables[at.0].name, at.1
    ))
}

/// Requires that an entry which a power cut left in the change log gets no newer version when it is
/// captured again. Its first capture may have been sent, and another node may have written over the
/// row since. A row that a comparison found is excepted.
fn require_same_again(
    node: &Node,
    plan: &Plan,
    model: &Model,
    at: &(usize, String),
    write: &Write,
) -> Result<(), String> {
    let Some(cut) = node
        .cut
        .as_ref()
        .filter(|cut| !cut.touched.contains(&numbered(at)))
    else {
        return Ok(());
    };
    // The broker's time may have bounded the earlier version; it lags while few messages arrive.
    let before = model.lost(at, write).filter(|v| v.time_ms() >= cut.last_ms);
    let is_compared = node.shadow.contested.contains(&at.0);
    // A statement touches a row that it collides with, and a row that hides another one takes the
    // other's version into account.
    let is_alone = plan.tables[at.0].indexes.is_empty();
    // If two captures read entries of one moment, the second one counts one up.
    let is_newer = before.is_some_and(|v| v.time_ms() < write.version.time_ms());
    if is_compared || model.duplicates || !is_alone || !is_newer {
        return Ok(());
    }
    Err(format!(
        "node {}: {} [{}] was {before:?}, and is {} again after a power cut",
        node.place, plan.tables[at.0].name, at.1, write.version
    ))
}

/// After a merge or messages of a stream: records the rows from before HarmonyLite that lost.
pub fn given_way(node: &Node, plan: &Plan, model: &mut Model) {
    for table in 0..plan.tables.len() {
        let before = model.written_before(node.place, table);
        if before.is_empty() {
            continue;
        }
        let versions = node.versions(plan, table);
        // Where the file was put back, the same version may be this node's own, from before that.
        let is_put_back = model.is_put_back(node.place);
        for (key, version) in before {
            let now = versions.get(&key).map(|s| s.version);
            if now.is_some_and(|now| now != version || is_put_back) {
                model.demote_preexisting(table, &key, version);
            }
        }
    }
}

/// Checks and records the versions after a capture. If the capture is complete, every change of the
/// application must have a version of its own.
pub fn captured(
    node: &mut Node,
    plan: &Plan,
    model: &mut Model,
    at_end: bool,
) -> Result<(), String> {
    let pending = std::mem::take(&mut node.shadow.pending);
    for table in 0..plan.tables.len() {
        let versions = node.versions(plan, table);
        for ((_, key), row) in pending.range((table, String::new())..(table + 1, String::new())) {
            let found = node.life_of_change(plan, model, (table, key), row.as_ref());
            let (life, stored) = found.unzip();
            let stored = stored.as_ref();
            let life = life.as_deref().unwrap_or(key);
            let deleted = row.is_none();
            let is_new = |s: &Stored| {
                s.deleted == deleted
                    && s.version.node == node.id
                    && !model.wrote(table, life, s.version, node.place)
            };
            if !at_end && !stored.is_some_and(is_new) {
                node.shadow
                    .pending
                    .insert((table, key.clone()), row.clone());
                continue;
            }
            // The row's content tells a duplicate node's version from ours.
            let lost = |s: &Stored| {
                model.knows(table, life, s.version, s.deleted)
                    && (s.version.node != node.id
                        || !model.wrote(table, life, s.version, node.place)
                            && node.rows(plan, table).get(key) != row.as_ref())
            };
            if node.shadow.contested.contains(&table) && stored.is_some_and(lost) {
                continue;
            }
            let Some(stored) = stored.filter(|s| s.deleted == deleted) else {
                if deleted && stored.is_none() {
                    continue; // came and went between two captures: nobody else knows it
                }
                // The row came and went without a trigger: it is displaced as before, or the row
                // that hid it is gone.
                let is_back = || {
                    let row = node.rows(plan, table).remove(key);
                    let is_so = |s: &Stored| model.holds(table, life, s.version, row.as_ref());
                    row.is_some() && versions.get(life).is_some_and(is_so)
                };
                let contested = node.shadow.contested.contains(&table);
                if deleted && contested && (node.is_displaced(plan, table, key) || is_back()) {
                    continue;
                }
                return Err(format!(
                    "node {}: {} [{life}] was {} by the application, but after capture its version \
                     is {stored:?}\n{}",
                    node.place,
                    plan.tables[table].name,
                    if deleted { "deleted" } else { "written" },
                    model.history(&(table, life.to_owned()))
                ));
            };
            if deleted
                && (stored.version.node != node.id
                    || model.knows(table, life, stored.version, true))
            {
                continue; // it was deleted before, too
            }
            if model.holds(table, life, stored.version, row.as_ref()) {
                continue; // written to and fro while there were no triggers
            }
            if stored.version.node != node.id
                || model.wrote(table, life, stored.version, node.place)
            {
                return Err(format!(
                    "node {}: {} [{life}] was written by the application ({row:?}), but its \
                     version is still {}\n{}",
                    node.place,
                    plan.tables[table].name,
                    stored.version,
                    model.history(&(table, life.to_owned()))
                ));
            }
            let at = (table, life.to_owned());
            require_later(node, plan, model, &at, stored.version)?;
            // If a rebuild added a column, a comparison cannot tell the rebuild's values from
            // values that were written before the core looks at the table.
            let is_compared = node.shadow.contested.contains(&table);
            let columns = plan.tables[table].columns.iter().enumerate();
            let is_loose = |name: &str| is_compared && stored.others.contains_key(name);
            let loose = columns.filter(|(_, c)| is_loose(&c.name.to_ascii_lowercase()));
            let write = Write {
                version: stored.version,
                row: row.clone(),
                writer: node.place,
                certain: true,
                loose: loose.map(|(i, _)| i).collect(),
            };
            require_same_again(node, plan, model, &at, &write)?;
            node.shadow.deeds.seen(&(table, key.clone()));
            model.record(table, life, write);
        }
        let mut rows = None;
        for (key, stored) in versions {
            // A duplicate node may have given the same version to different content.
            if stored.version.node != node.id
                || !model.duplicates
                    && model.is_certain(&(table, key.clone()), stored.version)
                    && model.knows(table, &key, stored.version, stored.deleted)
            {
                continue;
            }
            // Another statement hid the row or took it along.
            let rows = rows.get_or_insert_with(|| {
                let shown = node.by_life(plan, table).into_iter();
                shown
                    .chain(node.waiting(plan, table))
                    .collect::<BTreeMap<_, _>>()
            });
            let row = if stored.deleted {
                None
            } else {
                let row = rows.get(&key);
                row.map(|row| own_values(&plan.tables[table], row, &stored))
            };
            // A column that was added since may still lack the value that other nodes have.
            let older = row.as_ref().map(|row| said(&plan.tables[table], row));
            let is_explained =
                |row: &Option<Row>| model.explains(table, &key, stored.version, row.as_ref());
            if is_explained(&row) || is_explained(&older) {
                continue;
            }
            let at = (table, key.clone());
            let is_pending = pending.contains_key(&(table, number(&key).to_owned()));
            if row.is_some() && !is_pending && !model.duplicates {
                require_touched(node, plan, &at, stored.version)?;
            }
            if row.is_some() || stored.deleted {
                let write = Write {
                    version: stored.version,
                    row,
                    writer: node.place,
                    certain: true,
                    loose: Vec::new(),
                };
                model.record(table, &key, write);
            }
        }
    }
    if at_end {
        node.require_deeds(plan, model)?;
        node.shadow.contested.clear();
        node.shadow.named.clear();
    }
    Ok(())
}

/// A row without the columns that have versions of their own.
fn own_values(table: &Table, row: &Row, stored: &Stored) -> Row {
    let columns = table.columns.iter().zip(row);
    let own = columns.map(|(column, value)| {
        let is_others = (stored.others).contains_key(&column.name.to_ascii_lowercase());
        value.clone().filter(|_| !is_others)
    });
    own.collect()
}

/// A row without the columns that were added later and have their default.
fn said(table: &Table, row: &Row) -> Row {
    let columns = table.columns.iter().enumerate().zip(row);
    let said = columns.map(|((i, column), value)| {
        let is_default = value.as_ref() == Some(&column.default);
        value.clone().filter(|_| i < table.base || !is_default)
    });
    said.collect()
}

/// The rows of a message, for people.
pub fn describe(data: &[u8]) -> String {
    let Ok(raw) = harmonylite::model::frame::unpack(data) else {
        return "?".into();
    };
    let Ok(Frame::Rows { nodes, tables, .. }) = Frame::decode(&raw) else {
        return "a part".into();
    };
    let mut text = String::new();
    for part in &tables {
        let (mut rows, mut row) = (part.rows(&nodes), harmonylite::model::frame::Row::default());
        while rows.next(&mut row).unwrap_or(false) {
            let key = row.values.iter().take(part.key.len());
            let key: Vec<String> = key.map(|v| format!("{v:?}")).collect();
            let sign = if row.deleted { "-" } else { "+" };
            text += &format!(" {sign}{}{key:?}={}", part.name, row.version);
        }
    }
    text
}

//! A replicated table with everything that is computed once per schema: SQL texts, frame header.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::database::Result;
use crate::database::rows::Stored;
use crate::database::schema::{Column, PREFIX, Schema, quote};
use crate::model::cbor;
use crate::model::content::{ColumnHash, ContentKey};
use crate::model::frame::{KeyColumn, ROWID, TableHeader, WAS};
use crate::model::key::key_bytes;
use crate::model::merge::Exceptions;
use crate::model::value::{OwnedValue, Value};
use crate::mutation::{self, Mutation};

/// A table of the catalog.
#[derive(Debug, Clone)]
pub struct Table {
    /// Number in `__harmonylite___tables`, never reused.
    pub id: i64,
    /// The table as SQLite describes it.
    pub schema: Schema,
    /// Per column: the local transaction number at which the column appeared; 0 if it was there
    /// from the start.
    pub born: Vec<i64>,
    /// The table's header in frames.
    pub header: TableHeader,
    /// The same for rows that say which key they had before.
    pub was_header: TableHeader,
    /// The statements that run for every row.
    pub sql: TableSql,
    /// Whether triggers of the application run for rows that arrive, see `apply_triggers`.
    pub fires: bool,
    /// Whether its versions table has births.
    pub has_births: bool,
    /// The key of content hashes in this table's database; none if an earlier release made it.
    key: Option<ContentKey>,
    /// Per column: its part in content hashes.
    hashes: Vec<ColumnHash>,
}

/// The statements that run for every row.
#[derive(Debug, Clone)]
pub struct TableSql {
    /// Reads the version of a key; `?1`, … are the key.
    pub get_version: String,
    /// Writes a version: the key, then hlc, site, deleted, at, hash, exceptions, birth.
    pub put_version: String,
    /// Deletes the version of a key.
    pub forget_version: String,
    /// Reads all columns of the row with a key.
    pub get_row: String,
    /// Inserts or updates a whole row, one parameter per column.
    pub upsert: String,
    /// Deletes the row with a key.
    pub delete_row: String,
    key_match: String,
}

/// The shape of a table as `__harmonylite___tables.shape` stores it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Shape {
    /// Affinity and collation of each key column. When these change, stored keys are no longer
    /// valid.
    pub key: Vec<(String, String)>,
    /// Lower-case column names, and the local transaction number at which each column appeared.
    pub columns: Vec<(String, i64)>,
    /// By lower-case column name, encoded by [`exactly`]: the default from when the column was
    /// first seen. Content hashes leave out columns that have it, so it must not change with the
    /// schema.
    #[serde(default)]
    pub defaults: BTreeMap<String, Vec<u8>>,
    /// By lower-case column name, see [`Column::former`].
    #[serde(default)]
    pub former: BTreeMap<String, Vec<String>>,
}

impl Shape {
    /// The shape of `schema`, whose columns appeared when `born` says; without defaults and former
    /// names.
    pub fn of(schema: &Schema, born: &[i64]) -> Self {
        let key = schema.key.iter();
        let columns = schema.columns.iter().map(|c| c.lower.clone());
        Shape {
            key: key
                .map(|k| (k.affinity.to_owned(), k.collation.clone()))
                .collect(),
            columns: columns.zip(born.iter().copied()).collect(),
            defaults: BTreeMap::new(),
            former: BTreeMap::new(),
        }
    }

    /// Canonical bytes of a key.
    pub(crate) fn key_bytes(&self, key: &[OwnedValue]) -> Vec<u8> {
        let collations = self.key.iter().map(|(_, collation)| collation.as_str());
        key_bytes(key.iter().map(OwnedValue::borrow), collations)
    }

    /// The header in frames of tombstones under this key, which table number `id` had before.
    pub(crate) fn former_header(&self, id: i64, table: &str) -> TableHeader {
        let key: Vec<KeyColumn> = self.columns.iter().zip(&self.key).map(key_column).collect();
        let names: Vec<&str> = key.iter().map(|k| k.name.as_str()).collect();
        TableHeader::new(i64::MIN + id, table, &key, &names)
    }

    /// The key's columns in a CREATE TABLE, under the names of [`key_names`].
    pub(crate) fn key_definitions(&self) -> String {
        let key = self.key.iter().enumerate();
        let columns = key.map(|(i, (affinity, collation))| {
            format!("k{} {affinity} COLLATE {}", i + 1, quote(collation))
        });
        columns.collect::<Vec<_>>().join(", ")
    }

    fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|(c, _)| c == column)
    }

    /// The present name of the column that has, or once had, the name `name`.
    pub fn named_now<'a>(&'a self, name: &'a str) -> &'a str {
        let is_former = |(_, former): &(&String, &Vec<String>)| former.iter().any(|f| f == name);
        let now = self.former.iter().find(is_former);
        now.map_or(name, |(now, _)| now)
    }

    /// Whether nobody wrote the value: the row's version is from local transaction `at`, before the
    /// column appeared, and the value is the column's default.
    pub fn is_unwritten(&self, column: &str, local_tx: i64, value: Value<'_>) -> bool {
        let is_late = self
            .columns
            .iter()
            .any(|(c, born)| c == column && local_tx < *born);
        is_late && self.defaults.get(column) == Some(&exactly(value))
    }

    /// Columns that were renamed since `known`, as (old, new). `listed` has for each column of
    /// `known` the name that it has now, or had when it was dropped. A name that occurs twice in
    /// `listed` is left out: two columns had it, one after the other.
    pub fn renamed_since(&self, known: &Shape, listed: &[String]) -> Vec<(String, String)> {
        let pairs = known.columns.iter().zip(listed);
        let names = pairs.map(|((old, _), new)| (old.clone(), new.clone()));
        let is_renamed = |(old, new): &(String, String)| {
            let is_one = || listed.iter().filter(|l| *l == new).count() == 1;
            !self.has(old) && self.has(new) && !known.has(new) && is_one()
        };
        names.filter(is_renamed).collect()
    }

    /// Whether a key stands for the same row as under `known`: the keys compare in the same way and
    /// consist of the same columns, renamed or not. The rowid of a table without a primary key is
    /// never a renamed column.
    pub fn has_key_of(&self, known: &Shape) -> bool {
        let pairs = known.columns.iter().zip(&self.columns);
        let mut pairs = pairs.take(self.key.len());
        let is_renamed = |old: &str, new: &str| {
            ![old, new].contains(&ROWID) && !self.has(old) && !known.has(new)
        };
        let is_same = |old: &str, new: &str| old == new || is_renamed(old, new);
        self.key == known.key && pairs.all(|((old, _), (new, _))| is_same(old, new))
    }

    /// Takes over from `known` the defaults that the columns had when they were first seen, and
    /// their names from before they were `renamed` (old and new). A column that is not in `known`
    /// keeps its present default. Fails if a stored default is not valid CBOR.
    pub fn keep_known(
        &mut self,
        known: &Shape,
        renamed: &[(String, String)],
        columns: &mut [Column],
    ) -> Result<()> {
        for column in columns {
            let old = renamed.iter().find(|(_, new)| *new == column.lower);
            let before = old.map_or(&column.lower, |(old, _)| old);
            let default = match known.defaults.get(before) {
                Some(bytes) => bytes.clone(),
                None => exactly(column.default.borrow()),
            };
            column.default = cbor::key_values(&default)?.remove(0);
            self.defaults.insert(column.lower.clone(), default);
            let former = known.former.get(before).into_iter().flatten();
            let former = former.chain(old.map(|(old, _)| old));
            column.former = former.filter(|f| !self.has(f)).cloned().collect();
            if !column.former.is_empty() {
                let former = column.former.clone();
                self.former.insert(column.lower.clone(), former);
            }
        }
        Ok(())
    }
}

fn key_column(
    ((name, _), (affinity, collation)): (&(String, i64), &(String, String)),
) -> KeyColumn {
    let known = ["INTEGER", "TEXT", "BLOB", "REAL", "NUMERIC"];
    KeyColumn {
        name: name.clone(),
        affinity: known.into_iter().find(|k| k == affinity).unwrap_or("BLOB"),
        collation: collation.clone(),
    }
}

/// A value, encoded like a key of one column, but with its storage class: 1.0 is not 1.
pub(crate) fn exactly(value: Value<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    cbor::write_array(&mut out, 1);
    cbor::write_value(&mut out, value);
    out
}

/// The parameters `?first`, `?first+1`, …, `count` of them.
pub fn parameters(first: usize, count: usize) -> String {
    let each: Vec<String> = (first..first + count).map(|i| format!("?{i}")).collect();
    each.join(", ")
}

/// The names `k1`, `k2`, … that the columns of a key have in our own tables.
pub fn key_names(count: usize) -> Vec<String> {
    (1..=count).map(|i| format!("k{i}")).collect()
}

impl Table {
    /// Computes header, statements and hashes of a table; `born` is as in [`Table::born`]. Its
    /// content hashes have no key.
    pub fn new(id: i64, schema: Schema, born: Vec<i64>) -> Self {
        let names: Vec<&str> = schema.columns.iter().map(|c| c.name.as_str()).collect();
        let header = TableHeader::new(id, &schema.name, &schema.key, &names);
        let names: Vec<&str> = names.into_iter().chain([WAS]).collect();
        let was_header = TableHeader::new(-id, &schema.name, &schema.key, &names);
        let sql = TableSql::new(&schema, false);
        let mut table = Table {
            id,
            schema,
            born,
            header,
            was_header,
            sql,
            fires: false,
            has_births: false,
            key: None,
            hashes: Vec::new(),
        };
        table.set_key(None);
        table
    }

    /// Gives the table the key of its database for content hashes.
    pub fn set_key(&mut self, key: Option<ContentKey>) {
        let columns = self.schema.columns.iter();
        let hash = |c: &Column| ColumnHash::new(key.as_ref(), &c.lower);
        (self.key, self.hashes) = (key, columns.map(hash).collect());
    }

    /// The same table, whose versions table has births.
    pub fn with_births(mut self) -> Self {
        self.has_births = true;
        self.sql = TableSql::new(&self.schema, true);
        self
    }

    /// The table's name as the user spells it.
    pub fn name(&self) -> &str {
        &self.schema.name
    }

    /// Number of key columns.
    pub fn key_len(&self) -> usize {
        self.schema.key.len()
    }

    /// Whether some column appeared after the table was first seen.
    pub fn has_late_columns(&self) -> bool {
        self.born.iter().any(|b| *b > 0)
    }

    /// The `exceptions` under the names that the columns have now.
    pub fn named_now(&self, exceptions: Exceptions) -> Exceptions {
        let columns = &self.schema.columns;
        let now = |name: String| {
            let column = columns.iter().find(|c| c.is_or_was(&name));
            column.map_or(name, |c| c.lower.clone())
        };
        let each = exceptions.into_iter();
        each.map(|(name, version)| (now(name), version)).collect()
    }

    /// Hash of the content, one value per column, of a row that is learnt in transaction
    /// `local_tx`. It does not depend on the order of the columns. A column that has its default
    /// does not count, so ADD COLUMN changes no hash.
    pub fn content_hash<'v>(&self, local_tx: i64, values: impl Iterator<Item = Value<'v>>) -> i64 {
        match self.is_keyed(local_tx) {
            true => self.sum(values, ColumnHash::part),
            false => self.sum(values, ColumnHash::part_without_key),
        }
    }

    /// Whether a row that is stored as live has these values, which are one per column.
    pub fn is_content<'v>(&self, stored: &Stored, values: impl Iterator<Item = Value<'v>>) -> bool {
        stored.hash == self.content_hash(stored.local_tx, values)
    }

    /// Whether two stored hashes, this one and `other` of table `theirs`, are under one key, so
    /// that equal hashes mean equal contents.
    pub fn has_key_of(&self, stored: &Stored, theirs: &Table, other: &Stored) -> bool {
        let halves = |table: &Table| table.key.map(|key| key.halves);
        let are_keyed = self.is_keyed(stored.local_tx) && theirs.is_keyed(other.local_tx);
        are_keyed && halves(self) == halves(theirs)
    }

    fn is_keyed(&self, local_tx: i64) -> bool {
        self.key.is_some_and(|key| local_tx >= key.since)
    }

    fn sum<'v>(
        &self,
        values: impl Iterator<Item = Value<'v>>,
        part: impl Fn(&ColumnHash, Value<'v>) -> u64,
    ) -> i64 {
        let columns = self.schema.columns.iter().zip(&self.hashes).zip(values);
        let each = columns.map(|((column, hash), value)| {
            if value.same(&column.default.borrow()) {
                0
            } else {
                part(hash, value)
            }
        });
        each.fold(0u64, u64::wrapping_add) as i64
    }

    /// SQL that inserts the row with the given key, or updates its columns `which`.
    pub fn upsert_some(&self, which: &[usize]) -> String {
        upsert(&self.schema, which)
    }

    /// SQL that sets the columns `which` of the row with the given key; their values follow the
    /// key's.
    pub fn update_some(&self, which: &[usize]) -> String {
        let first = self.key_len() + 1;
        let set = which.iter().enumerate();
        let set = set.map(|(i, w)| format!("{} = ?{}", self.schema.column_sql(*w), first + i));
        format!(
            "UPDATE{} {} SET {} WHERE {}",
            or_abort(&self.schema),
            quote(self.name()),
            set.collect::<Vec<_>>().join(", "),
            self.key_match()
        )
    }

    /// SQL that reads at most `limit` keys of rows in key order, from the start or after a given
    /// key. It passes over keys with NULL in them.
    pub fn scan_keys(&self, from_start: bool, limit: usize) -> String {
        let key: Vec<String> = (0..self.key_len())
            .map(|i| self.schema.column_sql(i))
            .collect();
        let not_null: Vec<String> = key.iter().map(|k| format!("{k} IS NOT NULL")).collect();
        let condition = not_null.join(" AND ");
        scan(
            &quote(self.name()),
            &key,
            self.collations(),
            from_start,
            &condition,
            limit,
        )
    }

    /// SQL that reads the first so many columns, of which the key is the beginning, in key order:
    /// after a key (the first parameters), up to a key (the next ones), where these are given. It
    /// passes over keys with NULL in them.
    pub fn scan_range(&self, columns: usize, after: bool, up_to: bool) -> String {
        let columns = column_list(&self.schema, 0..columns);
        let count = self.key_len();
        let key = (0..count).map(|i| self.schema.column_sql(i));
        let not_null: Vec<String> = key.clone().map(|k| format!("{k} IS NOT NULL")).collect();
        let order = key.zip(self.collations());
        let order: Vec<String> = order
            .map(|(k, c)| format!("{k} COLLATE {}", quote(c)))
            .collect();
        let order = order.join(", ");
        let after_key = format!(" AND ({order}) > ({})", parameters(1, count));
        let first = if after { 1 + count } else { 1 };
        let is_up_to = match mutation::is(Mutation::LastRowNotSummed) {
            true => "<",
            false => "<=",
        };
        let up_to_key = format!(" AND ({order}) {is_up_to} ({})", parameters(first, count));
        format!(
            "SELECT {columns} FROM {} WHERE {}{}{} ORDER BY {order}",
            quote(self.name()),
            not_null.join(" AND "),
            if after { &*after_key } else { "" },
            if up_to { &*up_to_key } else { "" },
        )
    }

    /// As [`Self::scan_keys`], but over the keys of live versions.
    pub fn scan_versions(&self, from_start: bool, limit: usize) -> String {
        self.scan_version_keys(from_start, "deleted = 0", limit)
    }

    /// As [`Self::scan_keys`], but over the keys of all versions, tombstones included.
    pub fn scan_all_versions(&self, from_start: bool, limit: usize) -> String {
        self.scan_version_keys(from_start, "1", limit)
    }

    fn scan_version_keys(&self, from_start: bool, condition: &str, limit: usize) -> String {
        let key = key_names(self.key_len());
        let table = versions_table(self.name());
        scan(
            &table,
            &key,
            self.collations(),
            from_start,
            condition,
            limit,
        )
    }

    /// Canonical bytes of a key of this table: equal keys have equal bytes, however they are
    /// spelled.
    pub fn key_bytes<'v>(&self, values: impl ExactSizeIterator<Item = Value<'v>>) -> Vec<u8> {
        key_bytes(values, self.collations())
    }

    fn collations(&self) -> impl Iterator<Item = &str> {
        self.schema.key.iter().map(|k| k.collation.as_str())
    }

    /// `"a" = ?1 COLLATE "X" AND …` over the key columns.
    pub fn key_match(&self) -> &str {
        &self.sql.key_match
    }
}

fn scan<'c>(
    table: &str,
    key: &[String],
    collations: impl Iterator<Item = &'c str>,
    from_start: bool,
    condition: &str,
    limit: usize,
) -> String {
    let order: Vec<String> = key
        .iter()
        .zip(collations)
        .map(|(k, c)| format!("{k} COLLATE {}", quote(c)))
        .collect();
    let order = order.join(", ");
    let after = match from_start {
        true => String::new(),
        false => format!("AND ({order}) > ({})", parameters(1, key.len())),
    };
    let key = key.join(", ");
    format!("SELECT {key} FROM {table} WHERE {condition} {after} ORDER BY {order} LIMIT {limit}")
}

/// SQL name of the versions table of a user's table.
pub fn versions_table(table: &str) -> String {
    quote(&format!("{PREFIX}{table}_versions"))
}

/// CREATE TABLE of the versions. Keys compare as in the user's table, so they need its affinity and
/// collation, but not its declared type.
pub fn create_versions(schema: &Schema) -> String {
    let columns: Vec<String> = schema
        .key
        .iter()
        .enumerate()
        .map(|(i, k)| format!("k{} {} COLLATE {}", i + 1, k.affinity, quote(&k.collation)))
        .collect();
    let key = key_names(schema.key.len());
    format!(
        "CREATE TABLE {}({}, hlc INTEGER, site INTEGER, deleted INTEGER, at INTEGER, hash INTEGER, \
         exc BLOB, PRIMARY KEY({})) WITHOUT ROWID",
        versions_table(&schema.name),
        columns.join(", "),
        key.join(", ")
    )
}

fn column_list(schema: &Schema, which: impl Iterator<Item = usize>) -> String {
    which
        .map(|i| schema.column_sql(i))
        .collect::<Vec<_>>()
        .join(", ")
}

fn upsert(schema: &Schema, which: &[usize]) -> String {
    let n = schema.key.len();
    // The key's values are always given, to find the row; `which` decides whether they are set,
    // too.
    let others = which.iter().copied().filter(|i| *i >= n);
    let given: Vec<usize> = (0..n).chain(others).collect();
    let unknown: Vec<usize> = (n..schema.columns.len())
        .filter(|i| !given.contains(i) && schema.columns[*i].begins_as_null())
        .collect();
    let set: Vec<String> = which
        .iter()
        .filter(|i| schema.rowid.is_none() || **i > 0)
        .map(|i| schema.column_sql(*i))
        .map(|c| format!("{c} = excluded.{c}"))
        .collect();
    let action = match set.is_empty() {
        true => "NOTHING".to_owned(),
        false => format!("UPDATE SET {}", set.join(", ")),
    };
    format!(
        // The alias is needed because a table may be called "excluded".
        "INSERT{} INTO {} AS __harmonylite__row({}) VALUES ({}{}) ON CONFLICT ({}) DO {action}",
        or_abort(schema),
        quote(&schema.name),
        column_list(schema, given.iter().chain(&unknown).copied()),
        parameters(1, given.len()),
        ", NULL".repeat(unknown.len()),
        conflict_target(schema),
    )
}

/// OR ABORT for a table with an ON CONFLICT clause: that would evict or leave out rows unnoticed,
/// unless the statement says otherwise. A table without such a clause gets none, because the
/// statement's clause also applies to the statements of a trigger that it fires.
fn or_abort(schema: &Schema) -> &'static str {
    match schema.has_conflict_clause {
        true => " OR ABORT",
        false => "",
    }
}

fn conflict_target(schema: &Schema) -> String {
    let terms = schema
        .key
        .iter()
        .enumerate()
        .map(|(i, key)| match schema.key_is_rowid {
            true => schema.column_sql(i),
            false => format!("{} COLLATE {}", schema.column_sql(i), quote(&key.collation)),
        });
    terms.collect::<Vec<_>>().join(", ")
}

impl TableSql {
    fn new(schema: &Schema, has_births: bool) -> Self {
        let born = if has_births { ", born" } else { "" };
        let (table, versions) = (quote(&schema.name), versions_table(&schema.name));
        let n = schema.key.len();
        let matches: Vec<String> = schema
            .key
            .iter()
            .enumerate()
            .map(|(i, k)| {
                format!(
                    "{} = ?{} COLLATE {}",
                    schema.column_sql(i),
                    i + 1,
                    quote(&k.collation)
                )
            })
            .collect();
        let key_match = matches.join(" AND ");
        let version_match: Vec<String> = (1..=n).map(|i| format!("k{i} = ?{i}")).collect();
        let keys = key_names(n);
        let all: Vec<usize> = (0..schema.columns.len()).collect();
        TableSql {
            get_version: format!(
                "SELECT hlc, site, deleted, at, hash, exc{born} FROM {versions} WHERE {}",
                version_match.join(" AND ")
            ),
            put_version: format!(
                "REPLACE INTO {versions}({}, hlc, site, deleted, at, hash, exc{born}) VALUES ({})",
                keys.join(", "),
                parameters(1, n + 6 + usize::from(has_births))
            ),
            forget_version: format!(
                "DELETE FROM {versions} WHERE {}",
                version_match.join(" AND ")
            ),
            get_row: format!(
                "SELECT {} FROM {table} WHERE {key_match}",
                column_list(schema, 0..schema.columns.len())
            ),
            upsert: upsert(schema, &all),
            delete_row: format!("DELETE FROM {table} WHERE {key_match}"),
            key_match,
        }
    }
}

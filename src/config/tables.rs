//! The choice of the tables that are replicated: `[tables] include`, `exclude` and `local`.

use super::bookkeeping::{self, tool_of};
use super::section::Section;

/// Globs on table names. `exclude` counts first, then a plain name in `include`, then `local` and
/// the tables of known tools ([`super::bookkeeping`]), then the other globs of `include`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Tables to replicate; the default is `*`.
    pub include: Vec<String>,
    /// Tables to leave out.
    pub exclude: Vec<String>,
    /// Tables of which each node has its own, besides those of known tools.
    pub local: Vec<String>,
}

/// How a table takes part, by the configuration and by its name and columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Its rows travel to all nodes.
    Replicated,
    /// Each node has its own rows, which snapshots contain. The text gives the reason.
    Local(String),
    /// Its rows never leave the node. The text gives the reason.
    Excluded(String),
}

impl Default for Tables {
    fn default() -> Self {
        Tables {
            include: vec!["*".into()],
            exclude: Vec::new(),
            local: Vec::new(),
        }
    }
}

impl Tables {
    pub(super) fn read(section: &Section) -> Tables {
        let include = section.list("include").unwrap_or_else(|| vec!["*".into()]);
        if include.is_empty() {
            section.note(
                "include",
                "is empty, which selects no table: write [\"*\"] for all",
            );
        }
        let local = section.list("local").unwrap_or_default();
        let is_in_both = |name: &&String| is_plain(name) && local.iter().any(|l| same(l, name));
        if let Some(name) = include.iter().find(is_in_both) {
            let text = format!("has {name:?}, and so has tables.include: remove it from one");
            section.note("local", text);
        }
        Tables {
            include,
            exclude: section.list("exclude").unwrap_or_default(),
            local,
        }
    }

    /// A text of the globs that is equal on nodes with equal configurations.
    pub fn described(&self) -> String {
        let sorted = |globs: &[String]| {
            let mut globs: Vec<String> = globs.iter().map(|g| g.to_ascii_lowercase()).collect();
            globs.sort();
            globs
        };
        let (include, exclude) = (sorted(&self.include), sorted(&self.exclude));
        let mut text = format!("{include:?}{WITHOUT}{exclude:?}");
        if !self.local.is_empty() {
            text += &format!("{LOCAL}{:?}", sorted(&self.local));
        }
        text
    }

    /// Parses the text of [`Tables::described`]; none if a different release wrote it differently.
    pub fn of_description(text: &str) -> Option<Tables> {
        let (include, rest) = text.split_once(WITHOUT)?;
        let (exclude, local) = rest.split_once(LOCAL).unwrap_or((rest, "[]"));
        let globs = |text: &str| serde_json::from_str::<Vec<String>>(text).ok();
        Some(Tables {
            include: globs(include)?,
            exclude: globs(exclude)?,
            local: globs(local)?,
        })
    }

    /// Whether a table is replicated whatever its columns are, for callers that know only its name.
    pub fn replicates(&self, table: &str) -> bool {
        let is_plain = self
            .include
            .iter()
            .any(|name| is_plain(name) && same(name, table));
        let is_chosen = self.choose(table, &[]) == Choice::Replicated;
        is_chosen && (is_plain || !bookkeeping::may_be_a_book(table))
    }

    /// How a table takes part; `columns` are all of its columns.
    pub fn choose(&self, table: &str, columns: &[&str]) -> Choice {
        let find = |globs: &[String]| globs.iter().find(|glob| matches(glob, table)).cloned();
        if let Some(glob) = find(&self.exclude) {
            return Choice::Excluded(format!("tables.exclude has {glob:?}"));
        }
        if self
            .include
            .iter()
            .any(|name| is_plain(name) && same(name, table))
        {
            return Choice::Replicated;
        }
        if let Some(glob) = find(&self.local) {
            return Choice::Local(format!("tables.local has {glob:?}"));
        }
        if let Some(tool) = tool_of(table, columns) {
            return Choice::Local(format!(
                "{tool} keeps its books in it, on each node its own"
            ));
        }
        match find(&self.include) {
            Some(_) => Choice::Replicated,
            None => Choice::Excluded("tables.include does not have it".into()),
        }
    }
}

/// Separators between the parts of a description.
const WITHOUT: &str = " without ";
const LOCAL: &str = " local ";

/// Whether the glob names exactly one table.
fn is_plain(glob: &str) -> bool {
    !glob.contains(['*', '?'])
}

/// Whether both are names of one table for SQLite.
fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// Whether `name` matches: `*` stands for any run of characters, `?` for one. Case counts as in
/// SQLite's table names: not for ASCII letters, but for others. Each further star multiplies the
/// time; names are short and the patterns are the operator's own.
pub(super) fn matches(glob: &str, name: &str) -> bool {
    let mut rest = glob.chars();
    let Some(wanted) = rest.next() else {
        return name.is_empty();
    };
    let rest = rest.as_str();
    if wanted == '*' {
        let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
        return ends.into_iter().any(|at| matches(rest, &name[at..]));
    }
    let mut left = name.chars();
    left.next()
        .is_some_and(|found| wanted == '?' || wanted.eq_ignore_ascii_case(&found))
        && matches(rest, left.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (glob, name, expected) in [
            ("*", "", true),
            ("*", "users", true),
            ("users", "USERS", true),
            ("users", "users2", false),
            ("user?", "users", true),
            ("user?", "user", false),
            ("log_*", "log_2024", true),
            ("*_log", "audit_log", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("größe?", "größe1", true),
            ("É", "é", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(glob, name), expected, "{glob} on {name}");
        }
    }

    fn tables(include: &[&str], exclude: &[&str], local: &[&str]) -> Tables {
        let [include, exclude, local] =
            [include, exclude, local].map(|globs| globs.iter().map(|g| (*g).to_owned()).collect());
        Tables {
            include,
            exclude,
            local,
        }
    }

    /// The choice as text: its kind, then the reason.
    fn chosen(tables: &Tables, table: &str, columns: &str) -> String {
        let columns: Vec<&str> = columns.split_whitespace().collect();
        match tables.choose(table, &columns) {
            Choice::Replicated => "replicated".into(),
            Choice::Local(why) => format!("local: {why}"),
            Choice::Excluded(why) => format!("excluded: {why}"),
        }
    }

    #[test]
    fn the_order_of_the_lists() {
        const BOOK: (&str, &str) = ("django_migrations", "id app name applied");
        let is = |tables: &Tables, (table, columns): (&str, &str), expected: &str| {
            let chosen = chosen(tables, table, columns);
            assert!(
                chosen.starts_with(expected),
                "{table}: {chosen}, not {expected}"
            );
        };
        let some = tables(&["app_*"], &["*_tmp"], &["app_job?"]);
        is(&some, ("app_users", "id"), "replicated");
        is(
            &some,
            ("App_Tmp", "id"),
            "excluded: tables.exclude has \"*_tmp\"",
        );
        is(
            &some,
            ("other", "id"),
            "excluded: tables.include does not have it",
        );
        is(
            &some,
            ("app_jobs", "id"),
            "local: tables.local has \"app_job?\"",
        );
        is(&some, BOOK, "local: Django keeps its books in it");
        is(&tables(&["*"], &["django_*"], &[]), BOOK, "excluded");
        is(&tables(&["*"], &["django_*"], &["*"]), BOOK, "excluded");
        is(
            &tables(&["*", "Django_Migrations"], &[], &[]),
            BOOK,
            "replicated",
        );
        is(
            &tables(&["*", "django_migrations"], &[], &["django_*"]),
            BOOK,
            "replicated",
        );
        is(&tables(&["django_*"], &[], &[]), BOOK, "local");
    }

    #[test]
    fn a_description_can_be_read_again() {
        let all = Tables::default();
        assert_eq!(all.described(), "[\"*\"] without []"); // as ever: it is compared
        for tables in [all, tables(&["*", "a\"b"], &["x", "y"], &["l"])] {
            assert_eq!(Tables::of_description(&tables.described()), Some(tables));
        }
        assert_eq!(Tables::of_description("all of them"), None);
    }
}

//! Which tables take part: `[tables] include` and `exclude`.

use super::section::Section;

/// Globs on table names. A table takes part if one of `include` matches and none of `exclude`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
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
        Tables {
            include,
            exclude: section.list("exclude").unwrap_or_default(),
        }
    }

    /// Text that is the same for nodes that were configured the same.
    pub fn described(&self) -> String {
        let sorted = |globs: &[String]| {
            let mut globs: Vec<String> = globs.iter().map(|g| g.to_ascii_lowercase()).collect();
            globs.sort();
            globs
        };
        format!(
            "{:?} without {:?}",
            sorted(&self.include),
            sorted(&self.exclude)
        )
    }

    pub fn selects(&self, table: &str) -> bool {
        let any = |globs: &[String]| globs.iter().any(|glob| matches(glob, table));
        any(&self.include) && !any(&self.exclude)
    }
}

/// `*` stands for any run of characters, `?` for one. Case counts as it does for SQLite's table
/// names: not at all for ASCII letters, exactly for others. Several stars cost time that grows with
/// their number; names are short and the patterns the operator's own.
fn matches(glob: &str, name: &str) -> bool {
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

    #[test]
    fn exclude_beats_include() {
        let tables = Tables {
            include: vec!["app_*".into()],
            exclude: vec!["*_tmp".into()],
        };
        assert!(tables.selects("app_users"));
        assert!(!tables.selects("App_Tmp"));
        assert!(!tables.selects("other"));
    }
}

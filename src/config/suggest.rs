//! "Did you mean": the known name nearest to a mistyped one.

/// The nearest of `known`, if it is within one edit and a quarter of the name's length. Names may
/// be dotted. The same key in a different section counts as one edit: a key below the wrong
/// `[section]` is the commonest mistake in TOML.
pub(crate) fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (section, key) = split(name);
    let distance = |other: &str| {
        let (other_section, other_key) = split(other);
        edits(key, other_key) + usize::from(section != other_section)
    };
    let limit = 1 + key.len() / 4;
    known
        .into_iter()
        .filter(|other| distance(other) <= limit)
        .min_by_key(|other| distance(other))
}

fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// Levenshtein distance, one row of the table at a time.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["db_path", "publish", "nats.urls", "replication_log.shards"];

    #[test]
    fn typing_errors_and_wrong_sections_are_near() {
        for (name, meant) in [
            ("db_pth", "db_path"),
            ("pulbish", "publish"),
            ("nats.url", "nats.urls"),
            ("shards", "replication_log.shards"),
            ("nats.publish", "publish"),
        ] {
            assert_eq!(closest(name, KNOWN), Some(meant), "{name}");
        }
    }

    #[test]
    fn strange_names_have_no_suggestion() {
        assert_eq!(closest("colour", KNOWN), None);
        assert_eq!(closest("x", KNOWN), None);
    }

    #[test]
    fn edits_counts() {
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("same", "same"), 0);
    }
}

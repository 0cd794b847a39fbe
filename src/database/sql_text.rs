//! Parses just enough of SQL's text to extract parts that no pragma shows: the expressions of an
//! index, the module of a virtual table, the body of a trigger.

/// The text of an index's terms and of its WHERE.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexText {
    /// Without COLLATE, ASC and DESC.
    pub terms: Vec<String>,
    pub predicate: Option<String>,
}

/// Takes apart a CREATE INDEX statement as SQLite stores it. None if it is not one.
pub(crate) fn parse(sql: &str) -> Option<IndexText> {
    let tokens = tokens(sql);
    // CREATE UNIQUE INDEX name ON table ( terms ) [WHERE predicate]: names may be any word, so the
    // right ON is the first at least one token after INDEX.
    let index = tokens.iter().position(|t| is_word(sql, t, "INDEX"))?;
    let on = index
        + 2
        + tokens[index + 2..]
            .iter()
            .position(|t| is_word(sql, t, "ON"))?;
    let open = on + tokens[on..].iter().position(|t| &sql[t.clone()] == "(")?;
    let (mut depth, mut start, mut terms, mut close) = (0, open + 1, Vec::new(), None);
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match &sql[token.clone()] {
            "(" => depth += 1,
            ")" => depth -= 1,
            "," if depth == 1 => {
                terms.push(term(sql, &tokens[start..i])?);
                start = i + 1;
            }
            _ => {}
        }
        if depth == 0 {
            terms.push(term(sql, &tokens[start..i])?);
            close = Some(i);
            break;
        }
    }
    let rest = &tokens[close? + 1..];
    let predicate = match rest.first() {
        Some(word) if is_word(sql, word, "WHERE") => Some(text(sql, &rest[1..])?),
        Some(_) => return None,
        None => None,
    };
    Some(IndexText { terms, predicate })
}

/// The module of a CREATE VIRTUAL TABLE statement.
pub(crate) fn virtual_module(sql: &str) -> Option<String> {
    let tokens = tokens(sql);
    let using = tokens.iter().position(|t| is_word(sql, t, "USING"))?;
    let module = &sql[tokens.get(using + 1)?.clone()];
    Some(module.trim_matches(['"', '`', '[', ']', '\'']).to_owned())
}

/// The arguments of the module in a CREATE VIRTUAL TABLE statement.
pub(crate) fn virtual_arguments(sql: &str) -> Vec<String> {
    let tokens = tokens(sql);
    let using = tokens.iter().position(|t| is_word(sql, t, "USING"));
    let Some(open) = using.map(|at| at + 2) else {
        return Vec::new();
    };
    let (mut depth, mut start, mut found) = (0, open + 1, Vec::new());
    for (i, token) in tokens.iter().enumerate().skip(open) {
        let is_end = match &sql[token.clone()] {
            "(" => {
                depth += 1;
                false
            }
            ")" => {
                depth -= 1;
                depth == 0
            }
            "," => depth == 1,
            _ => false,
        };
        if is_end {
            found.extend(text(sql, &tokens[start..i]));
            start = i + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// The text after the name in a CREATE TRIGGER statement as SQLite stores it.
pub(crate) fn after_trigger_name(sql: &str) -> Option<&str> {
    let tokens = tokens(sql);
    let qualified = tokens.get(3).is_some_and(|t| &sql[t.clone()] == ".");
    let name = tokens.get(if qualified { 4 } else { 2 })?;
    Some(sql[name.end..].trim_start())
}

/// The tables, in lower case, that the body of a CREATE TRIGGER statement writes to.
pub(crate) fn written_tables(sql: &str) -> Vec<String> {
    let all = words(sql);
    let body = all.iter().position(|w| w == "begin").unwrap_or(all.len());
    let words = &all[body..];
    let name_after = |at: usize| {
        let word = |i: usize| words.get(at + i).map_or("", String::as_str);
        let action = 2 * usize::from(word(1) == "or");
        let name = match (word(0), word(action + 1)) {
            ("insert" | "replace", "into") => action + 2,
            ("delete", "from") => 2,
            ("update", _) => action + 1,
            _ => return None,
        };
        Some(word(name).to_owned())
    };
    (0..words.len()).filter_map(name_after).collect()
}

/// The text after the name in a CREATE TABLE statement as SQLite stores it.
pub(crate) fn after_table_name(sql: &str) -> Option<&str> {
    let name = tokens(sql).into_iter().nth(2)?;
    Some(&sql[name.end..])
}

/// Removes `table.` and `main.table.` before columns, so that the text works under an alias, too.
pub(crate) fn unqualified(sql: &str, table: &str) -> String {
    let tokens = tokens(sql);
    let is = |at: usize, name: &str| {
        let word = tokens.get(at).map(|t| unquoted(&sql[t.clone()]));
        word.is_some_and(|w| w.eq_ignore_ascii_case(name))
    };
    let (mut text, mut kept, mut at) = (String::with_capacity(sql.len()), 0, 0);
    while at < tokens.len() {
        let schema = 2 * usize::from(is(at, "main") && is(at + 1, "."));
        if is(at + schema, table) && is(at + schema + 1, ".") {
            text.push_str(&sql[kept..tokens[at].start]);
            at += schema + 2;
            kept = tokens.get(at).map_or(sql.len(), |t| t.start);
        }
        at += 1;
    }
    text.push_str(&sql[kept..]);
    text
}

/// Puts text that is in double quotes into single quotes. An application may allow double quotes
/// for names alone, and yet have an index from before it did
/// (<https://www.sqlite.org/quirks.html#double_quoted_string_literals_are_accepted>).
pub(crate) fn with_quoted_text(sql: &str, columns: &[String]) -> String {
    let tokens = tokens(sql);
    let (mut text, mut kept) = (String::with_capacity(sql.len()), 0);
    for (i, token) in tokens.iter().enumerate() {
        let word = &sql[token.clone()];
        let name = unquoted(word);
        let is_name = columns.iter().any(|c| c.eq_ignore_ascii_case(&name))
            || i > 0 && is_word(sql, &tokens[i - 1], "COLLATE")
            || tokens.get(i + 1).is_some_and(|t| &sql[t.clone()] == "(");
        if word.starts_with('"') && !is_name {
            text.push_str(&sql[kept..token.start]);
            text.push_str(&format!("'{}'", name.replace('\'', "''")));
            kept = token.end;
        }
    }
    text.push_str(&sql[kept..]);
    text
}

/// The texts in parentheses after each `word` that stands directly in a table's body.
pub(crate) fn in_parentheses_after(sql: &str, word: &str) -> Vec<String> {
    let tokens = tokens(sql);
    let (mut depth, mut open, mut found) = (0, None, Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        match &sql[token.clone()] {
            "(" => {
                if depth == 1 && is_word(sql, &tokens[i - 1], word) {
                    open = Some(i + 1);
                }
                depth += 1;
            }
            ")" => {
                depth -= 1;
                if let (1, Some(open)) = (depth, open) {
                    found.extend(text(sql, &tokens[open..i]));
                }
                if depth == 1 {
                    open = None;
                }
            }
            _ => {}
        }
    }
    found
}

/// The words and quoted names in a text, in lower case.
pub(crate) fn words(sql: &str) -> Vec<String> {
    let each = tokens(sql).into_iter();
    each.map(|t| unquoted(&sql[t]).to_ascii_lowercase())
        .collect()
}

/// A word without the quotes around it. Text behind the closing quote is left out, as FTS4 leaves
/// it out of an option's value.
pub(crate) fn unquoted(word: &str) -> String {
    match word.as_bytes().first() {
        Some(q @ (b'"' | b'`' | b'\'')) if word.len() > 1 => {
            let one = char::from(*q).to_string();
            let quoted = &word[1..end_of_quoted(word.as_bytes(), 0, *q)];
            let inner = quoted.strip_suffix(&one).unwrap_or(quoted);
            inner.replace(&one.repeat(2), &one)
        }
        Some(b'[') => word.trim_matches(['[', ']']).to_owned(),
        _ => word.to_owned(),
    }
}

/// Words of an expression that consists of constants and of the time.
const WORDS_OF_TIME: [&str; 14] = [
    "current_date",
    "current_time",
    "current_timestamp",
    "date",
    "time",
    "datetime",
    "julianday",
    "strftime",
    "cast",
    "as",
    "integer",
    "int",
    "real",
    "text",
];

/// Whether an expression consists of constants and of the time alone.
pub(crate) fn is_of_time(sql: &str) -> bool {
    let is_known = |word: &str| match word.as_bytes()[0] {
        b'"' | b'`' | b'[' => false,
        b if is_word_byte(b) && !b.is_ascii_digit() => {
            WORDS_OF_TIME.iter().any(|w| w.eq_ignore_ascii_case(word))
        }
        _ => true,
    };
    // A comment would end the statement into which the text is put.
    !sql.contains("--") && tokens(sql).into_iter().all(|t| is_known(&sql[t]))
}

type Span = std::ops::Range<usize>;

fn is_word(sql: &str, span: &Span, word: &str) -> bool {
    sql[span.clone()].eq_ignore_ascii_case(word)
}

/// A term without the trailing COLLATE name, ASC or DESC.
fn term(sql: &str, mut tokens: &[Span]) -> Option<String> {
    if let [head @ .., last] = tokens
        && (is_word(sql, last, "ASC") || is_word(sql, last, "DESC"))
    {
        tokens = head;
    }
    if let [head @ .., collate, _] = tokens
        && is_word(sql, collate, "COLLATE")
    {
        tokens = head;
    }
    text(sql, tokens)
}

fn text(sql: &str, tokens: &[Span]) -> Option<String> {
    Some(sql[tokens.first()?.start..tokens.last()?.end].to_owned())
}

/// Splits text into words, numbers, quoted texts and single signs, without white space and
/// comments.
pub(super) fn tokens(sql: &str) -> Vec<Span> {
    let bytes = sql.as_bytes();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let start = at;
        at = match bytes[at] {
            b if b.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if bytes.get(at + 1) == Some(&b'-') => {
                at += sql[at..].find('\n').map_or(sql.len() - at, |n| n + 1);
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = sql[at + 2..].find("*/");
                at = end.map_or(sql.len(), |n| at + n + 4);
                continue;
            }
            quote @ (b'\'' | b'"' | b'`') => end_of_quoted(bytes, at, quote),
            b'[' => sql[at..].find(']').map_or(bytes.len(), |n| at + n + 1),
            b if is_word_byte(b) => {
                at + bytes[at..].iter().take_while(|b| is_word_byte(**b)).count()
            }
            _ => at + 1,
        };
        tokens.push(start..at);
    }
    tokens
}

fn is_word_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80
}

/// Offset after the closing quote; a doubled quote stands for itself.
fn end_of_quoted(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        if bytes[at] == quote {
            if bytes.get(at + 1) != Some(&quote) {
                return at + 1;
            }
            at += 1;
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_and_predicate_are_found() {
        let sql =
            "CREATE UNIQUE INDEX \"on\" ON [t (x] (lower(a || ', )') COLLATE NOCASE DESC, -- x, y
                   \"b,\" ASC, json_extract(c, '$.d')) WHERE d IS NOT NULL AND e > 0";
        let text = parse(sql).unwrap();
        assert_eq!(
            text.terms,
            ["lower(a || ', )')", "\"b,\"", "json_extract(c, '$.d')"]
        );
        assert_eq!(text.predicate.as_deref(), Some("d IS NOT NULL AND e > 0"));
        assert_eq!(
            parse("CREATE UNIQUE INDEX i ON t(a)").unwrap().predicate,
            None
        );
        assert_eq!(parse("CREATE UNIQUE INDEX i ON t(a"), None);
    }

    #[test]
    fn quotes_end_at_the_closing_one() {
        for (word, expected) in [
            ("'it''s'", "it's"),
            ("'a' \u{e9}", "a"),
            ("\"open \u{e9}", "open \u{e9}"),
            ("[t]", "t"),
            ("'", "'"),
        ] {
            assert_eq!(unquoted(word), expected, "{word}");
        }
    }

    #[test]
    fn a_comment_does_not_end_where_it_begins() {
        assert_eq!(words("a /*/ b */ c /* d"), ["a", "c"]);
    }

    #[test]
    fn the_tables_name_before_a_column_is_left_out() {
        for (sql, expected) in [
            ("T.b > 0 AND \"t\" . c", "b > 0 AND c"),
            ("main.t.b + t + 't.b' + u.b", "b + t + 't.b' + u.b"),
            ("[t].t = `t`.\"t\"", "t = \"t\""),
            ("1.5 > t.", "1.5 > "),
        ] {
            assert_eq!(unqualified(sql, "t"), expected);
        }
    }

    #[test]
    fn text_in_double_quotes_gets_single_ones() {
        let columns = ["b".to_owned()];
        let sql = "\"B\" <> \"it's \"\"x\"\"\" COLLATE \"nocase\" AND \"lower\"(b) = \"c\"";
        let expected = "\"B\" <> 'it''s \"x\"' COLLATE \"nocase\" AND \"lower\"(b) = 'c'";
        assert_eq!(with_quoted_text(sql, &columns), expected);
    }

    #[test]
    fn parts_of_a_tables_body_are_found() {
        let sql = "CREATE TABLE t(a CHECK (a > (0) -- )
                   ), b DEFAULT (check(1)), c AS (a || CAST(b AS (TEXT))) STORED, check (b))";
        assert_eq!(in_parentheses_after(sql, "CHECK"), ["a > (0)", "b"]);
        assert_eq!(in_parentheses_after(sql, "AS"), ["a || CAST(b AS (TEXT))"]);
    }

    #[test]
    fn of_the_time_is_what_names_nothing_else() {
        for text in [
            "CURRENT_TIMESTAMP",
            "strftime('%Y-%m', 'now', '-1 days') || '!'",
            "cast(julianday('now') * 86400.0 AS Integer) + 1",
        ] {
            assert!(is_of_time(text), "{text}");
        }
        for text in [
            "uuid()",
            "date(\"now\")",
            "date('now') -- today",
            "hex(randomblob(8))",
            "unixepoch()", // since 3.38
        ] {
            assert!(!is_of_time(text), "{text}");
        }
    }

    #[test]
    fn trigger_names_are_skipped() {
        let rest = |sql| after_trigger_name(sql).unwrap();
        assert_eq!(
            rest("CREATE TRIGGER \"a after b\" AFTER INSERT ON t"),
            "AFTER INSERT ON t"
        );
        assert_eq!(
            rest("CREATE TRIGGER main.x BEFORE DELETE ON t"),
            "BEFORE DELETE ON t"
        );
    }

    #[test]
    fn words_are_unquoted() {
        let found = words("lower(\"A\"\"b\") || [c d] + 'it''s' COLLATE x");
        for word in ["lower", "a\"b", "c d", "it's", "x"] {
            assert!(found.iter().any(|w| w == word), "{word}: {found:?}");
        }
    }

    #[test]
    fn modules_are_found() {
        let module = |sql| virtual_module(sql).unwrap();
        assert_eq!(module("CREATE VIRTUAL TABLE f USING fts5(a)"), "fts5");
        assert_eq!(
            module("CREATE VIRTUAL TABLE IF NOT EXISTS \"using\" using \"vec0\"(a)"),
            "vec0"
        );
    }

    #[test]
    fn arguments_of_modules_are_found() {
        let arguments = |text: &str| virtual_arguments(&format!("CREATE VIRTUAL TABLE f {text}"));
        let both = ["\"a, b\" UNINDEXED", "tokenize = 'x (y) z'"];
        assert_eq!(
            arguments("USING fts5(\"a, b\" UNINDEXED, tokenize = 'x (y) z')"),
            both
        );
        assert_eq!(arguments("USING m(a(1, 2), b) -- c"), ["a(1, 2)", "b"]);
        for without in ["USING m", "USING m()", "USING", ""] {
            assert!(arguments(without).is_empty(), "{without}");
        }
    }
}

//! The house rules that no compiler checks: which room may import which, and how wide lines are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from the bottom up (the map in src/lib.rs says what each is), and the rooms that each may
/// import: all of them further up in this list, so that there is no circle.
const ARROWS: &[(&str, &str)] = &[
    ("mutation", ""),
    ("clock", ""),
    ("thread", ""),
    ("output", ""),
    ("progress", ""),
    ("db_file", ""),
    ("memory", ""),
    ("lock", "db_file"),
    ("model", "mutation"),
    ("address", "model"),
    ("seal", "model"),
    ("config", "thread db_file lock model address seal"),
    ("cli", "address config"),
    ("stream", "thread db_file lock model address seal"),
    ("logging", "clock progress db_file model config"),
    ("trust", ""),
    (
        "store",
        "clock thread trust db_file model address seal config stream",
    ),
    ("heartbeat", "thread trust address logging"),
    ("poller", "thread"),
    ("watcher", "db_file poller"),
    ("mirror", "db_file logging"),
    ("database", "mutation clock db_file model config logging"),
    ("capture", "mutation model logging database"),
    ("apply", "mutation model config database capture"),
    ("outbox", "mutation capture"),
    ("measures", ""),
    ("health", "model seal database"),
    (
        "shared",
        "mutation stream database capture apply outbox measures health",
    ),
    ("http", "thread poller address"),
    ("inspect", "config database"),
    (
        "cluster",
        "mutation model seal stream database apply shared",
    ),
    (
        "snapshot",
        "mutation clock thread memory progress db_file model config logging stream store database \
         capture apply shared cluster",
    ),
    (
        "status",
        "mutation thread progress model logging stream database capture shared health cluster",
    ),
    ("metrics", "database shared health progress status"),
    (
        "control",
        "thread poller progress address lock model config database shared health \
         http cluster status metrics",
    ),
    (
        "publisher",
        "clock thread memory progress model logging stream watcher mirror database capture shared \
         cluster",
    ),
    (
        "consumer",
        "clock thread model logging stream database apply shared cluster",
    ),
    (
        "daemon",
        "clock thread poller db_file lock memory model address seal config cli logging stream \
         store watcher mirror database shared inspect cluster status heartbeat control snapshot \
         publisher consumer",
    ),
    (
        "commands",
        "clock thread progress output db_file lock model seal config cli stream store mirror \
         database apply inspect http cluster status snapshot daemon",
    ),
];

/// Arrows that run the other way, each with its reason. `Database` stores what `capture` and
/// `apply` remember about rows. A new arrow needs a better reason than these have.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "database",
        "apply",
        "Database holds and loads the positions, held sizes and let-go tables",
    ),
    ("database", "capture", "Database holds the marks"),
    (
        "capture",
        "apply",
        "a record asks whether its row is displaced",
    ),
    (
        "shared",
        "status",
        "the shared state keeps the board that others are read from",
    ),
];

/// Most characters of a line.
const WIDTH: usize = 100;

/// The files that the Go version ships, as they are.
const NOT_OURS: &str = "src/config/tests/go_version.rs";

/// Adds the files below `path` whose names end in one of `ends`, and `path` itself if it is a file.
fn files(path: PathBuf, ends: &[&str], into: &mut Vec<PathBuf>) {
    if path.is_dir() && !path.ends_with("target") {
        for entry in fs::read_dir(path).expect("a folder of the repository") {
            files(entry.expect("an entry").path(), ends, into);
        }
    } else if let Some(end) = path.extension().and_then(|end| end.to_str())
        && ends.contains(&end)
    {
        into.push(path);
    }
}

fn sources(places: &[&str], ends: &[&str]) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for place in places {
        files(root.join(place), ends, &mut paths);
    }
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source file");
        (
            path.strip_prefix(root).expect("below the root").to_owned(),
            text,
        )
    };
    paths.into_iter().map(read).collect()
}

/// Whether a file of src is compiled for tests only.
fn is_test(path: &Path) -> bool {
    let parts = path.iter().filter_map(|part| part.to_str());
    parts
        .map(|part| part.trim_end_matches(".rs"))
        .any(|part| part == "tests")
}

/// The room of a file of src; none for lib.rs, main.rs and what only tests compile.
fn room(path: &Path) -> Option<String> {
    let first = path.iter().nth(1)?.to_str()?.trim_end_matches(".rs");
    (!is_test(path) && !matches!(first, "lib" | "main")).then(|| first.to_owned())
}

/// The rooms that a text names by `crate::`, outside of comments and of its module of tests.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut rooms = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        // `use crate::{a, b::c};` names several.
        let list = rest
            .strip_prefix('{')
            .and_then(|list| list.split('}').next());
        for path in list
            .unwrap_or(rest)
            .split(',')
            .take(if list.is_some() { 99 } else { 1 })
        {
            let word = |c: char| !c.is_alphanumeric() && c != '_';
            let name = path.trim().split(word).next().unwrap_or_default();
            if name.starts_with(char::is_lowercase) {
                rooms.insert(name.to_owned());
            }
        }
    }
    rooms
}

#[test]
fn rooms_import_only_what_they_may() {
    let mut seen = BTreeSet::new();
    for (path, text) in sources(&["src"], &["rs"]) {
        let Some(room) = room(&path) else { continue };
        for target in imports(&text).into_iter().filter(|target| *target != room) {
            let allowed = ARROWS.iter().find(|(name, _)| *name == room);
            let (_, allowed) = allowed.unwrap_or_else(|| panic!("{room} is missing in ARROWS"));
            let is_exception = EXCEPTIONS
                .iter()
                .any(|(a, b, _)| (*a, *b) == (&room, &target));
            assert!(
                allowed.split(' ').any(|a| a == target) || is_exception,
                "{}: {room} may not import {target}: move the code to the room that it belongs to, \
                 or, if {room} stands above {target}, add the arrow to ARROWS in tests/house.rs",
                path.display()
            );
            seen.insert((room.clone(), target));
        }
    }
    let is_seen = |a: &str, b: &str| seen.contains(&(a.to_owned(), b.to_owned()));
    for (place, (name, targets)) in ARROWS.iter().enumerate() {
        for target in targets.split_whitespace() {
            let is_below = ARROWS[..place].iter().any(|(below, _)| *below == target);
            assert!(
                is_below,
                "{name} -> {target}: {target} does not stand before {name}"
            );
            assert!(
                is_seen(name, target),
                "{name} -> {target} is not needed: remove it"
            );
        }
    }
    for (a, b, _) in EXCEPTIONS {
        assert!(
            is_seen(a, b),
            "the exception {a} -> {b} is not needed any more: remove it"
        );
    }
}

#[test]
fn imports_are_found() {
    let text = "//! crate::no\nuse crate::a::B;\nuse crate::{c, d::{self}};\nfn f() { \
        crate::e::g() }\n\
                #[cfg(test)]\nmod tests {\n use crate::no;";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["a", "c", "d", "e"]);
}

/// Names of types that may stand twice: the aliases of `Result` are an idiom of Rust.
const SHARED_NAMES: &[&str] = &["Result"];

/// The names of the types that a text defines at the level of a module, without its tests.
fn types(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next();
    let mut names = Vec::new();
    let mut inside_impl = false;
    for line in code.unwrap_or_default().lines() {
        if line.starts_with(|c: char| !c.is_whitespace()) {
            let is_opened = [
                "impl",
                "unsafe impl",
                "trait",
                "pub trait",
                "pub(crate) trait",
            ];
            inside_impl = is_opened.iter().any(|start| line.starts_with(start));
        }
        let words = line.split_whitespace();
        let mut words = words.skip_while(|word| word.starts_with("pub"));
        let (kind, name) = (words.next().unwrap_or_default(), words.next());
        let is_type = match kind {
            "struct" | "enum" | "union" | "trait" => true,
            "type" => !inside_impl, // an associated type otherwise
            _ => false,
        };
        let end = |c: char| !c.is_alphanumeric() && c != '_';
        if let (true, Some(name)) = (is_type, name.and_then(|name| name.split(end).next())) {
            names.push(name.to_owned());
        }
    }
    names
}

#[test]
fn no_type_name_stands_twice() {
    let mut seen: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut twice = Vec::new();
    for (path, text) in sources(&["src"], &["rs"]) {
        if is_test(&path) {
            continue;
        }
        for name in types(&text) {
            let is_shared = SHARED_NAMES.contains(&name.as_str());
            if let Some(first) = seen.insert(name.clone(), path.clone())
                && !is_shared
            {
                twice.push(format!(
                    "{name} in {} and {}",
                    first.display(),
                    path.display()
                ));
            }
        }
    }
    assert!(
        twice.is_empty(),
        "one name, one meaning; rename one of these types: {}",
        twice.join(", ")
    );
    let lacking = SHARED_NAMES.iter().find(|name| !seen.contains_key(**name));
    assert_eq!(lacking, None, "not needed in SHARED_NAMES any more");
}

#[test]
fn types_are_found() {
    let text = "pub struct A {\n}\nimpl B for A {\n    type Err = ();\n}\nfn f() {\n    enum C {}\n\
                }\npub(crate) type D<T> = T;\n#[cfg(test)]\nmod tests {\nstruct E;";
    assert_eq!(types(text), ["A", "C", "D"]);
}

/// The documents in Markdown are not here: src/guide/tests.rs leaves out their tables.
#[test]
fn lines_are_not_too_wide() {
    let places = [
        "src",
        "tests",
        "examples",
        "scripts",
        "config.toml",
        "Cargo.toml",
    ];
    let ends = ["rs", "sh", "html", "toml", "yml", "py"];
    let mut wide = Vec::new();
    for (path, text) in sources(&places, &ends) {
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| line.chars().count() > WIDTH);
        let places = lines.map(|(number, _)| format!("{}:{}", path.display(), number + 1));
        wide.extend(places.filter(|place| !place.starts_with(NOT_OURS)));
    }
    let wide = wide.join(" ");
    assert!(
        wide.is_empty(),
        "lines of more than {WIDTH} characters: {wide}"
    );
}

/// The modules of tests/it that have tests, and those that tests/it/servers.txt lists.
#[test]
fn it_is_said_which_tests_depend_on_the_server() {
    let mut modules = BTreeSet::new();
    for (path, text) in sources(&["tests/it"], &["rs"]) {
        let module = path.iter().nth(2).and_then(|name| name.to_str());
        if text.contains("#[test]") {
            modules.extend(module.map(|name| name.trim_end_matches(".rs").to_owned()));
        }
    }
    let list = include_str!("it/servers.txt");
    let listed = list.lines().filter_map(|line| {
        let words = line.strip_prefix("+ ").or(line.strip_prefix("- "))?;
        words.split(' ').next().map(str::to_owned)
    });
    let mut listed: Vec<String> = listed.collect();
    listed.sort_unstable();
    let modules: Vec<String> = modules.into_iter().collect();
    assert_eq!(listed, modules, "tests/it/servers.txt");
}

//! Names of unfinished objects.

use std::hash::{BuildHasher, RandomState};

/// `<name>.part-<random>`: the name of an object during its upload, before it is moved to `name`.
pub(super) fn part_name(name: &str) -> String {
    format!("{name}.part-{:016x}", RandomState::new().hash_one(name))
}

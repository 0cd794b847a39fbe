//! Names for what is not whole yet.

use std::hash::{BuildHasher, RandomState};

/// `<name>.part-<random>`: under it the bytes arrive, before they are moved to `name`.
pub(super) fn part_name(name: &str) -> String {
    format!("{name}.part-{:016x}", RandomState::new().hash_one(name))
}

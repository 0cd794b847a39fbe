//! The subcommands and flags that do one thing and end. They stand above [`crate::daemon`]: some
//! start a part of it.

pub mod check;
pub mod cleanup;
pub mod conflicts;
pub mod held;
pub mod inspect;
pub mod restore;
pub mod snapshots;
mod store_access;

#[cfg(test)]
mod tests;

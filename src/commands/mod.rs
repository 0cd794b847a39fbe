//! Subcommands and flags that do one thing and end. They stand above [`crate::daemon`], because
//! some start a part of it.

pub mod check;
pub mod cleanup;
pub mod conflicts;
mod diag;
pub mod held;
pub mod inspect;
pub mod key;
pub mod nats_permissions;
pub mod query;
pub mod release;
pub mod restore;
mod schema;
pub mod snapshots;
mod store_access;

#[cfg(all(test, feature = "store-file"))]
mod tests;

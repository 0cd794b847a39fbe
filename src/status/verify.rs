//! Whether all nodes hold the same rows, and if not, which differ.
//!
//! ```text
//! harmonylite verify ─▶ run: totals of tables ─▶ 256 parts ─▶ their 256 parts ─▶ rows ─▶ versions
//!                              │ a request in the bucket (message)            ▲
//!                              ▼                                              │
//!                       every node: a view at known positions, walked in time boxes (answer)
//! ```
//!
//! A digest is a sum of keyed SHA-256 over rows, so that the order of rows does not matter. The key
//! is drawn for each run, so that nobody can make up two rows with one digest beforehand. Nodes are
//! compared only if each has read the same messages, no row waits to be captured or sent, and each
//! has read back every message of its own. Otherwise they are "not comparable yet".

pub mod answer;
pub mod digest;
pub mod message;
pub mod repair;
pub mod report;
pub mod run;
#[cfg(test)]
mod tests;
pub mod worker;

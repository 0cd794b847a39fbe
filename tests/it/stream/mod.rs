//! The stream rooms against a real nats-server.
//!
//! Which one: `HARMONYLITE_NATS_SERVER`, else the one in PATH. Nothing is skipped without it: a
//! test that did not run proves nothing.

pub mod connect;
mod key_value;
pub mod node;
mod read_write;
mod server;
mod trouble;

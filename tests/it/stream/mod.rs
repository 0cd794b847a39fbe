//! The stream rooms against a real nats-server; ../main.rs says which one.

pub mod connect;
mod key_value;
pub mod node;
mod read_write;
mod server;
mod trouble;

//! Addresses as people write them, and the secrets in them.
//!
//! ```text
//! host       HOST:PORT, the part that all of them have
//! server     [SCHEME://][LOGIN@]HOST[:PORT][?QUERY]: a server, printed without its login
//! url        the same with a path: the address of a store
//! configured addresses in config.toml and flags: where to listen, servers of given schemes
//! secret     text that is never printed      host_key   an SSH server's public key
//! ```

pub mod configured;
pub(crate) mod host;
pub(crate) mod host_key;
pub mod secret;
pub mod server;
pub(crate) mod url;

//! Addresses as people write them, and the secrets that may stand in them.
//!
//! ```text
//! host       HOST:PORT, the part that all of them have
//! server     [SCHEME://][LOGIN@]HOST[:PORT][?QUERY]: a server, shown without its login
//! url        the same with a path: where a store is
//! configured what config.toml and the command line take: where to listen, servers of one scheme
//! secret     text that is not shown          host_key   an SSH server's public key
//! ```

pub mod configured;
pub(crate) mod host;
pub(crate) mod host_key;
pub mod secret;
pub mod server;
pub(crate) mod url;

//! The stores for snapshots, against real servers that the tests start and stop.
//!
//! Which programs: those in the folder `HARMONYLITE_STORE_SERVERS` (`scripts/store-servers.sh` gets
//! them), else those in PATH; nats-server as everywhere. A kind of server that is not installed is
//! skipped, and said so, unless `HARMONYLITE_REQUIRE_STORES` is set: then that is a failure.
#![allow(unreachable_pub)] // no other crate uses any of it

// Without all of the stores there is little to compare.
#![cfg(all(
    feature = "store-file",
    feature = "store-nats",
    feature = "store-s3",
    feature = "store-sftp",
    feature = "store-webdav"
))]

mod answerless;
mod bench;
#[path = "../it/certificates.rs"]
mod certificates;
mod conformance;
mod damage;
mod data;
mod full_disk;
mod host_style;
mod kinds;
mod proxy;
mod refusals;
mod servers;
mod tls;
mod trouble;

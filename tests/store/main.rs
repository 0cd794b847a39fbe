//! The stores for snapshots, against real servers that the tests start and stop.
//!
//! The programs are those in the folder `HARMONYLITE_STORE_SERVERS` (`scripts/store-servers.sh`
//! fetches them), else those in PATH; nats-server is the one of the other tests. A test whose
//! server is not installed says that it is skipped. If `HARMONYLITE_REQUIRE_STORES` is set, it
//! fails.
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
mod hostile;
mod kinds;
mod proxy;
mod refusals;
mod servers;
mod tls;
mod trouble;

//! nats-server, with a login and, if a test needs it, little room.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use harmonylite::config::snapshot::{NatsStore, StoreSettings};
use harmonylite::stream::server::find_binary;

use super::free_ports;
use super::process::Process;
use crate::bench::{Bench, NATS_USER};
use crate::data::SECRET;

/// Starts the server; `limit` is the most that JetStream may store, as nats-server writes it.
pub fn start(limit: &str) -> Bench {
    let given = env::var_os("HARMONYLITE_NATS_SERVER").map(PathBuf::from);
    let program = find_binary(given.as_deref()).unwrap_or_else(|error| panic!("{error}"));
    let folder = tempfile::tempdir().unwrap();
    let (port, config) = (free_ports(1), folder.path().join("nats.conf"));
    let data = folder.path().join("data");
    let text = format!(
        "jetstream {{ store_dir: '{}', max_file_store: {limit} }}\n\
         authorization {{ user: '{NATS_USER}', password: '{SECRET}' }}\n",
        data.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(program);
    command
        .arg("-c")
        .arg(config)
        .args(["-a", "127.0.0.1", "-p", &port.to_string()]);
    Bench {
        name: "nats",
        kind: "nats",
        port,
        settings: Box::new(|way| {
            StoreSettings::Nats(NatsStore {
                max_bytes: None,
                replicas: 1,
                bucket: Some(way.place.clone()),
            })
        }),
        process: Some(Process::start(command, folder, port)),
    }
}

//! A broker of its own for each test.

use std::path::PathBuf;

use crossbeam_channel::{Receiver, never};
use harmonylite::stream::client::{Client, ClientOptions};
use harmonylite::stream::jetstream::{StreamOptions, ensure_streams, stream_name};
use harmonylite::stream::reader::JetStreamReader;
use harmonylite::stream::server::{Server, ServerError, ServerOptions, find_binary};
use harmonylite::stream::writer::JetStreamWriter;
use harmonylite::stream::{Ack, Message, Reader, StreamError, Writer};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub use crate::wait::{PATIENCE, until};

pub fn binary() -> PathBuf {
    let given = std::env::var_os("HARMONYLITE_NATS_SERVER").map(PathBuf::from);
    find_binary(given.as_deref()).unwrap_or_else(|error| panic!("{error}"))
}

/// A server with its store; dropping it kills the server and removes the store.
pub struct Node {
    pub folder: TempDir,
    pub options: ServerOptions,
    pub server: Option<Server>,
}

impl Drop for Node {
    /// Waits for the server's end: it writes to the folder until then.
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop(&never());
        }
    }
}

impl Node {
    pub fn start() -> Node {
        Node::with(|_| {})
    }

    /// A node whose operator gives nats-server the configuration `text`.
    pub fn with_config(text: &str) -> Node {
        Node::with(|node| {
            let file = node.folder.path().join("user.conf");
            std::fs::write(&file, text).unwrap();
            node.options.user_config = Some(file);
        })
    }

    pub fn with(change: impl FnOnce(&mut Node)) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let options = ServerOptions {
            binary: Some(binary()),
            node_name: "harmonylite-node-1".into(),
            store_dir: folder.path().join("nats/harmonylite-node-1"),
            bind_address: "127.0.0.1:-1".into(),
            ..ServerOptions::default()
        };
        let mut node = Node {
            folder,
            options,
            server: None,
        };
        change(&mut node);
        node.start_again();
        node
    }

    pub fn start_again(&mut self) {
        self.server = None;
        // The former server releases the store when it has ended.
        self.server = Some(until("the store is free", || {
            match Server::start(&self.options, &never()) {
                Ok(server) => Some(server),
                Err(ServerError::StoreInUse(_)) => None,
                Err(error) => panic!("{error}"),
            }
        }));
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub fn client_options(&self) -> ClientOptions {
        self.server().client_options("test")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.client_options(), PATIENCE).unwrap()
    }

    pub fn writer(&self, options: &StreamOptions) -> JetStreamWriter {
        JetStreamWriter::new(self.client(), options).unwrap()
    }

    pub fn reader(&self, options: &StreamOptions) -> JetStreamReader {
        JetStreamReader::new(self.client(), stream_name(options, 1)).unwrap()
    }

    pub fn signal(&self, which: Signal) {
        let pid = Pid::from_raw(self.server().pid() as i32).unwrap();
        kill_process(pid, which).unwrap();
    }

    /// Kills the server, as a machine that fails would.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        let end = self.server().end().recv_timeout(PATIENCE);
        assert!(end.is_err_and(|error| error.is_disconnected()));
    }
}

pub fn streams() -> StreamOptions {
    StreamOptions {
        stream_prefix: "changes".into(),
        subject_prefix: "change-log".into(),
        compress: true,
        shards: 1,
        max_entries: 100_000,
        is_chosen: false,
        max_age: None,
        max_bytes: None,
        replicas: 1,
        update_existing: false,
    }
}

/// Creates the streams as the daemon does: it tries again while the cluster is not ready.
pub fn ensure(client: &Client, options: &StreamOptions) {
    until("the streams are there", || {
        match ensure_streams(client, options) {
            Ok(()) => Some(()),
            Err(StreamError::Fatal(text)) => panic!("{text}"),
            Err(_) => None,
        }
    });
}

/// Sends the numbers of `range` as messages `id-<n>` and waits for their acknowledgements.
pub fn publish(writer: &mut JetStreamWriter, range: std::ops::Range<u64>) -> Vec<Ack> {
    let count = range.clone().count();
    for n in range {
        writer
            .send(1, &format!("id-{n}"), n.to_string().as_bytes(), n)
            .unwrap();
    }
    writer.flush();
    (0..count)
        .map(|_| writer.acks().recv_timeout(PATIENCE).unwrap())
        .collect()
}

/// Reads `count` messages from sequence `from` on.
pub fn read(reader: &mut JetStreamReader, mut from: u64, count: usize) -> Vec<Message> {
    let stop: Receiver<()> = never();
    let mut messages = Vec::new();
    while messages.len() < count {
        let batch = match reader.fetch(from, PATIENCE, &stop) {
            Err(StreamError::ConsumerForgotten) => continue,
            batch => batch.unwrap(),
        };
        assert!(
            !batch.is_empty(),
            "{} of {count} messages came",
            messages.len()
        );
        messages.extend(batch);
        from = messages.last().unwrap().sequence + 1;
    }
    messages
}

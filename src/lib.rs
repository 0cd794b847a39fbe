//! HarmonyLite keeps SQLite databases on many machines the same. This page is the map of the code.
//! The README is for users; the [`guide`] holds the design, the formats and the rest.
//!
//! # What happens to a write
//!
//! ```text
//!  application ──▶ SQLite ──triggers──▶ change log
//!                    ▲                     │ capture: stamp, version, mark, encode   publisher
//!                    │                     ▼
//!                    │                  outbox ──▶ writer ──▶ JetStream, a stream per shard
//!                    │                                              │
//!                    └── apply: join by version ◀── reader ◀────────┘                consumer-NN
//! ```
//!
//! Triggers note *keys* only. [`capture`] reads the current state of those rows, gives them a
//! version (hlc, node) and marks them unsent. [`publisher`] sends frames, and clears a mark only
//! when the stream has acknowledged the frame. [`consumer`] reads each stream in order and hands
//! frames to [`apply`], which takes a row if its version is higher. That rule is a join
//! ([`model::merge`]), so order, repetition and resume points do not matter. Everything rests on
//! two promises: every row's newest version reaches every node at least once, and every node
//! decides by versions alone.
//!
//! # The rooms, in reading order
//!
//! - [`model`]: pure: values, versions, merge, keys, frames, shards, manifests. No SQL, no network,
//!   no clock.
//! - [`address`]: addresses of servers, and the secrets in them.
//! - [`clock`]: the one place that reads clocks.
//! - [`seal`]: the cluster key: seals messages, keys and objects, and opens them.
//! - [`database`]: the user's file with our tables: schema, catalog, triggers, reservation of time.
//! - [`capture`]: outgoing: change log, comparison, versions, marks, frames.
//! - [`apply`]: incoming: join, held rows, UNIQUE displacement, parts, positions.
//! - [`outbox`]: frames under way, and the marks that their acknowledgements cover.
//! - [`health`]: problems that exist just now.
//! - [`measures`]: measurements by threads; [`metrics`]: these and more in numbers, for Prometheus.
//! - [`status`]: the state of this node and of the others, which they tell each other; its JSON;
//!   the comparison and the repair of rows.
//! - [`http`]: a small HTTP server and client; [`control`]: the running daemon's answers over it.
//! - [`progress`]: how far long work has come, for a terminal, health and metrics.
//! - [`memory`]: the heap, and when it is given back.
//! - [`heartbeat`]: calls a URL while all is well; `trust`: the certificates that HTTP clients
//!   believe.
//! - [`shared`]: state that threads share: [`database::Database`] and [`outbox::Outbox`] behind one
//!   lock.
//! - [`snapshot`]: copies of the whole database: made, kept in a store, merged.
//! - [`store`]: places for snapshots: nats, s3, webdav, sftp, file.
//! - [`stream`]: NATS: client, writer, reader, key-value, our own supervised server.
//! - [`cluster`]: agreement between a node and its cluster: connections and shared settings, the
//!   registry of snapshots, whether a stream is still the one that was read.
//! - [`mutation`]: mistakes that tests switch on, to prove that the tests would catch them.
//! - [`thread`]: the one caller of `std::thread` for the threads below; [`poller`]: one thread
//!   waits for all file descriptors.
//! - [`watcher`], [`mirror`], [`lock`]: hints that files changed; `seq-map.cbor`; one daemon per
//!   database.
//! - [`db_file`]: the file that a path means, and whether SQLite is safe where it lies.
//! - [`publisher`], [`consumer`]: the threads.
//! - [`inspect`]: how each table takes part, and its dangers.
//! - [`config`], [`cli`], [`logging`], [`output`], [`daemon`]: input, running threads, output.
//! - [`guide`]: the documents beside the code, and tests that they are true.
//! - [`commands`]: the other tasks of `harmonylite`: conflicts, held, inspect, snapshots, restore,
//!   check, cleanup.
//!
//! Imports follow that order: `model` imports nothing, `commands` everything. Only `stream` speaks
//! NATS, only `config::raw` reads TOML, and only `model::frame` knows the bytes on the wire.
//!
//! # Glossary
//!
//! One word per thing, from module to log line and field of health. Names on disk and on the wire
//! are older in places (`___unsent`, `at`, `heard`): the chapter [`guide::format`] lists those.
//!
//! | word | meaning |
//! |---|---|
//! | change log | table in which triggers note which keys the application wrote |
//! | capture | read the current state of the logged rows, and give them versions |
//! | version, hlc | (hybrid logical clock, node): of two versions of a row the higher one wins |
//! | tombstone | version of a deleted row |
//! | mark, unsent | note that a row's version is not acknowledged by its stream yet |
//! | frame | encoded changes of one shard; part: a piece of a frame too large for one message |
//! | shard | one of several streams; a row's key decides which |
//! | outbox | frames under way, and the marks that their acknowledgements clear |
//! | position | how far a node has read a stream |
//! | gap | messages that the broker dropped before this node read them |
//! | local_tx | number of a transaction of this node (`at` on disk) |
//! | reservation | time and numbers that are synced ahead, so that none is used twice |
//! | offline writes | entries of the change log that were written while no daemon ran |
//! | held | stored for a table, column or key that this node does not have yet |
//! | let go | not stored: the configuration excludes the table, or space ran out |
//! | excluded, unsupported | not replicated: by choice; because the table cannot be |
//! | displaced | lost a UNIQUE value to another row: not in the table, comes back when it can |
//! | birth, life | what tells rows apart that were inserted under one number; such a row |
//! | waits | its number is that of a newer life: not in the table, comes back when it can |
//! | dangling | refers by a foreign key to a row that is not there |
//! | rejected | written by the application, and cannot be replicated as it is |
//! | quarantine | messages that no node can read; kept for people |
//! | demoted | rows from before HarmonyLite that lost against those of the cluster |
//! | settle | work out which of the rows that share a UNIQUE value is in the table |
//! | republish | publish every row once more, after the broker lost something |
//! | duplicate node | node with the same id: a copied disk |
//! | restore detector | notices that a backup was restored under the open connection |
//! | snapshot, manifest | a copy of the database in a store; the list of those |
//! | scheduler, lease | decides when a snapshot is made or merged; who may make one |
//! | pending | held rows, parts and marks of a snapshot that is being merged |
//! | founder, joined | the node that began the cluster; a node that has met the others |
//! | seal, cluster key | encryption bound to a place; the secret of all nodes that makes it |
//! | fence, courtesy | keeps readers out during our write; the wait for a moment without any |
//!
//! # Invariants
//!
//! - One transaction holds the emptied log, the new versions and the marks. Another holds the
//!   applied rows, their versions and the position. A crash leaves the state before or after.
//! - A mark is cleared when every frame of its transaction is acknowledged, never earlier
//!   ([`outbox::Outbox`]). The transaction that clears it also stores the last acknowledgement.
//! - Apply runs only when the change log is empty under its own lock, so that it never overwrites
//!   a local change that is not yet stamped.
//! - A stamp is above the row's former version, and above everything this node ever used, even
//!   after a power cut: time is reserved ahead, with an fsync, once a minute of use. Offline writes
//!   keep their own time within those bounds, and their capture is synced
//!   (`database::offline_writes`).
//! - Our connection has triggers and foreign keys off, so nothing is captured or fires again.
//! - A write transaction of ours begins when no application reads, and keeps readers out until its
//!   COMMIT ([`database::Fence`]); nothing is synced or checkpointed meanwhile. If readers leave no
//!   gap, it begins without one, once in `courtesy`.
//! - Write transactions last about [`database::TIME_BOX`], less while an application is at work. A
//!   pause follows that is half as long, or just as long while the application writes. Every 0.7 s
//!   of long work, one pause is so long that any waiting process gets the lock. The pause of one
//!   thread is one for all ([`shared::Shared::take_turn`]).
//! - A snapshot is a view with an empty change log, so every row in it is as its version says. It
//!   is merged by versions, and positions move with its last row, never earlier. Messages that a
//!   stream dropped unread are a gap ([`model::gap`]). A gap is durable, and the node's snapshots
//!   hand it on.
//! - A node publishes once it has met the others: it founded the cluster, merged a snapshot, or
//!   waited for one in vain. It publishes no further ahead of its own reading than half a stream.
//! - No message of a peer causes a panic or a stop: it is applied, held, displaced or quarantined.
//! - Absent on purpose: a leader, an async runtime, acknowledgements of read messages, reconnecting
//!   connections (each has one life and its owner makes a new one), clamping of received versions.
//!
//! # Threads, shutdown, failure
//!
//! Threads connect when [`cluster::dialer`] lets them.
//!
//! `main` (inside [`daemon`]), `events` (signals, HTTP, inotify), `publisher`, `consumer-NN`,
//! `snapshots`, `nats-server` (supervises our own server) and `heartbeat` if configured, and two
//! threads of the connection. Others exist while they have something to do: `publisher-link`
//! (connects), `nats-…` (write, flush, connect, close), `status` (tells the others of this node),
//! `verify` (compares rows), `http-answer`, `checking` (a snapshot). `tests/it/idle.rs` counts the
//! threads of an idle daemon.
//! They share [`shared::Shared`] and little else; none waits for the network while it holds the
//! lock. Every end of a thread is reported ([`thread::Exited`]); an end that nobody asked for stops
//! the process with its cause. SIGTERM closes the `stop` channel. The publisher then captures and
//! waits a moment for acknowledgements, consumers finish the transaction in hand, `closing` writes
//! for the last time, and our nats-server ends.
//!
//! # Tests
//!
//! Unit tests stand beside the code. `tests/it` runs against a real nats-server, most of it with
//! real daemons; `tests/store` tests every store against its real server; `tests/hostile` and
//! `tests/fuzz` feed malicious bytes; `tests/sim` runs the same core under a seeded simulation of
//! crashes, clocks and brokers. `scripts/test.sh` runs all of it. The chapter [`guide::testing`]
//! says how to change the code: the places of a new key, table or flag, and how to read a seed.

#![warn(missing_docs)]

pub mod address;
pub mod apply;
pub mod capture;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod consumer;
pub mod control;
pub mod daemon;
pub mod database;
pub mod db_file;
pub mod guide;
pub mod health;
#[cfg(feature = "heartbeat")]
pub mod heartbeat;
pub mod http;
pub mod inspect;
pub mod lock;
pub mod logging;
pub mod measures;
pub mod memory;
pub mod metrics;
pub mod mirror;
pub mod model;
pub mod mutation;
pub mod outbox;
pub mod output;
pub mod poller;
pub mod progress;
pub mod publisher;
pub mod seal;
pub mod shared;
pub mod snapshot;
pub mod status;
pub mod store;
pub mod stream;
pub mod thread;
#[cfg(any(feature = "heartbeat", feature = "store-webdav"))]
mod trust;
pub mod watcher;

#[cfg(test)]
mod tests {
    /// The map above names every module. That it names no other, rustdoc checks by its links.
    #[test]
    fn every_room_is_on_the_map() {
        let text = include_str!("lib.rs");
        let (map, code) = text
            .split_once("\npub mod ")
            .expect("modules follow the head");
        for line in format!("pub mod {code}").lines() {
            if let Some(name) = line.strip_prefix("pub mod ") {
                let name = name.trim_end_matches(';');
                assert!(
                    map.contains(&format!("[`{name}`]")),
                    "{name} is missing on the map"
                );
            }
        }
    }
}

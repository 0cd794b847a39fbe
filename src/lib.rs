//! HarmonyLite keeps SQLite databases on many machines the same. This is the map of the code; the
//! README is for users, and the [`guide`] holds the design, the formats and the rest.
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
//! Triggers note *keys* only. [`capture`] reads what those rows are by now, gives them a version
//! (hlc, node) and marks them unsent; [`publisher`] sends frames and clears marks when, and only
//! when, the stream acknowledged them. [`consumer`] reads each stream in order and hands frames to
//! [`apply`], which takes a row if its version is higher. That is a join ([`model::merge`]), so
//! order, repetition and resume points do not matter. Two promises carry everything: every row's
//! newest version reaches every node at least once, and every node decides by versions alone.
//!
//! # The rooms, in reading order
//!
//! - [`model`]: pure: values, versions, merge, keys, frames, shards, manifests. No SQL, no network,
//!   no clock.
//! - [`address`]: addresses of servers, and the secrets in them.
//! - [`clock`]: the one place that reads clocks.
//! - [`database`]: the user's file with our tables: schema, catalog, triggers, reservation of time.
//! - [`capture`]: outgoing: change log, comparison, versions, marks, frames.
//! - [`apply`]: incoming: join, held rows, UNIQUE displacement, parts, positions.
//! - [`outbox`]: frames under way and which marks their acknowledgements cover.
//! - [`health`]: what is wrong just now.
//! - [`measures`]: what threads measure; [`metrics`]: that and more in numbers, for Prometheus.
//! - [`status`]: how this node and the others are doing: what each tells, and the JSON of it;
//!   whether all hold the same rows, and how they are made equal again.
//! - [`http`]: a small HTTP server and client; [`control`]: what the running daemon answers by it.
//! - [`progress`]: how far long work is, for a terminal, health and metrics.
//! - [`heartbeat`]: calls a URL while all is well; `trust`: whose certificates HTTP clients
//!   believe.
//! - [`gate`]: what threads share: [`database::Database`] and [`outbox::Outbox`] behind one lock.
//! - [`snapshot`]: copies of the whole database: made, kept in a store, merged.
//! - [`store`]: where snapshots are kept: nats, s3, webdav, sftp, file.
//! - [`stream`]: NATS: client, writer, reader, key-value, our own supervised server.
//! - [`cluster`]: what a node and its cluster agree on: connections and shared settings, the
//!   registry of snapshots, whether a stream is still the one that was read.
//! - [`mutation`]: mistakes that tests switch on to prove that they would be caught.
//! - [`thread`]: the one caller of `std::thread` for the threads below.
//! - [`watcher`], [`mirror`], [`lock`]: the hint that files changed; `seq-map.cbor`; one daemon per
//!   database.
//! - [`db_file`]: which file is meant, and whether SQLite is safe where it lies.
//! - [`publisher`], [`consumer`]: the threads.
//! - [`inspect`]: how each table takes part, and what of it is a danger.
//! - [`config`], [`cli`], [`logging`], [`output`], [`daemon`]: words in, threads and words out.
//! - [`guide`]: the documents beside the code, and tests that they are true.
//! - [`commands`]: what `harmonylite` does besides: conflicts, held, inspect, snapshots, restore,
//!   check, cleanup.
//!
//! Imports follow that order: `model` knows nobody, `commands` everybody. NATS is spoken in
//! `stream` alone, TOML in `config::raw`, wire bytes in `model::frame`.
//!
//! # Glossary
//!
//! One word per thing, from module to log line and field of health. Names on disk and on the wire
//! are older in places (`___unsent`, `at`, `heard`): the chapter [`guide::format`] has those.
//!
//! | word | meaning |
//! |---|---|
//! | change log | table in which triggers note which keys the application wrote |
//! | capture | read what the logged rows are by now, and give them versions |
//! | version, hlc | (hybrid logical clock, node): of two versions of a row the higher one wins |
//! | tombstone | version of a deleted row |
//! | mark, unsent | note that a row's version is not acknowledged by its stream yet |
//! | frame | encoded changes of one shard; part: a piece of a frame too large for one message |
//! | shard | one stream of several; a row's key decides which |
//! | outbox | frames under way, and the marks that their acknowledgements clear |
//! | position | how far a node has read a stream |
//! | gap | messages that the broker dropped before this node read them |
//! | local_tx | number of a transaction of ours on this node (`at` in code and on disk) |
//! | reservation | time and numbers that are synced ahead, so that none is used twice |
//! | offline writes | entries of the change log from while no daemon ran |
//! | held | stored for a table, column or key that this node does not have yet |
//! | let go | not stored: the configuration excludes the table, or space ran out |
//! | displaced | lost a UNIQUE value to another row: not in the table, comes back when it can |
//! | dangling | refers by a foreign key to a row that is not there |
//! | rejected | of the application, and cannot be replicated as it is |
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
//! | fence, courtesy | keeps readers out during our write; the wait for a moment without any |
//!
//! # Invariants
//!
//! - One transaction holds the emptied log, the new versions and the marks; another the applied
//!   rows, their versions and the position. A crash leaves either before or after.
//! - A mark goes when every frame of its transaction is acknowledged, never earlier
//!   ([`outbox::Outbox`]), and what was acknowledged last goes to disk with it.
//! - Apply runs only when the change log is empty under its own lock: a local change that is not
//!   yet stamped is never overwritten.
//! - A stamp is above what the row had, and above everything this node ever used, even after a
//!   power cut: time is reserved ahead, with an fsync, once a minute of use. What was written while
//!   no daemon ran keeps its own time, but for those bounds, and its capture is synced
//!   (`database::offline_writes`).
//! - Our connection has triggers and foreign keys off: nothing is captured twice or fires twice.
//! - A write transaction of ours begins when no application reads, and keeps readers out until its
//!   COMMIT ([`database::Fence`]): nothing is synced or checkpointed meanwhile. Beside readers that
//!   leave no gap it begins without one, once in `courtesy`.
//! - Write transactions last about [`database::TIME_BOX`], less while an application is at work,
//!   and are followed by a pause of half of what they took, all of it while the application writes;
//!   every 0.7 s of long work one is so long that whoever waits gets the lock. The pause of one
//!   thread is one for all ([`gate::Gate::take_turn`]).
//! - A snapshot is a view with an empty change log: every row in it is what its version says. It is
//!   merged by versions, and positions move with its last row, never earlier. What a stream dropped
//!   unread is a gap ([`model::gap`]): durable, and handed on with the snapshots of who has it.
//! - A node publishes once it has met the others: it founded the cluster, merged a snapshot, or
//!   waited for one in vain; and no further ahead of its own reading than half a stream.
//! - Nothing that a peer sends panics or stops: it is applied, held, displaced or in quarantine.
//! - Absent on purpose: a leader, an async runtime, acknowledgements of what was read, reconnecting
//!   connections (each has one life and its owner makes a new one), clamping of received versions.
//!
//! # Threads, shutdown, failure
//!
//! `main` (inside [`daemon`]), `signals`, `watcher` (inotify), `publisher` and its `publisher-link`
//! (connects), `consumer-NN`, `snapshots` (and while a file is checked, `checking`), `nats-server`
//! (supervises ours), `status` (tells the others of this node), `verify` (compares rows), `http`
//! unless it is turned off, `heartbeat` if it is wanted, and the `nats-…` threads of connections.
//! They share the gate and little else; nobody waits for the network inside it. Every end is
//! reported ([`thread::Exited`]): one that was not asked for stops the process with the cause.
//! SIGTERM closes the `stop` channel: the publisher captures and waits a moment for
//! acknowledgements, consumers finish the transaction in hand, then `closing` writes for the last
//! time, and our nats-server ends.
//!
//! # Tests
//!
//! Beside the code; `tests/it` against a real nats-server, most of it with real daemons;
//! `tests/store` every store against its real server; `tests/hostile` and `tests/fuzz` bytes that
//! mean ill; `tests/sim` the same core under a seeded simulation of crashes, clocks and brokers.
//! `scripts/test.sh` runs all of it.

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
pub mod gate;
pub mod guide;
pub mod health;
#[cfg(feature = "heartbeat")]
pub mod heartbeat;
pub mod http;
pub mod inspect;
pub mod lock;
pub mod logging;
pub mod measures;
pub mod metrics;
pub mod mirror;
pub mod model;
pub mod mutation;
pub mod outbox;
pub mod output;
pub mod progress;
pub mod publisher;
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
    /// The map above names every module, and no module that is gone: rustdoc's links check the
    /// latter, this the former.
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

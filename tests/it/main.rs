//! The program as its users run it: real processes, a real nats-server, real SQLite files; and the
//! stream rooms against the same server.
//!
//! `HARMONYLITE_NATS_SERVER` names the nats-server, else the one in PATH is used. Without a server
//! the tests fail: a test that did not run proves nothing. servers.txt lists the tests that depend
//! on the server's version.
#![allow(unreachable_pub)] // no other crate uses any of it

mod attacked;
mod away;
mod beside;
mod boxes;
mod certificates;
mod clock;
mod cluster;
mod command_line;
mod conflicts;
mod courtesy;
mod crash;
mod dead_mount;
mod duplicate;
mod edge;
mod embedded;
mod excluded;
mod files;
mod forgetful;
mod go_version;
mod golden;
mod handled;
mod health;
mod held;
mod idle;
mod inspect;
mod jwt;
mod leaf;
mod limits;
mod login;
mod logs;
mod many_nodes;
mod metrics;
mod monitoring;
mod node;
mod numbers;
mod offline;
mod page;
mod progress;
mod proxy;
mod rebuild_kinds;
mod rebuilds;
mod replicate;
mod rights;
mod sealed;
mod service;
mod settings;
mod signals;
mod slow;
mod snapshots;
mod standalone;
mod status;
mod stop;
mod stream;
mod tables;
mod two_apps;
mod wait;

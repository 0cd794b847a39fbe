//! A simulation of nodes, their machines and a broker, on the real core and on real SQLite.
//!
//! All that happens is decided by one seed: what the applications write, when rows are captured,
//! sent, acknowledged and read, what is cut, forgotten, taken back. In the end everybody can reach
//! everybody, and every node must hold what an independent model says ([`model`]). See
//! `scripts/sim.sh`.
#![allow(unreachable_pub)] // no other crate uses any of it

mod ages;
mod arrivals;
mod audit;
mod broker;
mod check;
mod clock;
mod driver;
mod events;
mod keeping;
mod meanwhile;
mod model;
mod mutations;
mod node;
mod objects;
mod observe;
mod plan;
mod random;
mod registry;
mod regressions;
mod rekey_kinds;
mod rekeyed;
mod runs;
mod workload;
mod world;

//! A simulation of nodes, their machines and a broker, on the real core and on real SQLite.
//!
//! One seed decides everything: the applications' writes, the moments at which rows are captured,
//! sent, acknowledged and read, the cuts, the losses and the files that are put back. In the end
//! every node reaches every other one, and must hold what an independent model says ([`model`]).
//! See `scripts/sim.sh` and the guide's chapter "Testing".
#![allow(unreachable_pub)] // no other crate uses any of it

mod ages;
mod arrivals;
mod audit;
mod broker;
mod check;
mod clock;
mod damage;
mod driver;
mod events;
mod keeping;
mod meanwhile;
mod model;
mod mutations;
mod node;
mod numbered;
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

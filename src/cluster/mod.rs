//! Agreements between a node and its cluster.
//!
//! - [`broker`]: makes connections, and checks the settings that all nodes must share.
//! - [`dialer`]: decides when a thread may try to connect.
//! - [`key_change`]: how the cluster key changes while the cluster runs.
//! - [`offline`]: whether this node is offline on purpose.
//! - [`registry`]: a bucket of the broker in which nodes tell each other about snapshots; the
//!   lease.
//! - `shared_settings`: compares this node's settings with the cluster's.
//! - [`stream_continuity`]: notices a broker that was wiped, was set back or forgot messages.

pub mod broker;
pub mod dialer;
pub mod key_change;
pub mod offline;
pub mod registry;
mod shared_settings;
pub mod stream_continuity;

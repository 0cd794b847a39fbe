//! How far this node is behind each node whose changes it applies, by the broker's clock.

use std::collections::BTreeMap;

use crate::database::Database;

/// Bound of the origins that are remembered: a peer may invent any number of nodes.
const MAX_ORIGINS: usize = 1024;

/// For each origin the time at which the broker stored its newest message that was applied here, in
/// unix milliseconds. Starts empty with the process.
#[derive(Debug, Default)]
pub(crate) struct Origins(BTreeMap<u64, i64>);

impl Origins {
    /// Records that a message of these nodes is applied; the broker stored it at `time_ms`.
    pub(crate) fn note(&mut self, nodes: &[u64], time_ms: i64) {
        for node in nodes {
            let has_room = self.0.len() < MAX_ORIGINS;
            match self.0.get_mut(node) {
                Some(known) => *known = time_ms.max(*known),
                None if has_room => {
                    self.0.insert(*node, time_ms);
                }
                None => {}
            }
        }
    }
}

impl Database {
    /// For each other node the time at which the broker stored its newest message that was applied
    /// here, in unix milliseconds of the broker's clock. Node 0, under which repairs are, is none.
    pub fn newest_by_origin(&self) -> impl Iterator<Item = (u64, i64)> + '_ {
        let others = self
            .origins
            .0
            .iter()
            .filter(|(node, _)| **node != self.node && **node != 0);
        others.map(|(node, time_ms)| (*node, *time_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_counts_and_their_number_is_bounded() {
        let mut origins = Origins::default();
        origins.note(&[1, 2], 5);
        origins.note(&[1], 3);
        origins.note(&[2], 9);
        assert_eq!(origins.0, BTreeMap::from([(1, 5), (2, 9)]));
        let many: Vec<u64> = (0..5000).collect();
        origins.note(&many, 10);
        assert_eq!(origins.0.len(), MAX_ORIGINS);
        assert_eq!(origins.0[&1], 10);
    }
}

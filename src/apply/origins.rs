//! How far this node is behind each of the nodes whose changes it applies, by the broker's clock.

use std::collections::BTreeMap;

use crate::database::Database;

/// Origins that are remembered: a peer may invent any number of nodes.
const MAX_ORIGINS: usize = 1024;

/// When the newest message of each origin that is applied here was stored by the broker, in unix
/// milliseconds. Since this process started.
#[derive(Debug, Default)]
pub(crate) struct Origins(BTreeMap<u64, i64>);

impl Origins {
    /// A message of these nodes is applied, which the broker stored at `time_ms`.
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
    /// Per other node, when the newest message of its changes that is applied here was stored, in
    /// unix milliseconds of the broker's clock.
    pub fn newest_by_origin(&self) -> impl Iterator<Item = (u64, i64)> + '_ {
        let others = self
            .origins
            .0
            .iter()
            .filter(|(node, _)| **node != self.node);
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

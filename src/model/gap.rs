//! A gap: messages of a stream that the broker dropped before this node read them.
//!
//! Every message was published by a node that has its rows. So the missing rows come with a
//! snapshot of a node that read all of the messages. If no node did, they come with snapshots of
//! all nodes that ever published, each made after the missing messages. A gap remembers the nodes
//! whose state has arrived by now (a node has its own rows anyway), and travels with the snapshots
//! of the node that has the gap.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The missing messages of one stream, and the nodes whose state makes up for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Sequence of the last message that was missed.
    pub end: u64,
    /// Nodes whose state, from some time after that message, is here.
    pub heard: BTreeSet<u64>,
    /// The last local transaction number before this node noticed the gap: everything it learnt up
    /// to then is from before the gap. 0 if that is not known. Only the node itself uses this field
    /// and the next.
    #[serde(rename = "learnt", default, skip_serializing_if = "is_zero")]
    pub local_tx: i64,
    /// Sequence of the last message of ours that was acknowledged before this node noticed the gap.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub acked: u64,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

impl Gap {
    /// A gap up to the message `end`, with no state of any node yet.
    pub fn new(end: u64) -> Gap {
        Gap {
            end,
            ..Gap::default()
        }
    }

    /// The gap in the form in which it is sent to other nodes.
    pub fn told(&self) -> Gap {
        Gap {
            local_tx: 0,
            acked: 0,
            ..self.clone()
        }
    }

    /// Whether nothing is missing any more at `node`: the state of all other `publishers` is here.
    pub fn is_made_up(&self, node: u64, publishers: &BTreeSet<u64>) -> bool {
        publishers
            .iter()
            .all(|p| *p == node || self.heard.contains(p))
    }
}

/// How far a stream was read, and what is missing up to there.
#[derive(Debug, Clone, Copy)]
pub struct ReadExtent<'a> {
    /// Sequence of the last message that was read.
    pub seq: u64,
    /// The gap up to there, if there is one.
    pub gap: Option<&'a Gap>,
}

/// The gap that is left after a snapshot by `maker` is merged; none if nothing is missing.
pub fn after_merge(here: ReadExtent<'_>, there: ReadExtent<'_>, maker: u64) -> Option<Gap> {
    let and_maker = |gap: &Gap| {
        let mut gap = gap.told();
        gap.heard.insert(maker);
        if let Some(ours) = here.gap {
            (gap.local_tx, gap.acked) = (ours.local_tx, ours.acked);
        }
        gap
    };
    match (here.gap, there.gap) {
        (None, None) => None,
        // This node read all the messages that the snapshot lacks.
        (None, Some(theirs)) if here.seq >= theirs.end.min(there.seq) => None,
        (None, Some(theirs)) => Some(and_maker(theirs)),
        // The snapshot is too old to help.
        (Some(ours), _) if there.seq < ours.end => Some(ours.clone()),
        (Some(_), None) => None,
        // Neither node read the messages between the two.
        (Some(ours), Some(theirs)) if here.seq < theirs.end && ours.end < theirs.end => {
            Some(and_maker(theirs))
        }
        (Some(ours), Some(theirs)) => {
            let mut gap = and_maker(theirs);
            gap.end = gap.end.min(ours.end);
            gap.heard.extend(&ours.heard);
            Some(gap)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(end: u64, heard: &[u64]) -> Gap {
        Gap {
            end,
            heard: heard.iter().copied().collect(),
            ..Gap::default()
        }
    }

    fn merged(here: (u64, Option<Gap>), there: (u64, Option<Gap>)) -> Option<Gap> {
        let reach = |(seq, gap): &(u64, Option<Gap>)| (*seq, gap.clone());
        let ((a, b), (c, d)) = (reach(&here), reach(&there));
        let (here, there) = (
            ReadExtent {
                seq: a,
                gap: b.as_ref(),
            },
            ReadExtent {
                seq: c,
                gap: d.as_ref(),
            },
        );
        after_merge(here, there, 9)
    }

    #[test]
    fn a_node_that_read_it_all_makes_up_for_it() {
        assert_eq!(merged((50, Some(gap(40, &[]))), (40, None)), None);
        let too_early = merged((50, Some(gap(40, &[]))), (39, None));
        assert_eq!(too_early, Some(gap(40, &[])));
    }

    #[test]
    fn two_that_lack_something_help_each_other() {
        let after = merged((90, Some(gap(40, &[3]))), (80, Some(gap(60, &[4]))));
        assert_eq!(after, Some(gap(40, &[3, 4, 9])));
        let after = merged((90, Some(gap(60, &[]))), (80, Some(gap(40, &[]))));
        assert_eq!(
            after,
            Some(gap(40, &[9])),
            "what lies above 40 was read there"
        );
        let publishers = BTreeSet::from([1, 9]);
        assert!(gap(40, &[9]).is_made_up(1, &publishers));
        assert!(!gap(40, &[9]).is_made_up(2, &publishers));
    }

    /// Neither node read the messages 51 to 60.
    #[test]
    fn messages_that_neither_of_two_nodes_read_stay_lacking() {
        let after = merged((50, Some(gap(40, &[3]))), (80, Some(gap(60, &[4]))));
        assert_eq!(after, Some(gap(60, &[4, 9])), "3 was heard too early");
        let after = merged((60, Some(gap(40, &[3]))), (80, Some(gap(60, &[4]))));
        assert_eq!(after, Some(gap(40, &[3, 4, 9])));
        // An operator had this node begin again from the start.
        let after = merged((0, Some(gap(40, &[]))), (80, Some(gap(60, &[]))));
        assert_eq!(after, Some(gap(60, &[9])));
    }

    #[test]
    fn a_gap_is_handed_on_only_to_who_did_not_read_that() {
        assert_eq!(
            merged((0, None), (80, Some(gap(60, &[])))),
            Some(gap(60, &[9]))
        );
        assert_eq!(merged((60, None), (80, Some(gap(60, &[])))), None);
        assert_eq!(merged((99, None), (80, None)), None);
    }
}

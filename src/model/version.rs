//! The version of a row: the node that wrote it, and the time by a hybrid logical clock.
//!
//! Hybrid logical clocks: Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots in
//! Globally Distributed Databases", 2014. Here the logical part only grows per row, see [`stamp`].

use crate::mutation::{self, Mutation};
use std::fmt;

/// Lowest hlc that is out of bounds: a row that carries it is left out of its frame.
pub const HLC_LIMIT: i64 = 1 << 62;

/// hlc of rows from before HarmonyLite. It is below every stamp, so a row that was written since
/// wins, whichever node wrote it.
pub const HLC_BEFORE: i64 = 1;

/// Number of bits of an hlc below the milliseconds.
const COUNTER_BITS: u32 = 16;

/// Largest time that a stamp may carry, in unix milliseconds (the year 4199 is 2^46). With it, the
/// hlc stays below [`HLC_LIMIT`] whatever the counter is.
pub const MAX_MS: i64 = (1 << 46) - 2;

/// Version of a row or of one column. Versions are ordered by hlc, then by node *unsigned*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Unix milliseconds << 16 | counter.
    pub hlc: i64,
    /// Id of the node that wrote it.
    pub node: u64,
}

impl Version {
    /// Below every real version: stands for "not known here".
    pub const NEVER: Version = Version { hlc: 0, node: 0 };

    /// The time of the write in unix milliseconds, as far as a clock gave it.
    pub fn time_ms(self) -> i64 {
        self.hlc >> COUNTER_BITS
    }

    /// Whether the time is a clock's, and not that of the version that this one replaced.
    pub fn is_by_clock(self) -> bool {
        self.counter() == 0
    }

    /// The bits below the milliseconds.
    fn counter(self) -> i64 {
        self.hlc & ((1 << COUNTER_BITS) - 1)
    }

    /// Whether a peer may send this version.
    pub fn is_valid(self) -> bool {
        (1..HLC_LIMIT).contains(&self.hlc)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.time_ms(), self.counter(), self.node)
    }
}

/// hlc of a local change at `time_ms` to a row whose present version has the hlc `previous` (0 if
/// none). The result is above `previous`, whatever the clock shows, unless that is the highest hlc
/// there is.
pub fn stamp(time_ms: i64, previous: i64) -> i64 {
    if mutation::is(Mutation::StampByClockAlone) {
        return (time_ms.clamp(0, MAX_MS) << COUNTER_BITS).max(HLC_BEFORE + 1);
    }
    let by_time = time_ms.clamp(0, MAX_MS) << COUNTER_BITS;
    // A peer may have sent the highest version there is. No version can be above that, and nodes
    // would not accept a row with one.
    by_time
        .max(previous.saturating_add(1))
        .clamp(HLC_BEFORE + 1, HLC_LIMIT - 1)
}

/// hlc of the change with this `number` among those of its millisecond. It never equals an hlc that
/// the clock alone gives.
pub fn hlc_within(time_ms: i64, number: u64) -> i64 {
    let most = (1 << COUNTER_BITS) - 1;
    let counter = 1 + (number % most) as i64;
    time_ms.clamp(0, MAX_MS) << COUNTER_BITS | counter
}

/// The unix milliseconds of an hlc.
pub fn milliseconds(hlc: i64) -> i64 {
    hlc >> COUNTER_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_breaks_ties_unsigned() {
        let low = Version { hlc: 5, node: 1 };
        let high = Version {
            hlc: 5,
            node: u64::MAX,
        };
        assert!(high > low);
        assert!(Version { hlc: 6, node: 0 } > high);
        assert!(low > Version::NEVER);
    }

    #[test]
    fn a_number_orders_within_a_millisecond() {
        assert!(hlc_within(5, 8) > hlc_within(5, 7));
        assert!(hlc_within(6, 0) > hlc_within(5, 65_534));
        for (time_ms, number) in [(i64::MIN, 0), (i64::MAX, u64::MAX), (0, 65_535)] {
            let version = Version {
                hlc: hlc_within(time_ms, number),
                node: 1,
            };
            assert!(version.is_valid() && !version.is_by_clock());
        }
    }

    #[test]
    fn a_stamp_is_above_the_row_and_within_bounds() {
        assert_eq!(stamp(1_000, 0), 1_000 << 16);
        assert_eq!(stamp(1_000, 1_000 << 16), (1_000 << 16) + 1);
        assert_eq!(stamp(-5, 7), 8);
        assert!(stamp(0, 0) > HLC_BEFORE);
        assert!(stamp(i64::MAX, 0) < HLC_LIMIT);
        assert_eq!(stamp(0, HLC_LIMIT - 1), HLC_LIMIT - 1);
    }
}

//! The version of a row: who wrote it, and when by a hybrid logical clock.
//!
//! Hybrid logical clocks: Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots in
//! Globally Distributed Databases", 2014. Here the logical part only grows per row, see [`stamp`].

use crate::mutation::{self, Mutation};
use std::fmt;

/// Lowest hlc that is out of bounds: a frame that carries it is malformed.
pub const HLC_LIMIT: i64 = 1 << 62;

/// hlc of rows that were there before HarmonyLite: below everything ever stamped, so that a row
/// written since wins whoever wrote it.
pub const HLC_BEFORE: i64 = 1;

/// Bits of an hlc below the milliseconds.
const COUNTER_BITS: u32 = 16;

/// Largest time a stamp may carry, unix milliseconds (the year 4199 is 2^46): the counter above it
/// must stay below [`HLC_LIMIT`].
pub const MAX_MS: i64 = (1 << 46) - 2;

/// Version of a row or of one column. Ordered by hlc, then by node *unsigned*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Unix milliseconds << 16 | counter.
    pub hlc: i64,
    /// The node that wrote it.
    pub node: u64,
}

impl Version {
    /// Below every real version: "not known here".
    pub const NEVER: Version = Version { hlc: 0, node: 0 };

    /// When it was written, as far as a clock said so: unix milliseconds.
    pub fn time_ms(self) -> i64 {
        self.hlc >> COUNTER_BITS
    }

    /// Whether its time is that of a clock, not the one of the version that it replaced.
    pub fn is_by_clock(self) -> bool {
        self.counter() == 0
    }

    /// The bits below the milliseconds.
    fn counter(self) -> i64 {
        self.hlc & ((1 << COUNTER_BITS) - 1)
    }

    /// Whether a peer may send this.
    pub fn is_valid(self) -> bool {
        (1..HLC_LIMIT).contains(&self.hlc)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.time_ms(), self.counter(), self.node)
    }
}

/// hlc of a local change at `time_ms` to a row whose version so far has `previous` as hlc
/// (0 if none): never at or below what the row already has, whatever the clock says.
pub fn stamp(time_ms: i64, previous: i64) -> i64 {
    if mutation::is(Mutation::StampByClockAlone) {
        return (time_ms.clamp(0, MAX_MS) << COUNTER_BITS).max(HLC_BEFORE + 1);
    }
    let by_time = time_ms.clamp(0, MAX_MS) << COUNTER_BITS;
    // A peer may have sent the highest version there is: nobody can go above that, and a frame that
    // tried would be refused whole.
    by_time
        .max(previous.saturating_add(1))
        .clamp(HLC_BEFORE + 1, HLC_LIMIT - 1)
}

/// hlc of the change with this number among those of its millisecond. Never that of a clock alone.
pub fn hlc_within(time_ms: i64, number: u64) -> i64 {
    let most = (1 << COUNTER_BITS) - 1;
    let counter = 1 + (number % most) as i64;
    time_ms.clamp(0, MAX_MS) << COUNTER_BITS | counter
}

/// The milliseconds of an hlc.
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

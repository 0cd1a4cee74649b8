//! Which address ranges of a long list an address lies in.

use core::net::IpAddr;

use crate::selector::AddressRange;

/// Numbered address ranges, indexed for the question which of them contain an address.
///
/// The bounds of the ranges cut the address space into intervals, each of which knows its
/// ranges. A range that lies over many intervals is kept in a list of its own instead, so that
/// the size stays proportional to the number of ranges.
#[derive(Clone, Debug, Default)]
pub(crate) struct IntervalIndex {
    /// Where intervals begin, ascending; each ends where the next one begins.
    starts: Vec<u128>,
    /// Where the numbers of each interval begin within `numbers`, and a last one.
    offsets: Vec<u32>,
    /// Numbers of the ranges over each interval, ascending.
    numbers: Vec<u32>,
    /// Numbers of the ranges over many intervals, ascending.
    broad: Vec<u32>,
}

/// A range over more intervals than this is a broad one.
const NARROW: usize = 32;

impl IntervalIndex {
    /// Ranges numbered from 0 on; `None` contains every address.
    pub(crate) fn new(ranges: &[Option<AddressRange>]) -> Self {
        // The last address of all has no successor, and needs none.
        let after = |range: &AddressRange| key(range.last()).checked_add(1);
        let mut starts: Vec<u128> = ranges
            .iter()
            .flatten()
            .flat_map(|range| [Some(key(range.first())), after(range)])
            .flatten()
            .collect();
        starts.sort_unstable();
        starts.dedup();

        let mut broad = Vec::new();
        // Pairs of interval and number.
        let mut narrow = Vec::new();
        for (number, range) in (0_u32..).zip(ranges) {
            let intervals = range.as_ref().map(|range| {
                let interval = |at| starts.partition_point(|&start| start < at);
                interval(key(range.first()))..after(range).map_or(starts.len(), interval)
            });
            match intervals {
                Some(intervals) if intervals.len() <= NARROW => {
                    narrow.extend(intervals.map(|interval| (interval, number)));
                }
                _ => broad.push(number),
            }
        }
        narrow.sort_unstable();
        let offsets = (0..=starts.len())
            .map(|interval| narrow.partition_point(|&(at, _)| at < interval) as u32)
            .collect();
        Self {
            starts,
            offsets,
            numbers: narrow.into_iter().map(|(_, number)| number).collect(),
            broad,
        }
    }

    /// How many ranges have to be looked at for every address.
    pub(crate) fn broad(&self) -> usize {
        self.broad.len()
    }

    /// Two ascending lists of numbers among which all ranges are that contain the address:
    /// those of its interval and the broad ones, some of which may not contain it.
    pub(crate) fn candidates(&self, address: IpAddr) -> (&[u32], &[u32]) {
        let address = key(address);
        let after = self.starts.partition_point(|&start| start <= address);
        let narrow = after.checked_sub(1).and_then(|interval| {
            let first = *self.offsets.get(interval)? as usize;
            let last = *self.offsets.get(after)? as usize;
            self.numbers.get(first..last)
        });
        (narrow.unwrap_or_default(), &self.broad)
    }
}

/// Addresses of both versions in one order. An IPv4 address shares its key with the IPv6
/// address that maps it, which costs a needless candidate at most.
fn key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => address.into(),
    }
}

//! Receive filters: which queue a frame belongs to.

use core::fmt;
use std::collections::HashMap;

use crate::ethernet::{MacAddress, VlanId};
use crate::queue::QueueId;
use crate::settings::VmAddress;

/// Matches frames by destination address and, if it names one, by VLAN.
///
/// Both tests have to hold. A filter without a VLAN matches untagged frames and those of VLAN
/// 0, and no others: it is no wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReceiveFilter {
    /// Destination address.
    pub mac: MacAddress,
    /// VLAN; `None` is untagged.
    pub vlan: Option<VlanId>,
}

impl From<VmAddress> for ReceiveFilter {
    fn from(VmAddress { mac, vlan }: VmAddress) -> Self {
        Self { mac, vlan }
    }
}

/// Names a filter; unique in the life of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilterId(pub(crate) u64);

impl fmt::Display for FilterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "filter {}", self.0)
    }
}

/// Why filters were not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterError {
    /// A filter with the same address and VLAN exists; move it instead.
    Exists(FilterId),
    /// No such filter.
    Unknown(FilterId),
    /// The adapter has no more.
    Full {
        /// How many it has.
        capacity: u16,
    },
    /// The queue does not exist, or is in a state that takes no filter.
    Queue(QueueId),
    /// Group addresses are not filtered.
    Group(MacAddress),
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(id) => write!(f, "{id} has this address and VLAN; move it"),
            Self::Unknown(id) => write!(f, "{id} does not exist"),
            Self::Full { capacity } => write!(f, "all {capacity} filters are in use"),
            Self::Queue(queue) => write!(f, "{queue} does not exist or takes no filter now"),
            Self::Group(mac) => write!(f, "{mac} is a group address"),
        }
    }
}

impl core::error::Error for FilterError {}

/// The filters of an adapter.
#[derive(Debug)]
pub(crate) struct Filters {
    queues: HashMap<ReceiveFilter, QueueId, foldhash::fast::RandomState>,
    filters: HashMap<FilterId, ReceiveFilter>,
    next: u64,
    capacity: u16,
}

impl Filters {
    pub(crate) fn new(capacity: u16) -> Self {
        Self {
            queues: HashMap::default(),
            filters: HashMap::new(),
            next: 1,
            capacity,
        }
    }

    /// The queue of a frame; `None` is the default queue.
    pub(crate) fn classify(&self, mac: MacAddress, vlan: Option<VlanId>) -> Option<QueueId> {
        self.queues.get(&ReceiveFilter { mac, vlan }).copied()
    }

    pub(crate) fn set(
        &mut self,
        filter: ReceiveFilter,
        queue: QueueId,
    ) -> Result<FilterId, FilterError> {
        if filter.mac.is_group() {
            return Err(FilterError::Group(filter.mac));
        }
        if let Some(id) = self.id_of(&filter) {
            return Err(FilterError::Exists(id));
        }
        if self.filters.len() >= usize::from(self.capacity) {
            return Err(FilterError::Full {
                capacity: self.capacity,
            });
        }
        let id = FilterId(self.next);
        self.next += 1;
        self.filters.insert(id, filter);
        self.queues.insert(filter, queue);
        Ok(id)
    }

    /// The queue that the filter belonged to.
    pub(crate) fn clear(&mut self, id: FilterId) -> Result<QueueId, FilterError> {
        let filter = self.filters.remove(&id).ok_or(FilterError::Unknown(id))?;
        self.queues.remove(&filter).ok_or(FilterError::Unknown(id))
    }

    /// Gives a filter to another queue in one step: no frame meets it in neither place. Returns
    /// the queue that it belonged to.
    pub(crate) fn move_to(&mut self, id: FilterId, queue: QueueId) -> Result<QueueId, FilterError> {
        let filter = self.filters.get(&id).ok_or(FilterError::Unknown(id))?;
        self.queues
            .insert(*filter, queue)
            .ok_or(FilterError::Unknown(id))
    }

    pub(crate) fn id_of(&self, filter: &ReceiveFilter) -> Option<FilterId> {
        let known = self.filters.iter().find(|(_, known)| *known == filter);
        known.map(|(id, _)| *id)
    }

    pub(crate) fn queue_of(&self, id: FilterId) -> Result<QueueId, FilterError> {
        self.filters
            .get(&id)
            .and_then(|filter| self.queues.get(filter))
            .copied()
            .ok_or(FilterError::Unknown(id))
    }

    /// The filters of a queue.
    pub(crate) fn of(&self, queue: QueueId) -> impl Iterator<Item = (FilterId, ReceiveFilter)> {
        self.filters
            .iter()
            .filter(move |(_, filter)| self.queues.get(filter) == Some(&queue))
            .map(|(id, filter)| (*id, *filter))
    }

    pub(crate) fn count(&self, queue: QueueId) -> usize {
        self.of(queue).count()
    }

    pub(crate) fn len(&self) -> usize {
        self.filters.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_filter_without_vlan_matches_untagged_frames_only() {
        let mut filters = Filters::new(4);
        let seven = VlanId::new(7);
        let untagged = ReceiveFilter {
            mac: MAC,
            vlan: None,
        };
        let id = filters.set(untagged, QueueId(1)).unwrap();
        assert_eq!(filters.classify(MAC, None), Some(QueueId(1)));
        assert_eq!(filters.classify(MAC, seven), None);
        let tagged = ReceiveFilter {
            mac: MAC,
            vlan: seven,
        };
        filters.set(tagged, QueueId(2)).unwrap();
        assert_eq!(filters.classify(MAC, seven), Some(QueueId(2)));
        assert_eq!(filters.classify(MAC, VlanId::new(8)), None);
        assert_eq!(
            filters.set(untagged, QueueId(3)),
            Err(FilterError::Exists(id))
        );
        assert_eq!(filters.move_to(id, QueueId(3)), Ok(QueueId(1)));
        assert_eq!(filters.classify(MAC, None), Some(QueueId(3)));
        assert_eq!(filters.clear(id), Ok(QueueId(3)));
        assert_eq!(filters.clear(id), Err(FilterError::Unknown(id)));
        assert_eq!(filters.classify(MAC, None), None);
    }

    #[test]
    fn filters_are_limited_and_never_for_groups() {
        let mut filters = Filters::new(1);
        let group = ReceiveFilter {
            mac: MacAddress::BROADCAST,
            vlan: None,
        };
        assert_eq!(
            filters.set(group, QueueId(1)),
            Err(FilterError::Group(MacAddress::BROADCAST))
        );
        let one = ReceiveFilter {
            mac: MAC,
            vlan: None,
        };
        filters.set(one, QueueId(1)).unwrap();
        let two = ReceiveFilter {
            mac: MacAddress([2, 0, 0, 0, 0, 2]),
            vlan: None,
        };
        assert_eq!(
            filters.set(two, QueueId(1)),
            Err(FilterError::Full { capacity: 1 })
        );
    }
}

//! Which sends are not completed yet: the driver's guard against an adapter that completes
//! twice, late or never.

use core::time::Duration;
use std::collections::VecDeque;

use vesper_sa::Timestamp;

/// Sends that an adapter has accepted and not completed. Identifiers count up and are never
/// used again, so that a completion that comes twice, or after its time-out, is recognised.
#[derive(Debug, Default)]
pub struct Outstanding {
    /// The identifier of the first one in `sent`.
    first: u64,
    /// In the order of their identifiers; `None` is completed.
    sent: VecDeque<Option<Sent>>,
    /// Of those, how many are not completed.
    count: usize,
    counters: OutstandingCounters,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    since: Timestamp,
    work: AdapterWork,
}

/// How completions have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutstandingCounters {
    /// Once, in time.
    pub completed: u64,
    /// Of sends that are unknown: completed before, or given up.
    pub unexpected: u64,
    /// Never, or not in time.
    pub timed_out: u64,
}

impl Outstanding {
    /// The identifier for a send that is about to be posted.
    pub fn begin(&mut self, now: Timestamp, work: AdapterWork) -> u64 {
        let id = self.first + self.sent.len() as u64;
        self.sent.push_back(Some(Sent { since: now, work }));
        self.count += 1;
        id
    }

    /// The adapter has completed a send: what it was to do, if the send was outstanding.
    pub fn complete(&mut self, id: u64) -> Option<AdapterWork> {
        let index = id.checked_sub(self.first);
        let index = index.and_then(|index| usize::try_from(index).ok());
        let place = index.and_then(|index| self.sent.get_mut(index));
        let Some(sent) = place.and_then(Option::take) else {
            self.counters.unexpected += 1;
            return None;
        };
        self.count -= 1;
        self.counters.completed += 1;
        self.forget_completed();
        Some(sent.work)
    }

    /// Gives up sends that are older than `timeout`; how many.
    pub fn expire(&mut self, now: Timestamp, timeout: Duration) -> usize {
        let mut count = 0;
        while let Some(Some(sent)) = self.sent.front()
            && now.since(sent.since) >= timeout
        {
            count += 1;
            self.count -= 1;
            self.sent.pop_front();
            self.first += 1;
            self.forget_completed();
        }
        self.counters.timed_out += count as u64;
        count
    }

    /// Sends that are outstanding.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn forget_completed(&mut self) {
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.first += 1;
        }
    }

    /// How completions have come.
    pub const fn counters(&self) -> OutstandingCounters {
        self.counters
    }
}

/// What an adapter is to do with a frame beside sending it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterWork {
    /// The frame holds an ESP packet in clear, to be encrypted.
    pub framed: bool,
    /// See [`HostSend::segment_size`](crate::HostSend::segment_size).
    pub segment_size: Option<u16>,
    /// See [`HostSend::checksum`](crate::HostSend::checksum).
    pub checksum: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_counts_once_and_in_time() {
        let mut outstanding = Outstanding::default();
        let second = Timestamp::from_secs;
        let work = |size| AdapterWork {
            segment_size: Some(size),
            ..AdapterWork::default()
        };
        let ids = [0, 1, 2].map(|at| outstanding.begin(second(at), work(at as u16)));
        assert_eq!(outstanding.complete(ids[1]), Some(work(1)));
        assert_eq!(outstanding.complete(ids[1]), None, "twice");
        assert_eq!(outstanding.len(), 2);
        assert_eq!(outstanding.expire(second(5), Duration::from_secs(4)), 1);
        assert_eq!(outstanding.complete(ids[0]), None, "late");
        assert_eq!(outstanding.complete(ids[2]), Some(work(2)));
        assert!(outstanding.is_empty());
        assert_eq!(outstanding.complete(ids[2] + 1), None, "never posted");
        let counters = outstanding.counters();
        assert_eq!(
            (counters.completed, counters.unexpected, counters.timed_out),
            (2, 3, 1)
        );
    }
}

//! Which sends are not completed yet: the driver's guard against an adapter that completes
//! twice, late or never.

use core::time::Duration;
use std::collections::BTreeMap;

use vesper_sa::Timestamp;

/// Sends that an adapter has accepted and not completed. Identifiers count up and are never
/// used again, so that a completion that comes twice, or after its time-out, is recognised.
#[derive(Debug, Default)]
pub struct Outstanding {
    next: u64,
    sent: BTreeMap<u64, Ticket>,
    counters: OutstandingCounters,
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
        self.next += 1;
        let ticket = Ticket {
            id: self.next,
            since: now,
            work,
        };
        self.sent.insert(ticket.id, ticket);
        ticket.id
    }

    /// The adapter has completed a send: what it was, if it was outstanding.
    pub fn complete(&mut self, id: u64) -> Option<Ticket> {
        let expected = self.sent.remove(&id);
        match expected {
            Some(_) => self.counters.completed += 1,
            None => self.counters.unexpected += 1,
        }
        expected
    }

    /// Gives up sends that are older than `timeout`; how many.
    pub fn expire(&mut self, now: Timestamp, timeout: Duration) -> usize {
        let mut count = 0;
        while let Some(entry) = self.sent.first_entry()
            && now.since(entry.get().since) >= timeout
        {
            entry.remove();
            count += 1;
        }
        self.counters.timed_out += count as u64;
        count
    }

    /// Sends that are outstanding.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// How completions have come.
    pub const fn counters(&self) -> OutstandingCounters {
        self.counters
    }
}

/// A send that is outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its identifier.
    pub id: u64,
    /// When it was posted.
    pub since: Timestamp,
    /// What the adapter was to do.
    pub work: AdapterWork,
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
        for at in [0, 1, 2] {
            outstanding.begin(second(at), AdapterWork::default());
        }
        assert!(outstanding.complete(2).is_some());
        assert_eq!(outstanding.complete(2), None, "twice");
        assert_eq!(outstanding.expire(second(5), Duration::from_secs(4)), 1);
        assert_eq!(outstanding.complete(1), None, "late");
        assert!(outstanding.complete(3).is_some());
        assert!(outstanding.is_empty());
        let counters = outstanding.counters();
        assert_eq!(
            (counters.completed, counters.unexpected, counters.timed_out),
            (2, 2, 1)
        );
    }
}

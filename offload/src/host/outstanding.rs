//! Which sends are not completed yet: the driver's guard against an adapter that completes
//! twice, late or never.

use core::time::Duration;
use std::collections::VecDeque;

use vesper_sa::Timestamp;

use crate::completions::SentIds;
use crate::unit::OffloadHandle;

/// Sends that an adapter has accepted and not completed. Identifiers count up and are never
/// used again, so that a completion that comes twice, or after its time-out, is recognised.
#[derive(Debug, Default)]
pub struct Outstanding {
    /// The identifier of the next one.
    next: u64,
    /// In the order of their identifiers.
    runs: VecDeque<Run>,
    /// How many that is.
    count: u64,
    counters: OutstandingCounters,
}

/// Sends with consecutive identifiers, all from the same moment and with the same work.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    count: u64,
    since: Timestamp,
    work: AdapterWork,
}

impl Run {
    const fn end(&self) -> u64 {
        self.first + self.count
    }
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
        self.begin_all(now, work, 1)
    }

    /// The first of the consecutive identifiers for sends that are about to be posted.
    pub(crate) fn begin_all(&mut self, now: Timestamp, work: AdapterWork, count: u64) -> u64 {
        let first = self.next;
        self.next += count;
        self.count += count;
        match self.runs.back_mut() {
            Some(run) if run.end() == first && run.since == now && run.work == work => {
                run.count += count;
            }
            _ if count == 0 => {}
            _ => self.runs.push_back(Run {
                first,
                count,
                since: now,
                work,
            }),
        }
        first
    }

    /// The identifier of the next send.
    pub(crate) const fn next(&self) -> u64 {
        self.next
    }

    /// The adapter has completed a send: what it was to do, if the send was outstanding.
    pub fn complete(&mut self, id: u64) -> Option<AdapterWork> {
        let index = self.position(id);
        let run = self.runs.get(index).filter(|run| run.first <= id);
        let Some(work) = run.map(|run| run.work) else {
            self.counters.unexpected += 1;
            return None;
        };
        self.remove(index, id, 1);
        Some(work)
    }

    /// The adapter has sent these.
    pub(crate) fn complete_all(&mut self, ids: SentIds) {
        let (mut first, mut left) = (ids.first, ids.count);
        while left > 0 {
            let index = self.position(first);
            let count = match self.runs.get(index) {
                Some(run) if run.first <= first => {
                    let count = left.min(run.end() - first);
                    self.remove(index, first, count);
                    count
                }
                next => {
                    let gap = next.map_or(left, |next| left.min(next.first - first));
                    self.counters.unexpected += gap;
                    gap
                }
            };
            first = first.wrapping_add(count);
            left -= count;
        }
    }

    /// Gives up sends that are older than `timeout`; how many.
    pub fn expire(&mut self, now: Timestamp, timeout: Duration) -> usize {
        let mut count = 0;
        while let Some(run) = self.runs.front()
            && now.since(run.since) >= timeout
        {
            count += run.count;
            self.runs.pop_front();
        }
        self.count -= count;
        self.counters.timed_out += count;
        count as usize
    }

    /// The associations that frames which are outstanding are to be encrypted with, each perhaps
    /// more than once.
    pub(crate) fn framed(&self) -> impl Iterator<Item = OffloadHandle> {
        self.runs.iter().filter_map(|run| run.work.framed)
    }

    /// Sends that are outstanding.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Of the first run that does not end before `id`.
    fn position(&self, id: u64) -> usize {
        match self.runs.front() {
            Some(front) if id < front.end() => 0,
            _ => self.runs.partition_point(|run| run.end() <= id),
        }
    }

    /// Takes `count` sends out of a run that has them.
    fn remove(&mut self, index: usize, first: u64, count: u64) {
        self.count -= count;
        self.counters.completed += count;
        let Some(run) = self.runs.get_mut(index) else {
            return;
        };
        let behind = Run {
            first: first + count,
            count: run.end() - (first + count),
            ..*run
        };
        run.count = first - run.first;
        match (run.count, behind.count) {
            (0, 0) => drop(self.runs.remove(index)),
            (0, _) => *run = behind,
            (_, 0) => {}
            _ => self.runs.insert(index + 1, behind),
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
    /// The frame holds an ESP packet in clear, to be encrypted with this association.
    pub framed: Option<OffloadHandle>,
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

    #[test]
    fn ranges_are_completed_wherever_they_lie() {
        let mut outstanding = Outstanding::default();
        let work = AdapterWork::default();
        let now = Timestamp::from_secs(1);
        // Against one flag for each.
        let mut flags = [true; 40];
        for _ in 0..40 {
            outstanding.begin(now, work);
        }
        let mut counters = OutstandingCounters::default();
        for (first, count) in [(5, 3), (0, 2), (38, 9), (1, 6), (20, 1), (10, 25), (50, 2)] {
            outstanding.complete_all(SentIds { first, count });
            for id in first..first + count {
                match flags.get_mut(id as usize) {
                    Some(flag) if *flag => {
                        *flag = false;
                        counters.completed += 1;
                    }
                    _ => counters.unexpected += 1,
                }
            }
            let left = flags.iter().filter(|flag| **flag).count();
            assert_eq!(
                (outstanding.len(), outstanding.counters()),
                (left, counters)
            );
        }
        for (id, flag) in (0..).zip(flags) {
            assert_eq!(outstanding.complete(id).is_some(), flag, "{id}");
        }
        assert!(outstanding.is_empty());
    }
}

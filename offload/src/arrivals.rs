//! Received frames on their way through the adapter: what neighbours have in common is kept once.

use std::collections::VecDeque;

use vesper_sa::VmId;

use crate::ethernet::{Frame, Link, VlanId};
use crate::queue::QueueId;
use crate::transfer::{Received, ReceivedIpsec};
use crate::unit::OffloadHandle;

/// Frames that wait for their processor, their headers taken off. What neighbours have in
/// common is kept once.
#[derive(Debug)]
pub(crate) struct Arrivals<B> {
    pub(crate) payloads: VecDeque<B>,
    pub(crate) runs: VecDeque<Arrival>,
}

/// What frames that have arrived one after another have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) class: Class,
    pub(crate) link: Link,
    pub(crate) vlan: Option<VlanId>,
    pub(crate) count: usize,
}

impl<B> Arrivals<B> {
    pub(crate) const fn new() -> Self {
        Self {
            payloads: VecDeque::new(),
            runs: VecDeque::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.payloads.len()
    }

    pub(crate) fn push(&mut self, frame: Frame<B>, class: Class) {
        let Frame {
            payload,
            link,
            vlan,
        } = frame;
        match self.runs.back_mut() {
            Some(run) if (run.class, run.link, run.vlan) == (class, link, vlan) => run.count += 1,
            _ => self.runs.push_back(Arrival {
                class,
                link,
                vlan,
                count: 1,
            }),
        }
        self.payloads.push_back(payload);
    }

    /// Adds a payload of which all else is as of the frame that was pushed last.
    #[inline(always)]
    pub(crate) fn push_alike(&mut self, payload: B) {
        if let Some(run) = self.runs.back_mut() {
            run.count += 1;
            self.payloads.push_back(payload);
        }
    }

    /// Moves up to `most` frames to `to`, which is empty.
    pub(crate) fn take(&mut self, most: usize, to: &mut Self) {
        if self.len() <= most {
            return core::mem::swap(self, to);
        }
        to.payloads.extend(self.payloads.drain(..most));
        let mut left = most;
        while left > 0
            && let Some(run) = self.runs.front_mut()
        {
            let count = left.min(run.count);
            to.runs.push_back(Arrival { count, ..*run });
            run.count -= count;
            left -= count;
            if run.count == 0 {
                self.runs.pop_front();
            }
        }
    }

    /// The class of each frame, and its payload.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Class, &mut B)> {
        let classes = self.runs.iter();
        let classes = classes.flat_map(|run| core::iter::repeat_n(run.class, run.count));
        classes.zip(&mut self.payloads)
    }

    /// Takes all frames.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Frame<B>, Class)> {
        let runs = self.runs.drain(..);
        let runs = runs.flat_map(|run| core::iter::repeat_n(run, run.count));
        runs.zip(self.payloads.drain(..)).map(|(run, payload)| {
            let Arrival {
                class, link, vlan, ..
            } = run;
            let frame = Frame {
                payload,
                link,
                vlan,
            };
            (frame, class)
        })
    }
}

/// Frames that are to be indicated, their headers taken off. What neighbours have in common is
/// kept once.
#[derive(Debug)]
pub(crate) struct Ready<B> {
    payloads: VecDeque<B>,
    runs: VecDeque<(Indicated, usize)>,
}

/// What there is to say about a received frame beside its payload, see [`Received`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Indicated {
    pub(crate) link: Link,
    pub(crate) vlan: Option<VlanId>,
    pub(crate) queue: QueueId,
    pub(crate) owner: Option<VmId>,
    pub(crate) ipsec: ReceivedIpsec,
}

impl Indicated {
    /// The frame of this payload.
    #[inline(always)]
    pub(crate) fn frame<B>(&self, payload: B) -> Frame<B> {
        Frame {
            payload,
            link: self.link,
            vlan: self.vlan,
        }
    }

    /// Of this payload.
    #[inline(always)]
    pub(crate) fn received<B>(&self, payload: B) -> Received<B> {
        Received {
            frame: self.frame(payload),
            queue: self.queue,
            owner: self.owner,
            ipsec: self.ipsec,
        }
    }
}

impl<B> Ready<B> {
    pub(crate) const fn new() -> Self {
        Self {
            payloads: VecDeque::new(),
            runs: VecDeque::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.payloads.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// Adds a payload.
    #[inline(always)]
    pub(crate) fn push(&mut self, what: Indicated, payload: B) {
        self.begin(what, 1);
        self.payloads.push_back(payload);
    }

    /// Moves the first `count` payloads of which the same is to be said here.
    pub(crate) fn extend(&mut self, what: Indicated, from: &mut VecDeque<B>, count: usize) {
        let count = count.min(from.len());
        if count > 0 {
            self.begin(what, count);
            match self.payloads.is_empty() && count == from.len() {
                true => core::mem::swap(&mut self.payloads, from),
                false => move_between(from, count, |payload| self.payloads.push_back(payload)),
            }
        }
    }

    #[inline(always)]
    fn begin(&mut self, what: Indicated, count: usize) {
        // What was decrypted differs by its number at least.
        let may_repeat = !matches!(what.ipsec, ReceivedIpsec::Crypto(_));
        match self.runs.back_mut() {
            Some((last, counted)) if may_repeat && *last == what => *counted += count,
            _ => self.runs.push_back((what, count)),
        }
    }

    /// The associations in crypto mode that payloads were decrypted with.
    pub(crate) fn in_crypto_mode(&self) -> impl Iterator<Item = OffloadHandle> {
        self.runs.iter().filter_map(|(what, _)| match what.ipsec {
            ReceivedIpsec::Crypto(info) => Some(info.handle),
            _ => None,
        })
    }

    /// Takes up to `most` frames: what is to be said of each run, and so many payloads, each of
    /// which is to be taken.
    pub(crate) fn take(
        &mut self,
        most: usize,
        mut each: impl FnMut(&Indicated, usize, &mut VecDeque<B>),
    ) -> usize {
        let mut left = most;
        while left > 0
            && let Some((what, count)) = self.runs.front_mut()
        {
            let taken = left.min(*count);
            *count -= taken;
            left -= taken;
            let is_done = *count == 0;
            // Not copied first: what has just been written in pieces is slow to read.
            each(what, taken, &mut self.payloads);
            if is_done {
                self.runs.pop_front();
            }
        }
        most - left
    }
}

/// Moves the first `count` elements. For a few, which is what runs are where many flows are mixed,
/// this is faster than draining them.
#[inline]
pub(crate) fn move_between<T>(from: &mut VecDeque<T>, count: usize, mut to: impl FnMut(T)) {
    for _ in 0..count {
        let Some(element) = from.pop_front() else {
            return;
        };
        to(element);
    }
}

/// What the parser found a received frame to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Not ESP.
    Clear,
    /// ESP of an offloaded association.
    Esp(OffloadHandle),
    /// ESP that the adapter has no association for, or a fragment.
    Unknown,
    /// Not ESP, and copied into a posted buffer already.
    Copy,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: u8, ethertype: u16) -> Frame<u8> {
        Frame {
            payload,
            link: Link {
                ethertype,
                ..Link::default()
            },
            vlan: None,
        }
    }

    #[test]
    fn arrivals_come_out_as_they_went_in() {
        // Against a plain list.
        let mut arrivals = Arrivals::new();
        let mut list: VecDeque<((u8, u16), Class)> = VecDeque::new();
        for payload in 0..200_u8 {
            let class = match payload % 7 {
                0..3 => Class::Clear,
                _ => Class::Unknown,
            };
            let ethertype = u16::from(payload / 40);
            if payload % 11 == 1 && list.back().is_some() {
                let ((_, ethertype), class) = *list.back().unwrap();
                list.push_back(((payload, ethertype), class));
                arrivals.push_alike(payload);
            } else {
                list.push_back(((payload, ethertype), class));
                arrivals.push(frame(payload, ethertype), class);
            }
        }
        let mut taken = Arrivals::new();
        for most in [1, 9, 0, 50, 7, 1000] {
            arrivals.take(most, &mut taken);
            let expected: Vec<_> = list.drain(..most.min(list.len())).collect();
            let classes: Vec<_> = taken.iter_mut().map(|(class, _)| class).collect();
            let drained: Vec<_> = taken
                .drain()
                .map(|(frame, class)| ((frame.payload, frame.link.ethertype), class))
                .collect();
            assert_eq!(drained, expected);
            assert!(
                classes
                    .into_iter()
                    .eq(expected.into_iter().map(|(_, class)| class))
            );
        }
        assert_eq!(arrivals.len(), 0);
    }

    #[test]
    fn what_is_ready_is_taken_in_order_by_runs() {
        let what = |ethertype: u16| Indicated {
            link: frame(0, ethertype).link,
            vlan: None,
            queue: QueueId(1),
            owner: None,
            ipsec: ReceivedIpsec::Untouched,
        };
        let mut ready = Ready::new();
        ready.push(what(1), 0);
        let mut more: VecDeque<u8> = (1..20).collect();
        ready.extend(what(1), &mut more, 4);
        ready.extend(what(2), &mut more, 0);
        assert_eq!((ready.len(), more.len()), (5, 15));
        ready.extend(what(2), &mut more, 6);
        ready.push(what(1), 200);
        assert_eq!((ready.len(), more.len()), (12, 9));
        let mut seen = Vec::new();
        for most in [3, 4, 100] {
            let count = ready.take(most, |what, count, payloads| {
                let mut run = Vec::new();
                move_between(payloads, count, |payload| run.push(payload));
                seen.push((what.link.ethertype, run));
            });
            assert_eq!(count, most.min(5));
        }
        let expected = [
            (1, vec![0, 1, 2]),
            (1, vec![3, 4]),
            (2, vec![5, 6]),
            (2, vec![7, 8, 9, 10]),
            (1, vec![200]),
        ];
        assert_eq!(seen, expected);
        assert!(ready.is_empty());
        // All that there is.
        ready.extend(what(3), &mut more, 100);
        assert_eq!((ready.len(), more.len()), (9, 0));
        ready.take(100, |_, _, payloads| assert!(payloads.drain(..).eq(11..20)));
    }
}

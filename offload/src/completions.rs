//! Completions on their way from the adapter to a sender.

use std::collections::VecDeque;

use crate::transfer::Completion;

/// Completions that nobody has taken yet, in order. Senders count their identifiers up: the
/// frames of a batch that went well are one entry.
#[derive(Debug)]
pub(crate) struct Completions<B>(VecDeque<Completed<B>>);

/// One or several completions.
#[derive(Debug)]
pub(crate) enum Completed<B> {
    /// Frames that are on their way.
    Sent(SentIds),
    /// One that failed.
    Failed(Completion<B>),
}

/// Consecutive identifiers of frames that are on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SentIds {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl SentIds {
    pub(crate) const NONE: Self = Self { first: 0, count: 0 };

    pub(crate) const fn one(id: u64) -> Self {
        Self {
            first: id,
            count: 1,
        }
    }

    /// Adds an identifier, if it is the next one.
    #[inline]
    pub(crate) const fn extend(&mut self, next: Self) -> bool {
        let follows = self.first.wrapping_add(self.count) == next.first;
        if follows {
            self.count += next.count;
        }
        follows
    }

    /// Each of them.
    pub(crate) fn iter(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |index| self.first.wrapping_add(index))
    }
}

impl<B> Completions<B> {
    pub(crate) const fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Frames are on their way.
    #[inline]
    pub(crate) fn sent(&mut self, ids: SentIds) {
        if let Some(Completed::Sent(last)) = self.0.back_mut()
            && last.extend(ids)
        {
            return;
        }
        if ids.count > 0 {
            self.0.push_back(Completed::Sent(ids));
        }
    }

    /// One more frame is on its way beside those of `ids`, which are counted when it does not
    /// follow them. Returns those that are not.
    #[inline(always)]
    pub(crate) fn also_sent(&mut self, mut ids: SentIds, id: u64) -> SentIds {
        let one = SentIds::one(id);
        if ids.extend(one) {
            return ids;
        }
        self.sent(ids);
        one
    }

    /// A send has ended.
    pub(crate) fn push(&mut self, completion: Completion<B>) {
        match completion {
            Completion {
                id,
                result: Ok(()),
                buffer: None,
            } => self.sent(SentIds::one(id)),
            failed => self.0.push_back(Completed::Failed(failed)),
        }
    }

    /// Takes the last one back.
    pub(crate) fn pop(&mut self) -> Option<Completion<B>> {
        if let Some(Completed::Sent(ids)) = self.0.back_mut()
            && ids.count > 1
        {
            ids.count -= 1;
            return Some(Completion::done(ids.first.wrapping_add(ids.count)));
        }
        match self.0.pop_back()? {
            Completed::Sent(ids) => Some(Completion::done(ids.first)),
            Completed::Failed(completion) => Some(completion),
        }
    }

    /// Takes them all, as they are kept.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Completed<B>> {
        self.0.drain(..)
    }

    /// Takes them all, one by one.
    pub(crate) fn drain_into(&mut self, into: &mut Vec<Completion<B>>) {
        for completed in self.0.drain(..) {
            match completed {
                Completed::Sent(ids) => into.extend(ids.iter().map(Completion::done)),
                Completed::Failed(completion) => into.push(completion),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fate::{Loss, SendError};

    fn failed(id: u64) -> Completion<u8> {
        Completion {
            id,
            result: Err(SendError::Lost(Loss::Reset)),
            buffer: Some(id as u8),
        }
    }

    fn ids(completions: &mut Completions<u8>) -> Vec<(u64, bool)> {
        let mut taken = Vec::new();
        completions.drain_into(&mut taken);
        let buffers = taken.iter().filter(|taken| taken.buffer.is_some()).count();
        let failures = taken.iter().filter(|taken| taken.result.is_err()).count();
        assert_eq!(buffers, failures);
        taken
            .iter()
            .map(|taken| (taken.id, taken.result.is_ok()))
            .collect()
    }

    #[test]
    fn they_come_out_one_by_one_in_order() {
        let mut completions = Completions::new();
        for id in [3, 4, 5, 9, u64::MAX, 0] {
            completions.push(Completion::done(id));
        }
        completions.push(failed(1));
        completions.sent(SentIds { first: 2, count: 2 });
        let expected = [3, 4, 5, 9, u64::MAX, 0].map(|id| (id, true));
        let expected = [&expected[..], &[(1, false), (2, true), (3, true)]].concat();
        assert_eq!(ids(&mut completions), expected);
        assert_eq!(ids(&mut completions), []);
    }

    #[test]
    fn the_last_one_can_be_taken_back() {
        let mut completions = Completions::new();
        completions.push(failed(1));
        completions.sent(SentIds { first: 7, count: 2 });
        assert_eq!(completions.pop().map(|last| last.id), Some(8));
        assert_eq!(ids(&mut completions), [(1, false), (7, true)]);
        completions.sent(SentIds::one(7));
        completions.push(failed(8));
        let last = completions.pop().map(|last| (last.id, last.buffer));
        assert_eq!(last, Some((8, Some(8))));
        assert_eq!(completions.pop().map(|last| last.id), Some(7));
        assert!(completions.pop().is_none());
    }
}

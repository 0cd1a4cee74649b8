//! The anti-replay window (RFC 4303 section 3.4.3 and appendix A).

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::params::ReplayProtection;

/// Why a sequence number was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplayRefusal {
    /// A packet with this number was accepted before.
    Seen,
    /// The number lies left of the window: too old to tell.
    Old,
    /// Number 0, which no sender uses (RFC 4303 section 2.2).
    Zero,
    /// The number lies beyond the sequence number space of the association.
    Beyond,
    /// The association is outbound; it receives nothing.
    Outbound,
}

impl fmt::Display for ReplayRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seen => "the sequence number was received before",
            Self::Old => "the sequence number is left of the replay window",
            Self::Zero => "the sequence number is 0, but senders begin with 1",
            Self::Beyond => "the sequence number is beyond the last one of the association",
            Self::Outbound => "the association is outbound and receives nothing",
        })
    }
}

impl core::error::Error for ReplayRefusal {}

/// Which of the last W sequence numbers were received. The highest one, "top", is kept by
/// the caller.
///
/// The bits form a ring indexed by sequence number, so that an advance by one writes one bit
/// and shifts nothing. Writers must exclude each other; a reader beside a writer may see
/// a stale answer, never an inconsistent one.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ReplayWindow {
    /// W; 0 is no anti-replay service.
    size: u32,
    /// Positions of the ring less one; the number of positions is a power of two.
    mask: u32,
    words: Words,
}

/// Windows of up to 1,024 packets lie within the association.
#[derive(Debug)]
enum Words {
    Inline([AtomicU64; INLINE_WORDS]),
    Boxed(Box<[AtomicU64]>),
}

const INLINE_WORDS: usize = 16;

/// The bits of a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring<'a> {
    words: &'a [AtomicU64],
    mask: u32,
}

impl Ring<'_> {
    /// Marks the `count` numbers after `top`.
    #[inline]
    pub(crate) fn mark_after(self, top: u64, count: u64) {
        let (mut next, mut left) = (top.wrapping_add(1) as u32, count);
        while left > 0 {
            let position = next & self.mask;
            let word = &self.words[(position / u64::BITS) as usize];
            let offset = position % u64::BITS;
            let here = left.min((u64::BITS - offset).into());
            let bits = u64::MAX >> (u64::from(u64::BITS) - here) << offset;
            word.store(word.load(Ordering::Relaxed) | bits, Ordering::Relaxed);
            next = next.wrapping_add(here as u32);
            left -= here;
        }
    }
}

impl ReplayWindow {
    /// A window in which nothing was received.
    pub(crate) fn new(protection: ReplayProtection) -> Self {
        let size = match protection {
            ReplayProtection::Window(size) => size.get(),
            ReplayProtection::Off => 0,
        };
        let positions = size.next_power_of_two().max(u64::BITS);
        let words = (positions / u64::BITS) as usize;
        Self {
            words: if words <= INLINE_WORDS {
                Words::Inline(Default::default())
            } else {
                Words::Boxed((0..words).map(|_| AtomicU64::new(0)).collect())
            },
            size,
            mask: positions - 1,
        }
    }

    /// W in packets; 0 if there is no anti-replay service.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// The 64-bit number of a packet that carries `low`, as appendix A2.2 of RFC 4303 infers
    /// it from the highest number received so far.
    ///
    /// Without anti-replay service there is no window to go by: the number nearest to `top`
    /// is taken.
    #[inline]
    pub(crate) fn infer(&self, top: u64, low: u32) -> Result<u64, ReplayRefusal> {
        let (top_high, top_low) = ((top >> 32) as u32, top as u32);
        if self.size == 0 {
            let distance = i64::from(low.wrapping_sub(top_low).cast_signed());
            let nearest = top.checked_add_signed(distance);
            return Ok(nearest.unwrap_or(u64::from(top_high) << 32 | u64::from(low)));
        }
        let bottom = top_low.wrapping_sub(self.size - 1);
        let high = if top_low >= self.size - 1 {
            // Case A: the window lies within one subspace of 2^32 numbers.
            if low >= bottom {
                top_high
            } else {
                top_high.checked_add(1).ok_or(ReplayRefusal::Beyond)?
            }
        } else if low >= bottom {
            // Case B: the window reaches back into the subspace before. Before the first one
            // there is none, so that the number is a jump ahead.
            top_high.saturating_sub(1)
        } else {
            top_high
        };
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// Of how many low halves, from that after `top` on, [`infer`](Self::infer) makes numbers
    /// in the subspace of `top`, which lie ahead of it; 0 if that takes a closer look.
    #[inline]
    pub(crate) fn ahead(&self, top: u64, esn: bool) -> u32 {
        let top_low = top as u32;
        match self.size {
            0 => 0,
            size if esn && top_low < size - 1 => u32::MAX - (size - 1),
            _ => u32::MAX - top_low,
        }
    }

    /// Whether the number may still be received, given the highest one so far.
    #[inline]
    pub(crate) fn judge(&self, top: u64, sequence: u64) -> Result<(), ReplayRefusal> {
        if self.size == 0 {
            return Ok(());
        }
        if sequence == 0 {
            return Err(ReplayRefusal::Zero);
        }
        if sequence > top {
            return Ok(());
        }
        if top - sequence >= u64::from(self.size) {
            return Err(ReplayRefusal::Old);
        }
        if self.is_marked(sequence) {
            return Err(ReplayRefusal::Seen);
        }
        Ok(())
    }

    /// Marks a number that was judged acceptable and returns the new top.
    #[inline]
    pub(crate) fn mark(&self, top: u64, sequence: u64) -> u64 {
        if self.size != 0 {
            if sequence > top && sequence - top > 1 {
                self.clear(top + 1, sequence - top - 1);
            }
            let (word, bit) = self.position(sequence);
            word.store(word.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
        }
        top.max(sequence)
    }

    /// The bits, if there is a window.
    #[inline]
    pub(crate) fn ring(&self) -> Option<Ring<'_>> {
        (self.size != 0).then(|| Ring {
            words: self.words(),
            mask: self.mask,
        })
    }

    /// Moves the window up to `sequence` without any number having been received.
    pub(crate) fn advance(&self, top: u64, sequence: u64) {
        self.clear(top + 1, sequence - top);
    }

    /// Marks every number, so that only numbers above top are acceptable.
    pub(crate) fn mark_all(&self) {
        for word in self.words() {
            word.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Whether the number, which must lie within the window, was received.
    #[inline]
    pub(crate) fn is_marked(&self, sequence: u64) -> bool {
        let (word, bit) = self.position(sequence);
        word.load(Ordering::Relaxed) & bit != 0
    }

    /// Clears `count` positions from that of `first` on.
    fn clear(&self, first: u64, count: u64) {
        if count > u64::from(self.mask) {
            for word in self.words() {
                word.store(0, Ordering::Relaxed);
            }
            return;
        }
        let mut first = first;
        let mut left = count;
        while left > 0 {
            let (word, bit) = self.position(first);
            let here = left.min(u64::from(u64::BITS) - first % u64::from(u64::BITS));
            let bits = (u64::MAX >> (u64::from(u64::BITS) - here)) * bit;
            word.store(word.load(Ordering::Relaxed) & !bits, Ordering::Relaxed);
            first = first.wrapping_add(here);
            left -= here;
        }
    }

    /// The word and the bit that stand for a number.
    #[inline]
    fn position(&self, sequence: u64) -> (&AtomicU64, u64) {
        let position = sequence as u32 & self.mask;
        let word = &self.words()[(position / u64::BITS) as usize];
        (word, 1 << (position % u64::BITS))
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        match &self.words {
            Words::Inline(words) => words,
            Words::Boxed(words) => words,
        }
    }
}

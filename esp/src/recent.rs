//! Whether the associations of a batch are likely to be in the caches.

use core::ptr;

use crate::association::EspSa;
use crate::engine::CHUNK;

/// Associations that are looked at of each chunk.
const SAMPLES: usize = 4;
/// Those that are remembered: of so many chunks, about what the second cache holds.
const REMEMBERED: usize = 512;
/// How many packets of associations that are not in the caches are in flight at once, if no others
/// follow them: the memory of the second half is fetched while the cipher works on the first.
const HALF: usize = CHUNK / 2;

/// Some of the associations that were used last, by their addresses.
#[derive(Debug)]
pub(crate) struct Recent {
    addresses: [usize; REMEMBERED],
}

impl Recent {
    pub(crate) const fn new() -> Self {
        Self {
            addresses: [0; REMEMBERED],
        }
    }

    /// How the packets that are left are cut: how many go next, and how many of those that follow
    /// should have their associations fetched meanwhile.
    ///
    /// `sa` is the association of each of the `len` packets.
    #[inline(always)]
    pub(crate) fn cut<'a>(
        &mut self,
        len: usize,
        sa: impl Fn(usize) -> Option<&'a EspSa>,
    ) -> (usize, usize) {
        let whole = len.min(CHUNK);
        if len <= HALF {
            return (whole, 0);
        }
        let mut unknown = 0;
        for sample in 0..SAMPLES {
            let Some(sa) = sa(sample * whole / SAMPLES) else {
                continue;
            };
            unknown += usize::from(self.note(sa));
        }
        if unknown < SAMPLES - 1 {
            (whole, 0)
        } else if len <= CHUNK {
            (HALF, len - HALF)
        } else {
            (CHUNK, (len - CHUNK).min(CHUNK))
        }
    }

    /// Remembers an association; whether it was not remembered.
    #[inline(always)]
    fn note(&mut self, sa: &EspSa) -> bool {
        let address = ptr::from_ref(sa).addr();
        // Associations are aligned to cache lines.
        let place =
            &mut self.addresses[(address / 64).wrapping_mul(0x9e37_79b1) >> 8 & (REMEMBERED - 1)];
        core::mem::replace(place, address) != address
    }
}

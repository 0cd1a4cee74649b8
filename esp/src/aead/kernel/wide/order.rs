//! Which packets are worked on together.

use super::super::packet::{LARGE, Packet, SPREAD};

/// Packets that are put in order together.
pub(super) const BATCH: usize = 64;

/// Packets by class.
pub(super) struct Order {
    indices: [u8; BATCH],
    /// Of the packets in order; `u8::MAX` beyond them.
    classes: [u8; BATCH + 4],
}

impl Order {
    /// At most [`BATCH`] packets.
    #[inline]
    pub(super) fn new(packets: &[Packet]) -> Self {
        let mut order = Self {
            indices: core::array::from_fn(|i| i as u8),
            classes: [u8::MAX; BATCH + 4],
        };
        let mut different = 0;
        let first = packets.first().map_or(0, |packet| packet.shape.class());
        for (class, packet) in order.classes.iter_mut().zip(packets) {
            *class = packet.shape.class();
            different |= packet.shape.class() ^ first;
        }
        if different != 0 {
            order.sort(packets.len());
        }
        order
    }

    /// Which packet is number `n`.
    #[inline(always)]
    pub(super) fn index(&self, n: usize) -> usize {
        usize::from(self.indices[n % BATCH])
    }

    /// Whether these are four packets with the same number of blocks.
    #[inline(always)]
    pub(super) fn even(&self, start: usize, end: usize) -> bool {
        end - start == 4 && self.classes[start] == self.classes[end - 1]
    }

    /// Where the group that begins at `start` ends: up to four packets that go together.
    #[inline(always)]
    pub(super) fn group_end(&self, start: usize, len: usize) -> usize {
        let first = self.classes[start];
        if first == LARGE {
            return start + 1;
        }
        let most = (first + SPREAD).min(LARGE - 1);
        if self.classes[start + 3] <= most {
            return start + 4;
        }
        let mut end = start + 1;
        while end < len && self.classes[end] <= most {
            end += 1;
        }
        end
    }

    /// Counts, then places.
    #[inline(never)]
    fn sort(&mut self, len: usize) {
        let mut places = [0u8; LARGE as usize + 1];
        for class in &self.classes[..len] {
            places[usize::from(*class)] += 1;
        }
        let mut sum = 0;
        for place in &mut places {
            sum += *place;
            *place = sum - *place;
        }
        let classes = self.classes;
        for (i, class) in classes[..len].iter().enumerate() {
            let place = &mut places[usize::from(*class)];
            self.indices[usize::from(*place)] = i as u8;
            self.classes[usize::from(*place)] = *class;
            *place += 1;
        }
    }
}

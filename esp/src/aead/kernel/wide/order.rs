//! Which packets are worked on together.

use super::super::packet::Packet;

/// Packets that are put in order together.
pub(super) const BATCH: usize = 64;
/// Blocks of text of a packet that can be one of a group.
const MOST_BLOCKS: usize = 20;
/// Blocks by which the packets of a group may differ.
const SPREAD: u8 = 3;
/// The class of packets that are worked on alone.
const LARGE: u8 = 3 * (MOST_BLOCKS as u8 + 1 + SPREAD);

/// Packets by class.
pub(super) struct Order {
    pub(super) indices: [u8; BATCH],
    classes: [u8; BATCH],
}

impl Order {
    #[inline]
    pub(super) fn new(packets: &[Packet]) -> Self {
        let mut order = Self {
            indices: core::array::from_fn(|i| i as u8),
            classes: [u8::MAX; BATCH],
        };
        let mut different = 0;
        let first = packets.first().map_or(0, class_of);
        for (class, packet) in order.classes.iter_mut().zip(packets) {
            *class = class_of(packet);
            different |= *class ^ first;
        }
        if different != 0 {
            order.sort(packets.len());
        }
        order
    }

    /// Whether the four packets from `start` on have the same number of blocks.
    #[inline]
    pub(super) fn even(&self, start: usize) -> bool {
        let Some(four) = self.classes[start..].first_chunk::<4>() else {
            return false;
        };
        u32::from_ne_bytes(*four) == u32::from(four[0]) * 0x0101_0101
    }

    /// Where the group that begins at `start` ends: up to four packets that go together.
    #[inline]
    pub(super) fn group_end(&self, start: usize, len: usize) -> usize {
        let first = self.classes[start];
        if first >= LARGE {
            return start + 1;
        }
        if self.even(start) && start + 4 <= len {
            return start + 4;
        }
        let most = (first + SPREAD).min(LARGE - 1);
        let mut end = start + 1;
        while end < len.min(start + 4) && self.classes[end] <= most {
            end += 1;
        }
        end
    }

    /// Counts, then places.
    fn sort(&mut self, len: usize) {
        let mut places = [0u8; 256];
        for class in &self.classes[..len] {
            places[usize::from(*class)] += 1;
        }
        let mut sum = 0;
        for place in &mut places[..=usize::from(LARGE)] {
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

/// Packets of neighbouring classes can be worked on together: the number of blocks, counted
/// from another start for each length of keys.
#[inline(always)]
fn class_of(packet: &Packet) -> u8 {
    let blocks = packet.len.div_ceil(16);
    if blocks > MOST_BLOCKS {
        LARGE
    } else {
        (packet.rounds as u8 / 2 - 5) * (MOST_BLOCKS as u8 + 1 + SPREAD) + blocks as u8
    }
}

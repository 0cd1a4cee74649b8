//! Packets in memory that is laid out as a vswitch lays out its own.

use vesper_esp::Buffer;

use crate::arena::Arena;

/// Bytes before a packet, as in a packet buffer of DPDK.
const HEADROOM: usize = 128;
/// Bytes for packet and tailroom, at least: what is usual.
const ROOM: usize = 2048;
/// Bytes of room behind a packet that is larger than usual.
const TAILROOM: usize = 64;

/// Offsets of a packet in its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// A packet in its slot.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    pub(super) memory: &'a mut [u8],
    pub(super) place: Place,
}

/// Slots for packets of these sizes, and where in them the packets begin.
pub(super) fn arena(sizes: &[usize]) -> (Arena, Vec<Place>) {
    let longest = sizes.iter().max().copied().unwrap_or(0);
    let room = HEADROOM + ROOM.max(longest + TAILROOM);
    let places = sizes.iter().map(|size| Place {
        start: HEADROOM,
        end: HEADROOM + size,
    });
    (Arena::new(0, vec![room; sizes.len()]), places.collect())
}

/// The packets.
pub(super) fn slots<'a>(arena: &'a mut Arena, places: &[Place]) -> impl Iterator<Item = Slot<'a>> {
    let slots = arena.packets().zip(places);
    slots.map(|(memory, &place)| Slot { memory, place })
}

impl Buffer for Slot<'_> {
    fn data(&self) -> &[u8] {
        &self.memory[self.place.start..self.place.end]
    }

    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.place.start..self.place.end]
    }

    fn grow_front(&mut self, bytes: usize) -> bool {
        match self.place.start.checked_sub(bytes) {
            Some(start) => {
                self.place.start = start;
                true
            }
            None => false,
        }
    }

    fn grow_back(&mut self, bytes: usize) -> bool {
        let end = self.place.end + bytes;
        let fits = end <= self.memory.len();
        if fits {
            self.place.end = end;
        }
        fits
    }

    fn trim_front(&mut self, bytes: usize) {
        self.place.start = (self.place.start + bytes).min(self.place.end);
    }

    fn trim_back(&mut self, bytes: usize) {
        self.place.end = self.place.end.saturating_sub(bytes).max(self.place.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_grow_and_shrink_within_bounds() {
        let mut memory = [0; 10];
        let place = Place { start: 4, end: 6 };
        let mut slot = Slot {
            memory: &mut memory,
            place,
        };
        assert!(!slot.grow_front(5) && !slot.grow_back(5));
        assert!(slot.grow_front(4) && slot.grow_back(4));
        assert_eq!(slot.data().len(), 10);
        slot.trim_front(3);
        slot.trim_back(3);
        assert_eq!((slot.place.start, slot.place.end), (3, 7));
        slot.trim_back(100);
        slot.trim_front(100);
        assert!(slot.data_mut().is_empty());
    }
}

//! A packet buffer as a vswitch has it: one pointer, lengths and bytes behind it.

use vesper_esp::Buffer;

/// Bytes before a frame, as in a packet buffer of DPDK.
const HEADROOM: usize = 128;
/// Bytes between the beginnings of a frame and of its packet.
const ETHERNET_HEADER: usize = 14;
/// Bytes of a buffer's memory.
const MEMORY: usize = 2176;

/// A packet buffer; moving it moves a pointer.
#[derive(Clone, Debug)]
pub(super) struct Mbuf(Box<Memory>);

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Memory {
    start: u32,
    end: u32,
    bytes: [u8; MEMORY],
}

impl Mbuf {
    /// Lent in full: all of its memory is its data.
    pub(super) fn empty() -> Self {
        Self(Box::new(Memory {
            start: 0,
            end: MEMORY as u32,
            bytes: [0; MEMORY],
        }))
    }

    /// Where its memory is, which tells it from all others.
    pub(super) fn address(&self) -> usize {
        (&raw const *self.0).addr()
    }

    /// Lends all of its memory again.
    pub(super) fn reset(&mut self) {
        (self.0.start, self.0.end) = (0, MEMORY as u32);
    }

    /// Holds a copy of this frame, which is at most 1,600 bytes long.
    pub(super) fn set(&mut self, frame: &[u8]) {
        self.set_at(HEADROOM, frame);
    }

    /// Holds a copy of this packet, where it is in a frame.
    pub(super) fn set_packet(&mut self, packet: &[u8]) {
        self.set_at(HEADROOM + ETHERNET_HEADER, packet);
    }

    fn set_at(&mut self, start: usize, data: &[u8]) {
        let end = start + data.len();
        self.0.bytes[start..end].copy_from_slice(data);
        (self.0.start, self.0.end) = (start as u32, end as u32);
    }
}

impl Buffer for Mbuf {
    #[inline]
    fn data(&self) -> &[u8] {
        &self.0.bytes[self.0.start as usize..self.0.end as usize]
    }

    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        let Memory { start, end, bytes } = &mut *self.0;
        &mut bytes[*start as usize..*end as usize]
    }

    #[inline]
    fn grow_front(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.0.start as usize;
        if fits {
            self.0.start -= bytes as u32;
        }
        fits
    }

    #[inline]
    fn grow_back(&mut self, bytes: usize) -> bool {
        let fits = bytes <= MEMORY - self.0.end as usize;
        if fits {
            self.0.end += bytes as u32;
        }
        fits
    }

    #[inline]
    fn trim_front(&mut self, bytes: usize) {
        let len = (self.0.end - self.0.start) as usize;
        self.0.start += bytes.min(len) as u32;
    }

    #[inline]
    fn trim_back(&mut self, bytes: usize) {
        let len = (self.0.end - self.0.start) as usize;
        self.0.end -= bytes.min(len) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_grow_and_shrink_within_bounds() {
        let mut buffer = Mbuf::empty();
        assert_eq!(buffer.data().len(), MEMORY);
        buffer.set(b"abc");
        assert!(!buffer.grow_front(HEADROOM + 1) && !buffer.grow_back(MEMORY));
        assert!(buffer.grow_front(1) && buffer.grow_back(1));
        assert_eq!(buffer.data(), b"\0abc\0");
        buffer.trim_front(2);
        buffer.trim_back(2);
        assert_eq!(buffer.data(), b"b");
        buffer.trim_back(9);
        assert!(buffer.data_mut().is_empty());
        buffer.reset();
        assert_eq!(buffer.data().len(), MEMORY);
    }
}

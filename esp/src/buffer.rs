//! Packet buffers belong to the caller: the trait that a vswitch implements on its own, and an
//! implementation on `bytes`.

use bytes::Bytes;

/// One packet in one contiguous, exclusively owned piece of memory, with room to grow at both
/// ends.
///
/// The engine works in place: what it decrypts must not be visible to anybody else, so an
/// implementation lends memory that it alone owns.
pub trait Buffer {
    /// The packet.
    fn data(&self) -> &[u8];

    /// The packet.
    fn data_mut(&mut self) -> &mut [u8];

    /// Adds `bytes` bytes of unspecified content in front; `false`, and nothing happened, if
    /// there is no room.
    #[must_use]
    fn grow_front(&mut self, bytes: usize) -> bool;

    /// Adds `bytes` bytes of unspecified content at the end; `false`, and nothing happened, if
    /// there is no room.
    #[must_use]
    fn grow_back(&mut self, bytes: usize) -> bool;

    /// Takes `bytes` bytes off the front; all of them if there are fewer.
    fn trim_front(&mut self, bytes: usize);

    /// Takes `bytes` bytes off the end; all of them if there are fewer.
    fn trim_back(&mut self, bytes: usize);
}

impl<B: Buffer + ?Sized> Buffer for &mut B {
    #[inline]
    fn data(&self) -> &[u8] {
        (**self).data()
    }

    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        (**self).data_mut()
    }

    #[inline]
    fn grow_front(&mut self, bytes: usize) -> bool {
        (**self).grow_front(bytes)
    }

    #[inline]
    fn grow_back(&mut self, bytes: usize) -> bool {
        (**self).grow_back(bytes)
    }

    #[inline]
    fn trim_front(&mut self, bytes: usize) {
        (**self).trim_front(bytes);
    }

    #[inline]
    fn trim_back(&mut self, bytes: usize) {
        (**self).trim_back(bytes);
    }
}

/// Asks for the memory of the beginning of a packet that will be looked at soon: its headers. A
/// hint, worth it where a batch comes from elsewhere, such as another processor.
#[inline]
pub fn prefetch(packet: &[u8]) {
    for offset in [0, 64, 128] {
        if offset < packet.len() {
            crate::aead::prefetch(packet, offset);
        }
    }
}

/// A packet with headroom and tailroom, in memory of its own. Small: it is moved often.
#[derive(Clone, Debug, Default)]
pub struct PacketBuf {
    storage: Box<[u8]>,
    /// Where the packet begins, and in the upper half where it ends: one word, since what is
    /// written in two halves and then moved as a whole waits for its way into the cache.
    place: u64,
}

impl PacketBuf {
    /// Headroom that suffices for every combination of outer IPv6, UDP, ESP header and IV.
    pub const HEADROOM: usize = 40 + 8 + 8 + 16;

    /// Tailroom that suffices for padding, trailer and ICV of every suite without traffic flow
    /// confidentiality padding.
    pub const TAILROOM: usize = 255 + 2 + 32;

    /// A copy of `packet` with [`Self::HEADROOM`] and [`Self::TAILROOM`].
    pub fn from_packet(packet: &[u8]) -> Self {
        Self::with_room(packet, Self::HEADROOM, Self::TAILROOM)
    }

    /// A copy of `packet` with this much room before and after it, in bytes.
    ///
    /// # Panics
    ///
    /// With 4 GiB or more altogether.
    pub fn with_room(packet: &[u8], headroom: usize, tailroom: usize) -> Self {
        let mut storage = vec![0; headroom + packet.len() + tailroom].into_boxed_slice();
        let packet_end = headroom + packet.len();
        storage[headroom..packet_end].copy_from_slice(packet);
        match Self::from_storage(storage, headroom..packet_end) {
            Some(buffer) => buffer,
            None => panic!("a packet buffer has less than 4 GiB"),
        }
    }

    /// Takes over `storage`; the packet is what lies in `packet`, the rest is room. `None` if
    /// the range is not inside, or the storage has 4 GiB or more.
    pub fn from_storage(storage: Box<[u8]>, packet: core::ops::Range<usize>) -> Option<Self> {
        u32::try_from(storage.len()).ok()?;
        (packet.start <= packet.end && packet.end <= storage.len()).then_some(Self {
            storage,
            place: place(packet.start, packet.end),
        })
    }

    /// Puts another packet into the same memory; `false`, and nothing happened, if it does not
    /// fit with the given headroom.
    #[must_use]
    pub fn refill(&mut self, packet: &[u8], headroom: usize) -> bool {
        let end = headroom.saturating_add(packet.len());
        let Some(room) = self.storage.get_mut(headroom..end) else {
            return false;
        };
        room.copy_from_slice(packet);
        self.place = place(headroom, end);
        true
    }

    #[inline]
    const fn start(&self) -> usize {
        self.place as u32 as usize
    }

    #[inline]
    const fn end(&self) -> usize {
        (self.place >> 32) as usize
    }

    /// The packet without a copy; the room around it is given up.
    pub fn into_bytes(self) -> Bytes {
        let range = self.start()..self.end();
        Bytes::from(self.storage).slice(range)
    }
}

impl Buffer for PacketBuf {
    #[inline]
    fn data(&self) -> &[u8] {
        &self.storage[self.start()..self.end()]
    }

    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.start(), self.end());
        &mut self.storage[start..end]
    }

    #[inline]
    fn grow_front(&mut self, bytes: usize) -> bool {
        let room = bytes <= self.start();
        if room {
            self.place -= place(bytes, 0);
        }
        room
    }

    #[inline]
    fn grow_back(&mut self, bytes: usize) -> bool {
        let room = bytes <= self.storage.len() - self.end();
        if room {
            self.place += place(0, bytes);
        }
        room
    }

    #[inline]
    fn trim_front(&mut self, bytes: usize) {
        self.place += place(bytes.min(self.end() - self.start()), 0);
    }

    #[inline]
    fn trim_back(&mut self, bytes: usize) {
        self.place -= place(0, bytes.min(self.end() - self.start()));
    }
}

/// Two places in a storage of less than 4 GiB.
#[inline]
const fn place(start: usize, end: usize) -> u64 {
    start as u64 | (end as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_stops_at_the_room_there_is() {
        let mut packet = PacketBuf::with_room(b"abc", 2, 1);
        assert!(!packet.grow_front(3));
        assert!(packet.grow_front(2));
        assert!(!packet.grow_back(2));
        assert!(packet.grow_back(1));
        assert_eq!(packet.data(), b"\0\0abc\0");
        packet.trim_front(2);
        packet.trim_back(1);
        assert_eq!(packet.data(), b"abc");
        packet.trim_back(9);
        assert_eq!(packet.data(), b"");
    }

    #[test]
    fn bytes_come_out_without_a_copy() {
        let packet = PacketBuf::with_room(b"abc", 5, 5);
        let address = packet.data().as_ptr();
        let bytes = packet.into_bytes();
        assert_eq!(&bytes[..], b"abc");
        assert_eq!(bytes.as_ptr(), address);
    }

    #[test]
    fn storage_is_checked() {
        assert!(PacketBuf::from_storage(Box::new([0; 4]), 1..4).is_some());
        assert!(PacketBuf::from_storage(Box::new([0; 4]), 1..5).is_none());
        let mut packet = PacketBuf::from_packet(b"abc");
        assert!(packet.refill(&[7; 100], PacketBuf::HEADROOM));
        assert_eq!(packet.data(), &[7; 100]);
        assert!(!packet.refill(&[7; 1000], PacketBuf::HEADROOM));
        assert_eq!(packet.data(), &[7; 100]);
    }
}

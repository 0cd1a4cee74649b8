//! A virtqueue as the front-end configures it, whatever its format.

use std::fs::File;

use super::memory::Memory;
use super::split::{Split, SplitView};

/// A descriptor, copied out of the guest's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    flags: u16,
    pub(super) next: u16,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

impl Descriptor {
    /// Out of its two words, as split rings have them.
    pub(super) const fn split(address: u64, rest: u64) -> Self {
        Self {
            address,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    /// Out of the bytes of an indirect table.
    pub(super) fn from_bytes(bytes: &[u8; 16]) -> Self {
        let whole = u128::from_le_bytes(*bytes);
        Self::split(whole as u64, (whole >> 64) as u64)
    }

    pub(super) const fn has_next(&self) -> bool {
        self.flags & NEXT != 0
    }

    pub(super) const fn is_indirect(&self) -> bool {
        self.flags & INDIRECT != 0
    }
}

/// One piece of a buffer in the guest's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) guest: u64,
    pub(super) len: u32,
}

/// The pieces of the chains in hand, all for reading or all for writing.
#[derive(Debug, Default)]
pub(super) struct Parts {
    parts: Vec<Part>,
    /// Heads of the chains and the bytes of each, for those that were ended.
    chains: Vec<(u16, usize)>,
    writable: bool,
    bytes: usize,
}

/// Pieces of one chain beyond which it is refused, and bytes of all chains in hand.
const MOST_PARTS: usize = 1024;
const MOST_BYTES: usize = 1 << 20;

impl Parts {
    /// Begins with chains that the device writes to, or reads from.
    pub(super) fn clear(&mut self, writable: bool) {
        self.parts.clear();
        self.chains.clear();
        self.bytes = 0;
        self.writable = writable;
    }

    /// `None` if the piece is for the other direction or has no bytes, or there are too many.
    pub(super) fn push(&mut self, descriptor: &Descriptor) -> Option<()> {
        let writable = descriptor.flags & WRITE != 0;
        let bytes = self.bytes + descriptor.len as usize;
        let fits = self.parts.len() < MOST_PARTS && bytes <= MOST_BYTES;
        if writable != self.writable || descriptor.len == 0 || !fits {
            return None;
        }
        self.bytes = bytes;
        self.parts.push(Part {
            guest: descriptor.address,
            len: descriptor.len,
        });
        Some(())
    }

    /// Whether the device writes to them.
    pub(super) const fn is_writable(&self) -> bool {
        self.writable
    }

    pub(super) fn as_slice(&self) -> &[Part] {
        &self.parts
    }

    /// Notes the head of a chain, and how many bytes its pieces have.
    pub(super) fn end_chain(&mut self, head: u16, bytes: usize) {
        self.chains.push((head, bytes));
    }

    /// The chains that were ended: heads and bytes.
    pub(super) fn chains(&self) -> &[(u16, usize)] {
        &self.chains
    }

    /// Bytes of all of them.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What the next entry of a ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// There is none.
    Empty,
    /// A chain with this head.
    Chain(u16),
    /// No usable chain; it can be given back.
    Malformed(u16),
}

/// A ring, with what the front-end has said about it so far.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Entries.
    pub(super) size: u16,
    /// Descriptors, available, used, as the front-end addresses them.
    pub(super) addresses: Option<[u64; 3]>,
    /// Where to begin.
    pub(super) base: u16,
    /// Told by the guest.
    pub(super) kick: Option<File>,
    /// Tells the guest.
    pub(super) call: Option<File>,
    /// Tells the front-end that the ring is broken.
    pub(super) error: Option<File>,
    /// The front-end has begun to use it.
    pub(super) started: bool,
    /// The guest uses it.
    pub(super) enabled: bool,
    /// The guest has broken it; it rests until it is started again.
    pub(super) broken: bool,
    /// Frames wait for buffers of the guest.
    pub(super) starved: bool,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub(super) event_idx: bool,
    position: Option<Split>,
}

impl Ring {
    /// Whether frames can pass.
    pub(super) const fn is_ready(&self) -> bool {
        self.started && self.enabled && !self.broken && self.addresses.is_some()
    }

    /// Ends its use. Returns where to go on.
    pub(super) fn stop(&mut self) -> u16 {
        if let Some(position) = self.position.take() {
            self.base = position.next_avail;
        }
        (self.started, self.broken, self.starved) = (false, false, false);
        (self.kick, self.call) = (None, None);
        self.base
    }

    /// The ring in the guest's memory, and where we stand in it; `None` if it is not in use or
    /// not where the front-end says.
    pub(super) fn open<'m>(&mut self, memory: &'m Memory) -> Option<(SplitView<'m>, Split)> {
        if !self.is_ready() {
            return None;
        }
        let view = SplitView::new(memory, self.addresses?, self.size, self.event_idx)?;
        let position = match self.position {
            Some(position) => position,
            None => {
                let mut position = Split::start(&view, self.base);
                position.notify(&view, false);
                position
            }
        };
        Some((view, position))
    }

    /// Keeps where we stand.
    pub(super) const fn keep(&mut self, position: Split) {
        self.position = Some(position);
    }

    /// Interrupts the guest.
    pub(super) fn interrupt(&self) {
        signal(self.call.as_ref());
    }

    /// Stops a ring that makes no sense, and tells the front-end.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
        signal(self.error.as_ref());
    }
}

/// Adds one to an eventfd. It does not block; a counter that is full has been told enough.
fn signal(event: Option<&File>) {
    if let Some(event) = event {
        let _ = rustix::io::write(event, &1u64.to_ne_bytes());
    }
}

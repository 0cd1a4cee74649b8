//! A split virtqueue (virtio 1.2 section 2.7), the device's side, made for polling: indices are
//! read once a visit, and what is done in a visit is published at its end.
//!
//! Everything in the three parts of the ring is the guest's to change at any time. An entry is
//! copied, checked and used, never read again. A chain that makes no sense is given back empty;
//! only an impossible index stops the ring.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, VolatileSlice};

use super::memory::Memory;
use super::ring::{Descriptor, Next, Parts};

/// Bytes of one descriptor.
const DESCRIPTOR: usize = 16;

/// How many chains before its turn a buffer is touched.
const AHEAD: u16 = 4;

/// `VIRTQ_USED_F_NO_NOTIFY`
const NO_NOTIFY: u16 = 1;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
const NO_INTERRUPT: u16 = 1;

/// Where a device stands in a split ring.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Split {
    /// The next entry of the available ring.
    pub(super) next_avail: u16,
    /// The next entry of the used ring.
    next_used: u16,
    /// How far the guest has been told.
    published: u16,
    /// Entries of the available ring that were seen, up to this index.
    seen: u16,
}

/// The three parts of a ring in the guest's memory.
#[derive(Debug)]
pub(super) struct SplitView<'m> {
    descriptors: VolatileSlice<'m>,
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    size: u16,
    event_idx: bool,
}

impl<'m> SplitView<'m> {
    /// `None` if a part is not in shared memory, or not aligned as it has to be.
    pub(super) fn new(
        memory: &'m Memory,
        [descriptors, available, used]: [u64; 3],
        size: u16,
        event_idx: bool,
    ) -> Option<Self> {
        let entries = usize::from(size);
        Some(Self {
            descriptors: memory.user_slice(descriptors, entries * DESCRIPTOR, 16)?,
            available: memory.user_slice(available, 6 + entries * 2, 2)?,
            used: memory.user_slice(used, 6 + entries * 8, 4)?,
            size,
            event_idx,
        })
    }

    // The views were made long enough, and the places below are inside and aligned: a failed
    // access reads as 0 or is lost, which harms nobody but the guest.

    fn load(&self, part: &VolatileSlice<'m>, at: usize, order: Ordering) -> u16 {
        u16::from_le(part.load(at, order).unwrap_or(0))
    }

    fn store(&self, at: usize, value: u16, order: Ordering) {
        let _ = self.used.store(value.to_le(), at, order);
    }

    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        let at = usize::from(index) * DESCRIPTOR;
        let address: u64 = self.descriptors.load(at, Ordering::Relaxed).ok()?;
        let rest: u64 = self.descriptors.load(at + 8, Ordering::Relaxed).ok()?;
        Some(Descriptor::split(u64::from_le(address), u64::from_le(rest)))
    }
}

impl Split {
    /// Goes on where a front-end says, or, if it is not where the used ring ends, there: what a
    /// former backend has taken, it has also completed.
    pub(super) fn start(view: &SplitView<'_>, base: u16) -> Self {
        let used = view.load(&view.used, 2, Ordering::Acquire);
        let next_avail = if used == base { base } else { used };
        Self {
            next_avail,
            next_used: used,
            published: used,
            seen: next_avail,
        }
    }

    /// Looks for what the guest has made available. `false` if its index is impossible.
    #[must_use]
    pub(super) fn look(&mut self, view: &SplitView<'_>) -> bool {
        self.seen = view.load(&view.available, 2, Ordering::Acquire);
        self.seen.wrapping_sub(self.next_avail) <= view.size
    }

    /// Takes the next chain, its parts into `parts`.
    pub(super) fn next(
        &mut self,
        view: &SplitView<'_>,
        memory: &Memory,
        parts: &mut Parts,
    ) -> Next {
        if self.next_avail == self.seen {
            return Next::Empty;
        }
        let at = 4 + 2 * usize::from(self.next_avail % view.size);
        let head = view.load(&view.available, at, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
        match walk(view, memory, head, parts) {
            Some(()) => Next::Chain(head),
            None => Next::Malformed(head),
        }
    }

    /// Brings what a later turn needs closer: the guest has written it on another processor, and
    /// a copy that waits for it waits for nothing else meanwhile. What is read here counts for
    /// nothing; when its turn comes, it is read and checked.
    #[inline]
    pub(super) fn touch(&self, view: &SplitView<'_>, memory: &Memory) {
        if self.seen.wrapping_sub(self.next_avail) <= AHEAD {
            return;
        }
        let ahead = self.next_avail.wrapping_add(AHEAD);
        let at = 4 + 2 * usize::from(ahead % view.size);
        let head = view.load(&view.available, at, Ordering::Relaxed);
        if let Some(descriptor) = view.descriptor(head) {
            memory.touch(descriptor.address);
        }
    }

    /// Says that the guest may have a chain back, with so many bytes written.
    pub(super) fn complete(&mut self, view: &SplitView<'_>, head: u16, written: u32) {
        let at = 4 + 8 * usize::from(self.next_used % view.size);
        let _ = view
            .used
            .store(u32::from(head).to_le(), at, Ordering::Relaxed);
        let _ = view.used.store(written.to_le(), at + 4, Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the guest what is complete. Returns whether it wants an interrupt for it.
    pub(super) fn publish(&mut self, view: &SplitView<'_>) -> bool {
        let old = self.published;
        if old == self.next_used {
            return false;
        }
        view.store(2, self.next_used, Ordering::Release);
        self.published = self.next_used;
        // The index must be out before the guest's wish is read: it does the reverse.
        fence(Ordering::SeqCst);
        if view.event_idx {
            let at = 4 + 2 * usize::from(view.size);
            let event = view.load(&view.available, at, Ordering::Relaxed);
            // Whether the event lies between the old index and the new one (section 2.7.10).
            let new = self.next_used;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            view.load(&view.available, 0, Ordering::Relaxed) & NO_INTERRUPT == 0
        }
    }

    /// Asks for kicks, or to be spared them. Returns whether the guest has made something
    /// available meanwhile, for which there will be no kick.
    pub(super) fn notify(&mut self, view: &SplitView<'_>, wanted: bool) -> bool {
        if view.event_idx {
            // Not wanted: the event stays behind.
            if wanted {
                let at = 4 + 8 * usize::from(view.size);
                view.store(at, self.next_avail, Ordering::Relaxed);
            }
        } else {
            let flags = if wanted { 0 } else { NO_NOTIFY };
            view.store(0, flags, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        wanted && view.load(&view.available, 2, Ordering::Acquire) != self.next_avail
    }
}

/// Collects the parts of a chain; `None` if it leaves the table, never ends, or names what is
/// not shared. A chain has at most as many descriptors as the ring.
fn walk(view: &SplitView<'_>, memory: &Memory, head: u16, parts: &mut Parts) -> Option<()> {
    let mut index = head;
    for _ in 0..view.size {
        let descriptor = view.descriptor(index)?;
        if descriptor.is_indirect() {
            return walk_indirect(view.size, memory, descriptor, parts);
        }
        parts.push(&descriptor)?;
        if !descriptor.has_next() {
            return Some(());
        }
        index = descriptor.next;
    }
    None
}

/// An indirect table ends the chain, and has no indirect tables itself (section 2.7.5.3.1).
fn walk_indirect(size: u16, memory: &Memory, table: Descriptor, parts: &mut Parts) -> Option<()> {
    let len = usize::try_from(table.len).ok()?;
    let entries = len / DESCRIPTOR;
    if table.has_next() || !len.is_multiple_of(DESCRIPTOR) || entries > usize::from(size) {
        return None;
    }
    let mut index = 0;
    for _ in 0..entries {
        if usize::from(index) >= entries {
            return None;
        }
        let at = table
            .address
            .checked_add(u64::from(index) * DESCRIPTOR as u64)?;
        let mut bytes = [0; DESCRIPTOR];
        if !memory.read(at, &mut bytes) {
            return None;
        }
        let descriptor = Descriptor::from_bytes(&bytes);
        if descriptor.is_indirect() {
            return None;
        }
        parts.push(&descriptor)?;
        if !descriptor.has_next() {
            return Some(());
        }
        index = descriptor.next;
    }
    None
}

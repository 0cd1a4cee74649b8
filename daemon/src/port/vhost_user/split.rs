//! A split virtqueue (virtio 1.2 section 2.7), the device's side, made for polling: indices are
//! read once a visit, and what is done in a visit is published at its end.
//!
//! The guest has written all of it on another processor. Who takes one chain after the other
//! waits for its cache lines each time; so the chains of a [`Window`] are looked at together, and
//! their buffers asked for, before the first is used.
//!
//! Everything in the three parts of the ring is the guest's to change at any time. An entry is
//! copied, checked and used, never read again. A chain that makes no sense is given back empty;
//! only an impossible index stops the ring.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, VolatileSlice};

use super::memory::{CACHE_LINE, Memory};
use super::ring::{Descriptor, Next, Parts};
use crate::port::sys::{prefetch_to_read, prefetch_to_write};

/// Bytes of one descriptor.
const DESCRIPTOR: usize = 16;

/// Bytes of an entry of the used ring.
const USED: usize = 8;

/// Chains that are looked at together.
const WINDOW: u16 = 32;

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

/// Chains whose first descriptors were copied ahead of their turn, in a visit to a ring.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Where in the available ring the first of them is.
    first: u16,
    /// Their heads; no descriptor where that is outside of the table.
    entries: Vec<(u16, Option<Descriptor>)>,
    /// How many are looked at together.
    most: u16,
}

impl Window {
    /// Begins a visit that may need so many chains. What another one has seen is forgotten.
    pub(super) fn begin(&mut self, chains: usize) {
        self.entries.clear();
        self.most = u16::try_from(chains).map_or(WINDOW, |chains| chains.clamp(1, WINDOW));
    }
}

/// The three parts of a ring in the guest's memory.
#[derive(Debug)]
pub(super) struct SplitView<'m> {
    descriptors: VolatileSlice<'m>,
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    size: u16,
    /// Of the indices in a ring, whose size is a power of two (section 2.7).
    mask: u16,
    event_idx: bool,
}

impl<'m> SplitView<'m> {
    /// `None` if a part is not in shared memory, or not aligned as it has to be, or the size is
    /// no power of two.
    pub(super) fn new(
        memory: &'m Memory,
        [descriptors, available, used]: [u64; 3],
        size: u16,
        event_idx: bool,
    ) -> Option<Self> {
        if !size.is_power_of_two() {
            return None;
        }
        let entries = usize::from(size);
        Some(Self {
            descriptors: memory.user_slice(descriptors, entries * DESCRIPTOR, 16)?,
            available: memory.user_slice(available, 6 + entries * 2, 2)?,
            used: memory.user_slice(used, 6 + entries * 8, 4)?,
            size,
            mask: size - 1,
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

    /// Asks for the lines of entries that come after a window which ends before this place of the
    /// available ring and had this descriptor last. Mostly descriptors are used in their order.
    fn prefetch_window(&self, next: u16, last: u16) {
        let available = 4 + 2 * usize::from(next & self.mask);
        prefetch_to_read(at(&self.available, available));
        let descriptors = usize::from(WINDOW.min(self.size)) * DESCRIPTOR;
        let first = usize::from(last.wrapping_add(1) & self.mask) * DESCRIPTOR;
        for line in (0..descriptors).step_by(CACHE_LINE) {
            prefetch_to_read(at(&self.descriptors, first + line));
        }
    }

    /// Asks for the lines of `count` entries of the used ring.
    fn prefetch_used(&self, next: u16, count: u16) {
        let first = 4 + USED * usize::from(next & self.mask);
        for line in (0..usize::from(count) * USED).step_by(CACHE_LINE) {
            prefetch_to_write(at(&self.used, first + line));
        }
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
    #[inline]
    pub(super) fn next(
        &mut self,
        view: &SplitView<'_>,
        memory: &Memory,
        window: &mut Window,
        parts: &mut Parts,
    ) -> Next {
        if self.next_avail == self.seen {
            return Next::Empty;
        }
        let index = usize::from(self.next_avail.wrapping_sub(window.first));
        let (head, first) = match window.entries.get(index) {
            Some(entry) => *entry,
            None => self.look_ahead(view, memory, window, parts.is_writable()),
        };
        self.next_avail = self.next_avail.wrapping_add(1);
        match walk(view, memory, first, parts) {
            Some(()) => Next::Chain(head),
            None => Next::Malformed(head),
        }
    }

    /// Reads the next chains' first descriptors and asks for their buffers. Returns the next one.
    fn look_ahead(
        &self,
        view: &SplitView<'_>,
        memory: &Memory,
        window: &mut Window,
        writes: bool,
    ) -> (u16, Option<Descriptor>) {
        let waiting = self.seen.wrapping_sub(self.next_avail);
        let count = waiting.min(window.most);
        window.first = self.next_avail;
        window.entries.clear();
        for step in 0..count {
            let entry = self.next_avail.wrapping_add(step) & view.mask;
            let at = 4 + 2 * usize::from(entry);
            let head = view.load(&view.available, at, Ordering::Relaxed);
            let descriptor = view.descriptor(head);
            if let Some(descriptor) = &descriptor {
                memory.prefetch(descriptor.address, writes);
            }
            window.entries.push((head, descriptor));
        }
        view.prefetch_used(self.next_used, count);
        if let Some((last, _)) = window.entries.last() {
            view.prefetch_window(self.next_avail.wrapping_add(count), *last);
        }
        window.entries.first().copied().unwrap_or_default()
    }

    /// Says that the guest may have a chain back, with so many bytes written.
    #[inline]
    pub(super) fn complete(&mut self, view: &SplitView<'_>, head: u16, written: u32) {
        let at = 4 + USED * usize::from(self.next_used & view.mask);
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
#[inline]
fn walk(
    view: &SplitView<'_>,
    memory: &Memory,
    first: Option<Descriptor>,
    parts: &mut Parts,
) -> Option<()> {
    let mut descriptor = first?;
    for _ in 0..view.size {
        if descriptor.is_indirect() {
            return walk_indirect(view.size, memory, descriptor, parts);
        }
        parts.push(&descriptor)?;
        if !descriptor.has_next() {
            return Some(());
        }
        descriptor = view.descriptor(descriptor.next)?;
    }
    None
}

/// Where a byte of a part of the ring is, to be asked for. It may be behind its end.
fn at(part: &VolatileSlice<'_>, byte: usize) -> *const u8 {
    part.ptr_guard().as_ptr().wrapping_add(byte)
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

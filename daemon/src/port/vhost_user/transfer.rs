//! Frames out of a guest's memory into our own buffers, and back. Nothing is ever encrypted or
//! decrypted in the guest's memory: it could change it, or watch.

use vesper_esp::Buffer;
use vm_memory::VolatileSlice;

use super::memory::Memory;
use super::ring::{Part, Parts};
use crate::port::virtio_net::{Allowed, HEADER_LEN, HEADERS, Header, Segmentation, Work};
use crate::port::{Incoming, Pool, append};

/// The shortest frame: an Ethernet header.
const SHORTEST: usize = 14;

/// Bytes of the header with the number of buffers, which all but the oldest guests have.
const LONG_HEADER: usize = HEADER_LEN + 2;

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Frames, whose bytes are so many.
    Frames(usize),
    /// There are not enough buffers; the chain stays.
    NoBuffers,
    /// It is no frame, or none that we carry.
    Malformed,
}

/// Copies the frame in a chain of the guest, finished, into buffers out of `pool`.
pub(super) fn take(
    memory: &Memory,
    parts: &Parts,
    header_len: usize,
    allowed: Allowed,
    pool: &mut Pool,
    into: &mut Vec<Incoming>,
) -> Taken {
    let Some(frame_len) = parts.bytes().checked_sub(header_len) else {
        return Taken::Malformed;
    };
    if frame_len < SHORTEST {
        return Taken::Malformed;
    }
    let mut source = Source::new(memory, parts.as_slice());
    let mut bytes = [0; HEADER_LEN];
    if !source.read(&mut bytes) || !source.skip(header_len - HEADER_LEN) {
        return Taken::Malformed;
    }
    let header = Header::parse(&bytes);
    let Some(work) = header.work(allowed) else {
        return Taken::Malformed;
    };
    if work == Work::Segments {
        return segment(source, &header, frame_len, pool, into);
    }
    if frame_len > pool.frame_capacity() {
        return Taken::Malformed;
    }
    let Some(mut buffer) = pool.take_for(frame_len) else {
        return Taken::NoBuffers;
    };
    let whole = source.read(buffer.data_mut())
        && (work == Work::None || header.finish_checksum(buffer.data_mut()));
    if !whole {
        pool.give(buffer);
        return Taken::Malformed;
    }
    append(into, buffer);
    Taken::Frames(frame_len)
}

fn segment(
    mut source: Source<'_>,
    header: &Header,
    frame_len: usize,
    pool: &mut Pool,
    into: &mut Vec<Incoming>,
) -> Taken {
    let mut headers = [0; HEADERS];
    let head = &mut headers[..frame_len.min(HEADERS)];
    // A reader of its own, since the payload begins somewhere within these bytes. Of what they
    // say only this copy counts.
    let mut peek = source.clone();
    if !peek.read(head) {
        return Taken::Malformed;
    }
    let Some(plan) = Segmentation::plan(header, head, frame_len) else {
        return Taken::Malformed;
    };
    if plan.longest() > pool.frame_capacity() || !source.skip(plan.header_len) {
        return Taken::Malformed;
    }
    if pool.free() < plan.count {
        return Taken::NoBuffers;
    }
    let before = into.len();
    let mut total = 0;
    for index in 0..plan.count {
        let len = plan.header_len + plan.payload(index).len();
        let Some(mut buffer) = pool.take_for(len) else {
            // A buffer of the wrong size was among them.
            take_back(into, before, pool);
            return Taken::NoBuffers;
        };
        let (repeated, payload) = buffer.data_mut().split_at_mut(plan.header_len);
        repeated.copy_from_slice(&headers[..plan.header_len]);
        if !source.read(payload) {
            pool.give(buffer);
            take_back(into, before, pool);
            return Taken::Malformed;
        }
        plan.finish(index, buffer.data_mut());
        total += len;
        append(into, buffer);
    }
    Taken::Frames(total)
}

fn take_back(into: &mut Vec<Incoming>, keep: usize, pool: &mut Pool) {
    for incoming in into.drain(keep..) {
        pool.give(incoming.frame);
    }
}

/// Copies a header and a frame into chains of the guest that have room for both; `false` if a
/// part of them is not shared.
#[must_use]
pub(super) fn put(memory: &Memory, parts: &[Part], header: &[u8], frame: &[u8]) -> bool {
    // Mostly the first part has room for all of it.
    if let Some(part) = parts.first()
        && part.len as usize >= header.len() + frame.len()
        && let Some(slice) = memory.slice(part.guest, header.len() + frame.len())
        && let Ok((first, second)) = slice.split_at(header.len())
    {
        // Of a length that is known here it is no call.
        match header.first_chunk::<LONG_HEADER>() {
            Some(header) => first.copy_from(header),
            None => first.copy_from(header),
        };
        second.copy_from(frame);
        return true;
    }
    let mut rest = [header, frame];
    let mut which = 0;
    for part in parts {
        let mut guest = part.guest;
        let mut room = part.len as usize;
        while room > 0 && which < rest.len() {
            let (now, later) = rest[which].split_at(room.min(rest[which].len()));
            if !memory.write(guest, now) {
                return false;
            }
            guest = guest.wrapping_add(now.len() as u64);
            room -= now.len();
            rest[which] = later;
            if later.is_empty() {
                which += 1;
            }
        }
    }
    which == rest.len()
}

/// Reads through the parts of a chain.
#[derive(Clone, Debug)]
struct Source<'a> {
    memory: &'a Memory,
    parts: std::slice::Iter<'a, Part>,
    /// What is in hand: bytes of one region ...
    piece: Option<VolatileSlice<'a>>,
    /// ... and what else its part has, in other regions.
    guest: u64,
    left: usize,
}

impl<'a> Source<'a> {
    fn new(memory: &'a Memory, parts: &'a [Part]) -> Self {
        Self {
            memory,
            parts: parts.iter(),
            piece: None,
            guest: 0,
            left: 0,
        }
    }

    /// So many bytes of one region, at least one; `None` if there are no more, or they are not
    /// shared.
    #[inline]
    fn take(&mut self, most: usize) -> Option<VolatileSlice<'a>> {
        let piece = match self.piece.take() {
            Some(piece) => piece,
            None => self.next_piece()?,
        };
        if piece.len() <= most {
            return Some(piece);
        }
        let (now, later) = piece.split_at(most).ok()?;
        self.piece = Some(later);
        Some(now)
    }

    fn next_piece(&mut self) -> Option<VolatileSlice<'a>> {
        if self.left == 0 {
            let part = self.parts.next()?;
            (self.guest, self.left) = (part.guest, part.len as usize);
        }
        let piece = self.memory.up_to(self.guest, self.left)?;
        self.guest = self.guest.wrapping_add(piece.len() as u64);
        self.left -= piece.len();
        Some(piece)
    }

    fn read(&mut self, mut into: &mut [u8]) -> bool {
        while !into.is_empty() {
            let Some(piece) = self.take(into.len()) else {
                return false;
            };
            let (now, later) = into.split_at_mut(piece.len());
            piece.copy_to(now);
            into = later;
        }
        true
    }

    fn skip(&mut self, mut bytes: usize) -> bool {
        while bytes > 0 {
            let Some(piece) = self.take(bytes) else {
                return false;
            };
            bytes -= piece.len();
        }
        true
    }
}

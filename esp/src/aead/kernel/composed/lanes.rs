//! Messages of different lengths in the lanes of a hash: as soon as one has ended the next takes
//! its lane.

use super::hasher::{Hasher, LANES, Word};
use super::hmac::{Hash, Message};
use crate::aead::kernel::wipe::{burn_stack, wipe};

/// Bytes in the longest block.
const BLOCK: usize = 128;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Aligned<T>(T);

/// The lanes, each with a message that is under way or with none.
///
/// Wiped when dropped: the states are as good as keys for whoever knows the messages.
pub(super) struct Lanes<H: Hasher> {
    states: Aligned<[[H::Word; 8]; LANES]>,
    /// The last block of each message, from where on it has been hashed followed by its padding.
    ends: Aligned<[[u8; 4 * BLOCK]; LANES]>,
    /// The blocks of the outer hash, which follow their digests.
    outer_blocks: Aligned<[[u8; BLOCK]; LANES]>,
    /// Of which messages these are, and how many there are.
    outer_of: [usize; LANES],
    outer_count: usize,
    lanes: [Lane; LANES],
    /// A block of the outer hash without its digest.
    outer: Aligned<[u8; BLOCK]>,
    hash: Hash,
}

/// Where a message is.
#[derive(Clone, Copy)]
struct Lane {
    message: Option<usize>,
    place: *const u8,
    /// Blocks that follow there.
    left: usize,
    /// Whether they are the last ones.
    at_end: bool,
}

const IDLE: Lane = Lane {
    message: None,
    place: core::ptr::null(),
    left: 0,
    at_end: false,
};

impl<H: Hasher> Lanes<H> {
    /// # Safety
    /// The CPU has the instructions of the hasher.
    pub(super) unsafe fn new(hash: Hash) -> Self {
        let mut outer = [0; BLOCK];
        outer[hash.digest_len()] = 0x80;
        let bits = 8 * (hash.block_len() + hash.digest_len()) as u64;
        outer[hash.block_len() - 8..hash.block_len()].copy_from_slice(&bits.to_be_bytes());
        Self {
            states: Aligned([[H::Word::default(); 8]; LANES]),
            ends: Aligned([[0; 4 * BLOCK]; LANES]),
            outer_blocks: Aligned([outer; LANES]),
            outer: Aligned(outer),
            outer_of: [0; LANES],
            outer_count: 0,
            lanes: [IDLE; LANES],
            hash,
        }
    }

    /// The digests of the messages. All have the hash that the lanes were made for; the last ones
    /// begin.
    pub(super) fn run(&mut self, messages: &[Message<'_>], digests: &mut [[u8; 32]]) {
        let mut waiting = messages.len();
        loop {
            let mut busy = 0;
            let mut count = usize::MAX;
            let mut place = core::ptr::null();
            for lane in 0..H::LANES {
                if self.lanes[lane].message.is_none() && waiting > 0 {
                    waiting -= 1;
                    self.begin(lane, waiting, messages);
                }
                if self.lanes[lane].message.is_some() {
                    busy += 1;
                    count = count.min(self.lanes[lane].left);
                    place = self.lanes[lane].place;
                }
            }
            if busy == 0 {
                break;
            }
            if busy < H::FULL {
                self.pairs(messages, digests);
                continue;
            }
            // Lanes without a message read what another reads.
            let places = self.lanes.each_ref().map(|lane| match lane.message {
                Some(_) => lane.place,
                None => place,
            });
            // SAFETY: the CPU has the instructions; each message has as many blocks as are left,
            // and those that end are blocks of `ends`.
            unsafe { H::all(&mut self.states.0, &places, count) };
            for lane in 0..H::LANES {
                self.advance(lane, count, messages, digests);
            }
        }
        self.outer(messages, digests);
    }

    /// The messages that are under way to their ends, two at a time.
    fn pairs(&mut self, messages: &[Message<'_>], digests: &mut [[u8; 32]]) {
        let mut first = 0;
        while let Some(one) = self.next_busy(first) {
            let other = self.next_busy(one + 1);
            first = other.unwrap_or(one) + 1;
            if let Some(other) = other {
                while self.lanes[one].message.is_some() && self.lanes[other].message.is_some() {
                    let pair = [one, other];
                    let count = self.lanes[one].left.min(self.lanes[other].left);
                    let mut states = pair.map(|lane| self.states.0[lane]);
                    let places = pair.map(|lane| self.lanes[lane].place);
                    // SAFETY: as in `run`.
                    unsafe { H::two(&mut states, places, count) };
                    for (lane, state) in pair.into_iter().zip(states) {
                        self.states.0[lane] = state;
                        self.advance(lane, count, messages, digests);
                    }
                }
            }
            for lane in [Some(one), other].into_iter().flatten() {
                while self.lanes[lane].message.is_some() {
                    let Lane { place, left, .. } = self.lanes[lane];
                    // SAFETY: as in `run`.
                    unsafe { H::one(&mut self.states.0[lane], place, left) };
                    self.advance(lane, left, messages, digests);
                }
            }
        }
    }

    fn next_busy(&self, first: usize) -> Option<usize> {
        (first..H::LANES).find(|lane| self.lanes[*lane].message.is_some())
    }

    #[inline]
    fn begin(&mut self, lane: usize, message: usize, messages: &[Message<'_>]) {
        let Message { key, text } = messages[message];
        self.states.0[lane] = key.inner();
        self.lanes[lane] = Lane {
            message: Some(message),
            place: text.as_ptr(),
            left: text.len() / H::BLOCK,
            at_end: false,
        };
        if self.lanes[lane].left == 0 {
            self.reach_end(lane, text);
        }
    }

    /// `count` blocks of the lane have been taken.
    #[inline]
    fn advance(
        &mut self,
        lane: usize,
        count: usize,
        messages: &[Message<'_>],
        digests: &mut [[u8; 32]],
    ) {
        let Some(message) = self.lanes[lane].message else {
            return;
        };
        let now = &mut self.lanes[lane];
        now.left -= count;
        now.place = now.place.wrapping_add(count * H::BLOCK);
        if now.left > 0 {
            return;
        }
        if !now.at_end {
            return self.reach_end(lane, messages[message].text);
        }
        *now = IDLE;
        let block = &mut self.outer_blocks.0[self.outer_count];
        let words = block.chunks_exact_mut(size_of::<H::Word>());
        for (word, place) in self.states.0[lane].into_iter().zip(words) {
            word.write(place);
        }
        // What is not part of the digest.
        let rest = self.hash.digest_len()..H::BLOCK / 2;
        if !rest.is_empty() {
            block[rest.clone()].copy_from_slice(&self.outer.0[rest]);
        }
        self.outer_of[self.outer_count] = message;
        self.outer_count += 1;
        if self.outer_count == H::LANES {
            self.outer(messages, digests);
        }
    }

    /// The last one or two blocks, with the padding of FIPS 180-4 section 5.1.
    #[inline]
    fn reach_end(&mut self, lane: usize, text: &[u8]) {
        let rest = text.len() % H::BLOCK;
        let ends = &mut self.ends.0[lane];
        // A whole block is copied, for how many bytes that is the compiler knows.
        match text.len().checked_sub(H::BLOCK) {
            Some(start) => ends[..H::BLOCK].copy_from_slice(&text[start..]),
            None => ends[H::BLOCK - rest..H::BLOCK].copy_from_slice(text),
        }
        ends[H::BLOCK..3 * H::BLOCK].fill(0);
        ends[H::BLOCK] = 0x80;
        let start = H::BLOCK - rest;
        // A length has an eighth of a block, of which no message here needs more than 8 bytes.
        let count = if rest < H::BLOCK - H::BLOCK / 8 { 1 } else { 2 };
        let end = start + count * H::BLOCK;
        let bits = 8 * (H::BLOCK + text.len()) as u64;
        ends[end - 8..end].copy_from_slice(&bits.to_be_bytes());
        self.lanes[lane].place = ends[start..].as_ptr();
        self.lanes[lane].left = count;
        self.lanes[lane].at_end = true;
    }

    /// The outer hashes of the digests that wait for them.
    #[inline]
    fn outer(&mut self, messages: &[Message<'_>], digests: &mut [[u8; 32]]) {
        let count = core::mem::take(&mut self.outer_count);
        let mut states = Aligned([[H::Word::default(); 8]; LANES]);
        for place in 0..count {
            states.0[place] = messages[self.outer_of[place]].key.outer();
        }
        let blocks = self.outer_blocks.0.each_ref().map(|block| block.as_ptr());
        if count >= H::FULL {
            // SAFETY: the CPU has the instructions; one block each.
            unsafe { H::all(&mut states.0, &blocks, 1) };
        } else {
            let (states, _) = states.0.as_chunks_mut();
            for (states, blocks) in states
                .iter_mut()
                .zip(blocks.as_chunks().0)
                .take(count.div_ceil(2))
            {
                // SAFETY: as before.
                unsafe { H::two(states, *blocks, 1) };
            }
        }
        for place in 0..count {
            let digest = &mut digests[self.outer_of[place]];
            let places = digest.chunks_exact_mut(size_of::<H::Word>());
            for (word, place) in states.0[place].into_iter().zip(places) {
                word.write(place);
            }
        }
        wipe(&mut states.0);
    }
}

impl<H: Hasher> Drop for Lanes<H> {
    fn drop(&mut self) {
        wipe(&mut self.states.0);
        wipe(&mut self.ends.0);
        wipe(&mut self.outer_blocks.0);
        burn_stack();
    }
}

//! ChaCha20 (RFC 8439 section 2.4) in sixteen lanes: sixteen blocks at a time, each with a key,
//! nonce, counter and place of its own.

mod avx2;
mod avx512;

use core::marker::PhantomData;

use super::Token;
use crate::aead::kernel::wipe::{burn_stack, wipe};

/// Blocks in one pass.
const LANES: usize = 16;

/// Bytes in a block.
pub(super) const BLOCK: usize = 64;

/// "expand 32-byte k": the first four words of every block.
const CONSTANTS: [i32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// A key as the words 4 to 11 of a block.
#[repr(C, align(32))]
pub(super) struct Key(pub(super) [u32; 8]);

static NO_KEY: Key = Key([0; 8]);

/// Blocks that wait until there are enough to fill the lanes.
///
/// The slices that [`Lanes::xor`] is given stay borrowed as long as the lanes exist; what they
/// hold is defined after [`Lanes::flush`].
#[repr(C, align(64))]
pub(super) struct Lanes<'a> {
    /// Words 4 to 15 of all blocks, kept here while the rounds need every register.
    initial: [[u32; LANES]; 12],
    /// Words 12 to 15: counter and nonce.
    tails: [[u32; 4]; LANES],
    masks: [u64; LANES],
    keys: [*const Key; LANES],
    places: [*mut u8; LANES],
    used: usize,
    token: Token,
    borrowed: PhantomData<(&'a Key, &'a mut [u8])>,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(token: Token) -> Self {
        Self {
            initial: [[0; LANES]; 12],
            tails: [[0; 4]; LANES],
            masks: [0; LANES],
            keys: [&raw const NO_KEY; LANES],
            places: [core::ptr::null_mut(); LANES],
            used: 0,
            token,
            borrowed: PhantomData,
        }
    }

    /// Adds the key stream of one block, or as much of it as `place` is long, to `place`.
    #[inline]
    pub(super) fn xor(&mut self, key: &'a Key, counter: u32, nonce: [u32; 3], place: &'a mut [u8]) {
        if self.used == LANES {
            self.flush();
        }
        let lane = self.used;
        self.keys[lane] = key;
        self.tails[lane] = [counter, nonce[0], nonce[1], nonce[2]];
        self.masks[lane] = match place.len() {
            BLOCK.. => u64::MAX,
            len => (1 << len) - 1,
        };
        self.places[lane] = place.as_mut_ptr();
        self.used += 1;
    }

    /// Works on the blocks that wait.
    pub(super) fn flush(&mut self) {
        if self.used == 0 {
            return;
        }
        let used = core::mem::take(&mut self.used);
        self.masks[used..].fill(0);
        // SAFETY: the token says what instructions the CPU has; keys and places are borrowed for
        // as long as `self` exists, and a mask has no more bits than its place has bytes. Lanes
        // left over from an earlier pass have an empty mask.
        unsafe {
            match self.token.avx512 {
                true => self.pass_512(),
                false => self.pass_256(used),
            }
        }
    }
}

impl Drop for Lanes<'_> {
    fn drop(&mut self) {
        wipe(&mut self.initial);
        if !self.token.avx512 {
            // Half as many registers as a block has words.
            burn_stack();
        }
    }
}

//! The hashes, and what of a CPU they run on: many messages side by side, or one or two at a time.

use core::arch::x86_64::*;

use sha2::block_api::{compress256, compress512};

use super::{sha1, sha2 as wide, sha256};
use crate::aead::kernel::wipe::Plain;
pub(super) use wide::LANES;

/// A state of SHA-1, which has five words, or SHA-256.
pub(super) type State = [u32; 8];

/// A word of a hash: 32 or 64 bits.
pub(super) trait Word: Copy + Default + Plain {
    /// From a word as keys have it.
    fn new(word: u64) -> Self;
    fn widened(self) -> u64;
    /// Writes its bytes, the first the most significant.
    fn write(self, to: &mut [u8]);
}

impl Word for u32 {
    #[inline(always)]
    fn new(word: u64) -> Self {
        word as Self
    }
    #[inline(always)]
    fn widened(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn write(self, to: &mut [u8]) {
        to.copy_from_slice(&self.to_be_bytes());
    }
}

impl Word for u64 {
    #[inline(always)]
    fn new(word: u64) -> Self {
        word
    }
    #[inline(always)]
    fn widened(self) -> u64 {
        self
    }
    #[inline(always)]
    fn write(self, to: &mut [u8]) {
        to.copy_from_slice(&self.to_be_bytes());
    }
}

/// A hash on some instructions.
///
/// # Safety
/// Every function needs the instructions that the type is made for; the caller vouches for
/// them, and that the places of all messages it asks for are valid for reads of `count` blocks.
pub(super) trait Hasher {
    /// What a state has eight of, and a block sixteen.
    type Word: Word;
    /// Messages that are under way together, at most [`LANES`].
    const LANES: usize;
    /// Bytes in a block.
    const BLOCK: usize = 16 * size_of::<Self::Word>();
    /// With fewer messages than this, each block by itself costs less than all lanes together.
    const FULL: usize;

    /// Takes blocks of each message into its state, in all lanes.
    unsafe fn all(states: &mut [[Self::Word; 8]; LANES], places: &[*const u8; LANES], count: usize);

    /// Takes blocks of one message into its state.
    unsafe fn one(state: &mut [Self::Word; 8], place: *const u8, count: usize);

    /// Takes blocks of two messages into their states.
    unsafe fn two(states: &mut [[Self::Word; 8]; 2], places: [*const u8; 2], count: usize) {
        for (state, place) in states.iter_mut().zip(places) {
            // SAFETY: as for this function.
            unsafe { Self::one(state, place, count) };
        }
    }
}

/// SHA-1 with the instructions for it.
pub(super) enum Sha1 {}
/// SHA-256 with the instructions for it.
pub(super) enum Sha256 {}
/// SHA-256 with the instructions for it, or in sixteen lanes of AVX-512.
pub(super) enum Sha256Avx512 {}
/// SHA-256 in eight lanes of AVX2.
pub(super) enum Sha256Avx2 {}
/// SHA-384 and SHA-512 in eight lanes of AVX-512.
pub(super) enum Sha512Avx512 {}
/// SHA-384 and SHA-512 in four lanes of AVX2.
pub(super) enum Sha512Avx2 {}

impl Hasher for Sha1 {
    type Word = u32;
    const LANES: usize = LANES;
    const FULL: usize = usize::MAX;

    unsafe fn all(states: &mut [State; LANES], places: &[*const u8; LANES], count: usize) {
        // SAFETY: as for this function.
        unsafe { pairs::<Self>(states, places, count) }
    }
    unsafe fn one(state: &mut State, place: *const u8, count: usize) {
        // SAFETY: as for this function.
        unsafe { sha1::compress(core::array::from_mut(state), [place], count) }
    }
    unsafe fn two(states: &mut [State; 2], places: [*const u8; 2], count: usize) {
        // SAFETY: as for this function.
        unsafe { sha1::compress(states, places, count) }
    }
}

impl Hasher for Sha256 {
    type Word = u32;
    const LANES: usize = LANES;
    const FULL: usize = usize::MAX;

    unsafe fn all(states: &mut [State; LANES], places: &[*const u8; LANES], count: usize) {
        // SAFETY: as for this function.
        unsafe { pairs::<Self>(states, places, count) }
    }
    unsafe fn one(state: &mut State, place: *const u8, count: usize) {
        // SAFETY: as for this function.
        unsafe { sha256::compress(core::array::from_mut(state), [place], count) }
    }
    unsafe fn two(states: &mut [State; 2], places: [*const u8; 2], count: usize) {
        // SAFETY: as for this function.
        unsafe { sha256::compress(states, places, count) }
    }
}

impl Hasher for Sha256Avx512 {
    type Word = u32;
    const LANES: usize = LANES;
    // Zen 4: 1010 cycles for a block in each of sixteen lanes, 65 for one of two streams.
    const FULL: usize = LANES - 1;

    unsafe fn all(states: &mut [State; LANES], places: &[*const u8; LANES], count: usize) {
        // SAFETY: as for this function.
        unsafe { wide::sha256x16(states, places, count) }
    }
    unsafe fn one(state: &mut State, place: *const u8, count: usize) {
        // SAFETY: as for this function.
        unsafe { Sha256::one(state, place, count) }
    }
    unsafe fn two(states: &mut [State; 2], places: [*const u8; 2], count: usize) {
        // SAFETY: as for this function.
        unsafe { Sha256::two(states, places, count) }
    }
}

impl Hasher for Sha256Avx2 {
    type Word = u32;
    const LANES: usize = 8;
    // Zen 4: 1000 cycles for a block in each of eight lanes.
    const FULL: usize = 3;

    unsafe fn all(states: &mut [State; LANES], places: &[*const u8; LANES], count: usize) {
        // SAFETY: as for this function.
        unsafe { wide::sha256x8(states, places, count) }
    }
    unsafe fn one(state: &mut State, place: *const u8, count: usize) {
        // SAFETY: so many blocks of 64 bytes.
        compress256(state, unsafe {
            core::slice::from_raw_parts(place.cast(), count)
        });
    }
}

impl Hasher for Sha512Avx512 {
    type Word = u64;
    const LANES: usize = 8;
    // Zen 4: 1240 cycles for a block in each of eight lanes.
    const FULL: usize = 3;

    unsafe fn all(states: &mut [[u64; 8]; LANES], places: &[*const u8; LANES], count: usize) {
        // SAFETY: as for this function.
        unsafe { wide::sha512x8(states, places, count) }
    }
    unsafe fn one(state: &mut [u64; 8], place: *const u8, count: usize) {
        // SAFETY: so many blocks of 128 bytes.
        compress512(state, unsafe {
            core::slice::from_raw_parts(place.cast(), count)
        });
    }
}

impl Hasher for Sha512Avx2 {
    type Word = u64;
    const LANES: usize = 4;
    // Zen 4: 1210 cycles for a block in each of four lanes.
    const FULL: usize = 3;

    unsafe fn all(states: &mut [[u64; 8]; LANES], places: &[*const u8; LANES], count: usize) {
        // SAFETY: as for this function.
        unsafe { wide::sha512x4(states, places, count) }
    }
    unsafe fn one(state: &mut [u64; 8], place: *const u8, count: usize) {
        // SAFETY: as for this function.
        unsafe { Sha512Avx512::one(state, place, count) }
    }
}

/// All lanes, two at a time.
///
/// # Safety
/// As for [`Hasher::all`].
unsafe fn pairs<H: Hasher>(
    states: &mut [[H::Word; 8]; LANES],
    places: &[*const u8; LANES],
    count: usize,
) {
    let (states, _) = states.as_chunks_mut();
    for (states, places) in states.iter_mut().zip(places.as_chunks().0) {
        // SAFETY: as for this function.
        unsafe { H::two(states, *places, count) };
    }
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load(words: &u128) -> __m128i {
    // SAFETY: 16 aligned bytes, of which any are valid.
    unsafe { _mm_load_si128((&raw const *words).cast()) }
}

/// The first and the last four words.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load_state(state: &State) -> [__m128i; 2] {
    let place = state.as_ptr().cast::<__m128i>();
    // SAFETY: two times 16 bytes, of which any are valid.
    unsafe { [_mm_loadu_si128(place), _mm_loadu_si128(place.add(1))] }
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn store_state(state: &mut State, [first, last]: [__m128i; 2]) {
    let place = state.as_mut_ptr().cast::<__m128i>();
    // SAFETY: two times 16 bytes.
    unsafe {
        _mm_storeu_si128(place, first);
        _mm_storeu_si128(place.add(1), last);
    }
}

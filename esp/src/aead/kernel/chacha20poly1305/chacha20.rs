//! ChaCha20 (RFC 8439 section 2.4) in sixteen lanes: sixteen blocks at a time, each with a key,
//! nonce, counter and place of its own.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;
use core::marker::PhantomData;

use zeroize::Zeroize;

use super::Avx512;

/// Blocks in one pass.
const LANES: usize = 16;

/// Bytes in a block.
pub(super) const BLOCK: usize = 64;

/// "expand 32-byte k": the first four words of every block.
const CONSTANTS: [i32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Four quarter rounds that do not depend on each other, step by step together. A macro, for
/// only with constant indices the words stay in registers.
macro_rules! quarter_rounds {
    ($x:ident: $([$a:literal, $b:literal, $c:literal, $d:literal])+) => {
        quarter_rounds!(@ $x: $([$a += $b, $d])+, 16);
        quarter_rounds!(@ $x: $([$c += $d, $b])+, 12);
        quarter_rounds!(@ $x: $([$a += $b, $d])+, 8);
        quarter_rounds!(@ $x: $([$c += $d, $b])+, 7);
    };
    (@ $x:ident: $([$to:literal += $from:literal, $by:literal])+, $distance:literal) => {
        $($x[$to] = _mm512_add_epi32($x[$to], $x[$from]);)+
        $($x[$by] = _mm512_xor_si512($x[$by], $x[$to]);)+
        $($x[$by] = _mm512_rol_epi32($x[$by], $distance);)+
    };
}

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
    token: Avx512,
    borrowed: PhantomData<(&'a Key, &'a mut [u8])>,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(token: Avx512) -> Self {
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
        self.masks[self.used..].fill(0);
        self.used = 0;
        let Avx512(..) = self.token;
        // SAFETY: the token proves that the CPU has the instructions; keys and places are
        // borrowed for as long as `self` exists, and a mask has no more bits than its place
        // has bytes. Lanes left over from an earlier pass have an empty mask.
        unsafe { self.pass() }
    }

    /// # Safety
    /// Every key is valid for reads, and every place for as many bytes as its mask has bits.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pass(&mut self) {
        let key_part = |lane: usize, part: usize| {
            // SAFETY: the caller vouches for the keys, which have two parts of 16 bytes.
            unsafe { _mm_load_si128(self.keys[lane].cast::<__m128i>().add(part)) }
        };
        // SAFETY: four words of `self`.
        let tail = |lane: usize| unsafe { _mm_loadu_si128((&raw const self.tails[lane]).cast()) };

        let constants = CONSTANTS.map(|constant| _mm512_set1_epi32(constant));
        // SAFETY: the caller vouches for the keys.
        let words = unsafe { &(*self.keys[0]).0 };
        let same =
            |part: usize| [0, 1, 2, 3].map(|word| _mm512_set1_epi32(words[4 * part + word] as i32));
        let (key_low, key_high) = if self.keys.iter().all(|key| *key == self.keys[0]) {
            (same(0), same(1))
        } else {
            (
                transpose_words(spread(|lane| key_part(lane, 0))),
                transpose_words(spread(|lane| key_part(lane, 1))),
            )
        };
        let tails = transpose_words(spread(tail));
        let mut x = [
            constants[0],
            constants[1],
            constants[2],
            constants[3], //
            key_low[0],
            key_low[1],
            key_low[2],
            key_low[3], //
            key_high[0],
            key_high[1],
            key_high[2],
            key_high[3], //
            tails[0],
            tails[1],
            tails[2],
            tails[3],
        ];
        for word in 4..16 {
            let place = &raw mut self.initial[word - 4];
            // SAFETY: 64 aligned bytes of `self`.
            unsafe { _mm512_store_si512(place.cast(), x[word]) };
        }
        // Otherwise the compiler keeps the initial state in registers and spills others.
        let initial = core::hint::black_box(&self.initial);

        for _ in 0..10 {
            quarter_rounds!(x: [0, 4, 8, 12] [1, 5, 9, 13] [2, 6, 10, 14] [3, 7, 11, 15]);
            quarter_rounds!(x: [0, 5, 10, 15] [1, 6, 11, 12] [2, 7, 8, 13] [3, 4, 9, 14]);
        }

        for word in 0..4 {
            x[word] = _mm512_add_epi32(x[word], constants[word]);
        }
        for word in 4..16 {
            // SAFETY: 64 aligned bytes of `self`.
            let words = unsafe { _mm512_load_si512((&raw const initial[word - 4]).cast()) };
            x[word] = _mm512_add_epi32(x[word], words);
        }
        let quarters = [
            transpose_words([x[0], x[1], x[2], x[3]]),
            transpose_words([x[4], x[5], x[6], x[7]]),
            transpose_words([x[8], x[9], x[10], x[11]]),
            transpose_words([x[12], x[13], x[14], x[15]]),
        ];
        for column in 0..4 {
            let blocks = transpose_quarters([
                quarters[0][column],
                quarters[1][column],
                quarters[2][column],
                quarters[3][column],
            ]);
            for row in 0..4 {
                let lane = 4 * row + column;
                let (mask, place) = (self.masks[lane], self.places[lane].cast::<i8>());
                // SAFETY: the caller vouches for the bytes of the mask, no others are touched.
                unsafe {
                    let text = _mm512_maskz_loadu_epi8(mask, place);
                    _mm512_mask_storeu_epi8(place, mask, _mm512_xor_si512(text, blocks[row]));
                }
            }
        }
    }
}

impl Drop for Lanes<'_> {
    fn drop(&mut self) {
        for words in &mut self.initial {
            words.zeroize();
        }
    }
}

/// The quarters of sixteen lanes: vector `j` has those of the lanes `j`, `4 + j`, `8 + j` and
/// `12 + j`.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread(quarter: impl Fn(usize) -> __m128i) -> [__m512i; 4] {
    let collect = |j: usize| {
        let vector = _mm512_broadcast_i32x4(quarter(j));
        let vector = _mm512_mask_broadcast_i32x4(vector, 0x00f0, quarter(4 + j));
        let vector = _mm512_mask_broadcast_i32x4(vector, 0x0f00, quarter(8 + j));
        _mm512_mask_broadcast_i32x4(vector, 0xf000, quarter(12 + j))
    };
    [collect(0), collect(1), collect(2), collect(3)]
}

/// Exchanges, in each quarter, the words of a vector with the vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_words([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let ab_low = _mm512_unpacklo_epi32(a, b);
    let ab_high = _mm512_unpackhi_epi32(a, b);
    let cd_low = _mm512_unpacklo_epi32(c, d);
    let cd_high = _mm512_unpackhi_epi32(c, d);
    [
        _mm512_unpacklo_epi64(ab_low, cd_low),
        _mm512_unpackhi_epi64(ab_low, cd_low),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Exchanges the quarters of a vector with the vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let ab_low = _mm512_shuffle_i32x4(a, b, 0x44);
    let ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
    let cd_low = _mm512_shuffle_i32x4(c, d, 0x44);
    let cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
    [
        _mm512_shuffle_i32x4(ab_low, cd_low, 0x88),
        _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd),
        _mm512_shuffle_i32x4(ab_high, cd_high, 0x88),
        _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd),
    ]
}

//! ChaCha20 (RFC 8439 section 2.4) in sixteen lanes: sixteen blocks at a time, each with a key,
//! nonce, counter and place of its own.

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

        let mut x = [_mm512_setzero_si512(); 16];
        for (word, constant) in CONSTANTS.into_iter().enumerate() {
            x[word] = _mm512_set1_epi32(constant);
        }
        let words = [
            transpose_words(spread(|lane| key_part(lane, 0))),
            transpose_words(spread(|lane| key_part(lane, 1))),
            transpose_words(spread(tail)),
        ];
        for (index, word) in words.into_iter().flatten().enumerate() {
            x[4 + index] = word;
            // SAFETY: 64 aligned bytes of `self`.
            unsafe { _mm512_store_si512((&raw mut self.initial[index]).cast(), word) };
        }
        // Otherwise the compiler keeps the initial state in registers and spills others.
        let initial = core::hint::black_box(&self.initial);

        for _ in 0..10 {
            double_round(&mut x);
        }

        for (word, constant) in CONSTANTS.into_iter().enumerate() {
            x[word] = _mm512_add_epi32(x[word], _mm512_set1_epi32(constant));
        }
        for (index, words) in initial.iter().enumerate() {
            // SAFETY: 64 aligned bytes of `self`.
            let words = unsafe { _mm512_load_si512((&raw const *words).cast()) };
            x[4 + index] = _mm512_add_epi32(x[4 + index], words);
        }
        let quarters = [
            transpose_words([x[0], x[1], x[2], x[3]]),
            transpose_words([x[4], x[5], x[6], x[7]]),
            transpose_words([x[8], x[9], x[10], x[11]]),
            transpose_words([x[12], x[13], x[14], x[15]]),
        ];
        for column in 0..4 {
            let blocks = transpose_quarters(quarters.map(|quarter| quarter[column]));
            for (row, block) in blocks.into_iter().enumerate() {
                let lane = 4 * row + column;
                let (mask, place) = (self.masks[lane], self.places[lane].cast::<i8>());
                // SAFETY: the caller vouches for the bytes of the mask, no others are touched.
                unsafe {
                    let text = _mm512_maskz_loadu_epi8(mask, place);
                    _mm512_mask_storeu_epi8(place, mask, _mm512_xor_si512(text, block));
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
    core::array::from_fn(|j| {
        let vector = _mm512_broadcast_i32x4(quarter(j));
        let vector = _mm512_mask_broadcast_i32x4(vector, 0x00f0, quarter(4 + j));
        let vector = _mm512_mask_broadcast_i32x4(vector, 0x0f00, quarter(8 + j));
        _mm512_mask_broadcast_i32x4(vector, 0xf000, quarter(12 + j))
    })
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

#[inline]
#[target_feature(enable = "avx512f")]
fn double_round(x: &mut [__m512i; 16]) {
    four_quarter_rounds(x, [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]);
    four_quarter_rounds(x, [0, 1, 2, 3], [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]);
}

/// Quarter rounds that do not depend on each other, step by step together.
#[inline]
#[target_feature(enable = "avx512f")]
fn four_quarter_rounds(
    x: &mut [__m512i; 16],
    a: [usize; 4],
    b: [usize; 4],
    c: [usize; 4],
    d: [usize; 4],
) {
    macro_rules! step {
        ($to:ident += $from:ident, $by:ident <<<= $distance:literal) => {
            for i in 0..4 {
                x[$to[i]] = _mm512_add_epi32(x[$to[i]], x[$from[i]]);
            }
            for i in 0..4 {
                x[$by[i]] = _mm512_xor_si512(x[$by[i]], x[$to[i]]);
            }
            for i in 0..4 {
                x[$by[i]] = _mm512_rol_epi32(x[$by[i]], $distance);
            }
        };
    }
    step!(a += b, d <<<= 16);
    step!(c += d, b <<<= 12);
    step!(a += b, d <<<= 8);
    step!(c += d, b <<<= 7);
}

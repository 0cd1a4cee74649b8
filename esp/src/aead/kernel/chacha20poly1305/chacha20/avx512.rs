//! With AVX-512: a word of sixteen blocks in a register.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;

use super::{CONSTANTS, Lanes};

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

impl Lanes<'_> {
    /// # Safety
    /// Every key is valid for reads, and every place for as many bytes as its mask has bits.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn pass_512(&mut self) {
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

//! The words of SHA-256 and SHA-512 in vectors of AVX-512 and of AVX2.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;

use super::{LANES, ROUNDS_256, ROUNDS_512, STATE, Vector, WORDS};

/// Where each byte of a vector comes from when the bytes of its words are reversed.
static REVERSE_32: [u128; 4] = [0x0c0d_0e0f_0809_0a0b_0405_0607_0001_0203; 4];
static REVERSE_64: [u128; 4] = [0x0809_0a0b_0c0d_0e0f_0001_0203_0405_0607; 4];

macro_rules! vector {
    ($(#[$doc:meta])* $name:ident($vector:ty), [$word:ty; $lanes:literal], $features:literal,
     $rounds:ident, $splat:ident, $add:ident,
     |$x:ident, $y:ident, $z:ident| $choose:expr, $majority:expr, $xor:expr,
     $rotate:ident, $shift:ident, [$($upper_0:literal),+], [$($upper_1:literal),+],
     [$($lower_0:literal),+; $shift_0:literal], [$($lower_1:literal),+; $shift_1:literal],
     $collect:ident, $spread:ident, $transpose:ident, $loadu:ident, $shuffle:ident, $reverse:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name($vector);

        impl Vector for $name {
            type Word = $word;
            const ROUNDS: &'static [$word] = &$rounds;

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn load(states: &[[$word; STATE]; LANES]) -> [Self; STATE] {
                let places = states.each_ref().map(|state| state.as_ptr().cast());
                let mut words = [Self($splat(0)); STATE];
                for part in 0..STATE / Self::ROWS {
                    // SAFETY: 16 bytes of each state.
                    let rows = unsafe { Self::rows(&places, 16 * part) };
                    for (row, vector) in $transpose(rows).into_iter().enumerate() {
                        words[part * Self::ROWS + row] = Self(vector);
                    }
                }
                words
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn store(words: [Self; STATE], states: &mut [[$word; STATE]; LANES]) {
                let places = states.each_mut().map(|state| state.as_mut_ptr().cast());
                for part in 0..STATE / Self::ROWS {
                    let rows = core::array::from_fn(|row| words[part * Self::ROWS + row].0);
                    for (row, vector) in $transpose(rows).into_iter().enumerate() {
                        // SAFETY: 16 bytes of each state.
                        unsafe { $spread::<{ 16 / size_of::<$word>() }>(vector, &places, row, 16 * part) };
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn block(places: &[*const u8; LANES], offset: usize) -> [Self; WORDS] {
                // SAFETY: as long as the longest vector.
                let reverse = unsafe { $loadu($reverse.as_ptr().cast()) };
                let mut words = [Self($splat(0)); WORDS];
                for part in 0..WORDS / Self::ROWS {
                    // SAFETY: 16 bytes of each block.
                    let rows = unsafe { Self::rows(places, offset + 16 * part) };
                    let rows = rows.map(|row| $shuffle(row, reverse));
                    for (row, vector) in $transpose(rows).into_iter().enumerate() {
                        words[part * Self::ROWS + row] = Self(vector);
                    }
                }
                words
            }

            #[inline(always)]
            unsafe fn splat(word: $word) -> Self {
                // SAFETY: the caller vouches for the instructions.
                Self(unsafe { $splat(word.cast_signed()) })
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                Self(unsafe { $add(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn choose(self, one: Self, zero: Self) -> Self {
                let ($x, $y, $z) = (self.0, one.0, zero.0);
                // SAFETY: the caller vouches for the instructions.
                Self(unsafe { $choose })
            }
            #[inline(always)]
            unsafe fn majority(self, second: Self, third: Self) -> Self {
                let ($x, $y, $z) = (self.0, second.0, third.0);
                // SAFETY: the caller vouches for the instructions.
                Self(unsafe { $majority })
            }
            #[inline(always)]
            unsafe fn upper_0(self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                let [$x, $y, $z] = unsafe { [$($rotate::<$upper_0>(self.0)),+] };
                // SAFETY: likewise.
                Self(unsafe { $xor })
            }
            #[inline(always)]
            unsafe fn upper_1(self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                let [$x, $y, $z] = unsafe { [$($rotate::<$upper_1>(self.0)),+] };
                // SAFETY: likewise.
                Self(unsafe { $xor })
            }
            #[inline(always)]
            unsafe fn lower_0(self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                let [$x, $y] = unsafe { [$($rotate::<$lower_0>(self.0)),+] };
                // SAFETY: likewise.
                let $z = unsafe { $shift::<$shift_0>(self.0) };
                // SAFETY: likewise.
                Self(unsafe { $xor })
            }
            #[inline(always)]
            unsafe fn lower_1(self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                let [$x, $y] = unsafe { [$($rotate::<$lower_1>(self.0)),+] };
                // SAFETY: likewise.
                let $z = unsafe { $shift::<$shift_1>(self.0) };
                // SAFETY: likewise.
                Self(unsafe { $xor })
            }
        }

        impl $name {
            /// Words in 16 bytes.
            const ROWS: usize = 16 / size_of::<$word>();

            /// 16 bytes from each place, at the offset: those of lane `r` first in row `r`.
            ///
            /// # Safety
            /// They are valid for reads.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn rows(
                places: &[*const u8; LANES],
                offset: usize,
            ) -> [$vector; 16 / size_of::<$word>()] {
                // SAFETY: the caller vouches for the bytes.
                core::array::from_fn(|row| unsafe {
                    $collect::<{ 16 / size_of::<$word>() }>(places, row, offset)
                })
            }
        }
    };
}

vector! {
    /// SHA-256 with AVX-512.
    Words32x16(__m512i), [u32; 16], "avx512f,avx512bw",
    ROUNDS_256, _mm512_set1_epi32, _mm512_add_epi32,
    |x, y, z| _mm512_ternarylogic_epi32(x, y, z, 0xca),
    _mm512_ternarylogic_epi32(x, y, z, 0xe8),
    _mm512_ternarylogic_epi32(x, y, z, 0x96),
    _mm512_ror_epi32, shift_32x16,
    [2, 13, 22], [6, 11, 25], [7, 18; 3], [17, 19; 10],
    collect_512, spread_512, transpose_32x16, _mm512_loadu_si512, _mm512_shuffle_epi8, REVERSE_32
}

vector! {
    /// SHA-512 with AVX-512.
    Words64x8(__m512i), [u64; 8], "avx512f,avx512bw",
    ROUNDS_512, _mm512_set1_epi64, _mm512_add_epi64,
    |x, y, z| _mm512_ternarylogic_epi64(x, y, z, 0xca),
    _mm512_ternarylogic_epi64(x, y, z, 0xe8),
    _mm512_ternarylogic_epi64(x, y, z, 0x96),
    _mm512_ror_epi64, shift_64x8,
    [28, 34, 39], [14, 18, 41], [1, 8; 7], [19, 61; 6],
    collect_512, spread_512, transpose_64x8, _mm512_loadu_si512, _mm512_shuffle_epi8, REVERSE_64
}

vector! {
    /// SHA-256 with AVX2.
    Words32x8(__m256i), [u32; 8], "avx2",
    ROUNDS_256, _mm256_set1_epi32, _mm256_add_epi32,
    |x, y, z| _mm256_xor_si256(z, _mm256_and_si256(x, _mm256_xor_si256(y, z))),
    majority(x, y, z),
    _mm256_xor_si256(_mm256_xor_si256(x, y), z),
    rotate_32x8, shift_32x8,
    [2, 13, 22], [6, 11, 25], [7, 18; 3], [17, 19; 10],
    collect_256, spread_256, transpose_32x8, _mm256_loadu_si256, _mm256_shuffle_epi8, REVERSE_32
}

vector! {
    /// SHA-512 with AVX2.
    Words64x4(__m256i), [u64; 4], "avx2",
    ROUNDS_512, _mm256_set1_epi64x, _mm256_add_epi64,
    |x, y, z| _mm256_xor_si256(z, _mm256_and_si256(x, _mm256_xor_si256(y, z))),
    majority(x, y, z),
    _mm256_xor_si256(_mm256_xor_si256(x, y), z),
    rotate_64x4, shift_64x4,
    [28, 34, 39], [14, 18, 41], [1, 8; 7], [19, 61; 6],
    collect_256, spread_256, transpose_64x4, _mm256_loadu_si256, _mm256_shuffle_epi8, REVERSE_64
}

#[inline]
#[target_feature(enable = "avx512f")]
fn shift_32x16<const BY: i32>(x: __m512i) -> __m512i {
    _mm512_srl_epi32(x, _mm_cvtsi32_si128(BY))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn shift_64x8<const BY: i32>(x: __m512i) -> __m512i {
    _mm512_srl_epi64(x, _mm_cvtsi32_si128(BY))
}

#[inline]
#[target_feature(enable = "avx2")]
fn shift_32x8<const BY: i32>(x: __m256i) -> __m256i {
    _mm256_srli_epi32(x, BY)
}

#[inline]
#[target_feature(enable = "avx2")]
fn shift_64x4<const BY: i32>(x: __m256i) -> __m256i {
    _mm256_srli_epi64(x, BY)
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate_32x8<const BY: i32>(x: __m256i) -> __m256i {
    let up = _mm256_sll_epi32(x, _mm_cvtsi32_si128(32 - BY));
    _mm256_or_si256(_mm256_srli_epi32(x, BY), up)
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate_64x4<const BY: i32>(x: __m256i) -> __m256i {
    let up = _mm256_sll_epi64(x, _mm_cvtsi32_si128(64 - BY));
    _mm256_or_si256(_mm256_srli_epi64(x, BY), up)
}

#[inline]
#[target_feature(enable = "avx2")]
fn majority(x: __m256i, y: __m256i, z: __m256i) -> __m256i {
    let either = _mm256_or_si256(y, z);
    _mm256_or_si256(_mm256_and_si256(x, either), _mm256_and_si256(y, z))
}

/// 16 bytes from the places of lane `row` and every `ROWS`th after it, at the offset.
///
/// # Safety
/// They are valid for reads.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn collect_512<const ROWS: usize>(
    places: &[*const u8; LANES],
    row: usize,
    offset: usize,
) -> __m512i {
    // SAFETY: the caller vouches for the bytes.
    let [first, second, third, fourth] = unsafe {
        [
            _mm_loadu_si128(places[row].wrapping_add(offset).cast()),
            _mm_loadu_si128(places[row + ROWS].wrapping_add(offset).cast()),
            _mm_loadu_si128(places[row + 2 * ROWS].wrapping_add(offset).cast()),
            _mm_loadu_si128(places[row + 3 * ROWS].wrapping_add(offset).cast()),
        ]
    };
    let vector = _mm512_broadcast_i32x4(first);
    let vector = _mm512_mask_broadcast_i32x4(vector, 0x00f0, second);
    let vector = _mm512_mask_broadcast_i32x4(vector, 0x0f00, third);
    _mm512_mask_broadcast_i32x4(vector, 0xf000, fourth)
}

/// Likewise, for half as many lanes.
///
/// # Safety
/// They are valid for reads.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn collect_256<const ROWS: usize>(
    places: &[*const u8; LANES],
    row: usize,
    offset: usize,
) -> __m256i {
    // SAFETY: the caller vouches for the bytes.
    let [first, second] = unsafe {
        [
            _mm_loadu_si128(places[row].wrapping_add(offset).cast()),
            _mm_loadu_si128(places[row + ROWS].wrapping_add(offset).cast()),
        ]
    };
    _mm256_set_m128i(second, first)
}

/// The reverse of [`collect_512`].
///
/// # Safety
/// The bytes are valid for writes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn spread_512<const ROWS: usize>(
    vector: __m512i,
    places: &[*mut u8; LANES],
    row: usize,
    offset: usize,
) {
    let quarters = [
        _mm512_castsi512_si128(vector),
        _mm512_extracti32x4_epi32(vector, 1),
        _mm512_extracti32x4_epi32(vector, 2),
        _mm512_extracti32x4_epi32(vector, 3),
    ];
    for (index, quarter) in quarters.into_iter().enumerate() {
        let place = places[row + ROWS * index].wrapping_add(offset);
        // SAFETY: the caller vouches for the bytes.
        unsafe { _mm_storeu_si128(place.cast(), quarter) };
    }
}

/// The reverse of [`collect_256`].
///
/// # Safety
/// The bytes are valid for writes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn spread_256<const ROWS: usize>(
    vector: __m256i,
    places: &[*mut u8; LANES],
    row: usize,
    offset: usize,
) {
    let halves = [
        _mm256_castsi256_si128(vector),
        _mm256_extracti128_si256(vector, 1),
    ];
    for (index, half) in halves.into_iter().enumerate() {
        let place = places[row + ROWS * index].wrapping_add(offset);
        // SAFETY: the caller vouches for the bytes.
        unsafe { _mm_storeu_si128(place.cast(), half) };
    }
}

/// Exchanges, in each 16 bytes, the words of a vector with the vectors. It is its own reverse.
macro_rules! transpose {
    ($name_32:ident, $name_64:ident, $vector:ty, $features:literal,
     $low_32:ident, $high_32:ident, $low_64:ident, $high_64:ident) => {
        #[inline]
        #[target_feature(enable = $features)]
        fn $name_32([a, b, c, d]: [$vector; 4]) -> [$vector; 4] {
            let (ab, cd) = ($low_32(a, b), $low_32(c, d));
            let (ab_high, cd_high) = ($high_32(a, b), $high_32(c, d));
            [
                $low_64(ab, cd),
                $high_64(ab, cd),
                $low_64(ab_high, cd_high),
                $high_64(ab_high, cd_high),
            ]
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn $name_64([a, b]: [$vector; 2]) -> [$vector; 2] {
            [$low_64(a, b), $high_64(a, b)]
        }
    };
}

transpose! {
    transpose_32x16, transpose_64x8, __m512i, "avx512f",
    _mm512_unpacklo_epi32, _mm512_unpackhi_epi32, _mm512_unpacklo_epi64, _mm512_unpackhi_epi64
}
transpose! {
    transpose_32x8, transpose_64x4, __m256i, "avx2",
    _mm256_unpacklo_epi32, _mm256_unpackhi_epi32, _mm256_unpacklo_epi64, _mm256_unpackhi_epi64
}

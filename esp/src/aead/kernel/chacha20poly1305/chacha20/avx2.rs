//! With AVX2: a word of eight blocks in a register.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;

use super::{BLOCK, CONSTANTS, LANES, Lanes};

/// Blocks in a register.
const HALF: usize = LANES / 2;

/// As in [`avx512`](super::avx512); bytes are moved where that rotates.
macro_rules! quarter_rounds {
    ($x:ident, $by:ident: $([$a:literal, $b:literal, $c:literal, $d:literal])+) => {
        quarter_rounds!(@ $x: $([$a += $b, $d])+, |x| _mm256_shuffle_epi8(x, $by[0]));
        quarter_rounds!(@ $x: $([$c += $d, $b])+, |x| rotate::<12, 20>(x));
        quarter_rounds!(@ $x: $([$a += $b, $d])+, |x| _mm256_shuffle_epi8(x, $by[1]));
        quarter_rounds!(@ $x: $([$c += $d, $b])+, |x| rotate::<7, 25>(x));
    };
    (@ $x:ident: $([$to:literal += $from:literal, $by:literal])+, |$word:ident| $rotated:expr) => {
        $($x[$to] = _mm256_add_epi32($x[$to], $x[$from]);)+
        $($x[$by] = _mm256_xor_si256($x[$by], $x[$to]);)+
        $($x[$by] = { let $word = $x[$by]; $rotated };)+
    };
}

impl Lanes<'_> {
    /// The first `used` lanes.
    ///
    /// # Safety
    /// Every key is valid for reads, and every place for as many bytes as its mask has bits.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn pass_256(&mut self, used: usize) {
        for first in (0..used).step_by(HALF) {
            // SAFETY: as for this function.
            unsafe { self.half_pass(first) };
        }
    }

    /// Eight lanes from the first of them on.
    ///
    /// # Safety
    /// As for [`Lanes::pass_256`].
    #[target_feature(enable = "avx2")]
    unsafe fn half_pass(&mut self, first: usize) {
        let key_part = |lane: usize, part: usize| {
            // SAFETY: the caller vouches for the keys, which have two parts of 16 bytes.
            unsafe { _mm_load_si128(self.keys[first + lane].cast::<__m128i>().add(part)) }
        };
        let tail = |lane: usize| {
            // SAFETY: four words of `self`.
            unsafe { _mm_loadu_si128((&raw const self.tails[first + lane]).cast()) }
        };
        let constants = CONSTANTS.map(|constant| _mm256_set1_epi32(constant));
        let key_low = transpose_words(spread(|lane| key_part(lane, 0)));
        let key_high = transpose_words(spread(|lane| key_part(lane, 1)));
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
            let place = &raw mut self.initial[word - 4][first];
            // SAFETY: 32 aligned bytes of `self`: `first` is 0 or 8.
            unsafe { _mm256_store_si256(place.cast(), x[word]) };
        }
        // Otherwise the compiler keeps the initial state in registers and spills others.
        let initial = core::hint::black_box(&self.initial);

        let by = [
            _mm256_broadcastsi128_si256(_mm_setr_epi8(
                2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
            )),
            _mm256_broadcastsi128_si256(_mm_setr_epi8(
                3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,
            )),
        ];
        for _ in 0..10 {
            quarter_rounds!(x, by: [0, 4, 8, 12] [1, 5, 9, 13] [2, 6, 10, 14] [3, 7, 11, 15]);
            quarter_rounds!(x, by: [0, 5, 10, 15] [1, 6, 11, 12] [2, 7, 8, 13] [3, 4, 9, 14]);
        }

        for word in 0..4 {
            x[word] = _mm256_add_epi32(x[word], constants[word]);
        }
        for word in 4..16 {
            // SAFETY: 32 aligned bytes of `self`.
            let words = unsafe { _mm256_load_si256((&raw const initial[word - 4][first]).cast()) };
            x[word] = _mm256_add_epi32(x[word], words);
        }
        let quarters = [
            transpose_words([x[0], x[1], x[2], x[3]]),
            transpose_words([x[4], x[5], x[6], x[7]]),
            transpose_words([x[8], x[9], x[10], x[11]]),
            transpose_words([x[12], x[13], x[14], x[15]]),
        ];
        for row in 0..4 {
            let [a, b, c, d] = quarters.each_ref().map(|rows| rows[row]);
            let low = [
                _mm256_permute2x128_si256(a, b, 0x20),
                _mm256_permute2x128_si256(c, d, 0x20),
            ];
            let high = [
                _mm256_permute2x128_si256(a, b, 0x31),
                _mm256_permute2x128_si256(c, d, 0x31),
            ];
            for (lane, stream) in [(first + row, low), (first + row + 4, high)] {
                let len = self.masks[lane].trailing_ones() as usize;
                // SAFETY: the caller vouches for the bytes of the mask, which are the first ones.
                unsafe { add_stream(self.places[lane], len, stream) };
            }
        }
    }
}

/// Adds as much of a block of the key stream as there are bytes.
///
/// # Safety
/// `len` bytes, at most a block, are valid for reads and writes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_stream(place: *mut u8, len: usize, stream: [__m256i; 2]) {
    // SAFETY: each step touches bytes that the caller vouches for.
    unsafe {
        if len == BLOCK {
            for (half, stream) in stream.into_iter().enumerate() {
                let place = place.add(32 * half).cast();
                let text = _mm256_loadu_si256(place);
                _mm256_storeu_si256(place, _mm256_xor_si256(text, stream));
            }
            return;
        }
        let [mut half, last] = stream;
        let mut done = 0;
        if len >= 32 {
            let text = _mm256_loadu_si256(place.cast());
            _mm256_storeu_si256(place.cast(), _mm256_xor_si256(text, half));
            (done, half) = (32, last);
        }
        let mut quarter = _mm256_castsi256_si128(half);
        if len - done >= 16 {
            let place = place.add(done).cast();
            let text = _mm_loadu_si128(place);
            _mm_storeu_si128(place, _mm_xor_si128(text, quarter));
            done += 16;
            quarter = _mm256_extracti128_si256(half, 1);
        }
        let mut word = _mm_cvtsi128_si64(quarter) as u64;
        if len - done >= 8 {
            let place = place.add(done).cast::<u64>();
            place.write_unaligned(place.read_unaligned() ^ word);
            done += 8;
            word = _mm_extract_epi64(quarter, 1) as u64;
        }
        while done < len {
            *place.add(done) ^= word as u8;
            word >>= 8;
            done += 1;
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate<const LEFT: i32, const RIGHT: i32>(x: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_slli_epi32(x, LEFT), _mm256_srli_epi32(x, RIGHT))
}

/// The quarters of eight lanes: vector `j` has those of the lanes `j` and `4 + j`.
#[inline]
#[target_feature(enable = "avx2")]
fn spread(quarter: impl Fn(usize) -> __m128i) -> [__m256i; 4] {
    [0, 1, 2, 3].map(|j| _mm256_set_m128i(quarter(4 + j), quarter(j)))
}

/// Exchanges, in each half, the words of a vector with the vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_words([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let ab_low = _mm256_unpacklo_epi32(a, b);
    let ab_high = _mm256_unpackhi_epi32(a, b);
    let cd_low = _mm256_unpacklo_epi32(c, d);
    let cd_high = _mm256_unpackhi_epi32(c, d);
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

//! SHA-1 (FIPS 180-4 section 6.1) with the instructions for it, one or two messages at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;

use super::hasher::{State, load_state, store_state};

/// FIPS 180-4 section 5.3.1; a state has five words.
pub(super) const INITIAL: State = [
    0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0, 0, 0, 0,
];

/// Takes `count` blocks of each message into its state.
///
/// # Safety
/// Every pointer is valid for reads of `64 * count` bytes.
#[target_feature(enable = "sha,sse4.1,ssse3")]
pub(super) unsafe fn compress<const N: usize>(
    states: &mut [State; N],
    messages: [*const u8; N],
    count: usize,
) {
    let swap = _mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f);
    let mut abcd = [_mm_setzero_si128(); N];
    let mut e = abcd;
    for n in 0..N {
        // The instructions want the first word at the top.
        [abcd[n], e[n]] = load_state(&states[n]).map(|words| _mm_shuffle_epi32(words, 0x1b));
    }
    for block in 0..count {
        let (abcd_before, e_before) = (abcd, e);
        // The last sixteen words of the message schedule.
        let mut words = [[_mm_setzero_si128(); N]; 4];
        // What the words a to d were a group before: e comes from there.
        let mut earlier = abcd;
        // A macro, for only with constant indices the words stay in registers.
        macro_rules! groups {
            ($function:literal: $($group:literal)+) => {$(
                for n in 0..N {
                    let now = if $group < 4 {
                        let place = messages[n].wrapping_add(64 * block + 16 * $group);
                        // SAFETY: 16 of the `64 * count` bytes that the caller vouches for.
                        _mm_shuffle_epi8(unsafe { _mm_loadu_si128(place.cast()) }, swap)
                    } else {
                        let [w0, w1, w2, w3] =
                            [0, 1, 2, 3].map(|back| words[($group + back) % 4][n]);
                        let sum = _mm_xor_si128(_mm_sha1msg1_epu32(w0, w1), w2);
                        _mm_sha1msg2_epu32(sum, w3)
                    };
                    words[$group % 4][n] = now;
                    let now = match $group {
                        0 => _mm_add_epi32(e[n], now),
                        _ => _mm_sha1nexte_epu32(earlier[n], now),
                    };
                    earlier[n] = abcd[n];
                    abcd[n] = _mm_sha1rnds4_epu32(abcd[n], now, $function);
                }
            )+};
        }
        groups!(0: 0 1 2 3 4);
        groups!(1: 5 6 7 8 9);
        groups!(2: 10 11 12 13 14);
        groups!(3: 15 16 17 18 19);
        for n in 0..N {
            e[n] = _mm_sha1nexte_epu32(earlier[n], e_before[n]);
            abcd[n] = _mm_add_epi32(abcd[n], abcd_before[n]);
        }
    }
    for n in 0..N {
        let words = [abcd[n], e[n]].map(|words| _mm_shuffle_epi32(words, 0x1b));
        store_state(&mut states[n], words);
    }
}

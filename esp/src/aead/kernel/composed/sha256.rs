//! SHA-256 (FIPS 180-4 section 6.2) with the instructions for it, one or two messages at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;

use super::hasher::{State, load, load_state, store_state};

/// FIPS 180-4 section 5.3.3.
pub(super) const INITIAL: State = [
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, //
    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
];

/// FIPS 180-4 section 4.2.2, four to a register, the first in the lowest word.
static CONSTANTS: [u128; 16] = [
    0xe9b5_dba5_b5c0_fbcf_7137_4491_428a_2f98,
    0xab1c_5ed5_923f_82a4_59f1_11f1_3956_c25b,
    0x550c_7dc3_2431_85be_1283_5b01_d807_aa98,
    0xc19b_f174_9bdc_06a7_80de_b1fe_72be_5d74,
    0x240c_a1cc_0fc1_9dc6_efbe_4786_e49b_69c1,
    0x76f9_88da_5cb0_a9dc_4a74_84aa_2de9_2c6f,
    0xbf59_7fc7_b003_27c8_a831_c66d_983e_5152,
    0x1429_2967_06ca_6351_d5a7_9147_c6e0_0bf3,
    0x5338_0d13_4d2c_6dfc_2e1b_2138_27b7_0a85,
    0x9272_2c85_81c2_c92e_766a_0abb_650a_7354,
    0xc76c_51a3_c24b_8b70_a81a_664b_a2bf_e8a1,
    0x106a_a070_f40e_3585_d699_0624_d192_e819,
    0x34b0_bcb5_2748_774c_1e37_6c08_19a4_c116,
    0x682e_6ff3_5b9c_ca4f_4ed8_aa4a_391c_0cb3,
    0x8cc7_0208_84c8_7814_78a5_636f_748f_82ee,
    0xc671_78f2_bef9_a3f7_a450_6ceb_90be_fffa,
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
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let mut abef = [_mm_setzero_si128(); N];
    let mut cdgh = abef;
    for n in 0..N {
        // The instructions want the words a, b, e, f and c, d, g, h, each from the top.
        let [abcd, efgh] = load_state(&states[n]);
        let (badc, hgfe) = (_mm_shuffle_epi32(abcd, 0xb1), _mm_shuffle_epi32(efgh, 0x1b));
        abef[n] = _mm_alignr_epi8(badc, hgfe, 8);
        cdgh[n] = _mm_blend_epi16(hgfe, badc, 0xf0);
    }
    for block in 0..count {
        let (abef_before, cdgh_before) = (abef, cdgh);
        // The last sixteen words of the message schedule.
        let mut words = [[_mm_setzero_si128(); N]; 4];
        // A macro, for only with constant indices the words stay in registers.
        macro_rules! groups {
            ($($group:literal)+) => {$(
                for n in 0..N {
                    let now = if $group < 4 {
                        let place = messages[n].wrapping_add(64 * block + 16 * $group);
                        // SAFETY: 16 of the `64 * count` bytes that the caller vouches for.
                        _mm_shuffle_epi8(unsafe { _mm_loadu_si128(place.cast()) }, swap)
                    } else {
                        let [w0, w1, w2, w3] =
                            [0, 1, 2, 3].map(|back| words[($group + back) % 4][n]);
                        let early = _mm_sha256msg1_epu32(w0, w1);
                        let sum = _mm_add_epi32(early, _mm_alignr_epi8(w3, w2, 4));
                        _mm_sha256msg2_epu32(sum, w3)
                    };
                    words[$group % 4][n] = now;
                    let now = _mm_add_epi32(now, load(&CONSTANTS[$group]));
                    cdgh[n] = _mm_sha256rnds2_epu32(cdgh[n], abef[n], now);
                    let now = _mm_shuffle_epi32(now, 0x0e);
                    abef[n] = _mm_sha256rnds2_epu32(abef[n], cdgh[n], now);
                }
            )+};
        }
        groups!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        for n in 0..N {
            abef[n] = _mm_add_epi32(abef[n], abef_before[n]);
            cdgh[n] = _mm_add_epi32(cdgh[n], cdgh_before[n]);
        }
    }
    for n in 0..N {
        let (feba, dchg) = (
            _mm_shuffle_epi32(abef[n], 0x1b),
            _mm_shuffle_epi32(cdgh[n], 0xb1),
        );
        let abcd = _mm_blend_epi16(feba, dchg, 0xf0);
        let efgh = _mm_alignr_epi8(dchg, feba, 8);
        store_state(&mut states[n], [abcd, efgh]);
    }
}

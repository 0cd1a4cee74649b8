//! SHA-256 and SHA-512 (FIPS 180-4 sections 6.2 and 6.4) of many messages at once: a message in
//! each lane of a vector, a word of all messages in each vector.
//!
//! Both hashes are one algorithm over words of 32 or 64 bits, of which sixteen make a block, and
//! so is their code here, for vectors of 512 and 256 bits.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

mod vector;

use vector::{Words32x8, Words32x16, Words64x4, Words64x8};

/// Most lanes that a vector has.
pub(super) const LANES: usize = 16;

/// Words in a block.
const WORDS: usize = 16;
/// Words in a state.
const STATE: usize = 8;

/// Takes `count` blocks from the place of each lane into its state: SHA-256, sixteen lanes.
///
/// # Safety
/// All places are valid for reads of so many blocks of 64 bytes.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn sha256x16(
    states: &mut [[u32; STATE]; LANES],
    places: &[*const u8; LANES],
    count: usize,
) {
    // SAFETY: the CPU has the instructions, and the caller vouches for the places.
    unsafe { compress::<Words32x16>(states, places, count) }
}

/// SHA-256, the first eight lanes.
///
/// # Safety
/// As for [`sha256x16`].
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sha256x8(
    states: &mut [[u32; STATE]; LANES],
    places: &[*const u8; LANES],
    count: usize,
) {
    // SAFETY: the CPU has the instructions, and the caller vouches for the places.
    unsafe { compress::<Words32x8>(states, places, count) }
}

/// SHA-512, the first eight lanes.
///
/// # Safety
/// As for [`sha256x16`], with blocks of 128 bytes.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn sha512x8(
    states: &mut [[u64; STATE]; LANES],
    places: &[*const u8; LANES],
    count: usize,
) {
    // SAFETY: the CPU has the instructions, and the caller vouches for the places.
    unsafe { compress::<Words64x8>(states, places, count) }
}

/// SHA-512, the first four lanes.
///
/// # Safety
/// As for [`sha512x8`].
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sha512x4(
    states: &mut [[u64; STATE]; LANES],
    places: &[*const u8; LANES],
    count: usize,
) {
    // SAFETY: the CPU has the instructions, and the caller vouches for the places.
    unsafe { compress::<Words64x4>(states, places, count) }
}

/// Words in the lanes of a vector, and what FIPS 180-4 does with them.
///
/// # Safety
/// Every function needs the instructions that the type is made for; the caller vouches for
/// them.
trait Vector: Copy {
    /// A word of one lane.
    type Word: Copy + 'static;
    /// The constants of the rounds (section 4.2).
    const ROUNDS: &'static [Self::Word];

    /// The states of as many lanes as there are, word by word.
    unsafe fn load(states: &[[Self::Word; STATE]; LANES]) -> [Self; STATE];
    unsafe fn store(words: [Self; STATE], states: &mut [[Self::Word; STATE]; LANES]);
    unsafe fn splat(word: Self::Word) -> Self;
    /// A block from each place, valid for reads at the offset, word by word.
    unsafe fn block(places: &[*const u8; LANES], offset: usize) -> [Self; WORDS];
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn choose(self, one: Self, zero: Self) -> Self;
    unsafe fn majority(self, second: Self, third: Self) -> Self;
    /// The functions of section 4.1, upper case and lower case sigma.
    unsafe fn upper_0(self) -> Self;
    unsafe fn upper_1(self) -> Self;
    unsafe fn lower_0(self) -> Self;
    unsafe fn lower_1(self) -> Self;
}

/// Takes `count` blocks from each place into the state of its lane.
///
/// # Safety
/// The CPU has the instructions; the places of the lanes of a vector are valid for reads of so
/// many blocks.
#[inline(always)]
unsafe fn compress<V: Vector>(
    states: &mut [[V::Word; STATE]; LANES],
    places: &[*const u8; LANES],
    count: usize,
) {
    // SAFETY: the caller vouches for the instructions and for the places.
    unsafe {
        let mut s = V::load(states);
        for block in 0..count {
            let before = s;
            let mut w = V::block(places, block * WORDS * size_of::<V::Word>());
            // Macros, for only with constant indices the words stay in registers.
            macro_rules! round {
                ($t:literal, $constants:ident) => {
                    let [a, b, c, d, e, f, g, h] =
                        [0, 1, 2, 3, 4, 5, 6, 7].map(|word| (word + 16 - $t) % 8);
                    let sum = s[h].add(V::splat($constants[$t]).add(w[$t]));
                    let sum = sum.add(s[e].choose(s[f], s[g])).add(s[e].upper_1());
                    s[d] = s[d].add(sum);
                    s[h] = sum.add(s[a].majority(s[b], s[c])).add(s[a].upper_0());
                };
            }
            // The word that is needed sixteen rounds later.
            macro_rules! schedule {
                ($t:literal) => {
                    let sum = w[$t].add(w[($t + 9) % 16]);
                    let early = w[($t + 1) % 16].lower_0();
                    let late = w[($t + 14) % 16].lower_1();
                    w[$t] = sum.add(early).add(late);
                };
            }
            macro_rules! all {
                ($($t:literal)+) => {
                    let (rounds, last) = V::ROUNDS.split_at(V::ROUNDS.len() - WORDS);
                    for constants in rounds.chunks_exact(WORDS) {
                        $(round!($t, constants); schedule!($t);)+
                    }
                    $(round!($t, last);)+
                };
            }
            all!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            for word in 0..STATE {
                s[word] = s[word].add(before[word]);
            }
        }
        V::store(s, states);
    }
}

/// FIPS 180-4 section 4.2.3. The upper halves of the first 64 are the constants of SHA-256.
const CONSTANTS: [u64; 80] = [
    0x428a_2f98_d728_ae22,
    0x7137_4491_23ef_65cd,
    0xb5c0_fbcf_ec4d_3b2f,
    0xe9b5_dba5_8189_dbbc,
    0x3956_c25b_f348_b538,
    0x59f1_11f1_b605_d019,
    0x923f_82a4_af19_4f9b,
    0xab1c_5ed5_da6d_8118,
    0xd807_aa98_a303_0242,
    0x1283_5b01_4570_6fbe,
    0x2431_85be_4ee4_b28c,
    0x550c_7dc3_d5ff_b4e2,
    0x72be_5d74_f27b_896f,
    0x80de_b1fe_3b16_96b1,
    0x9bdc_06a7_25c7_1235,
    0xc19b_f174_cf69_2694,
    0xe49b_69c1_9ef1_4ad2,
    0xefbe_4786_384f_25e3,
    0x0fc1_9dc6_8b8c_d5b5,
    0x240c_a1cc_77ac_9c65,
    0x2de9_2c6f_592b_0275,
    0x4a74_84aa_6ea6_e483,
    0x5cb0_a9dc_bd41_fbd4,
    0x76f9_88da_8311_53b5,
    0x983e_5152_ee66_dfab,
    0xa831_c66d_2db4_3210,
    0xb003_27c8_98fb_213f,
    0xbf59_7fc7_beef_0ee4,
    0xc6e0_0bf3_3da8_8fc2,
    0xd5a7_9147_930a_a725,
    0x06ca_6351_e003_826f,
    0x1429_2967_0a0e_6e70,
    0x27b7_0a85_46d2_2ffc,
    0x2e1b_2138_5c26_c926,
    0x4d2c_6dfc_5ac4_2aed,
    0x5338_0d13_9d95_b3df,
    0x650a_7354_8baf_63de,
    0x766a_0abb_3c77_b2a8,
    0x81c2_c92e_47ed_aee6,
    0x9272_2c85_1482_353b,
    0xa2bf_e8a1_4cf1_0364,
    0xa81a_664b_bc42_3001,
    0xc24b_8b70_d0f8_9791,
    0xc76c_51a3_0654_be30,
    0xd192_e819_d6ef_5218,
    0xd699_0624_5565_a910,
    0xf40e_3585_5771_202a,
    0x106a_a070_32bb_d1b8,
    0x19a4_c116_b8d2_d0c8,
    0x1e37_6c08_5141_ab53,
    0x2748_774c_df8e_eb99,
    0x34b0_bcb5_e19b_48a8,
    0x391c_0cb3_c5c9_5a63,
    0x4ed8_aa4a_e341_8acb,
    0x5b9c_ca4f_7763_e373,
    0x682e_6ff3_d6b2_b8a3,
    0x748f_82ee_5def_b2fc,
    0x78a5_636f_4317_2f60,
    0x84c8_7814_a1f0_ab72,
    0x8cc7_0208_1a64_39ec,
    0x90be_fffa_2363_1e28,
    0xa450_6ceb_de82_bde9,
    0xbef9_a3f7_b2c6_7915,
    0xc671_78f2_e372_532b,
    0xca27_3ece_ea26_619c,
    0xd186_b8c7_21c0_c207,
    0xeada_7dd6_cde0_eb1e,
    0xf57d_4f7f_ee6e_d178,
    0x06f0_67aa_7217_6fba,
    0x0a63_7dc5_a2c8_98a6,
    0x113f_9804_bef9_0dae,
    0x1b71_0b35_131c_471b,
    0x28db_77f5_2304_7d84,
    0x32ca_ab7b_40c7_2493,
    0x3c9e_be0a_15c9_bebc,
    0x431d_67c4_9c10_0d4c,
    0x4cc5_d4be_cb3e_42b6,
    0x597f_299c_fc65_7e2a,
    0x5fcb_6fab_3ad6_faec,
    0x6c44_198c_4a47_5817,
];

static ROUNDS_512: [u64; 80] = CONSTANTS;
static ROUNDS_256: [u32; 64] = {
    let mut rounds = [0; 64];
    let mut round = 0;
    while round < rounds.len() {
        rounds[round] = (CONSTANTS[round] >> 32) as u32;
        round += 1;
    }
    rounds
};

//! With AVX2: four lanes, numbers in five limbs of 26 bits.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::{BLOCK, MASK_44, Message};

/// Lanes of a vector.
const LANES: usize = 4;
/// Packets that advance together: two vectors.
pub(super) const GROUP: usize = 2 * LANES;

const LIMBS: usize = 5;
const MASK_26: u64 = (1 << 26) - 1;
/// The bit that is added above every block: 2^128, in the last limb.
const HIGH_BIT: u64 = 1 << 24;

/// A number in each lane, in limbs.
#[derive(Clone, Copy)]
struct Number([__m256i; LIMBS]);

/// A factor in each lane: its limbs, and five times the upper four, which come back at the
/// bottom (2^130 is 5 modulo 2^130 - 5).
#[derive(Clone, Copy)]
struct Factor {
    limbs: [__m256i; LIMBS],
    folded: [__m256i; LIMBS],
}

impl Factor {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(number: Number) -> Self {
        let limbs = number.0;
        let folded = limbs.map(|limb| _mm256_add_epi64(limb, _mm256_slli_epi64(limb, 2)));
        Self { limbs, folded }
    }
}

impl Number {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn zero() -> Self {
        Self([_mm256_setzero_si256(); LIMBS])
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn plus(self, other: Self) -> Self {
        Self(core::array::from_fn(|limb| {
            _mm256_add_epi64(self.0[limb], other.0[limb])
        }))
    }

    /// `other` in the lanes whose mask is all ones.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn blend(self, mask: __m256i, other: Self) -> Self {
        Self(core::array::from_fn(|limb| {
            _mm256_blendv_epi8(self.0[limb], other.0[limb], mask)
        }))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn times(self, factor: &Factor) -> Self {
        self.product(factor).carried()
    }

    /// The product with limbs that are not carried: each is below 2^59 if those of this number
    /// are below 2^28.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn product(self, factor: &Factor) -> Self {
        let mut sums = [_mm256_setzero_si256(); LIMBS];
        for of_number in 0..LIMBS {
            for of_factor in 0..LIMBS {
                let (limb, by) = match of_number + of_factor {
                    limb @ 0..LIMBS => (limb, factor.limbs[of_factor]),
                    limb => (limb - LIMBS, factor.folded[of_factor]),
                };
                let product = _mm256_mul_epu32(self.0[of_number], by);
                sums[limb] = _mm256_add_epi64(sums[limb], product);
            }
        }
        Self(sums)
    }

    /// The number modulo 2^130 - 5, its limbs below 2^27.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn carried(self) -> Self {
        let mask = _mm256_set1_epi64x(MASK_26 as i64);
        let mut limbs = self.0;
        // Two chains, from 0 and from 3 on, that do not wait for each other.
        for from in [0, 3, 1, 4, 2, 0, 3] {
            let carry = _mm256_srli_epi64(limbs[from], 26);
            limbs[from] = _mm256_and_si256(limbs[from], mask);
            let carry = match from {
                4 => _mm256_add_epi64(carry, _mm256_slli_epi64(carry, 2)),
                _ => carry,
            };
            let to = (from + 1) % LIMBS;
            limbs[to] = _mm256_add_epi64(limbs[to], carry);
        }
        Self(limbs)
    }

    /// Blocks, of which the lower and the upper halves are given, and a last limb to add.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn from_halves(low: __m256i, high: __m256i, high_bit: __m256i) -> Self {
        let mask = _mm256_set1_epi64x(MASK_26 as i64);
        let middle = _mm256_or_si256(_mm256_srli_epi64(low, 52), _mm256_slli_epi64(high, 12));
        Self([
            _mm256_and_si256(low, mask),
            _mm256_and_si256(_mm256_srli_epi64(low, 26), mask),
            _mm256_and_si256(middle, mask),
            _mm256_and_si256(_mm256_srli_epi64(high, 14), mask),
            _mm256_or_si256(_mm256_srli_epi64(high, 40), high_bit),
        ])
    }

    /// A block in each lane.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn gather(block: impl Fn(usize) -> __m128i, high_bit: __m256i) -> Self {
        let even = _mm256_set_m128i(block(2), block(0));
        let odd = _mm256_set_m128i(block(3), block(1));
        Self::from_halves(
            _mm256_unpacklo_epi64(even, odd),
            _mm256_unpackhi_epi64(even, odd),
            high_bit,
        )
    }

    /// The limbs of a lane.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn lanes(self) -> [[u64; LANES]; LIMBS] {
        self.0.map(|limb| {
            let mut lanes = [0; LANES];
            // SAFETY: four lanes of eight bytes.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), limb) };
            lanes
        })
    }
}

/// Tags of at most [`GROUP`] messages, one in each lane.
#[target_feature(enable = "avx2")]
pub(super) fn side_by_side(messages: &[Message<'_>], group: &[u8], tags: &mut [[u8; BLOCK]]) {
    match group.len() {
        ..=LANES => side_by_side_vectors::<1>(messages, group, tags),
        _ => side_by_side_vectors::<2>(messages, group, tags),
    }
}

/// Tags of up to `4 * VECTORS` messages.
#[target_feature(enable = "avx2")]
fn side_by_side_vectors<const VECTORS: usize>(
    messages: &[Message<'_>],
    group: &[u8],
    tags: &mut [[u8; BLOCK]],
) {
    static ZEROES: [u8; BLOCK] = [0; BLOCK];
    // Lanes that would be empty do what the last does.
    let mut lanes = [[&messages[usize::from(group[0])]; LANES]; VECTORS];
    let mut texts = [[ZEROES.as_ptr(); LANES]; VECTORS];
    // Where the last full block of the text begins, and how many there are.
    let mut last = [[0_usize; LANES]; VECTORS];
    let mut full = [[0_u64; LANES]; VECTORS];
    let mut limbs = [[[0_u64; LANES]; LIMBS]; VECTORS];
    // Blocks that all lanes have, and the most that one has.
    let mut common = usize::MAX;
    let mut steps = 0;
    for place in 0..VECTORS * LANES {
        let (vector, lane) = (place / LANES, place % LANES);
        let message = &messages[usize::from(group[place.min(group.len() - 1)])];
        lanes[vector][lane] = message;
        let blocks = message.full_blocks();
        if let Some(before) = blocks.checked_sub(1) {
            texts[vector][lane] = message.text.as_ptr();
            last[vector][lane] = before * BLOCK;
        }
        full[vector][lane] = blocks as u64;
        common = common.min(blocks);
        steps = steps.max(blocks);
        for (limb, value) in self::limbs(message).into_iter().enumerate() {
            limbs[vector][limb][lane] = value;
        }
    }

    let high_bit = _mm256_set1_epi64x(HIGH_BIT as i64);
    let factors = limbs
        .each_ref()
        .map(|limbs| Factor::new(Number(limbs.each_ref().map(|lanes| load(lanes)))));
    let mut sums = [Number::zero(); VECTORS];
    for vector in 0..VECTORS {
        let aad = Number::gather(|lane| block(&lanes[vector][lane].aad), high_bit);
        sums[vector] = aad.times(&factors[vector]);
    }

    // Two blocks at once while all lanes have them: the second needs no carry of its own.
    let squares = factors
        .each_ref()
        .map(|r| Factor::new(Number(r.limbs).times(r)));
    let pairs = common / 2;
    for pair in 0..pairs {
        for vector in 0..VECTORS {
            let block = |lane: usize, step: usize| {
                let place = texts[vector][lane].wrapping_add(step * BLOCK);
                // SAFETY: all lanes have at least `common` blocks.
                unsafe { _mm_loadu_si128(place.cast()) }
            };
            let first = Number::gather(|lane| block(lane, 2 * pair), high_bit);
            let second = Number::gather(|lane| block(lane, 2 * pair + 1), high_bit);
            let product = sums[vector].plus(first).product(&squares[vector]);
            sums[vector] = product.plus(second.product(&factors[vector])).carried();
        }
    }
    for step in 2 * pairs..steps {
        let now = _mm256_set1_epi64x(step as i64);
        for vector in 0..VECTORS {
            let block = |lane: usize| {
                let at = (step * BLOCK).min(last[vector][lane]);
                let place = texts[vector][lane].wrapping_add(at);
                // SAFETY: the last full block of the text at most; without one the pointer is
                // that of `ZEROES`.
                unsafe { _mm_loadu_si128(place.cast()) }
            };
            let next = sums[vector].plus(Number::gather(block, high_bit));
            let next = next.times(&factors[vector]);
            let active = _mm256_cmpgt_epi64(load(&full[vector]), now);
            sums[vector] = sums[vector].blend(active, next);
        }
    }
    for vector in 0..VECTORS {
        let partial = lanes[vector].map(Message::partial_block);
        let next = Number::gather(|lane| block(&partial[lane].unwrap_or(ZEROES)), high_bit);
        let next = sums[vector].plus(next).times(&factors[vector]);
        let present = partial.map(|block| if block.is_some() { u64::MAX } else { 0 });
        let sum = sums[vector].blend(load(&present), next);
        let lengths = Number::gather(|lane| block(&lanes[vector][lane].length_block()), high_bit);
        let sum = sum.plus(lengths).times(&factors[vector]);
        limbs[vector] = sum.lanes();
    }
    for (place, index) in group.iter().enumerate() {
        let index = usize::from(*index);
        let limbs = limbs[place / LANES].map(|lanes| lanes[place % LANES]);
        tags[index] = messages[index].tag(packed(limbs));
    }
    limbs.as_flattened_mut().as_flattened_mut().zeroize();
}

/// The tag of one message of at least [`LONG`](super::LONG) full blocks, four blocks at a time:
/// each lane multiplies by r^4, and at the end by the power that its last block lacks.
#[target_feature(enable = "avx2")]
pub(super) fn long(message: &Message<'_>) -> [u8; BLOCK] {
    let r = Number(limbs(message).map(|limb| _mm256_set1_epi64x(limb as i64)));
    let r_factor = Factor::new(r);
    let r2 = r.times(&r_factor);
    let r3 = r2.times(&r_factor);
    let r4 = r3.times(&r_factor);
    let lane = |lane: usize| {
        let mut mask = [0; LANES];
        mask[lane] = u64::MAX;
        load(&mask)
    };
    // Exponents 4, 3, 2, 1.
    let powers = r.blend(lane(0), r4).blend(lane(1), r3).blend(lane(2), r2);
    let (r4, powers) = (Factor::new(r4), Factor::new(powers));

    // All blocks there are: the additional data, the text, the lengths. They are padded in front,
    // with zeroes that lack the high bit, so that they fill the lanes.
    let full = message.full_blocks();
    let partial = message.partial_block();
    let count = 1 + full + usize::from(partial.is_some()) + 1;
    let zeroes = count.next_multiple_of(LANES) - count;
    let (blocks, _) = message.text.as_chunks::<BLOCK>();
    let lengths = message.length_block();
    let at = |index: usize| match index.checked_sub(zeroes) {
        None => block(&[0; BLOCK]),
        Some(0) => block(&message.aad),
        Some(index) if index <= full => block(&blocks[index - 1]),
        Some(index) => match &partial {
            Some(partial) if index == full + 1 => block(partial),
            _ => block(&lengths),
        },
    };
    let mut high_bits = [HIGH_BIT; LANES];
    high_bits[..zeroes].fill(0);
    let groups = (zeroes + count) / LANES;
    let mut sum = Number::gather(at, load(&high_bits));
    let high_bit = _mm256_set1_epi64x(HIGH_BIT as i64);
    // Between the first group and the last two there is nothing but text.
    for group in 1..groups {
        let next = match group < groups - 2 {
            true => {
                let first = LANES * group - zeroes - 1;
                Number::gather(|lane| block(&blocks[first + lane]), high_bit)
            }
            false => Number::gather(|lane| at(LANES * group + lane), high_bit),
        };
        sum = sum.times(&r4).plus(next);
    }
    let lanes = sum.times(&powers).lanes();
    message.tag(packed(lanes.map(|lanes| lanes.iter().sum())))
}

/// r in limbs.
fn limbs(message: &Message<'_>) -> [u64; LIMBS] {
    let r = message.r();
    [0, 26, 52, 78, 104].map(|bit| (r >> bit) as u64 & MASK_26)
}

/// A number in limbs of 44, 44 and 42 bits.
fn packed(mut limbs: [u64; LIMBS]) -> [u64; 3] {
    for limb in 0..LIMBS - 1 {
        limbs[limb + 1] += limbs[limb] >> 26;
        limbs[limb] &= MASK_26;
    }
    let [l0, l1, l2, l3, l4] = limbs;
    [
        (l0 | l1 << 26) & MASK_44,
        (l1 >> 18 | l2 << 8 | l3 << 34) & MASK_44,
        (l3 >> 10) + (l4 << 16),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(lanes: &[u64; LANES]) -> __m256i {
    // SAFETY: four lanes of eight bytes.
    unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn block(bytes: &[u8; BLOCK]) -> __m128i {
    // SAFETY: 16 bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

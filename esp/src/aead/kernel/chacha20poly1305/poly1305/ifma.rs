//! With 52-bit multiply-add (AVX-512): eight lanes, numbers in limbs of 44, 44 and 42 bits.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;

use super::{BLOCK, MASK_42, MASK_44, Message};

/// The bit that is added above every block: 2^128, in the third limb.
const HIGH_BIT: u64 = 1 << 40;
/// Lanes of a vector.
const LANES: usize = 8;
/// Packets that advance together: two vectors, of which one works while the other waits for
/// its products.
pub(super) const GROUP: usize = 2 * LANES;

/// A number in each lane, in limbs.
#[derive(Clone, Copy)]
struct Number([__m512i; 3]);

/// A factor in each lane: its limbs, and twenty times the upper two, which come back at the
/// bottom (2^132 is 20 modulo 2^130 - 5).
#[derive(Clone, Copy)]
struct Factor {
    limbs: [__m512i; 3],
    folded: [__m512i; 2],
}

impl Factor {
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn new(number: Number) -> Self {
        let limbs = number.0;
        let times_20 =
            |limb| _mm512_add_epi64(_mm512_slli_epi64(limb, 4), _mm512_slli_epi64(limb, 2));
        Self {
            limbs,
            folded: [times_20(limbs[1]), times_20(limbs[2])],
        }
    }
}

impl Number {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn plus(self, other: Self) -> Self {
        Self(core::array::from_fn(|limb| {
            _mm512_add_epi64(self.0[limb], other.0[limb])
        }))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zero() -> Self {
        Self([_mm512_setzero_si512(); 3])
    }

    /// `other` in the lanes of the mask.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn blend(self, mask: __mmask8, other: Self) -> Self {
        Self(core::array::from_fn(|limb| {
            _mm512_mask_mov_epi64(self.0[limb], mask, other.0[limb])
        }))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn times(self, factor: &Factor) -> Self {
        Products::zero().plus(self, factor).carried()
    }

    /// Blocks, of which the lower and the upper halves are given.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn from_halves(low: __m512i, high: __m512i, high_bit: __m512i) -> Self {
        let mask_44 = _mm512_set1_epi64(MASK_44 as i64);
        let middle = _mm512_or_si512(_mm512_srli_epi64(low, 44), _mm512_slli_epi64(high, 20));
        Self([
            _mm512_and_si512(low, mask_44),
            _mm512_and_si512(middle, mask_44),
            _mm512_or_si512(_mm512_srli_epi64(high, 24), high_bit),
        ])
    }

    /// A block in each lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn gather(block: impl Fn(usize) -> __m128i) -> Self {
        let collect = |first: usize| {
            let vector = _mm512_broadcast_i32x4(block(first));
            let vector = _mm512_mask_broadcast_i32x4(vector, 0x00f0, block(first + 2));
            let vector = _mm512_mask_broadcast_i32x4(vector, 0x0f00, block(first + 4));
            _mm512_mask_broadcast_i32x4(vector, 0xf000, block(first + 6))
        };
        let (even, odd) = (collect(0), collect(1));
        Self::from_halves(
            _mm512_unpacklo_epi64(even, odd),
            _mm512_unpackhi_epi64(even, odd),
            _mm512_set1_epi64(HIGH_BIT as i64),
        )
    }

    /// Eight blocks that follow each other, in the order 0, 4, 1, 5, 2, 6, 3, 7.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn from_bytes(bytes: &[u8; LANES * BLOCK], high_bit: __m512i) -> Self {
        // SAFETY: the first and the last 64 of 128 bytes.
        let (first, last) = unsafe {
            (
                _mm512_loadu_si512(bytes.as_ptr().cast()),
                _mm512_loadu_si512(bytes.as_ptr().add(64).cast()),
            )
        };
        Self::from_halves(
            _mm512_unpacklo_epi64(first, last),
            _mm512_unpackhi_epi64(first, last),
            high_bit,
        )
    }
}

/// A sum of products, limb by limb; the upper halves count from bit 52 of their limb.
#[derive(Clone, Copy)]
struct Products {
    low: [__m512i; 3],
    high: [__m512i; 3],
}

impl Products {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zero() -> Self {
        Self {
            low: [_mm512_setzero_si512(); 3],
            high: [_mm512_setzero_si512(); 3],
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn plus(self, number: Number, factor: &Factor) -> Self {
        let [h0, h1, h2] = number.0;
        let [r0, r1, r2] = factor.limbs;
        let [s1, s2] = factor.folded;
        let low = |sum, a, b| _mm512_madd52lo_epu64(sum, a, b);
        let high = |sum, a, b| _mm512_madd52hi_epu64(sum, a, b);
        Self {
            low: [
                low(low(low(self.low[0], h0, r0), h1, s2), h2, s1),
                low(low(low(self.low[1], h0, r1), h1, r0), h2, s2),
                low(low(low(self.low[2], h0, r2), h1, r1), h2, r0),
            ],
            high: [
                high(high(high(self.high[0], h0, r0), h1, s2), h2, s1),
                high(high(high(self.high[1], h0, r1), h1, r0), h2, s2),
                high(high(high(self.high[2], h0, r2), h1, r1), h2, r0),
            ],
        }
    }

    /// The sum modulo 2^130 - 5; of up to two products, for the second limb must stay below
    /// 2^45.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn carried(self) -> Number {
        let mask_44 = _mm512_set1_epi64(MASK_44 as i64);
        let mask_42 = _mm512_set1_epi64(MASK_42 as i64);
        let [low0, low1, low2] = self.low;
        let [high0, high1, high2] = self.high;
        let low1 = _mm512_add_epi64(low1, _mm512_slli_epi64(high0, 8));
        let low2 = _mm512_add_epi64(low2, _mm512_slli_epi64(high1, 8));
        let low1 = _mm512_add_epi64(low1, _mm512_srli_epi64(low0, 44));
        let low2 = _mm512_add_epi64(low2, _mm512_srli_epi64(low1, 44));
        let carry = _mm512_add_epi64(_mm512_srli_epi64(low2, 42), _mm512_slli_epi64(high2, 10));
        let carry = _mm512_add_epi64(carry, _mm512_slli_epi64(carry, 2));
        let low0 = _mm512_add_epi64(_mm512_and_si512(low0, mask_44), carry);
        let low1 = _mm512_and_si512(low1, mask_44);
        Number([
            _mm512_and_si512(low0, mask_44),
            _mm512_add_epi64(low1, _mm512_srli_epi64(low0, 44)),
            _mm512_and_si512(low2, mask_42),
        ])
    }
}

/// Tags of at most [`GROUP`] messages, one in each lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn side_by_side(messages: &[Message<'_>], group: &[u8], tags: &mut [[u8; BLOCK]]) {
    match group.len() {
        ..=LANES => side_by_side_vectors::<1>(messages, group, tags),
        _ => side_by_side_vectors::<2>(messages, group, tags),
    }
}

/// Tags of up to `8 * VECTORS` messages.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
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
    let mut text_lens = [[0_u64; LANES]; VECTORS];
    let mut aad_lens = [[0_u64; LANES]; VECTORS];
    // Which bytes there are of the last block that is not full.
    let mut partial = [[0_u16; LANES]; VECTORS];
    let mut limbs = [[[0_u64; LANES]; 3]; VECTORS];
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
        text_lens[vector][lane] = message.text.len() as u64;
        aad_lens[vector][lane] = message.aad_len as u64;
        partial[vector][lane] = (1 << (message.text.len() % BLOCK)) - 1;
        common = common.min(blocks);
        steps = steps.max(blocks);
        for (limb, value) in self::limbs(message).into_iter().enumerate() {
            limbs[vector][limb][lane] = value;
        }
    }

    let factors = limbs
        .each_ref()
        .map(|limbs| Factor::new(Number(limbs.each_ref().map(|lanes| load(lanes)))));
    let mut sums = [Number::zero(); VECTORS];
    for vector in 0..VECTORS {
        let aad = Number::gather(|lane| {
            // SAFETY: a block of 16 bytes.
            unsafe { _mm_loadu_si128(lanes[vector][lane].aad.as_ptr().cast()) }
        });
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
            let first = Number::gather(|lane| block(lane, 2 * pair));
            let second = Number::gather(|lane| block(lane, 2 * pair + 1));
            sums[vector] = Products::zero()
                .plus(second, &factors[vector])
                .plus(sums[vector].plus(first), &squares[vector])
                .carried();
        }
    }
    for step in 2 * pairs..steps {
        let now = _mm512_set1_epi64(step as i64);
        for vector in 0..VECTORS {
            let block = Number::gather(|lane| {
                let at = (step * BLOCK).min(last[vector][lane]);
                let place = texts[vector][lane].wrapping_add(at);
                // SAFETY: the last full block of the text at most; without one the pointer is
                // that of `ZEROES`.
                unsafe { _mm_loadu_si128(place.cast()) }
            });
            let next = sums[vector].plus(block).times(&factors[vector]);
            let active = _mm512_cmpgt_epu64_mask(load(&full[vector]), now);
            sums[vector] = sums[vector].blend(active, next);
        }
    }
    for vector in 0..VECTORS {
        let block = Number::gather(|lane| {
            let text = lanes[vector][lane].text;
            let rest = text.as_ptr().wrapping_add(text.len() / BLOCK * BLOCK);
            // SAFETY: the mask has one bit for each byte behind the last full block.
            unsafe { _mm_maskz_loadu_epi8(partial[vector][lane], rest.cast()) }
        });
        let next = sums[vector].plus(block).times(&factors[vector]);
        let present = _mm512_test_epi64_mask(load(&text_lens[vector]), _mm512_set1_epi64(15));
        let sum = sums[vector].blend(present, next);
        let lengths = Number::from_halves(
            load(&aad_lens[vector]),
            load(&text_lens[vector]),
            _mm512_set1_epi64(HIGH_BIT as i64),
        );
        let sum = sum.plus(lengths).times(&factors[vector]);
        for (limb, values) in limbs[vector].iter_mut().zip(sum.0) {
            // SAFETY: eight lanes of eight bytes.
            unsafe { _mm512_storeu_si512(limb.as_mut_ptr().cast(), values) };
        }
    }
    for (place, index) in group.iter().enumerate() {
        let index = usize::from(*index);
        let limbs = &limbs[place / LANES];
        tags[index] = messages[index].tag([0, 1, 2].map(|limb| limbs[limb][place % LANES]));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(lanes: &[u64; LANES]) -> __m512i {
    // SAFETY: eight lanes of eight bytes.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

/// The tag of one message of at least [`LONG`](super::LONG) full blocks, eight blocks at a time: each lane
/// multiplies by r^8, and at the end by the power that its last block lacks.
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) fn long(message: &Message<'_>) -> [u8; BLOCK] {
    let r = Number(limbs(message).map(|limb| _mm512_set1_epi64(limb as i64)));
    let r2 = r.times(&Factor::new(r));
    let r2_factor = Factor::new(r2);
    let r4 = r2.times(&r2_factor);
    let r4_factor = Factor::new(r4);
    let r8 = Factor::new(r4.times(&r4_factor));
    // Exponents 8, 4, 7, 3, 6, 2, 5, 1: one more than these bits say.
    let powers = r.blend(0b0011_0011, r2);
    let powers = powers.blend(0b0000_1111, powers.times(&r2_factor));
    let powers = powers.blend(0b0101_0101, powers.times(&r4_factor));

    // The blocks are padded in front, with zeroes that lack the high bit, so that they fill
    // the lanes.
    let full = message.full_blocks();
    let partial = message.partial_block();
    let after = usize::from(partial.is_some()) + 1;
    let zeroes = (LANES - (1 + full + after) % LANES) % LANES;
    let (head_text, text) = message.text.split_at((LANES - 1 - zeroes) * BLOCK);
    let mut head = [0; LANES * BLOCK];
    let (_, rest) = head.split_at_mut(zeroes * BLOCK);
    rest[..BLOCK].copy_from_slice(&message.aad);
    rest[BLOCK..].copy_from_slice(head_text);
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let counted = _mm512_cmpge_epu64_mask(order, _mm512_set1_epi64(zeroes as i64));
    let high_bits = _mm512_maskz_set1_epi64(counted, HIGH_BIT as i64);
    let mut sum = Number::from_bytes(&head, high_bits).times(&r8);

    let text = &text[..text.len() / BLOCK * BLOCK];
    let (middle, tail_text) = text.split_at(text.len() - (LANES - after) * BLOCK);
    let high_bits = _mm512_set1_epi64(HIGH_BIT as i64);
    let (chunks, _) = middle.as_chunks();
    for chunk in chunks {
        sum = sum.plus(Number::from_bytes(chunk, high_bits)).times(&r8);
    }

    let mut tail = [0; LANES * BLOCK];
    let (front, back) = tail.split_at_mut(tail_text.len());
    front.copy_from_slice(tail_text);
    let (blocks, _) = back.as_chunks_mut();
    let ending = partial.into_iter().chain([message.length_block()]);
    for (place, block) in blocks.iter_mut().zip(ending) {
        *place = block;
    }
    let sum = sum.plus(Number::from_bytes(&tail, high_bits));
    let sum = sum.times(&Factor::new(powers));
    message.tag(sum.0.map(|limb| _mm512_reduce_add_epi64(limb) as u64))
}

/// r in limbs.
fn limbs(message: &Message<'_>) -> [u64; 3] {
    let r = message.r();
    [
        r as u64 & MASK_44,
        (r >> 44) as u64 & MASK_44,
        (r >> 88) as u64,
    ]
}

//! One packet, four neighbouring blocks to a vector.

use core::arch::x86_64::*;
use core::ptr::null;

use zeroize::Zeroize;

use super::super::key::{GcmKey, ROUND_KEYS};
use super::super::packet::Packet;
use super::chunk::{self, CHUNK, Hash, Output, Sum, Text};
use super::hash::Products;
use super::line::Steps;
use super::{finish, lanes, reverse_bytes};

/// Packets that are worked on one after the other. The hash of what is sealed is computed with
/// the AES of the next chunk, the tag with that of the one after it; often these are of another
/// packet. The hash of what is opened is computed with the AES of the same chunk.
#[repr(C, align(64))]
pub(super) struct Rows {
    /// The first and the last vector of the last output.
    edges: [__m512i; 2],
    sum: Sum,
    pending: Hash,
    text: Text,
    /// Whose round keys these are.
    key: *const GcmKey,
    /// Each in four lanes.
    round_keys: [__m512i; ROUND_KEYS],
    /// The packet that ends with what is pending, or null.
    ending: *mut Packet,
    /// The packet that has ended with the sum, or null.
    ended: *mut Packet,
    /// The mask for the tag of the packet of what is pending.
    mask: __m512i,
}

/// The least text of a packet that can be a row, in bytes: with its two other blocks, two vectors.
pub(super) const LEAST: usize = 33;

/// Four more in the last byte of each lane, eight more, ...
static STEPS: Steps = Steps::of(4 << 24);

/// What the first four counter blocks have in the last byte, for each number of empty lanes.
static STARTS: [[u128; 4]; 4] = {
    let mut starts = [[0; 4]; 4];
    let mut n = 0;
    while n < 16 {
        // What comes before the first block means nothing.
        starts[n / 4][n % 4] = ((n % 4 + 1).wrapping_sub(n / 4) as u8 as u128) << 120;
        n += 1;
    }
    starts
};

impl Rows {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn new() -> Self {
        let zero = _mm512_setzero_si512();
        Self {
            edges: [zero; 2],
            sum: Sum {
                products: Products::zero(),
                mask: zero,
                powers: null(),
                out: core::ptr::null_mut(),
            },
            pending: Hash {
                first: null(),
                last: null(),
                end: null(),
                between: 0,
                powers: null(),
                packet: null(),
                masks: [0; 2],
                lanes: [0; 2],
                whole: false,
                start: null(),
            },
            text: Text {
                keys: null(),
                extra: 0,
                at: core::ptr::null_mut(),
                masks: [0; 2],
                whole: false,
            },
            key: null(),
            round_keys: [zero; ROUND_KEYS],
            ending: core::ptr::null_mut(),
            ended: core::ptr::null_mut(),
            mask: zero,
        }
    }

    /// Seals or opens a packet.
    ///
    /// The counter block of the tag and the authenticated data share the first block of the row,
    /// the text follows, the lengths are the last, which is the last of a vector.
    ///
    /// # Safety
    /// The CPU has what the kernel needs; the packet has a text of at least [`LEAST`] bytes and is
    /// valid until [`Rows::drain`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) unsafe fn crypt<const SEAL: bool>(&mut self, packet: *mut Packet) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let Packet { key, text, len, .. } = *packet;
            let blocks = 2 + len.div_ceil(16);
            let vectors = blocks.div_ceil(4);
            // Empty lanes before the first block.
            let gap = 4 * vectors - blocks;
            let first_lane = 0b11 << (2 * gap);
            // The text begins with a block of its own and ends in the last vector, which it
            // shares with the lengths.
            let first_bytes: u64 = !0xffff << (16 * gap);
            let last_bytes = _bzhi_u64(!0, 33 + (len as u32 - 1) % 16);
            let strides = (&raw const (*key).strides).cast::<u128>();

            let start = _mm512_loadu_si512(STARTS[gap].as_ptr().cast());
            let mut counters = _mm512_or_si512(start, lanes((*packet).counter as i128));
            // The counter in the first lane, if that has one.
            let mut number = 0;
            let mut left = vectors;
            let mut count = first_chunk(vectors);
            if self.key != key {
                self.expand(key);
            }
            let mut at = text.wrapping_sub(16 * (gap + 1));
            let mut first_bytes = first_bytes;
            let mut lane = first_lane;
            if SEAL && self.pending.packet.is_null() {
                // There is nothing to be hashed yet; this makes it zeroes.
                self.pending = Hash {
                    first: self.edges.as_ptr().cast(),
                    last: self.edges.as_ptr().cast(),
                    end: null(),
                    between: 0,
                    powers: strides,
                    packet,
                    masks: [0; 2],
                    lanes: [0; 2],
                    whole: false,
                    start: null(),
                };
            }
            loop {
                left -= count;
                let is_last = left == 0;
                let last_bytes = if is_last { last_bytes } else { !0 };
                let whole = !is_last && lane == 0;
                self.text.masks = [first_bytes, last_bytes];
                self.text.whole = whole;
                self.text.at = at;
                let last_at = at.wrapping_add(64 * (count - 1)).cast_const();
                let copied = SEAL && !whole;
                let hash = Hash {
                    first: if copied {
                        self.edges.as_ptr().cast()
                    } else {
                        at.cast_const()
                    },
                    last: if copied {
                        self.edges[1..].as_ptr().cast()
                    } else {
                        last_at
                    },
                    end: last_at,
                    between: count - 2,
                    powers: strides.wrapping_add(usize::from(!is_last)),
                    packet,
                    masks: [first_bytes, last_bytes],
                    lanes: [lane, if is_last { 0xc0 } else { 0 }],
                    whole,
                    start: null(),
                };
                let ending = if is_last {
                    packet
                } else {
                    core::ptr::null_mut()
                };
                if !SEAL {
                    self.pending = hash;
                    self.ending = ending;
                    let output = self.chunk(count, counters, number);
                    self.end_tag::<SEAL>(output.tag);
                    counters = output.counters;
                    if lane != 0 {
                        self.mask = _mm512_maskz_mov_epi64(lane as u8, output.first);
                    }
                    self.hashed();
                } else {
                    let output = self.chunk(count, counters, number);
                    self.end_tag::<SEAL>(output.tag);
                    counters = output.counters;
                    self.hashed();
                    if lane != 0 {
                        self.mask = _mm512_maskz_mov_epi64(lane as u8, output.first);
                    }
                    self.pending = hash;
                    self.ending = ending;
                }
                if is_last {
                    return;
                }
                number = if lane != 0 {
                    4 * count + 1 - gap
                } else {
                    number + 4 * count
                };
                at = at.wrapping_add(64 * count);
                first_bytes = !0;
                lane = 0;
                count = (left - 1) % CHUNK + 1;
            }
        }
    }

    /// Spreads the round keys of another key.
    ///
    /// # Safety
    /// As for [`Rows::crypt`].
    #[inline(always)]
    unsafe fn expand(&mut self, key: *const GcmKey) {
        self.key = key;
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.text.keys = &raw const self.round_keys;
            self.text.extra = usize::from((*key).rounds) - 10;
            for (lanes, key) in self.round_keys.iter_mut().zip(&(*key).round_keys) {
                *lanes = super::lanes(*key as i128);
            }
        }
    }

    /// Works on a chunk; its first counter block has the number `number`.
    ///
    /// # Safety
    /// As for [`Rows::crypt`].
    #[inline(always)]
    unsafe fn chunk(&mut self, count: usize, counters: __m512i, number: usize) -> Output {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let mut carrying = None;
            let steps = steps(counters, number, count, &mut carrying);
            chunk::crypt::<true>(
                count,
                &self.text,
                counters,
                steps,
                &self.pending,
                &mut self.sum,
                &mut self.edges,
            )
        }
    }

    /// Writes or compares the ICV of the packet that has ended, if any.
    ///
    /// # Safety
    /// As for [`Rows::crypt`].
    #[inline(always)]
    unsafe fn end_tag<const SEAL: bool>(&mut self, tag: __m128i) {
        if !self.ended.is_null() {
            // SAFETY: the caller keeps the contract.
            unsafe { finish::<SEAL>(self.ended, tag) };
        }
    }

    /// What was pending has become the sum.
    ///
    /// # Safety
    /// As for [`Rows::crypt`].
    #[inline(always)]
    unsafe fn hashed(&mut self) {
        self.ended = self.ending;
        self.sum.powers = null();
        if !self.ended.is_null() {
            self.sum.mask = self.mask;
            // SAFETY: the caller keeps the contract.
            self.sum.powers = unsafe { (*self.ended).key().powers.as_ptr() };
        }
    }

    /// Ends the work on all packets.
    ///
    /// # Safety
    /// As for [`Rows::crypt`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) unsafe fn drain<const SEAL: bool>(&mut self) {
        if self.pending.packet.is_null() {
            return;
        }
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.finish_tag::<SEAL>();
            if SEAL {
                let sum = if self.ended.is_null() {
                    self.sum.products.reduce()
                } else {
                    _mm512_setzero_si512()
                };
                self.sum.products = chunk::hash(&self.pending, sum);
                self.hashed();
                self.finish_tag::<SEAL>();
            }
        }
        // Of the first vector of a packet, one lane is the mask of its tag.
        self.edges.zeroize();
        self.round_keys.zeroize();
        self.key = null();
        self.mask.zeroize();
        self.sum.mask.zeroize();
        self.pending.packet = null();
        self.ended = core::ptr::null_mut();
        self.sum.powers = null();
        self.sum.products = Products::zero();
    }

    /// The tag of a packet that has ended, if any.
    ///
    /// # Safety
    /// As for [`Rows::crypt`].
    #[inline(always)]
    unsafe fn finish_tag<const SEAL: bool>(&mut self) {
        if self.ended.is_null() {
            return;
        }
        // SAFETY: the caller keeps the contract; there are four powers.
        unsafe {
            let rising = _mm512_loadu_si512(self.sum.powers.cast());
            let falling = _mm512_shuffle_i64x2(rising, rising, 0x1b);
            let sum = self.sum.products.reduce();
            let sum = reverse_bytes(Products::of(sum, falling).reduce());
            let sum = _mm512_xor_si512(sum, self.sum.mask);
            let half = _mm256_xor_si256(
                _mm512_castsi512_si256(sum),
                _mm512_extracti64x4_epi64(sum, 1),
            );
            let tag = _mm_xor_si128(
                _mm256_castsi256_si128(half),
                _mm256_extracti128_si256(half, 1),
            );
            self.end_tag::<SEAL>(tag);
        }
    }
}

/// What the counter blocks of a chunk add to `counters`, of which the first has the number `number`.
#[inline(always)]
pub(super) unsafe fn steps(
    counters: __m512i,
    number: usize,
    count: usize,
    carrying: &mut Option<Steps>,
) -> &Steps {
    // Only the last byte counts within most chunks and on to the next.
    if number % 256 + 4 * (count + 1) <= 256 {
        &STEPS
    } else {
        // SAFETY: the caller's CPU has what the kernel needs.
        carrying.insert(unsafe { carrying_steps(counters) })
    }
}

/// Vectors of the first chunk of a row: such that all others but the second are full, and these two
/// not so short that AES waits for itself.
#[inline(always)]
pub(super) const fn first_chunk(vectors: usize) -> usize {
    let rest = (vectors - 1) % CHUNK + 1;
    if rest < CHUNK / 2 && vectors > CHUNK {
        rest.div_ceil(2) + CHUNK / 2
    } else {
        rest
    }
}

/// The steps of a chunk in which other bytes of the counters than the last change, as
/// differences of words from `counters`.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn carrying_steps(counters: __m512i) -> Steps {
    let first = swap_counters(counters);
    let mut steps = STEPS;
    for (n, step) in steps.0.iter_mut().enumerate() {
        let more = _mm512_add_epi32(first, lanes((4 * (n as i128 + 1)) << 96));
        *step = _mm512_sub_epi32(swap_counters(more), counters);
    }
    steps
}

/// Counters in the last four bytes of each lane from the CPU's byte order to the network's, or
/// back.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn swap_counters(counters: __m512i) -> __m512i {
    const INDICES: i128 = 0x0c0d0e0f_0b0a0908_07060504_03020100;
    _mm512_shuffle_epi8(counters, lanes(INDICES))
}

//! The vectors of packets that are worked on as rows, four blocks of one packet to a vector.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;
use core::ptr::{null, null_mut};

use zeroize::Zeroize;

use super::super::super::key::{GcmKey, ROUND_KEYS};
use super::super::chunk::{self, CHUNK, Hash, Sum, Text};
use super::super::hash::Products;
use super::super::lanes;
use super::super::row::{first_chunk, steps};
use super::hashing::Before;

/// Rows of four packets after those of four others. The hash of what is sealed is computed with the
/// AES of the next chunk, often of another packet, that of what is opened with the AES of the same
/// chunk.
pub(super) struct Rows {
    pending: Hash,
    /// Where the hash of what is pending goes.
    pending_out: *mut __m512i,
    sum: Sum,
    text: Text,
    /// Whose round keys these are, or null.
    key: *const GcmKey,
    /// Each in four lanes.
    round_keys: MaybeUninit<[__m512i; ROUND_KEYS]>,
    /// Where packets begin, what is to be added to their first blocks, for these four and those before.
    starts: MaybeUninit<[[__m512i; 4]; 2]>,
    /// The hashes of these four and those before.
    hashes: [[__m512i; 4]; 2],
    /// Which of the two are these.
    latest: usize,
    /// Where hashes go that are not those of a whole row, and what the hash of nothing is computed of.
    nowhere: [__m512i; 2],
}

/// The rows of four packets.
pub(super) struct Group<'a> {
    pub(super) keys: [&'a GcmKey; 4],
    /// Round keys of all in four lanes each, if there are such.
    pub(super) round_keys: *const __m512i,
    pub(super) texts: [*mut u8; 4],
    /// At least [`LEAST_ROWS`](super::LEAST_ROWS).
    pub(super) vectors: [usize; 4],
    /// Counter blocks with the counter 0.
    pub(super) counters: __m512i,
    /// The hashes of what comes before.
    pub(super) before: __m512i,
}

/// The numbers of the first counter blocks of a text.
static FIRST_FOUR: [u128; 4] = [2 << 120, 3 << 120, 4 << 120, 5 << 120];

impl Rows {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn new() -> Self {
        let zero = _mm512_setzero_si512();
        Self {
            pending: Hash {
                first: null(),
                last: null(),
                end: null(),
                between: 0,
                powers: null(),
                packet: null(),
                masks: [!0; 2],
                lanes: [0; 2],
                whole: true,
                start: null(),
            },
            pending_out: null_mut(),
            sum: Sum {
                products: Products::zero(),
                mask: zero,
                powers: null(),
                out: null_mut(),
            },
            text: Text {
                keys: null(),
                extra: 0,
                at: null_mut(),
                masks: [!0; 2],
                whole: true,
            },
            key: null(),
            round_keys: MaybeUninit::uninit(),
            starts: MaybeUninit::uninit(),
            hashes: [[zero; 4]; 2],
            latest: 0,
            nowhere: [zero; 2],
        }
    }

    /// Seals or opens the rows of four packets.
    ///
    /// # Safety
    /// The CPU has what the kernel needs; the rows are valid until the next, or until
    /// [`finish`](Self::finish); this stays where it is.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) unsafe fn crypt<const SEAL: bool>(&mut self, group: &Group<'_>) {
        // SAFETY: the caller keeps the contract: a chunk is of two vectors at least.
        unsafe {
            self.latest ^= 1;
            let starts = self.starts.as_mut_ptr().cast::<[__m512i; 4]>();
            let starts = starts.add(self.latest & 1);
            let hashes = &raw mut self.hashes[self.latest & 1];
            let before = group.before;
            *starts = [
                _mm512_maskz_mov_epi64(0x03, before),
                _mm512_maskz_shuffle_i64x2(0x03, before, before, 1),
                _mm512_maskz_shuffle_i64x2(0x03, before, before, 2),
                _mm512_maskz_shuffle_i64x2(0x03, before, before, 3),
            ];
            let counters = group.counters;
            let counters = [
                _mm512_shuffle_i64x2(counters, counters, 0x00),
                _mm512_shuffle_i64x2(counters, counters, 0x55),
                _mm512_shuffle_i64x2(counters, counters, 0xaa),
                _mm512_shuffle_i64x2(counters, counters, 0xff),
            ];
            let nowhere = (&raw mut self.nowhere).cast::<__m512i>();
            if self.sum.out.is_null() {
                self.sum.out = nowhere;
                self.pending_out = nowhere;
                self.pending.first = nowhere.cast();
                self.pending.end = nowhere.cast();
                self.pending.powers = group.keys[0].strides.as_ptr();
            }
            for lane in 0..4 {
                let key = group.keys[lane];
                self.take_keys(key, group.round_keys);
                // H^4, H^8, ...
                let powers = key.strides.as_ptr().add(1);
                let first = _mm512_loadu_si512(FIRST_FOUR.as_ptr().cast());
                let mut counters = _mm512_or_si512(counters[lane], first);
                let mut number = 2;
                let mut at = group.texts[lane];
                let mut left = group.vectors[lane];
                let mut count = first_chunk(left);
                let mut start = starts.cast::<__m512i>().add(lane).cast_const();
                loop {
                    left -= count;
                    let out = if left == 0 {
                        hashes.cast::<__m512i>().add(lane)
                    } else {
                        nowhere
                    };
                    if !SEAL {
                        self.hash_next(at, count, powers, start, out);
                    }
                    self.text.at = at;
                    let mut carrying = None;
                    let steps = steps(counters, number, count, &mut carrying);
                    let output = chunk::crypt::<false>(
                        count,
                        &self.text,
                        counters,
                        steps,
                        &self.pending,
                        &mut self.sum,
                        &mut *nowhere.cast(),
                    );
                    self.sum.out = self.pending_out;
                    if SEAL {
                        self.hash_next(at, count, powers, start, out);
                    }
                    if left == 0 {
                        break;
                    }
                    start = null();
                    counters = output.counters;
                    number += 4 * count;
                    at = at.wrapping_add(64 * count);
                    count = (left - 1) % CHUNK + 1;
                }
            }
        }
    }

    /// The hashes of the rows before the latest, when these have been sealed.
    pub(super) const fn before_latest(&self) -> &Before {
        &self.hashes[(self.latest ^ 1) & 1]
    }

    /// The hashes of the latest rows, when these have been opened.
    ///
    /// # Safety
    /// As for [`Rows::crypt`].
    #[inline(always)]
    pub(super) unsafe fn opened(&mut self) -> &Before {
        let hashes = &mut self.hashes[self.latest & 1];
        // SAFETY: the caller's CPU has what the kernel needs.
        hashes[3] = unsafe { self.sum.products.reduce() };
        hashes
    }

    /// The hashes of the last rows, when these have been sealed.
    ///
    /// # Safety
    /// As for [`Rows::crypt`]; there were some.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) unsafe fn finish(&mut self) -> &Before {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let sum = self.sum.products.reduce();
            *self.sum.out = sum;
            let start = self.pending.start;
            let start = if start.is_null() { sum } else { *start };
            *self.pending_out = chunk::hash_whole(&self.pending, start).reduce();
        }
        &self.hashes[self.latest & 1]
    }

    /// Round keys, and what can be computed of hashes, do not stay on the stack.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn wipe(&mut self) {
        if !self.key.is_null() {
            self.round_keys.zeroize();
        }
        self.sum.products.low.zeroize();
        self.sum.products.middle.zeroize();
        self.sum.products.high.zeroize();
        self.starts.zeroize();
        self.hashes.zeroize();
    }

    /// `count` vectors are to be hashed, beginning with `start` if there is one.
    #[inline(always)]
    fn hash_next(
        &mut self,
        first: *const u8,
        count: usize,
        powers: *const u128,
        start: *const __m512i,
        out: *mut __m512i,
    ) {
        self.pending.first = first;
        self.pending.end = first.wrapping_add(64 * (count - 1));
        self.pending.between = count - 2;
        self.pending.powers = powers;
        self.pending.start = start;
        self.pending_out = out;
    }

    /// # Safety
    /// As for [`Rows::crypt`].
    #[inline(always)]
    unsafe fn take_keys(&mut self, key: &GcmKey, round_keys: *const __m512i) {
        self.text.extra = usize::from(key.rounds) - 10;
        if !round_keys.is_null() {
            self.text.keys = round_keys.cast();
            return;
        }
        self.text.keys = self.round_keys.as_ptr();
        if !core::ptr::eq(self.key, key) {
            self.key = key;
            let places = self.round_keys.as_mut_ptr().cast::<__m512i>();
            for (n, key) in key.round_keys.iter().enumerate() {
                // SAFETY: there are as many places; the caller's CPU has what the kernel needs.
                unsafe { places.add(n).write(lanes(*key as i128)) };
            }
        }
    }
}

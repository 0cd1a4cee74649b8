//! Where four packets are, and what is in their headers.

use core::arch::x86_64::*;

use super::super::super::packet::{NONCE, WITH_HIGH_HALF, WITHOUT_HIGH_HALF};
use super::super::hash::join;
use super::super::lanes;
use super::super::spread::Spread;
use super::shape::{Shape, rows, vectors};
use super::{COUNTERS, HEADER, ICV};
use crate::aead::Job;

/// What the packets of a run have in common.
pub(super) struct Form {
    /// Where the bytes of the authenticated data are in the header.
    pub(super) aad: __m512i,
    /// The words of the high halves of the sequence numbers.
    pub(super) high: __mmask16,
    /// The lengths, without those of the text.
    pub(super) lengths: __m512i,
    /// Rounds beyond those of AES-128.
    pub(super) extra: usize,
}

impl Form {
    #[inline(always)]
    pub(super) unsafe fn new(esn: bool, extra: usize) -> Self {
        // RFC 4106 section 5: the SPI and the 32-bit or 64-bit sequence number.
        let (aad, high, aad_bits) = if esn {
            (WITH_HIGH_HALF, 0x4444, 96)
        } else {
            (WITHOUT_HIGH_HALF, 0, 64)
        };
        // SAFETY: the caller's CPU has what the kernel needs.
        unsafe {
            Self {
                aad: lanes(aad as i128),
                high,
                lengths: lanes(aad_bits << 64),
                extra,
            }
        }
    }
}

/// Four packets.
pub(super) struct Four {
    /// What is not in rows.
    pub(super) texts: [*mut u8; 4],
    pub(super) icvs: [*mut u8; 4],
    /// Counter blocks with the counter 0, after the addition of the first round keys.
    pub(super) counters: __m512i,
    pub(super) aad: __m512i,
    pub(super) lengths: __m512i,
    /// The bytes of the last vector of each, if that is not whole.
    pub(super) last_vectors: [u64; 4],
    /// The bytes of the last column.
    pub(super) last_column: u64,
    /// Their ICVs as they were given.
    pub(super) given: __m512i,
    /// Vectors in rows.
    pub(super) rows: [usize; 4],
    /// The numbers of the last counter blocks of the rows, in the words for them but in the
    /// CPU's byte order.
    pub(super) numbers: __m512i,
}

impl Four {
    /// # Safety
    /// As for [`run`]; the jobs have this shape.
    #[inline(always)]
    pub(super) unsafe fn new<A: Shape, B: Shape>(
        jobs: &[&mut Job<'_>; 4],
        keys: *const Spread,
        form: &Form,
        middles: usize,
    ) -> Self {
        // SAFETY: the caller keeps the contract: there are header and ICV.
        unsafe {
            let vectors = vectors::<A, B>(middles);
            let esps = four!(i => jobs[i].esp.as_ptr().cast_mut());
            let whole_lens = four!(i => jobs[i].esp.len() - HEADER - ICV);
            let rows = four!(i => if A::ROWS { opaque(rows(whole_lens[i])) } else { 0 });
            let lens = four!(i => whole_lens[i] - 64 * rows[i]);
            let texts = four!(i => esps[i].add(HEADER + 64 * rows[i]));
            let icvs = four!(i => texts[i].add(lens[i]));

            let headers = join(four!(i => _mm_loadu_si128(esps[i].cast())));
            // RFC 4106 section 4: the nonce is the salt, then the IV.
            let ivs = _mm512_shuffle_epi8(headers, lanes(NONCE as i128));
            let [e, f, g, h] = four!(i => (jobs[i].sequence >> 32) as i32);
            let high = _mm512_castsi128_si512(_mm_set_epi32(h, g, f, e));
            let aad = _mm512_or_si512(
                _mm512_shuffle_epi8(headers, form.aad),
                _mm512_maskz_expand_epi32(form.high, high),
            );
            let wide_lens = if B::TAIL == 0 {
                lanes(64 * vectors as i128)
            } else {
                widened(lens)
            };
            let (mut numbers, mut lengths) = (_mm512_setzero_si512(), wide_lens);
            if A::ROWS {
                let rows = widened(rows);
                lengths = _mm512_add_epi64(lengths, _mm512_slli_epi64(rows, 6));
                // The first counter block of the text is number 2.
                let blocks = _mm512_slli_epi64(rows, 2);
                let last = _mm512_add_epi64(blocks, _mm512_set1_epi64(1));
                numbers = _mm512_maskz_shuffle_epi32(0x8888, last, 0);
            }
            let mut last_column = !0;
            if B::MORE > 0 {
                let before = 64 * vectors + 16 * (B::MORE - 1);
                let bytes = _mm512_sub_epi64(wide_lens, _mm512_set1_epi64(before as i64));
                let bytes = _mm512_shuffle_epi8(bytes, _mm512_setzero_si512());
                let numbers = lanes(0x0f0e0d0c_0b0a0908_07060504_03020100);
                last_column = _mm512_cmplt_epu8_mask(numbers, bytes);
            }
            Self {
                texts,
                icvs,
                counters: _mm512_xor_si512(ivs, (*keys).whitening),
                aad,
                lengths: _mm512_or_si512(_mm512_slli_epi64(lengths, 3), form.lengths),
                last_vectors: four!(i => _bzhi_u64(!0, (lens[i] - 64 * (vectors - 1)) as u32)),
                last_column,
                given: join(four!(i => _mm_loadu_si128(icvs[i].cast()))),
                rows,
                numbers,
            }
        }
    }

    /// A vector of text of a packet.
    ///
    /// # Safety
    /// As for [`run`]; the part has that vector, `from` vectors behind the start.
    #[inline(always)]
    pub(super) unsafe fn row<S: Shape>(&self, from: usize, vector: usize, lane: usize) -> __m512i {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let at = self.texts[lane].add(64 * (from + vector)).cast();
            if S::TAIL >= 3 && vector == S::VECTORS - 1 {
                _mm512_maskz_loadu_epi8(self.last_vectors[lane], at)
            } else {
                _mm512_loadu_si512(at.cast())
            }
        }
    }

    /// Where a column behind the vectors is.
    #[inline(always)]
    pub(super) unsafe fn more_at<S: Shape>(&self, from: usize, column: usize) -> [*mut u8; 4] {
        let offset = 64 * (from + S::VECTORS) + 16 * column;
        four!(i => self.texts[i].wrapping_add(offset))
    }

    /// A column behind the vectors; beyond the text there are bytes of the ICV in it.
    ///
    /// # Safety
    /// As for [`Four::row`].
    #[inline(always)]
    pub(super) unsafe fn more<S: Shape>(&self, from: usize, column: usize) -> __m512i {
        // SAFETY: the caller keeps the contract; the ICV is as long as a block.
        unsafe {
            let at = self.more_at::<S>(from, column);
            join(four!(i => _mm_loadu_si128(at[i].cast())))
        }
    }

    /// The bytes of a column behind the vectors that are text.
    #[inline(always)]
    pub(super) unsafe fn of_text<S: Shape>(&self, column: usize, block: __m512i) -> __m512i {
        if column + 1 == S::TAIL {
            // SAFETY: the caller's CPU has what the kernel needs.
            unsafe { _mm512_maskz_mov_epi8(self.last_column, block) }
        } else {
            block
        }
    }
}

/// The same number, of which the compiler knows nothing: it would compute with four in a register
/// and take them out again.
#[inline(always)]
fn opaque(number: usize) -> usize {
    super::super::opaque(core::ptr::without_provenance_mut::<u8>(number)).addr()
}

/// A number to each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn widened([a, b, c, d]: [usize; 4]) -> __m512i {
    let numbers = _mm256_set_epi64x(d as i64, c as i64, b as i64, a as i64);
    _mm512_maskz_expand_epi64(0x55, _mm512_castsi256_si512(numbers))
}

/// The numbers of counter blocks in network byte order, 1 for the tag, 2 and more for the text.
pub(super) static NUMBERS: [u32; COUNTERS] = {
    let mut numbers = [0; COUNTERS];
    let mut n = 0;
    while n < COUNTERS {
        numbers[n] = (n as u32 + 1).to_be();
        n += 1;
    }
    numbers
};

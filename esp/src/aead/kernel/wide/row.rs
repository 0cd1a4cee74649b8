//! One packet, four neighbouring blocks to a vector.

use core::arch::x86_64::*;

use super::super::lanes::unrolled;
use super::aes::pin;
use super::hash::Products;
use super::line::{Kind, Line, Steps, Text};
use super::unit::Unit;
use super::{bytes_of_text, finish, lanes, reverse_bytes};

/// Vectors in all chunks but the first.
const CHUNK: usize = 8;

/// Seals or opens a packet.
///
/// # Safety
/// The CPU has what the kernel needs; the unit is a row, and valid with its packet until the
/// line has been drained.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn crypt<const SEAL: bool>(line: &mut Line, unit: &mut Unit) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let packet = &*unit.packets[0];
        let gap = unit.leads[0];
        let lane = |n: i32| n + 1 - gap as i32;
        #[rustfmt::skip]
        let numbers = _mm512_set_epi32(
            lane(3), 0, 0, 0, lane(2), 0, 0, 0, lane(1), 0, 0, 0, lane(0), 0, 0, 0,
        );
        // In the byte order of the CPU.
        let mut counters = _mm512_or_si512(lanes(packet.counter as i128), numbers);
        let mut start = 0;
        let mut count = (unit.length - 1) % CHUNK + 1;
        while start < unit.length {
            match count {
                1 => chunk::<SEAL, 1>(line, unit, start, counters),
                2 => chunk::<SEAL, 2>(line, unit, start, counters),
                3 => chunk::<SEAL, 3>(line, unit, start, counters),
                4 => chunk::<SEAL, 4>(line, unit, start, counters),
                5 => chunk::<SEAL, 5>(line, unit, start, counters),
                6 => chunk::<SEAL, 6>(line, unit, start, counters),
                7 => chunk::<SEAL, 7>(line, unit, start, counters),
                _ => chunk::<SEAL, CHUNK>(line, unit, start, counters),
            }
            if start == 0 {
                unit.masks = _mm512_maskz_mov_epi64(0b11 << (2 * gap), line.keystream[0]);
            }
            counters = count_up(counters, 4 * count);
            start += count;
            count = CHUNK;
        }
    }
}

/// Four more in the last byte of each lane, eight more, ...
static STEPS: Steps = Steps::of(4 << 24);

/// `COUNT` vectors from number `start`.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
unsafe fn chunk<const SEAL: bool, const COUNT: usize>(
    line: &mut Line,
    unit: &mut Unit,
    start: usize,
    counters: __m512i,
) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let first_counter = (4 * start + 1).wrapping_sub(unit.leads[0]);
        let base = counter_blocks(counters);
        if first_counter % 256 + 4 * COUNT <= 256 {
            // Only the last byte counts within this chunk.
            line.encrypt::<SEAL, COUNT>(unit, base, &STEPS);
        } else {
            line.encrypt::<SEAL, COUNT>(unit, base, &carrying_steps(counters, base));
        }
        line.text = Text {
            kind: Kind::Row,
            unit,
            start,
            count: COUNT,
            skip: 0,
            last: start + COUNT == unit.length,
        };
    }
}

/// The steps of a chunk in which other bytes of the counters than the last change, as
/// differences of words from `base`.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn carrying_steps(counters: __m512i, base: __m512i) -> Steps {
    let mut steps = STEPS;
    for (n, step) in steps.0.iter_mut().enumerate() {
        *step = _mm512_sub_epi32(counter_blocks(count_up(counters, 4 * (n + 1))), base);
    }
    steps
}

/// Encrypts or decrypts vectors `N` and `N + 1` from the end of the chunk; their hash input is
/// put into `pair`.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_text<const SEAL: bool, const N: usize>(
    line: &Line,
    pair: &mut [__m512i; 2],
) {
    // SAFETY: the caller keeps the contract; vectors within the text are accessed whole, of
    // others the bytes that are.
    unsafe {
        let text = &line.text;
        let unit = &*text.unit;
        let packet = &*unit.packets[0];
        let offset = 64 * (text.start + text.count) as isize - 16 * (unit.leads[0] as isize + 1);
        if text.start > 0 && (N > 0 || !text.last) {
            // Both are whole.
            let end = packet.text.wrapping_offset(offset);
            unrolled!(I < 2, {
                let at = end.wrapping_sub(64 * (N + I + 1));
                let input = _mm512_loadu_si512(at.cast());
                let output = _mm512_xor_si512(input, line.keystream[CHUNK - 1 - N - I]);
                _mm512_storeu_si512(at.cast(), output);
                pair[I] = reverse_bytes(if SEAL { output } else { input });
            });
            if N + 2 == CHUNK {
                pair[1] = _mm512_xor_si512(pair[1], line.sum);
            }
        } else {
            unrolled!(I < 2, {
                let n = N + I;
                if n + 1 == text.count || (n == 0 && text.last) {
                    pair[I] = finish_edge::<SEAL>(line, n, offset);
                } else if n < text.count {
                    let at = packet.text.wrapping_offset(offset - 64 * (n as isize + 1));
                    let input = _mm512_loadu_si512(at.cast());
                    let keystream = line.keystream[text.count - 1 - n];
                    let output = _mm512_xor_si512(input, keystream);
                    _mm512_storeu_si512(at.cast(), output);
                    pair[I] = reverse_bytes(if SEAL { output } else { input });
                }
            });
        }
        let [first, second] = pair;
        pin([first, second]);
    }
}

/// Encrypts or decrypts vector `n` from the end of the chunk, which may be the first or the
/// last of the packet; returns its hash input. `offset` is where the chunk ends in the text.
///
/// # Safety
/// As for [`crypt`]; the chunk has this vector.
#[inline(always)]
unsafe fn finish_edge<const SEAL: bool>(line: &Line, n: usize, offset: isize) -> __m512i {
    // SAFETY: the caller keeps the contract; masks keep to the text.
    unsafe {
        let text = &line.text;
        let unit = &*text.unit;
        let packet = &*unit.packets[0];
        let offset = offset - 64 * (n as isize + 1);
        let at = packet.text.wrapping_offset(offset);
        let mask = bytes_of_text(offset, packet.len);
        let keystream = line.keystream[text.count - 1 - n];
        let input = _mm512_maskz_loadu_epi8(mask, at.cast());
        let output = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(input, keystream));
        _mm512_mask_storeu_epi8(at.cast(), mask, output);
        let mut block = reverse_bytes(if SEAL { output } else { input });
        if n + 1 == text.count {
            if text.start == 0 {
                let lane = 0b11 << (2 * unit.leads[0]);
                block = _mm512_mask_mov_epi64(block, lane, lanes(packet.aad as i128));
            } else {
                block = _mm512_xor_si512(block, line.sum);
            }
        }
        if n == 0 && text.last {
            block = _mm512_mask_mov_epi64(block, 0xc0, lanes(packet.lengths as i128));
        }
        block
    }
}

/// Multiplies the pair of the slot before.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn multiply<const SLOT: usize>(
    line: &Line,
    products: &mut Products,
    pair: &[__m512i; 2],
) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let text = &line.text;
        let n = SLOT - 1;
        let powers = &(*text.unit).keys.strides(text.last);
        if n + 1 < text.count {
            products.add_two(*pair, powers, n);
        } else if n < text.count {
            products.add(pair[0], powers, n);
        }
    }
}

/// Ends the work on a chunk: the tag, or the sum for the next.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn complete<const SEAL: bool>(line: &mut Line, products: Products) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        line.sum = products.reduce();
        if line.text.last {
            finish_tag::<SEAL>(&*line.text.unit, line.sum);
        }
    }
}

/// The tag of a packet from the sums of its lanes.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
unsafe fn finish_tag<const SEAL: bool>(unit: &Unit, sums: __m512i) {
    // SAFETY: the caller keeps the contract; there are four powers.
    unsafe {
        let packet = unit.packets[0];
        let rising = _mm512_loadu_si512((*packet).key().powers.as_ptr().cast());
        let falling = _mm512_shuffle_i64x2(rising, rising, 0x1b);
        let sum = reverse_bytes(Products::of(sums, falling).reduce());
        let sum = _mm512_xor_si512(sum, unit.masks);
        let half = _mm256_xor_si256(
            _mm512_castsi512_si256(sum),
            _mm512_extracti64x4_epi64(sum, 1),
        );
        let tag = _mm_xor_si128(
            _mm256_castsi256_si128(half),
            _mm256_extracti128_si256(half, 1),
        );
        finish::<SEAL>(packet, tag);
    }
}

/// Counters in the last four bytes of each lane from the CPU's byte order to the network's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn counter_blocks(counters: __m512i) -> __m512i {
    const INDICES: i128 = 0x0c0d0e0f_0b0a0908_07060504_03020100;
    _mm512_shuffle_epi8(counters, lanes(INDICES))
}

/// Adds to the last four bytes of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn count_up(counters: __m512i, by: usize) -> __m512i {
    _mm512_add_epi32(counters, lanes((by as i128) << 96))
}

//! One packet, four neighbouring blocks to a vector.

use core::arch::x86_64::*;

use super::aes::unrolled;
use super::hash::Products;
use super::line::{Kind, Line, Text};
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
            counters = _mm512_add_epi32(counters, lanes((4 * count as i128) << 96));
            start += count;
            count = CHUNK;
        }
    }
}

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
        if first_counter % 256 + 4 * COUNT <= 256 {
            // Only the last byte counts within this chunk.
            let counters = counter_blocks(counters);
            unrolled!(I < COUNT, {
                line.counters[I] = count_up(counters, (4 * I as u32) << 24);
            });
        } else {
            unrolled!(I < COUNT, {
                line.counters[I] = counter_blocks(count_up(counters, 4 * I as u32));
            });
        }
        line.encrypt::<SEAL, COUNT>(unit);
        line.text = Text {
            kind: Kind::Row,
            unit,
            start,
            count: COUNT,
            last: start + COUNT == unit.length,
        };
    }
}

/// Encrypts or decrypts up to four vectors of the chunk, from number `FROM` from the end.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_text<const SEAL: bool, const FROM: usize>(line: &mut Line) {
    // SAFETY: the caller keeps the contract; vectors within the text are accessed whole, of
    // others the bytes that are.
    unsafe {
        let text = line.text;
        let unit = &*text.unit;
        let packet = &*unit.packets[0];
        let offset = 64 * (text.start + text.count) as isize - 16 * (unit.leads[0] as isize + 1);
        let end = packet.text.wrapping_offset(offset);
        if text.start > 0 && !(FROM == 0 && text.last) {
            // All vectors are whole.
            unrolled!(I < 4, {
                let at = end.wrapping_sub(64 * (FROM + I + 1));
                let input = _mm512_loadu_si512(at.cast());
                let output = _mm512_xor_si512(input, line.keystream[CHUNK - 1 - FROM - I]);
                _mm512_storeu_si512(at.cast(), output);
                let mut block = reverse_bytes(if SEAL { output } else { input });
                if FROM + I == CHUNK - 1 {
                    block = _mm512_xor_si512(block, line.sum);
                }
                line.blocks[FROM + I] = block;
            });
            return;
        }
        for n in FROM..text.count.min(FROM + 4) {
            let offset = offset - 64 * (n as isize + 1);
            let at = packet.text.wrapping_offset(offset);
            let mask = bytes_of_text(offset, packet.len);
            let keystream = line.keystream[text.count - 1 - n];
            let input = _mm512_maskz_loadu_epi8(mask, at.cast());
            let output = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(input, keystream));
            _mm512_mask_storeu_epi8(at.cast(), mask, output);
            let mut block = reverse_bytes(if SEAL { output } else { input });
            if n + 1 == text.count && text.start == 0 {
                let lane = 0b11 << (2 * unit.leads[0]);
                block = _mm512_mask_mov_epi64(block, lane, lanes(packet.aad as i128));
            }
            if n == 0 && text.last {
                block = _mm512_mask_mov_epi64(block, 0xc0, lanes(packet.lengths as i128));
            }
            line.blocks[n] = block;
        }
    }
}

/// The tag of a packet from the sums of its lanes.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_tag<const SEAL: bool>(unit: &Unit, sums: __m512i) {
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
fn count_up(counters: __m512i, by: u32) -> __m512i {
    _mm512_add_epi32(counters, lanes(i128::from(by) << 96))
}

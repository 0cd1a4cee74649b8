//! One packet, four neighbouring blocks to a vector.

use core::arch::x86_64::*;

use super::super::packet::Packet;
use super::aes::{Keys, unrolled};
use super::hash::{Powers, Products};
use super::{Line, Task, bytes_of_text, finish, lanes, reverse_bytes};

/// Vectors in all chunks but the first.
const CHUNK: usize = 8;

/// A packet and where its blocks lie in vectors.
struct Row {
    packet: *mut Packet,
    keys: Keys,
    /// Empty lanes before the first block.
    gap: usize,
    vectors: usize,
    /// The nonce and counters of vector 0, in the byte order of the CPU.
    counters: __m512i,
}

/// Vectors of a row that have been encrypted.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    packet: *mut Packet,
    gap: usize,
    /// Bytes from the start of the text to the first vector.
    offset: isize,
    /// Holds the first block of the packet.
    first: bool,
    /// Holds the last block of the packet.
    pub(super) last: bool,
}

/// # Safety
/// The CPU has what the kernel needs; `packet` is valid until the line has been drained.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn crypt<const SEAL: bool>(line: &mut Line, packet: *mut Packet) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let blocks = 2 + (*packet).len.div_ceil(16);
        let vectors = blocks.div_ceil(4);
        let gap = vectors * 4 - blocks;
        let key = (*packet).key();
        let start = lanes((*packet).counter as i128);
        let lane = |n: i32| n + 1 - gap as i32;
        #[rustfmt::skip]
        let numbers = _mm512_set_epi32(
            lane(3), 0, 0, 0, lane(2), 0, 0, 0, lane(1), 0, 0, 0, lane(0), 0, 0, 0,
        );
        let row = &Row {
            packet,
            keys: Keys::new([key; 4]),
            gap,
            vectors,
            counters: _mm512_or_si512(start, numbers),
        };
        let mut start = 0;
        let mut count = (vectors - 1) % CHUNK + 1;
        while start < vectors {
            match count {
                1 => chunk::<SEAL, 1>(line, row, start),
                2 => chunk::<SEAL, 2>(line, row, start),
                3 => chunk::<SEAL, 3>(line, row, start),
                4 => chunk::<SEAL, 4>(line, row, start),
                5 => chunk::<SEAL, 5>(line, row, start),
                6 => chunk::<SEAL, 6>(line, row, start),
                7 => chunk::<SEAL, 7>(line, row, start),
                _ => chunk::<SEAL, CHUNK>(line, row, start),
            }
            start += count;
            count = CHUNK;
        }
    }
}

/// `COUNT` vectors from number `start`.
///
/// # Safety
/// As for [`crypt`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
unsafe fn chunk<const SEAL: bool, const COUNT: usize>(line: &mut Line, row: &Row, start: usize) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let counters = count_up(row.counters, 4 * start as u32);
        let first_counter = (4 * start + 1).wrapping_sub(row.gap);
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
        line.encrypt::<SEAL, COUNT>(&row.keys);
        let first = start == 0;
        let last = start + COUNT == row.vectors;
        if first {
            line.masks = _mm512_maskz_mov_epi64(0b11 << (2 * row.gap), line.keystream[0]);
        }
        line.count = COUNT;
        let strides = (*row.packet).key().strides.as_ptr();
        line.powers = Powers {
            // The last vector of the packet is multiplied by one.
            lanes: [strides.add(usize::from(!last)); 4],
            same: true,
        };
        line.task = Task::Row(Chunk {
            packet: row.packet,
            gap: row.gap,
            offset: 64 * start as isize - 16 * (row.gap as isize + 1),
            first,
            last,
        });
    }
}

/// Encrypts or decrypts vector `n` from the end; returns its hash input.
///
/// # Safety
/// As for [`crypt`]; the chunk has that vector.
#[inline(always)]
pub(super) unsafe fn finish_text<const SEAL: bool>(
    line: &Line,
    chunk: &Chunk,
    n: usize,
) -> __m512i {
    // SAFETY: the caller keeps the contract; vectors within the text are accessed whole, of
    // others the bytes that are.
    unsafe {
        let packet = &*chunk.packet;
        let i = line.count - 1 - n;
        let keystream = line.keystream[i];
        let offset = chunk.offset + 64 * i as isize;
        let at = packet.text.wrapping_offset(offset);
        let is_first = i == 0 && chunk.first;
        let is_last = n == 0 && chunk.last;
        let mut block;
        if is_first || is_last {
            let mask = bytes_of_text(offset, packet.len);
            let input = _mm512_maskz_loadu_epi8(mask, at.cast());
            let output = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(input, keystream));
            _mm512_mask_storeu_epi8(at.cast(), mask, output);
            block = reverse_bytes(if SEAL { output } else { input });
            if is_first {
                let lane = 0b11 << (2 * chunk.gap);
                block = _mm512_mask_mov_epi64(block, lane, lanes(packet.aad as i128));
            }
            if is_last {
                block = _mm512_mask_mov_epi64(block, 0xc0, lanes(packet.lengths as i128));
            }
        } else {
            let input = _mm512_loadu_si512(at.cast());
            let output = _mm512_xor_si512(input, keystream);
            _mm512_storeu_si512(at.cast(), output);
            block = reverse_bytes(if SEAL { output } else { input });
        }
        if i == 0 {
            block = _mm512_xor_si512(block, line.sum);
        }
        block
    }
}

/// The tag of a packet from the sums of its lanes.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_tag<const SEAL: bool>(chunk: &Chunk, sums: __m512i, mask: __m512i) {
    // SAFETY: the caller keeps the contract; there are four powers.
    unsafe {
        let rising = _mm512_loadu_si512((*chunk.packet).key().powers.as_ptr().cast());
        let falling = _mm512_shuffle_i64x2(rising, rising, 0x1b);
        let sum = reverse_bytes(Products::of(sums, falling).reduce());
        let sum = _mm512_xor_si512(sum, mask);
        let half = _mm256_xor_si256(
            _mm512_castsi512_si256(sum),
            _mm512_extracti64x4_epi64(sum, 1),
        );
        let tag = _mm_xor_si128(
            _mm256_castsi256_si128(half),
            _mm256_extracti128_si256(half, 1),
        );
        finish::<SEAL>(chunk.packet, tag);
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

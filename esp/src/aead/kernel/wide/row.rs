//! One packet, four neighbouring blocks to a vector.

use core::arch::x86_64::*;

use super::super::packet::Packet;
use super::aes::{Keys, pin, unrolled};
use super::hash::{Powers, Products};
use super::{Kind, Line, bytes_of_text, finish, lanes, reverse_bytes};

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
    /// The address after the last vector.
    end: *mut u8,
    /// Vectors; 8 in all chunks but the first.
    count: usize,
    /// Bytes of text in the first vector of the packet.
    first_bytes: u64,
    /// The lane of the first block of the packet in that vector.
    first_lane: u8,
    /// Bytes of text in the last vector of the packet.
    last_bytes: u64,
    /// Holds the last block of the packet.
    pub(super) last: bool,
    powers: *const u128,
}

impl Chunk {
    /// Nothing to be done.
    pub(super) const NOTHING: Self = Self {
        packet: core::ptr::null_mut(),
        end: core::ptr::null_mut(),
        count: 0,
        first_bytes: 0,
        first_lane: 0,
        last_bytes: 0,
        last: false,
        powers: core::ptr::null(),
    };
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
            keys: Keys::new([key; 4], key.rounds as usize),
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
        line.encrypt_row::<SEAL, COUNT>(&row.keys);
        let packet = &*row.packet;
        let last = start + COUNT == row.vectors;
        let first_lane = 0b11 << (2 * row.gap);
        let offset = 64 * start as isize - 16 * (row.gap as isize + 1);
        if start == 0 {
            line.masks = _mm512_maskz_mov_epi64(first_lane, line.keystream[0]);
            line.kind = Kind::RowStart;
        } else {
            line.kind = Kind::Row;
        }
        line.row = Chunk {
            packet: row.packet,
            end: packet.text.wrapping_offset(offset + 64 * COUNT as isize),
            count: COUNT,
            first_bytes: bytes_of_text(offset, packet.len),
            first_lane,
            last_bytes: bytes_of_text(offset + 64 * (COUNT as isize - 1), packet.len),
            last,
            // The last vector of the packet is multiplied by one.
            powers: packet.key().strides.as_ptr().add(usize::from(!last)),
        };
    }
}

/// A part of the work on a chunk: two vectors of text in every other slot, their hash in the
/// slot after that.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn work<const SEAL: bool, const START: bool, const SLOT: usize>(
    line: &Line,
    products: &mut Products,
    pair: &mut [__m512i; 2],
) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let count = if START { line.row.count } else { CHUNK };
        let n = SLOT / 2 * 2;
        if n >= count {
            return;
        }
        if SLOT % 2 == 0 {
            pair[0] = finish_text::<SEAL, START>(line, n);
            if n + 1 < count {
                pair[1] = finish_text::<SEAL, START>(line, n + 1);
            }
            let [first, second] = pair;
            pin([first, second]);
        } else {
            let powers = &Powers {
                lanes: [line.row.powers; 4],
                same: true,
            };
            if n + 1 < count {
                products.add_two(*pair, powers, n);
            } else {
                products.add(pair[0], powers, n);
            }
        }
    }
}

/// Encrypts or decrypts vector `n` from the end; returns its hash input.
///
/// # Safety
/// As for [`crypt`]; the chunk has that vector.
#[inline(always)]
unsafe fn finish_text<const SEAL: bool, const START: bool>(line: &Line, n: usize) -> __m512i {
    // SAFETY: the caller keeps the contract; vectors within the text are accessed whole, of
    // others the bytes that are.
    unsafe {
        let chunk = &line.row;
        let count = if START { chunk.count } else { CHUNK };
        let keystream = line.keystream[count - 1 - n];
        let at = chunk.end.wrapping_sub(64 * (n + 1));
        let is_first = START && n + 1 == count;
        let is_last = n == 0 && chunk.last;
        if is_first || is_last {
            let packet = &*chunk.packet;
            let mask = if is_first {
                chunk.first_bytes
            } else {
                chunk.last_bytes
            };
            let input = _mm512_maskz_loadu_epi8(mask, at.cast());
            let output = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(input, keystream));
            _mm512_mask_storeu_epi8(at.cast(), mask, output);
            let mut block = reverse_bytes(if SEAL { output } else { input });
            if is_first {
                block = _mm512_mask_mov_epi64(block, chunk.first_lane, lanes(packet.aad as i128));
            }
            if is_last {
                block = _mm512_mask_mov_epi64(block, 0xc0, lanes(packet.lengths as i128));
            }
            return block;
        }
        let input = _mm512_loadu_si512(at.cast());
        let output = _mm512_xor_si512(input, keystream);
        _mm512_storeu_si512(at.cast(), output);
        let block = reverse_bytes(if SEAL { output } else { input });
        if !START && n + 1 == CHUNK {
            _mm512_xor_si512(block, line.sum)
        } else {
            block
        }
    }
}

/// The tag of a packet from the sums of its lanes.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_tag<const SEAL: bool>(line: &Line) {
    // SAFETY: the caller keeps the contract; there are four powers.
    unsafe {
        let packet = line.row.packet;
        let rising = _mm512_loadu_si512((*packet).key().powers.as_ptr().cast());
        let falling = _mm512_shuffle_i64x2(rising, rising, 0x1b);
        let sum = reverse_bytes(Products::of(line.sum, falling).reduce());
        let sum = _mm512_xor_si512(sum, line.masks);
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

//! One packet, four neighbouring blocks to a vector.

use core::arch::x86_64::*;

use super::super::packet::Packet;
use super::engine::unrolled;
use super::engine::{Keys, STATES};
use super::{Pipeline, Then, bytes_of_text, count_up, counter_blocks, lanes, reverse_bytes};

/// Vectors in all chunks but the first.
const CHUNK: usize = 8;

/// Where the blocks of a packet lie in vectors.
struct Row {
    packet: *mut Packet,
    keys: Keys,
    /// Empty lanes before the first block.
    gap: usize,
    vectors: usize,
    /// The counters of the next vector, in the byte order of the CPU.
    counters: __m512i,
}

/// # Safety
/// The CPU has what the kernel needs; `packet` is valid until the pipeline has been drained.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn crypt<const SEAL: bool>(line: &mut Pipeline, packet: *mut Packet) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let blocks = 2 + (*packet).len.div_ceil(16);
        let vectors = blocks.div_ceil(4);
        let gap = vectors * 4 - blocks;
        let key = (*packet).key();
        let base = lanes((*packet).counter as i128 + ((1 - gap as i128) << 96));
        let row = &mut Row {
            packet,
            keys: Keys {
                lanes: [key; 4],
                same: true,
                last: 16 * key.rounds as usize,
            },
            gap,
            vectors,
            counters: _mm512_add_epi32(
                base,
                _mm512_set_epi32(3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0),
            ),
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
unsafe fn chunk<const SEAL: bool, const COUNT: usize>(
    line: &mut Pipeline,
    row: &mut Row,
    start: usize,
) {
    // SAFETY: the caller keeps the contract; masks keep to the text.
    unsafe {
        let packet = &*row.packet;
        let mut states = [_mm512_setzero_si512(); STATES];
        unrolled!(I < COUNT, {
            states[I] = counter_blocks(row.counters);
            row.counters = count_up(row.counters, 4);
        });
        let sum = line.advance::<COUNT, SEAL>(&mut states, &row.keys);
        let is_first = start == 0;
        let is_last = start + COUNT == row.vectors;
        let first_lane = 0b11 << (2 * row.gap);
        if is_first {
            // The first block of keystream, at the place where the sum of lanes takes it.
            line.masks = _mm512_maskz_mov_epi64(first_lane, states[0]);
        }
        let offset = 64 * start as isize - 16 * (row.gap as isize + 1);
        unrolled!(I < COUNT, {
            let offset = offset + 64 * I as isize;
            let at = packet.text.wrapping_offset(offset);
            let ciphertext;
            if (is_first && I == 0) || (is_last && I == COUNT - 1) {
                let mask = bytes_of_text(offset, packet.len);
                let input = _mm512_maskz_loadu_epi8(mask, at.cast());
                let output = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(input, states[I]));
                _mm512_mask_storeu_epi8(at.cast(), mask, output);
                ciphertext = if SEAL { output } else { input };
            } else {
                let input = _mm512_loadu_si512(at.cast());
                let output = _mm512_xor_si512(input, states[I]);
                _mm512_storeu_si512(at.cast(), output);
                ciphertext = if SEAL { output } else { input };
            }
            let mut block = reverse_bytes(ciphertext);
            if I == 0 {
                block = _mm512_xor_si512(block, sum);
                if is_first {
                    block = _mm512_mask_mov_epi64(block, first_lane, lanes(packet.aad as i128));
                }
            }
            if is_last && I == COUNT - 1 {
                block = _mm512_mask_mov_epi64(block, 0xc0, lanes(packet.lengths as i128));
            }
            line.pending.blocks[COUNT - 1 - I] = block;
        });
        line.pending.same = true;
        line.pending.powers = [packet.key().strides.as_ptr(); 4];
        if is_last {
            // The last vector is not multiplied with a stride.
            line.pending.skip = 1;
            line.pending.count = COUNT - 1;
            line.then = Then::FinishRow;
            line.packets[0] = row.packet;
        } else {
            line.pending.skip = 0;
            line.pending.count = COUNT;
            line.then = Then::GoOn;
        }
    }
}

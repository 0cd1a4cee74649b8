//! Up to four packets, one to a lane.

use core::arch::x86_64::*;

use super::super::packet::Packet;
use super::engine::{Keys, STATES, join, unrolled};
use super::{Pipeline, Then, bytes_of_text, count_up, counter_blocks, reverse_bytes};

/// Packets of a group and where their blocks lie in columns.
struct Group {
    packets: [*mut Packet; 4],
    count: usize,
    keys: Keys,
    /// Columns of text.
    columns: usize,
    /// Columns before the text of each packet.
    leads: [usize; 4],
    /// Whether any packet starts later than the others.
    ragged: bool,
    /// Text and its bytes; none in lanes without a packet.
    texts: [(*mut u8, usize); 4],
    /// First hash block of each packet.
    aad: __m512i,
    /// The counters of the next column of text, in the byte order of the CPU.
    counters: __m512i,
}

/// Seals or opens two to four packets, whose keys have the same number of rounds.
///
/// # Safety
/// The CPU has what the kernel needs; the packets are valid until the pipeline has been
/// drained.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn crypt<const SEAL: bool>(line: &mut Pipeline, packets: &[*mut Packet]) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        // Lanes without a packet repeat the first, without its text.
        let mut lanes = [packets[0]; 4];
        lanes[..packets.len()].copy_from_slice(packets);
        let mut texts = [(core::ptr::null_mut(), 0); 4];
        let mut blocks = [0; 4];
        for i in 0..4 {
            let packet = &*lanes[i];
            texts[i] = (packet.text, if i < packets.len() { packet.len } else { 0 });
            blocks[i] = packet.len.div_ceil(16);
        }
        let columns = blocks[0].max(blocks[1]).max(blocks[2].max(blocks[3]));
        let leads = [
            columns - blocks[0],
            columns - blocks[1],
            columns - blocks[2],
            columns - blocks[3],
        ];
        let key = |i: usize| (*lanes[i]).key as *const _;
        let counter = |i: usize| load(&(*lanes[i]).counter);
        let nonces = join([counter(0), counter(1), counter(2), counter(3)]);
        let start = |i: usize| 2 - leads[i] as i32;
        let starts = _mm512_set_epi32(
            start(3),
            0,
            0,
            0,
            start(2),
            0,
            0,
            0,
            start(1),
            0,
            0,
            0,
            start(0),
            0,
            0,
            0,
        );
        let aad = |i: usize| load(&(*lanes[i]).aad);
        let keys = [key(0), key(1), key(2), key(3)];
        let group = &mut Group {
            packets: lanes,
            count: packets.len(),
            keys: Keys {
                lanes: keys,
                same: keys[0] == keys[1] && keys[0] == keys[2] && keys[0] == keys[3],
                last: 16 * (*lanes[0]).key().rounds as usize,
            },
            columns,
            leads,
            ragged: leads != [0; 4],
            texts,
            aad: join([aad(0), aad(1), aad(2), aad(3)]),
            counters: _mm512_add_epi32(nonces, starts),
        };
        let mut start = 0;
        let mut count = if columns <= 8 {
            columns
        } else {
            (columns - 1) % 4 + 5
        };
        loop {
            if start == 0 {
                match count {
                    0 => chunk::<SEAL, true, 0, 1>(line, group, 0, nonces),
                    1 => chunk::<SEAL, true, 1, 2>(line, group, 0, nonces),
                    2 => chunk::<SEAL, true, 2, 3>(line, group, 0, nonces),
                    3 => chunk::<SEAL, true, 3, 4>(line, group, 0, nonces),
                    4 => chunk::<SEAL, true, 4, 5>(line, group, 0, nonces),
                    5 => chunk::<SEAL, true, 5, 6>(line, group, 0, nonces),
                    6 => chunk::<SEAL, true, 6, 7>(line, group, 0, nonces),
                    7 => chunk::<SEAL, true, 7, 8>(line, group, 0, nonces),
                    _ => chunk::<SEAL, true, 8, 9>(line, group, 0, nonces),
                }
            } else if count == 8 {
                chunk::<SEAL, false, 8, 8>(line, group, start, nonces);
            } else {
                chunk::<SEAL, false, 4, 4>(line, group, start, nonces);
            }
            start += count;
            if start == columns {
                break;
            }
            count = if columns - start >= 8 { 8 } else { 4 };
        }
    }
}

/// # Safety
/// None beyond that of a reference.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn load(block: &u128) -> __m128i {
    // SAFETY: the reference is valid for 16 bytes.
    unsafe { _mm_loadu_si128(core::ptr::from_ref(block).cast()) }
}

/// `TEXT` columns of text from number `start`; in the first chunk the counter blocks of the
/// tags and the authenticated data as well. `STATES` is the number of AES states.
///
/// # Safety
/// As for [`crypt`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
unsafe fn chunk<const SEAL: bool, const FIRST: bool, const TEXT: usize, const COUNT: usize>(
    line: &mut Pipeline,
    group: &mut Group,
    start: usize,
    nonces: __m512i,
) {
    // SAFETY: the caller keeps the contract; masks keep to the text.
    unsafe {
        let zero = _mm512_setzero_si512();
        let mut states = [zero; STATES];
        let skip = COUNT - TEXT;
        if FIRST {
            states[0] = counter_blocks(count_up(nonces, 1));
        }
        unrolled!(I < COUNT, {
            if I >= skip {
                states[I] = counter_blocks(group.counters);
                group.counters = count_up(group.counters, 1);
            }
        });
        let sum = line.advance::<COUNT, SEAL>(&mut states, &group.keys);
        if FIRST {
            line.masks = states[0];
        }
        let is_last = start + TEXT == group.columns;
        // The block of lengths goes to the first place, if this is the last chunk.
        let count = skip + TEXT;
        line.pending.skip = usize::from(!is_last);
        line.pending.count = count + usize::from(is_last);
        if FIRST {
            line.pending.blocks[count] = starting(group, 0, zero);
        }
        unrolled!(QUAD < TEXT.div_ceil(4), {
            let columns = if TEXT - 4 * QUAD < 4 {
                TEXT - 4 * QUAD
            } else {
                4
            };
            let column = start + 4 * QUAD;
            let mut keystream = [zero; 4];
            unrolled!(I < 4, {
                if I < columns {
                    keystream[I] = states[skip + 4 * QUAD + I];
                }
            });
            let keystream = transposed(keystream);
            let mut rows = [zero; 4];
            unrolled!(LANE < 4, {
                let (text, len) = group.texts[LANE];
                let offset = 16 * (column as isize - group.leads[LANE] as isize);
                let mask = bytes_of_text(offset, len) & (!0 >> (64 - 16 * columns));
                let at = text.wrapping_offset(offset);
                let input = _mm512_maskz_loadu_epi8(mask, at.cast());
                let output = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(input, keystream[LANE]));
                _mm512_mask_storeu_epi8(at.cast(), mask, output);
                rows[LANE] = if SEAL { output } else { input };
            });
            let rows = transposed(rows);
            unrolled!(I < 4, {
                if I < columns {
                    let mut block = reverse_bytes(rows[I]);
                    if group.ragged {
                        block = _mm512_xor_si512(block, starting(group, column + I + 1, zero));
                    }
                    if !FIRST && QUAD == 0 && I == 0 {
                        block = _mm512_xor_si512(block, sum);
                    }
                    line.pending.blocks[TEXT - 4 * QUAD - I] = block;
                }
            });
        });
        if is_last {
            let lengths = |i: usize| load(&(*group.packets[i]).lengths);
            line.pending.blocks[0] = join([lengths(0), lengths(1), lengths(2), lengths(3)]);
        }
        for lane in 0..4 {
            line.pending.powers[lane] = (*group.keys.lanes[lane]).powers.as_ptr();
        }
        line.pending.same = group.keys.same;
        line.packets = group.packets;
        line.count = group.count;
        line.then = if is_last {
            Then::FinishColumns
        } else {
            Then::GoOn
        };
    }
}

/// The first hash blocks of the packets whose text starts in `column`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn starting(group: &Group, column: usize, zero: __m512i) -> __m512i {
    let mut mask = 0;
    for lane in 0..4 {
        mask |= u8::from(group.leads[lane] == column) * (3 << (2 * lane));
    }
    _mm512_mask_mov_epi64(zero, mask, group.aad)
}

/// Rows to columns, or columns to rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn transposed([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let ab_low = _mm512_shuffle_i64x2(a, b, 0x44);
    let ab_high = _mm512_shuffle_i64x2(a, b, 0xee);
    let cd_low = _mm512_shuffle_i64x2(c, d, 0x44);
    let cd_high = _mm512_shuffle_i64x2(c, d, 0xee);
    [
        _mm512_shuffle_i64x2(ab_low, cd_low, 0x88),
        _mm512_shuffle_i64x2(ab_low, cd_low, 0xdd),
        _mm512_shuffle_i64x2(ab_high, cd_high, 0x88),
        _mm512_shuffle_i64x2(ab_high, cd_high, 0xdd),
    ]
}

//! Up to four packets, one to a lane.

use core::arch::x86_64::*;

use super::super::lanes::unrolled;
use super::super::packet::Packet;
use super::hash::join;
use super::line::{Kind, Line, Steps, Text};
use super::unit::Unit;
use super::{lanes, reverse_bytes};

/// Seals or opens a group.
///
/// # Safety
/// The CPU has what the kernel needs; the unit is a group, and valid with its packets until
/// the line has been drained.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn crypt<const SEAL: bool>(line: &mut Line, unit: &mut Unit) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        // Only the last byte of the counters counts in small packets: 1 for the tag, 2 and
        // more for the text.
        let nonces = count_up(unit.join(|packet| &packet.counter), 1);
        let start = if unit.length <= 8 {
            unit.length
        } else {
            (unit.length - 1) % 4 + 5
        };
        let mut steps = &STEPS;
        let delayed;
        if unit.ragged {
            delayed = delayed_steps(unit);
            steps = &delayed;
        }
        match start {
            0 => chunk::<SEAL, 0, 1>(line, unit, 0, nonces, steps),
            1 => chunk::<SEAL, 1, 2>(line, unit, 0, nonces, steps),
            2 => chunk::<SEAL, 2, 3>(line, unit, 0, nonces, steps),
            3 => chunk::<SEAL, 3, 4>(line, unit, 0, nonces, steps),
            4 => chunk::<SEAL, 4, 5>(line, unit, 0, nonces, steps),
            5 => chunk::<SEAL, 5, 6>(line, unit, 0, nonces, steps),
            6 => chunk::<SEAL, 6, 7>(line, unit, 0, nonces, steps),
            7 => chunk::<SEAL, 7, 8>(line, unit, 0, nonces, steps),
            _ => chunk::<SEAL, 8, 9>(line, unit, 0, nonces, steps),
        }
        unit.masks = line.keystream[0];
        let mut start = start;
        while start < unit.length {
            let counters = count_up(_mm512_add_epi32(nonces, steps.0[0]), start as i32);
            if unit.length - start >= 8 {
                chunk::<SEAL, 8, 8>(line, unit, start, counters, &STEPS);
                start += 8;
            } else {
                chunk::<SEAL, 4, 4>(line, unit, start, counters, &STEPS);
                start += 4;
            }
        }
    }
}

/// One more in the last byte of each lane, two more, ...
static STEPS: Steps = Steps::of(1 << 24);

/// The steps of a group whose texts do not start in the same column. Before the start of a
/// text, counters mean nothing.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn delayed_steps(unit: &Unit) -> Steps {
    let lead = |lane: usize| (unit.leads[lane] as i32) << 24;
    #[rustfmt::skip]
    let leads = _mm512_set_epi32(
        lead(3), 0, 0, 0, lead(2), 0, 0, 0, lead(1), 0, 0, 0, lead(0), 0, 0, 0,
    );
    let mut steps = STEPS;
    for step in &mut steps.0 {
        *step = _mm512_sub_epi32(*step, leads);
    }
    steps
}

/// `TEXT` columns of text from number `start`; with one more state, the counter blocks of the
/// tags before them.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
unsafe fn chunk<const SEAL: bool, const TEXT: usize, const COUNT: usize>(
    line: &mut Line,
    unit: &mut Unit,
    start: usize,
    counters: __m512i,
    steps: &Steps,
) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        line.encrypt::<SEAL, COUNT>(unit, counters, steps);
        line.text = Text {
            kind: Kind::Columns,
            unit,
            start,
            count: TEXT,
            skip: COUNT - TEXT,
            last: start + TEXT == unit.length,
        };
    }
}

/// Encrypts or decrypts up to four columns of the chunk, from number `FROM`.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_text<const SEAL: bool, const FROM: usize>(line: &mut Line) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        match line.text.count.wrapping_sub(FROM) {
            4..=8 => finish_columns::<SEAL, FROM, 4>(line),
            1 => finish_column::<SEAL, FROM>(line),
            2 => finish_columns::<SEAL, FROM, 2>(line),
            3 => finish_columns::<SEAL, FROM, 3>(line),
            _ => {}
        }
    }
}

/// # Safety
/// As for [`crypt`]; the chunk has these columns.
#[inline(always)]
unsafe fn finish_columns<const SEAL: bool, const FROM: usize, const COLUMNS: usize>(
    line: &mut Line,
) {
    // SAFETY: the caller keeps the contract; masks keep to the text.
    unsafe {
        let unit = &*line.text.unit;
        let column = line.text.start + FROM;
        let mut keystream = [_mm512_setzero_si512(); 4];
        unrolled!(I < 4, {
            if I < COLUMNS {
                keystream[I] = line.keystream_at(FROM + I);
            }
        });
        let keystream = transposed(keystream);
        let mut rows = keystream;
        if COLUMNS == 4 && column + 4 <= unit.whole {
            unrolled!(LANE < 4, {
                let at = (*unit.packets[LANE]).text.wrapping_add(16 * column);
                let input = _mm512_loadu_si512(at.cast());
                let output = _mm512_xor_si512(input, keystream[LANE]);
                _mm512_storeu_si512(at.cast(), output);
                rows[LANE] = if SEAL { output } else { input };
            });
        } else {
            unrolled!(LANE < 4, {
                let (at, mask) = unit.text::<COLUMNS>(LANE, column);
                let input = _mm512_maskz_loadu_epi8(mask, at.cast());
                let output = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(input, keystream[LANE]));
                _mm512_mask_storeu_epi8(at.cast(), mask, output);
                rows[LANE] = if SEAL { output } else { input };
            });
        }
        put::<FROM, COLUMNS>(line, unit, transposed(rows));
    }
}

/// # Safety
/// As for [`crypt`]; the chunk has this column.
#[inline(always)]
unsafe fn finish_column<const SEAL: bool, const FROM: usize>(line: &mut Line) {
    // SAFETY: the caller keeps the contract; masks keep to the text.
    unsafe {
        let unit = &*line.text.unit;
        let column = line.text.start + FROM;
        let keystream = line.keystream_at(FROM);
        let block;
        if column < unit.whole {
            let at = unit
                .packets
                .map(|packet| (*packet).text.wrapping_add(16 * column));
            let input = join(at.map(|at| _mm_loadu_si128(at.cast())));
            let output = _mm512_xor_si512(input, keystream);
            _mm_storeu_si128(at[0].cast(), _mm512_castsi512_si128(output));
            _mm_storeu_si128(at[1].cast(), _mm512_extracti32x4_epi32(output, 1));
            _mm_storeu_si128(at[2].cast(), _mm512_extracti32x4_epi32(output, 2));
            _mm_storeu_si128(at[3].cast(), _mm512_extracti32x4_epi32(output, 3));
            block = if SEAL { output } else { input };
        } else {
            let lanes = [
                unit.text::<1>(0, column),
                unit.text::<1>(1, column),
                unit.text::<1>(2, column),
                unit.text::<1>(3, column),
            ];
            let at = lanes.map(|(at, _)| at);
            let masks = lanes.map(|(_, mask)| mask as u16);
            let input = join([
                _mm_maskz_loadu_epi8(masks[0], at[0].cast()),
                _mm_maskz_loadu_epi8(masks[1], at[1].cast()),
                _mm_maskz_loadu_epi8(masks[2], at[2].cast()),
                _mm_maskz_loadu_epi8(masks[3], at[3].cast()),
            ]);
            let output = _mm512_xor_si512(input, keystream);
            let lane = _mm512_castsi512_si128(output);
            _mm_mask_storeu_epi8(at[0].cast(), masks[0], lane);
            let lane = _mm512_extracti32x4_epi32(output, 1);
            _mm_mask_storeu_epi8(at[1].cast(), masks[1], lane);
            let lane = _mm512_extracti32x4_epi32(output, 2);
            _mm_mask_storeu_epi8(at[2].cast(), masks[2], lane);
            let lane = _mm512_extracti32x4_epi32(output, 3);
            _mm_mask_storeu_epi8(at[3].cast(), masks[3], lane);
            let mask = u64::from(masks[0])
                | u64::from(masks[1]) << 16
                | u64::from(masks[2]) << 32
                | u64::from(masks[3]) << 48;
            block = if SEAL {
                _mm512_maskz_mov_epi8(mask, output)
            } else {
                input
            };
        }
        put::<FROM, 1>(line, unit, [block; 4]);
    }
}

/// Puts the hash input of the columns from `FROM` on to its place.
///
/// # Safety
/// As for [`crypt`]; the chunk has these columns.
#[inline(always)]
unsafe fn put<const FROM: usize, const COLUMNS: usize>(
    line: &mut Line,
    unit: &Unit,
    mut blocks: [__m512i; 4],
) {
    // SAFETY: the caller keeps the contract: there are places for all columns.
    unsafe {
        let text = &line.text;
        unrolled!(I < 4, {
            blocks[I] = reverse_bytes(blocks[I]);
        });
        if unit.ragged {
            unrolled!(I < 4, {
                if I < COLUMNS {
                    let first = unit.starting(text.start + FROM + I + 1);
                    blocks[I] = _mm512_xor_si512(blocks[I], first);
                }
            });
        }
        if FROM == 0 && text.start > 0 {
            blocks[0] = _mm512_xor_si512(blocks[0], line.sum);
        }
        let last = text.count - 1 + usize::from(text.last);
        let place = line.blocks.as_mut_ptr().add(last - FROM);
        unrolled!(I < 4, {
            if I < COLUMNS {
                place.sub(I).write(blocks[I]);
            }
        });
    }
}

/// Puts the first and the last hash blocks of the packets to their places, if the chunk has
/// them; returns how many vectors of hash input there are.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn place_ends(line: &mut Line) -> usize {
    // SAFETY: the caller keeps the contract; there are places for nine columns and lengths.
    unsafe {
        let text = line.text;
        let unit = &*text.unit;
        let mut count = text.count + usize::from(text.last);
        if text.last {
            line.blocks[0] = unit.join(|packet| &packet.lengths);
        }
        if text.start == 0 {
            let first = if unit.ragged {
                unit.starting(0)
            } else {
                unit.join(|packet| &packet.aad)
            };
            line.blocks.as_mut_ptr().add(count).write(first);
            count += 1;
        }
        count
    }
}

/// Writes or compares the ICVs.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_tags<const SEAL: bool>(unit: &Unit, sums: __m512i) {
    // SAFETY: the caller keeps the contract; each packet has an ICV of its length.
    unsafe {
        let tags = _mm512_xor_si512(reverse_bytes(sums), unit.masks);
        let [a, b, c, d] = unit.packets;
        let lanes = [
            _mm512_castsi512_si128(tags),
            _mm512_extracti32x4_epi32(tags, 1),
            _mm512_extracti32x4_epi32(tags, 2),
            _mm512_extracti32x4_epi32(tags, 3),
        ];
        if !unit.full_tags {
            for (packet, tag) in unit.packets[..unit.count].iter().zip(lanes) {
                super::finish::<SEAL>(*packet, tag);
            }
        } else if SEAL {
            _mm_storeu_si128((*a).icv.cast(), lanes[0]);
            _mm_storeu_si128((*b).icv.cast(), lanes[1]);
            _mm_storeu_si128((*c).icv.cast(), lanes[2]);
            _mm_storeu_si128((*d).icv.cast(), lanes[3]);
        } else {
            let icv = |packet: *mut Packet| _mm_loadu_si128((*packet).icv.cast());
            let given = join([icv(a), icv(b), icv(c), icv(d)]);
            let different = _mm512_cmpneq_epi64_mask(tags, given);
            (*a).authentic = different & 0x03 == 0;
            (*b).authentic = different & 0x0c == 0;
            (*c).authentic = different & 0x30 == 0;
            (*d).authentic = different & 0xc0 == 0;
        }
    }
}

/// Rows to columns, or columns to rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) fn transposed([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
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

/// Adds to the last byte of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn count_up(counters: __m512i, by: i32) -> __m512i {
    _mm512_add_epi32(counters, lanes(i128::from(by) << 120))
}

//! Up to four packets, one to a lane.

use core::arch::x86_64::*;

use super::super::packet::Packet;
use super::aes::{Keys, unrolled};
use super::hash::{Powers, Products, join};
use super::{Kind, Line, bytes_of_text, finish, lanes, reverse_bytes};

/// Packets of a group and where their blocks lie in columns.
pub(super) struct Group {
    packets: [*mut Packet; 4],
    /// Packets; the other lanes repeat the first, without its text.
    count: usize,
    /// Columns of text.
    columns: usize,
    /// Columns before the text of each packet.
    leads: [usize; 4],
    /// Whether any packet starts later than the others.
    ragged: bool,
    /// Columns that are text from the first to the last byte, in all lanes.
    whole: usize,
    /// Addresses of column 0.
    bases: [*mut u8; 4],
    /// Bytes of text.
    lens: [usize; 4],
    /// First hash block of each packet.
    aad: __m512i,
    /// Last hash block of each packet.
    lengths: __m512i,
}

/// Columns of a group that have been encrypted.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    group: *const Group,
    /// The first column of text.
    start: usize,
    /// Columns of text.
    text: usize,
    /// Columns of hash input.
    count: usize,
    /// Holds the last hash block.
    pub(super) last: bool,
    powers: Powers,
}

impl Chunk {
    /// Nothing to be done.
    pub(super) const NOTHING: Self = Self {
        group: core::ptr::null(),
        start: 0,
        text: 0,
        count: 0,
        last: false,
        powers: Powers {
            lanes: [core::ptr::null(); 4],
            same: true,
        },
    };
}

impl Group {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn new() -> Self {
        Self {
            packets: [core::ptr::null_mut(); 4],
            count: 0,
            columns: 0,
            leads: [0; 4],
            ragged: false,
            whole: 0,
            bases: [core::ptr::null_mut(); 4],
            lens: [0; 4],
            aad: _mm512_setzero_si512(),
            lengths: _mm512_setzero_si512(),
        }
    }
}

/// Seals or opens two to four packets, whose keys have the same number of rounds.
///
/// # Safety
/// The CPU has what the kernel needs; the packets and the group are valid until the line has
/// been drained, and the group is not pending.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn crypt<const SEAL: bool>(
    line: &mut Line,
    group: &mut Group,
    packets: &[*mut Packet],
) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        group.count = packets.len();
        group.packets = [packets[0]; 4];
        group.packets[..packets.len()].copy_from_slice(packets);
        let [a, b, c, d] = group.packets.map(|packet| &*packet);
        let all = [a, b, c, d];
        group.lens = all.map(|packet| packet.len);
        let blocks = group.lens.map(|len| len.div_ceil(16));
        group.columns = blocks[0].max(blocks[1]).max(blocks[2].max(blocks[3]));
        group.leads = blocks.map(|blocks| group.columns - blocks);
        group.ragged = group.leads != [0; 4];
        for (i, packet) in all.iter().enumerate() {
            group.bases[i] = packet.text.wrapping_sub(16 * group.leads[i]);
        }
        let lens = &group.lens;
        let shortest = lens[0].min(lens[1]).min(lens[2].min(lens[3]));
        group.whole = if group.ragged || packets.len() < 4 {
            0
        } else {
            shortest / 16
        };
        for len in &mut group.lens[packets.len()..] {
            *len = 0;
        }
        group.aad = join(all.map(|packet| load(&packet.aad)));
        group.lengths = join(all.map(|packet| load(&packet.lengths)));
        let keys = Keys::new(all.map(Packet::key));
        let nonces = join(all.map(|packet| load(&packet.counter)));
        let start = |lane: usize| (2 - group.leads[lane] as i32) << 24;
        // Only the last byte of the counters counts in small packets. It means nothing before
        // the start of a text.
        #[rustfmt::skip]
        let counters = _mm512_or_si512(nonces, _mm512_set_epi32(
            start(3), 0, 0, 0, start(2), 0, 0, 0, start(1), 0, 0, 0, start(0), 0, 0, 0,
        ));

        let mut start = 0;
        let mut count = if group.columns <= 8 {
            group.columns
        } else {
            (group.columns - 1) % 4 + 5
        };
        let nonces = count_up(nonces, 1);
        match count {
            0 => chunk::<SEAL, 0, 1>(line, group, &keys, start, counters, nonces),
            1 => chunk::<SEAL, 1, 2>(line, group, &keys, start, counters, nonces),
            2 => chunk::<SEAL, 2, 3>(line, group, &keys, start, counters, nonces),
            3 => chunk::<SEAL, 3, 4>(line, group, &keys, start, counters, nonces),
            4 => chunk::<SEAL, 4, 5>(line, group, &keys, start, counters, nonces),
            5 => chunk::<SEAL, 5, 6>(line, group, &keys, start, counters, nonces),
            6 => chunk::<SEAL, 6, 7>(line, group, &keys, start, counters, nonces),
            7 => chunk::<SEAL, 7, 8>(line, group, &keys, start, counters, nonces),
            _ => chunk::<SEAL, 8, 9>(line, group, &keys, start, counters, nonces),
        }
        start += count;
        while start < group.columns {
            let counters = count_up(counters, start as i32);
            if group.columns - start >= 8 {
                chunk::<SEAL, 8, 8>(line, group, &keys, start, counters, nonces);
                count = 8;
            } else {
                chunk::<SEAL, 4, 4>(line, group, &keys, start, counters, nonces);
                count = 4;
            }
            start += count;
        }
    }
}

/// `TEXT` columns of text from number `start`; with one more state, the counter blocks of the
/// tags.
///
/// # Safety
/// As for [`crypt`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
unsafe fn chunk<const SEAL: bool, const TEXT: usize, const COUNT: usize>(
    line: &mut Line,
    group: &Group,
    keys: &Keys,
    start: usize,
    counters: __m512i,
    tag_counters: __m512i,
) {
    let first = COUNT > TEXT;
    // SAFETY: the caller keeps the contract.
    unsafe {
        unrolled!(I < TEXT, {
            line.counters[I] = count_up(counters, I as i32);
        });
        if first {
            line.counters[TEXT] = tag_counters;
        }
        line.encrypt_columns::<SEAL, COUNT>(keys);
        let last = start + TEXT == group.columns;
        let count = COUNT + usize::from(last);
        if first {
            line.masks = line.keystream[TEXT];
            line.blocks[count - 1] = starting(group, 0);
        }
        if last {
            line.blocks[0] = group.lengths;
        }
        line.kind = Kind::Columns;
        line.columns = Chunk {
            group,
            start,
            text: TEXT,
            count,
            last,
            powers: Powers {
                lanes: group.packets.map(|packet| (*packet).key().powers.as_ptr()),
                same: keys.same,
            },
        };
    }
}

/// A part of the work on a chunk: four columns of text in each of the first two slots, two
/// vectors of hash input in each of the next five.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn work<const SEAL: bool, const SLOT: usize>(
    line: &mut Line,
    products: &mut Products,
) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let left = line.columns.text.wrapping_sub(4 * SLOT);
        match SLOT {
            0 | 1 => match left {
                1 => finish_column::<SEAL>(line, 4 * SLOT),
                2 => finish_text::<SEAL, 2>(line, 4 * SLOT),
                3 => finish_text::<SEAL, 3>(line, 4 * SLOT),
                4..=8 => finish_text::<SEAL, 4>(line, 4 * SLOT),
                _ => {}
            },
            2..=6 => {
                let n = 2 * (SLOT - 2);
                if n + 1 < line.columns.count {
                    let pair = [line.blocks[n], line.blocks[n + 1]];
                    products.add_two(pair, &line.columns.powers, n);
                } else if n < line.columns.count {
                    products.add(line.blocks[n], &line.columns.powers, n);
                }
            }
            _ => {}
        }
    }
}

/// Encrypts or decrypts columns `from` to `from + COLUMNS` of the chunk.
///
/// # Safety
/// As for [`crypt`]; the chunk has these columns.
#[inline(always)]
unsafe fn finish_text<const SEAL: bool, const COLUMNS: usize>(line: &mut Line, from: usize) {
    // SAFETY: the caller keeps the contract; masks keep to the text.
    unsafe {
        let group = &*line.columns.group;
        let column = line.columns.start + from;
        let mut keystream = [_mm512_setzero_si512(); 4];
        unrolled!(I < 4, {
            if I < COLUMNS {
                keystream[I] = line.keystream[from + I];
            }
        });
        let keystream = transposed(keystream);
        let mut rows = keystream;
        if COLUMNS == 4 && column + 4 <= group.whole {
            unrolled!(LANE < 4, {
                let at = group.bases[LANE].wrapping_add(16 * column);
                let input = _mm512_loadu_si512(at.cast());
                let output = _mm512_xor_si512(input, keystream[LANE]);
                _mm512_storeu_si512(at.cast(), output);
                rows[LANE] = if SEAL { output } else { input };
            });
        } else {
            unrolled!(LANE < 4, {
                let at = group.bases[LANE].wrapping_add(16 * column);
                let mask = text_mask::<COLUMNS>(group, LANE, column);
                let input = _mm512_maskz_loadu_epi8(mask, at.cast());
                let output = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(input, keystream[LANE]));
                _mm512_mask_storeu_epi8(at.cast(), mask, output);
                rows[LANE] = if SEAL { output } else { input };
            });
        }
        let blocks = transposed(rows);
        unrolled!(I < 4, {
            if I < COLUMNS {
                put(line, group, from + I, blocks[I]);
            }
        });
    }
}

/// Encrypts or decrypts column `from` of the chunk.
///
/// # Safety
/// As for [`crypt`]; the chunk has this column.
#[inline(always)]
unsafe fn finish_column<const SEAL: bool>(line: &mut Line, from: usize) {
    // SAFETY: the caller keeps the contract; masks keep to the text.
    unsafe {
        let group = &*line.columns.group;
        let column = line.columns.start + from;
        let at = group.bases.map(|base| base.wrapping_add(16 * column));
        let keystream = line.keystream[from];
        let block;
        if column < group.whole {
            let input = join(at.map(|at| _mm_loadu_si128(at.cast())));
            let output = _mm512_xor_si512(input, keystream);
            _mm_storeu_si128(at[0].cast(), _mm512_castsi512_si128(output));
            _mm_storeu_si128(at[1].cast(), _mm512_extracti32x4_epi32(output, 1));
            _mm_storeu_si128(at[2].cast(), _mm512_extracti32x4_epi32(output, 2));
            _mm_storeu_si128(at[3].cast(), _mm512_extracti32x4_epi32(output, 3));
            block = if SEAL { output } else { input };
        } else {
            let masks = [
                text_mask::<1>(group, 0, column) as u16,
                text_mask::<1>(group, 1, column) as u16,
                text_mask::<1>(group, 2, column) as u16,
                text_mask::<1>(group, 3, column) as u16,
            ];
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
        put(line, group, from, block);
    }
}

/// The bytes of text among `COLUMNS` columns from `column`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn text_mask<const COLUMNS: usize>(group: &Group, lane: usize, column: usize) -> u64 {
    let offset = 16 * (column as isize - group.leads[lane] as isize);
    bytes_of_text(offset, group.lens[lane]) & (!0 >> (64 - 16 * COLUMNS))
}

/// Puts the hash input of column `n` of the chunk to its place.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn put(line: &mut Line, group: &Group, n: usize, block: __m512i) {
    let chunk = &line.columns;
    let mut block = reverse_bytes(block);
    if group.ragged {
        block = _mm512_xor_si512(block, starting(group, chunk.start + n + 1));
    }
    if n == 0 && chunk.start > 0 {
        block = _mm512_xor_si512(block, line.sum);
    }
    let place = chunk.text - 1 - n + usize::from(chunk.last);
    line.blocks[place] = block;
}

/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_tags<const SEAL: bool>(line: &mut Line) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let tags = _mm512_xor_si512(reverse_bytes(line.sum), line.masks);
        let group = &*line.columns.group;
        finish::<SEAL>(group.packets[0], _mm512_castsi512_si128(tags));
        finish::<SEAL>(group.packets[1], _mm512_extracti32x4_epi32(tags, 1));
        if group.count > 2 {
            finish::<SEAL>(group.packets[2], _mm512_extracti32x4_epi32(tags, 2));
        }
        if group.count > 3 {
            finish::<SEAL>(group.packets[3], _mm512_extracti32x4_epi32(tags, 3));
        }
    }
}

/// The first hash blocks of the packets whose text starts in `column`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn starting(group: &Group, column: usize) -> __m512i {
    let mut mask = 0;
    for lane in 0..4 {
        mask |= u8::from(group.leads[lane] == column) * (3 << (2 * lane));
    }
    _mm512_maskz_mov_epi64(mask, group.aad)
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

#[inline(always)]
fn load(block: &u128) -> __m128i {
    // SAFETY: the reference is valid for 16 bytes.
    unsafe { _mm_loadu_si128(core::ptr::from_ref(block).cast()) }
}

/// Adds to the last byte of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn count_up(counters: __m512i, by: i32) -> __m512i {
    _mm512_add_epi32(counters, lanes(i128::from(by) << 120))
}

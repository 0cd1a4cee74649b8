//! Up to four packets, one to a lane.

use core::arch::x86_64::*;

use super::super::packet::Packet;
use super::aes::{Keys, unrolled};
use super::hash::{Products, join};
use super::{Kind, Line, bytes_of_text, finish, lanes, reverse_bytes};

/// Packets of a group and where their blocks lie in columns.
pub(super) struct Group {
    packets: [*mut Packet; 4],
    keys: Keys,
    /// Packets; the other lanes repeat the first, without its text.
    count: usize,
    /// Columns of text.
    columns: usize,
    /// Columns that are text from the first to the last byte, in all lanes.
    whole: usize,
    /// Whether any packet starts later than the others.
    ragged: bool,
    /// Columns before the text of each packet.
    leads: [usize; 4],
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
}

impl Chunk {
    /// Nothing to be done.
    pub(super) const NOTHING: Self = Self {
        group: core::ptr::null(),
        start: 0,
        text: 0,
        count: 0,
        last: false,
    };
}

impl Group {
    /// A place for a group.
    pub(super) const EMPTY: Self = Self {
        packets: [core::ptr::null_mut(); 4],
        keys: Keys::NONE,
        count: 0,
        columns: 0,
        whole: 0,
        ragged: false,
        leads: [0; 4],
    };

    /// Four packets with the same number of blocks.
    ///
    /// # Safety
    /// The packets are valid; the keys have the same number of rounds.
    #[inline(always)]
    pub(super) unsafe fn even(&mut self, packets: [*mut Packet; 4]) {
        // SAFETY: the caller keeps the contract.
        let [a, b, c, d] = packets.map(|packet| unsafe { &*packet });
        self.packets = packets;
        self.keys = Keys::new([a.key, b.key, c.key, d.key], a.rounds);
        self.count = 4;
        self.columns = a.len.div_ceil(16);
        let partial = (a.len | b.len | c.len | d.len) % 16 != 0;
        self.whole = self.columns - usize::from(partial);
        self.ragged = false;
        self.leads = [0; 4];
    }

    /// Two to four packets of different lengths.
    ///
    /// # Safety
    /// As for [`Group::even`].
    #[inline(never)]
    pub(super) unsafe fn mixed(&mut self, packets: &[*mut Packet]) {
        // Lanes without a packet repeat the first.
        let lanes = core::array::from_fn(|i| *packets.get(i).unwrap_or(&packets[0]));
        // SAFETY: the caller keeps the contract.
        let all = lanes.map(|packet| unsafe { &*packet });
        self.packets = lanes;
        self.keys = Keys::new(all.map(|packet| packet.key), all[0].rounds);
        self.count = packets.len();
        let blocks = all.map(|packet| packet.len.div_ceil(16));
        self.columns = blocks[0].max(blocks[1]).max(blocks[2].max(blocks[3]));
        self.whole = 0;
        self.leads = blocks.map(|blocks| self.columns - blocks);
        self.ragged = true;
    }

    /// Four blocks, one of each packet.
    ///
    /// # Safety
    /// The packets are valid; the CPU has what the kernel needs.
    #[inline(always)]
    unsafe fn join(&self, block: impl Fn(&Packet) -> &u128) -> __m512i {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let lane =
                |i: usize| _mm_load_si128(core::ptr::from_ref(block(&*self.packets[i])).cast());
            join([lane(0), lane(1), lane(2), lane(3)])
        }
    }

    /// Where `column` of a packet is, and its bytes from there on that are text, of `COLUMNS`
    /// columns at most.
    ///
    /// # Safety
    /// The packets are valid; the CPU has what the kernel needs.
    #[inline(always)]
    unsafe fn text<const COLUMNS: usize>(&self, lane: usize, column: usize) -> (*mut u8, u64) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let packet = &*self.packets[lane];
            let offset = 16 * (column as isize - self.leads[lane] as isize);
            let len = if lane < self.count { packet.len } else { 0 };
            let mask = bytes_of_text(offset, len) & (!0 >> (64 - 16 * COLUMNS));
            (packet.text.wrapping_offset(offset), mask)
        }
    }

    /// The first hash blocks of the packets whose text starts in `column`.
    ///
    /// # Safety
    /// The packets are valid; the CPU has what the kernel needs.
    #[inline(always)]
    unsafe fn starting(&self, column: usize) -> __m512i {
        let mut mask = 0;
        for lane in 0..4 {
            mask |= u8::from(self.leads[lane] == column) * (3 << (2 * lane));
        }
        // SAFETY: the caller keeps the contract.
        unsafe { _mm512_maskz_mov_epi64(mask, self.join(|packet| &packet.aad)) }
    }
}

/// Seals or opens a group.
///
/// # Safety
/// The CPU has what the kernel needs; the packets and the group are valid until the line has
/// been drained, and the group is not pending.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn crypt<const SEAL: bool>(line: &mut Line, group: &Group) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let nonces = group.join(|packet| &packet.counter);
        let tag_counters = count_up(nonces, 1);
        // Only the last byte of the counters counts in small packets. It means nothing before
        // the start of a text.
        let mut counters = count_up(nonces, 2);
        if group.ragged {
            let lead = |lane: usize| (group.leads[lane] as i32) << 24;
            #[rustfmt::skip]
            let leads = _mm512_set_epi32(
                lead(3), 0, 0, 0, lead(2), 0, 0, 0, lead(1), 0, 0, 0, lead(0), 0, 0, 0,
            );
            counters = _mm512_sub_epi32(counters, leads);
        }
        let mut start = if group.columns <= 8 {
            group.columns
        } else {
            (group.columns - 1) % 4 + 5
        };
        match start {
            0 => chunk::<SEAL, 0, 1>(line, group, 0, counters, tag_counters),
            1 => chunk::<SEAL, 1, 2>(line, group, 0, counters, tag_counters),
            2 => chunk::<SEAL, 2, 3>(line, group, 0, counters, tag_counters),
            3 => chunk::<SEAL, 3, 4>(line, group, 0, counters, tag_counters),
            4 => chunk::<SEAL, 4, 5>(line, group, 0, counters, tag_counters),
            5 => chunk::<SEAL, 5, 6>(line, group, 0, counters, tag_counters),
            6 => chunk::<SEAL, 6, 7>(line, group, 0, counters, tag_counters),
            7 => chunk::<SEAL, 7, 8>(line, group, 0, counters, tag_counters),
            _ => chunk::<SEAL, 8, 9>(line, group, 0, counters, tag_counters),
        }
        while start < group.columns {
            let counters = count_up(counters, start as i32);
            if group.columns - start >= 8 {
                chunk::<SEAL, 8, 8>(line, group, start, counters, tag_counters);
                start += 8;
            } else {
                chunk::<SEAL, 4, 4>(line, group, start, counters, tag_counters);
                start += 4;
            }
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
        line.encrypt_columns::<SEAL, COUNT>(&group.keys);
        let last = start + TEXT == group.columns;
        let count = COUNT + usize::from(last);
        if first {
            line.masks = line.keystream[TEXT];
            line.blocks[count - 1] = if group.ragged {
                group.starting(0)
            } else {
                group.join(|packet| &packet.aad)
            };
        }
        if last {
            line.blocks[0] = group.join(|packet| &packet.lengths);
        }
        line.kind = Kind::Columns;
        line.columns = Chunk {
            group,
            start,
            text: TEXT,
            count,
            last,
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
                if n >= line.columns.count {
                    return;
                }
                let powers = &(*line.columns.group).keys.powers();
                if n + 1 < line.columns.count {
                    products.add_two([line.blocks[n], line.blocks[n + 1]], powers, n);
                } else {
                    products.add(line.blocks[n], powers, n);
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
                let at = (*group.packets[LANE]).text.wrapping_add(16 * column);
                let input = _mm512_loadu_si512(at.cast());
                let output = _mm512_xor_si512(input, keystream[LANE]);
                _mm512_storeu_si512(at.cast(), output);
                rows[LANE] = if SEAL { output } else { input };
            });
        } else {
            unrolled!(LANE < 4, {
                let (at, mask) = group.text::<COLUMNS>(LANE, column);
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
        let keystream = line.keystream[from];
        let block;
        if column < group.whole {
            let at = group
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
                group.text::<1>(0, column),
                group.text::<1>(1, column),
                group.text::<1>(2, column),
                group.text::<1>(3, column),
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
        put(line, group, from, block);
    }
}

/// Puts the hash input of column `n` of the chunk to its place.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
unsafe fn put(line: &mut Line, group: &Group, n: usize, block: __m512i) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let chunk = &line.columns;
        let mut block = reverse_bytes(block);
        if group.ragged {
            block = _mm512_xor_si512(block, group.starting(chunk.start + n + 1));
        }
        if n == 0 && chunk.start > 0 {
            block = _mm512_xor_si512(block, line.sum);
        }
        let place = chunk.text - 1 - n + usize::from(chunk.last);
        line.blocks[place] = block;
    }
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

/// Adds to the last byte of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn count_up(counters: __m512i, by: i32) -> __m512i {
    _mm512_add_epi32(counters, lanes(i128::from(by) << 120))
}

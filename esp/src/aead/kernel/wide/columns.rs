//! Up to four packets, one to a lane.

use core::arch::x86_64::*;

use super::super::packet::Packet;
use super::aes::{Keys, unrolled};
use super::hash::{Powers, join};
use super::{Line, Task, bytes_of_text, finish, lanes, reverse_bytes};

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
    texts: [*mut u8; 4],
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
    /// Holds the last hash block.
    pub(super) last: bool,
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
            texts: [core::ptr::null_mut(); 4],
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
        group.texts = all.map(|packet| packet.text);
        group.lens = all.map(|packet| packet.len);
        let blocks = group.lens.map(|len| len.div_ceil(16));
        group.columns = blocks[0].max(blocks[1]).max(blocks[2].max(blocks[3]));
        group.leads = blocks.map(|blocks| group.columns - blocks);
        group.ragged = group.leads != [0; 4];
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
        line.encrypt::<SEAL, COUNT>(keys);
        let last = start + TEXT == group.columns;
        line.count = COUNT + usize::from(last);
        if first {
            line.masks = line.keystream[TEXT];
            line.blocks[line.count - 1] = starting(group, 0);
        }
        if last {
            line.blocks[0] = group.lengths;
        }
        line.powers = Powers {
            lanes: group.packets.map(|packet| (*packet).key().powers.as_ptr()),
            same: keys.same,
        };
        line.task = Task::Columns(Chunk {
            group,
            start,
            text: TEXT,
            last,
        });
    }
}

/// Encrypts or decrypts four columns, or what is left of them.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_text<const SEAL: bool>(line: &mut Line, chunk: &Chunk, quad: usize) {
    if 4 * quad >= chunk.text {
        return;
    }
    // SAFETY: the caller keeps the contract; masks keep to the text.
    unsafe {
        let group = &*chunk.group;
        let columns = (chunk.text - 4 * quad).min(4);
        let column = chunk.start + 4 * quad;
        let keystream = &line.keystream[4 * quad..];
        let zero = _mm512_setzero_si512();
        let keystream = match columns {
            1 => [keystream[0], zero, zero, zero],
            2 => [keystream[0], keystream[1], zero, zero],
            3 => [keystream[0], keystream[1], keystream[2], zero],
            _ => [keystream[0], keystream[1], keystream[2], keystream[3]],
        };
        let keystream = transposed(keystream);
        let mut rows = [zero; 4];
        unrolled!(LANE < 4, {
            let offset = 16 * (column as isize - group.leads[LANE] as isize);
            let mask = bytes_of_text(offset, group.lens[LANE]) & (!0 >> (64 - 16 * columns));
            let at = group.texts[LANE].wrapping_offset(offset);
            let input = _mm512_maskz_loadu_epi8(mask, at.cast());
            let output = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(input, keystream[LANE]));
            _mm512_mask_storeu_epi8(at.cast(), mask, output);
            rows[LANE] = if SEAL { output } else { input };
        });
        let blocks = transposed(rows);
        // The number of the first of these columns in the hash, from the end.
        let place = chunk.text - 4 * quad - 1 + usize::from(chunk.last);
        unrolled!(I < 4, {
            if I < columns {
                let mut block = reverse_bytes(blocks[I]);
                if group.ragged {
                    block = _mm512_xor_si512(block, starting(group, column + I + 1));
                }
                if I == 0 && quad == 0 {
                    block = _mm512_xor_si512(block, line.sum);
                }
                line.blocks[place - I] = block;
            }
        });
    }
}

/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn finish_tags<const SEAL: bool>(chunk: &Chunk, sums: __m512i, masks: __m512i) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let tags = _mm512_xor_si512(reverse_bytes(sums), masks);
        let group = &*chunk.group;
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

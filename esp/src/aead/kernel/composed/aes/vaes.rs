//! AES-CBC and AES-CTR with VAES and AVX-512: four blocks in a register, sixteen at once.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;

use super::{AesKey, BLOCK, CbcText, ROUND_KEYS, m128i};
use crate::aead::kernel::wipe::wipe;

/// Packets that CBC encryption takes at once.
const LANES: usize = 16;
/// Registers for them.
const VECTORS: usize = LANES / 4;
/// Registers that CBC decryption and CTR use at once.
const MOST_VECTORS: usize = 8;

/// Round keys of the packets in the lanes, four to a register. Wiped when dropped.
#[repr(C, align(64))]
pub(super) struct LaneKeys {
    keys: [[[u128; 4]; VECTORS]; ROUND_KEYS],
    /// Whose they are; neighbours mostly have the keys of those before them.
    of: [*const AesKey; LANES],
}

impl LaneKeys {
    pub(super) fn new() -> Self {
        Self {
            keys: [[[0; 4]; VECTORS]; ROUND_KEYS],
            of: [core::ptr::null(); LANES],
        }
    }

    #[inline]
    fn set(&mut self, lane: usize, key: &AesKey) {
        let place = &raw const *key;
        if self.of[lane] != place {
            self.of[lane] = place;
            for (keys, key) in self.keys.iter_mut().zip(&key.encryption) {
                keys[lane / 4][lane % 4] = *key;
            }
        }
    }
}

impl Drop for LaneKeys {
    fn drop(&mut self) {
        wipe(&mut self.keys);
    }
}

/// Texts with keys of `ROUNDS` rounds. `keys` has been used for texts with keys that still live,
/// or for none.
#[target_feature(enable = "avx512f,vaes,aes")]
pub(super) fn cbc_encrypt<const ROUNDS: usize>(texts: &mut [CbcText<'_>], keys: &mut LaneKeys) {
    match texts {
        [first, rest @ ..] if rest.iter().all(|text| core::ptr::eq(text.key, first.key)) => {
            (0..4).for_each(|lane| keys.set(lane, first.key));
            cbc_encrypt_lanes::<ROUNDS, true>(texts, keys);
        }
        _ => cbc_encrypt_lanes::<ROUNDS, false>(texts, keys),
    }
}

/// As soon as a text has ended the next takes its lane. With `SHARED` the keys of the first four
/// lanes are those of all.
#[target_feature(enable = "avx512f,vaes,aes")]
fn cbc_encrypt_lanes<const ROUNDS: usize, const SHARED: bool>(
    texts: &mut [CbcText<'_>],
    keys: &mut LaneKeys,
) {
    // Lanes without a text work here.
    let mut idle = [0_u8; BLOCK];
    let idle = idle.as_mut_ptr();
    let mut texts = texts.iter_mut().filter(|text| text.blocks.len() > 1);
    // The next block, bytes to the one after it, and how many there are.
    let mut at = [idle; LANES];
    let mut stride = [0_usize; LANES];
    let mut left = [0_usize; LANES];
    loop {
        for lane in 0..LANES {
            if left[lane] > 0 {
                continue;
            }
            (at[lane], stride[lane]) = (idle, 0);
            if let Some(CbcText { key, blocks }) = texts.next() {
                if !SHARED {
                    keys.set(lane, key);
                }
                // The first is the IV.
                left[lane] = blocks.len() - 1;
                at[lane] = blocks.as_mut_ptr().cast::<u8>().wrapping_add(BLOCK);
                stride[lane] = BLOCK;
            }
        }
        // Until the next text ends.
        let Some(steps) = left.into_iter().filter(|left| *left > 0).min() else {
            break;
        };
        // The blocks before: IVs, or what has been encrypted last.
        let mut before = at;
        for lane in 0..LANES {
            before[lane] = at[lane].wrapping_sub(stride[lane]);
        }
        let mut state = [_mm512_setzero_si512(); VECTORS];
        for vector in 0..VECTORS {
            // SAFETY: an IV stands before each text, or it is the idle block.
            state[vector] = unsafe { gather(&before, 4 * vector) };
        }
        let key = |round: usize, vector: usize| {
            let keys = &keys.keys[round][if SHARED { 0 } else { vector }];
            // SAFETY: an aligned vector.
            unsafe { _mm512_load_si512((&raw const *keys).cast()) }
        };
        for _ in 0..steps {
            for vector in 0..VECTORS {
                // SAFETY: blocks of the texts, or the idle block.
                let text = unsafe { gather(&at, 4 * vector) };
                state[vector] =
                    _mm512_ternarylogic_epi64(state[vector], text, key(0, vector), 0x96);
            }
            for round in 1..ROUNDS {
                for vector in 0..VECTORS {
                    state[vector] = _mm512_aesenc_epi128(state[vector], key(round, vector));
                }
            }
            for vector in 0..VECTORS {
                state[vector] = _mm512_aesenclast_epi128(state[vector], key(ROUNDS, vector));
                // SAFETY: blocks of the texts, which are borrowed mutably, or the idle block.
                unsafe { scatter(state[vector], &at, 4 * vector) };
            }
            for lane in 0..LANES {
                at[lane] = at[lane].wrapping_add(stride[lane]);
            }
        }
        for left in &mut left {
            *left = left.saturating_sub(steps);
        }
    }
}

/// Four blocks from the places from `first` on.
///
/// # Safety
/// Every place is valid for reads of 16 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn gather(places: &[*mut u8; LANES], first: usize) -> __m512i {
    // SAFETY: the caller vouches for the places.
    let block = |lane: usize| unsafe { _mm_loadu_si128(places[first + lane].cast()) };
    let vector = _mm512_broadcast_i32x4(block(0));
    let vector = _mm512_mask_broadcast_i32x4(vector, 0x00f0, block(1));
    let vector = _mm512_mask_broadcast_i32x4(vector, 0x0f00, block(2));
    _mm512_mask_broadcast_i32x4(vector, 0xf000, block(3))
}

/// Four blocks to the places from `first` on.
///
/// # Safety
/// Every place is valid for writes of 16 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn scatter(blocks: __m512i, places: &[*mut u8; LANES], first: usize) {
    // SAFETY: the caller vouches for the places.
    unsafe {
        _mm_storeu_si128(places[first].cast(), _mm512_castsi512_si128(blocks));
        _mm_storeu_si128(
            places[first + 1].cast(),
            _mm512_extracti32x4_epi32(blocks, 1),
        );
        _mm_storeu_si128(
            places[first + 2].cast(),
            _mm512_extracti32x4_epi32(blocks, 2),
        );
        _mm_storeu_si128(
            places[first + 3].cast(),
            _mm512_extracti32x4_epi32(blocks, 3),
        );
    }
}

/// From the end to the beginning, so that the block before is always still encrypted.
#[target_feature(enable = "avx512f,avx512bw,vaes,aes")]
pub(super) fn cbc_decrypt<const ROUNDS: usize>(key: &AesKey, blocks: &mut [[u8; BLOCK]]) {
    let mut end = blocks.len();
    while end > 1 {
        let before = &mut blocks[..end];
        end = match end {
            18.. => cbc_decrypt_vectors::<ROUNDS, MOST_VECTORS>(key, before),
            10.. => cbc_decrypt_vectors::<ROUNDS, 4>(key, before),
            6.. => cbc_decrypt_vectors::<ROUNDS, 2>(key, before),
            _ => cbc_decrypt_vectors::<ROUNDS, 1>(key, before),
        };
    }
}

/// As many blocks of the last as `VECTORS` vectors have room for, but not the first one; returns
/// how many blocks are left.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,aes")]
fn cbc_decrypt_vectors<const ROUNDS: usize, const VECTORS: usize>(
    key: &AesKey,
    blocks: &mut [[u8; BLOCK]],
) -> usize {
    let start = blocks.len().saturating_sub(4 * VECTORS).max(1);
    let place = blocks[start..].as_mut_ptr().cast::<i8>();
    let before = blocks[start - 1..].as_ptr().cast::<i8>();
    let masks = masks::<VECTORS>((blocks.len() - start) * BLOCK);
    let first = round_key(&key.decryption[0]);
    let mut state = [_mm512_setzero_si512(); VECTORS];
    let mut previous = state;
    for vector in 0..VECTORS {
        // SAFETY: the masks have one bit for each byte from `start` on.
        unsafe {
            let block = _mm512_maskz_loadu_epi8(masks[vector], place.wrapping_add(64 * vector));
            previous[vector] =
                _mm512_maskz_loadu_epi8(masks[vector], before.wrapping_add(64 * vector));
            state[vector] = _mm512_xor_si512(block, first);
        }
    }
    for key in &key.decryption[1..ROUNDS] {
        let key = round_key(key);
        for vector in 0..VECTORS {
            state[vector] = _mm512_aesdec_epi128(state[vector], key);
        }
    }
    let last = round_key(&key.decryption[ROUNDS]);
    for vector in 0..VECTORS {
        let text = _mm512_aesdeclast_epi128(state[vector], last);
        let text = _mm512_xor_si512(text, previous[vector]);
        // SAFETY: as for the loads, and `blocks` is borrowed mutably.
        unsafe { _mm512_mask_storeu_epi8(place.wrapping_add(64 * vector), masks[vector], text) };
    }
    start
}

#[target_feature(enable = "avx512f,avx512bw,vaes,aes")]
pub(super) fn ctr<const ROUNDS: usize>(key: &AesKey, first: [u8; BLOCK], text: &mut [u8]) {
    // The counter in the upper word of each block, where it can be added to; the words that do
    // not count stay as they are on the wire.
    let swap = swap_counters();
    let one_to_four = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3);
    // SAFETY: a block of 16 bytes.
    let first = unsafe { _mm_loadu_si128(first.as_ptr().cast()) };
    let first = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(first), swap);
    let mut counters = _mm512_add_epi32(first, one_to_four);
    let mut rest = text;
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at_mut(rest.len().min(MOST_VECTORS * 64));
        rest = behind;
        let chunk_counters = counters;
        counters = _mm512_add_epi32(
            counters,
            _mm512_maskz_set1_epi32(0x8888, 4 * MOST_VECTORS as i32),
        );
        match chunk.len().div_ceil(64) {
            1 => ctr_vectors::<ROUNDS, 1>(key, chunk_counters, chunk),
            2 => ctr_vectors::<ROUNDS, 2>(key, chunk_counters, chunk),
            3 | 4 => ctr_vectors::<ROUNDS, 4>(key, chunk_counters, chunk),
            _ => ctr_vectors::<ROUNDS, MOST_VECTORS>(key, chunk_counters, chunk),
        }
    }
}

/// At most `VECTORS` vectors of text. `counters` are the first four, the words that count in
/// the order of the CPU.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,aes")]
fn ctr_vectors<const ROUNDS: usize, const VECTORS: usize>(
    key: &AesKey,
    mut counters: __m512i,
    text: &mut [u8],
) {
    let swap = swap_counters();
    let four = _mm512_maskz_set1_epi32(0x8888, 4);
    let whitening = round_key(&key.encryption[0]);
    let mut state = [_mm512_setzero_si512(); VECTORS];
    for vector in 0..VECTORS {
        state[vector] = _mm512_xor_si512(_mm512_shuffle_epi8(counters, swap), whitening);
        counters = _mm512_add_epi32(counters, four);
    }
    for key in &key.encryption[1..ROUNDS] {
        let key = round_key(key);
        for vector in 0..VECTORS {
            state[vector] = _mm512_aesenc_epi128(state[vector], key);
        }
    }
    let last = round_key(&key.encryption[ROUNDS]);
    let masks = masks::<VECTORS>(text.len());
    let place = text.as_mut_ptr().cast::<i8>();
    for vector in 0..VECTORS {
        let stream = _mm512_aesenclast_epi128(state[vector], last);
        let (mask, place) = (masks[vector], place.wrapping_add(64 * vector));
        // SAFETY: the masks have one bit for each byte of the text.
        unsafe {
            let text = _mm512_maskz_loadu_epi8(mask, place);
            _mm512_mask_storeu_epi8(place, mask, _mm512_xor_si512(text, stream));
        }
    }
}

/// Exchanges the bytes of the words that count.
#[inline]
#[target_feature(enable = "avx512f")]
fn swap_counters() -> __m512i {
    _mm512_broadcast_i32x4(_mm_setr_epi8(
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12,
    ))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn round_key(key: &u128) -> __m512i {
    _mm512_broadcast_i32x4(m128i(key))
}

/// Which bytes of the vectors there are: the first `len`.
#[inline]
fn masks<const VECTORS: usize>(len: usize) -> [__mmask64; VECTORS] {
    core::array::from_fn(|vector| match len.saturating_sub(64 * vector) {
        64.. => u64::MAX,
        len => (1 << len) - 1,
    })
}

//! AES-CBC and AES-CTR with AES-NI: a block in a register, eight at once.

#![allow(
    clippy::needless_range_loop,
    reason = "an index runs over several arrays of registers at once"
)]

use core::arch::x86_64::*;

use super::{AesKey, BLOCK, CbcText, m128i};

/// Packets that CBC encryption takes at once, and blocks that all else does: as many as hide how
/// long an instruction takes.
pub(super) const LANES: usize = 8;

/// At most [`LANES`] texts, with keys of `ROUNDS` rounds.
#[target_feature(enable = "aes")]
pub(super) fn cbc_encrypt<const ROUNDS: usize>(group: &mut [CbcText<'_>]) {
    // Lanes without a text, or whose text has ended, work here with the key of another.
    let mut idle = [0_u8; BLOCK];
    let idle = idle.as_mut_ptr();
    let mut places = [idle; LANES];
    // Where the text ends; the block at 0 is the IV.
    let mut ends = [0_usize; LANES];
    let Some(first) = group.first() else { return };
    let mut keys = [&first.key.encryption; LANES];
    let mut state = [_mm_setzero_si128(); LANES];
    for (lane, text) in group.iter_mut().enumerate() {
        keys[lane] = &text.key.encryption;
        if let Some(iv) = text.blocks.first() {
            // SAFETY: a block of 16 bytes.
            state[lane] = unsafe { _mm_loadu_si128(iv.as_ptr().cast()) };
            ends[lane] = text.blocks.len();
            places[lane] = text.blocks.as_mut_ptr().cast();
        }
    }
    let mut step = 1;
    // Until the next text ends.
    while let Some(end) = ends.into_iter().filter(|end| *end > step).min() {
        // Bytes from one block to the next: none in idle lanes.
        let mut stride = [BLOCK; LANES];
        let mut at = [idle; LANES];
        for lane in 0..LANES {
            if ends[lane] > step {
                at[lane] = places[lane].wrapping_add(step * BLOCK);
            } else {
                stride[lane] = 0;
            }
        }
        for _ in step..end {
            for lane in 0..LANES {
                // SAFETY: a block before the end of the text, or the idle block.
                let text = unsafe { _mm_loadu_si128(at[lane].cast()) };
                let text = _mm_xor_si128(text, m128i(&keys[lane][0]));
                state[lane] = _mm_xor_si128(state[lane], text);
            }
            for round in 1..ROUNDS {
                for lane in 0..LANES {
                    state[lane] = _mm_aesenc_si128(state[lane], m128i(&keys[lane][round]));
                }
            }
            for lane in 0..LANES {
                state[lane] = _mm_aesenclast_si128(state[lane], m128i(&keys[lane][ROUNDS]));
                // SAFETY: as for the load; the texts are borrowed mutably.
                unsafe { _mm_storeu_si128(at[lane].cast(), state[lane]) };
                at[lane] = at[lane].wrapping_add(stride[lane]);
            }
        }
        step = end;
    }
}

/// From the end to the beginning, so that the block before is always still encrypted.
#[target_feature(enable = "aes")]
pub(super) fn cbc_decrypt<const ROUNDS: usize>(key: &AesKey, blocks: &mut [[u8; BLOCK]]) {
    let mut end = blocks.len();
    while end > LANES {
        cbc_decrypt_blocks::<ROUNDS, LANES>(key, &mut blocks[end - LANES - 1..end]);
        end -= LANES;
    }
    while end > 1 {
        cbc_decrypt_blocks::<ROUNDS, 1>(key, &mut blocks[end - 2..end]);
        end -= 1;
    }
}

/// The last `COUNT` of the blocks, of which there is one more.
#[inline]
#[target_feature(enable = "aes")]
fn cbc_decrypt_blocks<const ROUNDS: usize, const COUNT: usize>(
    key: &AesKey,
    blocks: &mut [[u8; BLOCK]],
) {
    let mut previous = [_mm_setzero_si128(); COUNT];
    let mut state = previous;
    for index in 0..COUNT {
        // SAFETY: blocks of 16 bytes.
        unsafe {
            previous[index] = _mm_loadu_si128(blocks[index].as_ptr().cast());
            state[index] = _mm_loadu_si128(blocks[index + 1].as_ptr().cast());
        }
        state[index] = _mm_xor_si128(state[index], m128i(&key.decryption[0]));
    }
    for key in &key.decryption[1..ROUNDS] {
        for index in 0..COUNT {
            state[index] = _mm_aesdec_si128(state[index], m128i(key));
        }
    }
    for index in 0..COUNT {
        let text = _mm_aesdeclast_si128(state[index], m128i(&key.decryption[ROUNDS]));
        // SAFETY: a block of 16 bytes.
        unsafe {
            let place = blocks[index + 1].as_mut_ptr().cast();
            _mm_storeu_si128(place, _mm_xor_si128(text, previous[index]));
        }
    }
}

#[target_feature(enable = "aes,sse4.1")]
pub(super) fn ctr<const ROUNDS: usize>(key: &AesKey, first: [u8; BLOCK], text: &mut [u8]) {
    let mut counter = u32::from_be_bytes([first[12], first[13], first[14], first[15]]);
    // SAFETY: a block of 16 bytes.
    let first = unsafe { _mm_loadu_si128(first.as_ptr().cast()) };
    for chunk in text.chunks_mut(LANES * BLOCK) {
        let mut stream = [_mm_setzero_si128(); LANES];
        for block in &mut stream {
            let counted = _mm_insert_epi32(first, counter.swap_bytes().cast_signed(), 3);
            *block = _mm_xor_si128(counted, m128i(&key.encryption[0]));
            counter = counter.wrapping_add(1);
        }
        for key in &key.encryption[1..ROUNDS] {
            for block in &mut stream {
                *block = _mm_aesenc_si128(*block, m128i(key));
            }
        }
        let last = m128i(&key.encryption[ROUNDS]);
        let (blocks, rest) = chunk.as_chunks_mut::<BLOCK>();
        let mut stream = stream
            .map(|block| _mm_aesenclast_si128(block, last))
            .into_iter();
        for (block, stream) in blocks.iter_mut().zip(&mut stream) {
            // SAFETY: a block of 16 bytes.
            unsafe {
                let text = _mm_loadu_si128(block.as_ptr().cast());
                _mm_storeu_si128(block.as_mut_ptr().cast(), _mm_xor_si128(text, stream));
            }
        }
        if let (false, Some(stream)) = (rest.is_empty(), stream.next()) {
            let mut bytes = [0; BLOCK];
            // SAFETY: a block of 16 bytes.
            unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), stream) };
            for (byte, stream) in rest.iter_mut().zip(bytes) {
                *byte ^= stream;
            }
        }
    }
}

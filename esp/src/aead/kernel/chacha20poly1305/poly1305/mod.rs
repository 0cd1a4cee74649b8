//! Poly1305 (RFC 8439 section 2.5) in the lanes of vectors.
//!
//! A lane is a packet, so that as many packets as two vectors have lanes advance block by block
//! together; a packet much longer than its neighbours takes all lanes of a vector for itself.

mod avx2;
mod ifma;

use super::{BATCH, Token};

/// Full blocks from which on a packet can take all lanes.
const LONG: usize = 32;

const BLOCK: usize = 16;
const MASK_44: u64 = (1 << 44) - 1;
const MASK_42: u64 = (1 << 42) - 1;

/// What is authenticated: additional data of at most one block, and a text.
pub(super) struct Message<'a> {
    /// r and s.
    pub(super) key: &'a [u128; 2],
    /// Padded with zeroes.
    pub(super) aad: [u8; BLOCK],
    pub(super) aad_len: usize,
    pub(super) text: &'a [u8],
}

impl Message<'_> {
    fn full_blocks(&self) -> usize {
        self.text.len() / BLOCK
    }

    /// The last block if it is not full, with the zeroes that pad it (RFC 8439 section 2.8).
    fn partial_block(&self) -> Option<[u8; BLOCK]> {
        let rest = &self.text[self.full_blocks() * BLOCK..];
        let mut block = [0; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        (!rest.is_empty()).then_some(block)
    }

    fn length_block(&self) -> [u8; BLOCK] {
        let lengths = self.aad_len as u128 | (self.text.len() as u128) << 64;
        lengths.to_le_bytes()
    }

    fn r(&self) -> u128 {
        //= https://www.rfc-editor.org/rfc/rfc8439#section-2.5
        // Some bits of r are required to be zero ("clamped").
        self.key[0] & 0x0ffffffc_0ffffffc_0ffffffc_0fffffff
    }

    /// The tag, from the sum in limbs of 44, 44 and 42 bits that need not be carried.
    fn tag(&self, [mut h0, mut h1, mut h2]: [u64; 3]) -> [u8; BLOCK] {
        for _ in 0..2 {
            h1 += h0 >> 44;
            h0 &= MASK_44;
            h2 += h1 >> 44;
            h1 &= MASK_44;
            h0 += 5 * (h2 >> 42);
            h2 &= MASK_42;
        }
        h1 += h0 >> 44;
        h0 &= MASK_44;
        // Minus 2^130 - 5, unless that is negative.
        let g0 = h0 + 5;
        let g1 = h1 + (g0 >> 44);
        let g2 = (h2 + (g1 >> 44)).wrapping_sub(1 << 42);
        let keep = (g2 >> 63).wrapping_neg();
        let h0 = (h0 & keep) | (g0 & MASK_44 & !keep);
        let h1 = (h1 & keep) | (g1 & MASK_44 & !keep);
        let h2 = (h2 & keep) | (g2 & !keep);
        let h = u128::from(h0) | u128::from(h1) << 44 | u128::from(h2) << 88;
        h.wrapping_add(self.key[1]).to_le_bytes()
    }
}

/// The tag of every message.
pub(super) fn tags(token: Token, messages: &[Message<'_>], tags: &mut [[u8; BLOCK]]) {
    let mut order = [0_u8; BATCH];
    let order = &mut order[..messages.len()];
    for (index, place) in order.iter_mut().enumerate() {
        *place = index as u8;
    }
    order.sort_unstable_by_key(|&index| usize::MAX - messages[usize::from(index)].text.len());

    let blocks = |index: &u8| messages[usize::from(*index)].full_blocks();
    let most = if token.avx512 {
        ifma::GROUP
    } else {
        avx2::GROUP
    };
    let mut rest = &order[..];
    while let Some(longest) = rest.first() {
        let group = &rest[..rest.len().min(most)];
        // What lanes of one packet each would cost against what they would do.
        let (cost, work) = (
            blocks(longest) * most,
            group.iter().map(blocks).sum::<usize>(),
        );
        let taken = if blocks(longest) >= LONG && cost > work + work / 2 + 4 * most {
            let index = usize::from(*longest);
            // SAFETY: a token says what instructions the CPU has.
            tags[index] = unsafe {
                match token.avx512 {
                    true => ifma::long(&messages[index]),
                    false => avx2::long(&messages[index]),
                }
            };
            1
        } else {
            // SAFETY: a token says what instructions the CPU has.
            unsafe {
                match token.avx512 {
                    true => ifma::side_by_side(messages, group, tags),
                    false => avx2::side_by_side(messages, group, tags),
                }
            }
            group.len()
        };
        rest = &rest[taken..];
    }
}

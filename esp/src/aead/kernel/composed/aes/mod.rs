//! AES key schedules, AES-CBC and AES-CTR.
//!
//! CBC encryption is serial within a packet, so eight or sixteen packets advance block by block
//! together. CBC decryption and CTR take as many blocks of one packet at a time.

mod ni;
mod vaes;

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::Token;

/// Round keys of AES-256; shorter keys use the first ones.
const ROUND_KEYS: usize = 15;
/// Bytes in a block.
pub(super) const BLOCK: usize = 16;
type RoundKeys = [u128; ROUND_KEYS];

/// An expanded AES key.
#[repr(C, align(64))]
pub(super) struct AesKey {
    encryption: RoundKeys,
    /// For the inverse cipher, in the order in which it uses them (FIPS 197 section 5.3.5).
    decryption: RoundKeys,
    pub(super) rounds: usize,
}

impl AesKey {
    /// 16, 24 or 32 bytes; `None` for any other length.
    pub(super) fn new(token: Token, key: &[u8]) -> Option<Self> {
        if !matches!(key.len(), 16 | 24 | 32) {
            return None;
        }
        let mut expanded = Self {
            encryption: [0; ROUND_KEYS],
            decryption: [0; ROUND_KEYS],
            rounds: key.len() / 4 + 6,
        };
        let Token { .. } = token;
        // SAFETY: a token proves that the CPU has the instructions.
        unsafe { expanded.expand(key) };
        Some(expanded)
    }

    /// FIPS 197 section 5.2.
    #[target_feature(enable = "aes")]
    fn expand(&mut self, key: &[u8]) {
        let words = key.len() / 4;
        let mut schedule = [0_u32; 4 * ROUND_KEYS];
        for (word, bytes) in schedule.iter_mut().zip(key.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let mut constant = 1_u32;
        for i in words..4 * (self.rounds + 1) {
            let mut word = schedule[i - 1];
            if i % words == 0 {
                word = substitute(word).rotate_right(8) ^ constant;
                constant = (constant << 1) ^ ((constant >> 7) * 0x11b);
            } else if words > 6 && i % words == 4 {
                word = substitute(word);
            }
            schedule[i] = schedule[i - words] ^ word;
        }
        for (key, words) in self.encryption.iter_mut().zip(schedule.as_chunks::<4>().0) {
            *key = words
                .iter()
                .rev()
                .fold(0, |key, word| key << 32 | u128::from(*word));
        }
        schedule.zeroize();
        let last = self.rounds;
        self.decryption[0] = self.encryption[last];
        self.decryption[last] = self.encryption[0];
        for round in 1..last {
            let key = m128i(&self.encryption[last - round]);
            // SAFETY: 16 aligned bytes.
            unsafe {
                let place = (&raw mut self.decryption[round]).cast();
                _mm_store_si128(place, _mm_aesimc_si128(key));
            }
        }
    }
}

impl Drop for AesKey {
    fn drop(&mut self) {
        self.encryption.zeroize();
        self.decryption.zeroize();
    }
}

/// The S-box on each byte of a word, by an AES round on four copies of it: ShiftRows does not
/// change equal columns, and nothing is looked up in memory.
#[target_feature(enable = "aes")]
fn substitute(word: u32) -> u32 {
    let columns = _mm_set1_epi32(word as i32);
    _mm_cvtsi128_si32(_mm_aesenclast_si128(columns, _mm_setzero_si128())) as u32
}

#[inline]
fn m128i(value: &u128) -> __m128i {
    // SAFETY: 16 aligned bytes, of which any are valid.
    unsafe { _mm_load_si128((&raw const *value).cast()) }
}

/// A text that CBC encrypts.
pub(super) struct CbcText<'a> {
    pub(super) key: &'a AesKey,
    /// The IV and the text behind it.
    pub(super) blocks: &'a mut [[u8; BLOCK]],
}

/// Calls a function for keys of one length.
macro_rules! by_rounds {
    ($rounds:expr, $module:ident::$function:ident $(, $argument:expr)*) => {
        match $rounds {
            10 => $module::$function::<10>($($argument),*),
            12 => $module::$function::<12>($($argument),*),
            _ => $module::$function::<14>($($argument),*),
        }
    };
}

/// Encrypts texts with AES-CBC (NIST SP 800-38A section 6.2).
///
/// Best if texts with keys of one length are neighbours, the longest first.
pub(super) fn cbc_encrypt(token: Token, texts: &mut [CbcText<'_>]) {
    let same = |one: &CbcText<'_>, other: &CbcText<'_>| one.key.rounds == other.key.rounds;
    if !token.avx512 {
        for texts in texts.chunk_by_mut(same) {
            for group in texts.chunks_mut(ni::LANES) {
                // SAFETY: a token proves that the CPU has the instructions.
                unsafe { by_rounds!(group[0].key.rounds, ni::cbc_encrypt, group) }
            }
        }
        return;
    }
    let mut keys = vaes::LaneKeys::new();
    for texts in texts.chunk_by_mut(same) {
        // SAFETY: the token says that the CPU has the instructions.
        unsafe { by_rounds!(texts[0].key.rounds, vaes::cbc_encrypt, texts, &mut keys) }
    }
}

/// Decrypts with AES-CBC (NIST SP 800-38A section 6.2) the text behind the IV that is the first
/// of `blocks`.
pub(super) fn cbc_decrypt(token: Token, key: &AesKey, blocks: &mut [[u8; BLOCK]]) {
    if token.avx512 {
        // SAFETY: the token says that the CPU has the instructions.
        unsafe { by_rounds!(key.rounds, vaes::cbc_decrypt, key, blocks) }
    } else {
        // SAFETY: a token proves that the CPU has the instructions.
        unsafe { by_rounds!(key.rounds, ni::cbc_decrypt, key, blocks) }
    }
}

/// Encrypts or decrypts with AES-CTR (NIST SP 800-38A section 6.5). `first` is the first counter
/// block, of which the last 32 bits count.
pub(super) fn ctr(token: Token, key: &AesKey, first: [u8; BLOCK], text: &mut [u8]) {
    if token.avx512 {
        // SAFETY: the token says that the CPU has the instructions.
        unsafe { by_rounds!(key.rounds, vaes::ctr, key, first, text) }
    } else {
        // SAFETY: a token proves that the CPU has the instructions.
        unsafe { by_rounds!(key.rounds, ni::ctr, key, first, text) }
    }
}

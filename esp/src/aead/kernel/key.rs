//! The expanded key: AES round keys and powers of the hash key, in the order the kernels
//! read them.

use core::arch::x86_64::*;
use core::num::NonZeroU8;

use zeroize::Zeroize;

use super::Kernel;
use super::packet::Shape;

/// How the key is used in ESP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// RFC 4106: 8 bytes of IV in the packet, text encrypted.
    Gcm,
    /// RFC 4543: 8 bytes of IV in the packet, text authenticated only.
    Gmac,
    /// RFC 8750: the sequence number is the IV, text encrypted.
    ImplicitIv,
}

/// Powers of the hash key that small packets use: H^1 to H^12.
pub(super) const POWERS: usize = 12;
/// Vectors that one chunk of a large packet has at most.
pub(super) const STRIDES: usize = 8;
/// Round keys of AES-256; shorter keys use the first ones.
pub(super) const ROUND_KEYS: usize = 15;

/// A key for AES-GCM or GMAC and the kernel that works with it.
///
/// What a small packet needs comes first: round keys, parameters, low powers.
#[repr(C, align(64))]
pub(crate) struct GcmKey {
    pub(super) round_keys: [u128; ROUND_KEYS],
    pub(super) salt: u32,
    /// What each packet of the key has to know of it.
    pub(super) shape: Shape,
    pub(super) rounds: u8,
    pub(super) form: Form,
    /// Bytes before the text in an ESP packet.
    pub(super) header_len: u8,
    pub(super) icv_len: u8,
    /// Bytes of an ESP packet without text.
    pub(super) overhead: u8,
    pub(super) kernel: Kernel,
    /// Which keys small packets can be worked on with together, at 512 bits.
    pub(super) class: Option<NonZeroU8>,
    /// H^1, H^2, ...; a byte-reversed block times one of these in [`reduce`]'s arithmetic is
    /// the block times that power in GHASH.
    pub(super) powers: [u128; POWERS],
    /// 1, H^w, H^2w, ... for vectors of w blocks.
    pub(super) strides: [u128; 1 + STRIDES],
}

impl GcmKey {
    /// Expands `key` of 16, 24 or 32 bytes; `None` for any other length.
    pub(crate) fn new(
        kernel: Kernel,
        key: &[u8],
        salt: [u8; 4],
        form: Form,
        icv_len: usize,
    ) -> Option<Self> {
        if !matches!(key.len(), 16 | 24 | 32) || !matches!(icv_len, 4..=16) {
            return None;
        }
        let rounds = (key.len() / 4 + 6) as u8;
        let header_len = if form == Form::ImplicitIv { 8 } else { 16 };
        let icv_len = icv_len as u8;
        let mut expanded = Self {
            round_keys: [0; ROUND_KEYS],
            salt: u32::from_le_bytes(salt),
            shape: Shape::new(rounds, icv_len),
            rounds,
            form,
            header_len,
            icv_len,
            overhead: header_len + icv_len,
            kernel,
            class: super::wide::class_of_key(kernel, form, rounds, icv_len),
            powers: [0; POWERS],
            strides: [0; 1 + STRIDES],
        };
        // SAFETY: a `Kernel` exists only where the CPU has what `expand` needs.
        unsafe { expanded.expand(key) };
        Some(expanded)
    }

    #[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
    fn expand(&mut self, key: &[u8]) {
        let words = key.len() / 4;
        let mut schedule = [0u32; 4 * ROUND_KEYS];
        for (word, bytes) in schedule.iter_mut().zip(key.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let mut constant = 1u32;
        for i in words..4 * (usize::from(self.rounds) + 1) {
            let mut word = schedule[i - 1];
            if i % words == 0 {
                word = substitute(word).rotate_right(8) ^ constant;
                constant = (constant << 1) ^ ((constant >> 7) * 0x11b);
            } else if words > 6 && i % words == 4 {
                word = substitute(word);
            }
            schedule[i] = schedule[i - words] ^ word;
        }
        for (key, words) in self.round_keys.iter_mut().zip(schedule.chunks_exact(4)) {
            *key = u128::from(words[0])
                | u128::from(words[1]) << 32
                | u128::from(words[2]) << 64
                | u128::from(words[3]) << 96;
        }
        schedule.zeroize();

        // The hash key, doubled once so that products need no shift (the bits of a GHASH
        // block are reflected).
        let mut hash_key = u128_from(self.encrypt_block(_mm_setzero_si128())).swap_bytes();
        let carry = ((hash_key as i128) >> 127) as u128;
        hash_key = (hash_key << 1) ^ (carry & ONE);
        self.powers[0] = hash_key;
        for i in 1..POWERS {
            self.powers[i] = multiply(self.powers[i - 1], hash_key);
        }
        let lanes = self.kernel.lanes();
        self.strides[0] = ONE;
        self.strides[1] = self.powers[lanes - 1];
        for i in 2..=STRIDES {
            self.strides[i] = multiply(self.strides[i - 1], self.strides[1]);
        }
        hash_key.zeroize();
    }

    #[target_feature(enable = "aes")]
    fn encrypt_block(&self, block: __m128i) -> __m128i {
        let rounds = usize::from(self.rounds);
        let mut state = _mm_xor_si128(block, m128i_from(self.round_keys[0]));
        for key in &self.round_keys[1..rounds] {
            state = _mm_aesenc_si128(state, m128i_from(*key));
        }
        _mm_aesenclast_si128(state, m128i_from(self.round_keys[rounds]))
    }
}

impl Drop for GcmKey {
    fn drop(&mut self) {
        self.round_keys.zeroize();
        self.salt.zeroize();
        self.powers.zeroize();
        self.strides.zeroize();
    }
}

/// The S-box on each byte of a word, by one AES round on four copies of it: equal columns are
/// not changed by ShiftRows, and nothing is looked up in memory.
#[target_feature(enable = "aes")]
fn substitute(word: u32) -> u32 {
    let columns = _mm_set1_epi32(word as i32);
    _mm_cvtsi128_si32(_mm_aesenclast_si128(columns, _mm_setzero_si128())) as u32
}

#[target_feature(enable = "pclmulqdq")]
fn multiply(a: u128, b: u128) -> u128 {
    let (a, b) = (m128i_from(a), m128i_from(b));
    let low = _mm_clmulepi64_si128(a, b, 0x00);
    let high = _mm_clmulepi64_si128(a, b, 0x11);
    let middle = _mm_xor_si128(
        _mm_clmulepi64_si128(a, b, 0x01),
        _mm_clmulepi64_si128(a, b, 0x10),
    );
    u128_from(reduce(low, middle, high))
}

/// A 256-bit product (`middle` counts from bit 64) modulo the polynomial of GHASH, divided by
/// x^128.
#[target_feature(enable = "pclmulqdq")]
fn reduce(low: __m128i, middle: __m128i, high: __m128i) -> __m128i {
    let polynomial = _mm_set1_epi64x(POLYNOMIAL);
    let low = _mm_xor_si128(low, _mm_slli_si128(middle, 8));
    let high = _mm_xor_si128(high, _mm_srli_si128(middle, 8));
    let folded = _mm_clmulepi64_si128(low, polynomial, 0x00);
    let low = _mm_xor_si128(_mm_shuffle_epi32(low, 0x4e), folded);
    let folded = _mm_clmulepi64_si128(low, polynomial, 0x00);
    let low = _mm_xor_si128(_mm_shuffle_epi32(low, 0x4e), folded);
    _mm_xor_si128(high, low)
}

/// x^128 + x^127 + x^126 + x^121 + 1, the reflected polynomial of GHASH: its upper half.
pub(super) const POLYNOMIAL: i64 = 0xc2 << 56;

/// One, doubled as the powers are: what wraps around of the top bit.
const ONE: u128 = 0xc2 << 120 | 1;

#[inline]
fn m128i_from(value: u128) -> __m128i {
    // SAFETY: the same size, and every bit pattern is valid.
    unsafe { core::mem::transmute(value) }
}

#[inline]
fn u128_from(value: __m128i) -> u128 {
    // SAFETY: the same size, and every bit pattern is valid.
    unsafe { core::mem::transmute(value) }
}

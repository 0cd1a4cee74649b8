//! Vectors of one, two or four 16-byte blocks, and what GCM does with them.

use core::arch::asm;
use core::arch::x86_64::*;

use super::key::POLYNOMIAL;

/// A vector of `WIDTH` blocks. Block 0 is the lowest in memory.
///
/// # Safety
/// Every function may be called only where the CPU has the instructions of the type, and must
/// be inlined into a function that enables them.
pub(super) trait Lanes: Copy {
    const WIDTH: usize;

    /// # Safety
    /// See [`Lanes`]; `from` is valid for reads of the whole vector.
    unsafe fn load(from: *const u8) -> Self;
    /// # Safety
    /// See [`Lanes`]; `to` is valid for writes of the whole vector.
    unsafe fn store(self, to: *mut u8);
    /// The same block in every lane.
    ///
    /// # Safety
    /// See [`Lanes`]; `from` is valid for reads of 16 bytes.
    unsafe fn broadcast(from: *const u128) -> Self;
    /// The block in one lane, zeroes in the others.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn at(lane: usize, block: u128) -> Self;
    /// # Safety
    /// See [`Lanes`].
    unsafe fn zero() -> Self;
    /// # Safety
    /// See [`Lanes`].
    unsafe fn xor(self, other: Self) -> Self;
    /// # Safety
    /// See [`Lanes`].
    unsafe fn aes(self, key: Self) -> Self;
    /// # Safety
    /// See [`Lanes`].
    unsafe fn aes_last(self, key: Self) -> Self;
    /// Products of the lower halves of each lane.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn multiply_low(self, other: Self) -> Self;
    /// Products of the upper halves of each lane.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn multiply_high(self, other: Self) -> Self;
    /// The halves of each lane exchanged.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn swap_halves(self) -> Self;
    /// Halves moved up by one in each lane: the lower becomes zero.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn low_to_high(self) -> Self;
    /// Halves moved down by one in each lane: the upper becomes zero.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn high_to_low(self) -> Self;
    /// The bytes of each lane in the opposite order.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn reverse_bytes(self) -> Self;
    /// `POLYNOMIAL` in every half.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn polynomial() -> Self;
    /// The sum of the lanes.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn sum(self) -> u128;
    /// The block of one lane.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn block(self, lane: usize) -> u128;
    /// Adds the words of 32 bits.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn add_words(self, other: Self) -> Self;
    /// The same vector, computed here and not later.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn pin(self) -> Self;
}

/// A sum of products that has not been reduced.
#[derive(Clone, Copy)]
pub(super) struct Products<L> {
    pub(super) low: L,
    /// Products of the sums of halves (Karatsuba).
    pub(super) middle: L,
    pub(super) high: L,
}

impl<L: Lanes> Products<L> {
    /// # Safety
    /// See [`Lanes`].
    #[inline(always)]
    pub(super) unsafe fn zero() -> Self {
        // SAFETY: as for this function.
        let zero = unsafe { L::zero() };
        Self {
            low: zero,
            middle: zero,
            high: zero,
        }
    }

    /// Adds `block * power` in each lane.
    ///
    /// # Safety
    /// See [`Lanes`].
    #[inline(always)]
    pub(super) unsafe fn add(&mut self, block: L, power: L) {
        // SAFETY: as for this function.
        unsafe {
            self.low = self.low.xor(block.multiply_low(power));
            self.high = self.high.xor(block.multiply_high(power));
            let block = block.xor(block.swap_halves());
            let power = power.xor(power.swap_halves());
            self.middle = self.middle.xor(block.multiply_low(power));
        }
    }

    /// Has all that was added computed here.
    ///
    /// # Safety
    /// See [`Lanes`].
    #[inline(always)]
    pub(super) unsafe fn pin(&mut self) {
        // SAFETY: as for this function.
        unsafe {
            self.low = self.low.pin();
            self.middle = self.middle.pin();
            self.high = self.high.pin();
        }
    }

    /// The sum modulo the polynomial of GHASH, divided by x^128.
    ///
    /// # Safety
    /// See [`Lanes`].
    #[inline(always)]
    pub(super) unsafe fn reduce(self) -> L {
        // SAFETY: as for this function.
        unsafe {
            let polynomial = L::polynomial();
            let middle = self.middle.xor(self.low).xor(self.high);
            let low = self.low.xor(middle.low_to_high());
            let high = self.high.xor(middle.high_to_low());
            let low = low.swap_halves().xor(low.multiply_low(polynomial));
            let low = low.swap_halves().xor(low.multiply_low(polynomial));
            high.xor(low)
        }
    }
}

macro_rules! lanes {
    ($(#[$doc:meta])* $name:ident, $vector:ty, $width:literal,
     $load:ident, $store:ident, |$from:ident| $broadcast:expr, |$lane:ident, $block:ident| $at:expr,
     $zero:ident, $xor:ident, $aes:ident, $aes_last:ident, $multiply:ident,
     $shuffle:ident, $left:ident, $right:ident, $bytes:ident, $set:ident,
     |$lanes:ident| $sum:expr, |$all:ident, $number:ident| $lane_of:expr,
     $add:ident, $class:ident, $features:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name(pub(super) $vector);

        impl Lanes for $name {
            const WIDTH: usize = $width;
            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $load(from.cast()) })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut u8) {
                // SAFETY: the caller keeps the contract of `Lanes`.
                unsafe { $store(to.cast(), self.0) }
            }
            #[inline(always)]
            unsafe fn broadcast($from: *const u128) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $broadcast })
            }
            // One block needs no instruction.
            #[allow(unused_unsafe)]
            #[inline(always)]
            unsafe fn at($lane: usize, $block: u128) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $at })
            }
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $zero() })
            }
            #[inline(always)]
            unsafe fn xor(self, other: Self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $xor(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn aes(self, key: Self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $aes(self.0, key.0) })
            }
            #[inline(always)]
            unsafe fn aes_last(self, key: Self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $aes_last(self.0, key.0) })
            }
            #[inline(always)]
            unsafe fn multiply_low(self, other: Self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $multiply(self.0, other.0, 0x00) })
            }
            #[inline(always)]
            unsafe fn multiply_high(self, other: Self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $multiply(self.0, other.0, 0x11) })
            }
            #[inline(always)]
            unsafe fn swap_halves(self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $shuffle(self.0, 0x4e) })
            }
            #[inline(always)]
            unsafe fn low_to_high(self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $left(self.0, 8) })
            }
            #[inline(always)]
            unsafe fn high_to_low(self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $right(self.0, 8) })
            }
            #[inline(always)]
            unsafe fn reverse_bytes(self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`; `REVERSE` is as long as
                // the longest vector.
                Self(unsafe { $bytes(self.0, $load(REVERSE.as_ptr().cast())) })
            }
            #[inline(always)]
            unsafe fn polynomial() -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $set(POLYNOMIAL) })
            }
            // One block needs no instruction.
            #[allow(unused_unsafe)]
            #[inline(always)]
            unsafe fn sum(self) -> u128 {
                let $lanes = self.0;
                // SAFETY: the caller keeps the contract of `Lanes`.
                block(unsafe { $sum })
            }
            // One block needs no instruction.
            #[allow(unused_unsafe)]
            #[inline(always)]
            unsafe fn block(self, $number: usize) -> u128 {
                let $all = self.0;
                // SAFETY: the caller keeps the contract of `Lanes`.
                block(unsafe { $lane_of })
            }
            #[inline(always)]
            unsafe fn add_words(self, other: Self) -> Self {
                // SAFETY: the caller keeps the contract of `Lanes`.
                Self(unsafe { $add(self.0, other.0) })
            }
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn pin(mut self) -> Self {
                // SAFETY: nothing is executed.
                unsafe {
                    asm!("/* {} */", inout($class) self.0,
                        options(nomem, nostack, preserves_flags));
                }
                self
            }
        }
    };
}

/// For each byte of four blocks, the byte it is exchanged with.
static REVERSE: [u8; 64] = {
    let mut indices = [0; 64];
    let mut i = 0;
    while i < 64 {
        indices[i] = 15 - (i % 16) as u8;
        i += 1;
    }
    indices
};

#[inline(always)]
fn block(vector: __m128i) -> u128 {
    // SAFETY: the same size, and every bit pattern is valid.
    unsafe { core::mem::transmute(vector) }
}

#[inline(always)]
fn vector(block: u128) -> __m128i {
    // SAFETY: the same size, and every bit pattern is valid.
    unsafe { core::mem::transmute(block) }
}

lanes! {
    /// One block: AES-NI and PCLMULQDQ.
    X1, __m128i, 1,
    _mm_loadu_si128, _mm_storeu_si128, |from| _mm_loadu_si128(from.cast()),
    |_lane, block| vector(block),
    _mm_setzero_si128, _mm_xor_si128, _mm_aesenc_si128, _mm_aesenclast_si128,
    _mm_clmulepi64_si128, _mm_shuffle_epi32, _mm_slli_si128, _mm_srli_si128,
    _mm_shuffle_epi8, _mm_set1_epi64x, |lanes| lanes,
    |lanes, _lane| lanes, _mm_add_epi32, xmm_reg, "aes,pclmulqdq,ssse3,sse4.1"
}

lanes! {
    /// One block, with three-operand instructions.
    X1Avx, __m128i, 1,
    _mm_loadu_si128, _mm_storeu_si128, |from| _mm_loadu_si128(from.cast()),
    |_lane, block| vector(block),
    _mm_setzero_si128, _mm_xor_si128, _mm_aesenc_si128, _mm_aesenclast_si128,
    _mm_clmulepi64_si128, _mm_shuffle_epi32, _mm_slli_si128, _mm_srli_si128,
    _mm_shuffle_epi8, _mm_set1_epi64x, |lanes| lanes,
    |lanes, _lane| lanes, _mm_add_epi32, xmm_reg, "avx,aes,pclmulqdq,ssse3,sse4.1"
}

lanes! {
    /// Two blocks: AVX2, VAES and VPCLMULQDQ.
    X2, __m256i, 2,
    _mm256_loadu_si256, _mm256_storeu_si256,
    |from| _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast())),
    |lane, block| {
        let one = _mm256_zextsi128_si256(vector(block));
        if lane == 0 { one } else { _mm256_permute2x128_si256(one, one, 0x08) }
    },
    _mm256_setzero_si256, _mm256_xor_si256, _mm256_aesenc_epi128, _mm256_aesenclast_epi128,
    _mm256_clmulepi64_epi128, _mm256_shuffle_epi32, _mm256_slli_si256, _mm256_srli_si256,
    _mm256_shuffle_epi8, _mm256_set1_epi64x,
    |lanes| _mm_xor_si128(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1)),
    |lanes, lane| if lane == 0 {
        _mm256_castsi256_si128(lanes)
    } else {
        _mm256_extracti128_si256(lanes, 1)
    },
    _mm256_add_epi32, ymm_reg, "avx2,vaes,vpclmulqdq"
}

lanes! {
    /// Four blocks: AVX-512, VAES and VPCLMULQDQ.
    X4, __m512i, 4,
    _mm512_loadu_si512, _mm512_storeu_si512,
    |from| _mm512_broadcast_i32x4(_mm_loadu_si128(from.cast())),
    |lane, block| _mm512_maskz_broadcast_i32x4(0xf << (4 * lane), vector(block)),
    _mm512_setzero_si512, _mm512_xor_si512, _mm512_aesenc_epi128, _mm512_aesenclast_epi128,
    _mm512_clmulepi64_epi128, _mm512_shuffle_epi32, _mm512_bslli_epi128, _mm512_bsrli_epi128,
    _mm512_shuffle_epi8, _mm512_set1_epi64,
    |lanes| {
        let half = _mm256_xor_si256(
            _mm512_castsi512_si256(lanes),
            _mm512_extracti64x4_epi64(lanes, 1),
        );
        _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1))
    },
    |lanes, lane| _mm512_castsi512_si128(_mm512_maskz_compress_epi64(0b11 << (2 * lane), lanes)),
    _mm512_add_epi32, zmm_reg, "avx512f,avx512bw,vaes,vpclmulqdq"
}

/// Repeats a block for each `$i < $count`, both constants, so that arrays indexed with `$i`
/// are registers.
macro_rules! unrolled {
    ($i:ident < $count:expr, $body:block) => {
        unrolled!(@ $i < $count, $body, 0 1 2 3 4 5 6 7 8)
    };
    ($i:ident < $count:expr, at most 2, $body:block) => {
        unrolled!(@ $i < $count, $body, 0 1)
    };
    ($i:ident < $count:expr, at most 11, $body:block) => {
        unrolled!(@ $i < $count, $body, 0 1 2 3 4 5 6 7 8 9 10)
    };
    ($i:ident < $count:expr, at most 12, $body:block) => {
        unrolled!(@ $i < $count, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($i:ident < $count:expr, at most 15, $body:block) => {
        unrolled!(@ $i < $count, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $i:ident < $count:expr, $body:block, $($n:literal)+) => {
        $(if $n < $count {
            const $i: usize = $n;
            $body
        })+
    };
}
pub(super) use unrolled;

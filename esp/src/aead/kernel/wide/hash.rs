//! GHASH of four lanes at a time.

use core::arch::x86_64::*;

use super::super::key::POLYNOMIAL;
use super::aes::pin;

/// `a ^ b ^ c`, for `vpternlogq`.
const SUM: i32 = 0x96;

/// A sum of products that has not been reduced, lane by lane.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Products {
    pub(super) low: __m512i,
    /// Products of the sums of halves (Karatsuba).
    pub(super) middle: __m512i,
    pub(super) high: __m512i,
}

/// The powers of the hash key of the four lanes.
#[derive(Clone, Copy)]
pub(super) struct Powers {
    pub(super) lanes: [*const u128; 4],
    /// All lanes have the same.
    pub(super) same: bool,
}

impl Products {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn zero() -> Self {
        let zero = _mm512_setzero_si512();
        Self {
            low: zero,
            middle: zero,
            high: zero,
        }
    }

    /// The products of each lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn of(block: __m512i, power: __m512i) -> Self {
        Self {
            low: _mm512_clmulepi64_epi128(block, power, 0x00),
            middle: _mm512_clmulepi64_epi128(folded(block), folded(power), 0x00),
            high: _mm512_clmulepi64_epi128(block, power, 0x11),
        }
    }

    /// Has all that was added computed here.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn pin(&mut self) {
        pin([&mut self.low, &mut self.middle, &mut self.high]);
    }

    /// Adds `block` times power number `n`.
    ///
    /// # Safety
    /// There are as many powers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) unsafe fn add(&mut self, block: __m512i, powers: &Powers, n: usize) {
        // SAFETY: the caller keeps the contract.
        let power = unsafe { powers.power(n) };
        let products = Self::of(block, power);
        self.low = _mm512_xor_si512(self.low, products.low);
        self.middle = _mm512_xor_si512(self.middle, products.middle);
        self.high = _mm512_xor_si512(self.high, products.high);
    }

    /// Adds `a` times power number `n`, `b` times the next.
    ///
    /// # Safety
    /// There are as many powers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) unsafe fn add_two(&mut self, [a, b]: [__m512i; 2], powers: &Powers, n: usize) {
        let (low_a, high_a, low_b, high_b, middle_a, middle_b);
        // The sums of the halves of both side by side.
        let halves = _mm512_xor_si512(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        if powers.same {
            // A broadcast of 64 bits is part of the load; one of 128 bits is not.
            // SAFETY: the caller keeps the contract.
            let half = |i: usize| unsafe {
                _mm512_set1_epi64(
                    powers.lanes[0]
                        .cast::<i64>()
                        .add(2 * n + i)
                        .read_unaligned(),
                )
            };
            let (a_low, a_high, b_low, b_high) = (half(0), half(1), half(2), half(3));
            low_a = _mm512_clmulepi64_epi128(a, a_low, 0x00);
            high_a = _mm512_clmulepi64_epi128(a, a_high, 0x01);
            low_b = _mm512_clmulepi64_epi128(b, b_low, 0x00);
            high_b = _mm512_clmulepi64_epi128(b, b_high, 0x01);
            let a_halves = _mm512_xor_si512(a_low, a_high);
            let b_halves = _mm512_xor_si512(b_low, b_high);
            middle_a = _mm512_clmulepi64_epi128(halves, a_halves, 0x00);
            middle_b = _mm512_clmulepi64_epi128(halves, b_halves, 0x01);
        } else {
            // SAFETY: the caller keeps the contract.
            let (power_a, power_b) = unsafe { (powers.power(n), powers.power(n + 1)) };
            let power_halves = _mm512_xor_si512(
                _mm512_unpacklo_epi64(power_a, power_b),
                _mm512_unpackhi_epi64(power_a, power_b),
            );
            low_a = _mm512_clmulepi64_epi128(a, power_a, 0x00);
            high_a = _mm512_clmulepi64_epi128(a, power_a, 0x11);
            low_b = _mm512_clmulepi64_epi128(b, power_b, 0x00);
            high_b = _mm512_clmulepi64_epi128(b, power_b, 0x11);
            middle_a = _mm512_clmulepi64_epi128(halves, power_halves, 0x00);
            middle_b = _mm512_clmulepi64_epi128(halves, power_halves, 0x11);
        }
        self.low = _mm512_ternarylogic_epi64(self.low, low_a, low_b, SUM);
        self.middle = _mm512_ternarylogic_epi64(self.middle, middle_a, middle_b, SUM);
        self.high = _mm512_ternarylogic_epi64(self.high, high_a, high_b, SUM);
    }

    /// Adds `block` times a power; `halves` has in each lower half the sum of the power's halves.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn add_spread(&mut self, block: __m512i, power: __m512i, halves: __m512i) {
        let low = _mm512_clmulepi64_epi128(block, power, 0x00);
        let middle = _mm512_clmulepi64_epi128(folded(block), halves, 0x00);
        let high = _mm512_clmulepi64_epi128(block, power, 0x11);
        self.low = _mm512_xor_si512(self.low, low);
        self.middle = _mm512_xor_si512(self.middle, middle);
        self.high = _mm512_xor_si512(self.high, high);
    }

    /// Adds two blocks times their powers; `halves` has in the halves of each lane the sums of
    /// the powers' halves. The first have nothing that they are added to.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn add_two_spread(
        &mut self,
        [a, b]: [__m512i; 2],
        powers: [__m512i; 2],
        power_halves: __m512i,
        first: bool,
    ) {
        let halves = _mm512_xor_si512(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        let low_a = _mm512_clmulepi64_epi128(a, powers[0], 0x00);
        let high_a = _mm512_clmulepi64_epi128(a, powers[0], 0x11);
        let low_b = _mm512_clmulepi64_epi128(b, powers[1], 0x00);
        let high_b = _mm512_clmulepi64_epi128(b, powers[1], 0x11);
        let middle_a = _mm512_clmulepi64_epi128(halves, power_halves, 0x00);
        let middle_b = _mm512_clmulepi64_epi128(halves, power_halves, 0x11);
        if first {
            self.low = _mm512_xor_si512(low_a, low_b);
            self.middle = _mm512_xor_si512(middle_a, middle_b);
            self.high = _mm512_xor_si512(high_a, high_b);
        } else {
            self.low = _mm512_ternarylogic_epi64(self.low, low_a, low_b, SUM);
            self.middle = _mm512_ternarylogic_epi64(self.middle, middle_a, middle_b, SUM);
            self.high = _mm512_ternarylogic_epi64(self.high, high_a, high_b, SUM);
        }
    }

    /// The lower and the upper 128 bits of each lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn halves(self) -> (__m512i, __m512i) {
        let middle = _mm512_ternarylogic_epi64(self.middle, self.low, self.high, SUM);
        (
            _mm512_xor_si512(self.low, _mm512_bslli_epi128(middle, 8)),
            _mm512_xor_si512(self.high, _mm512_bsrli_epi128(middle, 8)),
        )
    }

    /// Each lane modulo the polynomial of GHASH, divided by x^128.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn reduce(self) -> __m512i {
        let polynomial = polynomial();
        let (low, high) = self.halves();
        let product = _mm512_clmulepi64_epi128(low, polynomial, 0x00);
        let low = _mm512_xor_si512(_mm512_shuffle_epi32(low, 0x4e), product);
        let product = _mm512_clmulepi64_epi128(low, polynomial, 0x00);
        _mm512_ternarylogic_epi64(_mm512_shuffle_epi32(low, 0x4e), product, high, SUM)
    }
}

impl Powers {
    /// # Safety
    /// There are as many powers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn power(&self, n: usize) -> __m512i {
        // SAFETY: the caller keeps the contract.
        let lane = |i: usize| unsafe { _mm_loadu_si128(self.lanes[i].add(n).cast()) };
        if self.same {
            _mm512_broadcast_i32x4(lane(0))
        } else {
            join([lane(0), lane(1), lane(2), lane(3)])
        }
    }
}

/// [`POLYNOMIAL`] in every half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) fn polynomial() -> __m512i {
    _mm512_set1_epi64(POLYNOMIAL)
}

/// The sum of the halves of each lane, in both halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn folded(vector: __m512i) -> __m512i {
    _mm512_xor_si512(vector, _mm512_shuffle_epi32(vector, 0x4e))
}

/// Four lanes as one vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) fn join(lanes: [__m128i; 4]) -> __m512i {
    let low = _mm256_inserti128_si256(_mm256_castsi128_si256(lanes[0]), lanes[1], 1);
    let high = _mm256_inserti128_si256(_mm256_castsi128_si256(lanes[2]), lanes[3], 1);
    _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)
}

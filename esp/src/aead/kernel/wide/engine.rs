//! AES over up to nine registers, with the hash of earlier blocks between its rounds.
//!
//! The AES and the carry-less multiplications of the CPUs that have both at 512 bits go
//! through the same pipes, and each chain of AES rounds waits for itself: only a mix of both
//! keeps the pipes full. Compilers do not keep such an order, and would broadcast the round
//! keys early and spill them, so the rounds are one block of assembly.

use core::arch::asm;
use core::arch::x86_64::*;

use super::super::key::{GcmKey, POLYNOMIAL};

/// AES states of a chunk at most.
pub(super) const STATES: usize = 9;
/// Vectors whose hash can be pending: one goes with each of the first ten steps of AES.
pub(super) const BLOCKS: usize = 10;

/// Hash input that has been produced and not yet multiplied.
#[repr(C, align(64))]
pub(super) struct Pending {
    /// The last vector first: number n goes with power n of `powers`.
    pub(super) blocks: [__m512i; BLOCKS],
    /// Blocks at the start that have another use.
    pub(super) skip: usize,
    /// Blocks after these.
    pub(super) count: usize,
    /// The powers of each lane.
    pub(super) powers: [*const u128; 4],
    /// All lanes have the same.
    pub(super) same: bool,
}

/// A sum of products that has not been reduced, of one register or lane by lane.
#[derive(Clone, Copy)]
pub(super) struct Products {
    pub(super) low: __m512i,
    pub(super) middle: __m512i,
    pub(super) high: __m512i,
}

/// The keys of the four lanes.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    pub(super) lanes: [*const GcmKey; 4],
    pub(super) same: bool,
    /// 16 times the number of rounds.
    pub(super) last: usize,
}

/// Repeats a block for each `$i < $count`, both constants, so that arrays indexed with `$i`
/// are registers.
macro_rules! unrolled {
    ($i:ident < $count:expr, $body:block) => {
        unrolled!(@ $i < $count, $body, 0 1 2 3 4 5 6 7 8)
    };
    (@ $i:ident < $count:expr, $body:block, $($n:literal)+) => {
        $(if $n < $count {
            const $i: usize = $n;
            $body
        })+
    };
}
pub(super) use unrolled;

/// AES round keys number `$round` of the lanes, in zmm10.
macro_rules! round_key {
    (same, $round:literal) => {
        concat!("vbroadcasti32x4 zmm10, [{k0} + 16*", $round, "]")
    };
    (different, $round:literal) => {
        concat!(
            "vmovdqu xmm10, [{k0} + 16*",
            $round,
            "]\n",
            "vmovdqu xmm11, [{k2} + 16*",
            $round,
            "]\n",
            "vinserti128 ymm10, ymm10, [{k1} + 16*",
            $round,
            "], 1\n",
            "vinserti128 ymm11, ymm11, [{k3} + 16*",
            $round,
            "], 1\n",
            "vinserti64x4 zmm10, zmm10, ymm11, 1"
        )
    };
}

/// The keys of the last round, in zmm10.
macro_rules! last_key {
    (same) => {
        "vbroadcasti32x4 zmm10, [{k0} + {last}]"
    };
    (different) => {
        concat!(
            "vmovdqu xmm10, [{k0} + {last}]\n",
            "vmovdqu xmm11, [{k2} + {last}]\n",
            "vinserti128 ymm10, ymm10, [{k1} + {last}], 1\n",
            "vinserti128 ymm11, ymm11, [{k3} + {last}], 1\n",
            "vinserti64x4 zmm10, zmm10, ymm11, 1"
        )
    };
}

/// Powers number `$n` of the lanes in zmm16, the sums of their halves in zmm17.
macro_rules! power {
    (same, $n:literal) => {
        concat!(
            "vbroadcasti32x4 zmm16, [{p0} + 16*",
            $n,
            "]\n",
            "vpbroadcastq zmm17, [{p0} + 16*",
            $n,
            "]\n",
            "vpxorq zmm17, zmm17, [{p0} + 16*",
            $n,
            " + 8]{{1to8}}"
        )
    };
    (different, $n:literal) => {
        concat!(
            "vmovdqu64 xmm16, [{p0} + 16*",
            $n,
            "]\n",
            "vmovdqu64 xmm17, [{p2} + 16*",
            $n,
            "]\n",
            "vinserti32x4 ymm16, ymm16, [{p1} + 16*",
            $n,
            "], 1\n",
            "vinserti32x4 ymm17, ymm17, [{p3} + 16*",
            $n,
            "], 1\n",
            "vinserti64x4 zmm16, zmm16, ymm17, 1\n",
            "vpshufd zmm17, zmm16, 0x4e\n",
            "vpxorq zmm17, zmm17, zmm16"
        )
    };
}

/// Multiplies pending vector `$n` and adds the products (Karatsuba).
macro_rules! hash {
    ($same:tt, $n:literal) => {
        concat!(
            "vmovdqa64 zmm15, [{blocks} + 64*",
            $n,
            "]\n",
            power!($same, $n),
            "\n",
            "vpclmulqdq zmm18, zmm15, zmm16, 0x00\n",
            "vpshufd zmm20, zmm15, 0x4e\n",
            "vpclmulqdq zmm19, zmm15, zmm16, 0x11\n",
            "vpxorq zmm20, zmm20, zmm15\n",
            "vpxorq zmm12, zmm12, zmm18\n",
            "vpclmulqdq zmm20, zmm20, zmm17, 0x00\n",
            "vpxorq zmm14, zmm14, zmm19\n",
            "vpxorq zmm13, zmm13, zmm20"
        )
    };
}

/// One instruction for each register of `$list`.
macro_rules! each {
    ($list:literal, $instruction:literal) => {
        concat!(
            ".irp s,",
            $list,
            "\n",
            $instruction,
            " zmm\\s, zmm\\s, zmm10\n.endr\n"
        )
    };
}

/// The whole block for the states in the registers of `$list`.
macro_rules! rounds {
    ($same:tt, $list:literal) => {
        concat!(
            round_key!($same, "0"),
            "\n",
            "vpxorq xmm12, xmm12, xmm12\n",
            "vpxorq xmm13, xmm13, xmm13\n",
            "vpxorq xmm14, xmm14, xmm14\n",
            each!($list, "vpxorq"),
            "test {count}, {count}\n",
            "jz 20f\n",
            hash!($same, "0"),
            "\n",
            "cmp {count}, 1\n",
            "je 20f\n",
            ".irp r,1,2,3,4,5,6,7,8,9\n",
            round_key!($same, "\\r"),
            "\n",
            each!($list, "vaesenc"),
            hash!($same, "\\r"),
            "\n",
            "cmp {count}, \\r + 1\n",
            "je 2\\r\\()f\n",
            ".endr\n",
            // The same rounds without hash, entered where it ended.
            "20:\n",
            ".irp r,1,2,3,4,5,6,7,8,9\n",
            round_key!($same, "\\r"),
            "\n",
            each!($list, "vaesenc"),
            "2\\r:\n",
            ".endr\n",
            "cmp {last}, 160\n",
            "je 30f\n",
            ".irp r,10,11\n",
            round_key!($same, "\\r"),
            "\n",
            each!($list, "vaesenc"),
            ".endr\n",
            "cmp {last}, 192\n",
            "je 30f\n",
            ".irp r,12,13\n",
            round_key!($same, "\\r"),
            "\n",
            each!($list, "vaesenc"),
            ".endr\n",
            "30:\n",
            last_key!($same),
            "\n",
            each!($list, "vaesenclast")
        )
    };
}

macro_rules! block {
    (same, $list:literal, $states:ident, $keys:ident, $pending:ident,
     $products:ident, $(($register:tt, $index:literal)),+) => {
        asm!(
            rounds!(same, $list),
            k0 = in(reg) $keys.lanes[0],
            last = in(reg) $keys.last,
            p0 = in(reg) $pending.powers[0],
            blocks = in(reg) $pending.blocks.as_ptr().add($pending.skip),
            count = in(reg) $pending.count,
            $(inout($register) $states[$index],)+
            out("zmm10") _,
            out("zmm12") $products.low, out("zmm13") $products.middle, out("zmm14") $products.high,
            out("zmm15") _, out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _,
            options(nostack, readonly)
        )
    };
    (different, $list:literal, $states:ident, $keys:ident, $pending:ident,
     $products:ident, $(($register:tt, $index:literal)),+) => {
        asm!(
            rounds!(different, $list),
            k0 = in(reg) $keys.lanes[0],
            k1 = in(reg) $keys.lanes[1],
            k2 = in(reg) $keys.lanes[2],
            k3 = in(reg) $keys.lanes[3],
            last = in(reg) $keys.last,
            p0 = in(reg) $pending.powers[0],
            p1 = in(reg) $pending.powers[1],
            p2 = in(reg) $pending.powers[2],
            p3 = in(reg) $pending.powers[3],
            blocks = in(reg) $pending.blocks.as_ptr().add($pending.skip),
            count = in(reg) $pending.count,
            $(inout($register) $states[$index],)+
            out("zmm10") _, out("zmm11") _,
            out("zmm12") $products.low, out("zmm13") $products.middle, out("zmm14") $products.high,
            out("zmm15") _, out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _,
            options(nostack, readonly)
        )
    };
}

macro_rules! blocks {
    ($same:tt, $count:ident, $states:ident, $keys:ident, $pending:ident, $products:ident) => {
        match $count {
            1 => block!($same, "0", $states, $keys, $pending, $products, ("zmm0", 0)),
            2 => block!(
                $same,
                "0,1",
                $states,
                $keys,
                $pending,
                $products,
                ("zmm0", 0),
                ("zmm1", 1)
            ),
            3 => block!(
                $same,
                "0,1,2",
                $states,
                $keys,
                $pending,
                $products,
                ("zmm0", 0),
                ("zmm1", 1),
                ("zmm2", 2)
            ),
            4 => block!(
                $same,
                "0,1,2,3",
                $states,
                $keys,
                $pending,
                $products,
                ("zmm0", 0),
                ("zmm1", 1),
                ("zmm2", 2),
                ("zmm3", 3)
            ),
            5 => block!(
                $same,
                "0,1,2,3,4",
                $states,
                $keys,
                $pending,
                $products,
                ("zmm0", 0),
                ("zmm1", 1),
                ("zmm2", 2),
                ("zmm3", 3),
                ("zmm4", 4)
            ),
            6 => block!(
                $same,
                "0,1,2,3,4,5",
                $states,
                $keys,
                $pending,
                $products,
                ("zmm0", 0),
                ("zmm1", 1),
                ("zmm2", 2),
                ("zmm3", 3),
                ("zmm4", 4),
                ("zmm5", 5)
            ),
            7 => block!(
                $same,
                "0,1,2,3,4,5,6",
                $states,
                $keys,
                $pending,
                $products,
                ("zmm0", 0),
                ("zmm1", 1),
                ("zmm2", 2),
                ("zmm3", 3),
                ("zmm4", 4),
                ("zmm5", 5),
                ("zmm6", 6)
            ),
            8 => block!(
                $same,
                "0,1,2,3,4,5,6,7",
                $states,
                $keys,
                $pending,
                $products,
                ("zmm0", 0),
                ("zmm1", 1),
                ("zmm2", 2),
                ("zmm3", 3),
                ("zmm4", 4),
                ("zmm5", 5),
                ("zmm6", 6),
                ("zmm7", 7)
            ),
            _ => block!(
                $same,
                "0,1,2,3,4,5,6,7,8",
                $states,
                $keys,
                $pending,
                $products,
                ("zmm0", 0),
                ("zmm1", 1),
                ("zmm2", 2),
                ("zmm3", 3),
                ("zmm4", 4),
                ("zmm5", 5),
                ("zmm6", 6),
                ("zmm7", 7),
                ("zmm8", 8)
            ),
        }
    };
}

/// Encrypts the first `COUNT` states and multiplies what is pending.
///
/// # Safety
/// The CPU has AVX-512, VAES and VPCLMULQDQ. The keys have the number of rounds that
/// `keys.last` says; each pointer of `pending.powers` has as many powers as are pending.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn run<const COUNT: usize>(
    states: &mut [__m512i; STATES],
    keys: &Keys,
    pending: &Pending,
) -> Products {
    let mut products;
    // SAFETY: the assembly reads the round keys, `count` powers and blocks, all of which the
    // caller vouches for, and writes only registers that are named.
    unsafe {
        products = Products {
            low: _mm512_setzero_si512(),
            middle: _mm512_setzero_si512(),
            high: _mm512_setzero_si512(),
        };
        if keys.same && pending.same {
            blocks!(same, COUNT, states, keys, pending, products);
        } else {
            blocks!(different, COUNT, states, keys, pending, products);
        }
    }
    products
}

/// Multiplies what is pending.
///
/// # Safety
/// As for [`run`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn multiply(pending: &Pending) -> Products {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let zero = _mm512_setzero_si512();
        let mut sum = Products {
            low: zero,
            middle: zero,
            high: zero,
        };
        for (n, block) in pending.blocks[pending.skip..][..pending.count]
            .iter()
            .enumerate()
        {
            let power = |lane: usize| _mm_loadu_si128(pending.powers[lane].add(n).cast());
            let products = Products::of(*block, join([power(0), power(1), power(2), power(3)]));
            sum.low = _mm512_xor_si512(sum.low, products.low);
            sum.middle = _mm512_xor_si512(sum.middle, products.middle);
            sum.high = _mm512_xor_si512(sum.high, products.high);
        }
        sum
    }
}

/// Four lanes as one vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) fn join(lanes: [__m128i; 4]) -> __m512i {
    let low = _mm256_inserti128_si256(_mm256_castsi128_si256(lanes[0]), lanes[1], 1);
    let high = _mm256_inserti128_si256(_mm256_castsi128_si256(lanes[2]), lanes[3], 1);
    _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)
}

impl Products {
    /// Adds the products of each lane of `block` and `power`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn of(block: __m512i, power: __m512i) -> Self {
        let low = _mm512_clmulepi64_epi128(block, power, 0x00);
        let high = _mm512_clmulepi64_epi128(block, power, 0x11);
        let block = _mm512_xor_si512(block, _mm512_shuffle_epi32(block, 0x4e));
        let power = _mm512_xor_si512(power, _mm512_shuffle_epi32(power, 0x4e));
        let middle = _mm512_clmulepi64_epi128(block, power, 0x00);
        Self { low, middle, high }
    }

    /// Each lane modulo the polynomial of GHASH, divided by x^128.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn reduce(self) -> __m512i {
        const SUM: i32 = 0x96;
        let polynomial = _mm512_set1_epi64(POLYNOMIAL);
        let middle = _mm512_ternarylogic_epi64(self.middle, self.low, self.high, SUM);
        let low = _mm512_xor_si512(self.low, _mm512_bslli_epi128(middle, 8));
        let high = _mm512_xor_si512(self.high, _mm512_bsrli_epi128(middle, 8));
        let folded = _mm512_clmulepi64_epi128(low, polynomial, 0x00);
        let low = _mm512_xor_si512(_mm512_shuffle_epi32(low, 0x4e), folded);
        let folded = _mm512_clmulepi64_epi128(low, polynomial, 0x00);
        _mm512_ternarylogic_epi64(_mm512_shuffle_epi32(low, 0x4e), folded, high, SUM)
    }
}

//! AES rounds over up to nine registers.
//!
//! Each round is a block of assembly, so that other work can be put between two rounds and
//! stays there: the AES and the carry-less multiplications of the CPUs that have both at 512
//! bits go through the same pipes, and a chain of AES rounds waits for itself. Compilers
//! would broadcast the round keys early, spill them, and pull the work apart from the rounds.

use core::arch::asm;
use core::arch::x86_64::*;

use super::super::key::GcmKey;
use super::hash::Powers;

/// AES states of a chunk at most.
pub(super) const STATES: usize = 9;

/// The keys of the four lanes.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    lanes: [*const GcmKey; 4],
    /// All lanes have the same key.
    pub(super) same: bool,
    /// Rounds beyond those of AES-128.
    pub(super) extra: usize,
}

impl Keys {
    /// No keys.
    pub(super) const NONE: Self = Self {
        lanes: [core::ptr::null(); 4],
        same: true,
        extra: 0,
    };

    /// Keys with that number of rounds.
    #[inline(always)]
    pub(super) fn new(lanes: [*const GcmKey; 4], rounds: usize) -> Self {
        let same = lanes[0] == lanes[1] && lanes[0] == lanes[2] && lanes[0] == lanes[3];
        Self {
            lanes,
            same,
            extra: rounds - 10,
        }
    }

    /// The powers of the hash keys.
    ///
    /// # Safety
    /// The keys are valid.
    #[inline(always)]
    pub(super) unsafe fn powers(&self) -> Powers {
        Powers {
            // SAFETY: the caller keeps the contract.
            lanes: self
                .lanes
                .map(|key| unsafe { (&raw const (*key).powers).cast() }),
            same: self.same,
        }
    }

    /// Round keys number `skip` and on.
    #[inline(always)]
    pub(super) fn from(&self, skip: usize) -> [*const u128; 4] {
        // The round keys are the first field of a key.
        self.lanes.map(|key| key.cast::<u128>().wrapping_add(skip))
    }
}

/// Has `values` computed here and not later, between other rounds.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) fn pin<const N: usize>(values: [&mut __m512i; N]) {
    for value in values {
        // SAFETY: nothing is executed.
        unsafe {
            asm!(
                "/* {} */",
                inout(zmm_reg) * value,
                options(nomem, nostack, preserves_flags)
            );
        }
    }
}

/// One instruction of AES for each state of a list, with the round keys at `OFFSET`.
///
/// The registers of the keys are named: for an operand whose result is not used, LLVM prints
/// another register than the one that it has chosen.
macro_rules! each {
    ($instruction:literal, $states:ident, $keys:ident, $(($s:ident $n:literal))+) => {
        if SAME {
            asm!(
                "vbroadcasti32x4 zmm30, [{k0} + {offset}]",
                $(concat!(
                    $instruction, " {", stringify!($s), "}, {", stringify!($s), "}, zmm30"
                ),)+
                k0 = in(reg) $keys[0],
                offset = const OFFSET,
                out("zmm30") _,
                $($s = inout(zmm_reg) $states[$n],)+
                options(nostack, preserves_flags, readonly)
            );
        } else {
            asm!(
                "vmovdqu64 xmm30, [{k0} + {offset}]",
                "vmovdqu64 xmm31, [{k2} + {offset}]",
                "vinserti32x4 ymm30, ymm30, [{k1} + {offset}], 1",
                "vinserti32x4 ymm31, ymm31, [{k3} + {offset}], 1",
                "vinserti64x4 zmm30, zmm30, ymm31, 1",
                $(concat!(
                    $instruction, " {", stringify!($s), "}, {", stringify!($s), "}, zmm30"
                ),)+
                k0 = in(reg) $keys[0],
                k1 = in(reg) $keys[1],
                k2 = in(reg) $keys[2],
                k3 = in(reg) $keys[3],
                offset = const OFFSET,
                out("zmm30") _,
                out("zmm31") _,
                $($s = inout(zmm_reg) $states[$n],)+
                options(nostack, preserves_flags, readonly)
            );
        }
    };
}

/// A function that applies one instruction of AES to the first `COUNT` states, with the round
/// keys at `OFFSET` from the pointers of `keys`; if `SAME`, the first is that of all lanes.
macro_rules! step {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The CPU has what the kernel needs; the round keys exist.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
        pub(super) unsafe fn $name<const SAME: bool, const COUNT: usize, const OFFSET: usize>(
            states: &mut [__m512i; STATES],
            keys: &[*const u128; 4],
        ) {
            // SAFETY: the assembly reads the round keys and changes only the registers that
            // are named.
            unsafe {
                match COUNT {
                    1 => each!($instruction, states, keys, (s0 0)),
                    2 => each!($instruction, states, keys, (s0 0) (s1 1)),
                    3 => each!($instruction, states, keys, (s0 0) (s1 1) (s2 2)),
                    4 => each!($instruction, states, keys, (s0 0) (s1 1) (s2 2) (s3 3)),
                    5 => each!($instruction, states, keys, (s0 0) (s1 1) (s2 2) (s3 3) (s4 4)),
                    6 => each!(
                        $instruction, states, keys,
                        (s0 0) (s1 1) (s2 2) (s3 3) (s4 4) (s5 5)
                    ),
                    7 => each!(
                        $instruction, states, keys,
                        (s0 0) (s1 1) (s2 2) (s3 3) (s4 4) (s5 5) (s6 6)
                    ),
                    8 => each!(
                        $instruction, states, keys,
                        (s0 0) (s1 1) (s2 2) (s3 3) (s4 4) (s5 5) (s6 6) (s7 7)
                    ),
                    _ => each!(
                        $instruction, states, keys,
                        (s0 0) (s1 1) (s2 2) (s3 3) (s4 4) (s5 5) (s6 6) (s7 7) (s8 8)
                    ),
                }
            }
        }
    };
}

step! {
    /// Adds round keys.
    whiten, "vpxorq"
}
step! {
    /// A round.
    round, "vaesenc"
}
step! {
    /// The last round.
    last_round, "vaesenclast"
}

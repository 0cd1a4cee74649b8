//! Keys of four packets side by side, as the registers need them.

use core::arch::asm;
use core::arch::x86_64::*;
use core::mem::MaybeUninit;
use core::ptr::null;

use super::super::key::{GcmKey, POWERS, ROUND_KEYS};
use super::super::lanes::unrolled;
use super::super::wipe::{Plain, wipe};
use super::hash::join;
use super::lanes;

/// Round keys, salts and powers of the hash keys, one key to a lane.
///
/// A load that spreads 128 bits over a register, and the joining of four loads, take places in
/// the pipes of AES; a load of what has been put together before takes none.
#[repr(C, align(64))]
pub(super) struct Spread {
    round_keys: [__m512i; ROUND_KEYS],
    /// What is added to IVs before the first round of AES: salts and first round keys.
    pub(super) whitening: __m512i,
    /// H^1, H^2, ...
    pub(super) powers: [__m512i; POWERS],
    /// The sums of the halves of two powers side by side (Karatsuba).
    pub(super) halves: [__m512i; POWERS / 2],
}

impl Plain for MaybeUninit<Spread> {}

/// The keys of the packets that are encrypted, and of those that are hashed meanwhile.
pub(super) struct Spreads {
    spreads: [MaybeUninit<Spread>; 2],
    /// Which of the two have been used.
    used: [bool; 2],
    latest: usize,
    /// The key in all lanes of the latest, or null.
    key: *const GcmKey,
    /// Powers that the latest has.
    powers: usize,
}

impl Spreads {
    /// No keys yet.
    #[inline(always)]
    pub(super) const fn new() -> Self {
        Self {
            spreads: [const { MaybeUninit::uninit() }; 2],
            used: [false; 2],
            latest: 0,
            key: null(),
            powers: 0,
        }
    }

    /// Puts four keys together, with the first `NEEDED` powers. The ones before them stay where they
    /// are, those before these do not.
    ///
    /// # Safety
    /// The keys are valid; the CPU has what the kernel needs.
    #[inline(always)]
    pub(super) unsafe fn put<const NEEDED: usize>(&mut self, keys: [&GcmKey; 4]) {
        let keys = keys.map(core::ptr::from_ref);
        let [a, b, c, d] = keys;
        let same = a == b && a == c && a == d;
        if same && self.key == a && self.powers >= NEEDED {
            return;
        }
        self.latest ^= 1;
        self.used[self.latest & 1] = true;
        self.key = if same { a } else { null() };
        self.powers = NEEDED;
        let spread = self.spreads[self.latest & 1].as_mut_ptr();
        // SAFETY: the caller keeps the contract; the place is valid for writes.
        unsafe {
            if same {
                Spread::one(spread, a, NEEDED);
            } else {
                Spread::four::<NEEDED>(spread, keys);
            }
        }
    }

    /// Whether all lanes of the latest have the same key.
    #[inline(always)]
    pub(super) fn is_one(&self) -> bool {
        !self.key.is_null()
    }

    /// The keys that have been put together last.
    #[inline(always)]
    pub(super) fn latest(&self) -> *const Spread {
        self.spreads[self.latest & 1].as_ptr()
    }

    /// Keys do not stay on the stack.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn wipe(&mut self) {
        for (spread, used) in self.spreads.iter_mut().zip(self.used) {
            if used {
                wipe(spread);
            }
        }
    }
}

impl Spread {
    /// # Safety
    /// As for [`Spreads::of`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn one(spread: *mut Self, key: *const GcmKey, needed: usize) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let spread = &mut *spread;
            let key = &*key;
            for (lanes, key) in spread.round_keys.iter_mut().zip(&key.round_keys) {
                *lanes = super::lanes(*key as i128);
            }
            spread.whitening = lanes(key.round_keys[0] as i128 ^ i128::from(key.salt));
            for (lanes, power) in spread
                .powers
                .iter_mut()
                .zip(&key.powers[..(needed + 1) & !1])
            {
                *lanes = super::lanes(*power as i128);
            }
            for n in 0..needed.div_ceil(2) {
                spread.add_halves(n);
            }
        }
    }

    /// # Safety
    /// As for [`Spreads::of`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn four<const NEEDED: usize>(spread: *mut Self, keys: [*const GcmKey; 4]) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let spread = &mut *spread;
            let [a, b, c, d] = keys.map(|key| &*key);
            let load = |block: &u128| _mm_load_si128(core::ptr::from_ref(block).cast());
            unrolled!(I < ROUND_KEYS, at most 15, {
                spread.round_keys[I] =
                    join([a, b, c, d].map(|key| load(&key.round_keys[I])));
            });
            let salts = _mm_set_epi32(d.salt as i32, c.salt as i32, b.salt as i32, a.salt as i32);
            let salts = _mm512_maskz_expand_epi32(0x1111, _mm512_castsi128_si512(salts));
            spread.whitening = _mm512_xor_si512(salts, spread.round_keys[0]);
            unrolled!(I < POWERS, at most 12, {
                if I < (NEEDED + 1) & !1 {
                    spread.powers[I] = join([a, b, c, d].map(|key| load(&key.powers[I])));
                }
            });
            unrolled!(I < POWERS / 2, {
                if 2 * I < NEEDED {
                    spread.add_halves(I);
                }
            });
        }
    }

    /// Adds the halves of powers `2 * n` and `2 * n + 1`.
    #[inline(always)]
    unsafe fn add_halves(&mut self, n: usize) {
        let [a, b] = [self.powers[2 * n], self.powers[2 * n + 1]];
        // SAFETY: the caller's CPU has what the kernel needs.
        self.halves[n] =
            unsafe { _mm512_xor_si512(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)) };
    }

    /// Where the round keys are.
    #[inline(always)]
    pub(super) fn round_keys(this: *const Self) -> *const __m512i {
        // The first field.
        this.cast()
    }
}

/// States of AES at most.
pub(super) const STATES: usize = 11;

/// One instruction of AES for each state of a list, with round key number `ROUND`.
macro_rules! each {
    ($instruction:literal, $states:ident, $keys:ident, $($s:ident $n:literal)+) => {
        asm!(
            "vmovdqa64 zmm31, [{keys} + {offset}]",
            $(concat!(
                $instruction, " {", stringify!($s), "}, {", stringify!($s), "}, zmm31"
            ),)+
            keys = in(reg) $keys,
            offset = const 64 * ROUND,
            out("zmm31") _,
            $($s = inout(zmm_reg) $states[$n],)+
            options(nostack, preserves_flags, readonly)
        )
    };
}

/// A function that applies one instruction of AES to the first `COUNT` states, with round key
/// number `ROUND` from where `keys` points to.
macro_rules! step {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The CPU has what the kernel needs; the round keys exist.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
        pub(super) unsafe fn $name<const COUNT: usize, const ROUND: usize>(
            states: &mut [__m512i; STATES],
            keys: *const __m512i,
        ) {
            // SAFETY: the assembly reads the round keys and changes only the registers that
            // are named.
            unsafe {
                match COUNT {
                    4 => each!($instruction, states, keys, a 0 b 1 c 2 d 3),
                    5 => each!($instruction, states, keys, a 0 b 1 c 2 d 3 e 4),
                    6 => each!($instruction, states, keys, a 0 b 1 c 2 d 3 e 4 f 5),
                    7 => each!($instruction, states, keys, a 0 b 1 c 2 d 3 e 4 f 5 g 6),
                    8 => each!($instruction, states, keys, a 0 b 1 c 2 d 3 e 4 f 5 g 6 h 7),
                    9 => each!($instruction, states, keys, a 0 b 1 c 2 d 3 e 4 f 5 g 6 h 7 i 8),
                    10 => each!(
                        $instruction, states, keys, a 0 b 1 c 2 d 3 e 4 f 5 g 6 h 7 i 8 j 9
                    ),
                    _ => each!(
                        $instruction, states, keys, a 0 b 1 c 2 d 3 e 4 f 5 g 6 h 7 i 8 j 9 k 10
                    ),
                }
            }
        }
    };
}

step! {
    /// A round.
    round, "vaesenc"
}
step! {
    /// The last round.
    last_round, "vaesenclast"
}

//! The stages that chunks go through.

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::super::lanes::unrolled;
use super::aes::{Keys, STATES, last_round, round, whiten};
use super::columns;
use super::hash::{Powers, Products};
use super::unit::Unit;

/// Vectors of hash input of a chunk at most: its text, authenticated data and lengths.
pub(super) const BLOCKS: usize = STATES + 1;

/// Chunks in the stages behind AES.
#[repr(C, align(64))]
pub(super) struct Line {
    /// Of the chunk in the stage of text.
    pub(super) keystream: [__m512i; STATES],
    /// Hash input of the chunk in the stage of hash, the last vector first.
    pub(super) blocks: [__m512i; BLOCKS],
    /// The hash of the last chunk that has left the line.
    pub(super) sum: __m512i,
    pub(super) text: Text,
    hash: Hash,
}

/// What the counter blocks of a chunk after the first add to it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Steps<const N: usize = { STATES - 1 }>(pub(super) [__m512i; N]);

impl<const N: usize> Steps<N> {
    /// `by` more in each, in the last four bytes of each lane.
    pub(super) const fn of(by: u32) -> Self {
        let mut words = [[0u32; 16]; N];
        let mut n = 0;
        while n < 4 * words.len() {
            words[n / 4][n % 4 * 4 + 3] = by * (n as u32 / 4 + 1);
            n += 1;
        }
        // SAFETY: the same size, and every bit pattern is valid.
        Self(unsafe { core::mem::transmute_copy::<[[u32; 16]; N], [__m512i; N]>(&words) })
    }
}

/// A chunk that waits for its keystream to be used.
#[derive(Clone, Copy)]
pub(super) struct Text {
    pub(super) kind: Kind,
    pub(super) unit: *mut Unit,
    /// The number of its first column or vector.
    pub(super) start: usize,
    /// Columns or vectors of text.
    pub(super) count: usize,
    /// Vectors of keystream before those for the text.
    pub(super) skip: usize,
    /// Holds the last block of its packets.
    pub(super) last: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    Columns,
}

/// A chunk of columns that waits to be hashed.
struct Hash {
    kind: Kind,
    unit: *mut Unit,
    /// Vectors of hash input.
    count: usize,
    /// Tags can be made of the sum.
    last: bool,
    powers: Powers,
}

impl Line {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn new() -> Self {
        let zero = _mm512_setzero_si512();
        Self {
            keystream: [zero; STATES],
            blocks: [zero; BLOCKS],
            sum: zero,
            text: Text {
                kind: Kind::Nothing,
                unit: core::ptr::null_mut(),
                start: 0,
                count: 0,
                skip: 0,
                last: false,
            },
            hash: Hash {
                kind: Kind::Nothing,
                unit: core::ptr::null_mut(),
                count: 0,
                last: false,
                powers: Powers {
                    lanes: [core::ptr::null(); 4],
                    same: true,
                },
            },
        }
    }

    /// Keystream of column `n` of the chunk in the stage of text.
    ///
    /// # Safety
    /// The chunk has that column.
    #[inline(always)]
    pub(super) unsafe fn keystream_at(&self, n: usize) -> __m512i {
        // SAFETY: the caller keeps the contract: there is keystream for every column.
        unsafe { self.keystream.as_ptr().add(self.text.skip + n).read() }
    }

    /// Keystream does not stay on the stack.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn wipe(&mut self) {
        self.keystream.zeroize();
    }

    /// Encrypts `COUNT` vectors of counter blocks, which are `base` and the sums of `base`
    /// and of the first of `steps`, with the keys of `unit`, and moves the other chunks on.
    ///
    /// # Safety
    /// The CPU has what the kernel needs; the units on the line and their packets are valid.
    #[inline(always)]
    pub(super) unsafe fn encrypt<const SEAL: bool, const COUNT: usize>(
        &mut self,
        unit: &Unit,
        base: __m512i,
        steps: &Steps,
    ) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if unit.keys.same {
                self.encrypt_with::<SEAL, true, COUNT>(&unit.keys, base, steps);
            } else {
                self.encrypt_with::<SEAL, false, COUNT>(&unit.keys, base, steps);
            }
        }
    }

    /// # Safety
    /// As for [`Line::encrypt`]; `SAME` is that of the keys.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn encrypt_with<const SEAL: bool, const SAME: bool, const COUNT: usize>(
        &mut self,
        keys: &Keys,
        base: __m512i,
        steps: &Steps,
    ) {
        let states = &mut [base; STATES];
        unrolled!(I < COUNT, {
            if I > 0 {
                states[I] = _mm512_add_epi32(base, steps.0[I - 1]);
            }
        });
        let mut products = Products::zero();
        // SAFETY: the caller keeps the contract.
        unsafe {
            let start = keys.from(0);
            whiten::<SAME, COUNT, 0>(states, &start);
            if keys.extra > 0 {
                round::<SAME, COUNT, 16>(states, &start);
                round::<SAME, COUNT, 32>(states, &start);
                if keys.extra > 2 {
                    round::<SAME, COUNT, 48>(states, &start);
                    round::<SAME, COUNT, 64>(states, &start);
                }
            }
            let keys = keys.from(keys.extra);
            round::<SAME, COUNT, 16>(states, &keys);
            self.work::<SEAL, 0>(&mut products);
            round::<SAME, COUNT, 32>(states, &keys);
            self.work::<SEAL, 1>(&mut products);
            round::<SAME, COUNT, 48>(states, &keys);
            self.work::<SEAL, 2>(&mut products);
            round::<SAME, COUNT, 64>(states, &keys);
            self.work::<SEAL, 3>(&mut products);
            round::<SAME, COUNT, 80>(states, &keys);
            self.work::<SEAL, 4>(&mut products);
            round::<SAME, COUNT, 96>(states, &keys);
            self.work::<SEAL, 5>(&mut products);
            round::<SAME, COUNT, 112>(states, &keys);
            self.work::<SEAL, 6>(&mut products);
            round::<SAME, COUNT, 128>(states, &keys);
            self.work::<SEAL, 7>(&mut products);
            round::<SAME, COUNT, 144>(states, &keys);
            self.work::<SEAL, 8>(&mut products);
            last_round::<SAME, COUNT, 160>(states, &keys);
        }
        unrolled!(I < COUNT, {
            self.keystream[I] = states[I];
        });
    }

    /// A part of the work on the chunks in the stages of text and hash: one of nine.
    ///
    /// # Safety
    /// As for [`Line::encrypt`].
    #[inline(always)]
    unsafe fn work<const SEAL: bool, const SLOT: usize>(&mut self, products: &mut Products) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            match SLOT {
                0 => self.multiply::<0>(products),
                1 => self.multiply::<2>(products),
                2 => self.multiply::<4>(products),
                3 => self.multiply::<6>(products),
                4 => self.multiply::<8>(products),
                5 => self.complete::<SEAL>(*products),
                6 => self.finish_text::<SEAL, 0>(),
                7 => self.finish_text::<SEAL, 4>(),
                _ => self.hand_over(),
            }
            products.pin();
        }
    }

    /// Multiplies hash input `N` and the next, if there are any.
    ///
    /// # Safety
    /// As for [`Line::encrypt`].
    #[inline(always)]
    unsafe fn multiply<const N: usize>(&mut self, products: &mut Products) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if N + 1 < self.hash.count {
                products.add_two([self.blocks[N], self.blocks[N + 1]], &self.hash.powers, N);
            } else if N < self.hash.count {
                products.add(self.blocks[N], &self.hash.powers, N);
            }
        }
    }

    /// Ends the stage of hash: tags, or the sum for the next chunk.
    ///
    /// # Safety
    /// As for [`Line::encrypt`].
    #[inline(always)]
    unsafe fn complete<const SEAL: bool>(&mut self, products: Products) {
        if self.hash.kind == Kind::Nothing {
            return;
        }
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.sum = products.reduce();
            if self.hash.last {
                columns::finish_tags::<SEAL>(&*self.hash.unit, self.sum);
            }
        }
    }

    /// Encrypts or decrypts four columns of text from `FROM` on.
    ///
    /// # Safety
    /// As for [`Line::encrypt`].
    #[inline(always)]
    unsafe fn finish_text<const SEAL: bool, const FROM: usize>(&mut self) {
        if self.text.kind == Kind::Columns {
            // SAFETY: the caller keeps the contract.
            unsafe { columns::finish_text::<SEAL, FROM>(self) }
        }
    }

    /// Moves the chunk that has been in the stage of text to that of hash.
    ///
    /// # Safety
    /// As for [`Line::encrypt`].
    #[inline(always)]
    unsafe fn hand_over(&mut self) {
        self.hash.kind = self.text.kind;
        self.hash.unit = self.text.unit;
        self.hash.last = self.text.last;
        self.hash.count = 0;
        if self.text.kind == Kind::Columns {
            // SAFETY: the caller keeps the contract.
            unsafe {
                self.hash.count = columns::place_ends(self);
                self.hash.powers = (*self.text.unit).keys.powers();
            }
        }
    }

    /// Moves the chunk in the stage of hash off the line.
    ///
    /// # Safety
    /// As for [`Line::encrypt`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn finish_hash<const SEAL: bool>(&mut self) {
        let mut products = Products::zero();
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.multiply::<0>(&mut products);
            self.multiply::<2>(&mut products);
            self.multiply::<4>(&mut products);
            self.multiply::<6>(&mut products);
            self.multiply::<8>(&mut products);
            self.complete::<SEAL>(products);
        }
        self.hash.kind = Kind::Nothing;
        self.hash.count = 0;
        self.hash.last = false;
    }

    /// Moves all chunks off the line, without AES to mix them with.
    ///
    /// # Safety
    /// As for [`Line::encrypt`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) unsafe fn drain<const SEAL: bool>(&mut self) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.finish_hash::<SEAL>();
            let mut products = Products::zero();
            self.work::<SEAL, 0>(&mut products);
            self.work::<SEAL, 1>(&mut products);
            self.work::<SEAL, 2>(&mut products);
            self.work::<SEAL, 3>(&mut products);
            self.work::<SEAL, 4>(&mut products);
            self.work::<SEAL, 5>(&mut products);
            self.work::<SEAL, 6>(&mut products);
            self.work::<SEAL, 7>(&mut products);
            self.work::<SEAL, 8>(&mut products);
            self.finish_hash::<SEAL>();
        }
        self.text.kind = Kind::Nothing;
    }
}

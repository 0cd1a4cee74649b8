//! The stages that chunks go through.

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::aes::{STATES, last_round, round, unrolled, whiten};
use super::hash::{Powers, Products};
use super::unit::Unit;
use super::{columns, row};

/// Vectors of hash input of a chunk at most: its text, authenticated data and lengths.
pub(super) const BLOCKS: usize = STATES + 1;

/// Chunks in the stages behind AES.
#[repr(C, align(64))]
pub(super) struct Line {
    /// Counter blocks of the chunk that comes.
    pub(super) counters: [__m512i; STATES],
    /// Of the chunk in the stage of text.
    pub(super) keystream: [__m512i; STATES],
    /// Hash input of the chunk in the stage of hash, the last vector first.
    pub(super) blocks: [__m512i; BLOCKS],
    /// The hash of the last chunk that has left the line.
    pub(super) sum: __m512i,
    pub(super) text: Text,
    hash: Hash,
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
    /// Holds the last block of its packets.
    pub(super) last: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    Columns,
    Row,
}

/// A chunk that waits to be hashed.
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
            counters: [zero; STATES],
            keystream: [zero; STATES],
            blocks: [zero; BLOCKS],
            sum: zero,
            text: Text {
                kind: Kind::Nothing,
                unit: core::ptr::null_mut(),
                start: 0,
                count: 0,
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

    /// Keystream does not stay on the stack.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn wipe(&mut self) {
        self.keystream.zeroize();
    }

    /// Encrypts the first `COUNT` counter blocks to keystream with the keys of `unit`, and
    /// moves the other chunks on.
    ///
    /// # Safety
    /// The CPU has what the kernel needs; the units on the line and their packets are valid.
    #[inline(always)]
    pub(super) unsafe fn encrypt<const SEAL: bool, const COUNT: usize>(&mut self, unit: &Unit) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if unit.keys.same {
                self.encrypt_with::<SEAL, true, COUNT>(unit);
            } else {
                self.encrypt_with::<SEAL, false, COUNT>(unit);
            }
        }
    }

    /// # Safety
    /// As for [`Line::encrypt`]; `SAME` is that of the keys.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn encrypt_with<const SEAL: bool, const SAME: bool, const COUNT: usize>(
        &mut self,
        unit: &Unit,
    ) {
        let keys = &unit.keys;
        let states = &mut [_mm512_setzero_si512(); STATES];
        unrolled!(I < COUNT, {
            states[I] = self.counters[I];
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
            self.multiply::<0>(&mut products);
            round::<SAME, COUNT, 32>(states, &keys);
            self.multiply::<2>(&mut products);
            round::<SAME, COUNT, 48>(states, &keys);
            self.multiply::<4>(&mut products);
            round::<SAME, COUNT, 64>(states, &keys);
            self.multiply::<6>(&mut products);
            round::<SAME, COUNT, 80>(states, &keys);
            self.multiply::<8>(&mut products);
            round::<SAME, COUNT, 96>(states, &keys);
            self.complete::<SEAL>(products);
            round::<SAME, COUNT, 112>(states, &keys);
            self.finish_text::<SEAL, 0>();
            round::<SAME, COUNT, 128>(states, &keys);
            self.finish_text::<SEAL, 4>();
            round::<SAME, COUNT, 144>(states, &keys);
            self.hand_over();
            last_round::<SAME, COUNT, 160>(states, &keys);
        }
        unrolled!(I < COUNT, {
            self.keystream[I] = states[I];
        });
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
            products.pin();
        }
    }

    /// Ends the stage of hash: tags, or the sum for the next chunk.
    ///
    /// # Safety
    /// As for [`Line::encrypt`].
    #[inline(always)]
    unsafe fn complete<const SEAL: bool>(&mut self, products: Products) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.sum = products.reduce();
            if self.hash.last {
                match self.hash.kind {
                    Kind::Columns => columns::finish_tags::<SEAL>(&*self.hash.unit, self.sum),
                    Kind::Row => row::finish_tag::<SEAL>(&*self.hash.unit, self.sum),
                    Kind::Nothing => {}
                }
            }
        }
    }

    /// Encrypts or decrypts four columns or vectors of text from `FROM` on.
    ///
    /// # Safety
    /// As for [`Line::encrypt`].
    #[inline(always)]
    unsafe fn finish_text<const SEAL: bool, const FROM: usize>(&mut self) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            match self.text.kind {
                Kind::Columns => columns::finish_text::<SEAL, FROM>(self),
                Kind::Row => row::finish_text::<SEAL, FROM>(self),
                Kind::Nothing => {}
            }
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
        // SAFETY: the caller keeps the contract.
        unsafe {
            match self.text.kind {
                Kind::Columns => {
                    self.hash.count = columns::place_ends(self);
                    self.hash.powers = (*self.text.unit).keys.powers();
                }
                Kind::Row => {
                    self.hash.count = self.text.count;
                    self.hash.powers = (*self.text.unit).keys.strides(self.text.last);
                }
                Kind::Nothing => self.hash.count = 0,
            }
        }
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
            for _ in 0..2 {
                let mut products = Products::zero();
                self.multiply::<0>(&mut products);
                self.multiply::<2>(&mut products);
                self.multiply::<4>(&mut products);
                self.multiply::<6>(&mut products);
                self.multiply::<8>(&mut products);
                self.complete::<SEAL>(products);
                self.finish_text::<SEAL, 0>();
                self.finish_text::<SEAL, 4>();
                self.hand_over();
                self.text.kind = Kind::Nothing;
                self.text.last = false;
            }
        }
    }
}

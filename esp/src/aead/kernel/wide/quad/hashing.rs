//! The hash of a part, and what is left of it until then.

use core::arch::x86_64::*;
use core::marker::PhantomData;

use zeroize::Zeroize;

use super::super::super::lanes::unrolled;
use super::super::aes::pin;
use super::super::columns::transposed;
use super::super::hash::{Products, polynomial};
use super::super::reverse_bytes;
use super::super::spread::Spread;
use super::shape::Shape;
use super::{BLOCKS, ICV, VECTORS};

/// The hash of what comes before a part: of the part before in the first vector, a packet to a
/// lane; or of rows, a packet to a vector, to be added to its next one.
pub(super) type Before = [__m512i; 4];

/// What is left of a part of four packets when it is sealed.
#[repr(C, align(64))]
pub(in super::super) struct Sealed {
    /// Hash input, a packet to a vector.
    pub(super) rows: [[__m512i; 4]; VECTORS],
    /// Hash input that fills no vector.
    pub(super) tail: [__m512i; 2],
    pub(super) aad: __m512i,
    pub(super) lengths: __m512i,
    /// The encrypted counter blocks for the tags.
    pub(super) mask: __m512i,
    /// The hash of what comes before.
    pub(super) before: Before,
    pub(super) keys: *const Spread,
    pub(super) icvs: [*mut u8; 4],
}

impl Sealed {
    /// Nothing: its hash is computed and its ICVs go to `nowhere`, before there are packets.
    ///
    /// # Safety
    /// The CPU has what the kernel needs.
    #[inline(always)]
    pub(super) unsafe fn nothing(keys: *const Spread, nowhere: *mut [u8; ICV]) -> Self {
        // SAFETY: the caller keeps the contract.
        let zero = unsafe { _mm512_setzero_si512() };
        Self {
            rows: [[zero; 4]; VECTORS],
            tail: [zero; 2],
            aad: zero,
            lengths: zero,
            mask: zero,
            before: [zero; 4],
            keys,
            icvs: [nowhere.cast(); 4],
        }
    }

    /// Masks of tags do not stay on the stack.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(in super::super) fn wipe(&mut self) {
        self.mask.zeroize();
    }
}

/// Writes the ICVs of the packets that are left.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
pub(super) unsafe fn finish<S: Shape>(sealed: *mut Sealed) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let sealed = &mut *sealed;
        let mut hash = Hashing::<S>::new(sealed.keys);
        hash.of_sealed(sealed);
        hash.step::<0>(&*sealed);
        hash.step::<1>(&*sealed);
        hash.step::<2>(&*sealed);
        hash.step::<3>(&*sealed);
        hash.step::<4>(&*sealed);
        hash.step::<5>(&*sealed);
        hash.step::<6>(&*sealed);
        hash.step::<7>(&*sealed);
        hash.step::<8>(&*sealed);
        hash.end(sealed);
    }
}

/// Vectors of four packets.
pub(super) trait Vectors {
    /// # Safety
    /// As for [`run`]; there is that vector.
    unsafe fn row(&self, vector: usize, lane: usize) -> __m512i;
}

impl Vectors for Sealed {
    #[inline(always)]
    unsafe fn row(&self, vector: usize, lane: usize) -> __m512i {
        self.rows[vector][lane]
    }
}

/// The hash of a part, on its way.
pub(super) struct Hashing<S> {
    /// Hash input, the last column first: each is multiplied by the power of its number and one.
    blocks: [__m512i; BLOCKS],
    keys: *const Spread,
    products: Products,
    low: __m512i,
    high: __m512i,
    product: __m512i,
    /// Of the part before; at the end, of this one.
    pub(super) sum: __m512i,
    /// Of the rows before, if there are any.
    rows: Before,
    shape: PhantomData<S>,
}

impl<S: Shape> Hashing<S> {
    #[inline(always)]
    pub(super) unsafe fn new(keys: *const Spread) -> Self {
        // SAFETY: the caller's CPU has what the kernel needs.
        unsafe {
            let zero = _mm512_setzero_si512();
            Self {
                blocks: [zero; BLOCKS],
                keys,
                products: Products::zero(),
                low: zero,
                high: zero,
                product: zero,
                sum: zero,
                rows: [zero; 4],
                shape: PhantomData,
            }
        }
    }

    /// Puts authenticated data and lengths to their places, and the hash of the part before.
    #[inline(always)]
    pub(super) unsafe fn put_ends(&mut self, aad: __m512i, lengths: __m512i, before: &Before) {
        if S::LAST {
            self.blocks[0] = lengths;
        }
        if S::ROWS {
            self.rows = *before;
        } else if S::FIRST {
            self.blocks[(S::BLOCKS - 1) % BLOCKS] = aad;
        } else {
            self.sum = before[0];
        }
    }

    /// Puts a column behind the vectors to its place.
    #[inline(always)]
    pub(super) unsafe fn put_more(&mut self, column: usize, block: __m512i) {
        // SAFETY: the caller's CPU has what the kernel needs.
        self.blocks[(S::MORE - column) % BLOCKS] = unsafe { reverse_bytes(block) };
    }

    /// Takes what is not in vectors of what has been sealed.
    ///
    /// # Safety
    /// As for [`run`].
    #[inline(always)]
    pub(super) unsafe fn of_sealed(&mut self, sealed: &Sealed) {
        self.keys = sealed.keys;
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.put_ends(sealed.aad, sealed.lengths, &sealed.before);
            unrolled!(C < S::MORE, at most 2, {
                self.put_more(C, sealed.tail[C]);
            });
        }
    }

    /// Writes the ICVs, or keeps the hash for the next part.
    ///
    /// # Safety
    /// As for [`run`].
    #[inline(always)]
    pub(super) unsafe fn end(&mut self, sealed: &mut Sealed) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if S::LAST {
                let tags = _mm512_xor_si512(reverse_bytes(self.sum), sealed.mask);
                store(sealed.icvs, tags);
            } else {
                sealed.before[0] = self.sum;
            }
        }
    }

    /// One of nine steps.
    ///
    /// # Safety
    /// As for [`run`].
    #[inline(always)]
    pub(super) unsafe fn step<const STEP: usize>(&mut self, vectors: &impl Vectors) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            match STEP {
                0 if S::VECTORS == 1 => self.load::<0>(vectors),
                0 => self.load::<1>(vectors),
                1 => self.multiply::<0>(),
                2 => {
                    if S::VECTORS == 2 {
                        self.load::<0>(vectors);
                    }
                    self.multiply::<1>();
                }
                3 => self.multiply::<2>(),
                4 => self.multiply::<3>(),
                5 => {
                    self.multiply::<4>();
                    self.multiply::<5>();
                }
                6 => self.reduce_first(),
                7 => self.reduce_second(),
                _ => self.reduce_last(),
            }
        }
    }

    /// The columns of a vector.
    #[inline(always)]
    unsafe fn load<const VECTOR: usize>(&mut self, vectors: &impl Vectors) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let columns = if S::ROWS {
                transposed(four!(lane => {
                    let row = reverse_bytes(vectors.row(VECTOR, lane));
                    _mm512_xor_si512(row, self.rows[lane])
                }))
            } else {
                transposed(four!(lane => vectors.row(VECTOR, lane)))
            };
            unrolled!(I < 4, {
                let column = 4 * VECTOR + I;
                if column < S::COLUMNS {
                    let place = usize::from(S::LAST) + S::COLUMNS - 1 - column;
                    let mut block = columns[I];
                    if !S::ROWS {
                        block = reverse_bytes(block);
                    }
                    if column == 0 && !S::FIRST {
                        block = _mm512_xor_si512(block, self.sum);
                    }
                    pin([&mut block]);
                    self.blocks[place] = block;
                } else if S::ROWS {
                    // Where the fourth block of text would be there are the lengths.
                    self.blocks[0] = _mm512_xor_si512(self.blocks[0], columns[I]);
                }
            });
        }
    }

    /// Multiplies two columns, if there are any.
    #[inline(always)]
    unsafe fn multiply<const PAIR: usize>(&mut self) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if 2 * PAIR >= S::BLOCKS {
                return;
            }
            let keys = &*self.keys;
            let a = self.blocks[2 * PAIR];
            let sums = &mut self.products;
            if 2 * PAIR + 1 == S::BLOCKS {
                sums.add_spread(a, keys.powers[2 * PAIR], keys.halves[PAIR]);
            } else {
                let b = self.blocks[2 * PAIR + 1];
                let powers = [keys.powers[2 * PAIR], keys.powers[2 * PAIR + 1]];
                sums.add_two_spread([a, b], powers, keys.halves[PAIR], PAIR == 0);
            }
            sums.pin();
        }
    }

    #[inline(always)]
    unsafe fn reduce_first(&mut self) {
        // SAFETY: the caller's CPU has what the kernel needs.
        unsafe {
            (self.low, self.high) = self.products.halves();
            self.product = _mm512_clmulepi64_epi128(self.low, polynomial(), 0x00);
            pin([&mut self.low, &mut self.high, &mut self.product]);
        }
    }

    #[inline(always)]
    unsafe fn reduce_second(&mut self) {
        // SAFETY: the caller's CPU has what the kernel needs.
        unsafe {
            self.low = _mm512_xor_si512(_mm512_shuffle_epi32(self.low, 0x4e), self.product);
            self.product = _mm512_clmulepi64_epi128(self.low, polynomial(), 0x00);
            pin([&mut self.low, &mut self.product]);
        }
    }

    #[inline(always)]
    unsafe fn reduce_last(&mut self) {
        // SAFETY: the caller's CPU has what the kernel needs.
        unsafe {
            let low = _mm512_shuffle_epi32(self.low, 0x4e);
            self.sum = _mm512_ternarylogic_epi64(low, self.product, self.high, 0x96);
            pin([&mut self.sum]);
        }
    }
}

/// Stores a block in each of four places.
#[inline(always)]
pub(super) unsafe fn store(at: [*mut u8; 4], blocks: __m512i) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        _mm_storeu_si128(at[0].cast(), _mm512_castsi512_si128(blocks));
        _mm_storeu_si128(at[1].cast(), _mm512_extracti32x4_epi32(blocks, 1));
        _mm_storeu_si128(at[2].cast(), _mm512_extracti32x4_epi32(blocks, 2));
        _mm_storeu_si128(at[3].cast(), _mm512_extracti32x4_epi32(blocks, 3));
    }
}

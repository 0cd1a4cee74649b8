//! AES of a part, its text, and the hash meanwhile.

use core::arch::x86_64::*;
use core::marker::PhantomData;

use super::super::super::lanes::unrolled;
use super::super::columns::transposed;
use super::super::lanes;
use super::super::spread::{Spread, last_round, round};
use super::STATES;
use super::four::{Form, Four, NUMBERS};
use super::hashing::{Before, Hashing, Sealed, Vectors, store};
use super::shape::Shape;

/// For the last four bytes of each lane, the opposite order; the others are zero.
const TO_NETWORK: i128 = 0x0c0d0e0f_80808080_80808080_80808080_u128 as i128;

/// What comes out of a part.
pub(super) struct Output {
    /// The first keystream block of each packet.
    pub(super) first: __m512i,
    /// The hash, when packets are opened.
    pub(super) sum: __m512i,
}

impl Output {
    /// Before there is anything.
    #[inline(always)]
    pub(super) unsafe fn nothing() -> Self {
        // SAFETY: the caller's CPU has what the kernel needs.
        let zero = unsafe { _mm512_setzero_si512() };
        Self {
            first: zero,
            sum: zero,
        }
    }
}

/// Works on the part `S` of four packets, `from` vectors behind their start. If they are sealed,
/// `P` is the part before, whose hash is computed meanwhile; `before` is the hash before it if
/// they are opened.
///
/// # Safety
/// As for [`run`](super::run).
#[inline(always)]
pub(super) unsafe fn part<const SEAL: bool, S: Shape, P: Shape, const STATES: usize>(
    four: &Four,
    keys: *const Spread,
    form: &Form,
    before: &Before,
    sealed: *mut Sealed,
    from: usize,
) -> Output {
    // SAFETY: the caller keeps the contract; masks keep to the text, or to text and ICV.
    unsafe {
        // The state of the first column of text.
        let text = usize::from(S::FIRST);
        let mut states = [four.counters; self::STATES];
        let numbers = NUMBERS.as_ptr().add(4 * from + usize::from(!S::FIRST));
        unrolled!(I < STATES, at most 11, {
            let number = if S::ROWS && I > 0 {
                let number = _mm512_add_epi32(four.numbers, _mm512_set1_epi32(I as i32));
                _mm512_shuffle_epi8(number, lanes(TO_NETWORK))
            } else {
                _mm512_set1_epi32(numbers.add(I).read() as i32)
            };
            states[I] = _mm512_mask_xor_epi32(four.counters, 0x8888, four.counters, number);
        });
        let texts = Texts::<S> {
            four,
            from,
            shape: PhantomData,
        };
        let mut hash = Hashing::<S>::new(keys);
        let mut hash_before = Hashing::<P>::new(keys);
        if SEAL {
            hash_before.of_sealed(&*sealed);
        } else {
            hash.put_ends(four.aad, four.lengths, before);
            unrolled!(C < S::MORE, at most 2, {
                let column = four.of_text::<S>(C, four.more::<S>(from, C));
                hash.put_more(C, column);
            });
        }
        macro_rules! work {
            ($step:literal) => {
                if SEAL {
                    hash_before.step::<$step>(&*sealed);
                } else {
                    hash.step::<$step>(&texts);
                }
            };
        }
        let start = Spread::round_keys(keys);
        if form.extra > 0 {
            round::<STATES, 1>(&mut states, start);
            round::<STATES, 2>(&mut states, start);
            if form.extra > 2 {
                round::<STATES, 3>(&mut states, start);
                round::<STATES, 4>(&mut states, start);
            }
        }
        let start = start.add(form.extra);
        round::<STATES, 1>(&mut states, start);
        work!(0);
        round::<STATES, 2>(&mut states, start);
        work!(1);
        round::<STATES, 3>(&mut states, start);
        work!(2);
        round::<STATES, 4>(&mut states, start);
        work!(3);
        round::<STATES, 5>(&mut states, start);
        work!(4);
        round::<STATES, 6>(&mut states, start);
        work!(5);
        round::<STATES, 7>(&mut states, start);
        work!(6);
        round::<STATES, 8>(&mut states, start);
        work!(7);
        round::<STATES, 9>(&mut states, start);
        work!(8);
        if SEAL {
            hash_before.end(&mut *sealed);
        }
        last_round::<STATES, 10>(&mut states, start);

        unrolled!(V < S::VECTORS, at most 2, {
            let mut keystream = [_mm512_setzero_si512(); 4];
            unrolled!(I < 4, {
                if 4 * V + I < S::COLUMNS {
                    keystream[I] = states[(text + 4 * V + I) % self::STATES];
                }
            });
            let keystream = transposed(keystream);
            unrolled!(LANE < 4, {
                let at = four.texts[LANE].add(64 * (from + V));
                let mut output =
                    _mm512_xor_si512(four.row::<S>(from, V, LANE), keystream[LANE]);
                if S::TAIL >= 3 && V == S::VECTORS - 1 {
                    let mask = four.last_vectors[LANE];
                    output = _mm512_maskz_mov_epi8(mask, output);
                    _mm512_mask_storeu_epi8(at.cast(), mask, output);
                } else {
                    _mm512_storeu_si512(at.cast(), output);
                }
                if SEAL {
                    (*sealed).rows[V][LANE] = output;
                }
            });
        });
        unrolled!(C < S::MORE, at most 2, {
            // Beyond the text nothing is changed.
            let keystream = states[(text + 4 * S::VECTORS + C) % self::STATES];
            let keystream = four.of_text::<S>(C, keystream);
            let output = _mm512_xor_si512(four.more::<S>(from, C), keystream);
            store(four.more_at::<S>(from, C), output);
            if SEAL {
                (*sealed).tail[C] = four.of_text::<S>(C, output);
            }
        });
        if SEAL {
            let sealed = &mut *sealed;
            sealed.keys = keys;
            if S::FIRST {
                sealed.aad = four.aad;
                sealed.mask = states[0];
            }
            if S::LAST {
                sealed.lengths = four.lengths;
                sealed.icvs = four.icvs;
            }
        }
        Output {
            first: states[0],
            sum: hash.sum,
        }
    }
}

/// The texts of a part, from so many vectors behind the start of the packets.
struct Texts<'a, S> {
    four: &'a Four,
    from: usize,
    shape: PhantomData<S>,
}

impl<S: Shape> Vectors for Texts<'_, S> {
    #[inline(always)]
    unsafe fn row(&self, vector: usize, lane: usize) -> __m512i {
        // SAFETY: the caller keeps the contract.
        unsafe { self.four.row::<S>(self.from, vector, lane) }
    }
}

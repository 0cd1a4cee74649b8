//! Four small packets of the same shape at a time, straight from their jobs.
//!
//! The same columns as in [`columns`](super::columns), for packets whose texts have the same
//! number of blocks and are worked on as a whole or in two parts: all that depends on their shape
//! is known beforehand. The hash of what is sealed is computed between the AES rounds of the next
//! part, often that of the next packets, that of what is opened between its own.

use core::arch::x86_64::*;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::null;

use zeroize::Zeroize;

use super::super::lanes::unrolled;
use super::super::packet::{NONCE, WITH_HIGH_HALF, WITHOUT_HIGH_HALF};
use super::aes::pin;
use super::columns::transposed;
use super::hash::{Products, join, polynomial};
use super::line::Steps;
use super::spread::{STATES, Spread, Spreads, last_round, round};
use super::{lanes, reverse_bytes};
use crate::aead::{Cipher, Job};

/// Bytes of the header before the text, SPI to IV, and of the ICV after it.
pub(super) const HEADER: usize = 16;
pub(super) const ICV: usize = 16;

/// Vectors of text that a part of a packet has at most.
const VECTORS: usize = 2;
/// Columns of hash input of a part at most: those of the text, authenticated data, lengths.
const BLOCKS: usize = STATES + 1;
/// Counter blocks of a packet at most.
const COUNTERS: usize = 19;

/// A part of each of four packets.
pub(super) trait Shape {
    /// Vectors of four blocks.
    const VECTORS: usize;
    /// What there is beside whole vectors:
    ///
    /// - 0: nothing,
    /// - 1 or 2: so many columns more, of which the last need not be full,
    /// - 3: the last vector has four blocks, the last one not full,
    /// - 4: the last vector has three blocks, the last one full or not.
    const TAIL: usize;
    /// Whether packets begin with it, with the counter block of the tag and authenticated data.
    const FIRST: bool;
    /// Whether packets end with it, with the lengths.
    const LAST: bool;

    /// Columns of text.
    const COLUMNS: usize = 4 * Self::VECTORS + Self::MORE - (Self::TAIL == 4) as usize;
    /// Columns beside the vectors.
    const MORE: usize = if Self::TAIL < 3 { Self::TAIL } else { 0 };
    /// Columns of hash input.
    const BLOCKS: usize = Self::COLUMNS + Self::FIRST as usize + Self::LAST as usize;
}

/// A whole packet.
pub(super) struct Whole<const VECTORS: usize, const TAIL: usize>;
/// The first part of a packet of two.
pub(super) struct Start<const VECTORS: usize>;
/// The second part of a packet.
pub(super) struct End<const TAIL: usize>;

impl<const VECTORS: usize, const TAIL: usize> Shape for Whole<VECTORS, TAIL> {
    const VECTORS: usize = VECTORS;
    const TAIL: usize = TAIL;
    const FIRST: bool = true;
    const LAST: bool = true;
}

impl<const VECTORS: usize> Shape for Start<VECTORS> {
    const VECTORS: usize = VECTORS;
    const TAIL: usize = 0;
    const FIRST: bool = true;
    const LAST: bool = false;
}

impl<const TAIL: usize> Shape for End<TAIL> {
    const VECTORS: usize = 2;
    const TAIL: usize = TAIL;
    const FIRST: bool = false;
    const LAST: bool = true;
}

/// What is left of a part of four packets when it is sealed.
#[repr(C, align(64))]
pub(super) struct Sealed {
    /// Hash input, a packet to a vector.
    rows: [[__m512i; 4]; VECTORS],
    /// Hash input that fills no vector.
    tail: [__m512i; 2],
    aad: __m512i,
    lengths: __m512i,
    /// The encrypted counter blocks for the tags.
    mask: __m512i,
    /// The hash of the part before.
    sum: __m512i,
    keys: *const Spread,
    icvs: [*mut u8; 4],
}

/// Jobs of the same shape, and in what order.
pub(super) struct Run<'a, 'j> {
    pub(super) jobs: *mut Job<'j>,
    /// A multiple of four.
    pub(super) members: &'a [u8],
}

impl Sealed {
    /// Nothing: its hash is computed and its ICVs go to `nowhere`, before there are packets.
    ///
    /// # Safety
    /// The CPU has what the kernel needs.
    #[inline(always)]
    unsafe fn nothing(keys: *const Spread, nowhere: *mut [u8; ICV]) -> Self {
        // SAFETY: the caller keeps the contract.
        let zero = unsafe { _mm512_setzero_si512() };
        Self {
            rows: [[zero; 4]; VECTORS],
            tail: [zero; 2],
            aad: zero,
            lengths: zero,
            mask: zero,
            sum: zero,
            keys,
            icvs: [nowhere.cast(); 4],
        }
    }

    /// Masks of tags do not stay on the stack.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn wipe(&mut self) {
        self.mask.zeroize();
    }
}

/// Seals or opens packets that have the parts `A` and `B`, or are wholly `A` if that is also the
/// last. `IN_A` and `IN_B` are the AES states of these, `POWERS` the columns of hash input of the
/// longer. Returns how many packets have been done, those before the first group that is not of
/// this shape, or not of the form of the first.
///
/// # Safety
/// The CPU has what the kernel needs. The members are indices of jobs, each once.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) unsafe fn run<
    const SEAL: bool,
    A: Shape,
    B: Shape,
    const IN_A: usize,
    const IN_B: usize,
    const POWERS: usize,
>(
    run: &Run<'_, '_>,
    spreads: &mut Spreads,
    sealed: &mut MaybeUninit<Sealed>,
) -> usize {
    // SAFETY: the caller keeps the contract: jobs are distinct; the rest is checked here.
    unsafe {
        let (groups, _) = run.members.as_chunks::<4>();
        let job = |member: u8| &mut *run.jobs.add(usize::from(member));
        let Some([first, ..]) = groups.first() else {
            return 0;
        };
        let first = job(*first);
        let Some(key) = first.cipher.gcm_key() else {
            return 0;
        };
        let Some(class) = key.class else {
            return 0;
        };
        let esn = first.esn;
        let form = Form::new(esn, usize::from(key.rounds) - 10);
        // The ICVs of nothing.
        let mut nowhere = [0u8; ICV];
        let mut cipher: *const Cipher = null();
        let mut done = 0;
        for members in groups {
            let jobs = members.map(job);
            if !fits::<A, B>(&jobs, esn) {
                break;
            }
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| core::ptr::from_ref(jobs[i].cipher));
            if a != cipher || b != cipher || c != cipher || d != cipher {
                let keys = [0, 1, 2, 3].map(|i| jobs[i].cipher.gcm_key());
                let [Some(e), Some(f), Some(g), Some(h)] = keys else {
                    break;
                };
                let class = Some(class);
                if e.class != class || f.class != class || g.class != class || h.class != class {
                    break;
                }
                spreads.put::<POWERS>([e, f, g, h]);
                cipher = if spreads.is_one() { a } else { null() };
            }
            let keys = spreads.latest();
            if SEAL && done == 0 {
                sealed.write(Sealed::nothing(keys, &raw mut nowhere));
            }
            let sealed = sealed.as_mut_ptr();
            let four = Four::new::<A, B>(&jobs, keys, &form);
            if A::LAST {
                let output =
                    part::<SEAL, A, A, IN_A, 0>(&four, keys, &form, _mm512_setzero_si512(), sealed);
                if !SEAL {
                    compare(jobs, &four, output.sum, output.first);
                }
            } else {
                let output =
                    part::<SEAL, A, B, IN_A, 0>(&four, keys, &form, _mm512_setzero_si512(), sealed);
                let first = output.first;
                let output = if A::VECTORS == 1 {
                    part::<SEAL, B, A, IN_B, 1>(&four, keys, &form, output.sum, sealed)
                } else {
                    part::<SEAL, B, A, IN_B, 2>(&four, keys, &form, output.sum, sealed)
                };
                if !SEAL {
                    compare(jobs, &four, output.sum, first);
                }
            }
            done += 4;
        }
        if SEAL && done > 0 {
            if A::LAST {
                finish::<A>(sealed.as_mut_ptr());
            } else {
                finish::<B>(sealed.as_mut_ptr());
            }
        }
        done
    }
}

/// Whether the texts are of the shape, with that kind of sequence numbers.
#[inline(always)]
fn fits<A: Shape, B: Shape>(jobs: &[&mut Job<'_>; 4], esn: bool) -> bool {
    let whole = HEADER + ICV + 64 * vectors::<A, B>();
    let least = match B::TAIL {
        0 => whole,
        1 => whole + 1,
        2 => whole + 17,
        3 => whole - 15,
        _ => whole - 31,
    };
    let mut beyond = 0;
    let mut other = false;
    for job in jobs {
        beyond |= job.esp.len().wrapping_sub(least);
        other |= job.esn != esn;
    }
    beyond <= (if B::TAIL == 0 { 0 } else { 15 }) && !other
}

/// Vectors of a packet.
#[inline(always)]
const fn vectors<A: Shape, B: Shape>() -> usize {
    if A::LAST {
        A::VECTORS
    } else {
        A::VECTORS + B::VECTORS
    }
}

/// What the packets of a run have in common.
struct Form {
    /// Where the bytes of the authenticated data are in the header.
    aad: __m512i,
    /// The words of the high halves of the sequence numbers.
    high: __mmask16,
    /// The lengths, without those of the text.
    lengths: __m512i,
    /// Rounds beyond those of AES-128.
    extra: usize,
}

impl Form {
    #[inline(always)]
    unsafe fn new(esn: bool, extra: usize) -> Self {
        // RFC 4106 section 5: the SPI and the 32-bit or 64-bit sequence number.
        let (aad, high, aad_bits) = if esn {
            (WITH_HIGH_HALF, 0x4444, 96)
        } else {
            (WITHOUT_HIGH_HALF, 0, 64)
        };
        // SAFETY: the caller's CPU has what the kernel needs.
        unsafe {
            Self {
                aad: lanes(aad as i128),
                high,
                lengths: lanes(aad_bits << 64),
                extra,
            }
        }
    }
}

/// Four packets.
struct Four {
    texts: [*mut u8; 4],
    icvs: [*mut u8; 4],
    /// Counter blocks with the counter 0, after the addition of the first round keys.
    counters: __m512i,
    aad: __m512i,
    lengths: __m512i,
    /// The bytes of the last vector of each, if that is not whole.
    last_vectors: [u64; 4],
    /// The bytes of the last column.
    last_column: u64,
    /// Their ICVs as they were given.
    given: __m512i,
}

/// The numbers of counter blocks, 1 for the tag, 2 and more for the text.
static NUMBERS: Steps<COUNTERS> = Steps::of(1 << 24);

impl Four {
    /// # Safety
    /// As for [`run`]; the jobs have this shape.
    #[inline(always)]
    unsafe fn new<A: Shape, B: Shape>(
        jobs: &[&mut Job<'_>; 4],
        keys: *const Spread,
        form: &Form,
    ) -> Self {
        // SAFETY: the caller keeps the contract: there are header and ICV.
        unsafe {
            let [a, b, c, d] = jobs;
            let vectors = vectors::<A, B>();
            let lens = [a, b, c, d].map(|job| job.esp.len() - HEADER - ICV);
            let esps = [a, b, c, d].map(|job| job.esp.as_ptr().cast_mut());
            let texts = esps.map(|esp| esp.add(HEADER));
            let icvs = [0, 1, 2, 3].map(|i| texts[i].add(lens[i]));

            let headers = join(esps.map(|esp| _mm_loadu_si128(esp.cast())));
            // RFC 4106 section 4: the nonce is the salt, then the IV.
            let ivs = _mm512_shuffle_epi8(headers, lanes(NONCE as i128));
            let [e, f, g, h] = [a, b, c, d].map(|job| (job.sequence >> 32) as i32);
            let high = _mm512_castsi128_si512(_mm_set_epi32(h, g, f, e));
            let aad = _mm512_or_si512(
                _mm512_shuffle_epi8(headers, form.aad),
                _mm512_maskz_expand_epi32(form.high, high),
            );
            let wide_lens = if B::TAIL == 0 {
                lanes(64 * vectors as i128)
            } else {
                let [e, f, g, h] = lens.map(|len| len as i64);
                let lens = _mm256_set_epi64x(h, g, f, e);
                _mm512_maskz_expand_epi64(0x55, _mm512_castsi256_si512(lens))
            };
            let mut last_column = !0;
            if B::MORE > 0 {
                let before = 64 * vectors + 16 * (B::MORE - 1);
                let bytes = _mm512_sub_epi64(wide_lens, _mm512_set1_epi64(before as i64));
                let bytes = _mm512_shuffle_epi8(bytes, _mm512_setzero_si512());
                let numbers = lanes(0x0f0e0d0c_0b0a0908_07060504_03020100);
                last_column = _mm512_cmplt_epu8_mask(numbers, bytes);
            }
            Self {
                texts,
                icvs,
                counters: _mm512_xor_si512(ivs, (*keys).whitening),
                aad,
                lengths: _mm512_or_si512(_mm512_slli_epi64(wide_lens, 3), form.lengths),
                last_vectors: lens.map(|len| _bzhi_u64(!0, (len - 64 * (vectors - 1)) as u32)),
                last_column,
                given: join(icvs.map(|icv| _mm_loadu_si128(icv.cast()))),
            }
        }
    }

    /// A vector of text of a packet.
    ///
    /// # Safety
    /// As for [`run`]; the part has that vector, `from` vectors behind the start.
    #[inline(always)]
    unsafe fn row<S: Shape>(&self, from: usize, vector: usize, lane: usize) -> __m512i {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let at = self.texts[lane].add(64 * (from + vector)).cast();
            if S::TAIL >= 3 && vector == S::VECTORS - 1 {
                _mm512_maskz_loadu_epi8(self.last_vectors[lane], at)
            } else {
                _mm512_loadu_si512(at.cast())
            }
        }
    }

    /// Where a column behind the vectors is.
    #[inline(always)]
    unsafe fn more_at<S: Shape>(&self, from: usize, column: usize) -> [*mut u8; 4] {
        self.texts
            .map(|text| text.wrapping_add(64 * (from + S::VECTORS) + 16 * column))
    }

    /// A column behind the vectors; beyond the text there are bytes of the ICV in it.
    ///
    /// # Safety
    /// As for [`Four::row`].
    #[inline(always)]
    unsafe fn more<S: Shape>(&self, from: usize, column: usize) -> __m512i {
        // SAFETY: the caller keeps the contract; the ICV is as long as a block.
        unsafe {
            join(
                self.more_at::<S>(from, column)
                    .map(|at| _mm_loadu_si128(at.cast())),
            )
        }
    }

    /// The bytes of a column behind the vectors that are text.
    #[inline(always)]
    unsafe fn of_text<S: Shape>(&self, column: usize, block: __m512i) -> __m512i {
        if column + 1 == S::TAIL {
            // SAFETY: the caller's CPU has what the kernel needs.
            unsafe { _mm512_maskz_mov_epi8(self.last_column, block) }
        } else {
            block
        }
    }
}

/// What comes out of a part.
struct Output {
    /// The first keystream block of each packet.
    first: __m512i,
    /// The hash, when packets are opened.
    sum: __m512i,
}

/// Works on the part `S` of four packets, `FROM` vectors behind their start. If they are sealed,
/// `P` is the part before, whose hash is computed meanwhile; `sum` is that of the part before if
/// they are opened.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn part<const SEAL: bool, S: Shape, P: Shape, const STATES: usize, const FROM: usize>(
    four: &Four,
    keys: *const Spread,
    form: &Form,
    sum: __m512i,
    sealed: *mut Sealed,
) -> Output {
    // SAFETY: the caller keeps the contract; masks keep to the text, or to text and ICV.
    unsafe {
        // The state of the first column of text.
        let text = usize::from(S::FIRST);
        let mut states = [four.counters; self::STATES];
        unrolled!(I < STATES, at most 11, {
            let number = I + 4 * FROM + usize::from(!S::FIRST);
            states[I] = _mm512_xor_si512(four.counters, NUMBERS.0[number % COUNTERS]);
        });
        let mut hash = Hashing::<S>::new(keys);
        let mut hash_before = Hashing::<P>::new(keys);
        if SEAL {
            hash_before.of_sealed(&*sealed);
        } else {
            hash.put_ends(four.aad, four.lengths, sum);
            unrolled!(C < S::MORE, at most 2, {
                let column = four.of_text::<S>(C, four.more::<S>(FROM, C));
                hash.put_more(C, column);
            });
        }
        macro_rules! work {
            ($step:literal) => {
                if SEAL {
                    hash_before.step::<$step>(&|vector, lane| (*sealed).rows[vector][lane]);
                } else {
                    hash.step::<$step>(&|vector, lane| four.row::<S>(FROM, vector, lane));
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
                let at = four.texts[LANE].add(64 * (FROM + V));
                let mut output =
                    _mm512_xor_si512(four.row::<S>(FROM, V, LANE), keystream[LANE]);
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
            let output = _mm512_xor_si512(four.more::<S>(FROM, C), keystream);
            store(four.more_at::<S>(FROM, C), output);
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

/// Says which of four packets are authentic, and wipes the texts of the others.
///
/// # Safety
/// The CPU has what the kernel needs.
#[inline(always)]
unsafe fn compare(jobs: [&mut Job<'_>; 4], four: &Four, sum: __m512i, mask: __m512i) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let tags = _mm512_xor_si512(reverse_bytes(sum), mask);
        let different = _mm512_cmpneq_epi64_mask(tags, four.given);
        if different == 0 {
            for job in jobs {
                job.authentic = true;
            }
        } else {
            reject(jobs, different);
        }
    }
}

/// As [`compare`], with two bits for each packet whose tag is another.
#[cold]
#[inline(never)]
fn reject(jobs: [&mut Job<'_>; 4], different: u8) {
    for (lane, job) in jobs.into_iter().enumerate() {
        job.authentic = different >> (2 * lane) & 3 == 0;
        if !job.authentic {
            let end = job.esp.len() - ICV;
            job.esp[HEADER..end].zeroize();
        }
    }
}

/// Writes the ICVs of the packets that are left.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn finish<S: Shape>(sealed: *mut Sealed) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let sealed = &mut *sealed;
        let mut hash = Hashing::<S>::new(sealed.keys);
        hash.of_sealed(sealed);
        let rows = |vector: usize, lane: usize| sealed.rows[vector][lane];
        hash.step::<0>(&rows);
        hash.step::<1>(&rows);
        hash.step::<2>(&rows);
        hash.step::<3>(&rows);
        hash.step::<4>(&rows);
        hash.step::<5>(&rows);
        hash.step::<6>(&rows);
        hash.step::<7>(&rows);
        hash.step::<8>(&rows);
        hash.end(sealed);
    }
}

/// The hash of a part, on its way.
struct Hashing<S> {
    /// Hash input, the last column first: each is multiplied by the power of its number and one.
    blocks: [__m512i; BLOCKS],
    keys: *const Spread,
    products: Products,
    low: __m512i,
    high: __m512i,
    product: __m512i,
    /// Of the part before; at the end, of this one.
    sum: __m512i,
    shape: PhantomData<S>,
}

impl<S: Shape> Hashing<S> {
    #[inline(always)]
    unsafe fn new(keys: *const Spread) -> Self {
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
                shape: PhantomData,
            }
        }
    }

    /// Puts authenticated data and lengths to their places, and the hash of the part before.
    #[inline(always)]
    unsafe fn put_ends(&mut self, aad: __m512i, lengths: __m512i, sum: __m512i) {
        if S::LAST {
            self.blocks[0] = lengths;
        }
        if S::FIRST {
            self.blocks[(S::BLOCKS - 1) % BLOCKS] = aad;
        } else {
            self.sum = sum;
        }
    }

    /// Puts a column behind the vectors to its place.
    #[inline(always)]
    unsafe fn put_more(&mut self, column: usize, block: __m512i) {
        // SAFETY: the caller's CPU has what the kernel needs.
        self.blocks[(S::MORE - column) % BLOCKS] = unsafe { reverse_bytes(block) };
    }

    /// Takes what is not in vectors of what has been sealed.
    ///
    /// # Safety
    /// As for [`run`].
    #[inline(always)]
    unsafe fn of_sealed(&mut self, sealed: &Sealed) {
        self.keys = sealed.keys;
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.put_ends(sealed.aad, sealed.lengths, sealed.sum);
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
    unsafe fn end(&mut self, sealed: &mut Sealed) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if S::LAST {
                let tags = _mm512_xor_si512(reverse_bytes(self.sum), sealed.mask);
                store(sealed.icvs, tags);
            } else {
                sealed.sum = self.sum;
            }
        }
    }

    /// One of nine steps.
    ///
    /// # Safety
    /// As for [`run`].
    #[inline(always)]
    unsafe fn step<const STEP: usize>(&mut self, row: &impl Fn(usize, usize) -> __m512i) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            match STEP {
                0 if S::VECTORS == 1 => self.load::<0>(row),
                0 => self.load::<1>(row),
                1 => self.multiply::<0>(),
                2 => {
                    if S::VECTORS == 2 {
                        self.load::<0>(row);
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
    unsafe fn load<const VECTOR: usize>(&mut self, row: &impl Fn(usize, usize) -> __m512i) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let columns = transposed([0, 1, 2, 3].map(|lane| row(VECTOR, lane)));
            unrolled!(I < 4, {
                let column = 4 * VECTOR + I;
                if column < S::COLUMNS {
                    let place = usize::from(S::LAST) + S::COLUMNS - 1 - column;
                    let mut block = reverse_bytes(columns[I]);
                    if column == 0 && !S::FIRST {
                        block = _mm512_xor_si512(block, self.sum);
                    }
                    pin([&mut block]);
                    self.blocks[place] = block;
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
unsafe fn store(at: [*mut u8; 4], blocks: __m512i) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        _mm_storeu_si128(at[0].cast(), _mm512_castsi512_si128(blocks));
        _mm_storeu_si128(at[1].cast(), _mm512_extracti32x4_epi32(blocks, 1));
        _mm_storeu_si128(at[2].cast(), _mm512_extracti32x4_epi32(blocks, 2));
        _mm_storeu_si128(at[3].cast(), _mm512_extracti32x4_epi32(blocks, 3));
    }
}

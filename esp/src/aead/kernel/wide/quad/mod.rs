//! Four packets of the same shape at a time, straight from their jobs.
//!
//! The same columns as in [`columns`](super::columns), for packets whose texts have the same
//! number of blocks and are worked on as a whole or in parts of 128 bytes: all that depends on their shape
//! is known beforehand. Of long packets, whose texts need only end alike, all but the last vectors
//! are [`rows`]: no blocks have to be put side by side there, and chunks are full. The hash of what is sealed is computed between the AES rounds of the next
//! part, often that of the next packets, that of what is opened between its own.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;
use core::ptr::null;

use zeroize::Zeroize;

pub(super) use self::hashing::Sealed;
pub(super) use self::shape::{End, Rest, Start, Whole};

use self::four::{Form, Four};
use self::hashing::{Before, finish};
use self::part::{Output, part};
use self::rows::{Group, Rows};
use self::shape::{Middle, Shape, fits};
use super::super::packet::MAX_TEXT;
use super::hash::Products;
use super::reverse_bytes;
use super::spread::{STATES, Spread, Spreads};
use crate::aead::{Cipher, Job};

/// Bytes of the header before the text, SPI to IV, and of the ICV after it.
pub(super) const HEADER: usize = 16;
pub(super) const ICV: usize = 16;

/// Vectors of text that a part of a packet has at most.
const VECTORS: usize = 2;
/// Columns of hash input of a part at most: those of the text, authenticated data, lengths.
const BLOCKS: usize = STATES + 1;
/// Vectors of a packet in rows before its rest: at least, and fewer than so many.
pub(super) const LEAST_ROWS: usize = 4;
const MOST_ROWS: usize = MAX_TEXT / 64 - 1;
/// Vectors behind the first of a packet in parts at most.
pub(super) const MOST_PARTS: usize = 39;
/// Counter blocks of a packet in parts at most.
const COUNTERS: usize = 4 * MOST_PARTS + 16;

/// An array of what comes out for each of four packets. (A closure would not be compiled for the
/// instructions that the kernel needs.)
macro_rules! four {
    ($i:ident => $of_packet:expr) => {{
        let [a, b, c, d] = [0usize, 1, 2, 3];
        [
            {
                let $i = a;
                $of_packet
            },
            {
                let $i = b;
                $of_packet
            },
            {
                let $i = c;
                $of_packet
            },
            {
                let $i = d;
                $of_packet
            },
        ]
    }};
}

mod four;
mod hashing;
mod part;
mod rows;
mod shape;

/// Jobs of the same shape, and in what order.
pub(super) struct Run<'a, 'j> {
    pub(super) jobs: *mut Job<'j>,
    /// A multiple of four.
    pub(super) members: &'a [u8],
    /// Parts between the first and the last.
    pub(super) middles: usize,
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
    let middles = if A::LAST { 0 } else { run.middles };
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
        let mut several = MaybeUninit::<Several>::uninit();
        let mut rows_of_all = MaybeUninit::<Rows>::uninit();
        let mut cipher: *const Cipher = null();
        let mut done = 0;
        for members in groups {
            let jobs = members.map(job);
            if !fits::<A, B>(&jobs, esn, middles) {
                break;
            }
            let [a, b, c, d] = four!(i => core::ptr::from_ref(jobs[i].cipher));
            if a != cipher || b != cipher || c != cipher || d != cipher {
                let keys = four!(i => jobs[i].cipher.gcm_key());
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
            let four = Four::new::<A, B>(&jobs, keys, &form, middles);
            let nothing: Before = [_mm512_setzero_si512(); 4];
            if A::ROWS {
                let Several { four, output } = several.write(Several {
                    four,
                    output: Output::nothing(),
                });
                if done == 0 {
                    rows_of_all.write(Rows::new());
                }
                let rows = rows_of_all.assume_init_mut();
                rows_of_four::<SEAL>(rows, &jobs, four, spreads);
                if SEAL {
                    (*sealed).before = *rows.before_latest();
                    *output = part::<SEAL, A, A, IN_A>(four, keys, &form, &nothing, sealed, 0);
                } else {
                    let before = rows.opened();
                    *output = part::<SEAL, A, A, IN_A>(four, keys, &form, before, sealed, 0);
                    compare(jobs, four, output.sum, output.first);
                }
            } else if A::LAST {
                let output = part::<SEAL, A, A, IN_A>(&four, keys, &form, &nothing, sealed, 0);
                if !SEAL {
                    compare(jobs, &four, output.sum, output.first);
                }
            } else {
                let Several { four, output } = several.write(Several {
                    four,
                    output: Output::nothing(),
                });
                *output = part::<SEAL, A, B, IN_A>(four, keys, &form, &nothing, sealed, 0);
                let sum = &mut output.sum;
                if middles == 0 {
                    let before = &[*sum; 4];
                    let last =
                        part::<SEAL, B, A, IN_B>(four, keys, &form, before, sealed, A::VECTORS);
                    *sum = last.sum;
                } else {
                    middle_parts::<SEAL, A>(four, keys, &form, sum, sealed, middles);
                    last_part::<SEAL, A, B, IN_B>(four, keys, &form, sum, sealed, middles);
                }
                if !SEAL {
                    compare(jobs, four, output.sum, output.first);
                }
            }
            done += 4;
        }
        if (A::ROWS || !A::LAST) && done > 0 {
            several.assume_init_mut().wipe();
        }
        if A::ROWS && done > 0 {
            let rows = rows_of_all.assume_init_mut();
            if SEAL {
                (*sealed.as_mut_ptr()).before = *rows.finish();
            }
            rows.wipe();
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

/// Works on the rows of four packets.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn rows_of_four<const SEAL: bool>(
    rows: &mut Rows,
    jobs: &[&mut Job<'_>; 4],
    four: &Four,
    spreads: &Spreads,
) {
    let [Some(e), Some(f), Some(g), Some(h)] = four!(i => jobs[i].cipher.gcm_key()) else {
        return;
    };
    // SAFETY: the caller keeps the contract: what is before the rests are rows.
    unsafe {
        let keys = spreads.latest();
        let round_keys = if spreads.is_one() {
            Spread::round_keys(keys)
        } else {
            null()
        };
        rows.crypt::<SEAL>(&Group {
            keys: [e, f, g, h],
            round_keys,
            texts: four!(i => four.texts[i].wrapping_sub(64 * four.rows[i])),
            vectors: four.rows,
            counters: _mm512_xor_si512(four.counters, *Spread::round_keys(keys)),
            // The authenticated data are the block before the text.
            before: Products::of(four.aad, (*keys).powers[0]).reduce(),
        });
    }
}

/// Four packets of several parts, and what comes out of the part before.
struct Several {
    four: Four,
    output: Output,
}

impl Several {
    /// Neither the first round key, which is in the counters, nor the mask of a tag stays on the
    /// stack.
    #[inline(always)]
    fn wipe(&mut self) {
        self.four.counters.zeroize();
        self.output.first.zeroize();
        self.output.sum.zeroize();
    }
}

/// Works on the parts between the first and the last.
///
/// # Safety
/// As for [`run`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
unsafe fn middle_parts<const SEAL: bool, A: Shape>(
    four: &Four,
    keys: *const Spread,
    form: &Form,
    sum: &mut __m512i,
    sealed: *mut Sealed,
    count: usize,
) {
    let mut from = A::VECTORS;
    // SAFETY: the caller keeps the contract.
    unsafe {
        *sum = part::<SEAL, Middle, A, 8>(four, keys, form, &[*sum; 4], sealed, from).sum;
        for _ in 1..count {
            from += Middle::VECTORS;
            let before = &[*sum; 4];
            *sum = part::<SEAL, Middle, Middle, 8>(four, keys, form, before, sealed, from).sum;
        }
    }
}

/// Works on the last part, behind those of [`middle_parts`].
///
/// # Safety
/// As for [`run`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
unsafe fn last_part<const SEAL: bool, A: Shape, B: Shape, const IN_B: usize>(
    four: &Four,
    keys: *const Spread,
    form: &Form,
    sum: &mut __m512i,
    sealed: *mut Sealed,
    middles: usize,
) {
    let from = A::VECTORS + Middle::VECTORS * middles;
    // SAFETY: the caller keeps the contract.
    unsafe {
        *sum = part::<SEAL, B, Middle, IN_B>(four, keys, form, &[*sum; 4], sealed, from).sum;
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

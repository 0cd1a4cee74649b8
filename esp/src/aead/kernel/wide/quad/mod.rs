//! Four small packets of the same shape at a time, straight from their jobs.
//!
//! The same columns as in [`columns`](super::columns), for packets whose texts have the same
//! number of blocks and are worked on as a whole or in parts of 128 bytes: all that depends on their shape
//! is known beforehand. The hash of what is sealed is computed between the AES rounds of the next
//! part, often that of the next packets, that of what is opened between its own.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;
use core::ptr::null;

use zeroize::Zeroize;

pub(super) use self::hashing::Sealed;
pub(super) use self::shape::{End, Start, Whole};

use self::four::{Form, Four};
use self::hashing::finish;
use self::part::{Output, part};
use self::shape::{Middle, Shape, fits};
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
/// Bytes of text that a packet has at most. (Of longer ones, a row is as fast.)
pub(super) const MOST: usize = 2560;
/// Counter blocks of a packet at most.
const COUNTERS: usize = MOST / 16 + 8;

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
            let zero = _mm512_setzero_si512();
            if A::LAST {
                let output = part::<SEAL, A, A, IN_A>(&four, keys, &form, zero, sealed, 0);
                if !SEAL {
                    compare(jobs, &four, output.sum, output.first);
                }
            } else {
                let Several { four, output } = several.write(Several {
                    four,
                    output: Output {
                        first: zero,
                        sum: zero,
                    },
                });
                *output = part::<SEAL, A, B, IN_A>(four, keys, &form, zero, sealed, 0);
                let sum = &mut output.sum;
                if middles == 0 {
                    *sum =
                        part::<SEAL, B, A, IN_B>(four, keys, &form, *sum, sealed, A::VECTORS).sum;
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
        if !A::LAST && done > 0 {
            several.assume_init_mut().wipe();
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
        *sum = part::<SEAL, Middle, A, 8>(four, keys, form, *sum, sealed, from).sum;
        for _ in 1..count {
            from += Middle::VECTORS;
            *sum = part::<SEAL, Middle, Middle, 8>(four, keys, form, *sum, sealed, from).sum;
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
        *sum = part::<SEAL, B, Middle, IN_B>(four, keys, form, *sum, sealed, from).sum;
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

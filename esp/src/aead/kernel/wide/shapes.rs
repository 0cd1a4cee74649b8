//! Which jobs are worked on together straight away.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;
use core::num::NonZeroU8;

use super::super::key::Form;
use super::super::packet::MAX_TEXT;
use super::super::{BATCH, Kernel};
use super::quad::{self, End, HEADER, ICV, Rest, Run, Sealed, Start, Whole};
use super::spread::Spreads;
use crate::aead::{Cipher, Job};

/// Texts of fewer bytes have no shape.
const LEAST: usize = 33;
/// Texts of more bytes have no shape.
const MOST: usize = MAX_TEXT - 128;

/// Shapes of a vector more of text: how it ends.
const ENDS: u16 = 5;
/// For each length of text beyond [`LEAST`], by whole vectors: how it ends, from 1.
static END: [u8; 64] = {
    let mut ends = [0; 64];
    let mut i = 0;
    while i < ends.len() {
        ends[i] = match i {
            0..=15 => 1,
            16..=30 => 2,
            31 => 3,
            32..=47 => 4,
            _ => 5,
        };
        i += 1;
    }
    ends
};
/// Shapes of texts that are two parts at most.
const SHORT: u16 = 4 * ENDS;
/// Shapes of texts that are worked on in parts. Behind these are those of texts of which rows are
/// made: only their ends count.
const LONG: u16 = (quad::MOST_PARTS as u16 + 1) * ENDS;
/// Where more packets than this have the same key, rows are made of shapes from the other on: the
/// ends of few cost more than is gained.
const FEW: usize = 4;
const MANY_LONG: u16 = 14 * ENDS;
/// More than there are shapes.
const SHAPES: u16 = 256;
const _: () = assert!(LONG + ENDS < SHAPES);
/// Shapes of fewer than four packets after which no more are looked for in a batch: where lengths
/// are random there is nothing to be found.
const FRUITLESS: usize = 8;

static IN_ORDER: [u8; BATCH] = {
    let mut indices = [0; BATCH];
    let mut i = 0;
    while i < BATCH {
        indices[i] = i as u8;
        i += 1;
    }
    indices
};

/// That of AES-GCM with explicit IVs and ICVs of 16 bytes.
pub(in super::super) fn class_of_key(
    kernel: Kernel,
    form: Form,
    rounds: u8,
    icv_len: u8,
) -> Option<NonZeroU8> {
    let fits = matches!(kernel, Kernel::Vaes512(_)) && form == Form::Gcm && icv_len == 16;
    fits.then_some(NonZeroU8::new(rounds)).flatten()
}

/// The shape of the text of a job: a number for each count of blocks, or 0. The last block of a
/// vector makes two, whole and not. Long texts of any length have the same shape if they end alike.
#[inline(always)]
fn shape(job: &Job<'_>) -> u16 {
    let beyond = job.esp.len().wrapping_sub(HEADER + ICV + LEAST);
    let shape = u16::from(END[beyond % 64])
        .wrapping_add(ENDS * (beyond / 64).min(quad::MOST_PARTS + 1) as u16);
    // A branch on it could not be predicted where lengths are mixed.
    core::hint::select_unpredictable(beyond <= MOST - LEAST, shape, 0)
}

/// Seals or opens what goes together of at most [`BATCH`] jobs; returns a bit for each that has
/// been done.
///
/// # Safety
/// The CPU has what the kernel needs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(in super::super) unsafe fn crypt<const SEAL: bool>(jobs: &mut [Job<'_>]) -> u64 {
    if jobs.len() < 4 {
        return 0;
    }
    let len = jobs.len();
    let mut work = Work {
        shape: shape(&jobs[0]),
        jobs: jobs.as_mut_ptr(),
        spreads: Spreads::new(),
        sealed: MaybeUninit::uninit(),
    };
    // SAFETY: each member is an index of a job.
    let done = unsafe {
        // Most batches are of one shape.
        let count = work.run::<SEAL>(&IN_ORDER[..len & !3]);
        let mut done = u64::MAX.checked_shr((BATCH - count) as u32).unwrap_or(0);
        if len - count >= 4 {
            done |= sorted::<SEAL>(&mut work, count, len);
        }
        done
    };
    work.spreads.wipe();
    if SEAL && done != 0 {
        // SAFETY: what has been sealed has left something.
        unsafe { work.sealed.assume_init_mut() }.wipe();
    }
    done
}

/// Finds jobs of the same class and works on four of each as long as there are. A class is a shape
/// for one length of keys, with or without high halves of sequence numbers.
///
/// # Safety
/// As for [`crypt`]; there are jobs from `start` to `end`.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
unsafe fn sorted<const SEAL: bool>(work: &mut Work<'_>, start: usize, end: usize) -> u64 {
    let mut classes = [0u16; BATCH];
    let mut cipher: *const Cipher = core::ptr::null();
    let mut base = 0;
    let mut shapes = 0;
    for (i, class) in classes[start..end].iter_mut().enumerate() {
        // SAFETY: the caller keeps the contract.
        let job = unsafe { &*work.jobs.add(start + i) };
        if !core::ptr::eq(job.cipher, cipher) {
            cipher = job.cipher;
            let key = job.cipher.gcm_key().and_then(|key| key.class);
            base = key.map_or(0, |class| u16::from(class.get() - 10) * SHAPES + 1);
        }
        if base > 0 {
            let shape = shape(job);
            shapes |= shape;
            *class = base - 1 + u16::from(job.esn) * SHAPES + shape;
        }
    }
    if shapes == 0 {
        return 0;
    }
    // SAFETY: the caller keeps the contract.
    unsafe { work.groups::<SEAL>(&classes) }
}

#[inline(always)]
fn both(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The jobs, and what is needed to work on them.
struct Work<'a> {
    jobs: *mut Job<'a>,
    /// That of those that are worked on.
    shape: u16,
    spreads: Spreads,
    sealed: MaybeUninit<Sealed>,
}

impl Work<'_> {
    /// Works on four jobs of the same class as long as there are; returns a bit for each that has
    /// been done. Those of class 0 are none.
    ///
    /// # Safety
    /// As for [`crypt`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn groups<const SEAL: bool>(&mut self, classes: &[u16; BATCH]) -> u64 {
        // SAFETY: the array is as long as two vectors.
        let (low, high) = unsafe {
            let [low, high] = [0, BATCH / 2].map(|half| classes.as_ptr().add(half).cast());
            (_mm512_loadu_si512(low), _mm512_loadu_si512(high))
        };
        let shape_of_class = _mm512_set1_epi16(SHAPES as i16 - 1);
        let mut left = both(
            _mm512_test_epi16_mask(low, shape_of_class),
            _mm512_test_epi16_mask(high, shape_of_class),
        );
        let mut done = 0;
        let mut fruitless = 0;
        while left.count_ones() >= 4 {
            let class = classes[left.trailing_zeros() as usize];
            let all = _mm512_set1_epi16(class as i16);
            let mut same = both(
                _mm512_cmpeq_epi16_mask(all, low),
                _mm512_cmpeq_epi16_mask(all, high),
            );
            left &= !same;
            if same.count_ones() < 4 {
                fruitless += 1;
                if fruitless == FRUITLESS {
                    break;
                }
                continue;
            }
            let mut members = [0u8; BATCH];
            let members = &mut members[..(same.count_ones() & !3) as usize];
            for member in &mut *members {
                *member = same.trailing_zeros() as u8;
                same &= same - 1;
            }
            // SAFETY: the caller keeps the contract.
            let number = unsafe {
                self.shape = class % SHAPES;
                self.run::<SEAL>(members)
            };
            for member in &members[..number] {
                done |= 1 << member;
            }
        }
        done
    }

    /// Whether rows are to be made of these.
    #[inline(always)]
    fn is_of_rows(&self, members: &[u8]) -> bool {
        if self.shape <= MANY_LONG || members.len() <= FEW {
            return self.shape > LONG;
        }
        let cipher = |n: usize| {
            // SAFETY: members are indices of jobs.
            let job = unsafe { &*self.jobs.add(usize::from(members[n])) };
            core::ptr::from_ref(job.cipher)
        };
        self.shape > LONG || cipher(0) == cipher(1) && cipher(0) == cipher(FEW)
    }

    /// Works on jobs of the shape, a multiple of four; returns how many have been done: up to
    /// the first that has another.
    ///
    /// # Safety
    /// As for [`quad::run`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn run<const SEAL: bool>(&mut self, members: &[u8]) -> usize {
        let jobs = self.jobs;
        let (shape, middles) = if self.is_of_rows(members) {
            ((self.shape - 1) % ENDS + 1 + SHORT, 0)
        } else if self.shape > SHORT {
            // Two vectors more are a part more.
            let more = (self.shape - 1 - SHORT) / (2 * ENDS) + 1;
            (self.shape - 2 * ENDS * more, usize::from(more))
        } else {
            (self.shape, 0)
        };
        let (spreads, sealed) = (&mut self.spreads, &mut self.sealed);
        let run = &Run {
            jobs,
            members,
            middles,
        };
        // SAFETY: the caller keeps the contract.
        unsafe {
            match shape {
                1 => quad::run::<SEAL, Whole<1, 4>, Whole<1, 4>, 4, 4, 5>(run, spreads, sealed),
                2 => quad::run::<SEAL, Whole<1, 3>, Whole<1, 3>, 5, 5, 6>(run, spreads, sealed),
                3 => quad::run::<SEAL, Whole<1, 0>, Whole<1, 0>, 5, 5, 6>(run, spreads, sealed),
                4 => quad::run::<SEAL, Whole<1, 1>, Whole<1, 1>, 6, 6, 7>(run, spreads, sealed),
                5 => quad::run::<SEAL, Whole<1, 2>, Whole<1, 2>, 7, 7, 8>(run, spreads, sealed),
                6 => quad::run::<SEAL, Whole<2, 4>, Whole<2, 4>, 8, 8, 9>(run, spreads, sealed),
                7 => quad::run::<SEAL, Whole<2, 3>, Whole<2, 3>, 9, 9, 10>(run, spreads, sealed),
                8 => quad::run::<SEAL, Whole<2, 0>, Whole<2, 0>, 9, 9, 10>(run, spreads, sealed),
                9 => quad::run::<SEAL, Whole<2, 1>, Whole<2, 1>, 10, 10, 11>(run, spreads, sealed),
                10 => quad::run::<SEAL, Whole<2, 2>, Whole<2, 2>, 11, 11, 12>(run, spreads, sealed),
                11 => quad::run::<SEAL, Start<1>, End<4>, 5, 7, 8>(run, spreads, sealed),
                12 => quad::run::<SEAL, Start<1>, End<3>, 5, 8, 9>(run, spreads, sealed),
                13 => quad::run::<SEAL, Start<1>, End<0>, 5, 8, 9>(run, spreads, sealed),
                14 => quad::run::<SEAL, Start<1>, End<1>, 5, 9, 10>(run, spreads, sealed),
                15 => quad::run::<SEAL, Start<1>, End<2>, 5, 10, 11>(run, spreads, sealed),
                16 => quad::run::<SEAL, Start<2>, End<4>, 9, 7, 9>(run, spreads, sealed),
                17 => quad::run::<SEAL, Start<2>, End<3>, 9, 8, 9>(run, spreads, sealed),
                18 => quad::run::<SEAL, Start<2>, End<0>, 9, 8, 9>(run, spreads, sealed),
                19 => quad::run::<SEAL, Start<2>, End<1>, 9, 9, 10>(run, spreads, sealed),
                20 => quad::run::<SEAL, Start<2>, End<2>, 9, 10, 11>(run, spreads, sealed),
                21 => quad::run::<SEAL, Rest<4>, Rest<4>, 4, 4, 4>(run, spreads, sealed),
                22 => quad::run::<SEAL, Rest<3>, Rest<3>, 5, 5, 5>(run, spreads, sealed),
                23 => quad::run::<SEAL, Rest<0>, Rest<0>, 5, 5, 5>(run, spreads, sealed),
                24 => quad::run::<SEAL, Rest<1>, Rest<1>, 6, 6, 6>(run, spreads, sealed),
                25 => quad::run::<SEAL, Rest<2>, Rest<2>, 7, 7, 7>(run, spreads, sealed),
                _ => 0,
            }
        }
    }
}

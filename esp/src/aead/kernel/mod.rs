//! Ciphers for batches of ESP packets on x86-64: the only module of the crate with `unsafe`
//! code. Here AES-GCM and GMAC; in [`chacha20poly1305`] and [`composed`] the other suites, with
//! tokens of their own.
//!
//! A [`Kernel`] can be had only from CPU detection and is stored in each key, so that no
//! instruction is reached which the CPU lacks. What may be unsafe rests on three contracts,
//! written at [`Packet`](packet::Packet) (pointers), [`Lanes`](lanes::Lanes) (instructions)
//! and [`Kernel`] (detection).
//!
//! Nothing depends on secrets but data: no branch, no address. Expanded keys are wiped when
//! they are dropped; round keys and powers of the hash key are only ever loaded from there
//! into registers. What else has to be on the stack, round keys spread over the lanes of a
//! register among it, is wiped before a batch is done.

#![allow(
    clippy::needless_late_init,
    clippy::needless_range_loop,
    reason = "rounds and lanes are numbered; an index says which"
)]
#![allow(
    clippy::absurd_extreme_comparisons,
    clippy::out_of_bounds_indexing,
    reason = "in unrolled loops the branches beyond the last index are never compiled in"
)]
#![allow(
    clippy::pointers_in_nomem_asm_block,
    reason = "the blocks are empty: they hide from the compiler where a pointer comes from"
)]

#[cfg(test)]
mod against_libraries;
pub(super) mod chacha20poly1305;
pub(super) mod composed;
mod ghash;
mod key;
mod known_answers;
mod lanes;
mod narrow;
mod packet;
mod prefetch;
mod selftest;
#[cfg(test)]
mod tests;
mod wide;
mod wipe;

use core::fmt;
use core::mem::MaybeUninit;
use std::sync::OnceLock;

use zeroize::Zeroize;

pub(crate) use key::{Form, GcmKey};
use packet::Packet;
pub(crate) use prefetch::{prefetch, prefetch_soon};

use super::Job;

/// A family of instructions that the running CPU has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// AVX-512, VAES, VPCLMULQDQ: four blocks in a register.
    Vaes512(Vaes512),
    /// AVX2, VAES, VPCLMULQDQ: two blocks in a register.
    Vaes256(Vaes256),
    /// AES-NI, PCLMULQDQ, SSE4.1: one block in a register.
    AesNi(AesNi),
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $($feature:tt),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name(());

        impl $name {
            fn detect() -> Option<Self> {
                ($(std::arch::is_x86_feature_detected!($feature))&&+).then_some(Self(()))
            }
        }
    };
}

token! {
    /// Proof that the CPU has what [`Kernel::Vaes512`] needs.
    Vaes512, "avx512f", "avx512bw", "avx512vl", "avx512dq", "vaes", "vpclmulqdq", "aes",
    "pclmulqdq", "avx2", "bmi1", "bmi2", "ssse3", "sse4.1"
}
token! {
    /// Proof that the CPU has what [`Kernel::Vaes256`] needs.
    Vaes256, "avx2", "vaes", "vpclmulqdq", "aes", "pclmulqdq", "ssse3", "sse4.1"
}
token! {
    /// Proof that the CPU has what [`Kernel::AesNi`] needs.
    AesNi, "aes", "pclmulqdq", "ssse3", "sse4.1"
}

impl Kernel {
    /// The kernels that this CPU has and that pass their self-test, fastest first.
    pub(crate) fn available() -> &'static [Kernel] {
        static AVAILABLE: OnceLock<Vec<Kernel>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            let detected = [
                Vaes512::detect().map(Kernel::Vaes512),
                Vaes256::detect().map(Kernel::Vaes256),
                AesNi::detect().map(Kernel::AesNi),
            ];
            detected
                .into_iter()
                .flatten()
                .filter(|kernel| selftest::passes(*kernel))
                .collect()
        })
    }

    /// The kernel of that name, if this CPU has it.
    pub(crate) fn by_name(name: &str) -> Option<Kernel> {
        let mut available = Self::available().iter().copied();
        available.find(|kernel| kernel.name() == name)
    }

    /// `vaes512`, `vaes256` or `aesni`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vaes512(_) => "vaes512",
            Self::Vaes256(_) => "vaes256",
            Self::AesNi(_) => "aesni",
        }
    }

    /// One for each kernel.
    const fn bit(self) -> u8 {
        match self {
            Self::Vaes512(_) => 1,
            Self::Vaes256(_) => 2,
            Self::AesNi(_) => 4,
        }
    }

    /// Blocks in a vector.
    const fn lanes(self) -> usize {
        match self {
            Self::Vaes512(_) => 4,
            Self::Vaes256(_) => 2,
            Self::AesNi(_) => 1,
        }
    }

    /// Seals or opens packets that all have keys of this kernel.
    #[inline]
    fn crypt<const SEAL: bool>(self, packets: &mut [Packet]) {
        match self {
            // SAFETY: a `Kernel` is made only where the CPU has what it needs.
            Self::Vaes512(_) => unsafe { wide::crypt::<SEAL>(packets) },
            // SAFETY: a `Kernel` is made only where the CPU has what it needs.
            Self::Vaes256(_) => unsafe { narrow::vaes256::<SEAL>(packets) },
            // SAFETY: as before, and the CPU has AVX.
            Self::AesNi(_) if std::arch::is_x86_feature_detected!("avx") => unsafe {
                narrow::aesni_avx::<SEAL>(packets);
            },
            // SAFETY: a `Kernel` is made only where the CPU has what it needs.
            Self::AesNi(_) => unsafe { narrow::aesni::<SEAL>(packets) },
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Packets that are prepared before any is worked on.
const BATCH: usize = 64;

/// Seals the packets of all jobs that have a key of a kernel; returns how many have.
///
/// A packet that is too short for its header and ICV becomes zero.
pub(crate) fn seal(jobs: &mut [Job<'_>]) -> usize {
    let mut taken = crypt::<true>(jobs);
    if taken < jobs.len() {
        taken += chacha20poly1305::seal(jobs);
    }
    if taken < jobs.len() {
        taken += composed::seal(jobs);
    }
    taken
}

/// Opens the packets of all jobs that have a key of a kernel; returns how many have.
///
/// Sets [`Job::authentic`]; the text of a packet that is not authentic becomes zero.
pub(crate) fn open(jobs: &mut [Job<'_>]) -> usize {
    let mut taken = crypt::<false>(jobs);
    if taken < jobs.len() {
        taken += chacha20poly1305::open(jobs);
    }
    if taken < jobs.len() {
        taken += composed::open(jobs);
    }
    taken
}

fn crypt<const SEAL: bool>(jobs: &mut [Job<'_>]) -> usize {
    let mut taken = 0;
    for jobs in jobs.chunks_mut(BATCH) {
        // Once, unless keys of several kernels meet in one batch.
        let mut done = 0;
        loop {
            let keys = jobs.iter().filter_map(|job| job.cipher.gcm_key());
            let mut kernels = keys.map(|key| key.kernel);
            let Some(kernel) = kernels.find(|kernel| kernel.bit() & done == 0) else {
                break;
            };
            done |= kernel.bit();
            // SAFETY: a `Kernel` is made only where the CPU has what it needs, and each needs
            // these.
            let batch = unsafe { crypt_batch::<SEAL>(jobs, kernel) };
            taken += batch.taken;
            if !batch.others {
                break;
            }
        }
    }
    taken
}

/// What [`crypt_batch`] has found.
struct Batch {
    /// Jobs of the kernel.
    taken: usize,
    /// Whether there are jobs of other kernels.
    others: bool,
}

/// The jobs whose keys have this kernel, at most [`BATCH`].
#[target_feature(enable = "ssse3,sse4.1")]
fn crypt_batch<const SEAL: bool>(jobs: &mut [Job<'_>], kernel: Kernel) -> Batch {
    let mut done = 0;
    if let Kernel::Vaes512(_) = kernel {
        // SAFETY: a `Kernel` is made only where the CPU has what it needs.
        done = unsafe { wide::crypt_jobs::<SEAL>(jobs) };
        if done.count_ones() as usize == jobs.len() {
            return Batch {
                taken: jobs.len(),
                others: false,
            };
        }
    }
    let mut places = [const { MaybeUninit::<Packet>::uninit() }; BATCH];
    let mut count = 0;
    let mut short = 0;
    let mut others = false;
    // No branch for each job on whether it is done, which nobody could predict.
    let all = u64::MAX
        .checked_shr((BATCH - jobs.len()) as u32)
        .unwrap_or(0);
    let mut left = all & !done;
    while left != 0 {
        let index = left.trailing_zeros() as usize;
        left &= left - 1;
        let job = &mut jobs[index];
        let Some(key) = job.cipher.gcm_key() else {
            continue;
        };
        if key.kernel != kernel {
            others = true;
            continue;
        }
        job.authentic = false;
        let Some(place) = places.get_mut(count) else {
            break;
        };
        if Packet::esp(place, key, job.sequence, job.esn, job.esp, index).is_some() {
            count += 1;
        } else {
            short += 1;
            if SEAL {
                // It must not leave in clear.
                job.esp.zeroize();
            }
        }
    }
    // SAFETY: the first `count` have been written.
    let packets = unsafe { places[..count].assume_init_mut() };
    kernel.crypt::<SEAL>(packets);
    if !SEAL {
        for packet in packets {
            let job = &mut jobs[packet.shape.index()];
            job.authentic = packet.authentic;
            if !packet.authentic {
                let end = job.esp.len() - usize::from(packet.shape.icv_len());
                job.esp[usize::from(packet.key().header_len)..end].zeroize();
            }
        }
    }
    Batch {
        taken: count + short + done.count_ones() as usize,
        others,
    }
}

impl GcmKey {
    /// Encrypts `text` in place and writes the tag, of up to 16 bytes, to `tag`: the same
    /// code as for ESP packets, with any authenticated data. False, and nothing done, for
    /// text too long for the mode.
    #[must_use]
    pub(crate) fn seal_raw(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8],
    ) -> bool {
        let Some(mut packet) = Packet::raw(self, nonce, aad, text, tag) else {
            return false;
        };
        self.kernel
            .crypt::<true>(core::slice::from_mut(&mut packet));
        true
    }

    /// Decrypts `text` in place if `tag`, of up to 16 bytes, is right; otherwise the text
    /// becomes zero.
    #[must_use]
    pub(crate) fn open_raw(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8],
    ) -> bool {
        let mut given = [0; 16];
        let authentic = given.get_mut(..tag.len()).is_some_and(|given| {
            given.copy_from_slice(tag);
            Packet::raw(self, nonce, aad, text, given).is_some_and(|mut packet| {
                self.kernel
                    .crypt::<false>(core::slice::from_mut(&mut packet));
                packet.authentic
            })
        });
        if !authentic {
            text.zeroize();
        }
        authentic
    }
}

impl fmt::Debug for GcmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GcmKey")
            .field("kernel", &self.kernel)
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}

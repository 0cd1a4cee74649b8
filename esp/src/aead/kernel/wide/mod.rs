//! Four packets at a time, or one large one, in vectors of four blocks.
//!
//! **Columns.** Of four small packets, block n of each goes to one register: every lane is a
//! packet of its own, with its own key if it must be. No lane is idle, and the reduction of
//! four hashes costs what one costs.
//!
//! **Row.** Of a large packet, four neighbouring blocks go to one register.
//!
//! Either way the work is cut into chunks of up to nine registers. A [`Pipeline`] carries the
//! hash of each chunk into the AES rounds of the next, also from one packet to the next.
//! Packets end together (the shorter of a group start later, a row starts in the middle of a
//! register), so that powers of the hash key do not depend on their length.

mod columns;
mod engine;
mod row;

use core::arch::x86_64::*;

use self::engine::{BLOCKS, Keys, Pending, Products, STATES};
use super::packet::Packet;

/// What is to be done once the pending blocks have been multiplied.
#[derive(Clone, Copy)]
enum Then {
    /// Nothing was pending.
    Nothing,
    /// Add the sum to the first block of the next chunk.
    GoOn,
    /// The tags of a group, one per lane.
    FinishColumns,
    /// The tag of a row: add the last vector, bring the lanes together.
    FinishRow,
}

/// Hash work that waits for AES rounds to be mixed with.
struct Pipeline {
    pending: Pending,
    then: Then,
    /// Packets whose last blocks are pending: a group, or one in a row.
    packets: [*mut Packet; 4],
    count: usize,
    /// Encrypted counter blocks for their tags.
    masks: __m512i,
}

/// Packets that are put in order together.
const BATCH: usize = 64;
/// Blocks of text of a packet that can be one of a group.
const MOST_BLOCKS: usize = 20;
/// Blocks by which the packets of a group may differ.
const SPREAD: u8 = 3;
/// The class of packets that are worked on alone.
const LARGE: u8 = 3 * (MOST_BLOCKS as u8 + 1 + SPREAD);

/// Seals or opens packets, whatever their keys and lengths.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) fn crypt<const SEAL: bool>(packets: &mut [Packet]) {
    let mut line = Pipeline::new();
    for packets in packets.chunks_mut(BATCH) {
        let order = Order::new(packets);
        let mut start = 0;
        while start < packets.len() {
            let smallest = order.classes[start];
            let mut end = start + 1;
            while end < packets.len().min(start + 4)
                && order.classes[end] < LARGE
                && order.classes[end] <= smallest + SPREAD
            {
                end += 1;
            }
            let mut group = [core::ptr::null_mut(); 4];
            for (packet, i) in group.iter_mut().zip(&order.indices[start..end]) {
                *packet = &mut packets[usize::from(*i)];
            }
            // SAFETY: the pointers are those of packets that are not moved before `drain`;
            // this function enables what both need.
            unsafe {
                if end == start + 1 {
                    row::crypt::<SEAL>(&mut line, group[0]);
                } else {
                    columns::crypt::<SEAL>(&mut line, &group[..end - start]);
                }
            }
            start = end;
        }
        // SAFETY: this function enables what it needs.
        unsafe { line.drain::<SEAL>() };
    }
}

/// Packets by class.
struct Order {
    indices: [u8; BATCH],
    classes: [u8; BATCH],
}

impl Order {
    #[inline]
    fn new(packets: &[Packet]) -> Self {
        let mut order = Self {
            indices: core::array::from_fn(|i| i as u8),
            classes: [0; BATCH],
        };
        let mut different = 0;
        for (class, packet) in order.classes.iter_mut().zip(packets) {
            *class = class_of(packet);
            different |= *class ^ class_of(&packets[0]);
        }
        if different != 0 {
            order.sort(packets.len());
        }
        order
    }

    /// Counts, then places.
    fn sort(&mut self, len: usize) {
        let mut places = [0u8; 256];
        for class in &self.classes[..len] {
            places[usize::from(*class)] += 1;
        }
        let mut sum = 0;
        for place in &mut places[..=usize::from(LARGE)] {
            sum += *place;
            *place = sum - *place;
        }
        let classes = self.classes;
        for (i, class) in classes[..len].iter().enumerate() {
            let place = &mut places[usize::from(*class)];
            self.indices[usize::from(*place)] = i as u8;
            self.classes[usize::from(*place)] = *class;
            *place += 1;
        }
    }
}

/// Packets of neighbouring classes can be worked on together: the number of blocks, counted
/// from another start for each length of keys.
#[inline(always)]
fn class_of(packet: &Packet) -> u8 {
    let blocks = packet.len.div_ceil(16);
    if blocks > MOST_BLOCKS {
        LARGE
    } else {
        (packet.key().rounds as u8 / 2 - 5) * (MOST_BLOCKS as u8 + 1 + SPREAD) + blocks as u8
    }
}

impl Pipeline {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    fn new() -> Self {
        let zero = _mm512_setzero_si512();
        Self {
            pending: Pending {
                blocks: [zero; BLOCKS],
                skip: 0,
                count: 0,
                powers: [core::ptr::null(); 4],
                same: true,
            },
            then: Then::Nothing,
            packets: [core::ptr::null_mut(); 4],
            count: 0,
            masks: zero,
        }
    }

    /// Encrypts the first `COUNT` states and completes what was pending. Returns what is to
    /// be added to the first hash block of this chunk.
    ///
    /// # Safety
    /// As for [`engine::run`]; `self.packets` are valid.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn advance<const COUNT: usize, const SEAL: bool>(
        &mut self,
        states: &mut [__m512i; STATES],
        keys: &Keys,
    ) -> __m512i {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let products = engine::run::<COUNT>(states, keys, &self.pending);
            self.complete::<SEAL>(products)
        }
    }

    /// # Safety
    /// The CPU has what the kernel needs; `self.packets` are valid.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn complete<const SEAL: bool>(&mut self, products: Products) -> __m512i {
        // SAFETY: the caller keeps the contract.
        unsafe {
            match self.then {
                Then::Nothing => {}
                Then::GoOn => return products.reduce(),
                Then::FinishColumns => {
                    let tags = _mm512_xor_si512(reverse_bytes(products.reduce()), self.masks);
                    let tags = [
                        _mm512_castsi512_si128(tags),
                        _mm512_extracti32x4_epi32(tags, 1),
                        _mm512_extracti32x4_epi32(tags, 2),
                        _mm512_extracti32x4_epi32(tags, 3),
                    ];
                    for (packet, tag) in self.packets[..self.count].iter().zip(tags) {
                        finish::<SEAL>(*packet, tag);
                    }
                }
                Then::FinishRow => {
                    let packet = self.packets[0];
                    let last = _mm512_xor_si512(products.reduce(), self.pending.blocks[0]);
                    let rising = _mm512_loadu_si512((*packet).key().powers.as_ptr().cast());
                    let falling = _mm512_shuffle_i64x2(rising, rising, 0x1b);
                    let sum = reverse_bytes(Products::of(last, falling).reduce());
                    let sum = _mm512_xor_si512(sum, self.masks);
                    let half = _mm256_xor_si256(
                        _mm512_castsi512_si256(sum),
                        _mm512_extracti64x4_epi64(sum, 1),
                    );
                    let tag = _mm_xor_si128(
                        _mm256_castsi256_si128(half),
                        _mm256_extracti128_si256(half, 1),
                    );
                    finish::<SEAL>(packet, tag);
                }
            }
            _mm512_setzero_si512()
        }
    }

    /// Completes what is pending, without AES to mix it with.
    ///
    /// # Safety
    /// The CPU has what the kernel needs; `self.packets` are valid.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn drain<const SEAL: bool>(&mut self) {
        // SAFETY: the caller keeps the contract; no key is read for no states.
        unsafe {
            let products = engine::multiply(&self.pending);
            self.complete::<SEAL>(products);
        }
        self.pending.count = 0;
        self.then = Then::Nothing;
    }
}

/// Writes or compares the ICV.
///
/// # Safety
/// The packet is valid, the CPU has what the kernel needs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
unsafe fn finish<const SEAL: bool>(packet: *mut Packet, tag: __m128i) {
    // SAFETY: the mask selects the bytes of the ICV, for which the pointer is valid.
    unsafe {
        let packet = &mut *packet;
        let mask = _bzhi_u32(0xffff, packet.icv_len as u32) as u16;
        if SEAL {
            _mm_mask_storeu_epi8(packet.icv.cast(), mask, tag);
        } else {
            let given = _mm_maskz_loadu_epi8(mask, packet.icv.cast());
            packet.authentic = _mm_mask_cmpneq_epu8_mask(mask, tag, given) == 0;
        }
    }
}

/// The bytes of each lane in the opposite order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn reverse_bytes(vector: __m512i) -> __m512i {
    const INDICES: i128 = 0x00010203_04050607_08090a0b_0c0d0e0f;
    _mm512_shuffle_epi8(vector, lanes(INDICES))
}

/// The same block in each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn lanes(block: i128) -> __m512i {
    // SAFETY: the same size, and every bit pattern is valid.
    _mm512_broadcast_i32x4(unsafe { core::mem::transmute::<i128, __m128i>(block) })
}

/// Counters in the last four bytes of each lane from the CPU's byte order to the network's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn counter_blocks(counters: __m512i) -> __m512i {
    const INDICES: i128 = 0x0c0d0e0f_0b0a0908_07060504_03020100;
    _mm512_shuffle_epi8(counters, lanes(INDICES))
}

/// Adds to the counters in the last four bytes of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn count_up(counters: __m512i, by: i32) -> __m512i {
    _mm512_add_epi32(counters, lanes(i128::from(by) << 96))
}

/// The bytes of a vector at `offset` from the start of a text (before it, if negative) that
/// belong to its first `len` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn bytes_of_text(offset: isize, len: usize) -> u64 {
    let end = (len as isize - offset).clamp(0, 64) as u32;
    let start = (-offset).clamp(0, 64) as u32;
    _bzhi_u64(!0, end) & !_bzhi_u64(!0, start)
}

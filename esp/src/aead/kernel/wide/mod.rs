//! Four packets at a time, or one large one, in vectors of four blocks.
//!
//! **Columns.** Of four small packets, block n of each goes to one register: every lane is a
//! packet of its own, with its own key if it must be. No lane is idle, and the reduction of
//! four hashes costs what one costs.
//!
//! **Row.** Of a large packet, four neighbouring blocks go to one register.
//!
//! Either way the work is cut into chunks of up to nine registers. While the AES rounds of a
//! chunk run, the one before it, often of another packet, is finished on the [`Line`]: its
//! keystream is added to the text, and its hash computed. Packets end together (the shorter
//! of a group start later, a row starts in the middle of a register), so that powers of the
//! hash key do not depend on their length.

mod aes;
mod columns;
mod hash;
mod order;
mod row;

use core::arch::x86_64::*;

use zeroize::Zeroize;

use self::aes::{Keys, STATES, last_round, round, unrolled, whiten};
use self::hash::{Powers, Products};
use self::order::Order;
use super::packet::Packet;

/// Vectors of hash input of a chunk at most: its text, authenticated data and lengths.
const BLOCKS: usize = STATES + 1;

/// A chunk that AES has gone over and that is to be finished.
#[derive(Clone, Copy)]
enum Task {
    Nothing,
    Columns(columns::Chunk),
    Row(row::Chunk),
}

/// What waits to be mixed with AES rounds.
#[repr(C, align(64))]
struct Line {
    /// Counter blocks of the chunk to come.
    counters: [__m512i; STATES],
    keystream: [__m512i; STATES],
    /// Hash input, the last vector first.
    blocks: [__m512i; BLOCKS],
    /// Vectors of hash input.
    count: usize,
    powers: Powers,
    /// The hash of the chunks before, to be added to the first vector.
    sum: __m512i,
    task: Task,
    /// Encrypted counter blocks for the tags.
    masks: __m512i,
}

/// Seals or opens packets, whatever their keys and lengths.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) fn crypt<const SEAL: bool>(packets: &mut [Packet]) {
    let mut line = Line::new();
    for packets in packets.chunks_mut(order::BATCH) {
        let order = Order::new(packets);
        let mut groups = [columns::Group::new(), columns::Group::new()];
        let mut turn = false;
        let mut start = 0;
        while start < packets.len() {
            let end = order.group_end(start, packets.len());
            let mut members = [core::ptr::null_mut(); 4];
            for (packet, i) in members.iter_mut().zip(&order.indices[start..end]) {
                *packet = &mut packets[usize::from(*i)];
            }
            // SAFETY: the pointers are those of packets and groups that are not moved before
            // `drain`; this function enables what the CPU needs. Of the two groups, the one
            // that is pending is left alone.
            unsafe {
                if end == start + 1 {
                    row::crypt::<SEAL>(&mut line, members[0]);
                } else {
                    turn = !turn;
                    let group = &mut groups[usize::from(turn)];
                    columns::crypt::<SEAL>(&mut line, group, &members[..end - start]);
                }
            }
            start = end;
        }
        // SAFETY: as above.
        unsafe { line.drain::<SEAL>() };
    }
    line.wipe();
}

impl Line {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    fn new() -> Self {
        let zero = _mm512_setzero_si512();
        Self {
            counters: [zero; STATES],
            keystream: [zero; STATES],
            blocks: [zero; BLOCKS],
            count: 0,
            powers: Powers {
                lanes: [core::ptr::null(); 4],
                same: true,
            },
            sum: zero,
            task: Task::Nothing,
            masks: zero,
        }
    }

    /// Keystream does not stay on the stack.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    fn wipe(&mut self) {
        self.keystream.zeroize();
        self.masks.zeroize();
    }

    /// A part of the work on the last chunk: text in the first slots, its hash in the later.
    ///
    /// # Safety
    /// The CPU has what the kernel needs; the packets of the task are valid.
    #[inline(always)]
    unsafe fn work<const SEAL: bool, const SLOT: usize>(
        &mut self,
        products: &mut Products,
        pair: &mut [__m512i; 2],
    ) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            match self.task {
                Task::Nothing => {}
                Task::Columns(chunk) => {
                    if SLOT < 2 {
                        columns::finish_text::<SEAL>(self, &chunk, SLOT);
                    } else if SLOT < 7 {
                        self.hash_two(products, 2 * (SLOT - 2));
                    }
                }
                Task::Row(chunk) => {
                    let n = SLOT / 2 * 2;
                    if SLOT % 2 == 0 {
                        if n < self.count {
                            pair[0] = row::finish_text::<SEAL>(self, &chunk, n);
                        }
                        if n + 1 < self.count {
                            pair[1] = row::finish_text::<SEAL>(self, &chunk, n + 1);
                        }
                    } else if n + 1 < self.count {
                        products.add_two(*pair, &self.powers, n);
                    } else if n < self.count {
                        products.add(pair[0], &self.powers, n);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As for [`Line::work`].
    #[inline(always)]
    unsafe fn hash_two(&mut self, products: &mut Products, n: usize) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if n + 1 < self.count {
                products.add_two([self.blocks[n], self.blocks[n + 1]], &self.powers, n);
            } else if n < self.count {
                products.add(self.blocks[n], &self.powers, n);
            }
        }
    }

    /// Ends the work on the last chunk: tags, or the sum for the next chunk.
    ///
    /// # Safety
    /// As for [`Line::work`].
    #[inline(always)]
    unsafe fn complete<const SEAL: bool>(&mut self, products: Products) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let sum = products.reduce();
            self.sum = _mm512_setzero_si512();
            match self.task {
                Task::Columns(chunk) if chunk.last => {
                    columns::finish_tags::<SEAL>(&chunk, sum, self.masks);
                }
                Task::Row(chunk) if chunk.last => {
                    row::finish_tag::<SEAL>(&chunk, sum, self.masks);
                }
                Task::Columns(_) | Task::Row(_) => self.sum = sum,
                Task::Nothing => {}
            }
        }
    }

    /// Encrypts the first `COUNT` counter blocks to keystream, and finishes the last chunk
    /// meanwhile.
    ///
    /// # Safety
    /// As for [`Line::work`]; the keys are valid.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn encrypt<const SEAL: bool, const COUNT: usize>(&mut self, keys: &Keys) {
        let states = &mut [_mm512_setzero_si512(); STATES];
        unrolled!(I < COUNT, {
            states[I] = self.counters[I];
        });
        let mut products = Products::zero();
        let mut pair = [self.sum; 2];
        // SAFETY: the caller keeps the contract.
        unsafe {
            let start = keys.from(0);
            whiten::<COUNT, 0>(states, &start);
            if keys.extra > 0 {
                round::<COUNT, 16>(states, &start);
                round::<COUNT, 32>(states, &start);
                if keys.extra > 2 {
                    round::<COUNT, 48>(states, &start);
                    round::<COUNT, 64>(states, &start);
                }
            }
            let keys = keys.from(keys.extra);
            round::<COUNT, 16>(states, &keys);
            self.work::<SEAL, 0>(&mut products, &mut pair);
            round::<COUNT, 32>(states, &keys);
            self.work::<SEAL, 1>(&mut products, &mut pair);
            round::<COUNT, 48>(states, &keys);
            self.work::<SEAL, 2>(&mut products, &mut pair);
            round::<COUNT, 64>(states, &keys);
            self.work::<SEAL, 3>(&mut products, &mut pair);
            round::<COUNT, 80>(states, &keys);
            self.work::<SEAL, 4>(&mut products, &mut pair);
            round::<COUNT, 96>(states, &keys);
            self.work::<SEAL, 5>(&mut products, &mut pair);
            round::<COUNT, 112>(states, &keys);
            self.work::<SEAL, 6>(&mut products, &mut pair);
            round::<COUNT, 128>(states, &keys);
            self.work::<SEAL, 7>(&mut products, &mut pair);
            round::<COUNT, 144>(states, &keys);
            self.complete::<SEAL>(products);
            last_round::<COUNT, 160>(states, &keys);
        }
        unrolled!(I < COUNT, {
            self.keystream[I] = states[I];
        });
    }

    /// Finishes the last chunk, without AES to mix it with.
    ///
    /// # Safety
    /// As for [`Line::work`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn drain<const SEAL: bool>(&mut self) {
        let mut products = Products::zero();
        let mut pair = [self.sum; 2];
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.work::<SEAL, 0>(&mut products, &mut pair);
            self.work::<SEAL, 1>(&mut products, &mut pair);
            self.work::<SEAL, 2>(&mut products, &mut pair);
            self.work::<SEAL, 3>(&mut products, &mut pair);
            self.work::<SEAL, 4>(&mut products, &mut pair);
            self.work::<SEAL, 5>(&mut products, &mut pair);
            self.work::<SEAL, 6>(&mut products, &mut pair);
            self.work::<SEAL, 7>(&mut products, &mut pair);
            self.complete::<SEAL>(products);
        }
        self.task = Task::Nothing;
    }
}

/// Writes or compares the ICV.
///
/// # Safety
/// The packet is valid, the CPU has what the kernel needs.
#[inline(always)]
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

/// The bytes of a vector at `offset` from the start of a text (before it, if negative) that
/// belong to its first `len` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn bytes_of_text(offset: isize, len: usize) -> u64 {
    let end = (len as isize - offset).clamp(0, 64) as u32;
    let start = (-offset).clamp(0, 64) as u32;
    _bzhi_u64(!0, end) & !_bzhi_u64(!0, start)
}

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
use self::hash::Products;
use self::order::Order;
use super::packet::Packet;

/// Vectors of hash input of a chunk at most: its text, authenticated data and lengths.
const BLOCKS: usize = STATES + 1;

/// What kind of chunk AES has gone over and is to be finished.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Columns,
    /// The first chunk of a packet.
    RowStart,
    /// Any other.
    Row,
}

/// Work to be mixed with AES rounds, as a constant.
const COLUMNS: u8 = 0;
const ROW_START: u8 = 1;
const ROW: u8 = 2;

/// A chunk that waits to be finished.
#[repr(C, align(64))]
struct Line {
    /// Counter blocks of the chunk to come.
    counters: [__m512i; STATES],
    keystream: [__m512i; STATES],
    /// Hash input of columns, the last first.
    blocks: [__m512i; BLOCKS],
    /// The hash of the chunks before, to be added to the first vector.
    sum: __m512i,
    /// Encrypted counter blocks for the tags.
    masks: __m512i,
    kind: Kind,
    columns: columns::Chunk,
    row: row::Chunk,
}

/// Seals or opens packets, whatever their keys and lengths.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) fn crypt<const SEAL: bool>(packets: &mut [Packet]) {
    let mut line = Line::new();
    for packets in packets.chunks_mut(order::BATCH) {
        let order = Order::new(packets);
        let mut groups = [columns::Group::EMPTY, columns::Group::EMPTY];
        let mut turn = 0;
        let mut start = 0;
        let base = packets.as_mut_ptr();
        let member = |n: usize| base.wrapping_add(usize::from(order.indices[n]));
        while start < packets.len() {
            let end = order.group_end(start, packets.len());
            // SAFETY: the pointers are those of packets and groups that are not moved before
            // `drain`; this function enables what the CPU needs. Of the two groups, the one
            // that is pending is left alone.
            unsafe {
                if end == start + 1 {
                    row::crypt::<SEAL>(&mut line, member(start));
                } else {
                    let group = &mut *opaque(&raw mut groups[turn]);
                    turn ^= 1;
                    let [a, b, c, d] = [0, 1, 2, 3].map(|n| (start + n).min(end - 1));
                    let members = [member(a), member(b), member(c), member(d)];
                    if order.even(start) {
                        group.even(members);
                    } else {
                        group.mixed(&members[..end - start]);
                    }
                    columns::crypt::<SEAL>(&mut line, group);
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
            sum: zero,
            masks: zero,
            kind: Kind::Columns,
            columns: columns::Chunk::NOTHING,
            row: row::Chunk::NOTHING,
        }
    }

    /// Keystream does not stay on the stack.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    fn wipe(&mut self) {
        self.keystream.zeroize();
        self.masks.zeroize();
    }

    /// Encrypts the first `COUNT` counter blocks of columns.
    ///
    /// # Safety
    /// The CPU has what the kernel needs; the keys and the packets that are pending are valid.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn encrypt_columns<const SEAL: bool, const COUNT: usize>(&mut self, keys: &Keys) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if self.kind != Kind::Columns {
                self.drain::<SEAL>();
            }
            if keys.same {
                self.encrypt::<SEAL, true, COLUMNS, COUNT>(keys);
            } else {
                self.encrypt::<SEAL, false, COLUMNS, COUNT>(keys);
            }
        }
    }

    /// Encrypts the first `COUNT` counter blocks of a row.
    ///
    /// # Safety
    /// As for [`Line::encrypt_columns`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn encrypt_row<const SEAL: bool, const COUNT: usize>(&mut self, keys: &Keys) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if self.kind == Kind::Row {
                self.encrypt::<SEAL, true, ROW, COUNT>(keys);
            } else {
                if self.kind == Kind::Columns {
                    self.drain::<SEAL>();
                }
                self.encrypt::<SEAL, true, ROW_START, COUNT>(keys);
            }
        }
    }

    /// Encrypts the first `COUNT` counter blocks to keystream, and finishes the last chunk
    /// meanwhile, which is one of `WORK`.
    ///
    /// # Safety
    /// As for [`Line::encrypt_columns`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn encrypt<const SEAL: bool, const SAME: bool, const WORK: u8, const COUNT: usize>(
        &mut self,
        keys: &Keys,
    ) {
        let states = &mut [_mm512_setzero_si512(); STATES];
        unrolled!(I < COUNT, {
            states[I] = self.counters[I];
        });
        let mut products = Products::zero();
        let mut pair = [self.sum; 2];
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
            self.work::<SEAL, WORK, 0>(&mut products, &mut pair);
            round::<SAME, COUNT, 32>(states, &keys);
            self.work::<SEAL, WORK, 1>(&mut products, &mut pair);
            round::<SAME, COUNT, 48>(states, &keys);
            self.work::<SEAL, WORK, 2>(&mut products, &mut pair);
            round::<SAME, COUNT, 64>(states, &keys);
            self.work::<SEAL, WORK, 3>(&mut products, &mut pair);
            round::<SAME, COUNT, 80>(states, &keys);
            self.work::<SEAL, WORK, 4>(&mut products, &mut pair);
            round::<SAME, COUNT, 96>(states, &keys);
            self.work::<SEAL, WORK, 5>(&mut products, &mut pair);
            round::<SAME, COUNT, 112>(states, &keys);
            self.work::<SEAL, WORK, 6>(&mut products, &mut pair);
            round::<SAME, COUNT, 128>(states, &keys);
            self.work::<SEAL, WORK, 7>(&mut products, &mut pair);
            round::<SAME, COUNT, 144>(states, &keys);
            self.complete::<SEAL, WORK>(products);
            last_round::<SAME, COUNT, 160>(states, &keys);
        }
        unrolled!(I < COUNT, {
            self.keystream[I] = states[I];
        });
    }

    /// A part of the work on the last chunk: its text, its hash.
    ///
    /// # Safety
    /// As for [`Line::encrypt_columns`].
    #[inline(always)]
    unsafe fn work<const SEAL: bool, const WORK: u8, const SLOT: usize>(
        &mut self,
        products: &mut Products,
        pair: &mut [__m512i; 2],
    ) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            if WORK == COLUMNS {
                columns::work::<SEAL, SLOT>(self, products);
            } else if WORK == ROW_START {
                row::work::<SEAL, true, SLOT>(self, products, pair);
            } else {
                row::work::<SEAL, false, SLOT>(self, products, pair);
            }
            products.pin();
        }
    }

    /// Ends the work on the last chunk: tags, or the sum for the next chunk.
    ///
    /// # Safety
    /// As for [`Line::encrypt_columns`].
    #[inline(always)]
    unsafe fn complete<const SEAL: bool, const WORK: u8>(&mut self, products: Products) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            self.sum = products.reduce();
            if WORK == COLUMNS {
                if self.columns.last {
                    columns::finish_tags::<SEAL>(self);
                }
            } else if self.row.last {
                row::finish_tag::<SEAL>(self);
            }
        }
    }

    /// Finishes the last chunk, without AES to mix it with.
    ///
    /// # Safety
    /// As for [`Line::encrypt_columns`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    unsafe fn drain<const SEAL: bool>(&mut self) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            match self.kind {
                Kind::Columns => self.drain_work::<SEAL, COLUMNS>(),
                Kind::RowStart => self.drain_work::<SEAL, ROW_START>(),
                Kind::Row => self.drain_work::<SEAL, ROW>(),
            }
        }
        self.kind = Kind::Columns;
        self.columns = columns::Chunk::NOTHING;
        self.row = row::Chunk::NOTHING;
    }

    /// # Safety
    /// As for [`Line::encrypt_columns`].
    #[inline(always)]
    unsafe fn drain_work<const SEAL: bool, const WORK: u8>(&mut self) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let mut products = Products::zero();
            let mut pair = [self.sum; 2];
            self.work::<SEAL, WORK, 0>(&mut products, &mut pair);
            self.work::<SEAL, WORK, 1>(&mut products, &mut pair);
            self.work::<SEAL, WORK, 2>(&mut products, &mut pair);
            self.work::<SEAL, WORK, 3>(&mut products, &mut pair);
            self.work::<SEAL, WORK, 4>(&mut products, &mut pair);
            self.work::<SEAL, WORK, 5>(&mut products, &mut pair);
            self.work::<SEAL, WORK, 6>(&mut products, &mut pair);
            self.work::<SEAL, WORK, 7>(&mut products, &mut pair);
            self.complete::<SEAL, WORK>(products);
        }
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

/// The same pointer, of which the compiler does not know what it may be.
#[inline(always)]
fn opaque<T>(mut pointer: *mut T) -> *mut T {
    // SAFETY: nothing is executed.
    unsafe {
        core::arch::asm!(
            "/* {} */",
            inout(reg) pointer,
            options(nomem, nostack, preserves_flags)
        );
    }
    pointer
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

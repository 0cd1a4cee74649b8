//! Four packets at a time, or one large one, in vectors of four blocks.
//!
//! **Columns.** Of four small packets, block n of each goes to one register: every lane is a
//! packet of its own, with its own key if it must be. No lane is idle, and the reduction of
//! four hashes costs what one costs.
//!
//! Packets of the same shape (the same number of blocks, at least 33 bytes of text; beyond 2,592 bytes the
//! same end) are taken four at a time straight from their jobs, by code that knows the shape
//! ([`quad`], chosen by [`shapes`]).
//! Everything else is made a [`Packet`] first; the columns of packets that differ go as follows.
//!
//! Columns go in chunks of up to nine registers through three stages of a [`Line`]: AES, text,
//! hash. While the AES rounds of a chunk run, keystream is added to the text of the chunk before
//! it, and the hash of the one before that is computed, often those of other packets: three
//! independent streams of instructions, one of which keeps the AES units busy while the others
//! wait for their results.
//!
//! **Row.** Of a large packet, four neighbouring blocks go to one register, and up to eight
//! registers through one piece of assembly ([`chunk`]), with the hash of the chunk before.
//!
//! Packets end together (the shorter of a group start later, a row starts in the middle of a
//! register), so that powers of the hash key do not depend on their length.

mod aes;
mod chunk;
mod columns;
mod hash;
mod line;
mod order;
mod quad;
mod row;
mod shapes;
mod spread;
mod unit;

use core::arch::x86_64::*;

use self::line::Line;
use self::order::{BATCH, Order};
use self::row::Rows;
pub(super) use self::shapes::{class_of_key, crypt as crypt_jobs};
use self::unit::Unit;
use super::packet::Packet;

/// Seals or opens packets, whatever their keys and lengths.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
pub(super) fn crypt<const SEAL: bool>(packets: &mut [Packet]) {
    let mut line = Line::new();
    let mut rows = Rows::new();
    // One for each stage.
    let mut units = [Unit::new(), Unit::new(), Unit::new()];
    let mut turn = 0;
    for packets in packets.chunks_mut(BATCH) {
        let order = Order::new(packets);
        let base = packets.as_mut_ptr();
        let member = |n: usize| base.wrapping_add(order.index(n));
        let mut start = 0;
        while start < packets.len() {
            let end = order.group_end(start, packets.len());
            // SAFETY: the pointers are those of packets and units that are not moved before
            // `drain`; a unit is used again when the two after it have begun, and then its
            // last chunk has left the line. This function enables what the CPU needs.
            unsafe {
                if end == start + 1 && (*member(start)).len >= row::LEAST {
                    rows.crypt::<SEAL>(member(start));
                } else {
                    turn = if turn == 2 { 0 } else { turn + 1 };
                    let unit = &mut *opaque(&raw mut units[turn]);
                    if order.even(start, end) {
                        let [b, c, d] = [1, 2, 3].map(|n| member(start + n));
                        unit.even([member(start), b, c, d]);
                    } else {
                        let members = [0, 1, 2, 3].map(|n| member((start + n).min(end - 1)));
                        unit.mixed(members, end - start);
                    }
                    columns::crypt::<SEAL>(&mut line, unit);
                }
            }
            start = end;
        }
        // SAFETY: as above.
        unsafe {
            line.drain::<SEAL>();
            rows.drain::<SEAL>();
        };
    }
    line.wipe();
    for unit in &mut units {
        unit.wipe();
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
    _mm512_shuffle_epi8(vector, reversed())
}

/// For each byte of a lane, the one it is exchanged with.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
fn reversed() -> __m512i {
    lanes(0x00010203_04050607_08090a0b_0c0d0e0f)
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

/// Writes or compares an ICV.
///
/// # Safety
/// The packet is valid, the CPU has what the kernel needs.
#[inline(always)]
unsafe fn finish<const SEAL: bool>(packet: *mut Packet, tag: __m128i) {
    // SAFETY: the mask selects the bytes of the ICV, for which the pointer is valid.
    unsafe {
        let packet = &mut *packet;
        let mask = _bzhi_u32(0xffff, u32::from(packet.shape.icv_len())) as u16;
        if SEAL {
            _mm_mask_storeu_epi8(packet.icv.cast(), mask, tag);
        } else {
            let given = _mm_maskz_loadu_epi8(mask, packet.icv.cast());
            packet.authentic = _mm_mask_cmpneq_epu8_mask(mask, tag, given) == 0;
        }
    }
}

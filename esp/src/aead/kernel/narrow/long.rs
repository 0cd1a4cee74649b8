//! A packet of several chunks.
//!
//! Its row of blocks begins with the first chunk: the block with the number of a counter block is
//! that which the counter block encrypts. Number 0 is empty, 1 is the counter block of the tag and
//! stands for the authenticated data in the hash, the text begins with number 2. Whole chunks then
//! have first counters that are multiples of their blocks, so that nothing carries within a chunk;
//! the last chunk takes the rest and the block of lengths.

use super::super::lanes::{Products, unrolled};
use super::super::packet::{Packet, read, write};
use super::rounds::{Chunks, Rounds, WHOLE, number};
use super::{Pending, complete, encrypt_and_hash, opaque};

/// Whether a packet has as many whole chunks as make it worth while: with fewer, the first and the
/// last chunk weigh more than what is gained between them. At least two.
#[inline(always)]
pub(super) fn is_long<L: Rounds>(packet: &Packet) -> bool {
    let chunks = if L::WIDTH == 1 { 3 } else { 4 };
    L::TOGETHER && packet.len >= 16 * (chunks * WHOLE * L::WIDTH - 2)
}

/// Seals or opens it. The hash of the last chunk of what is sealed is left pending.
///
/// # Safety
/// See [`Lanes`](super::Lanes); the packet is long, and valid until nothing is pending.
#[inline(always)]
pub(super) unsafe fn crypt<L: Rounds, const SEAL: bool>(
    pointer: *mut Packet,
    pending: &mut Pending<L>,
) {
    // SAFETY: the caller keeps the contract; whole chunks lie within the text.
    unsafe {
        let packet = &*pointer;
        let key = opaque(packet.key());
        let rounds = usize::from(key.rounds);
        let blocks = WHOLE * L::WIDTH;
        let chunks = (packet.len / 16 + 2) / blocks;

        let mut states = [L::zero(); WHOLE];
        counters(packet, 0, &mut states);
        // Numbers 0 and 1 are in the first vectors, the text follows in whole ones.
        let special = 2 / L::WIDTH;
        let mut edge = [L::zero(); WHOLE];
        edge[(1 / L::WIDTH) % WHOLE] = L::at(1 % L::WIDTH, packet.aad.swap_bytes());
        let at = |vector: usize| packet.text.wrapping_add(16 * L::WIDTH * (vector - special));
        let products;
        if SEAL {
            products = encrypt_and_hash(key, &mut states, pending);
            complete::<L, SEAL>(products, pending);
        } else {
            unrolled!(I < WHOLE, {
                let block = if I < special { edge[I] } else { L::load(at(I)) };
                pending.blocks[WHOLE - 1 - I] = block.reverse_bytes();
            });
            pending.count = WHOLE;
            pending.powers = &key.strides[1];
            products = encrypt_and_hash(key, &mut states, pending);
        }
        pending.mask = states[1 / L::WIDTH].block(1 % L::WIDTH);
        unrolled!(I < WHOLE, {
            if I >= special {
                let output = L::load(at(I)).xor(states[I]);
                output.store(at(I));
                edge[I] = output;
            }
        });
        let text = at(WHOLE);
        let mut frame = [
            L::broadcast(&packet.counter).xor(L::broadcast(&key.round_keys[0])),
            L::zero(),
        ];
        let products = L::whole_chunks::<SEAL>(
            Chunks {
                count: chunks - 1,
                text,
                source: if SEAL { edge.as_ptr().cast() } else { text },
                counter: 0,
                frame: &raw mut frame,
                keys: &key.round_keys[1],
                extra: rounds - 10,
                powers: &key.strides[1],
            },
            if SEAL { Products::zero() } else { products },
        );
        pending.sum = products.reduce();
        let rest = packet.text.wrapping_add(16 * (blocks * chunks - 2));
        if SEAL {
            let last = rest.wrapping_sub(16 * blocks);
            unrolled!(I < WHOLE, {
                let block = L::load(last.wrapping_add(16 * L::WIDTH * I));
                pending.blocks[WHOLE - 1 - I] = block.reverse_bytes();
            });
            pending.blocks[WHOLE - 1] = pending.blocks[WHOLE - 1].xor(pending.sum);
            pending.count = WHOLE;
            pending.powers = &key.strides[1];
        }
        // Vectors of the last chunk with text.
        match (packet.len.div_ceil(16) + 2 - blocks * chunks).div_ceil(L::WIDTH) {
            0 => last::<L, SEAL, 0>(pointer, chunks, pending),
            1 => last::<L, SEAL, 1>(pointer, chunks, pending),
            2 => last::<L, SEAL, 2>(pointer, chunks, pending),
            3 => last::<L, SEAL, 3>(pointer, chunks, pending),
            4 => last::<L, SEAL, 4>(pointer, chunks, pending),
            5 => last::<L, SEAL, 5>(pointer, chunks, pending),
            6 => last::<L, SEAL, 6>(pointer, chunks, pending),
            7 => last::<L, SEAL, 7>(pointer, chunks, pending),
            _ => last::<L, SEAL, 8>(pointer, chunks, pending),
        }
    }
}

/// The last chunk, with text in `COUNT` vectors.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
unsafe fn last<L: Rounds, const SEAL: bool, const COUNT: usize>(
    pointer: *mut Packet,
    chunks: usize,
    pending: &mut Pending<L>,
) {
    // SAFETY: the caller keeps the contract; only bytes of the text are read and written.
    unsafe {
        let packet = &*pointer;
        let key = opaque(packet.key());
        let first = WHOLE * L::WIDTH * chunks;
        let text = packet.text.wrapping_add(16 * (first - 2));
        let len = packet.len - 16 * (first - 2);
        let mut states = [L::zero(); COUNT];
        counters(packet, first, &mut states);

        let mut input = [L::zero(); COUNT];
        unrolled!(I < COUNT, {
            let at = text.wrapping_add(16 * L::WIDTH * I);
            input[I] = if I + 1 < COUNT || len == 16 * L::WIDTH * COUNT {
                L::load(at)
            } else {
                read_lanes(at, len - 16 * L::WIDTH * I)
            };
        });
        if SEAL {
            let products = encrypt_and_hash(key, &mut states, pending);
            pending.sum = products.reduce();
            let output = write_all(&input, &states, text, len);
            put::<L, COUNT>(&output, pointer, len, pending);
        } else {
            put::<L, COUNT>(&input, pointer, len, pending);
            let products = encrypt_and_hash(key, &mut states, pending);
            complete::<L, SEAL>(products, pending);
            pending.count = 0;
            write_all(&input, &states, text, len);
        }
    }
}

/// Writes a text of `len` bytes that ends in the last vector; returns what has been written.
///
/// # Safety
/// See [`Lanes`](super::Lanes); `text` is valid for writes.
#[inline(always)]
unsafe fn write_all<L: Rounds, const COUNT: usize>(
    input: &[L; COUNT],
    keystream: &[L; COUNT],
    text: *mut u8,
    len: usize,
) -> [L; COUNT] {
    let mut output = *input;
    // SAFETY: the caller keeps the contract.
    unsafe {
        unrolled!(I < COUNT, {
            let at = text.wrapping_add(16 * L::WIDTH * I);
            output[I] = input[I].xor(keystream[I]);
            if I + 1 < COUNT || len == 16 * L::WIDTH * COUNT {
                output[I].store(at);
            } else {
                output[I] = write_lanes(output[I], at, len - 16 * L::WIDTH * I);
            }
        });
    }
    output
}

/// Makes the last chunk of a packet pending: so many vectors, of which the last ends with `len`, and
/// the lengths.
///
/// # Safety
/// See [`Lanes`](super::Lanes).
#[inline(always)]
unsafe fn put<L: Rounds, const COUNT: usize>(
    blocks: &[L; COUNT],
    pointer: *mut Packet,
    len: usize,
    pending: &mut Pending<L>,
) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let packet = &*pointer;
        let key = packet.key();
        // In the last vector behind the text, or alone in one more.
        let lane = len.div_ceil(16) % L::WIDTH;
        let lengths = L::at(lane, packet.lengths);
        let alone = usize::from(lane == 0);
        // No block is no factor; there are as many as a whole chunk has.
        pending.blocks = [L::zero(); WHOLE + 1];
        unrolled!(I < COUNT, {
            pending.blocks[COUNT + alone - 1 - I] = blocks[I].reverse_bytes();
        });
        pending.blocks[0] = pending.blocks[0].xor(lengths);
        let first = COUNT + alone - 1;
        pending.blocks[first] = pending.blocks[first].xor(pending.sum);
        pending.count = (COUNT + alone).max(WHOLE);
        pending.powers = if L::WIDTH == 1 {
            &key.powers[0]
        } else {
            // The last vector is multiplied by one.
            &key.strides[0]
        };
        pending.last_lane = lane;
        pending.packet = pointer;
    }
}

/// The counter blocks from number `first`, a multiple of the blocks of a chunk.
///
/// # Safety
/// See [`Lanes`](super::Lanes).
#[inline(always)]
unsafe fn counters<L: Rounds, const COUNT: usize>(
    packet: &Packet,
    first: usize,
    states: &mut [L; COUNT],
) {
    let start = packet.counter | u128::from((first as u32).swap_bytes()) << 96;
    // SAFETY: the caller keeps the contract of `Lanes`; there are as many numbers as a chunk has.
    unsafe {
        let start = L::broadcast(&start);
        unrolled!(I < COUNT, {
            states[I] = start.xor(L::load(number(I * L::WIDTH).cast()));
        });
    }
}

/// Up to a vector of bytes, then zeroes.
///
/// # Safety
/// See [`Lanes`](super::Lanes); `from` is valid for reads of `len` bytes, at most a vector.
#[inline(always)]
unsafe fn read_lanes<L: Rounds>(from: *const u8, len: usize) -> L {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let mut lanes = L::zero();
        for lane in 0..L::WIDTH {
            let len = len.saturating_sub(16 * lane).min(16);
            let block = if len > 0 {
                read(from.wrapping_add(16 * lane), len)
            } else {
                0
            };
            lanes = lanes.xor(L::at(lane, block));
        }
        lanes
    }
}

/// Writes up to a vector of bytes; returns them, then zeroes.
///
/// # Safety
/// See [`Lanes`](super::Lanes); `to` is valid for writes of `len` bytes, at most a vector.
#[inline(always)]
unsafe fn write_lanes<L: Rounds>(vector: L, to: *mut u8, len: usize) -> L {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let mut lanes = L::zero();
        for lane in 0..L::WIDTH {
            let len = len.saturating_sub(16 * lane).min(16);
            if len > 0 {
                let block = vector.block(lane) & (u128::MAX >> (128 - 8 * len));
                write(to.wrapping_add(16 * lane), len, block);
                lanes = lanes.xor(L::at(lane, block));
            }
        }
        lanes
    }
}

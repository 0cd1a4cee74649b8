//! One packet at a time, in vectors of one or two blocks.
//!
//! A packet is seen as a row of blocks: the counter block of the tag and the authenticated
//! data share the first, the text follows, the lengths are the last. The row ends at the end
//! of a vector, so that powers of the hash key fall on the same lanes in every packet, and
//! starts where it must. It is worked on in chunks of eight vectors (the first chunk takes
//! the rest); the hash of each chunk is computed between the AES rounds of the next.

use super::key::{GcmKey, STRIDES};
use super::lanes::{Lanes, Products, X1, X2};
use super::packet::Packet;

#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) fn vaes256<const SEAL: bool>(packets: &mut [Packet]) {
    for packet in packets {
        // SAFETY: this function enables what `X2` needs.
        unsafe { crypt::<X2, SEAL>(packet) }
    }
}

#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
pub(super) fn aesni<const SEAL: bool>(packets: &mut [Packet]) {
    for packet in packets {
        // SAFETY: this function enables what `X1` needs.
        unsafe { crypt::<X1, SEAL>(packet) }
    }
}

/// Hash input of a chunk, last vector first, and what was added up before it.
struct Pending<L> {
    blocks: [L; STRIDES + 1],
    count: usize,
    sum: L,
}

/// Where the row of blocks of a packet lies.
struct Row {
    /// Empty lanes before the first block.
    gap: usize,
    /// Vectors that AES works on.
    vectors: usize,
    /// Address of the first vector, before the text by as many lanes as are not text.
    base: *mut u8,
    /// Bytes from `base` to the end of the text.
    end: usize,
}

/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn crypt<L: Lanes, const SEAL: bool>(packet: &mut Packet) {
    let blocks = 2 + packet.len.div_ceil(16);
    let vectors = blocks.div_ceil(L::WIDTH);
    let gap = vectors * L::WIDTH - blocks;
    let row = Row {
        gap,
        // Alone in its vector, the block of lengths needs no AES.
        vectors: if L::WIDTH == 1 { vectors - 1 } else { vectors },
        base: packet.text.wrapping_sub(16 * (gap + 1)),
        end: 16 * (gap + 1) + packet.len,
    };
    // SAFETY: the caller keeps the contract of `Lanes`; `row` is that of the packet.
    unsafe {
        let mut pending = Pending {
            blocks: [L::zero(); STRIDES + 1],
            count: 0,
            sum: L::zero(),
        };
        let first = (row.vectors - 1) % STRIDES + 1;
        let mask = match first {
            1 => chunk::<L, SEAL, 1>(packet, &row, 0, &mut pending),
            2 => chunk::<L, SEAL, 2>(packet, &row, 0, &mut pending),
            3 => chunk::<L, SEAL, 3>(packet, &row, 0, &mut pending),
            4 => chunk::<L, SEAL, 4>(packet, &row, 0, &mut pending),
            5 => chunk::<L, SEAL, 5>(packet, &row, 0, &mut pending),
            6 => chunk::<L, SEAL, 6>(packet, &row, 0, &mut pending),
            7 => chunk::<L, SEAL, 7>(packet, &row, 0, &mut pending),
            _ => chunk::<L, SEAL, 8>(packet, &row, 0, &mut pending),
        };
        let mut done = first;
        while done < row.vectors {
            chunk::<L, SEAL, 8>(packet, &row, done, &mut pending);
            done += 8;
        }
        let hash = finish_hash(packet, &mut pending);
        let tag = hash.to_be() ^ mask;
        packet.finish::<SEAL>(tag.to_ne_bytes());
    }
}

/// Encrypts or decrypts `COUNT` vectors from number `start`, while the hash of those before
/// them is computed; leaves their hash pending. Returns the first block of keystream.
///
/// # Safety
/// See [`Lanes`]; `row` is that of the packet and has all these vectors.
#[inline(always)]
unsafe fn chunk<L: Lanes, const SEAL: bool, const COUNT: usize>(
    packet: &Packet,
    row: &Row,
    start: usize,
    pending: &mut Pending<L>,
) -> u128 {
    // SAFETY: the caller keeps the contract of `Lanes`; only vectors that lie within the text
    // are read and written whole, of the others the part that does.
    unsafe {
        let key = packet.key();
        let mut states = [L::zero(); COUNT];
        for (i, state) in states.iter_mut().enumerate() {
            *state = counters(packet, row, start + i);
        }
        let products = encrypt_and_hash(key, &mut states, pending, &key.strides[1..], 0);
        if pending.count > 0 {
            pending.sum = products.reduce();
        }
        pending.count = COUNT;
        for (i, state) in states.iter().enumerate() {
            let number = start + i;
            let at = row.base.wrapping_add(16 * L::WIDTH * number);
            let is_first = i == 0 && number == 0;
            let is_last = i == COUNT - 1 && number == row.vectors - 1;
            let ciphertext;
            if is_first || is_last {
                let from = if is_first { 16 * (row.gap + 1) } else { 0 };
                let to = (row.end - 16 * L::WIDTH * number).min(16 * L::WIDTH);
                let input = load_part::<L>(at, from, to);
                let output = input.xor(*state);
                store_part(output, at, from, to);
                ciphertext = if SEAL {
                    load_part::<L>(at, from, to)
                } else {
                    input
                };
            } else {
                let input = L::load(at);
                let output = input.xor(*state);
                output.store(at);
                ciphertext = if SEAL { output } else { input };
            }
            let mut block = ciphertext.reverse_bytes();
            if is_first {
                block = block.xor(L::at(row.gap, packet.aad));
            }
            if is_last && L::WIDTH > 1 {
                block = block.xor(L::at(L::WIDTH - 1, packet.lengths));
            }
            pending.blocks[COUNT - 1 - i] = block;
        }
        if start == 0 {
            lane(states[0], row.gap)
        } else {
            0
        }
    }
}

/// AES over all states, with one vector of pending hash input after each round. The vector
/// number `skip + n` of the input is multiplied by `powers[n]`.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn encrypt_and_hash<L: Lanes, const COUNT: usize>(
    key: &GcmKey,
    states: &mut [L; COUNT],
    pending: &Pending<L>,
    powers: &[u128],
    skip: usize,
) -> Products<L> {
    // SAFETY: the caller keeps the contract of `Lanes`; every pointer is made from a
    // reference to at least 16 bytes.
    unsafe {
        let mut products = Products::zero();
        let hashed = pending.count - skip;
        let hash_one = |products: &mut Products<L>, n: usize| {
            let mut block = pending.blocks[n + skip];
            if n + 1 == hashed {
                block = block.xor(pending.sum);
            }
            products.add(block, L::broadcast(&powers[n]));
        };
        let keys = opaque(&key.round_keys);
        let whitening = L::broadcast(&keys[0]);
        for state in states.iter_mut() {
            *state = state.xor(whitening);
        }
        let rounds = usize::from(key.rounds);
        for round in 1..10 {
            let round_key = L::broadcast(&keys[round]);
            for state in states.iter_mut() {
                *state = state.aes(round_key);
            }
            if round - 1 < hashed {
                hash_one(&mut products, round - 1);
            }
        }
        let mut round = 10;
        while round < rounds {
            for round in round..round + 2 {
                let round_key = L::broadcast(&keys[round]);
                for state in states.iter_mut() {
                    *state = state.aes(round_key);
                }
            }
            round += 2;
        }
        let round_key = L::broadcast(&keys[rounds]);
        for state in states.iter_mut() {
            *state = state.aes_last(round_key);
        }
        products
    }
}

/// The hash of the whole packet, from what is pending of it.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn finish_hash<L: Lanes>(packet: &Packet, pending: &mut Pending<L>) -> u128 {
    let key = packet.key();
    // SAFETY: the caller keeps the contract of `Lanes`.
    unsafe {
        let mut products = Products::zero();
        if L::WIDTH == 1 {
            products.add(L::at(0, packet.lengths), L::broadcast(&key.powers[0]));
            for n in 0..pending.count {
                let mut block = pending.blocks[n];
                if n + 1 == pending.count {
                    block = block.xor(pending.sum);
                }
                products.add(block, L::broadcast(&key.powers[n + 1]));
            }
            return products.reduce().sum();
        }
        for n in 1..pending.count {
            let mut block = pending.blocks[n];
            if n + 1 == pending.count {
                block = block.xor(pending.sum);
            }
            products.add(block, L::broadcast(&key.strides[n]));
        }
        let sum = if pending.count > 1 {
            products.reduce()
        } else {
            pending.sum
        };
        let mut products = Products::zero();
        products.add(pending.blocks[0].xor(sum), super::ghash::falling(key));
        products.reduce().sum()
    }
}

/// Counter blocks of vector `number` of the row.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn counters<L: Lanes>(packet: &Packet, row: &Row, number: usize) -> L {
    // SAFETY: the caller keeps the contract of `Lanes`.
    unsafe {
        (0..L::WIDTH).fold(L::zero(), |lanes, lane| {
            // Lanes before the first block have no meaning.
            let counter = (number * L::WIDTH + lane + 1).wrapping_sub(row.gap) as u32;
            let block = packet.counter | u128::from(counter.swap_bytes()) << 96;
            lanes.xor(L::at(lane, block))
        })
    }
}

/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn lane<L: Lanes>(vector: L, lane: usize) -> u128 {
    let mut blocks = [0u128; 4];
    // SAFETY: the caller keeps the contract of `Lanes`; no vector is longer than four blocks.
    unsafe { vector.store(blocks.as_mut_ptr().cast()) };
    blocks[lane]
}

/// The bytes `from..to` of the vector at `at`, zeroes for the others, which are not read.
///
/// # Safety
/// See [`Lanes`]; these bytes are valid for reads.
#[inline(always)]
unsafe fn load_part<L: Lanes>(at: *const u8, from: usize, to: usize) -> L {
    let mut bytes = [0u8; 64];
    // SAFETY: `from <= to <= 16 * WIDTH <= 64`, and the caller vouches for the source.
    unsafe {
        copy(
            at.wrapping_add(from),
            bytes.as_mut_ptr().add(from),
            to - from,
        );
        L::load(bytes.as_ptr())
    }
}

/// Stores the bytes `from..to` of the vector to `at`, and no others.
///
/// # Safety
/// See [`Lanes`]; these bytes are valid for writes.
#[inline(always)]
unsafe fn store_part<L: Lanes>(vector: L, at: *mut u8, from: usize, to: usize) {
    let mut bytes = [0u8; 64];
    // SAFETY: `from <= to <= 16 * WIDTH <= 64`, and the caller vouches for the target.
    unsafe {
        vector.store(bytes.as_mut_ptr());
        copy(bytes.as_ptr().add(from), at.wrapping_add(from), to - from);
    }
}

/// # Safety
/// `from` is valid for reads of `len` bytes, `to` for writes; they do not overlap.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let mut done = 0;
    // SAFETY: each step copies at most the bytes that are left.
    unsafe {
        for step in [16, 8, 4, 2, 1] {
            if len - done >= step {
                core::ptr::copy_nonoverlapping(from.add(done), to.add(done), step);
                done += step;
            }
        }
        if done < len {
            core::ptr::copy_nonoverlapping(from.add(done), to.add(done), len - done);
        }
    }
}

/// The same reference, of which the compiler does not know where it comes from: it can then
/// not keep broadcast round keys on the stack from one chunk to the next.
#[inline(always)]
fn opaque<T>(reference: &T) -> &T {
    let mut pointer: *const T = reference;
    // SAFETY: nothing is executed; the pointer stays the same.
    unsafe {
        core::arch::asm!("/* {} */", inout(reg) pointer, options(nomem, nostack, preserves_flags));
        &*pointer
    }
}

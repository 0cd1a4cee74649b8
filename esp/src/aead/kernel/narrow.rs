//! One packet at a time, in vectors of one or two blocks.
//!
//! A packet is seen as a row of blocks: the counter block of the tag and the authenticated
//! data share the first, the text follows, the lengths are the last. The row ends at the end
//! of a vector, so that powers of the hash key fall on the same lanes in every packet, and
//! starts where it must. It is worked on in chunks of eight vectors (the first chunk takes
//! the rest); the hash of each chunk is computed between the AES rounds of the next.

use super::key::{GcmKey, STRIDES};
use super::lanes::{Lanes, Products, X1, X2, unrolled};
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
    // SAFETY: the caller keeps the contract; only vectors that lie within the text are read
    // and written whole, of the others the block that does.
    unsafe {
        let key = packet.key();
        let mut states: [L; COUNT] = [counters(packet, row, start); COUNT];
        let first_counter = (start * L::WIDTH + 1).wrapping_sub(row.gap);
        if first_counter % 256 + COUNT * L::WIDTH <= 256 {
            // Only the last byte of the counters counts within this chunk.
            unrolled!(I < COUNT, {
                let step = L::broadcast(&STEPS[I * L::WIDTH]);
                states[I] = states[I].add_words(step);
            });
        } else {
            unrolled!(I < COUNT, {
                states[I] = counters(packet, row, start + I);
            });
        }
        let products = encrypt_and_hash(key, &mut states, pending);
        if pending.count > 0 {
            pending.sum = products.reduce();
        }
        pending.count = COUNT;
        let is_last = start + COUNT == row.vectors;
        let at = row.base.wrapping_add(16 * L::WIDTH * start);
        unrolled!(I < COUNT, {
            let at = at.wrapping_add(16 * L::WIDTH * I);
            if (I == 0 && start == 0) || (I == COUNT - 1 && is_last) {
                pending.blocks[COUNT - 1 - I] =
                    edge::<L, SEAL>(packet, row, start + I, states[I]);
            } else {
                let input = L::load(at);
                let output = input.xor(states[I]);
                output.store(at);
                let ciphertext = if SEAL { output } else { input };
                pending.blocks[COUNT - 1 - I] = ciphertext.reverse_bytes();
            }
        });
        if start == 0 { states[0].block(row.gap) } else { 0 }
    }
}

/// Encrypts or decrypts the first or the last vector of a row, which has one block of text at
/// most; returns its hash input.
///
/// # Safety
/// See [`Lanes`]; `row` is that of the packet and has this vector.
#[inline(always)]
unsafe fn edge<L: Lanes, const SEAL: bool>(
    packet: &Packet,
    row: &Row,
    number: usize,
    keystream: L,
) -> L {
    // SAFETY: the caller keeps the contract; only bytes of the text are read and written.
    unsafe {
        let mut hash = L::zero();
        let first_lane = number * L::WIDTH;
        for lane in 0..L::WIDTH {
            // The number of the block of text in this lane.
            let block = (first_lane + lane).wrapping_sub(row.gap + 1);
            let input = match packet.len.checked_sub(block.wrapping_mul(16)) {
                _ if first_lane + lane == row.gap => packet.aad,
                Some(len @ 1..) if first_lane + lane > row.gap => {
                    let at = packet.text.wrapping_add(16 * block);
                    let len = len.min(16);
                    let mask = u128::MAX >> (128 - 8 * len);
                    let input = read(at, len);
                    let output = (input ^ keystream.block(lane)) & mask;
                    write(at, len, output);
                    if SEAL { output } else { input }.swap_bytes()
                }
                _ if L::WIDTH > 1 && first_lane + lane > row.gap => packet.lengths,
                _ => 0,
            };
            hash = hash.xor(L::at(lane, input));
        }
        hash
    }
}

/// For each number of blocks, what it adds to the last word of a counter block, as long as
/// only its last byte changes.
static STEPS: [u128; 2 * STRIDES] = {
    let mut steps = [0; 2 * STRIDES];
    let mut n = 0;
    while n < steps.len() {
        steps[n] = (n as u128) << 120;
        n += 1;
    }
    steps
};

/// AES over all states, with one vector of pending hash input after each round.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn encrypt_and_hash<L: Lanes, const COUNT: usize>(
    key: &GcmKey,
    states: &mut [L; COUNT],
    pending: &Pending<L>,
) -> Products<L> {
    // SAFETY: the caller keeps the contract of `Lanes`; every pointer is made from a
    // reference to at least 16 bytes.
    unsafe {
        let mut products = Products::zero();
        let hashed = pending.count;
        let rounds = usize::from(key.rounds);
        let mut round = 1;
        let whitening = L::broadcast(&opaque(&key.round_keys)[0]);
        unrolled!(I < COUNT, {
            states[I] = states[I].xor(whitening);
        });
        // All but ten rounds of the longer keys, then ten with a step of the hash in each.
        while round + 9 < rounds {
            one_round(key, states, round);
            round += 1;
        }
        unrolled!(N < 9, {
            one_round(key, states, round + N);
            if N < hashed {
                let mut block = pending.blocks[N];
                if N + 1 == hashed {
                    block = block.xor(pending.sum);
                }
                products.add(block, L::broadcast(&key.strides[1 + N % STRIDES]));
                products.pin();
            }
        });
        let round_key = L::broadcast(&opaque(&key.round_keys)[rounds]);
        unrolled!(I < COUNT, {
            states[I] = states[I].aes_last(round_key);
        });
        products
    }
}

/// One round of AES, in its place among other work.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn one_round<L: Lanes, const COUNT: usize>(
    key: &GcmKey,
    states: &mut [L; COUNT],
    round: usize,
) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let round_key = L::broadcast(&opaque(&key.round_keys)[round]);
        unrolled!(I < COUNT, {
            states[I] = states[I].aes(round_key).pin();
        });
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
        let mut lanes = L::zero();
        for lane in 0..L::WIDTH {
            // Lanes before the first block have no meaning.
            let counter = (number * L::WIDTH + lane + 1).wrapping_sub(row.gap) as u32;
            let block = packet.counter | u128::from(counter.swap_bytes()) << 96;
            lanes = lanes.xor(L::at(lane, block));
        }
        lanes
    }
}

/// The first `len` bytes at `from`, then zeroes.
///
/// # Safety
/// They are valid for reads; `len` is 1 to 16.
#[inline(always)]
unsafe fn read(from: *const u8, len: usize) -> u128 {
    // SAFETY: each step reads some of the bytes that are left.
    unsafe {
        if len == 16 {
            return from.cast::<u128>().read_unaligned();
        }
        let mut block = 0;
        let mut done = 0;
        if len & 8 != 0 {
            block = u128::from(from.cast::<u64>().read_unaligned());
            done = 8;
        }
        if len & 4 != 0 {
            let word = from.add(done).cast::<u32>().read_unaligned();
            block |= u128::from(word) << (8 * done);
            done += 4;
        }
        while done < len {
            block |= u128::from(from.add(done).read()) << (8 * done);
            done += 1;
        }
        block
    }
}

/// Writes the first `len` bytes of a block.
///
/// # Safety
/// They are valid for writes; `len` is 1 to 16.
#[inline(always)]
unsafe fn write(to: *mut u8, len: usize, block: u128) {
    // SAFETY: each step writes some of the bytes that are left.
    unsafe {
        if len == 16 {
            return to.cast::<u128>().write_unaligned(block);
        }
        let mut done = 0;
        if len & 8 != 0 {
            to.cast::<u64>().write_unaligned(block as u64);
            done = 8;
        }
        if len & 4 != 0 {
            let word = (block >> (8 * done)) as u32;
            to.add(done).cast::<u32>().write_unaligned(word);
            done += 4;
        }
        while done < len {
            to.add(done).write((block >> (8 * done)) as u8);
            done += 1;
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

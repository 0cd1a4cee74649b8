//! Packets in vectors of one or two blocks: those that have a partner of the same length in
//! [pairs](pair), long ones by a loop for [whole chunks](long), all others one at a time, here.
//!
//! A packet is seen as a row of blocks: the counter block of the tag and the authenticated
//! data share the first, the text follows, the lengths are the last. The row ends at the end
//! of a vector, so that powers of the hash key fall on the same lanes in every packet, and
//! starts where it must. It is worked on in chunks of eight vectors (the first chunk takes
//! the rest); the hash of each chunk is computed between the AES rounds of the next.

mod long;
mod pair;
mod rounds;

use super::key::{GcmKey, STRIDES};
use super::lanes::{Lanes, Products, X1, X1Avx, X2, unrolled};
use super::packet::{Packet, read, write};
use super::wipe::wipe;
use rounds::{Rounds, WHOLE};

#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) fn vaes256<const SEAL: bool>(packets: &mut [Packet]) {
    let left = pair::crypt::<SEAL>(packets);
    // SAFETY: this function enables what `X2` needs.
    unsafe { crypt_all::<X2, SEAL>(packets, left) }
}

#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
pub(super) fn aesni<const SEAL: bool>(packets: &mut [Packet]) {
    // SAFETY: this function enables what `X1` needs.
    unsafe { crypt_all::<X1, SEAL>(packets, all(packets)) }
}

/// As [`aesni`], with three-operand instructions.
#[target_feature(enable = "avx,aes,pclmulqdq,ssse3,sse4.1")]
pub(super) fn aesni_avx<const SEAL: bool>(packets: &mut [Packet]) {
    // SAFETY: this function enables what `X1Avx` needs.
    unsafe { crypt_all::<X1Avx, SEAL>(packets, all(packets)) }
}

/// Hash input of the last chunk.
struct Pending<L> {
    /// The last vector first.
    blocks: [L; STRIDES + 1],
    count: usize,
    /// Powers of the hash key, one for each vector.
    powers: *const u128,
    /// The hash of the chunks before, to be added to the first vector.
    sum: L,
    /// The packet that ends with this chunk, or null.
    packet: *mut Packet,
    /// The lane in which it ends.
    last_lane: usize,
    /// The first block of its keystream.
    mask: u128,
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

/// A bit for each of at most 64 packets.
fn all(packets: &[Packet]) -> u64 {
    u64::MAX.checked_shr(64 - packets.len() as u32).unwrap_or(0)
}

/// Long packets and the others, each by their own code, of those in `left`.
///
/// # Safety
/// See [`Lanes`]; `left` has a bit for each of at most 64 packets.
#[inline(always)]
unsafe fn crypt_all<L: Rounds, const SEAL: bool>(packets: &mut [Packet], left: u64) {
    let mut long = 0;
    for (index, packet) in packets.iter().enumerate() {
        long |= u64::from(long::is_long::<L>(packet)) << index;
    }
    // SAFETY: the caller keeps the contract of `Lanes`.
    unsafe {
        crypt_run::<L, SEAL, false>(packets, left & !long);
        if left & long != 0 {
            L::crypt_long::<SEAL>(packets, left & long);
        }
    }
}

/// Packets one after the other, all of them long, or none, with the hash of the last chunk of each
/// left to the next.
///
/// # Safety
/// See [`Lanes`]; `which` has a bit for each packet that is meant.
#[inline(always)]
unsafe fn crypt_run<L: Rounds, const SEAL: bool, const LONG: bool>(
    packets: &mut [Packet],
    mut which: u64,
) {
    // SAFETY: the caller keeps the contract of `Lanes`; packets stay where they are.
    unsafe {
        let mut pending = Pending {
            blocks: [L::zero(); STRIDES + 1],
            count: 0,
            powers: core::ptr::null(),
            sum: L::zero(),
            packet: core::ptr::null_mut(),
            last_lane: L::WIDTH - 1,
            mask: 0,
        };
        while which != 0 {
            let packet = &mut packets[which.trailing_zeros() as usize];
            which &= which - 1;
            if LONG {
                long::crypt::<L, SEAL>(packet, &mut pending);
            } else {
                crypt::<L, SEAL>(packet, &mut pending);
            }
        }
        let mut products = Products::zero();
        for n in 0..pending.count {
            multiply(&mut products, &pending, n);
        }
        complete::<L, SEAL>(products, &mut pending);
        wipe(&mut pending.mask);
    }
}

/// # Safety
/// See [`Lanes`]; `packet` is valid until nothing is pending.
#[inline(always)]
unsafe fn crypt<L: Rounds, const SEAL: bool>(packet: *mut Packet, pending: &mut Pending<L>) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let (text, len) = ((*packet).text, (*packet).len);
        let blocks = 2 + len.div_ceil(16);
        let vectors = blocks.div_ceil(L::WIDTH);
        let gap = vectors * L::WIDTH - blocks;
        let row = Row {
            gap,
            // Alone in its vector, the block of lengths needs no AES.
            vectors: if L::WIDTH == 1 { vectors - 1 } else { vectors },
            base: text.wrapping_sub(16 * (gap + 1)),
        };
        let mut start = 0;
        let mut count = (row.vectors - 1) % STRIDES + 1;
        while start < row.vectors {
            match count {
                1 => chunk::<L, SEAL, 1>(packet, &row, start, pending),
                2 => chunk::<L, SEAL, 2>(packet, &row, start, pending),
                3 => chunk::<L, SEAL, 3>(packet, &row, start, pending),
                4 => chunk::<L, SEAL, 4>(packet, &row, start, pending),
                5 => chunk::<L, SEAL, 5>(packet, &row, start, pending),
                6 => chunk::<L, SEAL, 6>(packet, &row, start, pending),
                7 => chunk::<L, SEAL, 7>(packet, &row, start, pending),
                _ => chunk::<L, SEAL, 8>(packet, &row, start, pending),
            }
            start += count;
            count = STRIDES;
        }
    }
}

/// Encrypts or decrypts `COUNT` vectors from number `start`, while the hash of the chunk
/// before them is computed, also if that is of another packet; leaves their hash pending.
///
/// # Safety
/// See [`Lanes`]; `row` is that of the packet and has all these vectors.
#[inline(always)]
unsafe fn chunk<L: Rounds, const SEAL: bool, const COUNT: usize>(
    pointer: *mut Packet,
    row: &Row,
    start: usize,
    pending: &mut Pending<L>,
) {
    // SAFETY: the caller keeps the contract; only vectors that lie within the text are read
    // and written whole, of the others the block that does.
    unsafe {
        let packet = &*pointer;
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
        complete::<L, SEAL>(products, pending);
        let is_last = start + COUNT == row.vectors;
        // Alone in its vector, the block of lengths has no place in the row.
        let shift = usize::from(is_last && L::WIDTH == 1);
        let at = row.base.wrapping_add(16 * L::WIDTH * start);
        unrolled!(I < COUNT, {
            let at = at.wrapping_add(16 * L::WIDTH * I);
            let block = if (I == 0 && start == 0) || (I == COUNT - 1 && is_last) {
                edge::<L, SEAL>(packet, row, start + I, states[I])
            } else {
                let input = L::load(at);
                let output = input.xor(states[I]);
                output.store(at);
                if SEAL { output } else { input }.reverse_bytes()
            };
            pending.blocks[shift + COUNT - 1 - I] = block;
        });
        pending.count = COUNT + shift;
        let first = pending.blocks[pending.count - 1];
        pending.blocks[pending.count - 1] = first.xor(pending.sum);
        if start == 0 {
            pending.mask = states[0].block(row.gap);
        }
        if !is_last {
            pending.powers = &key.strides[1];
        } else if L::WIDTH == 1 {
            pending.blocks[0] = L::at(0, packet.lengths);
            pending.powers = &key.powers[0];
            pending.packet = pointer;
        } else {
            // The last vector is multiplied by one.
            pending.powers = &key.strides[0];
            pending.last_lane = L::WIDTH - 1;
            pending.packet = pointer;
        }
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
unsafe fn encrypt_and_hash<L: Rounds, const COUNT: usize>(
    key: &GcmKey,
    states: &mut [L; COUNT],
    pending: &Pending<L>,
) -> Products<L> {
    // SAFETY: the caller keeps the contract of `Lanes`; there are as many round keys as rounds
    // and one, 10, 12 or 14 rounds.
    unsafe {
        let mut products = Products::zero();
        let rounds = usize::from(key.rounds);
        let whitening = L::broadcast(&opaque(&key.round_keys)[0]);
        unrolled!(I < COUNT, {
            states[I] = states[I].xor(whitening);
        });
        if L::TOGETHER && COUNT == WHOLE && pending.count == WHOLE {
            let states = &mut *(&raw mut *states).cast::<[L; WHOLE]>();
            return L::rounds_and_products(
                states,
                key.round_keys.as_ptr(),
                rounds - 10,
                pending.blocks.as_ptr(),
                pending.powers,
            );
        }
        // All but ten rounds of the longer keys, then ten with a step of the hash in each.
        let mut round_keys = opaque(key).round_keys.as_ptr().add(1);
        for _ in 10..rounds {
            one_round(round_keys, states);
            round_keys = round_keys.add(1);
        }
        unrolled!(N < 9, {
            one_round(round_keys.add(N), states);
            if N < pending.count {
                multiply(&mut products, pending, N);
                products.pin();
            }
        });
        let round_key = L::broadcast(round_keys.add(9));
        unrolled!(I < COUNT, {
            states[I] = states[I].aes_last(round_key);
        });
        products
    }
}

/// One round of AES, in its place among other work.
///
/// # Safety
/// See [`Lanes`]; there is that round key.
#[inline(always)]
unsafe fn one_round<L: Lanes, const COUNT: usize>(round_key: *const u128, states: &mut [L; COUNT]) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let round_key = L::broadcast(round_key);
        unrolled!(I < COUNT, {
            states[I] = states[I].aes(round_key).pin();
        });
    }
}

/// Multiplies pending vector `n`.
///
/// # Safety
/// See [`Lanes`]; it is pending.
#[inline(always)]
unsafe fn multiply<L: Lanes>(products: &mut Products<L>, pending: &Pending<L>, n: usize) {
    // SAFETY: the caller keeps the contract; there is a power for each vector.
    unsafe { products.add(pending.blocks[n], L::broadcast(pending.powers.add(n))) }
}

/// Ends the hash of what was pending: the sum for the next chunk, or the tag.
///
/// # Safety
/// See [`Lanes`]; the packet is valid.
#[inline(always)]
unsafe fn complete<L: Rounds, const SEAL: bool>(products: Products<L>, pending: &mut Pending<L>) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        pending.sum = products.reduce();
        if pending.packet.is_null() {
            return;
        }
        let packet = &mut *pending.packet;
        let mut sums = pending.sum;
        if L::WIDTH > 1 {
            let mut products = Products::zero();
            products.add(sums, falling(packet.key(), pending.last_lane));
            sums = products.reduce();
        }
        packet.finish::<SEAL>(sums.sum().swap_bytes() ^ pending.mask);
        pending.sum = L::zero();
        pending.packet = core::ptr::null_mut();
    }
}

/// The powers that bring the lanes together where a row ends in this lane.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn falling<L: Lanes>(key: &GcmKey, last: usize) -> L {
    // SAFETY: the caller keeps the contract of `Lanes`.
    unsafe {
        let mut lanes = L::zero();
        for lane in 0..L::WIDTH {
            // Lanes behind the last end one vector earlier.
            let power = match (last + 1).checked_sub(lane) {
                Some(power @ 1..) => key.powers[power - 1],
                _ => key.strides[0],
            };
            lanes = lanes.xor(L::at(lane, power));
        }
        lanes
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

//! Two packets of the same number of blocks side by side, one in each half of a vector.
//!
//! Column 0 is the counter block of the tag, for which the authenticated data stand in the hash;
//! the blocks of text follow; the lengths are the last column of the hash. So nothing has to be
//! moved from one half to the other, the sum of each half is the hash of its packet, and both
//! hashes are reduced, and both tags made, at once. Columns are worked on in chunks of up to
//! eight; the hash of each chunk is computed between the AES rounds of the next, also if that
//! belongs to the next two packets.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;
use core::ptr::null;

use super::super::key::{GcmKey, ROUND_KEYS, STRIDES};
use super::super::lanes::{Lanes, Products, X2, unrolled};
use super::super::packet::Packet;
use super::super::wipe::{Plain, wipe};
use super::opaque;
use super::rounds::{Rounds, WHOLE};

/// Blocks of text of packets that are worked on in pairs, at most: more are faster alone, where
/// loads and stores are of whole vectors.
const MOST_BLOCKS: usize = 61;
/// Bytes of ICV of such packets. It lies behind the text, so that the last block can be loaded
/// and stored whole.
const ICV: usize = 16;
/// Packets of a batch, at most.
const BATCH: usize = 64;

/// Seals or opens packets that have a partner, at most [`BATCH`]; returns the others, a bit for
/// each.
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) fn crypt<const SEAL: bool>(packets: &mut [Packet]) -> u64 {
    let count = packets.len().min(BATCH);
    let mut left = 0;
    // Of each number of blocks, the packet that has no partner yet, and one.
    let mut waiting = [0_u8; MOST_BLOCKS + 1];
    let mut keys = MaybeUninit::<[Spread; 2]>::uninit();
    // SAFETY: this function enables what `X2` needs; packets and keys stay where they are until
    // nothing is pending.
    unsafe {
        let keys: *mut Spread = keys.as_mut_ptr().cast();
        let mut latest = Latest {
            number: 0,
            keys: [null(); 2],
        };
        let mut pending = Pending::nothing();
        let all = packets.as_mut_ptr();
        for index in 0..count {
            let second = all.add(index);
            let blocks = (*second).len.div_ceil(16);
            let fits = (1..=MOST_BLOCKS).contains(&blocks)
                && usize::from((*second).shape.icv_len()) == ICV
                && (*second).icv == (*second).text.wrapping_add((*second).len);
            left |= 1 << index;
            if !fits {
                continue;
            }
            let place = &mut waiting[blocks];
            let first = all.wrapping_add(usize::from(*place).wrapping_sub(1));
            if *place == 0 || (*first).key().rounds != (*second).key().rounds {
                *place = index as u8 + 1;
                continue;
            }
            left &= !(1 << index | 1 << (*place - 1));
            *place = 0;
            let spread = latest.put(keys, [(*first).key, (*second).key], blocks);
            let pair = Pair::new([first, second], blocks, spread);
            columns::<SEAL>(&pair, &mut pending);
        }
        if latest.number > 0 {
            let mut products = Products::zero();
            for n in 0..pending.count {
                multiply(&mut products, &pending, n);
            }
            complete::<SEAL>(products, &mut pending);
            wipe(&mut pending.mask);
            for n in 0..latest.number.min(2) {
                wipe(&mut *keys.add(n));
            }
        }
    }
    left
}

impl Plain for X2 {}
impl Plain for Spread {}

/// Keys of two packets, each in its half.
#[repr(C, align(64))]
struct Spread {
    round_keys: [X2; ROUND_KEYS],
    /// H^1, H^2, ...
    powers: [X2; STRIDES + 1],
    /// The sums of the halves of each power.
    sums: [X2; STRIDES + 1],
    /// The key, if it is that of both.
    one: *const GcmKey,
}

/// The last keys that were spread, and how many have been: what is pending may need those before.
struct Latest {
    number: usize,
    keys: [*const GcmKey; 2],
}

impl Latest {
    /// The keys of two packets of so many blocks, at one of two places.
    ///
    /// # Safety
    /// See [`Lanes`]; the keys are valid, and places and keys stay what they are between calls.
    #[inline(always)]
    unsafe fn put(
        &mut self,
        places: *mut Spread,
        keys: [*const GcmKey; 2],
        blocks: usize,
    ) -> *const Spread {
        let is_one = keys[0] == keys[1];
        // SAFETY: the caller keeps the contract; a place is written before it is read, as far as
        // packets of this length read it.
        unsafe {
            if !(is_one && self.keys == keys) {
                let to = &mut *places.add(self.number % 2);
                let [a, b] = keys.map(|key| &*key);
                for n in 0..=usize::from(a.rounds) {
                    to.round_keys[n] = join(&a.round_keys[n], &b.round_keys[n]);
                }
                let powers = if is_one {
                    STRIDES + 1
                } else {
                    (blocks + 2).min(STRIDES + 1)
                };
                for n in 0..powers {
                    let power = join(&a.powers[n], &b.powers[n]);
                    to.powers[n] = power;
                    to.sums[n] = power.xor(power.swap_halves());
                }
                to.one = if is_one { keys[0] } else { null() };
                self.keys = keys;
                self.number += 1;
            }
            places.add((self.number - 1) % 2)
        }
    }
}

/// Two packets.
struct Pair {
    packets: [*mut Packet; 2],
    texts: [*mut u8; 2],
    /// Blocks of text of each.
    blocks: usize,
    keys: *const Spread,
    rounds: usize,
    /// Counter blocks with the counter 0.
    counters: X2,
    aad: X2,
    /// The bytes of the last block that are text.
    last: X2,
}

impl Pair {
    /// # Safety
    /// See [`Lanes`]; the packets are valid and have so many blocks of text.
    #[inline(always)]
    unsafe fn new(packets: [*mut Packet; 2], blocks: usize, keys: *const Spread) -> Self {
        // SAFETY: the caller keeps the contract; there are 1 to 16 bytes in the last block.
        unsafe {
            let [a, b] = packets.map(|packet| &*packet);
            let mask = |packet: &Packet| {
                let bytes = packet.len - 16 * (blocks - 1);
                MASKS.as_ptr().add(16 - bytes).cast()
            };
            Self {
                packets,
                texts: [a.text, b.text],
                blocks,
                keys,
                rounds: usize::from(a.key().rounds),
                counters: join(&a.counter, &b.counter),
                aad: join(&a.aad, &b.aad),
                last: join(mask(a), mask(b)),
            }
        }
    }
}

/// Sixteen bytes of ones, then of zeroes.
static MASKS: [u8; 32] = {
    let mut masks = [0; 32];
    let mut n = 0;
    while n < 16 {
        masks[n] = 0xff;
        n += 1;
    }
    masks
};

/// What is added to the counter block of each column.
static NUMBERS: [u128; MOST_BLOCKS + 1] = {
    let mut numbers = [0; MOST_BLOCKS + 1];
    let mut n = 0;
    while n < numbers.len() {
        numbers[n] = (n as u128 + 1) << 120;
        n += 1;
    }
    numbers
};

/// Hash input of the last chunk.
struct Pending {
    /// The last column first.
    blocks: [X2; STRIDES + 1],
    count: usize,
    keys: *const Spread,
    /// The hash of the chunks before.
    sum: X2,
    /// The packets that end with this chunk, or null.
    packets: [*mut Packet; 2],
    /// The keystream of column 0.
    mask: X2,
    /// The ICVs of packets that are opened.
    given: X2,
}

impl Pending {
    /// # Safety
    /// See [`Lanes`].
    #[inline(always)]
    unsafe fn nothing() -> Self {
        // SAFETY: the caller keeps the contract.
        let zero = unsafe { X2::zero() };
        Self {
            blocks: [zero; STRIDES + 1],
            count: 0,
            keys: null(),
            sum: zero,
            packets: [core::ptr::null_mut(); 2],
            mask: zero,
            given: zero,
        }
    }
}

/// Two blocks, each in its half.
///
/// # Safety
/// See [`Lanes`]; both are valid for reads of 16 bytes.
#[inline(always)]
unsafe fn join(a: *const u128, b: *const u128) -> X2 {
    // SAFETY: the caller keeps the contract.
    unsafe { X2(_mm256_loadu2_m128i(b.cast(), a.cast())) }
}

/// Works on all columns, in chunks that are about equally long.
///
/// # Safety
/// See [`Lanes`]; packets and keys are valid until nothing is pending.
#[inline(always)]
unsafe fn columns<const SEAL: bool>(pair: &Pair, pending: &mut Pending) {
    let columns = pair.blocks + 1;
    let mut chunks = columns.div_ceil(STRIDES);
    let mut start = 0;
    // SAFETY: the caller keeps the contract.
    unsafe {
        while chunks > 0 {
            let count = (columns - start).div_ceil(chunks);
            match count {
                2 => chunk::<SEAL, 2>(pair, start, pending),
                3 => chunk::<SEAL, 3>(pair, start, pending),
                4 => chunk::<SEAL, 4>(pair, start, pending),
                5 => chunk::<SEAL, 5>(pair, start, pending),
                6 => chunk::<SEAL, 6>(pair, start, pending),
                7 => chunk::<SEAL, 7>(pair, start, pending),
                _ => chunk::<SEAL, 8>(pair, start, pending),
            }
            start += count;
            chunks -= 1;
        }
    }
}

/// Encrypts or decrypts `COUNT` columns from number `start`, while the hash of the chunk before
/// them is computed, also if that is of other packets; leaves their hash pending.
///
/// # Safety
/// See [`Lanes`]; the packets have all these columns.
#[inline(always)]
unsafe fn chunk<const SEAL: bool, const COUNT: usize>(
    pair: &Pair,
    start: usize,
    pending: &mut Pending,
) {
    // SAFETY: the caller keeps the contract; behind the last block of text there is an ICV of as
    // many bytes, so that it can be read and written whole.
    unsafe {
        // Made anew for each chunk: with counters that are no secret, the first round key would
        // stay on the stack.
        let start_state = pair.counters.xor((*pair.keys).round_keys[0]);
        let mut states = [start_state; COUNT];
        let numbers = NUMBERS.as_ptr().add(start);
        unrolled!(I < COUNT, {
            states[I] = states[I].xor(X2::broadcast(numbers.add(I)));
        });
        let products = encrypt_and_hash(pair, &mut states, pending);
        complete::<SEAL>(products, pending);
        let is_last = start + COUNT == pair.blocks + 1;
        let behind = usize::from(is_last);
        if is_last && !SEAL {
            pending.given = join((*pair.packets[0]).icv.cast(), (*pair.packets[1]).icv.cast());
        }
        let [a, b] = pair
            .texts
            .map(|text| text.wrapping_add(16 * start).wrapping_sub(16));
        unrolled!(I < COUNT, {
            let block = if I == 0 && start == 0 {
                pending.mask = states[0];
                pair.aad
            } else {
                let (a, b) = (a.wrapping_add(16 * I), b.wrapping_add(16 * I));
                let input = join(a.cast(), b.cast());
                if I == COUNT - 1 && is_last {
                    let keystream = X2(_mm256_and_si256(states[I].0, pair.last.0));
                    let output = input.xor(keystream);
                    _mm256_storeu2_m128i(b.cast(), a.cast(), output.0);
                    let text = if SEAL { output } else { input };
                    X2(_mm256_and_si256(text.0, pair.last.0)).reverse_bytes()
                } else {
                    let output = input.xor(states[I]);
                    _mm256_storeu2_m128i(b.cast(), a.cast(), output.0);
                    if SEAL { output } else { input }.reverse_bytes()
                }
            };
            pending.blocks[behind + COUNT - 1 - I] = if I == 0 {
                block.xor(pending.sum)
            } else {
                block
            };
        });
        pending.count = COUNT + behind;
        pending.keys = pair.keys;
        if is_last {
            let [a, b] = pair.packets;
            pending.blocks[0] = join(&raw const (*a).lengths, &raw const (*b).lengths);
            pending.packets = pair.packets;
        }
    }
}

/// AES over all states, with one column of pending hash input after each round.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn encrypt_and_hash<const COUNT: usize>(
    pair: &Pair,
    states: &mut [X2; COUNT],
    pending: &Pending,
) -> Products<X2> {
    // SAFETY: the caller keeps the contract of `Lanes`; there are as many round keys as rounds
    // and one, 10, 12 or 14 rounds.
    unsafe {
        let mut products = Products::zero();
        let keys = &*pair.keys;
        if COUNT == WHOLE && pending.count == WHOLE {
            let one = [keys.one, (*pending.keys).one];
            if !one[0].is_null() && !one[1].is_null() {
                let states = &mut *(&raw mut *states).cast::<[X2; WHOLE]>();
                return X2::rounds_and_products(
                    states,
                    (*one[0]).round_keys.as_ptr(),
                    pair.rounds - 10,
                    pending.blocks.as_ptr(),
                    (*one[1]).powers.as_ptr(),
                );
            }
        }
        // All but ten rounds of the longer keys, then ten with a step of the hash in each.
        let mut round_keys = opaque(keys).round_keys.as_ptr().add(1);
        for _ in 10..pair.rounds {
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
        let round_key = *round_keys.add(9);
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
unsafe fn one_round<const COUNT: usize>(round_key: *const X2, states: &mut [X2; COUNT]) {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let round_key = *round_key;
        unrolled!(I < COUNT, {
            states[I] = states[I].aes(round_key).pin();
        });
    }
}

/// Multiplies pending column `n`.
///
/// # Safety
/// See [`Lanes`]; it is pending.
#[inline(always)]
unsafe fn multiply(products: &mut Products<X2>, pending: &Pending, n: usize) {
    // SAFETY: the caller keeps the contract; there is a power for each column.
    unsafe {
        let keys = &*pending.keys;
        let (block, power, sum) = (pending.blocks[n], keys.powers[n], keys.sums[n]);
        products.low = products.low.xor(block.multiply_low(power));
        products.high = products.high.xor(block.multiply_high(power));
        let block = block.xor(block.swap_halves());
        products.middle = products.middle.xor(block.multiply_low(sum));
    }
}

/// Ends the hash of what was pending: the sums for the next chunk, or the tags.
///
/// # Safety
/// See [`Lanes`]; the packets are valid.
#[inline(always)]
unsafe fn complete<const SEAL: bool>(products: Products<X2>, pending: &mut Pending) {
    // SAFETY: the caller keeps the contract; ICVs are of 16 bytes.
    unsafe {
        pending.sum = products.reduce();
        if pending.packets[0].is_null() {
            return;
        }
        let [a, b] = pending.packets.map(|packet| &mut *packet);
        let tags = pending.sum.reverse_bytes().xor(pending.mask);
        if SEAL {
            _mm256_storeu2_m128i(b.icv.cast(), a.icv.cast(), tags.0);
        } else {
            let same = _mm256_cmpeq_epi8(tags.0, pending.given.0);
            let same = _mm256_movemask_epi8(same) as u32;
            a.authentic = same & 0xffff == 0xffff;
            b.authentic = same >> 16 == 0xffff;
        }
        pending.sum = X2::zero();
        pending.packets = [core::ptr::null_mut(); 2];
    }
}

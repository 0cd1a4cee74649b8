//! GHASH of data that is authenticated only.

use super::Kernel;
use super::key::{GcmKey, STRIDES};
use super::lanes::{Lanes, Products, X1, X2, X4};

/// The GHASH state after `carry` and `data`, before the multiplication that follows its last
/// block; the last block is filled with zeroes. `carry` has been multiplied.
pub(super) fn absorb(key: &GcmKey, carry: u128, data: &[u8]) -> u128 {
    let Some(last) = data.len().checked_sub(1) else {
        return carry;
    };
    let (whole, last) = data.split_at(last / 16 * 16);
    let mut block = [0; 16];
    block[..last.len()].copy_from_slice(last);
    let (blocks, _) = whole.as_chunks::<16>();
    hash(key, carry, blocks) ^ u128::from_be_bytes(block)
}

/// The GHASH state times the hash key.
pub(super) fn multiplied(key: &GcmKey, state: u128) -> u128 {
    hash(key, 0, &[state.to_be_bytes()])
}

fn hash(key: &GcmKey, carry: u128, blocks: &[[u8; 16]]) -> u128 {
    if blocks.is_empty() {
        return carry;
    }
    match key.kernel {
        // SAFETY: the CPU has been found to have what the kernel needs.
        Kernel::Vaes512(_) => unsafe { hash4(key, carry, blocks) },
        // SAFETY: the CPU has been found to have what the kernel needs.
        Kernel::Vaes256(_) => unsafe { hash2(key, carry, blocks) },
        // SAFETY: the CPU has been found to have what the kernel needs.
        Kernel::AesNi(_) => unsafe { hash1(key, carry, blocks) },
    }
}

#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn hash4(key: &GcmKey, carry: u128, blocks: &[[u8; 16]]) -> u128 {
    // SAFETY: this function enables what `X4` needs.
    unsafe { hash_lanes::<X4>(key, carry, blocks) }
}

#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
fn hash2(key: &GcmKey, carry: u128, blocks: &[[u8; 16]]) -> u128 {
    // SAFETY: this function enables what `X2` needs.
    unsafe { hash_lanes::<X2>(key, carry, blocks) }
}

#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
fn hash1(key: &GcmKey, carry: u128, blocks: &[[u8; 16]]) -> u128 {
    // SAFETY: this function enables what `X1` needs.
    unsafe { hash_lanes::<X1>(key, carry, blocks) }
}

/// Each lane sums every `WIDTH`th block; at the end the lanes are brought to the same power.
/// Blocks before the first full vector are hashed one by one.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn hash_lanes<L: Lanes>(key: &GcmKey, mut state: u128, blocks: &[[u8; 16]]) -> u128 {
    // SAFETY: the caller keeps the contract of `Lanes`; the pointers are those of slices of
    // at least the size that is read.
    unsafe {
        let (first, vectors) = blocks.split_at(blocks.len() % L::WIDTH);
        for block in first {
            let mut products = Products::<L>::zero();
            let block = L::at(0, state ^ u128::from_be_bytes(*block));
            products.add(block, L::broadcast(&key.powers[0]));
            state = products.reduce().sum();
        }
        if vectors.is_empty() {
            return state;
        }
        let last = vectors.len() - L::WIDTH;
        let (chunks, end) = vectors.split_at(last);
        let mut sum = L::at(0, state);
        for chunk in chunks.chunks(L::WIDTH * STRIDES) {
            let strides = &key.strides[1..=chunk.len() / L::WIDTH];
            let mut products = Products::<L>::zero();
            for (vector, stride) in chunk.chunks_exact(L::WIDTH).zip(strides.iter().rev()) {
                let block = L::load(vector.as_ptr().cast()).reverse_bytes();
                products.add(block.xor(sum), L::broadcast(stride));
                sum = L::zero();
            }
            sum = products.reduce();
        }
        let mut products = Products::<L>::zero();
        let block = L::load(end.as_ptr().cast()).reverse_bytes();
        products.add(block.xor(sum), falling::<L>(key));
        products.reduce().sum()
    }
}

/// The powers that bring the lanes together: the highest first, H in the last lane.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn falling<L: Lanes>(key: &GcmKey) -> L {
    // SAFETY: the caller keeps the contract of `Lanes`.
    unsafe {
        let mut lanes = L::zero();
        for lane in 0..L::WIDTH {
            lanes = lanes.xor(L::at(lane, key.powers[L::WIDTH - 1 - lane]));
        }
        lanes
    }
}

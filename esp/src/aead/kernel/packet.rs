//! A packet as the kernels see it: where its text is, and the blocks that are not in it.

use core::arch::asm;
use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::ghash;
use super::key::{Form, GcmKey};

/// One text to be sealed or opened in place.
///
/// Made only by [`Packet::esp`] and [`Packet::raw`]; `text` is valid for `len` bytes and `icv`
/// for the length of the ICV, for as long as the borrows that these were given.
#[repr(C, align(64))]
pub(super) struct Packet {
    /// The counter block with the counter 0: salt, IV.
    pub(super) counter: u128,
    /// The sum of the authenticated data before its last multiplication, byte-reversed: for
    /// one block of data, the block itself.
    pub(super) aad: u128,
    /// The block of lengths in bits, byte-reversed.
    pub(super) lengths: u128,
    pub(super) key: *const GcmKey,
    pub(super) text: *mut u8,
    /// Bytes of text, below 2^36 - 32.
    pub(super) len: usize,
    pub(super) icv: *mut u8,
    pub(super) shape: Shape,
    /// Set when a packet has been opened.
    pub(super) authentic: bool,
}

/// Four numbers below 256: bytes of ICV, AES rounds, class, index of the job.
#[derive(Clone, Copy)]
pub(super) struct Shape(u32);

/// Text that a 32-bit counter can encrypt (SP 800-38D section 5.2.1.1), in bytes.
pub(super) const MAX_TEXT: usize = (1 << 36) - 32;
/// Blocks of text of a packet that can be one of a group.
const MOST_BLOCKS: usize = 20;
/// Classes, and so blocks, by which the packets of a group may differ.
pub(super) const SPREAD: u8 = 3;
/// Classes for each length of keys.
const CLASSES: u8 = MOST_BLOCKS as u8 + 1 + SPREAD;
/// The class of packets that are worked on alone.
pub(super) const LARGE: u8 = 3 * CLASSES;

impl Shape {
    /// That of an empty packet.
    pub(super) const fn new(rounds: u8, icv_len: u8) -> Self {
        Self(u32::from_le_bytes([
            icv_len,
            rounds,
            (rounds / 2 - 5) * CLASSES,
            0,
        ]))
    }

    /// That of a packet with so many bytes of text.
    #[inline(always)]
    const fn with(self, len: usize, index: usize) -> Self {
        let blocks = len.div_ceil(16);
        let class = if blocks > MOST_BLOCKS {
            self.0 & 0xffff | (LARGE as u32) << 16
        } else {
            self.0 + ((blocks as u32) << 16)
        };
        Self(class | (index as u32) << 24)
    }

    /// Bytes of ICV.
    #[inline(always)]
    pub(super) const fn icv_len(self) -> u8 {
        self.0 as u8
    }

    /// AES rounds.
    #[inline(always)]
    pub(super) const fn rounds(self) -> usize {
        (self.0 >> 8 & 0xff) as usize
    }

    /// Packets of neighbouring classes can be worked on together: the number of blocks, from
    /// a start for each length of keys.
    #[inline(always)]
    pub(super) const fn class(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The index of the job.
    #[inline(always)]
    pub(super) const fn index(self) -> usize {
        (self.0 >> 24) as usize
    }
}

/// Which bytes of SPI, sequence number and IV are those of the nonce behind the salt.
pub(super) const NONCE: u128 = 0x80808080_0f0e0d0c_0b0a0908_80808080;
/// Which are the authenticated data, byte-reversed, with 64-bit sequence numbers: the place of
/// the high half is free.
pub(super) const WITH_HIGH_HALF: u128 = 0x00010203_80808080_04050607_80808080;
/// Which are the authenticated data, byte-reversed, with 32-bit sequence numbers.
pub(super) const WITHOUT_HIGH_HALF: u128 = 0x00010203_04050607_80808080_80808080;

impl Packet {
    /// Makes the packet of an ESP job at `place`, or `None` if it is too short for its header
    /// and ICV.
    ///
    /// `esp` is SPI, sequence number, IV if explicit, text, ICV; `index` that of the job.
    #[inline]
    #[target_feature(enable = "ssse3,sse4.1")]
    pub(super) fn esp(
        place: &mut MaybeUninit<Self>,
        key: &GcmKey,
        sequence: u64,
        esn: bool,
        esp: &mut [u8],
        index: usize,
    ) -> Option<()> {
        let len = esp.len().checked_sub(usize::from(key.overhead))?;
        if len > MAX_TEXT {
            return None;
        }
        if key.form != Form::Gcm {
            return Self::other_form(place, key, sequence, esn, esp, index);
        }
        let (header, body) = esp.split_first_chunk_mut::<16>()?;
        let header = m128i(u128::from_le_bytes(*header));
        let (aad, aad_bits) = if esn {
            // RFC 4106 section 5: the SPI and the 64-bit sequence number.
            let aad = _mm_shuffle_epi8(header, m128i(WITH_HIGH_HALF));
            (_mm_insert_epi32(aad, (sequence >> 32) as i32, 2), 96)
        } else {
            (_mm_shuffle_epi8(header, m128i(WITHOUT_HIGH_HALF)), 64)
        };
        // RFC 4106 section 4: the nonce is the salt, then the IV.
        let iv = _mm_shuffle_epi8(header, m128i(NONCE));
        let counter = _mm_or_si128(iv, _mm_cvtsi32_si128(key.salt as i32));
        let text = body.as_mut_ptr();
        place.write(Self {
            counter: block(counter),
            aad: block(aad),
            lengths: (aad_bits << 64) | (len as u128 * 8),
            key,
            text,
            len,
            icv: text.wrapping_add(len),
            shape: key.shape.with(len, index),
            authentic: false,
        });
        Some(())
    }

    /// As [`Packet::esp`], for implicit IVs and GMAC.
    #[inline(never)]
    fn other_form(
        place: &mut MaybeUninit<Self>,
        key: &GcmKey,
        sequence: u64,
        esn: bool,
        esp: &mut [u8],
        index: usize,
    ) -> Option<()> {
        let len = esp.len().checked_sub(usize::from(key.overhead))?;
        let [spi_and_number, mut iv] = halves(esp.first_chunk::<16>()?);
        let mut text = esp.as_mut_ptr().wrapping_add(usize::from(key.header_len));
        let icv = text.wrapping_add(len);
        let mut text_len = len;
        let (aad, lengths);
        if key.form == Form::ImplicitIv {
            // RFC 8750 section 4: the IV is the sequence number; without ESN, zeroes in front
            // of its 32 bits.
            iv = if esn {
                sequence
            } else {
                sequence & 0xffff_ffff
            }
            .swap_bytes();
            let aad_bits;
            (aad, aad_bits) = esp_aad(spi_and_number, sequence, esn);
            lengths = (u128::from(aad_bits) << 64) | (len as u128 * 8);
        } else {
            let aad_len;
            (aad, aad_len) = gmac_aad(key, sequence, esn, esp.get(..16 + len)?);
            lengths = (aad_len as u128 * 8) << 64;
            (text, text_len) = (icv, 0);
        }
        place.write(Self {
            counter: u128::from(key.salt) | u128::from(iv) << 32,
            aad,
            lengths,
            key,
            text,
            len: text_len,
            icv,
            shape: key.shape.with(text_len, index),
            authentic: false,
        });
        Some(())
    }

    /// A text with any authenticated data, and a nonce of 12 bytes.
    pub(super) fn raw(
        key: &GcmKey,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        icv: &mut [u8],
    ) -> Option<Self> {
        if text.len() > MAX_TEXT || icv.len() > 16 {
            return None;
        }
        let mut counter = [0; 16];
        counter[..12].copy_from_slice(nonce);
        Some(Self {
            counter: u128::from_le_bytes(counter),
            aad: ghash::absorb(key, 0, aad),
            lengths: ((aad.len() as u128 * 8) << 64) | (text.len() as u128 * 8),
            key,
            text: text.as_mut_ptr(),
            len: text.len(),
            icv: icv.as_mut_ptr(),
            shape: Shape::new(key.rounds, icv.len() as u8).with(text.len(), 0),
            authentic: false,
        })
    }

    /// Writes the tag, or compares it with the one in the packet.
    #[inline(always)]
    pub(super) fn finish<const SEAL: bool>(&mut self, tag: u128) {
        let len = usize::from(self.shape.icv_len()).min(16);
        // SAFETY: `icv` is valid for its length (see `Packet`), and nothing else refers to
        // it while this runs.
        unsafe {
            if SEAL {
                write(self.icv, len, tag);
            } else {
                let mask = u128::MAX.checked_shr(128 - 8 * len as u32).unwrap_or(0);
                let different = (tag & mask) ^ read(self.icv, len);
                let mut different = different as u64 | (different >> 64) as u64;
                // All bytes are compared before any is asked about.
                asm!("/* {} */", inout(reg) different, options(nomem, nostack, preserves_flags));
                self.authentic = different == 0;
            }
        }
    }

    #[inline(always)]
    pub(super) fn key(&self) -> &GcmKey {
        // SAFETY: the key outlives the packet (see `Packet`).
        unsafe { &*self.key }
    }
}

/// SPI and sequence number as a number, and the IV as it is in memory.
#[inline(always)]
fn halves(header: &[u8; 16]) -> [u64; 2] {
    let header = u128::from_le_bytes(*header);
    [(header as u64).swap_bytes(), (header >> 64) as u64]
}

/// The authenticated data of an ESP packet as a hash block, byte-reversed, and its length in
/// bits.
#[inline(always)]
fn esp_aad(spi_and_number: u64, sequence: u64, esn: bool) -> (u128, u64) {
    // RFC 4106 section 5: the SPI and the 32-bit or 64-bit sequence number.
    if esn {
        let high = spi_and_number & !0xffff_ffff | sequence >> 32;
        let low = spi_and_number << 32;
        (u128::from(high) << 64 | u128::from(low), 96)
    } else {
        (u128::from(spi_and_number) << 64, 64)
    }
}

/// The authenticated data of RFC 4543: everything before the ICV, with the high half of the
/// sequence number where ESN is used. Returns its sum and its length in bytes.
#[inline(never)]
fn gmac_aad(key: &GcmKey, sequence: u64, esn: bool, esp: &[u8]) -> (u128, usize) {
    if !esn {
        return (ghash::absorb(key, 0, esp), esp.len());
    }
    // SPI, 64-bit sequence number, IV, text (RFC 4543 section 3.3): four bytes more than the
    // packet, which shift the blocks; the first two are put together here.
    let mut head = [0; 32];
    let taken = esp.len().min(28);
    head[..4].copy_from_slice(&esp[..4]);
    head[4..8].copy_from_slice(&((sequence >> 32) as u32).to_be_bytes());
    head[8..4 + taken].copy_from_slice(&esp[4..taken]);
    let rest = &esp[taken..];
    let sum = if rest.is_empty() {
        ghash::absorb(key, 0, &head[..4 + taken])
    } else {
        let head = ghash::multiplied(key, ghash::absorb(key, 0, &head));
        ghash::absorb(key, head, rest)
    };
    (sum, esp.len() + 4)
}

#[inline(always)]
fn m128i(value: u128) -> __m128i {
    // SAFETY: the same size, and every bit pattern is valid.
    unsafe { core::mem::transmute(value) }
}

#[inline(always)]
fn block(value: __m128i) -> u128 {
    // SAFETY: the same size, and every bit pattern is valid.
    unsafe { core::mem::transmute(value) }
}

/// The first `len` bytes at `from`, then zeroes.
///
/// # Safety
/// They are valid for reads; `len` is at most 16.
#[inline(always)]
pub(super) unsafe fn read(from: *const u8, len: usize) -> u128 {
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
/// They are valid for writes; `len` is at most 16.
#[inline(always)]
pub(super) unsafe fn write(to: *mut u8, len: usize, block: u128) {
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

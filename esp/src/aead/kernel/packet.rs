//! A packet as the kernels see it: where its text is, and the blocks that are not in it.

use subtle::ConstantTimeEq;

use super::ghash;
use super::key::{Form, GcmKey};

/// One text to be sealed or opened in place.
///
/// Made only by [`Packet::esp`] and [`Packet::raw`]; `text` is valid for `len` bytes and `icv`
/// for `icv_len`, for as long as the borrows that these were given.
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
    pub(super) icv_len: u8,
    /// AES rounds of the key.
    pub(super) rounds: u8,
    /// Packets of neighbouring classes can be worked on together.
    pub(super) class: u8,
    /// Of the job.
    pub(super) index: u8,
    /// Set when a packet has been opened.
    pub(super) authentic: bool,
}

/// Text that a 32-bit counter can encrypt (SP 800-38D section 5.2.1.1), in bytes.
const MAX_TEXT: usize = (1 << 36) - 32;
/// Blocks of text of a packet that can be one of a group.
const MOST_BLOCKS: usize = 20;
/// Classes, and so blocks, by which the packets of a group may differ.
pub(super) const SPREAD: u8 = 3;
/// Classes for each length of keys.
const CLASSES: u8 = MOST_BLOCKS as u8 + 1 + SPREAD;
/// The class of packets that are worked on alone.
pub(super) const LARGE: u8 = 3 * CLASSES;

impl Packet {
    /// The packet of an ESP job, or `None` if it is too short for its header and ICV.
    ///
    /// `esp` is SPI, sequence number, IV if explicit, text, ICV; `index` that of the job.
    #[inline(always)]
    pub(super) fn esp(
        key: &GcmKey,
        sequence: u64,
        esn: bool,
        esp: &mut [u8],
        index: usize,
    ) -> Option<Self> {
        let icv_len = usize::from(key.icv_len);
        let header_len = usize::from(key.header_len);
        let len = esp.len().checked_sub(header_len + icv_len)?;
        if len > MAX_TEXT {
            return None;
        }
        let (spi_and_number, rest) = esp.split_first_chunk::<8>()?;
        let (next, _) = rest.split_first_chunk::<8>()?;
        let spi_and_number = u64::from_be_bytes(*spi_and_number);
        let mut iv = u64::from_le_bytes(*next);
        //= https://www.rfc-editor.org/rfc/rfc4106#section-5
        // Authenticated data: SPI and the 32-bit or 64-bit sequence number.
        let mut aad = u128::from(spi_and_number) << 64;
        let mut lengths = (64u128 << 64) | (len as u128 * 8);
        if esn {
            let high = spi_and_number & !0xffff_ffff | sequence >> 32;
            aad = u128::from(high) << 64 | u128::from(spi_and_number << 32);
            lengths = (96u128 << 64) | (len as u128 * 8);
        }
        let mut text = esp.as_mut_ptr().wrapping_add(header_len);
        let icv = text.wrapping_add(len);
        let mut text_len = len;
        if key.form != Form::Gcm {
            if key.form == Form::ImplicitIv {
                // RFC 8750 section 4: the IV is the sequence number; without ESN, zeroes in
                // front of its 32 bits.
                iv = if esn {
                    sequence
                } else {
                    sequence & 0xffff_ffff
                }
                .swap_bytes();
            } else {
                let aad_len;
                (aad, aad_len) = gmac_aad(key, sequence, esn, esp.get(..16 + len)?);
                lengths = (aad_len as u128 * 8) << 64;
                (text, text_len) = (icv, 0);
            }
        }
        Some(Self {
            // RFC 4106 section 4: the nonce is the salt, then the IV.
            counter: u128::from(key.salt) | u128::from(iv) << 32,
            aad,
            lengths,
            key,
            text,
            len: text_len,
            icv,
            icv_len: key.icv_len,
            rounds: key.rounds as u8,
            class: class(key, text_len),
            index: index as u8,
            authentic: false,
        })
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
            icv_len: icv.len() as u8,
            rounds: key.rounds as u8,
            class: class(key, text.len()),
            index: 0,
            authentic: false,
        })
    }

    /// Writes the tag, or compares it with the one in the packet.
    #[inline(always)]
    pub(super) fn finish<const SEAL: bool>(&mut self, tag: [u8; 16]) {
        // SAFETY: `icv` is valid for `icv_len` bytes (see `Packet`), and nothing else refers
        // to them while this runs.
        let icv = unsafe { core::slice::from_raw_parts_mut(self.icv, usize::from(self.icv_len)) };
        let tag = tag.get(..icv.len()).unwrap_or_default();
        if SEAL {
            icv.copy_from_slice(tag);
        } else {
            self.authentic = tag.ct_eq(icv).into();
        }
    }

    #[inline(always)]
    pub(super) fn key(&self) -> &GcmKey {
        // SAFETY: the key outlives the packet (see `Packet`).
        unsafe { &*self.key }
    }
}

/// The class of a packet: its number of blocks, from a start for each length of keys.
#[inline(always)]
fn class(key: &GcmKey, len: usize) -> u8 {
    let blocks = len.div_ceil(16);
    if blocks > MOST_BLOCKS {
        LARGE
    } else {
        (key.rounds as u8 / 2 - 5) * CLASSES + blocks as u8
    }
}

/// The authenticated data of RFC 4543: everything before the ICV, with the high half of the
/// sequence number where ESN is used. Returns its sum and its length in bytes.
#[inline(never)]
fn gmac_aad(key: &GcmKey, sequence: u64, esn: bool, esp: &[u8]) -> (u128, usize) {
    if !esn {
        return (ghash::absorb(key, 0, esp), esp.len());
    }
    //= https://www.rfc-editor.org/rfc/rfc4543#section-3.3
    // SPI, 64-bit sequence number, IV, text: four bytes more than the packet, which shift the
    // blocks; the first two are put together here.
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

//! What is worked on at once: a group of packets, or one.

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::super::packet::Packet;
use super::aes::Keys;
use super::bytes_of_text;
use super::hash::join;

/// A group of up to four small packets, or a large one.
#[repr(C, align(64))]
pub(super) struct Unit {
    /// Encrypted counter blocks for the tags.
    pub(super) masks: __m512i,
    /// In lanes beyond those of the group, one of it again.
    pub(super) packets: [*mut Packet; 4],
    pub(super) keys: Keys,
    /// Packets.
    pub(super) count: usize,
    /// Columns of text, or vectors of a row.
    pub(super) length: usize,
    /// Columns that are text from the first to the last byte, in all lanes.
    pub(super) whole: usize,
    /// Whether any packet starts later than the others, or there are less than four.
    pub(super) ragged: bool,
    /// Whether all tags are 16 bytes, and four.
    pub(super) full_tags: bool,
    /// Columns before the text of each packet; lanes before the first block of a row.
    pub(super) leads: [usize; 4],
}

impl Unit {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn new() -> Self {
        Self {
            masks: _mm512_setzero_si512(),
            packets: [core::ptr::null_mut(); 4],
            keys: Keys::NONE,
            count: 0,
            length: 0,
            whole: 0,
            ragged: false,
            full_tags: false,
            leads: [0; 4],
        }
    }

    /// Masks of tags do not stay on the stack.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
    pub(super) fn wipe(&mut self) {
        self.masks.zeroize();
    }

    /// Becomes a group of four packets with the same number of blocks.
    ///
    /// # Safety
    /// The packets are valid; the keys have the same number of rounds.
    #[inline(always)]
    pub(super) unsafe fn even(&mut self, packets: [*mut Packet; 4]) {
        // SAFETY: the caller keeps the contract.
        let [a, b, c, d] = packets.map(|packet| unsafe { &*packet });
        self.packets = packets;
        self.keys = Keys::new([a.key, b.key, c.key, d.key], a.shape.rounds());
        self.count = 4;
        self.length = a.len.div_ceil(16);
        let partial = (a.len | b.len | c.len | d.len) % 16 != 0;
        self.whole = self.length - usize::from(partial);
        self.ragged = false;
        let [e, f, g, h] = [a, b, c, d].map(|packet| packet.shape.icv_len());
        self.full_tags = e & f & g & h == 16;
        self.leads = [0; 4];
    }

    /// Becomes a group of `count` packets of different lengths; the last is repeated.
    ///
    /// # Safety
    /// As for [`Unit::even`].
    #[inline(never)]
    pub(super) unsafe fn mixed(&mut self, packets: [*mut Packet; 4], count: usize) {
        // SAFETY: the caller keeps the contract.
        let [a, b, c, d] = packets.map(|packet| unsafe { &*packet });
        self.packets = packets;
        self.keys = Keys::new([a.key, b.key, c.key, d.key], a.shape.rounds());
        self.count = count;
        let blocks = [a, b, c, d].map(|packet| packet.len.div_ceil(16));
        self.length = blocks[0].max(blocks[1]).max(blocks[2].max(blocks[3]));
        self.whole = 0;
        self.ragged = true;
        self.full_tags = false;
        self.leads = blocks.map(|blocks| self.length - blocks);
    }

    /// Four blocks, one of each packet.
    ///
    /// # Safety
    /// The packets are valid; the CPU has what the kernel needs.
    #[inline(always)]
    pub(super) unsafe fn join(&self, block: impl Fn(&Packet) -> &u128) -> __m512i {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let lane =
                |i: usize| _mm_load_si128(core::ptr::from_ref(block(&*self.packets[i])).cast());
            join([lane(0), lane(1), lane(2), lane(3)])
        }
    }

    /// Where `column` of a packet is, and its bytes from there on that are text, of `COLUMNS`
    /// columns at most.
    ///
    /// # Safety
    /// The packets are valid; the CPU has what the kernel needs.
    #[inline(always)]
    pub(super) unsafe fn text<const COLUMNS: usize>(
        &self,
        lane: usize,
        column: usize,
    ) -> (*mut u8, u64) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            let packet = &*self.packets[lane];
            let offset = 16 * (column as isize - self.leads[lane] as isize);
            let len = if lane < self.count { packet.len } else { 0 };
            let mask = bytes_of_text(offset, len) & (!0 >> (64 - 16 * COLUMNS));
            (packet.text.wrapping_offset(offset), mask)
        }
    }

    /// The first hash blocks of the packets whose text starts in `column`.
    ///
    /// # Safety
    /// The packets are valid; the CPU has what the kernel needs.
    #[inline(always)]
    pub(super) unsafe fn starting(&self, column: usize) -> __m512i {
        let mut mask = 0;
        for lane in 0..4 {
            mask |= u8::from(self.leads[lane] == column) * (3 << (2 * lane));
        }
        // SAFETY: the caller keeps the contract.
        unsafe { _mm512_maskz_mov_epi64(mask, self.join(|packet| &packet.aad)) }
    }
}

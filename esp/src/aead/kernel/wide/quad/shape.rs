//! The parts of packets.

use super::{HEADER, ICV, LEAST_ROWS, MOST_ROWS};
use crate::aead::Job;

/// A part of each of four packets.
pub(in super::super) trait Shape {
    /// Vectors of four blocks.
    const VECTORS: usize;
    /// What there is beside whole vectors:
    ///
    /// - 0: nothing,
    /// - 1 or 2: so many columns more, of which the last need not be full,
    /// - 3: the last vector has four blocks, the last one not full,
    /// - 4: the last vector has three blocks, the last one full or not.
    const TAIL: usize;
    /// Whether it has the counter block of the tag, and, unless there are rows before it, the
    /// authenticated data.
    const FIRST: bool;
    /// Whether packets end with it, with the lengths.
    const LAST: bool;
    /// Whether rows of the packets come before it, as many as each has.
    const ROWS: bool = false;

    /// Columns of text.
    const COLUMNS: usize = 4 * Self::VECTORS + Self::MORE - (Self::TAIL == 4) as usize;
    /// Columns beside the vectors.
    const MORE: usize = if Self::TAIL < 3 { Self::TAIL } else { 0 };
    /// Columns of hash input.
    const BLOCKS: usize =
        Self::COLUMNS + (Self::FIRST && !Self::ROWS) as usize + Self::LAST as usize;
}

/// A whole packet.
pub(in super::super) struct Whole<const VECTORS: usize, const TAIL: usize>;
/// The first part of a packet of several.
pub(in super::super) struct Start<const VECTORS: usize>;
/// A part between the first and the last.
pub(super) struct Middle;
/// The last part of a packet of several.
pub(in super::super) struct End<const TAIL: usize>;
/// What is left of a packet behind its rows: the last vector and what does not fill one.
pub(in super::super) struct Rest<const TAIL: usize>;

impl<const VECTORS: usize, const TAIL: usize> Shape for Whole<VECTORS, TAIL> {
    const VECTORS: usize = VECTORS;
    const TAIL: usize = TAIL;
    const FIRST: bool = true;
    const LAST: bool = true;
}

impl<const VECTORS: usize> Shape for Start<VECTORS> {
    const VECTORS: usize = VECTORS;
    const TAIL: usize = 0;
    const FIRST: bool = true;
    const LAST: bool = false;
}

impl Shape for Middle {
    const VECTORS: usize = 2;
    const TAIL: usize = 0;
    const FIRST: bool = false;
    const LAST: bool = false;
}

impl<const TAIL: usize> Shape for End<TAIL> {
    const VECTORS: usize = 2;
    const TAIL: usize = TAIL;
    const FIRST: bool = false;
    const LAST: bool = true;
}

impl<const TAIL: usize> Shape for Rest<TAIL> {
    const VECTORS: usize = 1;
    const TAIL: usize = TAIL;
    const FIRST: bool = true;
    const LAST: bool = true;
    const ROWS: bool = true;
}

/// Vectors of a text before its [`Rest`].
#[inline(always)]
pub(super) const fn rows(len: usize) -> usize {
    // The least rest is of three blocks.
    (len - 33) / 64
}

/// Whether the texts are of the shape, with that kind of sequence numbers.
#[inline(always)]
pub(super) fn fits<A: Shape, B: Shape>(
    jobs: &[&mut Job<'_>; 4],
    esn: bool,
    middles: usize,
) -> bool {
    let whole = HEADER + ICV + 64 * vectors::<A, B>(middles);
    let least = match B::TAIL {
        0 => whole,
        1 => whole + 1,
        2 => whole + 17,
        3 => whole - 15,
        _ => whole - 31,
    };
    let mut beyond = 0;
    let mut fits = true;
    for job in jobs {
        let more = job.esp.len().wrapping_sub(least);
        if A::ROWS {
            fits &= (LEAST_ROWS..MOST_ROWS).contains(&(more / 64));
            beyond |= more % 64;
        } else {
            beyond |= more;
        }
        fits &= job.esn == esn;
    }
    beyond <= (if B::TAIL == 0 { 0 } else { 15 }) && fits
}

/// Vectors of a packet, without those in rows.
#[inline(always)]
pub(super) const fn vectors<A: Shape, B: Shape>(middles: usize) -> usize {
    if A::LAST {
        A::VECTORS
    } else {
        A::VECTORS + Middle::VECTORS * middles + B::VECTORS
    }
}
